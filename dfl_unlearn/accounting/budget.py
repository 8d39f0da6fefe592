"""The cap on what all releases together may reveal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfl_unlearn import _validate
from dfl_unlearn.accounting.entries import Observer, check_owner, members
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.renyi import (
    DEFAULT_ORDERS,
    rdp_gaussian,
    rdp_to_epsilon,
)
from dfl_unlearn.errors import InvalidArgumentError, InvalidPrivacyParameterError


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """How much all releases together may reveal about one owner to one observer.

    Attributes:
        epsilon_max: Largest total epsilon, or None for no cap.
        delta_max: The total delta at which it is computed.
        per_owner: Caps of single owners, ``"peer:<i>"`` to epsilon, before
            ``epsilon_max``.
        per_observer: Further caps on what single observers may learn about any owner,
            an observer's id to epsilon; the smaller cap holds.
    """

    epsilon_max: float | None = None
    delta_max: float = 1e-5
    per_owner: Mapping[str, float] = field(default_factory=dict)
    per_observer: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers and owner ids."""
        wrong = InvalidPrivacyParameterError
        if self.epsilon_max is not None:
            _validate.number(error=wrong, above=0, epsilon_max=self.epsilon_max)
        _validate.number(error=wrong, above=0, below=1, delta_max=self.delta_max)
        _validate.of_type(
            Mapping, per_owner=self.per_owner, per_observer=self.per_observer
        )
        for owner, epsilon in self.per_owner.items():
            check_owner(per_owner=owner)
            _validate.number(error=wrong, above=0, per_owner=epsilon)
        for observer, epsilon in self.per_observer.items():
            members(observer)
            _validate.number(error=wrong, above=0, per_observer=epsilon)
        object.__setattr__(self, "per_owner", dict(self.per_owner))
        object.__setattr__(self, "per_observer", dict(self.per_observer))

    def cap(self, owner: str, observer: Observer | None = None) -> float | None:
        """Return the largest total epsilon of an account.

        Args:
            owner: Whose data.
            observer: Who sees; None leaves out caps on observers.

        Returns:
            The smallest cap that holds for it, None without one.
        """
        caps = (
            self.per_owner.get(owner, self.epsilon_max),
            None if observer is None else self.per_observer.get(observer),
        )
        return min((cap for cap in caps if cap is not None), default=None)


def filter_order_for(
    budget: PrivacyBudget, adaptive_costs: bool, order: float | None
) -> float | None:
    r"""Return the one Rényi order at which a filter counts.

    Costs that are chosen after earlier outputs were seen still add up at an order that
    was fixed before, and a sequence that stops anywhere below a cap that was fixed
    before satisfies the cap (Feldman and Zrnic 2021, Individual privacy accounting via
    a Rényi filter [recalled]). The best of several orders may not be taken afterwards.

    What the filter has counted so far, at outputs y, is an epsilon that depends on y:
    with the loss :math:`L` and the sum of costs :math:`R`,
    :math:`e^{(\alpha - 1)(L - R)}` is a supermartingale, so the conversion at the one
    order gives :math:`P(E) \le \int_E e^{\varepsilon(y)}\,dQ(y) + \delta` for
    every event E [derived]. As a claim that depends on nothing, quote the cap.

    Args:
        budget: The cap.
        adaptive_costs: Whether there is a filter at all.
        order: One of ``DEFAULT_ORDERS``, or None for the one at which a Gaussian that
            uses up the budget has its best bound.

    Returns:
        The order, or None without adaptive costs.

    Raises:
        InvalidArgumentError: If a filter has no cap, or its order is not known.
    """
    _validate.of_type(bool, adaptive_costs=adaptive_costs)
    if not adaptive_costs:
        if order is not None:
            raise InvalidArgumentError(
                f"filter_order: must be None without adaptive_costs, got {order!r}; "
                "fixed costs may use the best of all orders"
            )
        return None
    if budget.epsilon_max is None:
        raise InvalidArgumentError(
            "budget: must have epsilon_max with adaptive_costs, got None; a filter "
            "stops at a cap that was fixed before the first release"
        )
    if order is None:
        noise = gaussian_noise_std(budget.epsilon_max, budget.delta_max, 1.0, "rdp")
        values = rdp_gaussian(DEFAULT_ORDERS, noise)
        return rdp_to_epsilon(DEFAULT_ORDERS, values, budget.delta_max).order
    _validate.number(above=1, filter_order=order)
    if order not in DEFAULT_ORDERS:
        raise InvalidArgumentError(
            f"filter_order: must be one of DEFAULT_ORDERS, got {order!r}; choose e.g. "
            f"{min(DEFAULT_ORDERS, key=lambda known: abs(known - order)):g}"
        )
    return float(order)
