"""The walk of a token: who holds it, what it computes there, what it sends.

Where the token goes is drawn before anything is computed, from the run's keys alone:
it depends on no data, and the number of visits is known when noise is calibrated.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faulty_transport import FaultyTransport
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.walks import (
    Walk,
    draw_holders,
    restart_law,
    shortest_path,
    visit_weights,
    walk_matrix,
)
from dfl_unlearn.unlearning.token_faults import FaultyWalk, Walker

NaturalVisit = Literal["exclude", "relay", "noisy"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """Where a token goes.

    Attributes:
        source: The peer u of the restarts; the token starts there.
        holders: Who holds it at every hop, shape ``(T,)``; the first is the source.
        restarted: Whether it came by a restart, shape ``(T,)``; True at the start.
        acts: Whether the holder does a local step, shape ``(T,)``.
        weights: Factor on the steps of every peer, shape ``(N,)``.
        law: Share of hops that every peer holds in the long run, shape ``(N,)``.
        faulty: How it came about in a network with faults, where a hop may go on from
            an earlier one than the one before it.
    """

    source: int
    holders: NDArray[np.int64]
    restarted: NDArray[np.bool_]
    acts: NDArray[np.bool_]
    weights: NDArray[np.float64]
    law: NDArray[np.float64]
    faulty: FaultyWalk | None = None

    @property
    def last(self) -> int:
        """The hop whose model is handed out."""
        return len(self.holders) - 1 if self.faulty is None else self.faulty.last

    def parent(self, hop: int) -> int:
        """Return the hop whose model another one goes on from."""
        return hop - 1 if self.faulty is None else self.faulty.hops[hop].parent

    @property
    def visits(self) -> NDArray[np.int64]:
        """Hops at which the source acts, the start included, shape ``(K,)``."""
        return np.flatnonzero((self.holders == self.source) & self.acts)

    def cut(self, visits: int) -> "Route":
        """Return the route up to the hop before visit number ``visits + 1``.

        Under faults it was drawn so.
        """
        if self.faulty is not None or len(self.visits) <= visits:
            return self
        end = int(self.visits[visits])
        return Route(
            source=self.source,
            holders=self.holders[:end],
            restarted=self.restarted[:end],
            acts=self.acts[:end],
            weights=self.weights,
            law=self.law,
        )

    def send(
        self, transport: Transport, payload_bytes: int, work: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Carry the token along the route, edge by edge.

        Args:
            transport: Checks and counts the messages.
            payload_bytes: Size of the token.
            work: Per-sample gradients that the holder takes at every hop, ``(T,)``.

        Returns:
            Messages of every hop, shape ``(T,)``; none at the start and where the
            token stays, several where a restart is forwarded.
        """
        messages = np.zeros(len(self.holders), dtype=np.int64)
        if self.faulty is not None:
            assert isinstance(transport, FaultyTransport)
            sends = deque(self.faulty.sends)
            for t, hop in enumerate(self.faulty.hops):
                while sends and sends[0].round < hop.round:
                    transport.carry("token", payload_bytes, [sends.popleft()])
                if t:
                    transport.work(work[t : t + 1], np.array([hop.holder]))
            transport.carry("token", payload_bytes, sends)
            transport.clock = max(transport.clock, self.faulty.end)
            return np.array([h.messages for h in self.faulty.hops], dtype=np.int64)
        for t, (here, there) in enumerate(pairwise(self.holders.tolist()), start=1):
            if here == there:
                transport.work(work[t : t + 1], np.array([there]))
                continue
            path = (
                shortest_path(transport.topology, here, there)
                if self.restarted[t]
                else [here, there]
            )
            for i, j in pairwise(path):
                transport.send(i, j, "token", payload_bytes)
            messages[t] = len(path) - 1
            transport.work(work[t : t + 1], np.array([there]))
        return messages


def draw_route(
    topology: Topology,
    source: int,
    *,
    restart: float,
    hops: int,
    walk: Walk,
    lazy: float,
    natural_visit: NaturalVisit,
    importance: bool,
    max_weight: float,
    rng: RngTree,
    request_id: str,
    draws: FaultDraws | None = None,
    clock: int = 0,
    max_visits: int | None = None,
) -> Route:
    """Draw where a token goes.

    Args:
        topology: The network.
        source: The peer u of the restarts.
        restart: Probability of a restart at each hop.
        hops: Hops T, the start included.
        walk: ``uniform`` or ``mh``.
        lazy: Probability of staying before the walk is asked.
        natural_visit: What a move that is no restart does about u: ``exclude`` never
            goes there, ``relay`` passes through without a step, ``noisy`` visits.
        importance: Whether steps are weighted against uneven visits.
        max_weight: Largest weight.
        rng: The run's draws.
        request_id: Names the draws.
        draws: What goes wrong in the network, if anything does.
        clock: Network round of the start, with ``draws``; the source is up in it.
        max_visits: The walk ends before a visit more than this, with ``draws``; without
            them see ``Route.cut``.

    Returns:
        The route; it depends on no data.
    """
    avoid = source if natural_visit == "exclude" else None
    chain, law = _chain(topology, walk, lazy, avoid, source, restart)
    generator, coins = (
        rng.numpy("walk", who=source, request=request_id) for _ in range(2)
    )
    faulty = None
    if draws is None:
        holders = draw_holders(chain, source, restart, hops, generator)
        restarted = np.ones(hops, dtype=np.bool_)
        restarted[1:] = coins.random((hops - 1, 2))[:, 0] < restart
    else:
        faulty = Walker(
            draws,
            topology,
            chain,
            source,
            clock=clock,
            restart=restart,
            avoids=natural_visit == "exclude",
            relays=natural_visit == "relay",
            request_id=request_id,
            generator=generator,
        ).walk(hops, max_visits)
        holders = np.array([h.holder for h in faulty.hops], dtype=np.int64)
        restarted = np.array([h.restarted for h in faulty.hops], dtype=np.bool_)
    acts = np.ones(len(holders), dtype=np.bool_)
    if natural_visit == "relay":
        acts = restarted | (holders != source)
    acting = law.copy()
    if natural_visit == "relay":
        acting[source] = restart  # how often the source acts
    weights = np.ones(topology.n)
    if importance:
        weights = visit_weights(acting / acting.sum(), max_weight) / acting.sum()
    return Route(
        source=source,
        holders=holders,
        restarted=restarted,
        acts=acts,
        weights=weights,
        law=law,
        faulty=faulty,
    )


@lru_cache(maxsize=16)
def _chain(
    topology: Topology,
    walk: Walk,
    lazy: float,
    avoid: int | None,
    source: int,
    restart: float,
) -> tuple[csr_array, NDArray[np.float64]]:
    """Return the walk's matrix and its long-run law; kept, nobody writes to them."""
    chain = walk_matrix(topology, walk, lazy=lazy, avoid=avoid)
    return chain, restart_law(chain, source, restart)
