r"""Rényi bounds as numbers: what a Gaussian costs, and what bounds say as epsilon.

Every number here errs upwards: formulas are followed by a step of a few units in the
last place.

References:
    Mironov (2017), Rényi differential privacy.
    Canonne, Kamath and Steinke (2020), The discrete Gaussian for differential privacy,
    proposition 12 (conversion).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    NumericalError,
)

DEFAULT_ORDERS: tuple[float, ...] = (
    *(i / 10 for i in range(11, 110)),
    *(float(i) for i in range(11, 65)),
    *map(float, (80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)),
)

_ULP = 8 * np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True)
class EpsilonResult:
    """An epsilon with the order that gave it.

    Attributes:
        epsilon: Upper bound, at least 0; infinite when the curve proves nothing.
        order: The Rényi order of the smallest bound.
        order_at_edge: Whether that order is the first or last of the grid, so that a
            wider grid might give less. Never set for an epsilon of 0 or infinity.
    """

    epsilon: float
    order: float
    order_at_edge: bool

    def __str__(self) -> str:
        """Return the number with what a reader must know about it."""
        if self.epsilon == 0:
            return "0 (total variation ≤ δ)"
        edge = " (order grid exhausted: bound may be loose)"
        return f"{self.epsilon:.10g}" + (edge if self.order_at_edge else "")


def rdp_gaussian(orders: ArrayLike, noise_multiplier: float) -> NDArray[np.float64]:
    r"""Return the Rényi divergence of a Gaussian mechanism, :math:`\alpha/(2\nu^2)`.

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        noise_multiplier: Noise std over sensitivity, at least 0; 0 costs infinity at
            every order, infinity (a shift of 0) costs nothing.

    Returns:
        The divergences rounded up, shape ``(A,)``.

    Raises:
        InvalidPrivacyParameterError: If the multiplier is negative or NaN.
    """
    alpha = np.asarray(orders, dtype=np.float64)
    if not noise_multiplier >= 0:
        raise InvalidPrivacyParameterError(
            f"noise_multiplier: must be >= 0, got {noise_multiplier!r}"
        )
    if math.isinf(noise_multiplier):
        return np.zeros_like(alpha)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        values = alpha / 2 / noise_multiplier / noise_multiplier
        return np.nextafter(values * (1 + _ULP), np.inf)


def rdp_to_epsilon(
    orders: ArrayLike, values: ArrayLike, delta: float, *, variation: bool = True
) -> EpsilonResult:
    r"""Return the smallest epsilon that Rényi bounds prove at delta.

    .. math:: \varepsilon(\delta) = \max\Bigl(0, \min_\alpha\; v(\alpha)
        + \ln(1 - 1/\alpha) - \frac{\ln\delta + \ln\alpha}{\alpha - 1}\Bigr)

    It is 0 as soon as :math:`\sqrt{1 - e^{-v(\alpha)}} < \delta` at some order, since
    the total variation is then below delta (Bretagnolle and Huber).

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        values: Bounds at these orders, shape ``(A,)``; infinite ones are skipped.
        delta: In [0, 1); at 0 the result is infinite unless all values are 0.
        variation: Whether the bound on the total variation counts too.

    Returns:
        Epsilon rounded up, with its order.

    Raises:
        InvalidPrivacyParameterError: If delta is outside [0, 1).
    """
    _validate.number(
        error=InvalidPrivacyParameterError, at_least=0, below=1, delta=delta
    )
    alpha, v = _pair(orders, values)
    nothing = not v.any()
    close = np.expm1(-v) + delta * delta > 0
    if nothing or (variation and close.any()):
        order = float(alpha[0 if nothing else int(close.argmax())])
        return EpsilonResult(epsilon=0.0, order=order, order_at_edge=False)
    if delta == 0 or not np.isfinite(v).any():
        return EpsilonResult(
            epsilon=math.inf, order=float(alpha[0]), order_at_edge=False
        )
    first, second = np.log1p(-1 / alpha), np.log(alpha) / (alpha - 1)
    third = math.log(delta) / (alpha - 1)
    bounds = v + first - second - third
    bounds += _ULP * (v - first + second - third)
    best = int(bounds.argmin())
    epsilon = max(0.0, float(bounds[best]))
    return EpsilonResult(
        epsilon=epsilon,
        order=float(alpha[best]),
        order_at_edge=epsilon > 0 and best in (0, len(alpha) - 1),
    )


def rdp_to_delta(orders: ArrayLike, values: ArrayLike, epsilon: float) -> float:
    r"""Return the smallest delta that Rényi bounds prove at epsilon.

    .. math:: \delta(\varepsilon) = \min\Bigl(1, \min_\alpha
        \tfrac{1}{\alpha} e^{(\alpha-1)(v(\alpha) - \varepsilon + \ln(1-1/\alpha))},
        \min_\alpha \sqrt{1 - e^{-v(\alpha)}}\Bigr)

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        values: Bounds at these orders, shape ``(A,)``.
        epsilon: At least 0.

    Returns:
        Delta in [0, 1], rounded up.

    Raises:
        InvalidPrivacyParameterError: If epsilon is negative or not finite.
    """
    _validate.number(error=InvalidPrivacyParameterError, at_least=0, epsilon=epsilon)
    alpha, v = _pair(orders, values)
    variation = np.sqrt(-np.expm1(-v)) * (1 + _ULP)
    with np.errstate(over="ignore"):
        shrink = np.log1p(-1 / alpha)
        logs = (alpha - 1) * (v - epsilon + shrink) - np.log(alpha)
        logs += _ULP * ((alpha - 1) * (v + epsilon - shrink) + np.log(alpha))
        delta = float(min(1.0, np.exp(logs).min(), variation.min()))
    return max(delta, math.ulp(0.0)) if v.any() else 0.0  # never underflows to 0


def _pair(
    orders: ArrayLike, values: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    alpha = np.asarray(orders, dtype=np.float64)
    v = np.asarray(values, dtype=np.float64)
    if alpha.ndim != 1 or alpha.shape != v.shape or not alpha.size:
        raise InvalidArgumentError(
            "values: must have one value for each order, "
            f"got shapes {v.shape} and {alpha.shape}"
        )
    if not ((alpha > 1).all() and (v >= 0).all()):  # False for NaN too
        raise NumericalError(
            "values: must be at least 0 at orders above 1, got "
            f"{_validate.show(v.tolist())}; a curve with NaN or negative values "
            "proves nothing"
        )
    return alpha, v
