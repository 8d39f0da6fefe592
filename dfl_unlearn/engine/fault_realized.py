"""What goes wrong in one round of a simulated network, for whoever asks."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from dfl_unlearn import _validate
from dfl_unlearn.engine.fault_mixing import Mixing, effective, missing_pairs
from dfl_unlearn.errors import UnknownPeerError
from dfl_unlearn.topology.graph import Topology

if TYPE_CHECKING:
    from dfl_unlearn.engine.fault_draws import FaultDraws

Bools = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundFaults:
    """What goes wrong in one round.

    Attributes:
        round: Of the network's clock.
        up: Who takes part, shape ``(N,)``.
        left: Who is gone for good, shape ``(N,)``.
        crashed: Who lost its state and restarts in this round, shape ``(N,)``; it is
            up, but does no work and its row is in no mixing.
        works: Who does its local work, shape ``(N,)``.
        mass: Mass of push-sum before the round, shape ``(N,)``, or None.
        draws: The realization that this is a round of.
    """

    round: int
    up: Bools
    left: Bools
    crashed: Bools
    works: Bools
    mass: NDArray[np.float64] | None
    draws: "FaultDraws"

    def delivers(self, source: int, target: int, copy: int = 0) -> bool:
        """Tell whether a message that is sent in this round arrives, now or later.

        Both ends must be up, no split must lie between them, and it must not be lost.
        Whether there is an edge is not asked.

        Args:
            source: Sender.
            target: Receiver.
            copy: Number of the message on its edge in this round, from 0; each has a
                coin of its own.

        Returns:
            Whether it arrives.
        """
        pair = self._pair(source, target)
        if not (self.up[source] and self.up[target]):
            return False
        draws, r = self.draws, self.round
        return bool(draws.whole(r, *pair)[0] and not draws.lost(r, *pair, copy)[0])

    def delay(self, source: int, target: int, copy: int = 0) -> int:
        """Return how many rounds a message that is sent in this round takes."""
        pair = self._pair(source, target)
        return int(self.draws.delays(self.round, *pair, copy)[0])

    def duplicated(self, source: int, target: int, copy: int = 0) -> bool:
        """Tell whether a message that arrives does so twice."""
        pair = self._pair(source, target)
        return bool(self.draws.doubled(self.round, *pair, copy)[0])

    def overtaken(self, source: int, target: int, copy: int = 0) -> bool:
        """Tell whether a message arrives after later ones of its round."""
        pair = self._pair(source, target)
        return bool(self.draws.overtaken(self.round, *pair, copy)[0])

    @cached_property
    def ages(self) -> Index:
        """How old the row is that each arc brings; see ``FaultDraws.ages``."""
        return self.draws.ages(self, self.draws.arcs(self.round))

    @cached_property
    def mixing(self) -> Mixing:
        """The effective weights of the round; see ``fault_mixing``."""
        draws = self.draws
        arcs = draws.arcs(self.round)
        return effective(
            arcs,
            self.ages,
            policy=draws.plan.weight_policy,
            crashed=self.crashed,
            own=draws.plan.own_checkpoints is not None,
            mass=self.mass,
        )

    @cached_property
    def topology(self) -> Topology:
        """The round's network with its effective weights, ``connected=False``.

        Rows that are mixed in when they are old count as if they were new. The weights
        are called doubly stochastic only where both sums are one to 1e-10.
        """
        arcs, mixing = self.draws.arcs(self.round), self.mixing
        weights = mixing.total(arcs)
        base = arcs.topology
        off = coo_array(weights)
        graph = nx.DiGraph() if base.directed or not _paired(weights) else nx.Graph()
        graph.add_nodes_from(range(base.n))
        apart = off.row != off.col
        graph.add_edges_from(
            zip(off.col[apart].tolist(), off.row[apart].tolist(), strict=True)
        )
        doubly = bool(np.abs(mixing.column_sums(arcs) - 1).max() <= 1e-10)
        return Topology(
            graph=graph,
            weights=weights,
            name=f"{base.name}, round {self.round}",
            labels=base.labels,
            stochastic="doubly" if doubly else "row",
            connected=False,
        )

    def counts(self) -> dict[str, int]:
        """Return how often what went wrong, without what did not.

        ``down``, ``left``, ``crashed`` and ``idle`` (up, but without local work) count
        peers; ``lost``, ``cut``, ``late``, ``dropped`` (edges left out although their
        own message came, or nothing fresh enough came), ``duplicates`` and
        ``reordered`` count messages of the training round.
        """
        draws, arcs = self.draws, self.draws.arcs(self.round)
        pair = (arcs.source, arcs.target)
        sent = self.up[arcs.source] & self.up[arcs.target]
        whole = draws.whole(self.round, *pair)
        lost = draws.lost(self.round, *pair)
        arrives = sent & whole & ~lost
        gone = sent & missing_pairs(arcs, self.ages, draws.plan.weight_policy)
        found = {
            "down": int((~self.up & ~self.left).sum()),
            "left": int(self.left.sum()),
            "crashed": int(self.crashed.sum()),
            "idle": int((self.up & ~self.works & ~self.crashed).sum()),
            "lost": int((sent & whole & lost).sum()),
            "cut": int((sent & ~whole).sum()),
            "late": int((arrives & (draws.delays(self.round, *pair) > 0)).sum()),
            "dropped": int((gone & arrives).sum()),
            "duplicates": int((arrives & draws.doubled(self.round, *pair)).sum()),
            "reordered": int((arrives & draws.overtaken(self.round, *pair)).sum()),
        }
        return {name: count for name, count in found.items() if count}

    def _pair(self, source: int, target: int) -> tuple[Index, Index]:
        _validate.integer(
            source=source,
            target=target,
            at_least=0,
            at_most=self.draws.n - 1,
            error=UnknownPeerError,
        )
        return np.array([source]), np.array([target])


def _paired(weights: csr_array) -> bool:
    """Tell whether every arc has its reverse."""
    pattern = weights.astype(bool)
    return int((pattern != pattern.T).nnz) == 0
