"""The Newton/Fisher correction itself: every peer's model before the noise.

Two targets: the minimizer of the network's objective, reached from the mean model
(``correct_mean``), and the point where D-SGD itself would rest, reached from the stack
of all models (``correct_stack``). Either way the result carries a bound on how far each
peer's model is from what a retrained network has there.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.clock import split_over_peers
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Transport, multiples
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.fixed_point import FixedPoint, stacked_newton
from dfl_unlearn.unlearning.influence_weights import correction_weights
from dfl_unlearn.unlearning.newton_path import mean_path

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

UNNOISED = "unnoised"
"""Slot of a state with the corrected models before the noise."""

_FLOAT = 8  # bytes of one number of a correction

# Share of the cap for the mean model where peers keep models of their own; the rest is
# for how far these lie from it.
_MEAN_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """Every peer's corrected model, and how far it may be from its target.

    Attributes:
        rows: Models before the noise, shape ``(N, P)`` float64.
        models: What peers add their part of a correction to, shape ``(N, P)`` float64:
            their own models, aligned first where the protocol says so.
        move: What was added to the mean model, shape ``(P,)``; None for a stack.
        weights: The multiple of ``move`` that each peer takes, shape ``(N,)``, with
            what its way there makes of it.
        distance: Bound on the largest distance of a peer's model to its target; for a
            stack on the Frobenius distance of all; inf where nothing is proven.
        residuals: Norms of what is to vanish, at the start and after every step.
        summed: Whether these are norms of sums over all peers that bound distances.
        solver_residuals: Of the linear solver.
        solver_iterations: Its iterations.
        sample_gradients: Per-sample gradients taken.
        hvps: Per-sample Hessian-vector products taken.
    """

    rows: Tensor
    models: Tensor
    move: Tensor | None
    weights: NDArray[np.float64]
    distance: float
    residuals: tuple[float, ...]
    summed: bool
    solver_residuals: tuple[float, ...]
    solver_iterations: int
    sample_gradients: int
    hvps: int


def correct_mean(
    protocol: "NewtonFisher",
    run: TrainedRun,
    kept: Objective,
    request: ForgetRequest,
    rng: RngTree,
    transport: Transport,
) -> Correction:
    """Correct the mean model and hand every peer its part of the correction.

    Args:
        protocol: Its fields.
        run: The trained network.
        kept: The objective on what is kept.
        request: The resolved request.
        rng: The run's draws.
        transport: Counts the messages.

    Returns:
        The correction; with ``broadcast_model`` all rows are the corrected mean model.

    Raises:
        UnsupportedRequestError: If a peer's weight is not positive where noise is
            scaled by it.
    """
    provable = measures(protocol, run)
    start = starting_models(protocol, run).mean(0)
    models = _aligned(protocol, run, transport)
    transport.all_reduce("mean model", _FLOAT * run.model.size, request.requester)
    aims = provable and not protocol.assume_stationary
    path = mean_path(
        protocol,
        run,
        kept,
        start,
        request,
        rng,
        transport,
        target=_mean_target(protocol, kept) if aims else None,
        measures=provable,
    )
    bound = path.residuals[-1] / run.model.l2 if provable else math.inf
    move, n = path.theta - start, run.topology.n
    gradients, products = path.sample_gradients, path.hvps
    if protocol.noise_placement == "broadcast_model":
        weights, rows = np.ones(n), path.theta.expand(n, -1)
    else:
        how = protocol.influence_weights
        weights = correction_weights(how, run, request, kept, start, rng)
        weights = weights * multiples(
            run.topology, request.requester, protocol.dissemination
        )
        if protocol.noise_placement == "broadcast_correction" and weights.min() <= 0:
            peer = int(weights.argmin())
            raise UnsupportedRequestError(
                "influence_weights: must give every peer a positive weight for "
                f"noise_placement='broadcast_correction', got {weights[peer]:.3g} at "
                f"peer {peer} with {how!r}; use 'uniform' or 'resolvent'"
            )
        spent = kept.rows if how == "resolvent" else 0
        if how == "exact":  # the replay and its derivative, a product being two
            spent = 4 * int(run.info.get("sample_gradients", 0))
        transport.work(split_over_peers(spent, run.data.without(request)))
        if how != "uniform":
            transport.all_reduce("influence weights", _FLOAT, request.requester)
        gradients += kept.rows if how == "resolvent" else 0
        if how == "exact":  # the replay and its derivative
            trained = int(run.info.get("sample_gradients", 0))
            gradients, products = gradients + 2 * trained, products + trained
        rows = models + torch.from_numpy(weights)[:, None] * move
        if provable:
            bound += float((rows - path.theta).norm(dim=1).max())
            transport.all_reduce("largest distance", _FLOAT, request.requester)
    return Correction(
        rows=rows,
        models=models,
        move=move,
        weights=weights,
        distance=bound,
        residuals=path.residuals,
        summed=provable and not protocol.assume_stationary,
        solver_residuals=path.solver_residuals,
        solver_iterations=path.solver_iterations,
        sample_gradients=gradients,
        hvps=products,
    )


def correct_stack(
    protocol: "NewtonFisher",
    run: TrainedRun,
    data: PeerData,
    request: ForgetRequest,
    transport: Transport,
) -> Correction:
    """Correct every peer's model towards where D-SGD would rest without the data.

    Args:
        protocol: Its fields.
        run: The trained network.
        data: What is kept.
        request: The resolved request.
        transport: Counts the messages: rows to neighbours only, and one number all
            around per evaluation to know when to stop.

    Returns:
        The correction.
    """
    equation = FixedPoint(run, data)
    path = stacked_newton(
        equation,
        starting_models(protocol, run),
        target=protocol.residual_cap * equation.contraction,
        least_steps=protocol.newton_steps,
        most_steps=protocol.newton_steps_max,
    )
    payload = _FLOAT * run.model.size
    share = split_over_peers(equation.rows, data)
    for _ in range(path.evaluations):
        transport.work(share)
        transport.exchange("model", payload)
        transport.all_reduce("residual norm", _FLOAT, request.requester)
    for _ in range(path.gossip_rounds):
        transport.work(2 * share)
        transport.exchange("correction", payload)
    return Correction(
        rows=path.state,
        models=starting_models(protocol, run),
        move=None,
        weights=np.ones(run.topology.n),
        distance=path.residuals[-1] / equation.contraction,
        residuals=path.residuals,
        summed=True,
        solver_residuals=(),
        solver_iterations=path.gossip_rounds,
        sample_gradients=path.evaluations * equation.rows,
        hvps=path.gossip_rounds * equation.rows,
    )


def starting_models(protocol: "NewtonFisher", run: TrainedRun) -> Tensor:
    """Return the models that a correction starts from, ``(N, P)`` float64.

    Args:
        protocol: Its ``state_policy``.
        run: The trained network; after a request with ``secret_state`` it carries the
            corrected models as they were before the noise.
    """
    secret = protocol.state_policy == "secret_state"
    kept = run.state.slots.get(UNNOISED) if secret else None
    return (run.state.params if kept is None else kept).double()


def _aligned(protocol: "NewtonFisher", run: TrainedRun, transport: Transport) -> Tensor:
    """Return the peers' models after the rounds of gossip that bring them together."""
    models = starting_models(protocol, run)
    if protocol.align_to is None:
        return models
    apart = float((models - models.mean(0)).norm())
    transport.all_reduce("disagreement", _FLOAT, 0)
    if apart <= protocol.align_to:
        return models
    for _ in range(run.topology.mixing_rounds(protocol.align_to / apart)):
        models = torch.from_numpy(run.topology.weights @ models.numpy())
        transport.exchange("align", run.model.size * run.state.params.element_size())
    return models


