"""Inverse-vector products with their residual and their count."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfl_unlearn.curvature.operators import LinearOperator
from dfl_unlearn.errors import (
    NonPositiveCurvatureError,
    SolverDivergedError,
    SolverNotConvergedError,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An approximate solution of A x = b.

    Attributes:
        x: Shape ``(P,)`` float64.
        residuals: ``|b - A x| / |b|`` after every iteration, where it is known.
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


def lissa(
    batches: Callable[[int, int], LinearOperator],
    b: Tensor,
    *,
    scale: float,
    steps: int,
    runs: int = 1,
) -> Solution:
    r"""Solve A x = b from random parts of A alone, by its Neumann series.

    Every run repeats :math:`v \leftarrow b + (I - A_k / s)\, v` from v = b and gives
    :math:`v / s`; the solution is the mean of the runs. With A_k = A it falls short by
    the factor :math:`(I - A / s)^{k + 1}`; parts whose mean is A add noise.

    Args:
        batches: Gives A_k for (run, step), the parts of A; symmetric.
        b: Right-hand side, shape ``(P,)`` float64.
        scale: s, at least the largest eigenvalue of every part.
        steps: Products in a run.
        runs: How many runs to average.

    Returns:
        The solution, without residuals: they would need products with A itself.

    Raises:
        SolverDivergedError: If a run grows faster than any parts with eigenvalues in
            [0, 2 s] let it, :math:`|v_k| \le (k + 1) |b|`.

    References:
        Agarwal, Bullins and Hazan (2017), Second-order stochastic optimization for
        machine learning in linear time, algorithm 1 ([recalled]).
    """
    size = float(torch.linalg.vector_norm(b))
    total = torch.zeros_like(b)
    for run in range(runs):
        v = b.clone()
        for step in range(steps):
            v = b + v - (batches(run, step) @ v) / scale
            grown = float(torch.linalg.vector_norm(v))
            if not grown <= (step + 2) * size * (1 + 1e-9):
                raise SolverDivergedError(
                    f"scale: must be at least the curvature's largest eigenvalue, and "
                    f"no eigenvalue may be negative, got {scale:g} and growth by "
                    f"{grown / size:.3g} in {step + 1} steps of run {run}; raise "
                    "damping or use curvature='kfac' or 'diag_fisher'"
                )
        total += v / scale
    return Solution(x=total / runs, residuals=(), iterations=runs * steps)


def woodbury(
    gradients: Tensor, weights: Tensor, b: Tensor, *, damping: float
) -> Tensor:
    r"""Solve :math:`(\gamma I + \sum_r w_r g_r g_r^\top) x = b` exactly.

    With B the rows :math:`\sqrt{w_r} g_r` and fewer rows than parameters this is the
    Woodbury identity, :math:`x = (b - B^\top (\gamma I + B B^\top)^{-1} B b) / \gamma`,
    a system of N equations; with more it is the matrix itself.

    Args:
        gradients: One row per sample, shape ``(N, P)`` float64.
        weights: What each counts, >= 0, shape ``(N,)``.
        b: Right-hand side, shape ``(P,)`` float64.
        damping: gamma > 0.

    Returns:
        x, shape ``(P,)``.

    Raises:
        NonPositiveCurvatureError: If the damping is not positive.
    """
    if not damping > 0:
        raise NonPositiveCurvatureError(
            f"damping: must be > 0 for an inverse by samples, got {damping:g}; raise "
            "it or use a model with l2 > 0"
        )
    rows = weights.sqrt()[:, None] * gradients
    tall = len(rows) > rows.shape[1]
    matrix = rows.T @ rows if tall else rows @ rows.T
    matrix.diagonal().add_(damping)
    factor = torch.linalg.cholesky(matrix)
    if tall:
        return torch.cholesky_solve(b[:, None], factor)[:, 0]
    inner = torch.cholesky_solve((rows @ b)[:, None], factor)[:, 0]
    return (b - rows.T @ inner) / damping
