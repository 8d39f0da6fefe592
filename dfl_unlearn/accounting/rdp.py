r"""What a mechanism costs: Rényi curves, and what they say as epsilon and delta.

A curve holds upper bounds :math:`\varepsilon(\alpha)` on the Rényi divergence of order
:math:`\alpha` between what two neighbours release. Curves of releases that are seen
together add. Every number here errs upwards: formulas are followed by a step of a few
units in the last place.

References:
    Mironov (2017), Rényi differential privacy.
    Canonne, Kamath and Steinke (2020), The discrete Gaussian for differential privacy,
    proposition 12 (conversion).
    Bun and Steinke (2016), Concentrated differential privacy, proposition 1.9 (groups).
"""

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import ADJACENCIES, Adjacency, GaussianMechanism
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    GroupPrivacyError,
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
    UnsupportedMechanismError,
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


@dataclass(frozen=True, kw_only=True, eq=False)
class RdpCurve:
    r"""Upper bounds on a Rényi divergence at a grid of orders; immutable.

    Attributes:
        orders: Strictly increasing, all above 1, A of them.
        values: Bounds, float64, shape ``(A,)``, at least 0 or infinite, not decreasing.
        adjacency: The neighbouring relation; curves of different ones never combine.
        description: For readers.
        assumptions: What the bounds rest on, for readers.
        gaussian_like: Whether the bound is :math:`\alpha\rho` at *every* order, not
            only on the grid; only then does the group rule hold.
        normalize: Only when constructing: replace each value by the smallest one at
            its own or a higher order, a valid bound that is monotone.
    """

    orders: tuple[float, ...]
    values: NDArray[np.float64]
    adjacency: Adjacency
    description: str = ""
    assumptions: tuple[str, ...] = ()
    gaussian_like: bool = False
    normalize: InitVar[bool] = False

    def __post_init__(self, normalize: bool) -> None:
        """Check orders and values, and freeze them.

        Args:
            normalize: See the attribute.

        Raises:
            NumericalError: If a value is NaN.
            InvalidArgumentError: If shapes differ, an order is not above 1 and above
                its predecessor, or a value is negative or below its predecessor.
        """
        orders = _as_orders(self.orders)
        values = np.array(self.values, dtype=np.float64)
        _validate.one_of(ADJACENCIES, adjacency=self.adjacency)
        if values.shape != (len(orders),):
            raise InvalidArgumentError(
                f"values: must have one value for each of {len(orders)} orders, "
                f"got shape {values.shape}"
            )
        if np.isnan(values).any():
            raise NumericalError(
                f"values: must not be NaN, got NaN at order "
                f"{orders[int(np.isnan(values).argmax())]:g}; the mechanism's "
                "parameters are outside what its formula can compute"
            )
        if (values < 0).any():
            at = int(values.argmin())
            raise InvalidArgumentError(
                f"values: must be at least 0, got {values[at]:g} at order "
                f"{orders[at]:g}; a divergence is never negative"
            )
        if normalize:
            values = np.minimum.accumulate(values[::-1])[::-1].copy()
        falls = values[1:] < values[:-1] * (1 - 1e-7)
        if falls.any():
            at = int(falls.argmax())
            raise InvalidArgumentError(
                f"values: must not decrease with the order, got {values[at]:g} at "
                f"order {orders[at]:g} and {values[at + 1]:g} at order "
                f"{orders[at + 1]:g}; correct the formula or pass normalize=True"
            )
        values.setflags(write=False)
        object.__setattr__(self, "orders", orders)
        object.__setattr__(self, "values", values)
        if self.gaussian_like:
            self._check_gaussian_like()

    @classmethod
    def zero(
        cls,
        orders: Sequence[float] = DEFAULT_ORDERS,
        *,
        adjacency: Adjacency = "unlearn",
    ) -> "RdpCurve":
        """Return the curve of having released nothing.

        Args:
            orders: Rényi orders.
            adjacency: The neighbouring relation of what it will be added to.

        Returns:
            A curve of zeros.
        """
        return cls(
            orders=tuple(orders),
            values=np.zeros(len(orders)),
            adjacency=adjacency,
            description="nothing",
            gaussian_like=True,
        )

    def __add__(self, other: "RdpCurve") -> "RdpCurve":
        """Return the curve of both releases seen together (adaptive composition)."""
        if not isinstance(other, RdpCurve):
            return NotImplemented
        self._check_fits(other, "compose")
        return self._join(other, self.values + other.values, "+")

    def __mul__(self, times: int) -> "RdpCurve":
        """Return the curve of ``times`` such releases seen together."""
        if isinstance(times, bool) or not isinstance(times, int | np.integer):
            return NotImplemented
        _validate.integer(at_least=0, times=times)
        if times == 0:
            return RdpCurve.zero(self.orders, adjacency=self.adjacency)
        return self._with(int(times) * self.values, f"{times} x ({self.description})")

    __rmul__ = __mul__

    def max(self, other: "RdpCurve") -> "RdpCurve":
        """Return the worse of two curves at each order (worst observer or branch).

        Args:
            other: A curve of the same orders and relation.

        Returns:
            The pointwise maximum.
        """
        self._check_fits(other, "compare")
        return self._join(other, np.maximum(self.values, other.values), "or")

    def restrict(self, orders: Sequence[float]) -> "RdpCurve":
        """Return the curve on some of its own orders.

        Args:
            orders: Strictly increasing, each an order of this curve.

        Returns:
            The same bounds on fewer orders.

        Raises:
            InvalidArgumentError: If an order is not one of this curve's.
        """
        place = {order: i for i, order in enumerate(self.orders)}
        missing = [order for order in orders if order not in place]
        if missing:
            raise InvalidArgumentError(
                f"orders: must be among the curve's own orders, got {missing[0]!r}; "
                "compute the curve again on the orders you need"
            )
        return RdpCurve(
            orders=tuple(orders),
            values=self.values[[place[order] for order in orders]],
            adjacency=self.adjacency,
            description=self.description,
            assumptions=self.assumptions,
            gaussian_like=self.gaussian_like,
        )

    def group(self, k: int) -> "RdpCurve":
        r"""Return the curve for k records instead of one: :math:`\rho \to k^2\rho`.

        Args:
            k: Records that differ, at least 1.

        Returns:
            The curve of the group.

        Raises:
            GroupPrivacyError: If the curve is not Gaussian-like; the general group
                rule loses too much.
        """
        _validate.integer(at_least=1, k=k)
        if not self.gaussian_like:
            raise GroupPrivacyError(
                "group: must be asked of a Gaussian-like curve, got "
                f"{self.description or 'a general one'}; derive the sensitivity for "
                "the whole forget set instead"
            )
        return self._with(k * k * self.values, f"group of {k}: {self.description}")

    def to_epsilon(self, delta: float) -> EpsilonResult:
        """Return the smallest epsilon the curve proves at ``delta``, in [0, 1)."""
        return rdp_to_epsilon(self.orders, self.values, delta)

    def to_delta(self, epsilon: float) -> float:
        """Return the smallest delta the curve proves at ``epsilon``, at least 0."""
        return rdp_to_delta(self.orders, self.values, epsilon)

    def __eq__(self, other: object) -> bool:
        """Tell whether orders, values (bit for bit) and relation are the same."""
        return isinstance(other, RdpCurve) and self._key() == other._key()

    def __hash__(self) -> int:
        """Hash what ``==`` compares."""
        return hash(self._key())

    def _key(self) -> tuple[tuple[float, ...], bytes, str]:
        return self.orders, self.values.tobytes(), self.adjacency

    def _check_fits(self, other: "RdpCurve", verb: str) -> None:
        if self.adjacency != other.adjacency:
            raise AdjacencyMismatchError(
                f"cannot {verb} a {self.adjacency!r} curve with a {other.adjacency!r} "
                "curve; derive both sensitivities for the same relation first"
            )
        if self.orders != other.orders:
            raise InvalidArgumentError(
                f"orders: must be the same to {verb} two curves, got {len(self.orders)}"
                f" and {len(other.orders)} different ones; use restrict"
            )

    def _check_gaussian_like(self) -> None:
        rho = self.values / np.array(self.orders)
        with np.errstate(invalid="ignore"):
            same = (rho == rho[0]) | (np.abs(rho - rho[0]) <= 1e-9 * rho[0])
        if not (same | (self.values < 1e-300)).all():
            raise InvalidArgumentError(
                "gaussian_like: must be False for values that are not proportional "
                f"to the order, got values / order from {rho.min():g} to {rho.max():g}"
            )

    def _with(self, values: NDArray[np.float64], description: str) -> "RdpCurve":
        return RdpCurve(
            orders=self.orders,
            values=values,
            adjacency=self.adjacency,
            description=description,
            assumptions=self.assumptions,
            gaussian_like=self.gaussian_like,
        )

    def _join(
        self, other: "RdpCurve", values: NDArray[np.float64], word: str
    ) -> "RdpCurve":
        return RdpCurve(
            orders=self.orders,
            values=values,
            adjacency=self.adjacency,
            description=f"{self.description} {word} {other.description}",
            assumptions=tuple(dict.fromkeys(self.assumptions + other.assumptions)),
            gaussian_like=self.gaussian_like and other.gaussian_like,
        )


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


