"""The noise that many sampled steps need together."""

import math
from collections.abc import Callable
from functools import partial

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.rdp import RdpCurve, curve_of
from dfl_unlearn.accounting.renyi import DEFAULT_ORDERS, rdp_to_epsilon
from dfl_unlearn.accounting.sampled import rdp_sampled_gaussian
from dfl_unlearn.errors import InvalidPrivacyParameterError, NumericalError

_WHOLE = tuple(order for order in DEFAULT_ORDERS if order == int(order))
_NEAR = 4  # orders on either side of the best one that a refinement looks at
_WIDTH = 1e-10
_LEAST, _MOST = 1e-6, 1e12


def noise_multiplier_for(
    epsilon: float, delta: float, rate: float = 1.0, steps: int = 1
) -> float:
    """Return the noise multiplier that makes all steps (epsilon, delta)-private.

    What comes out is checked with the accountant itself, so a ledger whose cap is
    ``epsilon`` at ``delta`` has room for a ``SampledGaussianMechanism`` of this noise.
    For one plain Gaussian release ``gaussian_noise_std`` needs less noise.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).
        rate: Probability of a record to join a step, in [0, 1].
        steps: Number of steps, at least 1.

    Returns:
        Noise std over sensitivity, rounded up, within about 1e-9 of the smallest that
        the Rényi bound accepts; 0 if nothing ever joins.

    Raises:
        InvalidPrivacyParameterError: If an argument is outside its range.
        NumericalError: If no multiplier up to 1e12 is enough.

    Example:
        >>> round(noise_multiplier_for(2.1013652717, 1e-5, rate=0.01, steps=1000), 7)
        1.0
    """
    wrong = InvalidPrivacyParameterError
    _validate.number(error=wrong, above=0, epsilon=epsilon)
    _validate.number(error=wrong, above=0, below=1, delta=delta)
    _validate.number(error=wrong, at_least=0, at_most=1, rate=rate)
    _validate.integer(error=wrong, at_least=1, steps=steps)
    if rate == 0:
        return 0.0

    def enough(orders: tuple[float, ...], noise: float) -> bool:
        values = steps * rdp_sampled_gaussian(orders, rate, noise)
        return rdp_to_epsilon(orders, values, delta).epsilon <= epsilon

    # Whole orders are cheap and give an upper bound; fractional ones only around the
    # best order of the present bound. Fewer orders never give less noise.
    noise = _smallest(partial(enough, _WHOLE), start=1.0)
    for _ in range(10):
        best = _curve(rate, noise, steps).to_epsilon(delta).order
        at = DEFAULT_ORDERS.index(best)
        near = DEFAULT_ORDERS[max(0, at - _NEAR) : at + _NEAR + 1]
        if not enough(near, noise * (1 - 1e-9)):
            break
        noise = _smallest(partial(enough, near), start=noise)
    while _curve(rate, noise, steps).to_epsilon(delta).epsilon > epsilon:
        noise *= 1 + _WIDTH
    return noise


def _curve(rate: float, noise: float, steps: int) -> RdpCurve:
    return curve_of(
        SampledGaussianMechanism(rate=rate, noise_multiplier=noise, steps=steps)
    )


def _smallest(enough: Callable[[float], bool], *, start: float) -> float:
    """Return the smallest noise found that is enough, by halving the logarithm.

    Raises:
        NumericalError: If none is.
    """
    high = start
    while not enough(high):
        high *= 2
        if high > _MOST:
            raise NumericalError(
                f"noise_multiplier: must be at most {_MOST:g}, got more for this "
                "claim; ask for a larger epsilon or delta"
            )
    low = high / 2
    while low > _LEAST and enough(low):
        low, high = low / 2, low
    while high > low * (1 + _WIDTH):
        middle = math.sqrt(low) * math.sqrt(high)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
