"""l1-sparse against a second implementation, and its fading penalty."""

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, act, samples, trained
from oracles import soft_labels as oracle

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.methods.l1_sparse import L1Sparse
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=0.3)


@pytest.fixture(scope="module")
def task():
    return samples(trained())


def test_the_penalty_fades_to_nothing():
    method = L1Sparse(alpha=0.5, epochs=6, plain_epochs=2)
    expected = [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
    assert [method.penalty(e) for e in range(6)] == expected


def test_steps_are_those_of_the_second_implementation(task):
    fields = {"alpha": 0.02, "epochs": 4, "plain_epochs": 1, "batch_size": None}
    outcome = act(L1Sparse(optimizer=SGD, **fields), task)
    expected = oracle.descend(
        task.params.numpy(),
        WIDTHS,
        task.retain.inputs.numpy(),
        oracle.one_hot(task.retain.labels.numpy(), 3),
        rate=0.3,
        steps=4,
        extra=lambda k, flat: 0.02 * max(0.0, 1 - k / 3) * np.sign(flat),
    )
    np.testing.assert_allclose(outcome.params, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        outcome.trace["penalty"], [0.02, 0.02 * 2 / 3, 0.02 / 3, 0.0], atol=1e-16
    )


def test_without_a_penalty_it_is_fine_tuning_to_the_bit(task):
    plain = act(FineTune(epochs=3, batch_size=8, optimizer=SGD), task)
    same = act(L1Sparse(alpha=0, epochs=3, batch_size=8, optimizer=SGD), task)
    assert torch.equal(plain.params, same.params)


def test_a_penalty_makes_parameters_smaller(task):
    norms = [
        float(act(L1Sparse(alpha=alpha), task).params.abs().sum())
        for alpha in (0.0, 1e-3, 1e-2)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_some_epoch_has_a_penalty():
    with pytest.raises(InvalidHyperparameterError, match="plain_epochs"):
        L1Sparse(epochs=3, plain_epochs=3)
