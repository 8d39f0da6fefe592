"""Inverse-vector products with their residual and their count."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfl_unlearn.curvature.operators import LinearOperator
from dfl_unlearn.errors import NonPositiveCurvatureError, SolverNotConvergedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An approximate solution of A x = b.

    Attributes:
        x: Shape ``(P,)`` float64.
        residuals: ``|b - A x| / |b|`` after every iteration.
        iterations: Products with A.
    """

    x: Tensor
    residuals: tuple[float, ...]
    iterations: int


def conjugate_gradient(
    operator: LinearOperator,
    b: Tensor,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
    preconditioner: Tensor | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A.

    Args:
        operator: A, multiplied from the left.
        b: Right-hand side, shape ``(P,)`` float64.
        tolerance: Stop at ``|b - A x| <= tolerance * |b|``.
        max_iterations: Products allowed.
        preconditioner: Positive diagonal close to A's, shape ``(P,)``, or None.

    Returns:
        The solution with its residuals.

    Raises:
        NonPositiveCurvatureError: If a direction has v'Av <= 0.
        SolverNotConvergedError: If the tolerance is not met in time.
    """
    x = torch.zeros_like(b)
    r = b.clone()
    scale = float(torch.linalg.vector_norm(b))
    if scale == 0.0:
        return Solution(x=x, residuals=(), iterations=0)
    z = r if preconditioner is None else r / preconditioner
    d = z.clone()
    rz = float(r @ z)
    residuals: list[float] = []
    for k in range(max_iterations):
        product = operator @ d
        curvature = float(d @ product)
        if not curvature > 0:
            raise NonPositiveCurvatureError(
                f"iteration {k + 1} met a direction with v'Hv = {curvature:g}, which "
                "must be > 0; raise damping above the most negative eigenvalue or use "
                "curvature='diag_fisher'"
            )
        alpha = rz / curvature
        x += alpha * d
        r -= alpha * product
        residuals.append(float(torch.linalg.vector_norm(r)) / scale)
        if residuals[-1] <= tolerance:
            return Solution(x=x, residuals=tuple(residuals), iterations=k + 1)
        z = r if preconditioner is None else r / preconditioner
        rz, old = float(r @ z), rz
        d.mul_(rz / old).add_(z)
    raise SolverNotConvergedError(
        f"max_iterations: must be enough for a relative residual of {tolerance:g}, got "
        f"{max_iterations} with {residuals[-1]:.3g} reached; raise it or add damping"
    )
