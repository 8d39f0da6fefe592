r"""Exact Gaussian noise on a grid, from the system's own randomness.

Float noise gives itself away: which numbers ``x + noise`` can be depends on x, and who
knows the seed subtracts the noise. Here a value is rounded to a grid of step g, and
whole multiples of g are added whose distribution is exactly that of the discrete
Gaussian, :math:`P(n) \propto e^{-n^2/(2\sigma_g^2)}` on the integers. Integers and
fractions are the only numbers of the sampler. What is proven:

* *Sampler* [derived, after Canonne, Kamath and Steinke, algorithms 1-3, recalled]. A
  coin of probability :math:`e^{-\gamma}` with :math:`\gamma \le 1` is the parity of
  the first lost coin in a row with chances :math:`\gamma, \gamma/2, \gamma/3, \dots`.
  From it come the discrete Laplace distribution and, by rejection, the Gaussian one.
* *Many at once.* A coin of chance c compares a uniform number with c, bit by bit. Its
  first 62 bits are compared for a whole array with :math:`\lfloor 2^{62} c \rfloor`;
  where they are equal, one number at a time goes on with exact fractions. For
  :math:`c = \gamma/k` the floor is :math:`\lfloor\lfloor 2^{62}\gamma\rfloor/k\rfloor`
  (floors of divisions by integers nest), so nothing is ever rounded.
* *Cost.* Between two values that differ by an integer vector s, the Rényi divergence
  of order :math:`\alpha` is at most :math:`\alpha |s|^2/(2\sigma_g^2)`, as for real
  Gaussians: completing the square leaves
  :math:`\sum_n e^{-(n-x)^2/(2\sigma_g^2)} / \sum_n e^{-n^2/(2\sigma_g^2)}`, which is at
  most 1 for every real x, since the Fourier coefficients of the upper sum are positive.
* *Rounding* moves each of p coordinates by at most g/2 in both worlds, so a shift
  :math:`\Delta` becomes at most :math:`\Delta + g\sqrt p`.

Not covered: how long rejection takes, what stays in memory, and the quality of the
system's generator.

References:
    Canonne, Kamath and Steinke (2020), The discrete Gaussian for differential privacy.
    Mironov (2012), On significance of the least significant bits for differential
    privacy.
"""

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
)

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Gives so many independent, uniform bytes."""

STEPS_PER_STD = 2**10
"""A grid has at least so many steps in one standard deviation."""

MOST_STEPS_PER_STD = 2**40
"""More would be wider than the sampler draws."""

_BITS = 62  # compared at once: floors of chances in [0, 1] fit a signed 64-bit integer
_BUFFER = 2**16
_BATCH = 2**17
_LARGEST_VARIANCE = MOST_STEPS_PER_STD**2  # draws stay far below 2**63
_EXACT = 2**53


def discrete_gaussian(
    variance: Fraction | int, size: int, *, random_bytes: RandomBytes = os.urandom
) -> NDArray[np.int64]:
    r"""Draw integers with probability proportional to :math:`e^{-n^2/(2 v)}`, exactly.

    Args:
        variance: v, a fraction in (0, 2**80]. The distribution's own variance is a
            little less (by less than a millionth from v = 1 on).
        size: How many.
        random_bytes: Where uniform bytes come from. The system's generator is the only
            one fit for release; another one is for tests.

    Returns:
        Independent draws, shape ``(size,)``. With ``os.urandom`` no two calls agree:
        such noise is not repeatable.

    Raises:
        InvalidTypeError: If the variance is a float; its square root is not exact.
        InvalidPrivacyParameterError: If the variance is out of range.

    Example:
        >>> discrete_gaussian(Fraction(25, 4), 3).shape
        (3,)
    """
    if not isinstance(variance, Fraction | int) or isinstance(variance, bool):
        raise InvalidTypeError(
            "variance: must be a Fraction or an int, got "
            f"{type(variance).__name__}; write Fraction(noise_std) ** 2 for the square "
            "of a float"
        )
    if not 0 < variance <= _LARGEST_VARIANCE:
        raise InvalidPrivacyParameterError(
            "variance: must be above 0 and at most 2**80, got "
            f"{_validate.show(variance)}; use a coarser grid"
        )
    _validate.integer(at_least=0, size=size)
    words = _Words(random_bytes)  # of its own: a kept buffer would be copied by a fork
    found = [np.empty(0, dtype=np.int64)]
    missing = size
    while missing > 0:
        # Three of four pass for large variances; what is over at the end is dropped.
        batch = _gaussian_batch(words, variance, min(_BATCH, missing * 4 // 3 + 64))
        found.append(batch[:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def grid_of(noise_std: float) -> float:
    """Return the largest power of two that is at most a 1024th of the noise.

    Args:
        noise_std: Standard deviation of the noise, above 0.

    Returns:
        The step of the grid, in the same units.

    Raises:
        NumericalError: If the step would be too small for float64 to multiply exactly.
    """
    _validate.number(error=InvalidPrivacyParameterError, above=0, noise_std=noise_std)
    # noise_std = mantissa * 2**exponent with a mantissa in [1/2, 1).
    exponent = math.frexp(noise_std)[1] - 1
    exponent -= STEPS_PER_STD.bit_length() - 1
    if exponent < -1022:
        raise NumericalError(
            f"noise_std: must be at least 2**-1012 for a grid below it, got "
            f"{noise_std!r}; rescale the value"
        )
    return math.ldexp(1.0, exponent)


def grid_sensitivity(sensitivity: float, grid: float, coordinates: int) -> float:
    r"""Return the shift of values that were rounded to a grid.

    Args:
        sensitivity: Largest L2 distance before rounding, at least 0.
        grid: Step g of the grid.
        coordinates: Numbers p in a value.

    Returns:
        :math:`\Delta + g\sqrt p`, rounded up; 0 for a value that never changes.
    """
    if sensitivity == 0:
        return 0.0
    return _up(sensitivity + _up(grid * _up(math.sqrt(coordinates))))


def to_grid(value: NDArray[np.float64], grid: float) -> NDArray[np.int64]:
    """Return a value in steps of a grid, rounded half to even; no other rounding.

    Args:
        value: Any shape, finite.
        grid: A power of two.

    Returns:
        Integers of the same shape.

    Raises:
        NumericalError: If one is 2**53 or more, where float64 skips integers.
    """
    with np.errstate(over="ignore"):
        steps = np.rint(value / grid)
    _check_exact(steps, grid)
    return steps.astype(np.int64)


def from_grid(steps: NDArray[np.int64], grid: float) -> NDArray[np.float64]:
    """Return the float64 numbers that are exactly so many steps of a grid.

    Args:
        steps: Integers, any shape.
        grid: A power of two.

    Returns:
        ``steps * grid``, exact.

    Raises:
        NumericalError: If an integer is 2**53 or more, or a product overflows.
    """
    _check_exact(steps, grid)
    with np.errstate(over="ignore"):
        value = steps.astype(np.float64) * grid
    if not np.isfinite(value).all():
        raise NumericalError(
            f"grid: must keep the released value finite, got {grid!r} and an overflow; "
            "rescale the value"
        )
    return value


def grid_noise(
    shape: tuple[int, ...],
    noise_std: float,
    grid: float,
    *,
    random_bytes: RandomBytes = os.urandom,
) -> NDArray[np.int64]:
    """Draw discrete Gaussian noise in steps of a grid.

    Args:
        shape: Of the noise.
        noise_std: Its parameter in the value's units, taken as the exact fraction that
            the float is.
        grid: A power of two.
        random_bytes: As in ``discrete_gaussian``.

    Returns:
        Integers of that shape.
    """
    variance = (Fraction(noise_std) / Fraction(grid)) ** 2
    draws = discrete_gaussian(variance, math.prod(shape), random_bytes=random_bytes)
    return draws.reshape(shape)


class _Words:
    """Uniform 64-bit words, from bytes fetched 64 KiB at a time."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes
        self._kept = np.empty(0, dtype=np.uint64)

    def take(self, count: int, bits: int) -> NDArray[np.int64]:
        """Return ``count`` uniform integers of ``bits`` bits, at most 63."""
        parts = []
        missing = count
        while missing > len(self._kept):
            parts.append(self._kept)
            missing -= len(self._kept)
            self._kept = np.frombuffer(self._random_bytes(_BUFFER), dtype="<u8")
        parts.append(self._kept[:missing])
        self._kept = self._kept[missing:]
        words = np.concatenate(parts) >> np.uint64(64 - bits)
        return words.astype(np.int64)


