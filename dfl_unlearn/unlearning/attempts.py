"""Attempts in a run folder: named, begun, and begun again after an interruption.

``outcomes/<request>.<protocol>`` holds one attempt. What was asked, by which protocol
and on which state is written first, then the ledger, then each release before it is
sent, and ``outcome.json`` last. An attempt without the last was interrupted: asking for
the same request by the same protocol on the same state carries it out again, with the
same noise, and finds its charges and its releases already written.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.commit import KEPT, pre_request_files
from dfl_unlearn.engine.personal import personal_digest, personal_to
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.stored import LEDGER, request_from, request_to
from dfl_unlearn.errors import InvalidForgetSetError, ReplayDivergedError
from dfl_unlearn.store.files import from_json, to_json
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol
from dfl_unlearn.unlearning.forms import form_of
from dfl_unlearn.unlearning.outbox import FolderOutbox
from dfl_unlearn.unlearning.progress import pending_to

_ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class OutcomeFolder:
    """Where one attempt is kept: ``outcomes/<request>.<protocol>`` of a run folder.

    Attributes:
        folder: The run folder.
        rel: The attempt's place in it.
    """

    folder: RunFolder
    rel: str

    @classmethod
    def open(
        cls,
        folder: RunFolder,
        request: ForgetRequest,
        protocol: UnlearningProtocol,
        run: TrainedRun,
    ) -> "OutcomeFolder":
        """Return the place of an attempt that was interrupted, or a new one.

        Attempts that came to an end are never overwritten.

        Args:
            folder: The run folder, held by the caller.
            request: The resolved request.
            protocol: The protocol.
            run: What it is carried out on.

        Returns:
            The place.
        """
        wanted = _attempt_of(protocol, run)
        base = f"outcomes/{request.request_id}.{wanted['protocol']['use']}"
        rel, number = base, 1
        while folder.path(rel).exists():
            if not folder.path(f"{rel}/request.json").is_file():
                break  # killed while it was made, or removed: nothing was drawn
            if _interrupted(folder, rel, request, wanted):
                folder.remove_leftovers(rel)
                return cls(folder, rel)
            number += 1
            rel = f"{base}-{number}"
        # At once: should the attempt crash after its noise was drawn, the id, which is
        # part of the noise's key, is not given to another request.
        folder.write_json(f"{rel}/{_ATTEMPT}", wanted)
        folder.write_json(f"{rel}/request.json", request_to(request))
        folder.remove_leftovers(rel)
        return cls(folder, rel)

    @property
    def ledger_path(self) -> Path:
        """The attempt's ledger, durable before anything is released."""
        return self.folder.path(f"{self.rel}/{LEDGER}")

    def ledger(self, run: TrainedRun) -> PrivacyLedger:
        """Return a fork of the run's ledger that is bound to the attempt.

        Args:
            run: What the attempt is carried out on.

        Returns:
            The fork; of an interrupted attempt it goes through what was charged again.
        """
        if self.ledger_path.exists():
            ledger = run.ledger.again(self.ledger_path)
        else:
            ledger = run.ledger.fork(self.ledger_path)
        ledger.outbox = FolderOutbox(self.folder, self.rel)
        return ledger

    def with_kept_state(self, outcome: Outcome) -> Outcome:
        """Return a trial that says how many files hold the run's state from before.

        Args:
            outcome: What the protocol gave back; not written yet.

        Returns:
            It, with a line under its certificate's ``exposure``. The status is that of
            the claim: a simulator's evidence is not kept by peers.
        """
        known = outcome.certificate
        if known is None:
            return outcome
        files = len(pre_request_files(self.folder, final=True, attempts=False))
        then = "keeps" if outcome.keep_checkpoints else "removes"
        line = (
            f"{KEPT} {files} files, the run's own: a trial leaves the run as it is, a "
            f"commit {then} them"
        )
        noted = replace(known, exposure=(*known.exposure, line))
        return replace(outcome, certificate=noted)

    def discard_unless_charged(self, charges: int) -> None:
        """Remove the place of an attempt that was refused before any charge."""
        if charges == 0:
            shutil.rmtree(self.folder.path(self.rel))

    def write(self, outcome: Outcome) -> None:
        """Write an outcome, ``outcome.json`` last.

        Args:
            outcome: What the protocol gave back.

        Raises:
            ReplayDivergedError: If an interrupted attempt had charged more.
        """
        if outcome.ledger.ahead:
            raise ReplayDivergedError(
                f"{self.ledger_path}: must be charged as in the attempt before, got "
                f"{outcome.ledger.ahead} lines fewer; use the version that began it, "
                "or ask again under another request_id"
            )
        at, folder = self.rel, self.folder
        if outcome.certificate is not None:
            folder.write_text(f"{at}/certificate.json", outcome.certificate.to_json())
        folder.write_tensors(
            f"{at}/state.safetensors",
            {"params": outcome.state.params, **outcome.state.slots},
        )
        if outcome.personal:
            folder.write_tensors(
                f"{at}/personal.safetensors", personal_to(outcome.personal)
            )
        lines = [json.dumps(row, sort_keys=True) for row in outcome.messages.rows()]
        folder.write_text(f"{at}/messages.jsonl", "".join(x + "\n" for x in lines))
        reference = None
        if outcome.reference is not None:
            reference = _write_reference(folder, outcome.request, outcome.reference)
        folder.write_json(
            f"{at}/outcome.json",
            {
                "format": 1,
                "order": len(list(folder.path("outcomes").glob("*/outcome.json"))),
                "protocol": form_of(outcome.protocol),
                "base": state_digest(outcome.run.state),
                "state": state_digest(outcome.state),
                "ledger": list(outcome.ledger.head),
                "round": outcome.state.round,
                "reference": reference,
                "cost": asdict(outcome.cost),
                "trace": {k: v.tolist() for k, v in outcome.trace.items()},
                "info": dict(outcome.info),
                "notes": list(outcome.notes),
                "status": outcome.status,
                **pending_to(
                    outcome.pending, outcome.residual_influence, outcome.progress
                ),
                "keep_checkpoints": outcome.keep_checkpoints,
                "personal": personal_digest(outcome.personal),
            },
        )


