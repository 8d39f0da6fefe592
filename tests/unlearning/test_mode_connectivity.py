"""Bezier curves of parameters (oracle O8) and the fit of their control point."""

from dataclasses import replace

import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.mode_connectivity import bezier, fit_control
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

START, CONTROL, END = (
    torch.tensor(point, dtype=torch.float64) for point in ((0, 0), (1, 4), (2, 0))
)


@pytest.mark.parametrize(
    ("t", "point"), [(0, (0, 0)), (0.25, (0.5, 1.5)), (0.5, (1, 2)), (1, (2, 0))]
)
def test_the_curve_goes_through_the_oracles_points(t, point):
    assert bezier(START, CONTROL, END, t).tolist() == list(point)


def test_a_control_point_in_the_middle_makes_a_straight_line():
    draw = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    for t in (0, 0.1, 0.5, 0.9, 1):
        torch.testing.assert_close(
            bezier(start, (start + end) / 2, end, t), (1 - t) * start + t * end
        )


@pytest.fixture(scope="module")
def task():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(8,))
    run = simulate(
        Topology.single(),
        blobs([40]),
        model,
        SimulationConfig(rounds=3, evaluate_every=0, dtype="float64"),
    )
    return local_task(run, ForgetRequest.samples(peer=0, indices=[0, 1, 2]))


def fit(task, work, *, steps=30, t=0.5):
    control = task.fresh(RngTree(9))
    current = (task.params + 0.1).detach()
    moved = fit_control(
        work,
        lambda params: task.model.sample_losses(params, task.retain).mean(),
        len(task.retain),
        start=current,
        control=control,
        end=task.params,
        t=t,
        optimizer=LocalOptimizer(kind="adam", learning_rate=5e-3),
        steps=steps,
    )
    return current, control, moved


def test_a_fit_moves_the_control_point_and_leaves_both_ends_to_the_bit(task):
    end = task.params.clone()
    work = LocalWork(task, RngTree(0))
    current, control, moved = fit(task, work)
    assert torch.equal(current, end + 0.1)
    assert torch.equal(task.params, end)
    assert torch.equal(work.params, end)
    assert torch.equal(control, task.fresh(RngTree(9)))
    assert not torch.equal(moved, control)

    def loss(w):
        params = bezier(current, w, end, 0.5)
        return float(task.model.sample_losses(params, task.retain).mean())

    assert loss(moved) < 0.8 * loss(control)


def test_every_gradient_of_a_fit_is_counted(task):
    work = LocalWork(task, RngTree(0))
    fit(task, work, steps=4)
    assert work.sample_gradients == 4 * len(task.retain)
    assert work.steps == 0


def test_a_fit_stops_when_the_budget_is_spent(task):
    limit = 2 * len(task.retain) + 1
    few = replace(task, budget=Budget(max_sample_gradients=limit))
    work = LocalWork(few, RngTree(0))
    _, _, moved = fit(few, work)
    assert work.sample_gradients == 3 * len(task.retain)
    assert torch.equal(moved, fit(task, LocalWork(task, RngTree(0)), steps=3)[2])
