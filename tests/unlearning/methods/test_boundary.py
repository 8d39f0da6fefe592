"""Boundary shrink and expand against second implementations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, a_class, act, trained
from oracles import soft_labels as oracle

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import Budget, only, uses_of
from dfl_unlearn.unlearning.methods.boundary_expand import BoundaryExpand
from dfl_unlearn.unlearning.methods.boundary_shrink import BoundaryShrink, input_range
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=0.2)


@pytest.fixture(scope="module")
def task():
    return a_class(trained(rounds=40))


def neighbours(task, bound, target):
    """The class across the boundary of every forgotten row."""
    flat = task.params.numpy()
    inputs, labels = task.forget.inputs.numpy(), task.forget.labels.numpy()
    low, high = inputs.min(), inputs.max()
    found = []
    for x, y in zip(inputs, labels, strict=True):
        _, slope = oracle.gradients(flat, WIDTHS, x, np.eye(3)[y])
        moved = np.clip(x + bound * (high - low) * np.sign(slope), low, high)
        scores = oracle.forward(flat, WIDTHS, moved)[1].copy()
        if target == "other":
            scores[y] = -np.inf
        found.append(int(scores.argmax()))
    return np.array(found)


@pytest.mark.parametrize("target", ["other", "predicted"])
def test_shrinking_trains_on_the_class_across_the_boundary(task, target):
    method = BoundaryShrink(
        epochs=3, batch_size=None, bound=0.15, target=target, optimizer=SGD
    )
    outcome = act(method, task)
    answers = neighbours(task, 0.15, target)
    labels = task.forget.labels.numpy()
    assert outcome.info["relabelled_share"] == np.mean(answers != labels)
    expected = oracle.descend(
        task.params.numpy(),
        WIDTHS,
        task.forget.inputs.numpy(),
        oracle.one_hot(answers, 3),
        rate=0.2,
        steps=3,
    )
    np.testing.assert_allclose(outcome.params, expected, rtol=1e-11, atol=1e-13)
    assert outcome.cost.sample_gradients == 4 * task.forget_size


def test_the_published_target_may_be_the_label_that_should_go(task):
    """The model is sure of its class: a short step does not cross the boundary."""
    answers = neighbours(task, 0.001, "predicted")
    labels = task.forget.labels.numpy()
    assert (answers == labels).mean() > 0.9
    assert (neighbours(task, 0.001, "other") != labels).all()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.tensor([[0, 255]], dtype=torch.uint8), (0.0, 1.0)),
        (torch.tensor([[0.2, 0.7]]), (0.0, 1.0)),
        (torch.tensor([[-3.0, 0.5], [0.0, 5.0]]), (-3.0, 5.0)),
        (torch.tensor([[0.0, 1.5]]), (0.0, 1.5)),
    ],
)
def test_the_bound_is_a_share_of_the_inputs_own_range(inputs, expected):
    assert input_range(inputs) == expected


def test_expanding_trains_one_more_output_and_drops_it(task):
    outcome = act(BoundaryExpand(epochs=3, batch_size=None, optimizer=SGD), task)
    bound = 1 / math.sqrt(8)
    generator = RngTree(0).numpy("method", who=0, request="r0", draw=16)
    drawn = generator.uniform(-bound, bound, 9)
    (w1, b1), (w2, b2) = oracle.layers(task.params.numpy(), WIDTHS)
    wide = np.concatenate(
        [w1.ravel(), b1, np.vstack([w2, drawn[:8]]).ravel(), [*b2, drawn[8]]]
    )
    inputs = task.forget.inputs.numpy()
    targets = np.tile(np.eye(4)[3], (len(inputs), 1))
    wide = oracle.descend(wide, (6, 8, 4), inputs, targets, rate=0.2, steps=3)
    (w1, b1), (w2, b2) = oracle.layers(wide, (6, 8, 4))
    expected = np.concatenate([w1.ravel(), b1, w2[:3].ravel(), b2[:3]])
    np.testing.assert_allclose(outcome.params, expected, rtol=1e-11, atol=1e-13)
    assert outcome.params.shape == task.params.shape


def test_no_label_is_needed_to_expand(task):
    seen = only(task, uses_of(BoundaryExpand()))
    assert (seen.forget.labels == -1).all()
    assert seen.retain is None


def test_a_model_without_a_hidden_layer_has_nowhere_to_add_an_output():
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    with pytest.raises(MissingInputError, match="features"):
        act(BoundaryExpand(), a_class(trained(model)))


@pytest.mark.parametrize("kind", [BoundaryShrink, BoundaryExpand])
def test_the_class_is_lost(task, kind):
    method = kind(optimizer=LocalOptimizer(learning_rate=0.02, momentum=0.9))
    after = act(method, task).params
    named = task.model.predict(after, task.forget.inputs).argmax(dim=1)
    before = task.model.predict(task.params, task.forget.inputs).argmax(dim=1)
    assert (before == 1).double().mean() > 0.9
    assert (named == 1).double().mean() < 0.2


def test_nothing_is_prepared_where_the_budget_is_spent(task):
    outcome = act(BoundaryShrink(), replace(task, budget=Budget(max_steps=0)))
    assert torch.equal(outcome.params, task.params)
    assert outcome.cost.sample_gradients == 0
