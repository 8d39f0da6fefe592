r"""Exact privacy of Gaussian noise: epsilon, delta and the scale they need.

Two releases whose means differ by :math:`\Delta` under noise :math:`\sigma` are told
apart exactly as well as :math:`N(0, 1)` and :math:`N(\mu, 1)` with
:math:`\mu = \Delta/\sigma`; K such releases, also adaptive ones, are one with
:math:`\mu = \sqrt{\sum_k \mu_k^2}`. This is exact composition, not the central-limit
estimate of the same name, which is never used. Every number errs upwards.

References:
    Balle and Wang (2018), Improving the Gaussian mechanism for differential privacy,
    theorem 8.
    Dong, Roth and Su (2022), Gaussian differential privacy, corollary 3.3.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.special import log_ndtr

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import check_scale
from dfl_unlearn.accounting.renyi import (
    DEFAULT_ORDERS,
    rdp_gaussian,
    rdp_to_epsilon,
)
from dfl_unlearn.errors import InvalidPrivacyParameterError, NumericalError

Calibration = Literal["analytic", "classic", "rdp"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)

_ULP = 16 * float(np.finfo(np.float64).eps)
_TINY = math.ulp(0.0)
_STEP = 1e-12


def gaussian_delta(mu: float, epsilon: float) -> float:
    r"""Return the exact delta of a Gaussian release at epsilon.

    .. math:: \delta = \Phi(\mu/2 - \varepsilon/\mu)
        - e^{\varepsilon}\,\Phi(-\mu/2 - \varepsilon/\mu)

    Args:
        mu: Shift over noise std, at least 0; may be infinite.
        epsilon: At least 0.

    Returns:
        Delta in [0, 1], above the real value by its rounding error only.

    Raises:
        InvalidPrivacyParameterError: If an argument is negative or NaN, or epsilon
            infinite.

    Example:
        >>> round(gaussian_delta(1.0, 2.0), 10)
        0.0209236358
    """
    _check_mu(mu)
    _validate.number(error=InvalidPrivacyParameterError, at_least=0, epsilon=epsilon)
    if mu == 0:
        return 0.0
    if mu == math.inf:
        return 1.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = float(log_ndtr(-mu / 2 - epsilon / mu))
    if math.isinf(first):  # below 1e-300 by far: the smallest number is above it
        return _TINY
    # exp(first) - exp(epsilon + second), as a product that loses no digits; the
    # errors of the two logarithms are a few units in the last place of themselves.
    slack = _ULP * (1 + epsilon - first - second)
    gap = min(0.0, epsilon + second - first) - slack
    delta = math.exp(min(0.0, first + slack)) * -math.expm1(gap)
    return min(1.0, max(delta, _TINY))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of a Gaussian release at delta.

    Args:
        mu: Shift over noise std, at least 0; may be infinite.
        delta: In [0, 1); at 0 the result is infinite unless ``mu`` is 0.

    Returns:
        The smallest epsilon with ``gaussian_delta(mu, epsilon) <= delta``.

    Raises:
        InvalidPrivacyParameterError: If ``mu`` is negative or NaN, or delta outside
            [0, 1).

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 10)
        4.3771780957
    """
    _check_mu(mu)
    _validate.number(
        error=InvalidPrivacyParameterError, at_least=0, below=1, delta=delta
    )
    return _epsilon(float(mu), float(delta))


@lru_cache(maxsize=1024)
def _epsilon(mu: float, delta: float) -> float:
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if delta == 0 or mu == math.inf:
        return math.inf
    high = mu * mu / 2 + mu
    while high < math.inf and gaussian_delta(mu, high) > delta:
        high *= 2
    if high == math.inf:
        return math.inf
    return _bisect(lambda epsilon: gaussian_delta(mu, epsilon) <= delta, 0.0, high)


