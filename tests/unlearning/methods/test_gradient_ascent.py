import math

import pytest
import torch
from alternating_tasks import loop, losses, outputs, same, task_of

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.methods.gradient_ascent import GradientAscent
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

FAST = LocalOptimizer(learning_rate=0.3)


def fitted(method):
    """A task whose model has learned its rows."""
    task = task_of(method, scale=1.0)
    whole = task_of(GradientAscent(max_retain_drop=1.0))

    def loss(p):
        return losses(p, whole.forget).sum() + losses(p, whole.retain).sum()

    steps = [("retain", loss, 0.02, same)] * 200
    params = loop(whole.params, steps, torch.optim.SGD, torch.optim.SGD)
    return type(task)(**{**vars(task), "params": params}), whole


def test_it_is_descent_on_minus_the_loss():
    method = GradientAscent(epochs=5, batch_size=None, stop_at_chance=False)
    task = task_of(method)

    def ascent(p):
        return -losses(p, task.forget).mean()

    expected = loop(
        task.params,
        [("forget", ascent, 0.01, same)] * 5,
        torch.optim.SGD,
        torch.optim.SGD,
    )
    outcome = method.unlearn(task, RngTree(0))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (5, 0)
    assert outcome.cost.sample_gradients == 5 * 4
    assert outcome.notes == ()


def test_it_stops_before_the_loss_of_guessing():
    method = GradientAscent(epochs=200, optimizer=FAST)
    task, _ = fitted(method)
    outcome = method.unlearn(task, RngTree(0))
    guarded = float(losses(outcome.params, task.forget).mean())
    assert float(losses(task.params, task.forget).mean()) < guarded <= math.log(3)
    assert "the loss on forgotten rows" in outcome.notes[0]
    assert outcome.cost.steps_forget < 200
    free = GradientAscent(epochs=200, optimizer=FAST, stop_at_chance=False)
    ruined = free.unlearn(task, RngTree(0)).params
    assert float(losses(ruined, task.forget).mean()) > math.log(3)


def test_it_stops_before_retained_rows_suffer():
    method = GradientAscent(
        epochs=200, optimizer=FAST, stop_at_chance=False, max_retain_drop=0.1
    )
    task, whole = fitted(method)

    def accuracy(params):
        guess = outputs(params, whole.retain.inputs).argmax(1)
        return float((guess == whole.retain.labels).double().mean())

    outcome = method.unlearn(task, RngTree(0))
    assert accuracy(outcome.params) >= accuracy(task.params) - 0.1
    assert "the accuracy on retained rows" in outcome.notes[0]
    free = GradientAscent(epochs=200, optimizer=FAST, stop_at_chance=False)
    ruined = free.unlearn(task_of(free), RngTree(0)).params
    assert accuracy(ruined) < accuracy(task.params) - 0.1


def test_it_looks_at_retained_rows_only_where_a_field_says_so():
    assert not any("retain" in part for part in GradientAscent().uses)
    assert "retain_inputs" in GradientAscent(max_retain_drop=0.1).uses
    free = GradientAscent(stop_at_chance=False)
    assert free.uses == {"forget_inputs", "forget_labels"}
    assert task_of(GradientAscent()).retain is None


@pytest.mark.parametrize("drop", [0, 1.5, float("nan")])
def test_a_drop_that_is_none_is_refused(drop):
    with pytest.raises(InvalidHyperparameterError, match=r"max_retain_drop: .*got"):
        GradientAscent(max_retain_drop=drop)
