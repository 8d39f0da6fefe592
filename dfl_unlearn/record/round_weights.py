"""What mixed in a round of a network that failed, for recursions over the rounds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_OLDEST = 65  # rounds of rows that can matter; engine.faults allows 64 rounds of age


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundWeights:
    """The effective weights of one round.

    Attributes:
        by_age: Weights on rows that are 0, 1, .. rounds old, shape ``(N, N)`` each; all
            together the rows sum to 1.
        works: Who did its local work, shape ``(N,)``.
    """

    by_age: tuple[csr_array, ...]
    works: NDArray[np.bool_]


Mixing = Callable[[int], RoundWeights]
"""Round of training, from 0 -> what mixed in it."""


class Inboxes:
    """Mixes one row per peer, with what was sent in earlier rounds."""

    def __init__(self) -> None:
        """Start with nothing sent."""
        self._sent: list[NDArray[np.float64]] = []

    def mix(self, now: RoundWeights, sent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what arrives.

        Args:
            now: The round.
            sent: What every peer sends in it, shape ``(N,)`` or ``(N, K)``.

        Returns:
            The sums by weight, in the same shape.
        """
        self._sent = [sent, *self._sent][:_OLDEST]
        total: NDArray[np.float64] = np.zeros_like(sent)
        for weights, rows in zip(now.by_age, self._sent, strict=False):
            total += weights @ rows
        return total
