r"""What part of a correction of the mean model each peer is due.

All rules give N numbers with sum N (decentralized-certified 2.3):

* ``uniform``: all 1;
* ``resolvent``: how D-SGD answers a change at the owners, around the mean curvature
  (``record.influence.resolvent_weights``); K local steps with rate :math:`\eta` count
  as one of size :math:`1 - (1 - \eta h)^K`, which is what they are around a uniform
  curvature h;
* ``empirical``: the norm bounds of the owners' influence, as recorded;
* ``exact``: the derivative of the run, :math:`a_i = \langle S_i, \bar S \rangle /
  \|\bar S\|^2`: the multiple of the mean response that peer i shows. (The
  matrix-valued response itself is what ``target="dsgd_fixed_point"`` solves for.)
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.curvature.operators import DiagonalFisher, Objective
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.replay import Replay, refuse_undifferentiable
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import MissingRecordError, UnsupportedRequestError
from dfl_unlearn.record.influence import influence_trace, resolvent_weights
from dfl_unlearn.rng import RngTree

_TINY = 1e-12  # keeps parameters that no row touches from being refused

InfluenceWeights = Literal["resolvent", "uniform", "empirical", "exact"]


def check_weights(how: InfluenceWeights, run: TrainedRun, owner: int) -> None:
    """Refuse a rule that the run does not carry; nothing costly is computed.

    Args:
        how: The rule.
        run: The trained run.
        owner: One of the owners.

    Raises:
        MissingRecordError: If training did not record what the rule reads.
        UnsupportedRequestError: If the rule does not fit the training iteration.
    """
    if how == "resolvent":
        if type(run.config.trainer) is not DSgd or run.topology.stochastic != "doubly":
            raise UnsupportedRequestError(
                "influence_weights: must be 'uniform' for a run that is not d-sgd on "
                "doubly stochastic weights, got 'resolvent', which is derived for that"
            )
    elif how == "empirical":
        if run.record is None:
            raise MissingRecordError(
                "record: must hold gradient_norms for influence_weights='empirical', "
                "got no record; use 'uniform' or 'resolvent'"
            )
        trace = influence_trace(run.record, run.topology, owner, "norm_bound")
        if trace.vacuous.any():
            raise UnsupportedRequestError(
                "influence_weights: must not be 'empirical' for a run whose norm bound "
                "grows without limit (learning_rate times smoothness above 2), got "
                "'empirical'; use 'resolvent' or 'exact'"
            )
    elif how == "exact":
        refuse_undifferentiable(run)
        Replay(run)


def correction_weights(
    how: InfluenceWeights,
    run: TrainedRun,
    request: ForgetRequest,
    objective: Objective,
    theta: Tensor,
    rng: RngTree,
) -> NDArray[np.float64]:
    """Return the weights of a request's correction.

    Args:
        how: The rule.
        run: The trained run.
        request: The resolved request; several owners share evenly.
        objective: What is kept; its curvature sets the resolvent's step.
        theta: Where the curvature is taken, shape ``(P,)``.
        rng: Draws the labels of a network's Fisher information.

    Returns:
        a, shape ``(N,)`` with sum N; >= 0 but for ``exact``.

    Raises:
        UnsupportedRequestError: If the learning rate is too large for the resolvent.
    """
    n = run.topology.n
    if how == "uniform":
        return np.ones(n)
    if how == "resolvent":
        local = run.config.local
        h = mean_curvature(objective, theta, rng, request) + local.weight_decay
        rate = local.rate(run.config.rounds - 1, run.config.rounds)
        steps = float(local.per_round(run.data.sizes).mean())
        if not 0 < rate * h < 1:
            raise UnsupportedRequestError(
                "influence_weights: must be 'uniform' where learning_rate times the "
                f"mean curvature is not in (0, 1), got 'resolvent' with {rate:g} * "
                f"{h:.3g}"
            )
        step = 1 - (1 - rate * h) ** steps
        form = run.config.trainer.form
        assert form in ("atc", "cta")
        parts = [
            resolvent_weights(run.topology, owner, 1.0, step, form)
            for owner in request.peers
        ]
        weights: NDArray[np.float64] = np.mean(parts, axis=0)
        return weights
    if how == "empirical":
        assert run.record is not None
        norms = np.sum(
            [
                influence_trace(run.record, run.topology, owner).norms[-1]
                for owner in request.peers
            ],
            axis=0,
        )
        return norms * (n / norms.sum()) if norms.sum() > 0 else np.ones(n)
    trace = track_influence(run, request, every=run.config.rounds, vectors=True)
    assert trace.vectors is not None
    response = trace.vectors[-1]
    mean = response.mean(axis=0)
    square = float(mean @ mean)
    return response @ mean / square if square > 0 else np.ones(n)


def mean_curvature(
    objective: Objective, theta: Tensor, rng: RngTree, request: ForgetRequest
) -> float:
    """Return the mean of the Fisher information's diagonal, l2 included.

    Args:
        objective: The objective.
        theta: Where, shape ``(P,)``.
        rng: Draws the labels where the model is not linear.
        request: Names the draw.

    Returns:
        The trace over P; for linear models it is that of the Hessian as well.
    """
    diagonal = DiagonalFisher.at(
        objective, theta, damping=_TINY, rng=rng, request=request.request_id
    )
    return float(diagonal.values.mean())
