"""What a network's linear and convolutional layers read and write, call by call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel, Segment
from dfl_unlearn.models.structure import has_hooks


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixLayer:
    """A layer that applies one matrix at one or more positions of a sample.

    Attributes:
        name: As in the module; empty for the module itself.
        weight: The matrix, ``(out, in)`` once everything after ``out`` is flattened.
        bias: Shape ``(out,)``, or None.
        module: The layer.
    """

    name: str
    weight: Segment
    bias: Segment | None
    module: nn.Linear | nn.Conv2d

    def positions(self, inputs: Tensor) -> Tensor:
        """Return what the matrix is applied to, a 1 appended where there is a bias.

        Args:
            inputs: Of the layer: ``(B, ..., in)`` for a linear layer, ``(B, C, H, W)``
                for a convolution.

        Returns:
            Shape ``(B, T, in (+ 1))``, T positions per sample.
        """
        if isinstance(self.module, nn.Conv2d):
            padding = self.module.padding
            assert not isinstance(padding, str)  # refused by ``matrix_layers``
            read = functional.unfold(
                inputs,
                self.module.kernel_size,
                self.module.dilation,
                padding,
                self.module.stride,
            ).transpose(1, 2)
        else:
            read = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return read if self.bias is None else functional.pad(read, (0, 1), value=1.0)

    def written(self, outputs: Tensor) -> Tensor:
        """Return outputs, or their derivatives, by position: ``(B, T, out)``."""
        if isinstance(self.module, nn.Conv2d):
            return outputs.flatten(2).transpose(1, 2)
        return outputs.reshape(len(outputs), -1, outputs.shape[-1])

    def matrix(self, vectors: Tensor) -> Tensor:
        """Return the layer's part of flat vectors, ``(..., out, in (+ 1))``.

        Args:
            vectors: Shape ``(..., P)``.

        Returns:
            The weight with the bias as its last column.
        """
        weight = self.weight.view(vectors).flatten(vectors.ndim)
        if self.bias is None:
            return weight
        return torch.cat([weight, self.bias.view(vectors)[..., None]], dim=-1)

    def put_(self, matrix: Tensor, vectors: Tensor) -> None:
        """Write what ``matrix`` gave back into flat vectors.

        Args:
            matrix: Shape ``(..., out, in (+ 1))``.
            vectors: Shape ``(..., P)``; the layer's part is overwritten.
        """
        if self.bias is not None:
            self.bias.view(vectors).copy_(matrix[..., -1])
            matrix = matrix[..., :-1]
        place = self.weight.view(vectors)
        place.copy_(matrix.reshape(place.shape))


def matrix_layers(model: FlatModel) -> tuple[MatrixLayer, ...]:
    """Return a model's layers, if they are all linear layers or plain convolutions.

    Args:
        model: The model.

    Returns:
        The layers that have parameters; together they have all of them.

    Raises:
        UnsupportedModelError: Naming the first layer that has parameters and is
            something else.
    """
    found = []
    for name, layer in model.modules():
        own = [key for key, _ in layer.named_parameters(recurse=False)]
        if not own:
            continue
        objection = _objection(model, name, layer, own)
        if objection:
            raise UnsupportedModelError(
                f"module: layer {name or 'itself'!r} must be an nn.Linear or an "
                "nn.Conv2d with parameters of its own, one group and zero padding by "
                f"numbers, got {objection}; use curvature='block' or 'diag_fisher'"
            )
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        prefix = f"{name}." if name else ""
        found.append(
            MatrixLayer(
                name=name,
                weight=model.segments[f"{prefix}weight"],
                bias=model.segments.get(f"{prefix}bias"),
                module=layer,
            )
        )
    return tuple(found)


def _objection(model: FlatModel, name: str, layer: nn.Module, own: list[str]) -> str:
    """Return what is wrong with a layer, or nothing."""
    prefix = f"{name}." if name else ""
    kind = type(layer).__name__
    if type(layer) is not nn.Linear and type(layer) is not nn.Conv2d:
        return kind
    if has_hooks(layer):
        return f"{kind} with hooks"
    if any(f"{prefix}{key}" not in model.segments for key in own):
        return f"{kind} that shares its parameters"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            return f"{kind} with groups={layer.groups}"
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return f"{kind} with padding={layer.padding!r} of {layer.padding_mode}"
    return ""


@contextmanager
def traced(
    layers: tuple[MatrixLayer, ...],
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Note inputs and outputs of layers while the model is called.

    Args:
        layers: Which ones, as ``matrix_layers`` gave them.

    Yields:
        Layer name to (inputs, outputs) of the model's one call; outputs are part of
        its graph.

    Raises:
        UnsupportedModelError: If the call uses a layer twice, or not at all.
    """
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if name in calls:
                raise UnsupportedModelError(_used(name, "twice"))
            calls[name] = (args[0].detach().clone(), output)
            # What follows gets a copy: an activation in place leaves ours as it was.
            return output.clone()

        return hook

    handles = [layer.module.register_forward_hook(note(layer.name)) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer.name not in calls:
            raise UnsupportedModelError(_used(layer.name, "never"))


def _used(name: str, how: str) -> str:
    return (
        f"module: layer {name or 'itself'!r} must be used once per call for curvature "
        f"by layers, got {how}; use curvature='block'"
    )
