import numpy as np
import pytest
import torch
from networks import blobs
from torch import nn

from dfl_unlearn.curvature.constants import largest_eigenvalue
from dfl_unlearn.curvature.operators import DiagonalFisher, Objective
from dfl_unlearn.curvature.solve import conjugate_gradient
from dfl_unlearn.errors import (
    InvalidArgumentError,
    NonPositiveCurvatureError,
    SolverNotConvergedError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree

DATA = blobs([30, 17], dtype=np.float64)


def model_of(kind):
    if kind == "softmax":
        return FlatModel.from_module(nn.Linear(6, 3), "cross-entropy", l2=0.03)
    if kind == "no-bias":
        module = nn.Linear(6, 3, bias=False)
        return FlatModel.from_module(module, "cross-entropy", l2=0.03)
    mlp = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    return FlatModel.from_module(mlp, "cross-entropy", l2=0.03)


def objective_of(model, weights=None):
    rows = len(DATA.store)
    return Objective(
        model=model,
        inputs=DATA.store.inputs,
        labels=DATA.store.labels,
        weights=np.full(rows, 1 / rows) if weights is None else weights,
    )


def weighted():
    weights = np.random.default_rng(1).random(len(DATA.store))
    weights[::5] = 0.0
    return weights / weights.sum()


def dense(objective, theta):
    def f(p):
        losses = objective.model.sample_losses(p, (objective.inputs, objective.labels))
        data = losses @ torch.from_numpy(objective.weights)
        return data + objective.model.l2 / 2 * p.square().sum()

    return (
        float(f(theta)),
        torch.func.grad(f)(theta),
        torch.func.jacrev(torch.func.jacrev(f))(theta),
    )


@pytest.mark.parametrize("kind", ["softmax", "no-bias", "mlp"])
def test_value_gradient_and_products_are_those_of_the_dense_objective(kind):
    model = model_of(kind)
    objective = objective_of(model, weighted())
    theta = model.init(RngTree(0)).double()
    value, gradient, hessian = dense(objective, theta)
    assert objective.value(theta) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(objective.gradient(theta), gradient, atol=1e-13)
    operator = objective.hessian(theta, damping=0.2)
    damped = hessian + 0.2 * torch.eye(model.size, dtype=torch.float64)
    v = RngTree(1).normal((model.size,), "method")
    np.testing.assert_allclose(operator @ v, damped @ v, atol=1e-12)
    np.testing.assert_allclose(operator.diagonal(), damped.diagonal(), atol=1e-12)
    assert operator.rows == int((objective.weights > 0).sum())


def test_the_diagonal_of_a_large_network_is_refused():
    model = FlatModel.from_module(
        nn.Sequential(nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 3)), "cross-entropy"
    )
    theta = torch.zeros(model.size)
    with pytest.raises(InvalidArgumentError, match="<= 4096 parameters"):
        objective_of(model).hessian(theta).diagonal()


def test_the_fisher_diagonal_of_a_linear_model_is_the_hessians():
    model = model_of("softmax")
    objective, theta = objective_of(model, weighted()), model.init(RngTree(0)).double()
    fisher = DiagonalFisher.at(
        objective, theta, damping=0.1, rng=RngTree(0), request="r0"
    )
    hessian = objective.hessian(theta, damping=0.1)
    np.testing.assert_allclose(fisher.values, hessian.diagonal(), rtol=1e-12)


@pytest.mark.statistical
def test_sampled_labels_estimate_the_true_fisher_of_a_network():
    """Mean of 400 draws within 5 standard errors of the exact expectation."""
    model = model_of("mlp")
    objective, theta = objective_of(model), model.init(RngTree(0)).double()

    def squares(label):
        def loss(p, x):
            y = torch.tensor([label])
            return model.sample_losses(p, (x[None], y))[0]

        g = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        return g(theta, objective.inputs).square()

    probability = model.predict(theta, objective.inputs).softmax(1)
    weights = torch.from_numpy(objective.weights)
    exact = sum((weights * probability[:, c]) @ squares(c) for c in range(3)) + model.l2
    draws = torch.stack(
        [
            DiagonalFisher.at(
                objective, theta, damping=0.0, rng=RngTree(k), request="r0"
            ).values
            for k in range(400)
        ]
    )
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / 20 + 1e-12)
    assert float(error.max()) < 5
    assert float((draws.mean(0) - 1.2 * exact).abs().max()) > 0.1 * float(exact.max())


def test_a_fisher_diagonal_without_damping_is_refused_where_it_vanishes():
    model = FlatModel.from_module(nn.Linear(6, 3), "cross-entropy")
    data = objective_of(model)
    dead = Objective(
        model=model,
        inputs=data.inputs * torch.tensor([0, 1, 1, 1, 1, 1.0]),
        labels=data.labels,
        weights=data.weights,
    )
    with pytest.raises(NonPositiveCurvatureError, match="set damping > 0"):
        DiagonalFisher.at(
            dead, torch.zeros(model.size), damping=0.0, rng=RngTree(0), request="r0"
        )


class Matrix:
    rows = 1

    def __init__(self, a):
        self.a = torch.as_tensor(a, dtype=torch.float64)

    def __matmul__(self, v):
        return self.a @ v


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_solve_and_count(preconditioned):
    g = np.random.default_rng(0).standard_normal((12, 12))
    a = g @ g.T + np.diag(np.arange(1.0, 13))
    b = torch.arange(12, dtype=torch.float64) - 3
    d = torch.from_numpy(a).diagonal() if preconditioned else None
    solution = conjugate_gradient(Matrix(a), b, tolerance=1e-12, preconditioner=d)
    np.testing.assert_allclose(solution.x, np.linalg.solve(a, b), rtol=1e-9)
    residual = float((Matrix(a) @ solution.x - b).norm() / b.norm())
    assert residual == pytest.approx(solution.residuals[-1], abs=1e-12)
    assert solution.iterations == len(solution.residuals) <= 13


def test_negative_curvature_is_named():
    with pytest.raises(NonPositiveCurvatureError, match="v'Hv = -1"):
        conjugate_gradient(Matrix(-np.eye(1)), torch.ones(1, dtype=torch.float64))


def test_an_unfinished_solve_is_an_error():
    a = np.diag([1.0, 10.0, 100.0])
    with pytest.raises(SolverNotConvergedError, match="got 1 with"):
        conjugate_gradient(
            Matrix(a), torch.ones(3, dtype=torch.float64), max_iterations=1
        )


def test_power_iteration_finds_the_largest_eigenvalue_from_below():
    a = np.diag([1.0, 2.0, 5.0])
    value = largest_eigenvalue(Matrix(a), 3, rng=RngTree(0))
    assert value == pytest.approx(5.0, rel=1e-9)
    assert value <= 5.0 + 1e-12
