r"""Smoothness and gradient bounds: proven, or estimated by looking.

An estimate is what was seen at some points along some directions; the constant of a
theorem holds everywhere. Both estimates of published code are far too small for a
network [computed]: a random direction sees about
:math:`\|H\|_F / \sqrt P`, not the largest eigenvalue, and the gradient of a minibatch
averages out what one row does. A bound on a trajectory grows like
:math:`e^{\eta L T}`, so that the error of L is exponential in it. Whatever comes from
here is marked ``estimated``, which makes every certificate that uses it ``heuristic``.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.curvature.operators import LinearOperator, Objective
from dfl_unlearn.curvature.samples import PerSample, row_parts
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree

SmoothnessMethod = Literal["power", "secant"]

Count = Callable[[int], None]
"""Told how many gradients of single samples (or products with them) were taken."""


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


def estimate_smoothness(
    model: FlatModel,
    params: Tensor,
    data: TensorBatch,
    *,
    rng: RngTree,
    method: SmoothnessMethod = "power",
    iterations: int = 50,
    draws: int = 100,
    radius: float = 0.01,
    safety: float = 1.0,
    count: Count | None = None,
) -> Assumption:
    r"""Estimate L of the mean loss, l2 term included, at the given points.

    ``power``: the eigenvalue of the Hessian that is largest in size, by power
    iteration; approached from below. ``secant``: the largest
    :math:`\|\nabla f(\theta + \xi) - \nabla f(\theta)\| / \|\xi\|` over random
    :math:`\xi`, as published code has it at the final parameters alone [paper, code];
    far below the eigenvalue for a network.

    Args:
        model: The model.
        params: Points of a trajectory, ``(S, P)``, or one, ``(P,)``; the largest value
            counts.
        data: Rows of the mean.
        rng: Draws directions, purpose ``method``.
        method: How to look.
        iterations: Products per point, with ``power``.
        draws: Directions per point, with ``secant``.
        radius: Standard deviation of each number of xi, with ``secant``.
        safety: Factor >= 1 on the result.
        count: Told what was computed, so that the caller's cost has it.

    Returns:
        The constant, source ``estimated``; nothing certified rests on it.
    """
    _validate.one_of(get_args(SmoothnessMethod), method=method)
    _validate.integer(at_least=1, iterations=iterations, draws=draws)
    _validate.number(above=0, radius=radius)
    objective, points, told = _looking(model, params, data, safety, count)
    largest = 0.0
    for place, theta in enumerate(points):
        if method == "power":
            operator = objective.hessian(theta)
            v = rng.normal(theta.shape, "method", request="smoothness", round=place)
            for _ in range(iterations):
                v = operator @ (v / torch.linalg.vector_norm(v))
                told(operator.rows)
                size = float(torch.linalg.vector_norm(v))
                largest = max(largest, size)
                if size == 0:  # the start lies where the Hessian is 0
                    break
            continue
        base = objective.gradient(theta)
        for draw in range(draws):
            xi = radius * rng.normal(
                theta.shape, "method", request="smoothness", round=place, draw=draw
            )
            change = objective.gradient(theta + xi) - base
            largest = max(largest, float(change.norm() / xi.norm()))
        told(objective.rows * (draws + 1))
    how = (
        f"power iteration, {iterations} products"
        if method == "power"
        else f"{draws} random directions of size {radius:g}"
    )
    return Assumption(
        name="smoothness (beta)",
        value=safety * largest,
        source="estimated",
        note=f"{how} at each of {len(points)} states of the mean loss of "
        f"{objective.rows} rows, times {safety:g}; no bound elsewhere",
    )


def estimate_gradient_bound(
    model: FlatModel,
    params: Tensor,
    data: TensorBatch,
    *,
    per_sample: bool = True,
    batch_size: int = 256,
    safety: float = 1.0,
    count: Count | None = None,
) -> Assumption:
    """Estimate G, the norm of gradients of the data term, at the given points.

    Args:
        model: The model.
        params: Points of a trajectory, ``(S, P)``, or one, ``(P,)``; the largest value
            counts.
        data: Rows whose gradients are taken.
        per_sample: Look at every row's gradient, as theorems need; False looks at means
            over minibatches, as published code does [paper, code], and misses what one
            row may do.
        batch_size: Rows per minibatch, in the order of the data.
        safety: Factor >= 1 on the result.
        count: Told what was computed, so that the caller's cost has it.

    Returns:
        The constant, source ``estimated``; nothing certified rests on it.
    """
    _validate.of_type(bool, per_sample=per_sample)
    _validate.integer(at_least=1, batch_size=batch_size)
    objective, points, told = _looking(model, params, data, safety, count)
    largest = 0.0
    for theta in points:
        if per_sample:
            gradients = PerSample(model, theta)
            for x, y, _ in row_parts(objective):
                norms = gradients.gradients(x, y).norm(dim=1)
                largest = max(largest, float(norms.max()))
        else:
            for rows in torch.arange(len(data)).split(batch_size):
                part = TensorBatch(data.inputs[rows], data.labels[rows])
                mean = _mean_of(model, part).gradient(theta) - model.l2 * theta
                largest = max(largest, float(mean.norm()))
        told(objective.rows)
    what = "single rows" if per_sample else f"minibatches of {batch_size} rows"
    return Assumption(
        name="gradient bound (L)",
        value=safety * largest,
        source="estimated",
        note=f"largest gradient of {what} at {len(points)} states, {objective.rows} "
        f"rows in all, times {safety:g}; no bound elsewhere",
    )


def _mean_of(model: FlatModel, data: TensorBatch) -> Objective:
    weights = np.full(len(data), 1 / len(data))
    return Objective(
        model=model, inputs=data.inputs, labels=data.labels, weights=weights
    )


def _looking(
    model: FlatModel,
    params: Tensor,
    data: TensorBatch,
    safety: float,
    count: Count | None,
) -> tuple[Objective, Tensor, Count]:
    """Check what both estimates take; return objective, points ``(S, P)``, counter."""
    _validate.number(at_least=1, safety=safety)
    points = params.detach().double()
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != model.size or not len(points):
        raise InvalidArgumentError(
            f"params: must have the shape (S, {model.size}) or ({model.size},), got "
            f"{tuple(params.shape)}; stack the states of a trajectory"
        )
    if not len(data):
        raise InvalidArgumentError(
            "data: must have at least one row, got none; look at the training rows"
        )
    return _mean_of(model, data), points, count or (lambda _: None)
