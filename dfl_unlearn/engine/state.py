"""The stacked state of all peers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PeerState:
    """Parameters of every peer, one row each; readers never write to it.

    Attributes:
        params: Stacked flat parameters, shape ``(N, P)``.
        slots: Extra per-peer vectors by name, e.g. ``momentum``, each ``(N, P)``.
        round: Number of rounds that led here.
    """

    params: Tensor
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0

    @property
    def n(self) -> int:
        """Number of peers N."""
        return int(self.params.shape[0])

    def mean(self) -> Tensor:
        """Return the average of all peers' parameters, ``(P,)`` float64."""
        return self.params.double().mean(0)

    def consensus_distance(self) -> float:
        """Return the mean over peers of the squared distance to their average."""
        total = 0.0
        mean = self.mean()
        for rows in self.params.split(64):
            total += float((rows.double() - mean).square().sum())
        return total / self.n