class _Chances:
    r"""Exact numbers :math:`\gamma = a / b` in [0, 1], one per place of an array.

    Attributes:
        floors: :math:`\lfloor 2^{62} \gamma \rfloor`.
    """

    def __init__(self, numerators: list[int], which: NDArray[np.intp], b: int) -> None:
        """Take ``numerators[which[i]] / b`` as the number at place i."""
        self._numerators, self._which, self._b = numerators, which, b
        floors = [(a << _BITS) // b for a in numerators]
        self.floors = np.array(floors, dtype=np.int64)[which]

    def exact(self, place: int) -> Fraction:
        """Return the number at a place."""
        return Fraction(self._numerators[self._which[place]], self._b)


def _gaussian_batch(
    words: _Words, variance: Fraction | int, tries: int
) -> NDArray[np.int64]:
    """Return the draws that pass out of so many tries (algorithm 3)."""
    p, q = variance.numerator, variance.denominator
    t = math.isqrt(p // q) + 1
    drawn = _laplace(words, t, tries)
    # Each passes with chance exp(-gamma), gamma = (|y| - v/t)^2 / (2 v) = a / b.
    sizes, which = np.unique(np.abs(drawn), return_inverse=True)
    b = 2 * p * q * t * t
    parts = [divmod((y * t * q - p) ** 2, b) for y in sizes.tolist()]
    # A coin of exp(-1) for every whole of gamma, one more for the rest.
    whole = np.array([one for one, _ in parts], dtype=np.int64)[which]
    alive = np.ones(tries, dtype=np.bool_)
    while (trial := np.flatnonzero(alive & (whole > 0))).size:
        alive[trial] = _coins_of_one(words, len(trial))
        whole[trial] -= 1
    live = np.flatnonzero(alive)
    rest = _Chances([part for _, part in parts], which[live], b)
    return drawn[live[_exp_coins(words, rest)]]


def _laplace(words: _Words, t: int, size: int) -> NDArray[np.int64]:
    """Draw integers with probability proportional to exp(-|n|/t) (algorithm 2)."""
    found = [np.empty(0, dtype=np.int64)]
    missing = size
    while missing > 0:
        below = _uniform(words, t, missing * 7 // 4 + 16)
        values, which = np.unique(below, return_inverse=True)
        passed = _exp_coins(words, _Chances(values.tolist(), which, t))
        drawn = below[passed] + t * _geometric(words, int(passed.sum()))
        sign = 1 - 2 * words.take(len(drawn), 1)
        drawn = (sign * drawn)[(drawn != 0) | (sign > 0)]  # zero has one sign only
        found.append(drawn[:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def _uniform(words: _Words, t: int, tries: int) -> NDArray[np.int64]:
    """Draw uniform integers in 0 .. t-1, as many as pass out of so many tries."""
    drawn = words.take(tries, max(1, (t - 1).bit_length()))
    return drawn[drawn < t]


def _geometric(words: _Words, size: int) -> NDArray[np.int64]:
    """Count, for each place, coins of chance 1/e won before the first lost one."""
    count = np.zeros(size, dtype=np.int64)
    live = np.arange(size)
    while live.size:
        live = live[_coins_of_one(words, len(live))]
        count[live] += 1
    return count


def _coins_of_one(words: _Words, size: int) -> NDArray[np.bool_]:
    """Toss coins of chance exp(-1)."""
    return _exp_coins(words, _Chances([1], np.zeros(size, dtype=np.intp), 1))


def _exp_coins(words: _Words, gamma: _Chances) -> NDArray[np.bool_]:
    r"""Toss a coin of chance :math:`e^{-\gamma}` at each place (algorithm 1)."""
    won = np.empty(len(gamma.floors), dtype=np.bool_)
    live = np.arange(len(won))
    k = 1
    while live.size:
        floors = gamma.floors[live] // k
        drawn = words.take(len(live), _BITS)
        more = drawn < floors
        for at in np.flatnonzero(drawn == floors).tolist():
            more[at] = _below_rest(words, gamma.exact(live[at]) / k)
        won[live[~more]] = k % 2 == 1
        live = live[more]
        k += 1
    return won


def _below_rest(words: _Words, chance: Fraction) -> bool:
    """Tell whether a uniform number whose first bits equal a chance's is below it."""
    while True:
        chance = chance * 2**_BITS
        chance -= math.floor(chance)
        if chance == 0:
            return False
        drawn = int(words.take(1, _BITS)[0])
        floor: int = math.floor(chance * 2**_BITS)
        if drawn != floor:
            return drawn < floor


def _check_exact(steps: NDArray[np.float64] | NDArray[np.int64], grid: float) -> None:
    if not (np.abs(steps) < _EXACT).all():
        raise NumericalError(
            f"value: must be below 2**53 steps of the grid {grid!r}, got "
            f"{float(np.abs(steps).max()):.3g}; nothing was sent: use more noise or "
            "rescale the value"
        )


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)
