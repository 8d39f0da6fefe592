"""The largest eigenvalues of curvature: proven, or estimated by products only."""

import torch

from dfl_unlearn._arrays import as_features
from dfl_unlearn.curvature.operators import LinearOperator, Objective
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


def proven_smoothness(objective: Objective) -> float | None:
    """Return a bound on the Hessian's eigenvalues, for any of the rows as well.

    Args:
        objective: Its rows, weights and l2.

    Returns:
        At least the largest eigenvalue of the Hessian at every point, of the objective
        and of every ``batch`` of it; None where nothing is proven for the model.
    """
    structure = objective.model.structure
    if structure is None or not objective.model.convex:
        return None
    rows = objective.inputs[torch.from_numpy(objective.weights > 0)]
    bias = structure.layers[0].bias is not None
    square = 0.0
    for part in rows.split(4096):
        flat = as_features(part, torch.float64).reshape(len(part), -1)
        square = max(square, float(flat.square().sum(1).max()))
    radius = (square + bias) ** 0.5
    if radius == 0:
        return objective.model.l2
    smoothness = float(objective.model.constants(radius)["smoothness"].value)
    l2 = objective.model.l2
    return float(objective.weights.sum()) * (smoothness - l2) + l2
