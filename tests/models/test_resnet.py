"""ResNet-8: its layers, its kernels, and that it learns photographs."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, MissingDataError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology


def build(shape, count, **fields):
    return models.build("resnet8", input_shape=shape, num_classes=count, **fields)


def published(params, x, *, width, groups, classes):
    """The network written out, from a flat vector in the order of its layers."""
    place = 0

    def take(*shape):
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return params[place - size : place].view(shape)

    def norm(z, scale, shift):
        b, c, h, w = z.shape
        parts = z.reshape(b, groups, -1)
        mean = parts.mean(dim=2, keepdim=True)
        variance = (parts - mean).square().mean(dim=2, keepdim=True)
        parts = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(b, c, h, w)
        return parts * scale[:, None, None] + shift[:, None, None]

    first = take(width, x.shape[1], 3, 3)
    z = F.relu(norm(F.conv2d(x, first, padding=1), take(width), take(width)))
    inner = width
    for outer, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        one = take(outer, inner, 3, 3)
        scale, shift = take(outer), take(outer)
        y = F.relu(norm(F.conv2d(z, one, stride=stride, padding=1), scale, shift))
        two = take(outer, outer, 3, 3)
        scale, shift = take(outer), take(outer)
        y = norm(F.conv2d(y, two, padding=1), scale, shift)
        short = z[:, :, ::stride, ::stride]
        zeros = torch.zeros(len(x), outer - inner, *short.shape[2:], dtype=x.dtype)
        z = F.relu(y + torch.cat([short, zeros], dim=1))
        inner = outer
    logits = z.mean(dim=(2, 3)) @ take(classes, 4 * width).T + take(classes)
    assert place == len(params)
    return logits


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 7), (3, 4, 4)])
def test_the_network_is_the_published_one_with_group_normalization(shape):
    model = build(shape, 5, width=8, groups=4)
    params = model.init(RngTree(1)).double()
    # Scales and shifts start at 1 and 0: move them, so that they count.
    params = params + 0.1 * torch.linspace(-1, 1, model.size, dtype=torch.float64).cos()
    x = torch.linspace(0, 50, 3 * int(np.prod(shape)), dtype=torch.float64).sin()
    x = x.view(3, *shape)
    expected = published(params, x, width=8, groups=4, classes=5)
    torch.testing.assert_close(model.predict(params, x), expected)


def test_its_size_follows_from_its_layers():
    assert build((3, 32, 32), 10).size == 75_290
    convolutions = 9 * (3 * 16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2)
    scales = 2 * (16 + 2 * 16 + 2 * 32 + 2 * 64)
    assert convolutions + scales + 64 * 10 + 10 == 75_290


def test_layers_of_torch_draw_its_first_parameters_from_the_key():
    model = build((3, 8, 8), 4)
    first, other = (model.state_dict(model.init(RngTree(k))) for k in (0, 1))
    again = model.state_dict(model.init(RngTree(0)))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if ".norm" in name or name.startswith("2."):  # scales 1, shifts 0
            assert torch.equal(value, other[name])
        else:
            assert not torch.equal(value, other[name])


def test_flat_and_shaped_images_are_taken_alike():
    flat, image = build((64,), 3), build((8, 8), 3)
    params = flat.init(RngTree(0))
    x = torch.linspace(-1, 1, 2 * 64).view(2, 64)
    assert torch.equal(image.predict(params, x.view(2, 8, 8)), flat.predict(params, x))


@pytest.mark.parametrize(
    ("shape", "fields", "error", "message"),
    [
        ((8, 8), {"width": 12}, InvalidArgumentError, r"multiple of groups=8, got 12"),
        ((8, 8), {"width": 0}, InvalidArgumentError, "width: .*got 0"),
        ((8, 8), {"groups": 0}, InvalidArgumentError, "groups: .*got 0"),
        ((8, 8), {"width": 8.0}, InvalidTypeError, r"width: .*got 8\.0"),
        ((3, 9), {}, InvalidArgumentError, r"input_shape: .*\(3, 9\)"),
    ],
)
def test_impossible_networks_are_refused(shape, fields, error, message):
    with pytest.raises(error, match=message):
        build(shape, 3, **fields)


def train(kernel, dtype, **local):
    rng = np.random.default_rng(0)
    pairs = [
        (
            torch.from_numpy(rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)),
            torch.from_numpy(rng.integers(0, 3, n)),
        )
        for n in (7, 4, 9, 5)
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0], num_classes=3)
    config = SimulationConfig(
        rounds=1,
        dtype=dtype,
        kernel=kernel,
        common_init=False,
        local=LocalSteps(epochs=1.0, batch_size=3, learning_rate=0.05, **local),
    )
    model = build((3, 8, 8), 3, width=8, groups=4)
    run = simulate(load_topology("ring", n=4), data, model, config)
    assert run.info["arithmetic"]["kernel"] == kernel
    return run.state.params.double()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("local", [{}, {"momentum": 0.9}, {"clip_norm": 0.5}])
def test_the_kernels_agree_after_an_epoch(dtype, local):
    loop, vmap = (train(kernel, dtype, **local) for kernel in ("loop", "vmap"))
    error = (loop - vmap).norm() / loop.norm()
    assert error < (1e-6 if dtype == "float32" else 1e-12)


@pytest.mark.slow
@pytest.mark.data
def test_four_peers_learn_two_thousand_photographs():
    try:
        dataset = datasets.build("cifar10", rows=2_000, test_rows=1_000)
    except MissingDataError as error:
        pytest.skip(str(error))
    data = PeerData.load(dataset, 4, "iid")
    config = SimulationConfig(
        rounds=15,
        local=LocalSteps(epochs=1.0, batch_size=32, learning_rate=0.1, momentum=0.9),
        evaluate_every=5,
    )
    model = build((3, 32, 32), 10)
    run = simulate(load_topology("ring", n=4), data, model, config)
    loss = run.history.loss.mean(axis=1)
    assert loss[-1] < 0.9 * loss[0]
    # Guessing gives 0.1; 0.2 is ten standard deviations of 1,000 guesses above it.
    assert run.history.accuracy[-1].min() > 0.2
