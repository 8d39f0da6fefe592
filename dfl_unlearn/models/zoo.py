"""Small models by name; no sample's output depends on another sample."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from itertools import pairwise
from math import isqrt, prod
from typing import Any, cast

from torch import Tensor, nn

from dfl_unlearn import _validate
from dfl_unlearn._limits import PARAMETERS, check_cap
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel, KnownLoss
from dfl_unlearn.models.smooth import rectifier
from dfl_unlearn.registry import E, Registry


class _ModelRegistry(Registry[FlatModel]):
    """Files functions that make models, and notes on each model how it was made."""

    def register(self, name: str) -> Callable[[E], E]:
        """Return a decorator; models made by what it files carry their ``recipe``."""

        def file(make: E) -> E:
            @wraps(make)
            def made(*args: Any, **fields: Any) -> FlatModel:
                model: FlatModel = make(*args, **fields)
                given = signature(make).bind(*args, **fields).arguments
                model.recipe = {"use": name, **given}
                return model

            super(_ModelRegistry, self).register(name)(made)
            return cast(E, made)

        return file


models: Registry[FlatModel] = _ModelRegistry("models", packages=("dfl_unlearn.models",))


@models.register("linear")
def linear(
    input_shape: Sequence[int],
    num_classes: int = 0,
    *,
    l2: float = 0.01,
    bias: bool = True,
) -> FlatModel:
    """Ridge regression: one linear output, half the squared error; convex.

    Args:
        input_shape: Shape of one input; it is flattened.
        num_classes: 0, for a regression.
        l2: lambda >= 0.
        bias: Whether to add a constant; the l2 term covers it too.

    Returns:
        The model, P = features (+ 1).

    Raises:
        UnsupportedModelError: If the task has classes.
    """
    _validate.integer(num_classes=num_classes, at_least=0)
    if num_classes:
        raise UnsupportedModelError(
            "linear: must be used for a regression (num_classes=0), got num_classes="
            f"{num_classes}; use logistic"
        )
    return FlatModel(_dense(input_shape, (), 1, bias), "squared-error", l2=l2)


@models.register("logistic")
def logistic(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    l2: float = 0.01,
    bias: bool = True,
    zero_start: bool = False,
) -> FlatModel:
    """Logistic regression with one logit for two classes, softmax for more; convex.

    Args:
        input_shape: Shape of one input; it is flattened.
        num_classes: >= 2.
        l2: lambda >= 0.
        bias: Whether to add a constant per output; the l2 term covers it too.
        zero_start: Whether training starts at 0 instead of drawn parameters.

    Returns:
        The model; P = features (+ 1) for two classes, else that times the classes.

    Raises:
        UnsupportedModelError: If the task is a regression.
    """
    outputs, loss = head(num_classes)
    if num_classes == 0:
        raise UnsupportedModelError(
            "logistic: must have at least 2 classes, got num_classes=0 (regression); "
            "use linear"
        )
    if num_classes == 2:
        outputs, loss = 1, "binary-logistic"
    module = _dense(input_shape, (), outputs, bias)
    return FlatModel(module, loss, l2=l2, zero_start=zero_start)


@models.register("mlp")
def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    hidden: Sequence[int] = (64,),
    l2: float = 0.0,
    bias: bool = True,
    smooth: bool = False,
) -> FlatModel:
    """Multilayer perceptron: linear layers with ReLU between them.

    Args:
        input_shape: Shape of one input; it is flattened.
        num_classes: 0 for a regression, else >= 2.
        hidden: Widths of the hidden layers.
        l2: lambda >= 0.
        bias: Whether the layers add constants.
        smooth: Whether ``SmeLU`` stands where ReLU stood, so that gradients are
            Lipschitz; such a network trains one peer at a time.

    Returns:
        The model.
    """
    _validate.of_type((list, tuple), hidden=hidden)
    for width in hidden:
        _validate.integer(hidden=width, at_least=1)
    outputs, loss = head(num_classes)
    module = _dense(input_shape, hidden, outputs, bias, smooth)
    return FlatModel(module, loss, l2=l2)


@models.register("small-cnn")
def small_cnn(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    l2: float = 0.0,
    bias: bool = True,
    smooth: bool = False,
) -> FlatModel:
    """Convolutional network: twice conv 3 x 3, max-pool 2 x 2, ReLU; one linear layer.

    Args:
        input_shape: (H, W), (C, H, W), or (H * H,) for a flattened square; H, W >= 4.
        num_classes: 0 for a regression, else >= 2.
        channels: Of the two convolutions.
        l2: lambda >= 0.
        bias: Whether the layers add constants.
        smooth: Whether ``SmeLU`` and average-pooling stand where ReLU and max-pooling
            stood, so that gradients are Lipschitz.

    Returns:
        The model.

    Raises:
        InvalidArgumentError: If ``channels`` has not two entries.
    """
    _validate.of_type((list, tuple), channels=channels)
    if len(channels) != 2:
        raise InvalidArgumentError(
            f"channels: must have two entries, got {_validate.show(channels)}; one "
            "per convolution"
        )
    for count in channels:
        _validate.integer(channels=count, at_least=1)
    image = image_shape(input_shape)
    features = channels[1] * (image[1] // 4) * (image[2] // 4)
    outputs, loss = head(num_classes)
    size = 9 * channels[0] * (image[0] + channels[1]) + features * outputs
    check_cap(PARAMETERS, size + sum(channels) + outputs, "model")
    module = nn.Sequential(
        AsImage(image),
        nn.Conv2d(image[0], channels[0], 3, padding=1, bias=bias),
        nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2),
        rectifier(smooth),
        nn.Conv2d(channels[0], channels[1], 3, padding=1, bias=bias),
        nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2),
        rectifier(smooth),
        nn.Flatten(),
        nn.Linear(features, outputs, bias=bias),
    )
    return FlatModel(module, loss, l2=l2)


class AsImage(nn.Module):
    """Gives every sample the shape (C, H, W)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Take the shape."""
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs reshaped, ``(B, C, H, W)``."""
        return inputs.reshape(len(inputs), *self.shape)


