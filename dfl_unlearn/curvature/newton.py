r"""Newton's method on a weighted objective, with residuals that are bounds.

For a :math:`\lambda`-strongly convex F any point satisfies
:math:`\|\theta - \theta^*\| \le \|\nabla F(\theta)\| / \lambda`, however it was
obtained (decentralized-certified 3.5 item 6, [derived]); ``NewtonPath.residuals`` holds
the gradient norms from which a caller takes that bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.curvature.solve import conjugate_gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class NewtonPath:
    """Where Newton's method went.

    Attributes:
        theta: The last point, shape ``(P,)`` float64.
        residuals: Gradient norm at the start and after every step.
        gradients: Gradient evaluations over all rows; the preconditioner counts as
            one per step.
        solver_iterations: Hessian-vector products over all rows.
        solver_residuals: Relative residuals of all inner iterations.
    """

    theta: Tensor
    residuals: tuple[float, ...]
    gradients: int
    solver_iterations: int
    solver_residuals: tuple[float, ...]


def newton_step(
    objective: Objective,
    theta: Tensor,
    gradient: Tensor,
    *,
    damping: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, tuple[float, ...]]:
    """Return ``-(H + damping I)^-1 gradient`` at theta and the solver's residuals.

    Args:
        objective: Gives the Hessian H.
        theta: Where, shape ``(P,)``.
        gradient: What is to be removed, shape ``(P,)``.
        damping: Added to the diagonal, >= 0.
        tolerance: Relative residual of the linear solve.
        max_iterations: Hessian-vector products allowed.

    Returns:
        The step, shape ``(P,)`` float64, and one residual per product.
    """
    operator = objective.hessian(theta, damping=damping)
    preconditioner = operator.diagonal() if objective.model.convex else None
    solution = conjugate_gradient(
        operator,
        gradient,
        tolerance=tolerance,
        max_iterations=max_iterations,
        preconditioner=preconditioner,
    )
    return -solution.x, solution.residuals


def newton_minimize(
    objective: Objective,
    theta: Tensor,
    *,
    target: float,
    least_steps: int = 1,
    most_steps: int = 10,
    damping: float = 0.0,
    max_iterations: int = 1000,
) -> NewtonPath:
    """Take Newton steps until the gradient norm is at most ``target``.

    The linear solves are only as exact as the next step can use: a relative residual of
    ``min(0.1, sqrt(|g|/|g0|))``, but never below what reaching the target needs. A step
    that would raise the gradient norm is halved (up to 30 times).

    Args:
        objective: What to minimize; strongly convex.
        theta: Start, shape ``(P,)``.
        target: Gradient norm to reach.
        least_steps: Steps taken even where the target is met before.
        most_steps: Steps allowed; the caller compares the last residual to the target.
        damping: Added to the Hessian's diagonal.
        max_iterations: Products allowed per linear solve.

    Returns:
        The path; its last residual may be above the target.
    """
    theta = theta.double().clone()
    gradient = objective.gradient(theta)
    norms = [float(torch.linalg.vector_norm(gradient))]
    evaluations = 1
    solver: list[float] = []
    for step in range(most_steps):
        if step >= least_steps and norms[-1] <= target:
            break
        if norms[-1] == 0.0:
            break
        forcing = min(0.1, (norms[-1] / max(norms[0], 1e-300)) ** 0.5)
        tolerance = max(
            forcing if norms[-1] > target else 0.1, 0.3 * target / norms[-1]
        )
        move, residuals = newton_step(
            objective,
            theta,
            gradient,
            damping=damping,
            tolerance=min(tolerance, 0.5),
            max_iterations=max_iterations,
        )
        solver += residuals
        evaluations += 1  # the preconditioner's pass
        for halving in range(31):
            candidate = theta + move * 0.5**halving
            new = objective.gradient(candidate)
            evaluations += 1
            norm = float(torch.linalg.vector_norm(new))
            if norm < norms[-1] or norm <= target:
                break
        theta, gradient = candidate, new
        norms.append(norm)
    return NewtonPath(
        theta=theta,
        residuals=tuple(norms),
        gradients=evaluations,
        solver_iterations=len(solver),
        solver_residuals=tuple(solver),
    )


def descend(
    objective: Objective,
    theta: Tensor,
    direction: Callable[[Tensor, Tensor, int], Tensor],
    *,
    target: float,
    least_steps: int = 1,
    most_steps: int = 10,
) -> NewtonPath:
    """Take steps of an approximate Newton method until the gradient norm is small.

    A step is halved (up to 30 times) until the slope along it is at most half as
    steep upwards as it was downwards at the start: on a quadratic, at most half again
    as far as the lowest point of the line, so F falls also where a surrogate
    underestimates the curvature. The gradient's norm itself may grow on the way. Only
    gradients are compared: values of F differ by less than rounding long before the
    target is met.

    Args:
        objective: What to minimize; strongly convex.
        theta: Start, shape ``(P,)``.
        direction: Gives the step for (theta, gradient, number of the step).
        target: Gradient norm to reach.
        least_steps: Steps taken even where the target is met before.
        most_steps: Steps allowed; the caller compares the last residual to the target.

    Returns:
        The path, with the gradients of the line search alone; it ends early where a
        direction does not lead down.
    """
    theta = theta.double().clone()
    gradient = objective.gradient(theta)
    norms = [float(torch.linalg.vector_norm(gradient))]
    evaluations = 1
    for step in range(most_steps):
        if norms[-1] == 0.0 or (step >= least_steps and norms[-1] <= target):
            break
        move = direction(theta, gradient, step)
        slope = float(move @ gradient)
        if not slope < 0:
            break
        for halving in range(31):
            candidate = theta + move * 0.5**halving
            new = objective.gradient(candidate)
            evaluations += 1
            if float(move @ new) <= -0.5 * slope:
                break
        theta, gradient = candidate, new
        norms.append(float(torch.linalg.vector_norm(gradient)))
    return NewtonPath(
        theta=theta,
        residuals=tuple(norms),
        gradients=evaluations,
        solver_iterations=0,
        solver_residuals=(),
    )