def gaussian_noise_std(
    epsilon: float,
    delta: float,
    sensitivity: float,
    method: Calibration = "analytic",
    *,
    reproduce: bool = False,
) -> float:
    r"""Return the noise std that makes one Gaussian release (epsilon, delta)-private.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).
        sensitivity: L2 shift between neighbours, at least 0; 0 needs no noise.
        method: ``analytic`` is exact; ``rdp`` goes through the Rényi bound and is
            larger; ``classic`` is :math:`\Delta\sqrt{2\ln(1.25/\delta)}/\varepsilon`,
            proven for epsilon < 1 only: at epsilon 10 and delta 1e-5 its real delta is
            2.27e-5.
        reproduce: Evaluate ``classic`` at any epsilon, for published tables; such a
            noise never supports more than a heuristic status.

    Returns:
        The standard deviation in the units of the sensitivity, rounded up.

    Raises:
        InvalidPrivacyParameterError: If epsilon or delta is outside its range, the
            sensitivity negative, or ``classic`` asked for epsilon >= 1.
        NumericalError: If the sensitivity, or the result, is not finite.

    Example:
        >>> round(gaussian_noise_std(1.0, 1e-5, sensitivity=1.0), 10)
        3.7306316348
    """
    _validate.number(error=InvalidPrivacyParameterError, above=0, epsilon=epsilon)
    _validate.number(error=InvalidPrivacyParameterError, above=0, below=1, delta=delta)
    _validate.one_of(CALIBRATIONS, method=method)
    check_scale(sensitivity=sensitivity)
    if method == "classic":
        if epsilon >= 1 and not reproduce:
            raise InvalidPrivacyParameterError(
                "epsilon: must be below 1 with method='classic', got "
                f"{epsilon!r}; use method='analytic' (classic adds too little noise "
                "at large epsilon)"
            )
        std = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    elif sensitivity == 0:
        return 0.0
    elif method == "rdp":
        std = sensitivity * _smallest_scale(
            lambda scale: _rdp_epsilon(scale, delta) <= epsilon
        )
    else:
        std = sensitivity * _analytic_scale(float(epsilon), float(delta))
        while std < math.inf and gaussian_delta(sensitivity / std, epsilon) > delta:
            std = max(std * (1 + _STEP), math.nextafter(std, math.inf))
    if not math.isfinite(std):
        raise NumericalError(
            f"noise_std: must be finite, got {std!r} for epsilon={epsilon!r}, "
            f"delta={delta!r}, sensitivity={sensitivity!r}; rescale the value"
        )
    return std


def compose_gaussians(mus: Iterable[float]) -> float:
    r"""Return the one Gaussian that equals several seen together.

    Args:
        mus: Shift over noise std of each release, at least 0.

    Returns:
        :math:`\sqrt{\sum_k \mu_k^2}`, rounded up; 0 for no release.

    Raises:
        InvalidPrivacyParameterError: If one is negative or NaN.

    Example:
        >>> compose_gaussians([3.0, 4.0]) >= 5.0
        True
    """
    shifts = [mu for mu in mus if mu != 0]
    for mu in shifts:
        _check_mu(mu)
    if len(shifts) < 2:
        return float(sum(shifts))
    return math.nextafter(math.hypot(*shifts), math.inf)


def _check_mu(mu: float) -> None:
    if not mu >= 0:
        raise InvalidPrivacyParameterError(f"mu: must be >= 0, got {mu!r}")


def _rdp_epsilon(scale: float, delta: float) -> float:
    values = rdp_gaussian(DEFAULT_ORDERS, scale)
    return rdp_to_epsilon(DEFAULT_ORDERS, values, delta).epsilon


@lru_cache(maxsize=1024)
def _analytic_scale(epsilon: float, delta: float) -> float:
    return _smallest_scale(lambda scale: gaussian_delta(1 / scale, epsilon) <= delta)


def _smallest_scale(enough: Callable[[float], bool]) -> float:
    """Return the smallest noise over shift that is enough, by bisection, rounded up."""
    low = high = 1.0
    while high < math.inf and not enough(high):
        low, high = high, high * 2
    if high == math.inf:
        return high
    while low > _TINY and enough(low):
        low, high = low / 2, low
    return _bisect(enough, low, high, width=_STEP) * (1 + _STEP)


def _bisect(
    holds: Callable[[float], bool], low: float, high: float, *, width: float = 0.0
) -> float:
    """Return the smallest point found where ``holds``; it does at ``high``.

    Halves the interval until it is ``width`` wide relative to its upper end, or until
    no number lies between its ends.
    """
    while high - low > width * high:
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
