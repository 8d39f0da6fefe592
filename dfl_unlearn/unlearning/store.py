"""Outcomes in a run folder: kept as trials, read again, or made the run's own state."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn._jsontext import from_json
from dfl_unlearn.accounting.certificate import KEPT_STATE, Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.stored import (
    FINAL,
    LEDGER,
    carried_out_to,
    data_entry,
    noted_head,
    read_run,
    read_state,
    request_from,
    request_to,
)
from dfl_unlearn.engine.transport import MessageLog
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    MissingInputError,
    RefusedError,
)
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.contracts import Cost, Outcome, unlearners

_KEPT = "pre-request state kept:"


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
    def create(
        cls, folder: str | Path, request: ForgetRequest, protocol: str
    ) -> "OutcomeFolder":
        """Make a new place; earlier attempts are never overwritten.

        Args:
            folder: The run folder.
            request: The resolved request.
            protocol: Registered name.

        Returns:
            The place.
        """
        run_folder = RunFolder(folder)
        rel = base = f"outcomes/{request.request_id}.{protocol}"
        number = 1
        while run_folder.path(rel).exists():
            number += 1
            rel = f"{base}-{number}"
        run_folder.path(rel).mkdir(parents=True)
        # At once: should the attempt crash after its noise was drawn, the id, which is
        # part of the noise's key, is not given to another request.
        run_folder.write_json(f"{rel}/request.json", request_to(request))
        return cls(run_folder, rel)

    @property
    def ledger_path(self) -> Path:
        """The attempt's ledger, durable before anything is released."""
        return self.folder.path(f"{self.rel}/{LEDGER}")

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
        own = (FINAL, "record/*", "influence/*")
        files = sum(len(list(self.folder.root.glob(pattern))) for pattern in own)
        line = (
            f"{_KEPT} {files} files, the run's own: a trial leaves the run as it is, a "
            "commit removes them"
        )
        noted = replace(known, exposure=(*known.exposure, line))
        return replace(outcome, certificate=noted)

    def discard_unless_charged(self, charges: int) -> None:
        """Remove the place of an attempt that was refused before any charge."""
        if charges == 0:
            shutil.rmtree(self.folder.path(self.rel))

    def write(self, outcome: Outcome) -> None:
        """Write an outcome, ``outcome.json`` last."""
        at, folder = self.rel, self.folder
        if outcome.certificate is not None:
            folder.write_text(f"{at}/certificate.json", outcome.certificate.to_json())
        folder.write_tensors(
            f"{at}/state.safetensors",
            {"params": outcome.state.params, **outcome.state.slots},
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
                "protocol": {"use": outcome.protocol_name} | _fields(outcome.protocol),
                "base": state_digest(outcome.run.state),
                "ledger": list(outcome.ledger.head),
                "round": outcome.state.round,
                "reference": reference,
                "cost": _fields(outcome.cost),
                "trace": {k: v.tolist() for k, v in outcome.trace.items()},
                "info": dict(outcome.info),
                "notes": list(outcome.notes),
                "status": outcome.status,
            },
        )


def named_in(folder: str | Path, request: ForgetRequest, first: int) -> ForgetRequest:
    """Return a request with an id that is its own in a run folder.

    Args:
        folder: The run folder.
        request: A resolved request.
        first: Number to start from where it has no id yet.

    Returns:
        The request: under the id it was tried with before, or the next free one. The
        id of an attempt that crashed is not used again: its noise may have been drawn.

    Raises:
        InvalidForgetSetError: If its id already names another request there.
    """
    run_folder = RunFolder(folder)
    known: dict[str, ForgetRequest] = {}
    crashed: set[str] = set()
    for place in sorted(run_folder.path("outcomes").glob("*/request.json")):
        with understood(place):
            found = request_from(
                run_folder.read_json(f"outcomes/{place.parent.name}/request.json")
            )
        known[found.request_id] = found
        if not place.with_name("outcome.json").is_file():
            crashed.add(found.request_id)
    if request.request_id:
        if known.get(request.request_id, request) != request:
            raise InvalidForgetSetError(
                f"request_id: must be new for another request, got "
                f"{request.request_id!r}, which {run_folder.root} already has; leave "
                "it out or choose another"
            )
        return request
    for name, found in known.items():
        if name not in crashed and replace(found, request_id="") == request:
            return replace(request, request_id=name)
    while f"r{first}" in known:
        first += 1
    return replace(request, request_id=f"r{first}")


def save_outcome(outcome: Outcome, folder: str | Path) -> Path:
    """Keep an outcome that was made in memory; ``unlearn(folder=...)`` does it itself.

    Args:
        outcome: The outcome.
        folder: The run folder.

    Returns:
        Where it lies.
    """
    place = OutcomeFolder.create(folder, outcome.request, outcome.protocol_name)
    outcome.ledger.save(place.ledger_path)
    place.write(outcome)
    return place.folder.path(place.rel)


