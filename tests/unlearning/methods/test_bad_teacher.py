"""Bad teacher against a second implementation, and what it may not look at."""

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, act, samples, trained
from oracles import soft_labels as oracle

from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import only, uses_of
from dfl_unlearn.unlearning.methods.bad_teacher import BadTeacher
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=0.3)


@pytest.fixture(scope="module")
def task():
    return samples(trained())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_steps_are_those_of_the_second_implementation(task, temperature):
    method = BadTeacher(
        epochs=3, batch_size=None, temperature=temperature, optimizer=SGD
    )
    outcome = act(method, task)
    untrained = task.fresh(RngTree(0).child("bad-teacher/0")).double().numpy()
    inputs = np.concatenate([task.forget.inputs, task.retain.inputs])
    teachers = [untrained] * task.forget_size
    teachers += [task.params.numpy()] * task.retain_size
    targets = [
        oracle.softmax(oracle.forward(flat, WIDTHS, x)[1] / temperature)
        for flat, x in zip(teachers, inputs, strict=True)
    ]
    flat = task.params.numpy().copy()
    for _ in range(3):
        total = np.zeros_like(flat)
        for x, target in zip(inputs, targets, strict=True):
            # The slope in the logits is (p - target) / T.
            z = oracle.forward(flat, WIDTHS, x)[1]
            slope = (oracle.softmax(z / temperature) - target) / temperature
            total += oracle.gradients(flat, WIDTHS, x, oracle.softmax(z) - slope)[0]
        flat -= 0.3 * total / len(inputs)
    np.testing.assert_allclose(outcome.params, flat, rtol=1e-12, atol=1e-14)


def test_the_untrained_teacher_is_not_where_training_began(task):
    assert not torch.equal(
        task.fresh(RngTree(0).child("bad-teacher/0")), task.fresh(RngTree(0))
    )


def test_no_label_is_used(task):
    seen = only(task, uses_of(BadTeacher()))
    assert (seen.forget.labels == -1).all()
    assert (seen.retain.labels == -1).all()
    assert act(BadTeacher(), task).params.isfinite().all()


def test_forgotten_rows_become_uncertain_and_others_stay():
    task = samples(trained(rounds=200))
    sgd = LocalOptimizer(learning_rate=0.1, momentum=0.9)
    params = act(BadTeacher(epochs=60, optimizer=sgd), task).params

    def entropy(params, rows):
        p = task.model.predict(params, rows.inputs).softmax(dim=1)
        return float(-(p * p.log()).sum(dim=1).mean())

    rise = entropy(params, task.forget) - entropy(task.params, task.forget)
    others = entropy(params, task.retain) - entropy(task.params, task.retain)
    assert rise > 0.1
    assert rise > 2 * abs(others)


def test_steps_with_forgotten_rows_are_told_from_others(task):
    cost = act(BadTeacher(epochs=1, batch_size=4), task).cost
    assert cost.steps_forget + cost.steps_retain == 12
    assert 2 <= cost.steps_forget <= task.forget_size
    assert cost.sample_gradients == task.forget_size + task.retain_size
