r"""Where a network without the forgotten rows comes to rest, solved to float64.

A certificate compares the unlearned network with an exact target plus noise. An audit
needs that target from another hand than the protocol's own: which rows are kept is read
from the request here, and the equations are solved by dense Newton steps (the protocols
use conjugate gradients or gossip), so that rows left out by mistake or a solver that
stops early show as a difference.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn.curvature.newton import newton_minimize
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.unlearning.fixed_point import FixedPoint, stacked_newton

_LARGEST_DENSE = 1000
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactTarget:
    """A point where an equation holds, and how well.

    Attributes:
        rows: What every peer holds there, shape ``(N, P)`` float64.
        slack: Bound on the distance to the true target (of all rows together).
    """

    rows: Tensor
    slack: float


def kept_data(run: TrainedRun, request: ForgetRequest) -> PeerData:
    """Return what a request leaves, read from the request itself.

    Args:
        run: Gives the data.
        request: The resolved request.

    Returns:
        The same store with the rows marked as forgotten.
    """
    data = run.data
    goes = np.zeros(len(data.store), dtype=np.bool_)
    if request.kind == "peer":
        goes[data.offsets[request.requester] : data.offsets[request.requester + 1]] = 1
    for peer, rows in zip(request.peers, request.items, strict=False):
        for row in rows:
            goes[data.offsets[peer] + row] = True
    gone = goes if data.dropped is None else goes | data.dropped
    vacated = data.vacated
    if request.normalization == "fixed":
        mine = goes & data.keep
        vacated = mine if vacated is None else vacated | mine
    return replace(data, dropped=gone, vacated=vacated)


def blanked(run: TrainedRun, request: ForgetRequest) -> TrainedRun:
    """Return the run with the forgotten rows overwritten by copies of a kept one.

    Who never saw the rows computes the same on it.

    Args:
        run: Gives the data.
        request: The resolved request.

    Returns:
        The run; nothing of the forgotten rows is left in its store.
    """
    data = run.data
    kept = kept_data(run, request)
    goes = torch.from_numpy(data.keep & ~kept.keep)
    spare = int(np.flatnonzero(kept.keep)[0])
    inputs, labels = data.store.inputs.clone(), data.store.labels.clone()
    inputs[goes], labels[goes] = inputs[spare].clone(), labels[spare].clone()
    store = replace(data.store, inputs=inputs, labels=labels)
    return run.replaced(data=replace(data, store=store, recipe=None))


def exact_target(run: TrainedRun, data: PeerData, *, stacked: bool) -> ExactTarget:
    """Return the target of a run's training on given data.

    Args:
        run: Gives model, weighting and network.
        data: What the peers hold.
        stacked: Whether every peer has a target of its own: where D-SGD rests; else
            all have the minimizer of the network's objective.

    Returns:
        The target.

    Raises:
        UnsupportedRequestError: If the objective is not strongly convex.
    """
    model, n = run.model, run.data.n
    if stacked:
        return _fixed_point(FixedPoint(run, data), n, model.size)
    if not (model.convex and model.l2 > 0):
        raise UnsupportedRequestError(
            "audit: needs a model whose exact target is known (linear or logistic with "
            f"l2 > 0), got convex={model.convex}, l2={model.l2:g}; audit a convex "
            "model, or compare with retraining by membership metrics"
        )
    objective = network_objective(model, data, run.config.peer_weighting)
    start = torch.zeros(model.size, dtype=torch.float64)
    if model.size <= _LARGEST_DENSE:
        theta = _newton(
            objective.gradient,
            lambda x, v: objective.hessian(x) @ v,
            start,
        )
    else:
        theta = newton_minimize(objective, start, target=1e-13, most_steps=50).theta
    slack = float(objective.gradient(theta).norm()) / model.l2
    return ExactTarget(rows=theta.expand(n, -1).clone(), slack=slack)


def _fixed_point(equation: FixedPoint, n: int, size: int) -> ExactTarget:
    """Return the stack at which training rests."""
    start = torch.zeros((n, size), dtype=torch.float64)
    if n * size <= _LARGEST_DENSE:
        flat = _newton(
            lambda x: equation.residual(x.view(n, size)).reshape(-1),
            lambda x, v: equation.product(x.view(n, size), v.view(n, size)).reshape(-1),
            start.reshape(-1),
        )
        rows = flat.view(n, size)
    else:
        rows = stacked_newton(
            equation, start, target=1e-13, most_steps=50, tolerance=1e-8
        ).state
    slack = float(equation.residual(rows).norm()) / equation.contraction
    return ExactTarget(rows=rows, slack=slack)


def _newton(
    residual: Callable[[Tensor], Tensor],
    product: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
) -> Tensor:
    """Solve residual = 0 by dense Newton steps until none brings it down."""
    x, rest = start.clone(), residual(start)
    eye = torch.eye(len(start), dtype=torch.float64)
    for _ in range(_MOST_STEPS):
        jacobian = torch.stack([product(x, column) for column in eye], dim=1)
        move = torch.linalg.solve(jacobian, -rest)
        for halving in range(31):
            candidate = x + move * 0.5**halving
            new = residual(candidate)
            if float(new.norm()) < float(rest.norm()):
                break
        else:
            return x
        x, rest = candidate, new
    return x
