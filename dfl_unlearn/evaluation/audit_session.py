"""Audits of what a run folder holds, with their progress on the terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.evaluation.audit import (
    AuditResult,
    audit_epsilon,
    one_run_audit,
)
from dfl_unlearn.evaluation.audit_replicas import Progress, quiet
from dfl_unlearn.evaluation.audit_store import save_audit
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.store import load_outcomes

logger = logging.getLogger(__name__)


def chosen(run: TrainedRun, request_id: str | None = None) -> list[Outcome]:
    """Return the outcomes of a stored run that claim something to audit.

    Args:
        run: A run that was loaded from its folder.
        request_id: Only those of this request; None takes all.

    Returns:
        Outcomes with noise and an epsilon, claimed or nominal; the last one of every
        request and protocol.

    Raises:
        InvalidArgumentError: If the request is unknown.
        MissingInputError: If nothing is left to audit.
    """
    outcomes = load_outcomes(run)
    names = sorted({outcome.request.request_id for outcome in outcomes})
    if request_id is not None and request_id not in names:
        raise InvalidArgumentError(
            f"--request: must be one of {', '.join(names) or 'none'}, got "
            f"{request_id!r}"
        )
    found: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        certificate = outcome.certificate
        if certificate is None or not certificate.noise_std > 0:
            continue
        if request_id in (None, outcome.request.request_id):
            found[outcome.request.request_id, outcome.label] = outcome
    if not found:
        raise MissingInputError(
            "audit: needs an outcome with a noised claim on the run's present state, "
            "got none; first: dfl-unlearn unlearn RUN --protocol newton-fisher ... "
            "(exact results need no audit, the others claim nothing)"
        )
    return list(found.values())


def audited(
    outcome: Outcome,
    *,
    replicas: int,
    gamma: float,
    statistic: str,
    one_run: bool,
    show: bool = True,
) -> AuditResult:
    """Audit a stored outcome and keep the audit beside it.

    Args:
        outcome: What claims something.
        replicas: Per world.
        gamma: Chance that the bound is above the true epsilon.
        statistic: The guesser's score.
        one_run: Whether to guess rows in one run instead.
        show: Whether to show how far it is.

    Returns:
        The audit.
    """
    if one_run:
        result = one_run_audit(
            outcome.run, outcome.request, outcome.protocol, gamma=gamma
        )
    else:
        label = f"{outcome.request.request_id} {outcome.label}"
        with _shown(label) if show else _unseen() as progress:
            result = audit_epsilon(
                outcome.run,
                outcome.request,
                outcome.protocol,
                replicas=replicas,
                gamma=gamma,
                statistic=statistic,  # type: ignore[arg-type]
                progress=progress,
            )
    save_audit(outcome, result)
    return result


@contextmanager
def _unseen() -> Iterator[Progress]:
    yield quiet


@contextmanager
def _shown(label: str) -> Iterator[Progress]:
    """Show a bar on a terminal, else one line per stage in the log."""
    if not sys.stderr.isatty():
        yield (
            lambda stage, done, total: (
                logger.info("%s: %s, %d replicas", label, stage, total)
                if done == total
                else None
            )
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)

        def told(stage: str, done: int, total: int) -> None:
            bars.update(
                task, description=f"{label}: {stage}", completed=done, total=total
            )

        yield told
