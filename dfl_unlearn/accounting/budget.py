"""The cap on what all releases together may reveal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfl_unlearn import _validate
from dfl_unlearn.accounting.entries import check_owner
from dfl_unlearn.errors import InvalidPrivacyParameterError


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """How much all releases together may reveal about one owner to one observer.

    Attributes:
        epsilon_max: Largest total epsilon, or None for no cap.
        delta_max: The total delta at which it is computed.
        per_owner: Caps of single owners, ``"peer:<i>"`` to epsilon, before
            ``epsilon_max``.
    """

    epsilon_max: float | None = None
    delta_max: float = 1e-5
    per_owner: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers and owner ids."""
        wrong = InvalidPrivacyParameterError
        if self.epsilon_max is not None:
            _validate.number(error=wrong, above=0, epsilon_max=self.epsilon_max)
        _validate.number(error=wrong, above=0, below=1, delta_max=self.delta_max)
        _validate.of_type(Mapping, per_owner=self.per_owner)
        for owner, epsilon in self.per_owner.items():
            check_owner(per_owner=owner)
            _validate.number(error=wrong, above=0, per_owner=epsilon)
        object.__setattr__(self, "per_owner", dict(self.per_owner))

    def cap(self, owner: str) -> float | None:
        """Return the owner's largest total epsilon, None without a cap."""
        return self.per_owner.get(owner, self.epsilon_max)
