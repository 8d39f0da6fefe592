r"""What Gaussian noise costs when the data took part with a hidden probability only.

A record (or, in a token walk, the whole forget set) takes part in a step with
probability q, by a coin that nobody sees, and noise is added whether it did or not:

.. math:: v(\alpha) = \frac{\ln A_\alpha}{\alpha - 1}, \quad
    A_\alpha = \mathbb{E}_{x \sim N(0, \nu^2)}\bigl[r(x)^\alpha\bigr], \quad
    r(x) = 1 - q + q\, e^{(2x - 1)/(2\nu^2)}.

This bounds both directions of the divergence under ``add_remove`` (and under
``unlearn`` where the step without the data is the reference's) [recalled]; the tests
integrate both. It is no bound when the sampled set is visible or has a fixed size, or
when noise is added only in the steps that use the data.

The formulas are those of Mironov, Talwar and Zhang, in forms that lose no digits
[derived]: :math:`\mathbb{E}[r] = 1`, so that :math:`A_\alpha - 1 =
\mathbb{E}[r^\alpha - 1 - \alpha(r - 1)]` has a non-negative integrand, and for integer
orders only positive terms. Their alternating series for fractional orders is not used:
it cancels at large orders, down to negative values (Opacus 1.6: rate 0.4, noise 12,
order 58.75).

References:
    Mironov, Talwar and Zhang (2019), Rényi differential privacy of the sampled Gaussian
    mechanism, section 3.3 [recalled].
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp

from dfl_unlearn import _validate
from dfl_unlearn.accounting.renyi import rdp_gaussian
from dfl_unlearn.errors import InvalidArgumentError, InvalidPrivacyParameterError

_SAFETY = 1e-8  # over the errors measured against 30 digits: 1e-12, fractional 4e-9
_LOWEST = 1.0001  # below it the integrand has too few digits; values grow with order
_POINTS = 8001
_MOST_POINTS = 200_001


def rdp_sampled_gaussian(
    orders: ArrayLike, rate: float, noise_multiplier: float
) -> NDArray[np.float64]:
    r"""Return the Rényi divergence of a Gaussian mechanism on Poisson-sampled data.

    Args:
        orders: Rényi orders, each finite and above 1, shape ``(A,)``.
        rate: Probability q that the data takes part, in [0, 1]; 0 costs nothing, 1 is
            the Gaussian mechanism.
        noise_multiplier: Noise std over sensitivity, at least 0; 0 costs infinity,
            infinity (a shift of 0) costs nothing.

    Returns:
        Upper bounds of both directions, shape ``(A,)``: above the exact divergence by
        a factor of about 1 + 1e-8. Where the integral of a fractional order cannot be
        trusted, the chord of :math:`\ln A` between the two integer orders around it,
        which is above because :math:`\ln A_\alpha` is convex.

    Raises:
        InvalidPrivacyParameterError: If the rate is outside [0, 1] or the multiplier
            negative or NaN.
        InvalidArgumentError: If an order is not finite and above 1.

    Example:
        >>> print(rdp_sampled_gaussian([2.5, 8.0], rate=0.01, noise_multiplier=1.0))
        [0.00021758 0.00089364]
    """
    alpha = np.asarray(orders, dtype=np.float64)
    if alpha.ndim != 1 or not ((alpha > 1) & (alpha < np.inf)).all():
        raise InvalidArgumentError(
            "orders: must be a list of finite numbers above 1, "
            f"got {_validate.show(orders)}; use DEFAULT_ORDERS"
        )
    _validate.number(
        error=InvalidPrivacyParameterError, at_least=0, at_most=1, rate=rate
    )
    if rate == 1 or not 0 < noise_multiplier < math.inf:  # checks the multiplier too
        values = rdp_gaussian(alpha, noise_multiplier)
        return np.zeros_like(alpha) if rate == 0 else values
    if rate == 0:
        return np.zeros_like(alpha)
    unique, place = np.unique(alpha, return_inverse=True)
    costs = _values(tuple(unique.tolist()), float(rate), float(noise_multiplier))
    # Never above the cost without sampling (divergences are quasi-convex), which the
    # chord may be.
    full = rdp_gaussian(alpha, noise_multiplier)
    return np.minimum(np.array(costs, dtype=np.float64)[place], full)


@lru_cache(maxsize=256)
def _values(orders: tuple[float, ...], rate: float, noise: float) -> tuple[float, ...]:
    whole: dict[int, float] = {}

    def at(n: int) -> float:  # ln A_n
        if n not in whole:
            whole[n] = _log_moment_integer(n, rate, noise)
        return whole[n]

    values = []
    for order in orders:
        log_moment = at(int(order)) if order == int(order) else math.nan
        if math.isnan(log_moment):
            log_moment = _fenced(order, at, rate, noise)
        value = max(log_moment, 0.0) / (max(order, _LOWEST) - 1) * (1 + _SAFETY)
        values.append(math.nextafter(value, math.inf))
    # Rounding may not make a higher order cheaper.
    return tuple(np.maximum.accumulate(values).tolist())


def _log_moment_integer(n: int, rate: float, noise: float) -> float:
    r"""Return ln A_n: :math:`\sum_i C(n,i)(1-q)^{n-i}q^i\,expm1((i^2-i)/(2\nu^2))`."""
    if n == 1:
        return 0.0
    i = np.arange(2, n + 1, dtype=np.float64)
    log_x = np.log(i * (i - 1) / 2) - 2 * math.log(noise)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        x = np.exp(log_x)
        log_grown = np.where(x < 1e-8, log_x + x, x + np.log(-np.expm1(-x)))
    if np.isinf(x).any():
        return math.inf
    log_binomial = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1)
    log_share = i * math.log(rate) + (n - i) * math.log1p(-rate)
    return _log1p_exp(float(logsumexp(log_binomial + log_share + log_grown)))


def _fenced(
    order: float, at: Callable[[int], float], rate: float, noise: float
) -> float:
    """Return ln A at a fractional order: the integral, or the chord above it."""
    order = max(order, _LOWEST)
    n = math.floor(order)
    chord = (n + 1 - order) * at(n) + (order - n) * at(n + 1)
    low = at(n) / (n - 1) * (order - 1) if n >= 2 else 0.0
    integral = _log_moment_fractional(order, rate, noise)
    return integral if low <= integral <= chord else chord  # the chord for NaN too


def _log_moment_fractional(order: float, rate: float, noise: float) -> float:
    """Return ln A by the trapezoid rule, NaN where its points would not suffice.

    The integrand is analytic in a strip of half-width pi nu^2 around the real line (the
    zeros of r bound it) and has Gaussian tails, so the error falls exponentially in
    both over the distance of the points.
    """
    low, high = -14 * noise, 14 * noise + order
    with np.errstate(over="ignore"):
        needed = np.ceil((high - low) / (0.5 * min(noise, noise * noise))) + 1
    if not needed <= _MOST_POINTS:
        return math.nan
    x = np.linspace(low, high, max(_POINTS, int(needed)))
    y = (x - 0.5) / noise / noise
    log_q, log_rest = math.log(rate), math.log1p(-rate)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        u = rate * np.expm1(y)
        log_r = np.where(y > 30, np.logaddexp(log_rest, log_q + y), np.log1p(u))
        a = order
        series = 1 + (a - 2) / 3 * u * (1 + (a - 3) / 4 * u * (1 + (a - 4) / 5 * u))
        small = math.log(a * (a - 1) / 2) + 2 * np.log(np.abs(u)) + np.log(series)
        middle = np.log(np.expm1(a * log_r) - a * u)
        less = np.expm1(math.log(a) - (a - 1) * log_r)  # a r / r^a - 1
        large = a * log_r + np.log((a - 1) * np.exp(-a * log_r) - less)
    log_g = np.where(np.abs(u) < min(1e-3, 1e-2 / a), small, middle)
    log_g = np.where(a * log_r > 40, large, log_g)
    log_density = -0.5 * (x / noise) ** 2 - math.log(noise * math.sqrt(2 * math.pi))
    total = float(logsumexp(log_g + log_density)) + math.log(x[1] - x[0])
    return _log1p_exp(total)


def _log1p_exp(s: float) -> float:
    return math.log1p(math.exp(s)) if s < 30 else s + math.log1p(math.exp(-s))
