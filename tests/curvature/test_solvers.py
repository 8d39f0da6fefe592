"""Series over random parts of the curvature, and steps that are searched along."""

import numpy as np
import pytest
import torch
from networks import blobs, l6_data, logistic4

from dfl_unlearn.curvature.constants import proven_smoothness
from dfl_unlearn.curvature.newton import descend
from dfl_unlearn.curvature.operators import EmpiricalFisher, Objective
from dfl_unlearn.curvature.solve import lissa, woodbury
from dfl_unlearn.errors import NonPositiveCurvatureError, SolverDivergedError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree

DATA = blobs([30, 17], dtype=np.float64)


class Matrix:
    rows = 1

    def __init__(self, a):
        self.a = torch.as_tensor(np.array(a), dtype=torch.float64)

    def __matmul__(self, v):
        return self.a @ v


def objective_of(name="logistic", classes=3, weights=None, **fields):
    model = models.build(name, input_shape=(6,), num_classes=classes, **fields)
    labels = DATA.store.labels
    labels = {0: labels.double(), 2: labels % 2, 3: labels}[classes]
    rows = len(labels)
    return Objective(
        model=model,
        inputs=DATA.store.inputs,
        labels=labels,
        weights=np.full(rows, 1 / rows) if weights is None else weights,
    )


# --- lissa -----------------------------------------------------------------------


def test_the_series_is_the_truncated_neumann_sum():
    a = np.array([[2.0, 0.5], [0.5, 1.0]])
    b = np.array([1.0, -2.0])
    found = lissa(lambda run, step: Matrix(a), torch.from_numpy(b), scale=3.0, steps=7)
    power, total = np.eye(2), np.zeros(2)
    for _ in range(8):
        total += power @ b / 3.0
        power = power @ (np.eye(2) - a / 3.0)
    np.testing.assert_allclose(found.x, total, rtol=1e-13)
    short = np.linalg.solve(a, power @ b)
    np.testing.assert_allclose(found.x + torch.from_numpy(short), np.linalg.solve(a, b))
    assert (found.iterations, found.residuals) == (7, ())


def test_runs_are_averaged_and_told_apart():
    asked = []

    def part(run, step):
        asked.append((run, step))
        return Matrix([[1.0 + run]])

    b = torch.ones(1, dtype=torch.float64)
    found = lissa(part, b, scale=2.0, steps=200, runs=2)
    assert float(found.x) == pytest.approx((1 + 1 / 2) / 2, rel=1e-12)
    assert asked == [(run, step) for run in range(2) for step in range(200)]
    assert found.iterations == 400


@pytest.mark.parametrize("a", [[[-0.5]], [[4.5]]])
def test_a_series_that_grows_is_an_error(a):
    """An eigenvalue below 0, or above twice the scale."""
    b = torch.ones(1, dtype=torch.float64)
    with pytest.raises(SolverDivergedError, match="got 2 and growth by"):
        lissa(lambda run, step: Matrix(a), b, scale=2.0, steps=100)
    lissa(lambda run, step: Matrix([[3.9]]), b, scale=2.0, steps=100)


@pytest.mark.statistical
def test_batches_have_the_objective_as_their_mean():
    """Rows as often as their weights say: 20 000 of them, within 5 standard errors."""
    weights = np.random.default_rng(2).random(len(DATA.store))
    weights[::3] = 0.0
    objective = objective_of(weights=weights)
    batch = objective.batch(RngTree(0).numpy("method"), 20_000)
    assert batch.weights.sum() == pytest.approx(weights.sum())
    place = {x: i for i, x in enumerate(objective.inputs[:, 0].tolist())}
    drawn = np.bincount([place[x] for x in batch.inputs[:, 0].tolist()])
    share = weights / weights.sum()
    spread = np.sqrt(share * (1 - share) / 20_000) + 1e-12
    frequency = np.pad(drawn, (0, len(weights) - len(drawn))) / 20_000
    assert (np.abs(frequency - share) / spread).max() < 5
    even = (weights > 0) / (weights > 0).sum()
    assert (np.abs(frequency - even) / np.sqrt(even / 20_000 + 1e-12)).max() > 5


