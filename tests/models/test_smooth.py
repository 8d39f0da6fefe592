"""SmeLU: its formula, its slopes, and the zoo's networks that use it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError
from dfl_unlearn.models.smooth import SmeLU
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology

BETA = 0.5
SPECIAL = [-torch.inf, -1e300, -7.0, -0.5, 0.0, 0.5, 0.75, 1e300, torch.inf]
ZOO = [("mlp", (16,)), ("small-cnn", (4, 4)), ("resnet8", (4, 4))]


def build(name, shape, classes=3, **fields):
    if name == "resnet8":
        fields = {"width": 4, "groups": 2, **fields}
    return models.build(name, input_shape=shape, num_classes=classes, **fields)


def written_out(x, beta=BETA):
    if x >= beta:
        return x
    return 0.0 if x <= -beta else (x + beta) ** 2 / (4 * beta)


def test_it_is_the_published_function_and_exact_outside_its_band():
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    x = torch.cat([x, torch.tensor(SPECIAL, dtype=torch.float64)])
    expected = torch.tensor([written_out(float(v)) for v in x], dtype=torch.float64)
    found = SmeLU(BETA)(x)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
    outside = x.abs() >= BETA
    assert torch.equal(found[outside], torch.relu(x)[outside])


def test_a_number_that_is_none_stays_none():
    assert SmeLU()(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_slopes_rise_from_0_to_1_at_the_rate_of_the_band_and_no_faster(beta):
    x = torch.linspace(-2 * beta, 2 * beta, 4001, dtype=torch.float64)
    x = torch.cat([x, torch.tensor([-1e300, 1e300], dtype=torch.float64)])
    x.requires_grad_()
    (slope,) = torch.autograd.grad(SmeLU(beta)(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    x = x.detach()
    inside = x.abs() < beta
    expected = ((x + beta) / (2 * beta)).clamp(0, 1)
    torch.testing.assert_close(slope.detach(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(second[~inside], torch.zeros_like(second[~inside]))
    assert second[inside].numpy() == pytest.approx(1 / (2 * beta), rel=1e-12)
    # Lipschitz, from the slopes alone; those of ReLU jump by 1 in one step.
    steps = slope.detach()[:4001].diff() / x[:4001].diff()
    assert float(steps.max()) <= 1 / (2 * beta) * (1 + 1e-9)


def test_the_band_must_be_wide():
    with pytest.raises(InvalidArgumentError, match=r"beta: .*got 0"):
        SmeLU(beta=0)
    with pytest.raises(InvalidTypeError, match=r"smooth: .*bool"):
        build("mlp", (4,), smooth=1)


@pytest.mark.parametrize(("name", "shape"), ZOO)
def test_smooth_is_part_of_the_recipe_and_no_kernel_takes_it_for_relu(name, shape):
    model, rough = build(name, shape, smooth=True), build(name, shape)
    assert model.recipe["smooth"] is True
    again = models.build(
        model.recipe["use"], **{k: v for k, v in model.recipe.items() if k != "use"}
    )
    params = model.init(RngTree(0))
    assert torch.equal(params, rough.init(RngTree(0)))
    x = torch.randn(5, *shape, generator=RngTree(0).torch("init"))
    assert torch.equal(again.predict(params, x), model.predict(params, x))
    assert model.structure is None
    kinds = {type(layer) for _, layer in model.modules()}
    assert SmeLU in kinds
    assert not kinds & {nn.ReLU, nn.MaxPool2d}
    assert not torch.equal(model.predict(params, x), rough.predict(params, x))


@pytest.mark.parametrize(("name", "shape"), ZOO)
def test_every_kernel_trains_the_smooth_network_as_autograd_does(name, shape):
    generator = RngTree(1).torch("init")
    pairs = [
        (
            torch.randn(n, *shape, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in (5, 6)
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0], num_classes=3)
    model = build(name, shape, smooth=True)
    # One step of full batches, no mixing to speak of: row 0 is plain descent.
    config = SimulationConfig(
        rounds=1,
        local=LocalSteps(batch_size=None, learning_rate=0.1),
        evaluate_every=0,
        dtype="float64",
    )
    start = model.init(RngTree(0)).double()
    expected = []
    for x, y in pairs:
        leaf = start.clone().requires_grad_()
        loss = model.loss(leaf, (x.double(), y))
        expected.append(start - 0.1 * torch.autograd.grad(loss, leaf)[0])
    mean = torch.stack(expected).mean(0)
    for kernel in ("auto", "loop", "vmap"):
        run = simulate(
            load_topology("complete", n=2), data, model, replace(config, kernel=kernel)
        )
        torch.testing.assert_close(run.state.params.mean(0), mean, rtol=1e-6, atol=1e-9)


def test_curvature_of_a_smooth_network_is_the_derivative_of_its_gradient():
    model = build("mlp", (6,), hidden=(5,), smooth=True)
    generator = RngTree(2).torch("init")
    x = torch.randn(7, 6, generator=generator).double()
    objective = Objective(
        model=model,
        inputs=x,
        labels=torch.randint(0, 3, (7,), generator=generator),
        weights=torch.full((7,), 1 / 7, dtype=torch.float64).numpy(),
    )
    theta = model.init(RngTree(2)).double()
    v = torch.randn(len(theta), generator=generator).double()
    h = 1e-5
    slope = (objective.gradient(theta + h * v) - objective.gradient(theta - h * v)) / (
        2 * h
    )
    found = objective.hessian(theta) @ v
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)
