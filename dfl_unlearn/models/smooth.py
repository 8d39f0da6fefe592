"""A rectifier with a Lipschitz derivative, for bounds that need smoothness.

Certificates of rewinding need losses whose gradients are Lipschitz; with ReLU, whose
slope jumps, no constant exists. SmeLU is ReLU outside of a band around 0 and a parabola
inside it, so its derivative is continuous and changes at rate ``1/(2 beta)`` at most.

References:
    Shamir, Lin and Coviello (2020), Smooth activations and reproducibility in deep
    networks (the activation; [recalled]).
    Mu and Klabjan (2025), Rewind-to-Delete, appendix B.1 (beta = 0.5; [paper]).
"""

import torch
from torch import Tensor, nn

from dfl_unlearn import _validate


class SmeLU(nn.Module):
    r"""Smooth rectifier: 0 up to -beta, x from beta on, a parabola between them.

    ``(x + beta)^2 / (4 beta)`` where abs(x) < beta.

    Both ends are exact, not the limits of a formula. The second derivative is
    ``1/(2 beta)`` inside the band and 0 outside, also where autograd takes it.

    Attributes:
        beta: Half the width of the band, > 0.

    Example:
        >>> SmeLU(beta=0.5)(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0.0000, 0.1250, 2.0000])
    """

    def __init__(self, beta: float = 0.5) -> None:
        """Take the band."""
        _validate.number(beta=beta, above=0)
        super().__init__()
        self.beta = beta

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activation, shape and type of ``inputs``."""
        # The parabola sees only its band, so that nothing overflows outside of it.
        band = inputs.clamp(-self.beta, self.beta)
        inside = (band + self.beta).square() / (4 * self.beta)
        return torch.where(inputs.abs() < self.beta, inside, inputs.clamp(min=0.0))

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        return f"beta={self.beta:g}"


def rectifier(smooth: bool) -> nn.Module:
    """Return ``SmeLU`` or ``ReLU``."""
    _validate.of_type(bool, smooth=smooth)
    return SmeLU() if smooth else nn.ReLU()