# --- proven smoothness -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes"), [("logistic", 3), ("logistic", 2), ("linear", 0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_smoothness_bounds_every_batch_at_every_point(name, classes, bias):
    weights = np.random.default_rng(4).random(len(DATA.store)) / 10
    objective = objective_of(name, classes, weights, l2=0.07, bias=bias)
    bound = proven_smoothness(objective)
    size = objective.model.size
    largest = 0.0
    for k in range(5):
        theta = 2 * RngTree(k).normal((size,), "method")
        for part in (objective, objective.batch(RngTree(k).numpy("method"), 1)):
            operator = part.hessian(theta)
            dense = torch.stack([operator @ e for e in torch.eye(size).double()])
            largest = max(largest, float(torch.linalg.eigvalsh(dense).max()))
    assert largest <= bound * (1 + 1e-12)
    if name == "linear":
        assert largest > 0.1 * bound  # of some use


def test_nothing_is_proven_of_a_network():
    assert proven_smoothness(objective_of("mlp", hidden=(4,))) is None


# --- steps that are searched along -------------------------------------------------


def l6_objective():
    data = l6_data()
    rows = len(data.store)
    return Objective(
        model=logistic4(),
        inputs=data.store.inputs,
        labels=data.store.labels,
        weights=np.full(rows, 1 / rows),
    )


@pytest.mark.parametrize("surrogate", [1.0, 0.02, 1e-5])
def test_a_surrogate_that_is_too_small_still_leads_to_the_minimizer(surrogate):
    """With 0.02 the plain step overshoots by far more than twice."""
    objective = l6_objective()
    values = []

    def direction(theta, gradient, step):
        values.append(objective.value(theta))
        return -gradient / surrogate

    path = descend(
        objective,
        torch.ones(4),
        direction,
        target=1e-9,
        most_steps=500,
    )
    assert path.residuals[-1] <= 1e-9
    norm = float(objective.gradient(path.theta).norm())
    assert norm == pytest.approx(path.residuals[-1])
    assert np.diff(values).max() <= 1e-15  # F never rises
    assert path.gradients >= len(path.residuals)


def test_a_direction_that_leads_up_ends_the_path():
    path = descend(l6_objective(), torch.ones(4), lambda theta, g, step: g, target=1e-9)
    assert len(path.residuals) == 1


def test_least_steps_are_taken_and_most_steps_kept():
    objective = l6_objective()

    def direction(theta, gradient, step):
        return -gradient

    many = descend(
        objective, torch.ones(4), direction, target=1e9, least_steps=3, most_steps=5
    )
    assert len(many.residuals) == 4
    few = descend(objective, torch.ones(4), direction, target=1e-12, most_steps=2)
    assert len(few.residuals) == 3
    assert few.residuals[-1] > 1e-12


# --- woodbury --------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 20, 50])
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_the_inverse_by_samples_is_the_dense_one(rows, damping):
    """In both forms: fewer rows than the 20 parameters, and more."""
    rng = np.random.default_rng(rows)
    g, w = rng.standard_normal((rows, 20)), rng.random(rows)
    b = rng.standard_normal(20)
    found = woodbury(*map(torch.from_numpy, (g, w, b)), damping=damping)
    expected = np.linalg.inv(damping * np.eye(20) + (w[:, None] * g).T @ g) @ b
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_an_inverse_by_samples_needs_damping():
    g, b = torch.ones(1, 3).double(), torch.ones(3).double()
    with pytest.raises(NonPositiveCurvatureError, match="got 0"):
        woodbury(g, torch.ones(1).double(), b, damping=0.0)


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_products_with_the_empirical_fisher_are_those_of_its_samples(name):
    objective = objective_of(name, l2=0.03)
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(0.3 * rng.standard_normal(objective.model.size))
    v = torch.from_numpy(rng.standard_normal(len(theta)))
    operator = EmpiricalFisher(objective=objective, theta=theta, damping=0.2)
    dense = 0.23 * np.eye(len(theta))
    for x, y in zip(objective.inputs, objective.labels, strict=True):
        leaf = theta.clone().requires_grad_()
        loss = objective.model.sample_losses(leaf, (x[None], y[None])).sum()
        g = torch.autograd.grad(loss, leaf)[0].numpy()
        dense += np.outer(g, g) / len(objective.labels)
    np.testing.assert_allclose(operator @ v, dense @ v.numpy(), rtol=1e-12, atol=1e-14)
    assert operator.rows == len(objective.labels)