def measures(protocol: "NewtonFisher", run: TrainedRun) -> bool:
    """Tell whether the residual will bound the distance to the target.

    With ``assume_stationary`` it is summed over all peers only where a claim could rest
    on it.

    Args:
        protocol: Its fields.
        run: Gives the model.

    Returns:
        Whether it will be finite.
    """
    if not (run.model.convex and run.model.l2 > 0):
        return False
    return not protocol.assume_stationary or (
        recovers_within_claim(protocol)
        and (
            protocol.noise_placement != "broadcast_correction"
            or protocol.influence_weights == "uniform"
        )
    )


def recovers_within_claim(protocol: "NewtonFisher") -> bool:
    """Tell whether recovery rounds, if any, only mix what the claim covers together.

    Args:
        protocol: Its fields.

    Returns:
        False where a peer would mix models that are covered one at a time only.
    """
    alone = protocol.scope == "release" and not protocol.stacked
    mixes = protocol.noise_placement != "broadcast_model"
    return not (alone and mixes and protocol.recovery_rounds)


def _mean_target(protocol: "NewtonFisher", kept: Objective) -> float:
    """Return the gradient norm to reach at the corrected mean model."""
    own = protocol.noise_placement != "broadcast_model"
    share = _MEAN_SHARE if own else 1.0
    return share * protocol.residual_cap * kept.model.l2
