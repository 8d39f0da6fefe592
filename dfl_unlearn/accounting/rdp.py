r"""What a mechanism costs: Rényi curves, and what they say as epsilon and delta.

A curve holds upper bounds :math:`\varepsilon(\alpha)` on the Rényi divergence of order
:math:`\alpha` between what two neighbours release. Curves of releases that are seen
together add. Every number here errs upwards: formulas are followed by a step of a few
units in the last place.

References:
    Mironov (2017), Rényi differential privacy; proposition 11: the weak triangle
    inequality [recalled].
    Bun and Steinke (2016), Concentrated differential privacy, proposition 1.9 (groups).
    Canonne, Kamath and Steinke (2020), The discrete Gaussian for differential privacy,
    theorem 4 (zero-concentrated like the continuous one) [recalled].
"""

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import (
    ADJACENCIES,
    Adjacency,
    DiscreteGaussianMechanism,
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.renyi import (
    DEFAULT_ORDERS,
    EpsilonResult,
    rdp_gaussian,
    rdp_to_delta,
    rdp_to_epsilon,
)
from dfl_unlearn.accounting.sampled import rdp_sampled_gaussian
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    GroupPrivacyError,
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
    UnsupportedMechanismError,
)

_ULP = 8 * np.finfo(np.float64).eps

__all__ = [
    "DEFAULT_ORDERS",
    "EpsilonResult",
    "RdpCurve",
    "curve_of",
    "rdp_gaussian",
    "rdp_sampled_gaussian",
    "rdp_to_delta",
    "rdp_to_epsilon",
]


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

    @classmethod
    def from_zcdp(
        cls,
        rho: float,
        orders: Sequence[float] = DEFAULT_ORDERS,
        *,
        adjacency: Adjacency = "unlearn",
    ) -> "RdpCurve":
        r"""Return the curve :math:`\alpha\rho` of zero-concentrated privacy.

        Args:
            rho: At least 0; infinite proves nothing.
            orders: Rényi orders.
            adjacency: The neighbouring relation that rho is about.

        Returns:
            The curve, rounded up.

        Raises:
            InvalidPrivacyParameterError: If rho is negative or NaN.
        """
        if not rho >= 0:
            raise InvalidPrivacyParameterError(f"rho: must be >= 0, got {rho!r}")
        return cls(
            orders=tuple(orders),
            values=np.nextafter(np.array(orders, dtype=np.float64) * rho, np.inf)
            if rho
            else np.zeros(len(orders)),
            adjacency=adjacency,
            description=f"zCDP(rho={rho:.6g})",
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

    def to_adjacency(self, adjacency: Adjacency, *, group_size: int = 1) -> "RdpCurve":
        r"""Return a bound for another relation, where this one implies it.

        Exchanging a record is removing one and adding another. For a Gaussian-like
        curve that is the group rule for two, :math:`4\rho`; for any other the weak
        triangle inequality with Hölder exponents 2 and 2,

        .. math:: v'(\alpha) = \frac{\alpha - 1/2}{\alpha - 1}\, v(2\alpha)
            + v(2\alpha - 1),

        with the next order of the grid where these are not on it. What is private for
        any record says, with nothing unlearned, how far the model is from one that
        never had the records of a forget set: ``unlearn``.

        Args:
            adjacency: The relation that is needed.
            group_size: Records, or peers, in the forget set; for ``unlearn`` only.

        Returns:
            A curve under ``adjacency``.

        Raises:
            AdjacencyMismatchError: If this relation says nothing about that one.
            GroupPrivacyError: If ``group_size`` is above 1 and the curve is not
                Gaussian-like.
            InvalidArgumentError: If the relation is unknown, or a group is asked of
                another one than ``unlearn``.
        """
        _validate.one_of(ADJACENCIES, adjacency=adjacency)
        _validate.integer(at_least=1, group_size=group_size)
        if group_size > 1 and (self.adjacency, adjacency) != ("add_remove", "unlearn"):
            raise InvalidArgumentError(
                "group_size: must be 1 unless 'add_remove' becomes 'unlearn', got "
                f"{group_size}; use group"
            )
        if adjacency == self.adjacency:
            return self
        if self.adjacency != "add_remove":
            raise AdjacencyMismatchError(
                f"cannot convert a {self.adjacency!r} curve to {adjacency!r}: it says "
                "nothing about it; derive the sensitivity for the relation you need"
            )
        if adjacency == "unlearn":
            together = self if group_size == 1 else self.group(group_size)
            return replace(together, adjacency=adjacency, normalize=False)
        if self.gaussian_like:
            return replace(self.group(2), adjacency=adjacency, normalize=False)
        alpha = np.array(self.orders)
        beyond = np.append(self.values, np.inf)
        twice = beyond[np.searchsorted(alpha, 2 * alpha)]
        less = beyond[np.searchsorted(alpha, 2 * alpha - 1)]
        bounds = ((alpha - 0.5) / (alpha - 1) * twice + less) * (1 + _ULP)
        return RdpCurve(
            orders=self.orders,
            values=bounds,
            adjacency=adjacency,
            description=f"exchange of one record: {self.description}",
            assumptions=self.assumptions,
            normalize=True,
        )

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
                "curve; convert first with curve.to_adjacency(...), or derive both "
                "sensitivities for the same relation"
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


def curve_of(
    mechanism: Mechanism, orders: Sequence[float] = DEFAULT_ORDERS
) -> RdpCurve:
    """Return what a mechanism costs: all its steps, if it has several.

    Args:
        mechanism: What happened.
        orders: Rényi orders, A of them.

    Returns:
        Its curve, under the mechanism's relation. A discrete Gaussian costs what the
        continuous one of the same noise and sensitivity does.

    Raises:
        UnsupportedMechanismError: If the accountant does not know the mechanism; a
            cost is never guessed.
    """
    steps, like = 1, True
    if isinstance(mechanism, GaussianMechanism):
        values = rdp_gaussian(orders, mechanism.noise_multiplier)
        words = f"Gaussian(mu={mechanism.mu:.6g})"
    elif isinstance(mechanism, DiscreteGaussianMechanism):
        values = rdp_gaussian(orders, mechanism.noise_multiplier)
        words = f"discrete Gaussian(rho={mechanism.rho:.6g})"
    elif isinstance(mechanism, SampledGaussianMechanism):
        noise, steps = mechanism.noise_multiplier, mechanism.steps
        values = rdp_sampled_gaussian(orders, mechanism.rate, noise)
        like = mechanism.rate in (0, 1) or not 0 < noise < math.inf
        words = f"Gaussian(noise multiplier {noise:.6g}) sampled at {mechanism.rate:g}"
    else:
        raise UnsupportedMechanismError(
            "mechanism: must be a GaussianMechanism, SampledGaussianMechanism or "
            f"DiscreteGaussianMechanism, got {type(mechanism).__name__}; nothing was "
            "charged or sent"
        )
    one = RdpCurve(
        orders=tuple(orders),
        values=values,
        adjacency=mechanism.adjacency,
        description=words,
        gaussian_like=like,
    )
    return one if steps == 1 else steps * one


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
