"""UNSIR: noise that a class hates, an impairing pass, a repairing one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, a_class, act, trained
from oracles import soft_labels as oracle

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import Budget, only, uses_of
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.unsir import Unsir
from dfl_unlearn.unlearning.optimizers import LocalOptimizer


@pytest.fixture(scope="module")
def task():
    return a_class(trained(rounds=40))


def test_both_passes_are_those_of_the_second_implementation(task):
    method = Unsir(
        noise_rows=5,
        noise_copies=2,
        batch_size=None,
        impair=LocalOptimizer(learning_rate=0.3),
        repair=LocalOptimizer(learning_rate=0.1),
    )
    outcome = act(method, task)
    work = LocalWork(task, RngTree(0))
    generator = work.generator(draw=16)
    torch.randperm(task.retain_size, generator=generator)  # all rows are used
    noise, _ = method._noise(work, torch.Size([6]), generator)
    noise = noise.numpy()
    kept = task.retain.inputs.numpy()
    labels = oracle.one_hot(task.retain.labels.numpy(), 3)
    flat = oracle.descend(
        task.params.numpy(),
        WIDTHS,
        np.concatenate([noise, noise, kept]),
        np.concatenate([np.tile(np.eye(3)[1], (10, 1)), labels]),
        rate=0.3,
        steps=1,
    )
    flat = oracle.descend(flat, WIDTHS, kept, labels, rate=0.1, steps=1)
    np.testing.assert_allclose(outcome.params, flat, rtol=1e-11, atol=1e-13)


def test_noise_goes_up_the_classes_loss_and_is_held_by_its_square(task):
    outcome = act(Unsir(), task)
    losses = outcome.trace["noise_loss"]
    assert len(losses) == 40
    assert losses[-1] > losses[0] + 1
    work = LocalWork(task, RngTree(0))
    sizes = [
        float(
            Unsir(noise_decay=decay)
            ._noise(work, torch.Size([6]), work.generator(draw=16))[0]
            .square()
            .mean()
        )
        for decay in (0.0, 10.0)
    ]
    assert sizes[1] < sizes[0]


def test_few_retained_rows_and_no_forgotten_one_are_seen(task):
    seen = only(task, uses_of(Unsir()))
    assert seen.forget is None
    method = Unsir(retain_rows=7)
    cost = act(method, task).cost
    assert cost.sample_gradients == 40 * 32 + 8 * 32 + 7 + 7


def test_which_rows_are_kept_follows_the_draws(task):
    """Rows outside the draw leave no trace."""
    method = Unsir(retain_rows=7)
    order = torch.randperm(
        task.retain_size, generator=LocalWork(task, RngTree(0)).generator(draw=16)
    )
    inputs = task.retain.inputs.clone()
    inputs[order[7:]] += 5.0
    other = replace(task, retain=TensorBatch(inputs, task.retain.labels))
    assert torch.equal(act(method, task).params, act(method, other).params)


def test_a_budget_that_ends_with_the_noise_changes_nothing(task):
    cut = replace(task, budget=Budget(max_sample_gradients=100))
    outcome = act(Unsir(), cut)
    assert torch.equal(outcome.params, task.params)
    assert outcome.cost.sample_gradients == 128
    assert any("budget" in note for note in outcome.notes)
