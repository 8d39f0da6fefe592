"""Selective synaptic dampening against a second implementation."""

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, act, samples, trained
from oracles import soft_labels as oracle

from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.methods.ssd import Ssd


@pytest.fixture(scope="module")
def task():
    return samples(trained())


def importances(task):
    flat = task.params.numpy()
    parts = [
        oracle.squared(
            flat, WIDTHS, rows.inputs.numpy(), oracle.one_hot(rows.labels.numpy(), 3)
        )
        for rows in (task.forget, task.retain)
    ]
    m, n = task.forget_size, task.forget_size + task.retain_size
    return parts[0], (m * parts[0] + (n - m) * parts[1]) / n


@pytest.mark.parametrize(("alpha", "dampening"), [(1.0, 1.0), (1.5, 0.3), (2.0, 5.0)])
def test_weights_are_those_of_the_second_implementation(task, alpha, dampening):
    outcome = act(Ssd(alpha=alpha, dampening=dampening), task)
    forgotten, everything = importances(task)
    expected = task.params.numpy().copy()
    selected = 0
    for i, (f, d) in enumerate(zip(forgotten, everything, strict=True)):
        if f > alpha * d:
            expected[i] *= min(dampening * d / f, 1.0)
            selected += 1
    np.testing.assert_allclose(outcome.params, expected, rtol=1e-11)
    assert outcome.info["dampened_share"] == selected / len(expected)
    assert 0 < selected < len(expected)


def test_weights_that_are_not_selected_keep_their_bits(task):
    outcome = act(Ssd(alpha=1.5, dampening=0.3), task)
    forgotten, everything = importances(task)
    kept = torch.from_numpy(forgotten <= 1.4 * everything)
    assert torch.equal(outcome.params[kept], task.params[kept])


def test_every_row_is_gone_through_once(task):
    cost = act(Ssd(), task).cost
    assert cost.sample_gradients == task.forget_size + task.retain_size
    assert cost.steps_forget == cost.steps_retain == 0


def test_an_alpha_that_can_select_nothing_says_so(task):
    outcome = act(Ssd(alpha=8.0), task)  # 48 rows, 6 of them forgotten
    assert torch.equal(outcome.params, task.params)
    assert any("selects nothing" in note for note in outcome.notes)
    assert not any(
        "selects nothing" in note for note in act(Ssd(alpha=7.9), task).notes
    )


def test_a_budget_that_ends_in_preparation_changes_nothing(task):
    from dataclasses import replace

    cut = replace(task, budget=Budget(max_sample_gradients=6))
    outcome = act(Ssd(alpha=1.0), cut)
    assert torch.equal(outcome.params, task.params)
    assert any("budget" in note for note in outcome.notes)
    assert outcome.cost.sample_gradients == 6
