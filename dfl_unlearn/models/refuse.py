"""Which modules cannot be a function of one sample and one flat vector."""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from dfl_unlearn.errors import UnsupportedModelError

BatchNorm = Literal["refuse", "freeze"]

_RANDOM = (_DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_HIDDEN_DROPOUT = (nn.MultiheadAttention, nn.RNNBase)


def check_module(module: nn.Module, batch_norm: BatchNorm) -> None:
    """Refuse cross-sample state, randomness, and parameters that cannot be a vector.

    Args:
        module: The module that is to become a ``FlatModel``.
        batch_norm: ``refuse`` batch normalization, or ``freeze`` its statistics.

    Raises:
        UnsupportedModelError: If a layer or parameter does not fit; names it and what
            to use instead.
    """
    for name, layer in module.named_modules():
        needed, remedy = _objection(layer, batch_norm)
        if remedy:
            raise UnsupportedModelError(
                f"module: layer {name or 'itself'!r} must {needed}, got "
                f"{type(layer).__name__}; {remedy}"
            )
    count = 0
    for name, parameter in module.named_parameters():
        count += 1
        if is_lazy(parameter):
            needed, got = "have a size", "a lazy parameter"
            remedy = "call the module once before, or give the layer its sizes"
        elif not parameter.is_floating_point():
            needed, got = "be floating point", str(parameter.dtype)
            remedy = "register it as a buffer"
        elif not parameter.requires_grad:
            needed, got = "be trained", "requires_grad=False"
            remedy = "register it as a buffer, then it is a constant"
        else:
            continue
        raise UnsupportedModelError(
            f"module: parameter {name!r} must {needed}, got {got}; {remedy}"
        )
    if not count:
        raise UnsupportedModelError(
            "module: must have parameters, got none; there is nothing to train"
        )


def _objection(layer: nn.Module, batch_norm: BatchNorm) -> tuple[str, str]:
    """Return what a layer must do and the remedy, or empty strings."""
    per_sample = "treat every sample by itself"
    if isinstance(layer, _InstanceNorm):
        if layer.track_running_stats:
            return per_sample, "use track_running_stats=False or GroupNorm"
    elif isinstance(layer, _BatchNorm):
        if layer.running_mean is None:
            return per_sample, "use GroupNorm; there are no statistics to freeze"
        if batch_norm == "refuse":
            return (
                per_sample,
                "use GroupNorm, or batch_norm='freeze' to make its running statistics "
                "constants",
            )
    elif type(layer).__name__ in ("_SpectralNorm", "SpectralNorm"):
        return "keep no state between calls", "use a plain layer with an l2 term"
    elif isinstance(layer, _RANDOM) or (
        isinstance(layer, _HIDDEN_DROPOUT) and layer.dropout
    ):
        return (
            "draw no random numbers",
            "remove it or set its rate to 0; certificates need repeatable gradients",
        )
    return "", ""
