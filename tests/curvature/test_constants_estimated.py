"""Estimated constants: right where they can be, and too small as the papers' are."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from dfl_unlearn.curvature.constants import (
    estimate_gradient_bound,
    estimate_smoothness,
    proven_smoothness,
)
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree

RNG = RngTree(0)
H = torch.diag(torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64))


class Quadratic(nn.Module):
    """Loss ``(theta - x)' H (theta - x) / 2``; its Hessian is H everywhere."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3))

    def forward(self, inputs):
        return self.theta - inputs


def quadratic(l2=0.0):
    def loss(moved, _):
        return 0.5 * (moved @ H.to(moved) * moved).sum(1)

    return FlatModel.from_module(Quadratic(), loss, l2=l2)


def rows():
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
    return TensorBatch(x, torch.tensor([0, 0]))


def test_power_finds_the_curvature_that_is_largest_in_size_even_if_negative():
    found = estimate_smoothness(quadratic(), torch.ones(3), rows(), rng=RNG)
    assert found.value == pytest.approx(3.0, rel=1e-9)
    assert found.source == "estimated"
    shifted = estimate_smoothness(
        quadratic(l2=0.25), torch.ones(2, 3), rows(), rng=RNG, safety=2.0
    )
    assert shifted.value == pytest.approx(2 * 2.75, rel=1e-9)
    assert "2 states" in shifted.note


def test_a_secant_is_never_above_what_power_finds_on_a_quadratic():
    found = estimate_smoothness(
        quadratic(), torch.ones(3), rows(), rng=RNG, method="secant", draws=20
    )
    assert 2.0 < found.value <= 3.0 * (1 + 1e-9)


def test_the_gradient_bound_is_the_largest_row_not_the_mean():
    theta = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    each = [H @ (t.double() - x) for t in theta for x in rows().inputs]
    found = estimate_gradient_bound(quadratic(l2=5.0), theta, rows())
    assert found.value == pytest.approx(max(float(g.norm()) for g in each), rel=1e-12)
    assert found.source == "estimated"
    means = [(a + b) / 2 for a, b in pairwise(each)][::2]
    batches = estimate_gradient_bound(
        quadratic(l2=5.0), theta, rows(), per_sample=False
    )
    assert batches.value == pytest.approx(max(float(g.norm()) for g in means), rel=1e-9)


def test_everything_that_is_computed_is_counted():
    told = []
    look = {"rng": RNG, "count": told.append}
    theta = torch.ones(3, 3)
    estimate_smoothness(quadratic(), theta, rows(), iterations=7, **look)
    assert sum(told) == 3 * 7 * 2
    told.clear()
    estimate_smoothness(quadratic(), theta, rows(), method="secant", draws=4, **look)
    assert sum(told) == 3 * (4 + 1) * 2
    told.clear()
    for per_sample in (True, False):
        estimate_gradient_bound(
            quadratic(), theta, rows(), per_sample=per_sample, count=told.append
        )
    assert told == [2] * 6


def test_what_is_proven_is_never_below_an_estimate():
    data = datasets.build("digits").train
    part = TensorBatch(data.inputs[:200], data.labels[:200])
    model = models.build("logistic", input_shape=(64,), num_classes=10, l2=0.1)
    weights = np.full(200, 1 / 200)
    proven = proven_smoothness(
        Objective(model=model, inputs=part.inputs, labels=part.labels, weights=weights)
    )
    theta = torch.stack([model.init(RngTree(i)) for i in range(3)])
    found = estimate_smoothness(model, theta, part, rng=RNG, iterations=20)
    assert 0.1 < found.value < proven
    bound = model.constants(radius=8.1)["gradient_bound"].value
    assert estimate_gradient_bound(model, theta, part).value <= bound


def test_published_estimates_of_a_network_are_an_order_of_magnitude_too_small():
    """A random direction at the end for L, minibatches of 256 for G; 15 and 13 times
    too small in the measurement of which this is a repetition with other draws. The
    same order of magnitude is asked for: between 4 and 60 times."""
    data = datasets.build("digits").train
    model = models.build(
        "mlp", input_shape=(64,), num_classes=10, hidden=(64,), smooth=True
    )
    assert model.size == 4810
    generator = RngTree(3).torch("batch")
    theta = model.init(RngTree(3)).double()
    path = [theta]
    for _ in range(10):
        for index in torch.randperm(len(data), generator=generator).split(256):
            leaf = theta.clone().requires_grad_()
            batch = TensorBatch(data.inputs[index], data.labels[index])
            theta = theta - 0.1 * torch.autograd.grad(model.loss(leaf, batch), leaf)[0]
        path.append(theta)
    rough = estimate_smoothness(model, theta, data, rng=RNG, method="secant", draws=20)
    exact = estimate_smoothness(model, theta, data, rng=RNG, iterations=15)
    assert 4 < exact.value / rough.value < 60
    states = torch.stack(path)
    means = estimate_gradient_bound(model, states, data, per_sample=False)
    single = estimate_gradient_bound(model, states, data)
    assert 4 < single.value / means.value < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, "method: .*guess"),
        ({"safety": 0.5}, r"safety: .*got 0\.5"),
        ({"iterations": 0}, "iterations: .*got 0"),
        ({"params": torch.ones(2)}, r"params: .*\(2,\)"),
        ({"data": TensorBatch(torch.ones(0, 3), torch.ones(0).long())}, "data: .*none"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"model": quadratic(), "params": torch.ones(3), "data": rows(), "rng": RNG}
    with pytest.raises(InvalidArgumentError, match=message):
        estimate_smoothness(**{**given, **change})
