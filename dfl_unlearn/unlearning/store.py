"""Outcomes in a run folder: kept as trials, read again, or made the run's own state."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn._jsontext import from_json
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.commit import begin_commit, finish_commit
from dfl_unlearn.engine.personal import personal_digest
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.stored import (
    LEDGER,
    carried_out_to,
    data_entry,
    noted_head,
    read_personal,
    read_run,
    read_state,
    request_from,
    request_to,
)
from dfl_unlearn.engine.transport import MessageLog
from dfl_unlearn.errors import MissingInputError, RefusedError, StoreCorruptError
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.attempts import OutcomeFolder
from dfl_unlearn.unlearning.contracts import Cost, Outcome, OutcomeStatus
from dfl_unlearn.unlearning.forms import protocol_of
from dfl_unlearn.unlearning.progress import pending_from


def save_outcome(outcome: Outcome, folder: str | Path) -> Path:
    """Keep an outcome that was made in memory; ``unlearn(folder=...)`` does it itself.

    Args:
        outcome: The outcome.
        folder: The run folder.

    Returns:
        Where it lies.
    """
    run_folder = RunFolder(folder)
    with run_folder.locked():
        return run_folder.path(_save(outcome, run_folder))


def _save(outcome: Outcome, folder: RunFolder) -> str:
    run = outcome.run
    place = OutcomeFolder.open(folder, outcome.request, outcome.protocol, run)
    place.ledger_path.unlink(missing_ok=True)  # of a saving that was interrupted
    outcome.ledger.save(place.ledger_path)
    place.write(outcome)
    return place.rel


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
    outcome: Outcome, *, keep_checkpoints: bool | None = None, reviewed: bool = False
) -> TrainedRun:
    """Make a stored attempt the run's own state, for good.

    The record, the states of all attempts and the references of other requests, which
    were made with the forgotten data, are removed from the folder once the new state is
    durable there.

    Args:
        outcome: An attempt of a run that has a folder; it is kept there first where it
            was made in memory.
        keep_checkpoints: Leave that state on disk; the certificate then says so and is
            at most ``certified_conditional``. None is what the outcome says.
        reviewed: Whether somebody looked at an outcome that is held for review.

    Returns:
        The run as it is now in its folder; the same one where nothing was asked for.

    Raises:
        MissingInputError: If the run has no folder.
        RefusedError: If the run has changed since the attempt was made, the outcome is
            held for review, or a peer that has not left still lacks it.
    """
    if outcome.request.is_nothing:
        return outcome.run
    if keep_checkpoints is None:
        keep_checkpoints = outcome.keep_checkpoints
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
    ahead = outcome.as_run().ahead  # refuses where a peer is still waited for
    folder = RunFolder(outcome.run.folder)
    with folder.locked():
        manifest, present = read_state(folder)
        _refuse_stale(folder, outcome, present, noted_head(manifest))
        place = _kept(outcome, folder)
        after = {
            **manifest,
            "forgotten": [*manifest["forgotten"], request_to(outcome.request)],
            "data": data_entry(outcome.run.data.without(outcome.request)),
            "round": outcome.state.round,
            "ahead": ahead,
            "state": state_digest(outcome.state),
            "info": {**manifest["info"], "requests": outcome.run.requests + 1},
            "carried_out": [
                *manifest.get("carried_out", ()),
                carried_out_to(outcome.carried_out),
            ],
            "committed": [
                *manifest.get("committed", ()),
                {
                    "request": outcome.request.request_id,
                    "at": place,
                    "round": outcome.run.state.round,
                    "base": state_digest(outcome.run.state),
                    "state": state_digest(outcome.state),
                },
            ],
            "ledger": list(outcome.ledger.head),
            "record": manifest["record"] if keep_checkpoints else None,
            "personal": personal_digest(outcome.personal),
        }
        PrivacyLedger.load(
            folder.path(f"{place}/{LEDGER}"), expected_head=outcome.ledger.head
        )
        begin_commit(
            folder,
            manifest,
            after,
            at=place,
            detail=f"{outcome.request.request_id} by {outcome.label}",
            keep_checkpoints=keep_checkpoints,
        )
        finish_commit(folder)
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
    return _save(outcome, folder)


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


def _read(
    folder: RunFolder, at: str, known: Mapping[str, Any], run: TrainedRun
) -> Outcome:
    request = request_from(folder.read_json(f"{at}/request.json"))
    tensors = folder.read_tensors(f"{at}/state.safetensors")
    certificate = None
    if folder.path(f"{at}/certificate.json").is_file():
        certificate = Certificate.from_json(folder.read_text(f"{at}/certificate.json"))
    messages = MessageLog()
    for line in folder.read_text(f"{at}/messages.jsonl").splitlines():
        messages.append_row(from_json(line))
    state = PeerState(params=tensors.pop("params"), slots=tensors, round=known["round"])
    digest = state_digest(state)
    if known.get("state", digest) != digest:  # none in older folders
        raise StoreCorruptError(
            f"{folder.path(at)}/state.safetensors: must be the state that was written, "
            "got another one; the file was changed, unlearn again"
        )
    for name, value in known["cost"].items():
        _validate.number(at_least=0, **{name: value})
    _validate.integer(at_least=0, round=known["round"])
    _validate.of_type(dict, info=known["info"])
    _validate.of_type(list, notes=known["notes"])
    for note in known["notes"]:
        _validate.of_type(str, notes=note)
    status = known.get("status", "complete")
    _validate.one_of(get_args(OutcomeStatus), status=status)
    trace = {k: np.array(v) for k, v in known["trace"].items()}
    if any(values.dtype.kind not in "biuf" for values in trace.values()):
        raise ValueError("a trace of other values than numbers")
    return Outcome(
        run=run,
        request=request,
        protocol=protocol_of(known["protocol"]),
        state=state,
        certificate=certificate,
        # older folders had no simulated clock
        cost=Cost(**{"simulated_seconds": math.nan, **known["cost"]}),
        ledger=PrivacyLedger.load(
            folder.path(f"{at}/{LEDGER}"),
            budget=run.config.privacy_budget,
            expected_head=noted_head(known),
        ),
        messages=messages,
        reference=_read_reference(folder, known["reference"], request, run),
        trace=trace,
        info=known["info"],
        notes=tuple(known["notes"]),
        status=status,
        **pending_from(known),
        keep_checkpoints=known.get("keep_checkpoints", False),
        personal=read_personal(
            folder,
            f"{at}/personal.safetensors",
            known.get("personal"),  # none in older folders
            peers=run.topology.n,
            size=run.model.size,
        ),
    )


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
