"""Fresh parameters, drawn by the layers' own rules from a given generator."""

import torch
from torch import nn


def reset_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Let every layer draw its parameters from a generator, children first.

    ``reset_parameters`` of torch's and other people's layers takes no generator: it
    reads torch's global one. So this, and nothing else in the package, puts the
    generator's state in the global one's place and restores it afterwards.

    Args:
        module: Its parameters are overwritten.
        generator: On the CPU; its own state stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        for layer in reversed(list(module.modules())):
            reset = getattr(layer, "reset_parameters", None) or getattr(
                layer, "_reset_parameters", None
            )
            if callable(reset):
                reset()
