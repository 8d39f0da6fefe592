"""Where a parameter lies in the flat vector, and which layers a model consists of."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "none"]
LossName = Literal["cross-entropy", "binary-logistic", "squared-error", "custom"]


@dataclass(frozen=True)
class Segment:
    """One parameter's place in the flat vector.

    Attributes:
        offset: Index of its first entry.
        shape: Its shape; linear weights are (out, in).
    """

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    def view(self, params: Tensor) -> Tensor:
        """Return the parameter as a view.

        Args:
            params: Flat vectors, shape ``(..., P)``.

        Returns:
            Shape ``(..., *shape)``.
        """
        part = params[..., self.offset : self.offset + self.size]
        return part.view((*params.shape[:-1], *self.shape))


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """``activation(x @ weight.T + bias)``.

    Attributes:
        weight: Shape (out, in).
        bias: Shape (out,), or None.
        activation: What follows the sum.
    """

    weight: Segment
    bias: Segment | None
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class LinearStack:
    """Linear layers with ReLU between them, on flattened inputs, and a known loss.

    Attributes:
        layers: First to last; the last has no activation.
        loss: Which loss follows.
    """

    layers: tuple[LinearLayer, ...]
    loss: LossName


def linear_stack(
    module: nn.Module, segments: Mapping[str, Segment], loss: LossName
) -> LinearStack | None:
    """Recognize ``[Flatten] Linear (ReLU Linear)*`` with a known loss.

    Args:
        module: A linear layer or a sequence of modules.
        segments: Places of its parameters by name.
        loss: Name of the loss; with ``custom`` nothing is recognized.

    Returns:
        The layers, or None for any other structure.
    """
    children = (
        list(module.named_children())
        if type(module) is nn.Sequential
        else [("", module)]
    )
    if children and isinstance(children[0][1], nn.Flatten):
        flatten = children.pop(0)[1]
        assert isinstance(flatten, nn.Flatten)
        if (flatten.start_dim, flatten.end_dim) != (1, -1) or has_hooks(flatten):
            return None
    if loss == "custom" or len(children) % 2 == 0 or has_hooks(module):
        return None
    layers = []
    for i, (name, child) in enumerate(children):
        if has_hooks(child) or type(child) is not (nn.ReLU if i % 2 else nn.Linear):
            return None
        if i % 2:
            continue
        prefix = f"{name}." if name else ""
        if f"{prefix}weight" not in segments:  # shared with an earlier layer
            return None
        bias = getattr(child, "bias", None)
        if bias is not None and f"{prefix}bias" not in segments:
            return None
        layers.append(
            LinearLayer(
                weight=segments[f"{prefix}weight"],
                bias=None if bias is None else segments[f"{prefix}bias"],
                activation="none" if i == len(children) - 1 else "relu",
            )
        )
    if loss != "cross-entropy" and layers[-1].weight.shape[0] != 1:
        return None
    return LinearStack(layers=tuple(layers), loss=loss)


def stack_outputs(stack: LinearStack, params: Tensor, features: Tensor) -> Tensor:
    """Return the outputs of several peers for the same inputs, without gradients.

    Args:
        stack: The layers.
        params: Shape ``(n, P)``.
        features: Shape ``(B, F)``.

    Returns:
        Shape ``(n, B, out)`` of the last layer.
    """
    # All peers share the inputs: the first layer is one product, in NumPy, whose BLAS
    # is about 1.4 times as fast as torch's here on some CPUs.
    first = stack.layers[0].weight.view(params)
    hidden = torch.from_numpy(features.numpy() @ first.flatten(0, 1).numpy().T)
    hidden = hidden.view(len(features), *first.shape[:2]).transpose(0, 1)
    for depth, layer in enumerate(stack.layers):
        if depth:
            hidden = torch.bmm(hidden, layer.weight.view(params).transpose(1, 2))
        if layer.bias is not None:
            hidden = hidden + layer.bias.view(params)[:, None, :]
        if layer.activation == "relu":
            hidden = functional.relu(hidden)
    return hidden


def has_hooks(module: nn.Module) -> bool:
    """Tell whether something else than ``forward`` runs when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
