"""Who still holds what of the forgotten data, where not every peer was corrected."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import incomplete
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faults import ScheduledChurn
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import (
    MissingRecordError,
    ReplayDivergedError,
    UnsupportedRequestError,
)
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.progress import Residual, incomplete_text

_LOG = logging.getLogger(__name__)


def with_pending(outcome: Outcome) -> Outcome:
    """Return an outcome that says which peers still hold influence, and how much.

    A peer that was not corrected and that no message can have carried the data to holds
    none and does not count. Nothing changes in a network without faults.

    Args:
        outcome: What a protocol gave back.

    Returns:
        ``complete``, or ``incomplete`` with its pending peers; the certificate is
        ``pending`` then.
    """
    progress = outcome.progress
    if progress is None:
        return outcome
    missing = progress.missing
    residual = residual_influence(outcome.run, outcome.request, missing, progress.end)
    pending = tuple(i for i in missing if residual[i][0] != 0)
    notes = (f"request in a network with faults: {progress.text()}", *outcome.notes)
    if not pending:
        return replace(outcome, residual_influence=residual, notes=notes)
    text = incomplete_text(pending, residual, progress.left)
    known = outcome.certificate
    return replace(
        outcome,
        status="incomplete",
        pending=pending,
        residual_influence=residual,
        certificate=None if known is None else incomplete(known, pending, text),
        notes=(text, *notes),
    )


def residual_influence(
    run: TrainedRun, request: ForgetRequest, peers: Sequence[int], until: int
) -> dict[int, Residual]:
    """Return how much of some data is in the models of peers.

    Args:
        run: The run before the request.
        request: The resolved request.
        peers: Whose models.
        until: Network round up to which they may have lost them.

    Returns:
        Peer -> norm and how it was got: ``exact``, the derivative of training by the
        data's weight; ``light cone``, 0 where no message can have carried them; or None
        with ``unknown``: training left no record of it, or the peer lost its model
        since and started from its neighbours'.
    """
    if not peers:
        return {}
    found: dict[int, Residual] = dict.fromkeys(peers, (None, "unknown"))
    if run.requests or run.record is None:
        return found  # earlier requests have changed the models since training
    reached = light_cone(run, request)
    try:
        trained = _in_training(run)
        norms = track_influence(trained, request, every=run.state.round).norms[-1]
        # A derivative that happens to vanish is no proof: the cone decides.
        found = {i: (float(norms[i]), "exact") for i in peers}
        found.update({i: (None, "unknown") for i in peers if norms[i] == 0})
    except (
        MissingRecordError,
        UnsupportedRequestError,
        ReplayDivergedError,
    ) as error:
        _LOG.debug("no exact influence: %s", error)
    found.update({i: (0.0, "light cone") for i in peers if not reached[i]})
    for i in _restarted_elsewhere(run, until):
        if i in found:
            found[i] = (None, "unknown")
    return found


def light_cone(run: TrainedRun, request: ForgetRequest) -> NDArray[np.bool_]:
    """Return which peers' models the owners' data can have reached in training.

    By the messages that arrived, whatever was in them, and counting late ones as if
    they were new: whoever is outside has not a bit of the data in its model.

    Args:
        run: The run as training left it.
        request: The resolved request.

    Returns:
        Shape ``(N,)``.
    """
    reached = np.zeros(run.topology.n, dtype=np.bool_)
    owners = list(request.peers)
    draws = run.faults()
    form = getattr(run.config.trainer, "form", None)
    for t in range(run.state.round):
        works = np.ones_like(reached) if draws is None else draws.at(t).works
        own = np.zeros_like(reached)
        own[owners] = works[owners]
        carried = reached if form == "cta" else reached | own
        weights = (
            run.schedule.at(t) if draws is None else draws.at(t).topology
        ).weights
        reached = (weights @ carried.astype(np.float64)) > 0
        if form == "cta":
            reached |= own
    return reached


def _in_training(run: TrainedRun) -> TrainedRun:
    """Return the run with only those scheduled events that training met."""
    plan = run.config.faults
    models = tuple(
        replace(
            model, events=tuple(e for e in model.events if e[0] < run.network_round)
        )
        if isinstance(model, ScheduledChurn)
        else model
        for model in plan.models
    )
    faults = replace(plan, models=models)
    return replace(run, config=replace(run.config, faults=faults))


def _restarted_elsewhere(run: TrainedRun, until: int) -> set[int]:
    """Return who lost its model after training and started from its neighbours'."""
    draws: FaultDraws | None = run.faults()
    if draws is None or draws.plan.own_checkpoints is not None:
        return set()
    return {
        peer
        for model in draws.plan.models
        if isinstance(model, ScheduledChurn)
        for t, peer, what in model.events
        if what == "crash" and run.network_round <= t < until
    }
