"""Single messages in a network with faults: when they arrive, and who hands on to whom.

What ``engine.faulty_transport`` and a token's walk are made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.transport import Dissemination

Edge = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Send:
    """One send of a message that was planned ahead.

    Attributes:
        round: Network round.
        source: Sending peer.
        target: Receiving peer.
        arrived: Round in which it arrives, -1 if never.
        copy: False for the first send of a message, True for a resend of it.
    """

    round: int
    source: int
    target: int
    arrived: int
    copy: bool


def arrival(draws: FaultDraws, t: int, source: int, target: int, copy: int = 0) -> int:
    """Return when a message that is sent in round t arrives.

    Args:
        draws: What goes wrong.
        t: Round in which it is sent.
        source: Sending peer.
        target: Receiving peer.
        copy: Number of the message among those on this edge in this round.

    Returns:
        The round, or -1: it was lost, or came to a peer that was down.
    """
    faults = draws.at(t)
    if not faults.delivers(source, target, copy):
        return -1
    late = faults.delay(source, target, copy)
    if late and not draws.at(t + late).up[target]:
        return -1
    return t + late


class Handing:
    """What is being handed out, and which copies are on their way.

    Attributes:
        source: Who made it.
        kind: What it is.
        nbytes: Size without the header.
        how: ``tree``, ``flood`` or ``push``.
        numbers: Edge -> number of the message on it.
        coming: Edge -> round in which its first copy arrives.
    """

    def __init__(
        self,
        source: int,
        kind: str,
        nbytes: int,
        how: Dissemination,
        parents: dict[int, int],
        generator: np.random.Generator | None,
    ) -> None:
        """Begin to hand out.

        Args:
            source: Who made it.
            kind: What it is.
            nbytes: Size without the header.
            how: ``tree``, ``flood`` or ``push``.
            parents: Of every peer in a breadth-first tree from the source.
            generator: Draws the neighbours of ``push``.
        """
        self.source, self.kind, self.nbytes, self.how = source, kind, nbytes, how
        self.numbers: dict[Edge, int] = {}
        self.coming: dict[Edge, int] = {}
        self._parents, self._generator = parents, generator

    def forget(self, peers: Sequence[int]) -> None:
        """Let peers that lost their state be sent a new copy.

        Args:
            peers: Who.
        """
        for book in (self.numbers, self.coming):
            for edge in [edge for edge in book if edge[1] in peers]:
                del book[edge]

    def edges(
        self,
        neighbours: list[list[int]],
        senders: NDArray[np.bool_],
        lacking: NDArray[np.bool_],
    ) -> list[Edge]:
        """Return who sends to whom in a round.

        Args:
            neighbours: Of every peer, ascending.
            senders: Who holds it and is up, shape ``(N,)``.
            lacking: Who lacks it and has not left, shape ``(N,)``.

        Returns:
            Edges (source, target).
        """
        if self.how == "push":
            assert self._generator is not None
            draws = self._generator.random(len(neighbours))
            return [
                (i, near[int(draws[i] * len(near))])
                for i in np.flatnonzero(senders).tolist()
                if (near := neighbours[i])
            ]
        found = []
        for j in np.flatnonzero(lacking).tolist():
            near = [i for i in neighbours[j] if senders[i]]
            if self.how == "tree":
                parent = self._parents.get(j)
                near = [parent] if parent in near else near[:1]
            found += [(i, j) for i in near]
        return found
