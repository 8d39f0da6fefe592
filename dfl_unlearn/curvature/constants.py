"""Extreme eigenvalues of a curvature operator, by products only."""

import torch

from dfl_unlearn.curvature.operators import LinearOperator
from dfl_unlearn.rng import RngTree


def largest_eigenvalue(
    operator: LinearOperator, size: int, *, rng: RngTree, iterations: int = 50
) -> float:
    """Estimate the largest eigenvalue by power iteration.

    The estimate approaches the eigenvalue **from below**: it is no proven bound, and a
    step size taken from it needs some slack.

    Args:
        operator: A symmetric positive semi-definite operator.
        size: Its dimension P.
        rng: Draws the start, purpose ``method``.
        iterations: Products to take.

    Returns:
        The Rayleigh quotient of the last iterate.
    """
    v = rng.normal((size,), "method", request="largest-eigenvalue")
    value = 0.0
    for _ in range(iterations):
        v = v / torch.linalg.vector_norm(v)
        product = operator @ v
        value = float(v @ product)
        v = product
    return value
