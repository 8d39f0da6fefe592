"""The way of the mean model under corrections, its messages and its cost.

Messages (decentralized-certified 3.2): sums over all peers, along a tree; P numbers
per gradient, per curvature product and for a diagonal, the squared sides of blocks,
factors or the whole matrix once per step; ``local`` sends nothing for curvature.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dfl_unlearn.curvature.blocks import BlockFisher, whole_block
from dfl_unlearn.curvature.constants import largest_eigenvalue, proven_smoothness
from dfl_unlearn.curvature.kfac import KfacFisher
from dfl_unlearn.curvature.newton import descend, newton_minimize, newton_step
from dfl_unlearn.curvature.operators import DiagonalFisher, Objective
from dfl_unlearn.curvature.solve import lissa
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import split_over_peers
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.newton_curvature import DIAGONALS
from dfl_unlearn.unlearning.retained import network_objective

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

_FLOAT = 8  # bytes of one number of a correction

# Of lissa: rows per product, runs that are averaged, and most products of one run. A
# run stops where the rest of its series is below a tenth.
_BATCH_ROWS = 64
_RUNS = 2
_MOST_PRODUCTS = 1000
# Where smoothness is not proven: products of the power iteration, and how far above
# its result, which is a lower bound, the scale is set.
_POWER_PRODUCTS = 20
_POWER_SLACK = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanPath:
    """Where the corrections of the mean model lead, and what they cost.

    Attributes:
        theta: The last point, shape ``(P,)`` float64.
        residuals: Gradient norm at the start and after every step.
        solver_residuals: Of the linear solver, where there is one.
        solver_iterations: Its products.
        sample_gradients: Per-sample gradients taken.
        hvps: Per-sample Hessian-vector products taken.
    """

    theta: Tensor
    residuals: tuple[float, ...]
    solver_residuals: tuple[float, ...]
    solver_iterations: int
    sample_gradients: int
    hvps: int


def mean_path(
    protocol: "NewtonFisher",
    run: TrainedRun,
    kept: Objective,
    start: Tensor,
    request: ForgetRequest,
    rng: RngTree,
    transport: Transport,
    *,
    target: float | None,
    measures: bool,
) -> MeanPath:
    """Return where the corrections of the mean model lead; counts their messages.

    Args:
        protocol: Its fields.
        run: The trained network.
        kept: The objective on what is kept.
        start: The mean model, shape ``(P,)``.
        request: The resolved request.
        rng: The run's draws.
        transport: Counts the messages.
        target: Gradient norm to reach, or None to take ``newton_steps`` as they come.
        measures: Whether all peers add up the gradient where the steps end, with
            ``assume_stationary`` too.

    Returns:
        The path; its last residual may be above the target.
    """
    payload, root = _FLOAT * run.model.size, request.requester
    share = split_over_peers(kept.rows, run.data.without(request))
    if target is not None and protocol.curvature == "exact_cg":
        path = newton_minimize(
            kept,
            start,
            target=target,
            least_steps=protocol.newton_steps,
            most_steps=protocol.newton_steps_max,
            damping=protocol.damping,
        )
        for _ in range(path.gradients):
            transport.work(share)
            transport.all_reduce("gradient", payload, root)
        for _ in range(path.solver_iterations):
            transport.work(2 * share)
            transport.all_reduce("curvature product", payload, root)
        return MeanPath(
            theta=path.theta,
            residuals=path.residuals,
            solver_residuals=path.solver_residuals,
            solver_iterations=path.solver_iterations,
            sample_gradients=path.gradients * kept.rows,
            hvps=path.solver_iterations * kept.rows,
        )
    steps = _Steps(protocol, run, kept, request, rng, transport)
    if target is not None:
        path = descend(
            kept,
            start,
            steps,
            target=target,
            least_steps=protocol.newton_steps,
            most_steps=protocol.newton_steps_max,
        )
        theta, norms, gradients = path.theta, path.residuals, path.gradients
    else:
        theta, norms, gradients = _fixed_steps(protocol, run, kept, start, steps)
    summed = int(measures) if protocol.assume_stationary else gradients
    transport.work((gradients - summed) * share)  # of these nobody is told
    for _ in range(summed):
        transport.work(share)
        transport.all_reduce("gradient", payload, root)
    return MeanPath(
        theta=theta,
        residuals=norms,
        solver_residuals=tuple(steps.solver_residuals),
        solver_iterations=steps.solver_iterations,
        sample_gradients=gradients * kept.rows + steps.sample_gradients,
        hvps=steps.hvps,
    )


def _fixed_steps(
    protocol: "NewtonFisher",
    run: TrainedRun,
    kept: Objective,
    start: Tensor,
    steps: "_Steps",
) -> tuple[Tensor, tuple[float, ...], int]:
    """Take ``newton_steps`` corrections as they come; nothing is proven of them.

    Returns:
        The last point, the gradient norms, and the gradients taken.
    """
    theta = start.double().clone()
    full = network_objective(run) if protocol.assume_stationary else None
    norms: list[float] = []
    gradients = 0
    for step in range(protocol.newton_steps + 1):
        gradient = kept.gradient(theta)
        gradients += 1
        norms.append(float(gradient.norm()))
        if step == protocol.newton_steps:
            break
        if full is not None:
            gradient = gradient - full.gradient(theta)
            gradients += 1
        theta = theta + steps(theta, gradient, step)
    return theta, tuple(norms), gradients


class _Steps:
    """Minus the inverse curvature times a gradient; counts what that costs."""

    def __init__(
        self,
        protocol: "NewtonFisher",
        run: TrainedRun,
        kept: Objective,
        request: ForgetRequest,
        rng: RngTree,
        transport: Transport,
    ) -> None:
        """Take what every step needs."""
        self._protocol = protocol
        self._kept = kept
        self._run = run
        self._request = request
        self._rng = rng
        self._transport = transport
        self.solver_residuals: list[float] = []
        self.solver_iterations = 0
        self.sample_gradients = 0
        self.hvps = 0
        self._placed = 0
        self._data = run.data.without(request)

    def __call__(self, theta: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return the step from theta, shape ``(P,)``."""
        how, damping = self._protocol.curvature, self._protocol.damping
        if how == "exact_cg":
            move = self._conjugate(self._kept, theta, gradient)
            self._products(len(self.solver_residuals) - self.solver_iterations)
            self.solver_iterations = len(self.solver_residuals)
            return move
        if how == "local":
            move = self._conjugate(self._local(), theta, gradient)
            self.solver_iterations = len(self.solver_residuals)
            root = np.array([self._request.requester])
            self._transport.work(np.array([float(self._unplaced())]), root)
            return move
        if how == "lissa":
            return self._lissa(theta, gradient, step)
        if how in DIAGONALS:
            fisher = DiagonalFisher.at(
                self._kept,
                theta,
                damping=damping,
                rng=self._rng,
                request=self._request.request_id,
                sparsify=self._protocol.sparsify,
                labels="model" if how == "diag_fisher" else "data",
            )
            self.sample_gradients += fisher.rows
            self._reduce("fisher diagonal", len(fisher.values))
            return -fisher.solve(gradient)
        blocks: BlockFisher | KfacFisher
        if how == "kfac":
            blocks = KfacFisher.at(self._kept, theta, damping=damping)
        elif how == "block":
            blocks = BlockFisher.at(self._kept, theta, damping=damping)
        else:
            blocks = BlockFisher.at(
                self._kept,
                theta,
                damping=damping,
                labels="data",
                blocks=whole_block(self._kept.model),
            )
        kinds = {"kfac": "kronecker factors", "block": "fisher blocks"}
        self.sample_gradients += blocks.rows
        self._reduce(kinds.get(how, "fisher matrix"), blocks.floats)
        return -blocks.solve(gradient)

    def _conjugate(
        self, objective: Objective, theta: Tensor, gradient: Tensor
    ) -> Tensor:
        """Return the step for the Hessian of an objective."""
        move, residuals = newton_step(
            objective,
            theta,
            gradient,
            damping=self._protocol.damping,
            tolerance=1e-6,
            max_iterations=1000,
        )
        self.solver_residuals += residuals
        self.hvps += len(residuals) * objective.rows
        if objective.model.convex:  # the preconditioner's pass
            self.sample_gradients += objective.rows
            if objective is self._kept:
                self._reduce("curvature diagonal", len(gradient))
        return move

    def _local(self) -> Objective:
        """Return the requester's own objective, as heavy as that of all peers."""
        kept, rows = self._kept, self._run.data.rows(self._request.requester)
        weights = np.zeros_like(kept.weights)
        weights[rows] = kept.weights[rows]
        return Objective(
            model=kept.model,
            inputs=kept.inputs,
            labels=kept.labels,
            weights=weights * (kept.weights.sum() / weights.sum()),
        )

    def _lissa(self, theta: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return the step by the Neumann series."""
        kept, damping = self._kept, self._protocol.damping
        name = f"{self._request.request_id}/lissa"
        smoothness = proven_smoothness(kept)
        if smoothness is None:
            largest = largest_eigenvalue(
                kept.hessian(theta),
                len(theta),
                rng=self._rng.child(name),
                iterations=_POWER_PRODUCTS,
            )
            smoothness = _POWER_SLACK * abs(largest)
            self.hvps += _POWER_PRODUCTS * kept.rows
            self._products(_POWER_PRODUCTS)
        else:
            self._reduce("largest input norm", 1)
        scale = smoothness + damping
        shortest = kept.model.l2 + damping
        needed = scale / shortest * math.log(10) if shortest > 0 else math.inf
        products = math.ceil(min(max(needed, 1.0), _MOST_PRODUCTS))
        generators = [
            self._rng.numpy("method", request=name, round=step, draw=run)
            for run in range(_RUNS)
        ]
        solution = lissa(
            lambda run, _: kept.batch(generators[run], _BATCH_ROWS).hessian(
                theta, damping=damping
            ),
            gradient,
            scale=scale,
            steps=products,
            runs=_RUNS,
        )
        self.solver_iterations += solution.iterations
        self.hvps += solution.iterations * _BATCH_ROWS
        self._products(solution.iterations)
        return -solution.x

    def _unplaced(self) -> int:
        """Return the gradients that the simulated clock has not been told of."""
        spent = self.sample_gradients + 2 * self.hvps
        rest, self._placed = spent - self._placed, spent
        return rest

    def _products(self, count: int) -> None:
        for _ in range(count):
            self._reduce("curvature product", self._run.model.size)

    def _reduce(self, kind: str, floats: int) -> None:
        """Count a sum over all peers of so many numbers, and the work before it."""
        self._transport.work(split_over_peers(self._unplaced(), self._data))
        self._transport.all_reduce(kind, _FLOAT * floats, self._request.requester)