def named_in(
    folder: RunFolder,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    run: TrainedRun,
) -> ForgetRequest:
    """Return a request with an id that is its own in a run folder.

    Args:
        folder: The run folder.
        request: A resolved request.
        protocol: By which it is about to be carried out.
        run: What it is carried out on; the ids begin with its number of requests.

    Returns:
        The request: under the id it was tried with before, or the next free one. The
        id of an attempt that was interrupted is used again for the same attempt only:
        its noise may have been drawn.

    Raises:
        InvalidForgetSetError: If its id already names another request there.
    """
    known: dict[str, ForgetRequest] = {}
    interrupted: set[str] = set()
    again: set[str] = set()
    wanted = _attempt_of(protocol, run)
    for place in sorted(folder.path("outcomes").glob("*/request.json")):
        rel = f"outcomes/{place.parent.name}"
        with understood(place):
            found = request_from(folder.read_json(f"{rel}/request.json"))
        known[found.request_id] = found
        if _interrupted(folder, rel, found, wanted):
            again.add(found.request_id)
        elif not place.with_name("outcome.json").is_file():
            interrupted.add(found.request_id)
    if request.request_id:
        if known.get(request.request_id, request) != request:
            raise InvalidForgetSetError(
                f"request_id: must be new for another request, got "
                f"{request.request_id!r}, which {folder.root} already has; leave "
                "it out or choose another"
            )
        return request
    same = [k for k, v in known.items() if replace(v, request_id="") == request]
    for name in [*(k for k in same if k in again), *same]:
        if name in again or name not in interrupted:
            return replace(request, request_id=name)
    number = run.requests
    while f"r{number}" in known:
        number += 1
    return replace(request, request_id=f"r{number}")


def same_protocol(one: UnlearningProtocol, other: UnlearningProtocol) -> bool:
    """Tell whether two protocols are equal as they are written down."""
    return to_json("", form_of(one)) == to_json("", form_of(other))


def _attempt_of(protocol: UnlearningProtocol, run: TrainedRun) -> dict[str, Any]:
    """Return what makes an attempt the same one: protocol, state and ledger."""
    attempt = {
        "format": 1,
        "protocol": form_of(protocol),
        "base": state_digest(run.state),
        "round": run.state.round,
        "ledger": list(run.ledger.head),
    }
    plain: dict[str, Any] = from_json(to_json(_ATTEMPT, attempt))
    return plain


def _interrupted(
    folder: RunFolder, rel: str, request: ForgetRequest, wanted: dict[str, Any]
) -> bool:
    """Tell whether a place holds this very attempt, without its end."""
    return (
        not folder.path(f"{rel}/outcome.json").is_file()
        and folder.path(f"{rel}/{_ATTEMPT}").is_file()
        and folder.read_json(f"{rel}/{_ATTEMPT}") == wanted
        and request_from(folder.read_json(f"{rel}/request.json")) == request
    )


def _write_reference(
    folder: RunFolder, request: ForgetRequest, reference: TrainedRun
) -> str:
    """Keep a retrained run once; another one of the same request id gets a suffix."""
    at = base = f"reference/{request.request_id}"
    number = 1
    while folder.path(f"{at}/manifest.json").is_file():
        if folder.read_json(f"{at}/manifest.json")["digest"] == reference.digest:
            return at
        number += 1
        at = f"{base}-{number}"
    folder.write_tensors(f"{at}/state.safetensors", {"params": reference.state.params})
    folder.write_json(
        f"{at}/manifest.json",
        {
            "format": 1,
            "digest": reference.digest,
            "round": reference.state.round,
            "info": dict(reference.info),
        },
    )
    return at
