"""Committed requests, carried out again from what the run folder wrote down.

A state that was lost can be made again where training is run again to the request: the
same protocol on the same state with the same keys gives the same charges, the same
released bytes and the same state, each compared with what was noted. Nothing is charged
and nothing is written; a value with secure noise is the kept one.
"""

from dataclasses import dataclass
from pathlib import Path

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.stored import (
    LEDGER,
    noted_head,
    read_manifest,
    request_from,
)
from dfl_unlearn.errors import InputFileError, ReplayDivergedError
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.apply import carried_out_again
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.forms import protocol_of
from dfl_unlearn.unlearning.outbox import FolderOutbox


@dataclass(frozen=True, kw_only=True)
class CommittedRequest:
    """What a run folder says of a request that its state carries.

    Attributes:
        request_id: Its id.
        at: Place of its attempt in the folder.
        round: Round of the state that it was carried out on.
        base: Digest of that state.
        state: Digest of the state after it.
    """

    request_id: str
    at: str
    round: int
    base: str
    state: str


def committed_requests(folder: str | Path) -> tuple[CommittedRequest, ...]:
    """Return the requests that were committed to a run folder, oldest first."""
    known = read_manifest(RunFolder(folder)).get("committed", ())  # none in older ones
    return tuple(
        CommittedRequest(
            request_id=entry["request"],
            at=entry["at"],
            round=int(entry["round"]),
            base=entry["base"],
            state=entry["state"],
        )
        for entry in known
    )


def replay_request(run: TrainedRun, folder: str | Path, request_id: str) -> Outcome:
    """Carry out a committed request again, on a run that is as it was then.

    Args:
        run: The run as it was when the request was made, e.g. trained again; its data
            still hold what was forgotten.
        folder: The run folder that has the request's attempt.
        request_id: Which one.

    Returns:
        The outcome; its state, its charges and what it releases are the committed
        ones, bit for bit. ``outcome.as_run()`` is the run after the request.

    Raises:
        InputFileError: If no such request was committed there.
        ReplayDivergedError: If the run, a charge, released bytes or the result differ.
    """
    place = RunFolder(folder)
    found = [x for x in committed_requests(folder) if x.request_id == request_id]
    if not found:
        raise InputFileError(
            f"{place.root}: must have the committed request {request_id!r}, got none; "
            "its requests are named in manifest.json under committed"
        )
    entry = found[-1]
    before = f"the state that {request_id} was on"
    _compare(run, before, state_digest(run.state), entry.base)
    known = place.read_json(f"{entry.at}/outcome.json")
    attempt = place.read_json(f"{entry.at}/attempt.json")
    charged = PrivacyLedger.load(
        place.path(f"{entry.at}/{LEDGER}"),
        budget=run.config.privacy_budget,
        expected_head=noted_head(known),
    )
    ledger = charged.rewound(int(attempt["ledger"][0]) + 1)
    ledger.outbox = FolderOutbox(place, entry.at, read_only=True)
    outcome = carried_out_again(
        run,
        request_from(place.read_json(f"{entry.at}/request.json")),
        protocol_of(known["protocol"]),
        ledger,
    )
    if ledger.head != charged.head:
        raise ReplayDivergedError(
            f"{request_id}: must be charged with {len(charged.entries)} entries as "
            f"before, got {len(ledger.entries)}; use the version that committed it"
        )
    _compare(run, f"{request_id}: the result", state_digest(outcome.state), entry.state)
    return outcome


def _compare(run: TrainedRun, what: str, found: str, expected: str) -> None:
    """Refuse a state that is not the one that was written down.

    Raises:
        ReplayDivergedError: Names both digests.
    """
    if found != expected:
        raise ReplayDivergedError(
            f"replay: {what} must have the digest {expected[:16]}..., got "
            f"{found[:16]}... after round {run.state.round}; it was made with other "
            "libraries, data or seeds, so it cannot be made again here"
        )