def curve_of(
    mechanism: GaussianMechanism, orders: Sequence[float] = DEFAULT_ORDERS
) -> RdpCurve:
    """Return what one use of a mechanism costs.

    Args:
        mechanism: What happened.
        orders: Rényi orders, A of them.

    Returns:
        Its curve, under the mechanism's relation.

    Raises:
        UnsupportedMechanismError: If the accountant does not know the mechanism; a
            cost is never guessed.
    """
    if not isinstance(mechanism, GaussianMechanism):
        raise UnsupportedMechanismError(
            "mechanism: must be a GaussianMechanism, got "
            f"{type(mechanism).__name__}; nothing was charged or sent"
        )
    return RdpCurve(
        orders=tuple(orders),
        values=rdp_gaussian(orders, mechanism.noise_multiplier),
        adjacency=mechanism.adjacency,
        description=f"Gaussian(mu={mechanism.mu:.6g})",
        gaussian_like=True,
    )


def rdp_to_epsilon(orders: ArrayLike, values: ArrayLike, delta: float) -> EpsilonResult:
    r"""Return the smallest epsilon that Rényi bounds prove at delta.

    .. math:: \varepsilon(\delta) = \max\Bigl(0, \min_\alpha\; v(\alpha)
        + \ln(1 - 1/\alpha) - \frac{\ln\delta + \ln\alpha}{\alpha - 1}\Bigr)

    It is 0 as soon as :math:`\sqrt{1 - e^{-v(\alpha)}} < \delta` at some order, since
    the total variation is then below delta (Bretagnolle and Huber).

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        values: Bounds at these orders, shape ``(A,)``; infinite ones are skipped.
        delta: In [0, 1); at 0 the result is infinite unless all values are 0.

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
    if nothing or close.any():
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


def _as_orders(orders: Sequence[float]) -> tuple[float, ...]:
    try:
        alpha = tuple(float(order) for order in orders)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"orders: must be numbers, got {_validate.show(orders)}"
        ) from error
    ok = bool(alpha) and all(1 < order < math.inf for order in alpha)
    if not ok or any(b <= a for a, b in pairwise(alpha)):
        raise InvalidArgumentError(
            "orders: must be strictly increasing finite numbers above 1, "
            f"got {_validate.show(alpha)}; use DEFAULT_ORDERS"
        )
    return alpha


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
