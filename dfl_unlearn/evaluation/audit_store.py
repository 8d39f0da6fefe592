"""Audits beside the outcomes they are about, in a run folder."""

from pathlib import Path

from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.audit_result import AuditResult, AuditTest
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.store import load_outcomes

_FILES: dict[AuditTest, str] = {
    "many-run": "audit.json",
    "one-run": "audit-one-run.json",
    "noise": "audit-noise.json",
}


def save_audit(outcome: Outcome, audit: AuditResult) -> Path:
    """Write an audit, whole or not at all; a later one of the same test replaces it.

    Args:
        outcome: What it is about, kept in a run folder.
        audit: What to keep.

    Returns:
        The file.
    """
    folder, place = _place(outcome)
    return folder.write_text(f"{place}/{_FILES[audit.test]}", audit.to_json())


def load_audits(run: TrainedRun) -> list[tuple[Outcome, AuditResult]]:
    """Read the audits of the outcomes on a run's present state.

    Args:
        run: The run.

    Returns:
        Outcomes that were audited, each with one audit; empty for a run without a
        folder.
    """
    if run.folder is None or not RunFolder(run.folder).path("outcomes").is_dir():
        return []
    found = []
    for outcome in load_outcomes(run):
        folder, place = _place(outcome)
        for name in _FILES.values():
            if folder.path(f"{place}/{name}").is_file():
                text = folder.read_text(f"{place}/{name}")
                found.append((outcome, AuditResult.from_json(text)))
    return found


def _place(outcome: Outcome) -> tuple[RunFolder, str]:
    """Return the run folder of an outcome and its place in it.

    Raises:
        MissingInputError: If it was made in memory.
    """
    path = outcome.ledger.path
    if path is None:
        raise MissingInputError(
            "outcome: must be kept in a run folder, got one in memory; use "
            "unlearn(..., folder=run.folder)"
        )
    return RunFolder(path.parents[2]), f"outcomes/{path.parent.name}"
