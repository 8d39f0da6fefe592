"""What happened: noisy releases, and the neighbouring relation they are about.

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
from typing import Any, Literal, TypeAlias, get_args

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


@dataclass(frozen=True, kw_only=True)
class SampledGaussianMechanism:
    """Gaussian noise in every one of some steps that a record joins by a hidden coin.

    Whoever builds one says that every record joined every step independently with the
    same probability (Poisson sampling), that nobody saw which, and that noise was added
    in every step, also in those that nothing joined.
    ``subsampling.sampled_gaussian`` asks for these facts and refuses without them.

    Attributes:
        rate: Probability of joining a step, in [0, 1].
        noise_multiplier: Noise std over sensitivity, at least 0; 0 gives no privacy.
        steps: Number of steps, at least 1, all with the same rate and noise.
        adjacency: The neighbouring relation that the sensitivity is about; never
            ``replace_one``, for which the bound is not proven: use
            ``RdpCurve.to_adjacency``.
    """

    rate: float
    noise_multiplier: float
    steps: int = 1
    adjacency: Adjacency = "add_remove"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            NumericalError: If the multiplier is NaN or infinite.
            InvalidPrivacyParameterError: If a number is outside its range.
            InvalidTypeError: If it is no number.
            InvalidArgumentError: If the relation is unknown or ``replace_one``.
        """
        wrong = InvalidPrivacyParameterError
        _validate.number(error=wrong, at_least=0, at_most=1, rate=self.rate)
        check_scale(noise_multiplier=self.noise_multiplier)
        _validate.integer(error=wrong, at_least=1, steps=self.steps)
        _validate.one_of(("unlearn", "add_remove"), adjacency=self.adjacency)
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "steps", int(self.steps))

    @property
    def mu(self) -> float | None:
        """The one Gaussian that equals all steps; None if coins hide who joined."""
        if self.rate == 0:
            return 0.0
        if self.rate < 1:
            return None
        noise = self.noise_multiplier
        return (
            math.nextafter(math.sqrt(self.steps) / noise, math.inf)
            if noise
            else math.inf
        )


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussianMechanism:
    """A value on a grid, released with discrete Gaussian noise on the same grid.

    Attributes:
        noise_std: Parameter of the noise in the value's units: on the grid's integers
            it is ``noise_std / grid``. The noise's own standard deviation is a little
            below it.
        grid: Distance of the grid's points, a power of two.
        sensitivity: Largest L2 distance *between the values on the grid* of neighbours:
            that of the real values, plus ``grid * sqrt(P)`` for P coordinates that were
            rounded to the grid. Nothing is added to it here.
        adjacency: The neighbouring relation that the sensitivity is about.
    """

    noise_std: float
    grid: float
    sensitivity: float
    adjacency: Adjacency = "unlearn"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            NumericalError: If a number is NaN or infinite.
            InvalidPrivacyParameterError: If a scale is negative, or the grid is no
                power of two.
            InvalidTypeError: If it is no number.
            InvalidArgumentError: If the relation is unknown.
        """
        check_scale(
            noise_std=self.noise_std, sensitivity=self.sensitivity, grid=self.grid
        )
        if math.frexp(self.grid)[0] != 0.5:
            raise InvalidPrivacyParameterError(
                f"grid: must be a power of two, got {self.grid!r}; only then are sums "
                "on the grid exact"
            )
        _validate.one_of(ADJACENCIES, adjacency=self.adjacency)
        for name in ("noise_std", "grid", "sensitivity"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def rho(self) -> float:
        """Cost as zero-concentrated privacy, Delta^2 / (2 sigma^2)."""
        return 0.5 / self.noise_multiplier**2 if self.noise_multiplier else math.inf

    @property
    def noise_multiplier(self) -> float:
        """Noise over shift, sigma / Delta; infinite without shift."""
        return self.noise_std / self.sensitivity if self.sensitivity else math.inf


Mechanism: TypeAlias = (
    GaussianMechanism | SampledGaussianMechanism | DiscreteGaussianMechanism
)


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
