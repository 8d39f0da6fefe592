"""Influence unlearning: oracle O12, the inverse by samples, conjugate gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, act, mlp, samples, trained
from oracles import soft_labels as oracle

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.methods.influence_unlearning import InfluenceUnlearning

FORGET = (0, 3, 5)


@pytest.fixture(scope="module")
def task():
    return samples(trained(mlp(l2=0.02)))


def quadratic_task(l2):
    """A ridge regression at its exact minimizer, and the minimizer without rows."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 4))
    y = x @ rng.standard_normal(4) + rng.standard_normal(20)
    pair = (torch.from_numpy(x), torch.from_numpy(y))
    data = PeerData.from_tensors([pair], test=pair)
    model = models.build("linear", input_shape=(4,), num_classes=0, l2=l2, bias=False)

    def minimizer(rows):
        a, b = x[rows], y[rows]
        gram = a.T @ a / len(a) + l2 * np.eye(4)
        return np.linalg.solve(gram, a.T @ b / len(a))

    task = samples(trained(model, data=data, rounds=1), rows=FORGET)
    kept = np.setdiff1d(np.arange(20), FORGET)
    start = torch.from_numpy(minimizer(np.arange(20)))
    return replace(task, params=start), minimizer(kept)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_on_a_quadratic_it_lands_on_the_retrained_minimizer(l2):
    task, retrained = quadratic_task(l2)
    method = InfluenceUnlearning(curvature="hessian", damping=0.0, tolerance=1e-13)
    outcome = act(method, task)
    assert np.abs(task.params.numpy() - retrained).max() > 0.01
    np.testing.assert_allclose(outcome.params, retrained, rtol=1e-10)


def direction(task):
    flat = task.params.numpy()
    means = []
    for rows in (task.forget, task.retain):
        targets = oracle.one_hot(rows.labels.numpy(), 3)
        means.append(oracle.mean_gradient(flat, WIDTHS, rows.inputs.numpy(), targets))
    return (
        task.forget_size / (task.forget_size + task.retain_size) * (means[0] - means[1])
    )


def dense_fisher(task, damping):
    flat = task.params.numpy()
    total = damping * np.eye(len(flat))
    for x, y in zip(task.retain.inputs.numpy(), task.retain.labels, strict=True):
        g, _ = oracle.gradients(flat, WIDTHS, x, np.eye(3)[int(y)])
        total += np.outer(g, g) / task.retain_size
    return total


@pytest.mark.parametrize(("damping", "scale"), [(1.0, 1.0), (0.01, 0.5)])
@pytest.mark.parametrize("solver", ["auto", "woodbury", "cg"])
def test_the_step_is_the_dense_inverses(task, damping, scale, solver):
    method = InfluenceUnlearning(
        damping=damping, scale=scale, solver=solver, tolerance=1e-13
    )
    outcome = act(method, task)
    step = np.linalg.solve(dense_fisher(task, damping + 0.02), direction(task))
    found = outcome.params - task.params
    np.testing.assert_allclose(found, scale * step, rtol=1e-10, atol=1e-12)
    assert outcome.info["solver"] == ("cg" if solver == "cg" else "woodbury")


def test_products_are_counted_as_two_gradients_per_row(task):
    n = task.forget_size + task.retain_size
    assert act(InfluenceUnlearning(), task).cost.sample_gradients == n
    outcome = act(InfluenceUnlearning(solver="cg"), task)
    products = outcome.info["iterations"]
    assert products > 1
    assert outcome.cost.sample_gradients == n + 2 * task.retain_size * products


@pytest.mark.parametrize("limit", [0, 5, 50, 100])
def test_a_budget_that_ends_before_the_step_is_known_changes_nothing(task, limit):
    budget = Budget(max_sample_gradients=limit)
    method = InfluenceUnlearning(solver="cg", tolerance=1e-13)
    outcome = act(method, replace(task, budget=budget))
    assert torch.equal(outcome.params, task.params)
    assert any("budget" in note for note in outcome.notes)
    assert outcome.cost.sample_gradients < limit + 2 * task.retain_size


def test_a_hessian_is_no_sum_of_outer_products():
    with pytest.raises(InvalidHyperparameterError, match="woodbury"):
        InfluenceUnlearning(curvature="hessian", solver="woodbury")
