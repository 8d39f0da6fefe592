"""The zoo: sizes, shapes that are taken, and what is refused."""

import pytest
import torch
from torch import nn

from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree


def build(name, shape, count, **fields):
    return models.build(name, input_shape=shape, num_classes=count, **fields)


@pytest.mark.parametrize(
    ("name", "shape", "count", "fields", "size", "l2"),
    [
        ("linear", (7,), 0, {}, 8, 0.01),
        ("linear", (7,), 0, {"bias": False}, 7, 0.01),
        ("logistic", (28, 28), 10, {}, 7850, 0.01),
        ("logistic", (4,), 2, {"bias": False}, 4, 0.01),
        ("mlp", (784,), 10, {}, 50890, 0.0),
        ("mlp", (784,), 10, {"hidden": (128,), "l2": 0.1}, 101770, 0.1),
        ("mlp", (784,), 10, {"hidden": ()}, 7850, 0.0),
        ("small-cnn", (28, 28), 10, {}, 160 + 4640 + 15690, 0.0),
        ("small-cnn", (3, 32, 32), 10, {}, 448 + 4640 + 20490, 0.0),
    ],
)
def test_sizes_and_penalties(name, shape, count, fields, size, l2):
    model = build(name, shape, count, **fields)
    assert model.size == size
    assert model.l2 == l2


def test_the_network_takes_flat_and_shaped_images_alike():
    flat, image = build("small-cnn", (64,), 3), build("small-cnn", (8, 8), 3)
    params = flat.init(RngTree(0))
    x = torch.linspace(-1, 1, 2 * 64).view(2, 64)
    expected = flat.predict(params, x)
    for shape in ((2, 64), (2, 8, 8), (2, 1, 8, 8)):
        assert torch.equal(image.predict(params, x.view(shape)), expected)


def test_the_network_is_the_one_of_torchs_layers():
    model = build("small-cnn", (9, 10), 3, channels=[4, 5])
    twin = nn.Sequential(
        nn.Unflatten(1, (1, 9)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    params = model.init(RngTree(0))
    twin.load_state_dict(model.state_dict(params))
    x = torch.linspace(-1, 1, 4 * 90).view(4, 9, 10).cos()
    torch.testing.assert_close(model.predict(params, x), twin(x))


@pytest.mark.parametrize(
    ("name", "shape", "count", "fields", "error", "message"),
    [
        ("linear", (3,), 2, {}, TypeError, "num_classes=2; use logistic"),
        ("logistic", (3,), 0, {}, TypeError, "use linear"),
        ("logistic", (3,), 1, {}, InvalidArgumentError, "num_classes: .*got 1"),
        ("mlp", (3,), 1, {}, InvalidArgumentError, "num_classes: .*got 1"),
        ("mlp", (3,), -1, {}, InvalidArgumentError, "num_classes: .*got -1"),
        ("mlp", (3,), 2, {"hidden": (0,)}, InvalidArgumentError, "hidden: .*got 0"),
        ("mlp", (3,), 2, {"hidden": 5}, InvalidTypeError, "hidden: .*list or tuple"),
        ("mlp", (0,), 2, {}, InvalidArgumentError, "input_shape: .*got 0"),
        ("mlp", 3, 2, {}, InvalidTypeError, "input_shape: .*list or tuple"),
        ("mlp", (3,), 2, {"l2": -1}, InvalidArgumentError, "l2: .*got -1"),
        ("mlp", (3,), 2, {"bias": 1}, InvalidTypeError, "bias: .*bool"),
        ("mlp", (3,), 2, {"hiden": 1}, InvalidArgumentError, "did you mean 'hidden'"),
        ("small-cnn", (30,), 2, {}, InvalidArgumentError, r"input_shape: .*\(30,\)"),
        ("small-cnn", (3, 9), 2, {}, InvalidArgumentError, r"input_shape: .*\(3, 9\)"),
        (
            "small-cnn",
            (8, 8),
            2,
            {"channels": [1]},
            InvalidArgumentError,
            r"channels: .*\[1\]",
        ),
    ],
)
def test_impossible_models_are_refused(name, shape, count, fields, error, message):
    with pytest.raises(error, match=message):
        build(name, shape, count, **fields)