def load_outcomes(run: TrainedRun) -> list[Outcome]:
    """Read the attempts that were made on a run's present state.

    Args:
        run: A run that was loaded from its folder.

    Returns:
        The outcomes in the order they were made; attempts on a state that a committed
        request has replaced are left out.

    Raises:
        MissingInputError: If the run has no folder.
    """
    if run.folder is None:
        raise MissingInputError(
            "run: must come from a run folder, got one in memory; use load_run(path)"
        )
    folder = RunFolder(run.folder)
    present = state_digest(run.state)
    found = []
    for place in folder.path("outcomes").glob("*/outcome.json"):
        at = f"outcomes/{place.parent.name}"
        with understood(place):
            known = folder.read_json(f"{at}/outcome.json")
            if known["base"] == present:
                _validate.integer(at_least=0, order=known["order"])
                found.append((known["order"], at, known))
    outcomes = []
    for _, at, known in sorted(found, key=lambda row: row[:2]):
        with understood(folder.path(at)):
            outcomes.append(_read(folder, at, known, run))
    return outcomes


def commit_outcome(
    outcome: Outcome, *, keep_checkpoints: bool = False, reviewed: bool = False
) -> TrainedRun:
    """Make a stored attempt the run's own state, for good.

    The record, the states of all attempts and the references of other requests, which
    were made with the forgotten data, are removed from the folder once the new state is
    durable there.

    Args:
        outcome: An attempt of a run that has a folder; it is kept there first where it
            was made in memory.
        keep_checkpoints: Leave that state on disk; the certificate then says so and is
            at most ``certified_conditional``.
        reviewed: Whether somebody looked at an outcome that is held for review.

    Returns:
        The run as it is now in its folder; the same one where nothing was asked for.

    Raises:
        MissingInputError: If the run has no folder.
        RefusedError: If the run has changed since the attempt was made, or the outcome
            is held for review.
    """
    if outcome.request.is_nothing:
        return outcome.run
    if outcome.status == "held_for_review" and not reviewed:
        raise RefusedError(
            f"outcome of {outcome.request.request_id}: must be complete to be "
            f"committed, got held for review ({outcome.notes[-1]}); the run is as it "
            "was: pass reviewed=True after looking at it, or retrain"
        )
    if outcome.run.folder is None:
        raise MissingInputError(
            "outcome: must be of a run with a folder, got one in memory; use "
            "outcome.as_run() there"
        )
    folder = RunFolder(outcome.run.folder)
    with folder.locked():
        manifest, present = read_state(folder)
        _refuse_stale(folder, outcome, present, noted_head(manifest))
        digest = state_digest(outcome.state)
        after = {
            **manifest,
            "forgotten": [*manifest["forgotten"], request_to(outcome.request)],
            "data": data_entry(outcome.run.data.without(outcome.request)),
            "round": outcome.state.round,
            "state": digest,
            "info": {**manifest["info"], "requests": outcome.run.requests + 1},
            "carried_out": [
                *manifest.get("carried_out", ()),
                carried_out_to(outcome.carried_out),
            ],
            "ledger": list(outcome.ledger.head),
            "record": manifest["record"] if keep_checkpoints else None,
        }
        # The charge first: a crash from here on never refunds it.
        place = _kept(outcome, folder)
        PrivacyLedger.load(
            folder.path(f"{place}/{LEDGER}"), expected_head=outcome.ledger.head
        )
        ledger = folder.read_bytes(f"{place}/{LEDGER}")
        folder.write_bytes(LEDGER, ledger, private=True)
        folder.write_json("manifest.json", {**manifest, "next": after})
        folder.write_tensors(
            FINAL, {"params": outcome.state.params, **outcome.state.slots}
        )
        folder.write_json("done.json", {"digest": digest, "format": 1})
        before = _pre_request_files(folder, outcome, place)
        _settle(folder, outcome, place, len(before) if keep_checkpoints else 0)
        if not keep_checkpoints:
            for file in before:
                file.unlink()
            folder.path(f"{place}/state.safetensors").unlink()  # it is the run's now
        folder.write_json("manifest.json", after)
        folder.append(
            {
                "type": "event",
                "round": outcome.state.round,
                "what": "committed",
                "detail": f"{outcome.request.request_id} by {outcome.protocol_name}",
            }
        )
    return read_run(folder.root, data=outcome.run.data, model=outcome.run.model)