def _dense(
    input_shape: Sequence[int],
    hidden: Sequence[int],
    outputs: int,
    bias: bool,
    smooth: bool = False,
) -> nn.Sequential:
    """Return flatten and linear layers with a rectifier between them."""
    _validate.of_type(bool, bias=bias, smooth=smooth)
    widths = [prod(_checked(input_shape)), *hidden, outputs]
    size = sum(inner * outer + bias * outer for inner, outer in pairwise(widths))
    check_cap(PARAMETERS, size, "model")
    layers: list[nn.Module] = [nn.Flatten()]
    for depth, (inner, outer) in enumerate(pairwise(widths)):
        if depth:
            layers.append(rectifier(smooth))
        layers.append(nn.Linear(inner, outer, bias=bias))
    return nn.Sequential(*layers)


def head(num_classes: int) -> tuple[int, KnownLoss]:
    """Return the number of outputs and the loss that a task needs."""
    _validate.integer(num_classes=num_classes, at_least=0)
    if num_classes == 1:
        raise InvalidArgumentError(
            "num_classes: must be 0 (regression) or >= 2, got 1; a task with one "
            "class has nothing to learn"
        )
    return (num_classes, "cross-entropy") if num_classes else (1, "squared-error")


def _checked(input_shape: Sequence[int]) -> tuple[int, ...]:
    _validate.of_type((list, tuple), input_shape=input_shape)
    for length in input_shape:
        _validate.integer(input_shape=length, at_least=1)
    return tuple(input_shape)


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (C, H, W) of an image that may come without channels or flattened."""
    shape = _checked(input_shape)
    if len(shape) == 1 and isqrt(shape[0]) ** 2 == shape[0]:
        shape = (isqrt(shape[0]),) * 2
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise InvalidArgumentError(
            "input_shape: must be (H, W), (C, H, W) or (H * H,) with H, W >= 4, got "
            f"{_validate.show(tuple(input_shape))}; use mlp for other data"
        )
    return shape[0], shape[1], shape[2]
