"""What happened: a noisy release, and the neighbouring relation it is about.

Mechanisms say what was done; what it costs is computed from them in ``rdp`` and
``gaussian``. Costs of different relations never add up, so every mechanism names its
own:

==============  ==================================================  =================
relation        neighbours                                          shift of a sum of
                                                                    rows clipped to C
==============  ==================================================  =================
``unlearn``     D with S unlearned; a world that never had S        the bound Delta(S)
``add_remove``  one record, or one peer's data, more or less        C
``replace_one`` one record exchanged                                2 C
==============  ==================================================  =================
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidPrivacyParameterError, NumericalError

Adjacency = Literal["unlearn", "add_remove", "replace_one"]
ADJACENCIES: tuple[Adjacency, ...] = get_args(Adjacency)


@dataclass(frozen=True, kw_only=True)
class GaussianMechanism:
    """A value of known L2 sensitivity, released with Gaussian noise of known scale.

    Attributes:
        noise_std: Standard deviation of the noise per coordinate, in the value's units;
            0 gives no privacy at all unless the sensitivity is 0 too.
        sensitivity: Largest L2 distance of the value between neighbours.
        adjacency: The neighbouring relation that the sensitivity is about.
    """

    noise_std: float
    sensitivity: float
    adjacency: Adjacency = "unlearn"

    def __post_init__(self) -> None:
        """Refuse what is not a finite, non-negative scale.

        Raises:
            NumericalError: If a number is NaN or infinite.
            InvalidPrivacyParameterError: If a number is negative.
            InvalidTypeError: If it is no number.
            InvalidArgumentError: If the relation is unknown.
        """
        check_scale(noise_std=self.noise_std, sensitivity=self.sensitivity)
        _validate.one_of(ADJACENCIES, adjacency=self.adjacency)
        object.__setattr__(self, "noise_std", float(self.noise_std))
        object.__setattr__(self, "sensitivity", float(self.sensitivity))

    @property
    def mu(self) -> float:
        """Shift over noise, Delta / sigma; 0 without shift, infinite without noise."""
        if self.sensitivity == 0:
            return 0.0
        return self.sensitivity / self.noise_std if self.noise_std else math.inf

    @property
    def noise_multiplier(self) -> float:
        """Noise over shift, sigma / Delta; infinite without shift."""
        return self.noise_std / self.sensitivity if self.sensitivity else math.inf


def check_scale(**named: Any) -> None:
    """Check that each named noise scale or sensitivity is finite and not negative.

    Args:
        **named: The values under their argument names.

    Raises:
        NumericalError: If a value is NaN or infinite.
    """
    for name, value in named.items():
        _validate.of_type((int, float), **{name: value})
        if not math.isfinite(value):
            raise NumericalError(
                f"{name}: must be finite, got {value!r}; nothing was sent, find out "
                "where the computation before it diverged"
            )
        _validate.number(
            error=InvalidPrivacyParameterError, at_least=0, **{name: value}
        )