def _refuse_stale(
    folder: RunFolder,
    outcome: Outcome,
    present: PeerState,
    noted: tuple[int, str] | None,
) -> None:
    """Refuse an attempt on a state or a ledger that is not the folder's any more.

    Raises:
        RefusedError: If another request was committed since.
    """
    head = PrivacyLedger.load(folder.path(LEDGER), expected_head=noted).entries
    if (
        state_digest(present) != state_digest(outcome.run.state)
        or outcome.ledger.entries[: len(head)] != head
    ):
        raise RefusedError(
            f"{folder.root}: must not have changed since the attempt was made, got "
            "another committed request; unlearn again on the present state"
        )


def _kept(outcome: Outcome, folder: RunFolder) -> str:
    """Return where the attempt lies in the folder; it is written where it does not."""
    path = outcome.ledger.path
    if path is not None and path.resolve().parent.parent == folder.path("outcomes"):
        return f"outcomes/{path.parent.name}"
    return f"outcomes/{save_outcome(outcome, folder.root).name}"


def _pre_request_files(folder: RunFolder, outcome: Outcome, at: str) -> list[Path]:
    """Return files that hold states made with data that is now forgotten."""
    own = folder.read_json(f"{at}/outcome.json")["reference"]
    states = [
        *folder.path("record").glob("*"),
        *folder.path("influence").glob("*"),
        *folder.path("outcomes").glob("*/state.safetensors"),
        *folder.path("reference").glob("*/state.safetensors"),
    ]
    kept = {folder.path(f"{place}/state.safetensors") for place in (at, own) if place}
    return sorted(file for file in states if file.is_file() and file not in kept)


def kept_certificate(outcome: Outcome) -> Certificate | None:
    """Read a stored outcome's certificate as it is now in the run folder.

    Args:
        outcome: An outcome whose ledger lies in a run folder.

    Returns:
        After a commit it no longer speaks of a trial, and says what was kept.

    Raises:
        MissingInputError: If the outcome was made in memory.
    """
    path = outcome.ledger.path
    if path is None:
        raise MissingInputError(
            "outcome: must be kept in a run folder, got one in memory; use "
            "outcome.certificate"
        )
    folder, at = RunFolder(path.parents[2]), f"outcomes/{path.parent.name}"
    if not folder.path(f"{at}/certificate.json").is_file():
        return None
    return Certificate.from_json(folder.read_text(f"{at}/certificate.json"))


def _settle(folder: RunFolder, outcome: Outcome, at: str, files: int) -> None:
    """Write down that the outcome is no trial any more, and what state was kept."""
    known = outcome.certificate
    if known is None:
        return
    lines = [line for line in known.exposure if not line.startswith(_KEPT)]
    if files:
        lines.append(f"{_KEPT} {files} files")
    settled = replace(known, exposure=tuple(lines))
    if files and known.status in ("exact", "certified", "certified_conditional"):
        settled = replace(
            settled,
            status="certified_conditional",
            reasons=(*known.reasons, KEPT_STATE),
        )
    folder.write_text(f"{at}/certificate.json", settled.to_json())


def _read(
    folder: RunFolder, at: str, known: Mapping[str, Any], run: TrainedRun
) -> Outcome:
    request = request_from(folder.read_json(f"{at}/request.json"))
    protocol = dict(known["protocol"])
    tensors = folder.read_tensors(f"{at}/state.safetensors")
    certificate = None
    if folder.path(f"{at}/certificate.json").is_file():
        certificate = Certificate.from_json(folder.read_text(f"{at}/certificate.json"))
    messages = MessageLog()
    for line in folder.read_text(f"{at}/messages.jsonl").splitlines():
        messages.append_row(from_json(line))
    return Outcome(
        run=run,
        request=request,
        protocol=unlearners.build(protocol.pop("use"), **protocol),
        state=PeerState(
            params=tensors.pop("params"), slots=tensors, round=known["round"]
        ),
        certificate=certificate,
        cost=Cost(**known["cost"]),
        ledger=PrivacyLedger.load(
            folder.path(f"{at}/{LEDGER}"),
            budget=run.config.privacy_budget,
            expected_head=noted_head(known),
        ),
        messages=messages,
        reference=_read_reference(folder, known["reference"], request, run),
        trace={k: np.array(v) for k, v in known["trace"].items()},
        info=known["info"],
        notes=tuple(known["notes"]),
        status=known.get("status", "complete"),
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


def _read_reference(
    folder: RunFolder, at: str | None, request: ForgetRequest, run: TrainedRun
) -> TrainedRun | None:
    if at is None:
        return None
    known = folder.read_json(f"{at}/manifest.json")
    state = PeerState(
        params=folder.read_tensors(f"{at}/state.safetensors")["params"],
        round=known["round"],
    )
    return run.replaced(
        data=run.data.without(request),
        state=state,
        digest=known["digest"],
        info=known["info"],
    )


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}
