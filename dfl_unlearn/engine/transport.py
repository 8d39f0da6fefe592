"""Messages of protocols: edges checked, counted and logged per observer.

A protocol reaches another peer only through a ``Transport``. Payloads are handed over
as they are; what the log keeps is who sent how much to whom and in which step, so
``MessageLog.view(observer)`` is what that peer saw after the request.

A peer's state is stamped with the number of forget requests that it carries. Once a
protocol has handed out corrected models, whoever still has an older one is refused: a
straggler cannot send it again, and a peer that comes back must take the corrected model
first. The stamp is what a message says of itself, as honest as its sender.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._limits import MESSAGES, check_cap
from dfl_unlearn.engine.message_log import Message, MessageLog, Passage
from dfl_unlearn.errors import (
    InvalidArgumentError,
    SensitivityUnprovenError,
    StaleModelError,
    TopologyError,
)
from dfl_unlearn.topology.graph import Topology

__all__ = [
    "Dissemination",
    "Guard",
    "Message",
    "MessageLog",
    "Passage",
    "RequestState",
    "Transport",
    "multiples",
]

Dissemination = Literal["tree", "flood", "gossip_average", "push"]
RequestState = Literal["received", "computed", "charged", "released"]

# request id, protocol, sequence, influence weight, noise std, cap, epsilon, delta,
# checksum: what a message carries besides its vector (decentralized-certified 3.7)
HEADER_BYTES = 96


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Holds every message back until a noised release has been paid for.

    A claim about all messages after a request (scopes ``view`` and ``view_joint``)
    bears no message without noise, not even a number: until the release is in the
    ledger, sending raises, whatever the protocol thinks of it. What is sent later may
    depend on the release and on what others hold anyway.

    Attributes:
        request_id: The request.
        released: Tells whether a noised release of it is in the ledger.
        sums: Whether sums over all peers pass before, as secure aggregation is
            assumed to hide them.
    """

    request_id: str
    released: Callable[[], bool]
    sums: bool = False


class Transport:
    """Carries a protocol's messages over the edges of a topology.

    Attributes:
        topology: The network.
        log: Every message so far.
        required: Forget requests that a sender's state must carry.
        carried: Forget requests that each peer's state carries, shape ``(N,)``.
    """

    def __init__(
        self, topology: Topology, requests: int = 0, *, guard: Guard | None = None
    ) -> None:
        """Open a transport with an empty log.

        Args:
            topology: The network.
            requests: Forget requests that every peer's state carries already.
            guard: Holds messages back; None lets all pass.
        """
        self.topology = topology
        self.log = MessageLog(guarded=guard is not None)
        self._guard = guard
        self.required = requests
        self._request = requests + 1
        self.carried = np.full(topology.n, requests, dtype=np.int64)
        self._neighbours = [
            sorted(topology.graph.neighbors(i)) for i in range(topology.n)
        ]

    def mark(self, state: RequestState) -> None:
        """Note that the request has come so far; kept only where there is a clock.

        Args:
            state: What it has reached.
        """

    def send(self, source: int, target: int, kind: str, payload_bytes: int) -> None:
        """Carry one message to a neighbour.

        Args:
            source: Sending peer.
            target: Receiving peer.
            kind: What it carries.
            payload_bytes: Size without the header.

        Raises:
            TopologyError: If the two are not neighbours.
            StaleModelError: If the sender's state is older than the last correction.
        """
        self._hold_back(kind)
        if target not in self._neighbours[source]:
            raise TopologyError(
                f"send: {source} -> {target} must be an edge of the network, got none; "
                "route the message over neighbours"
            )
        self._step(kind, [(source, target)], payload_bytes)

    def work(
        self, samples: NDArray[np.float64], peers: NDArray[np.int64] | None = None
    ) -> None:
        """Note what peers compute before they send on, for the simulated clock.

        Args:
            samples: Per-sample gradients of each peer, a Hessian-vector product
                counted twice, shape ``(k,)``.
            peers: Who, each once; None is all peers in order.
        """
        everyone = np.arange(self.topology.n)
        self.log.work(everyone if peers is None else peers, samples)

    def correct(self, peers: Iterable[int] | None = None) -> None:
        """Note that peers hold the corrected model; from now on no older one is sent.

        Args:
            peers: Who took it; None is everybody.
        """
        self.required = self._request
        self.carried[slice(None) if peers is None else list(peers)] = self.required

    def broadcast(
        self,
        source: int,
        kind: str,
        payload_bytes: int,
        how: Dissemination,
        generator: np.random.Generator | None = None,
    ) -> int:
        """Carry a vector from one peer to all others.

        Args:
            source: Where it starts.
            kind: What it carries.
            payload_bytes: Size without the header.
            how: ``tree`` sends along a breadth-first tree, N-1 messages; ``flood`` has
                every peer forward its first copy to all neighbours but the sender,
                2|E|-N+1 messages; ``push`` has every peer that holds it tell one random
                neighbour a round, until all do, about N times the rounds;
                ``gossip_average`` mixes N times the vector at the source and 0
                elsewhere, 2|E| messages a round, which leaves every peer a multiple of
                it (``multiples``).
            generator: Draws the neighbours of ``push``.

        Returns:
            Number of communication steps; for a tree or a flood the eccentricity of
            the source.

        Raises:
            InvalidArgumentError: If ``push`` has no generator.
            TopologyError: If gossip on this network does not reach the average.
        """
        _validate.one_of(get_args(Dissemination), how=how)
        if how == "push":
            return self._push(source, kind, payload_bytes, generator)
        if how == "gossip_average":
            rounds = self.topology.mixing_rounds()
            for _ in range(rounds):
                self.exchange(kind, payload_bytes)
            return rounds
        levels = self._levels(source)
        for level, edges in enumerate(levels):
            if how == "flood":
                senders = {source} if level == 0 else {c for _, c in levels[level - 1]}
                parent = {c: p for known in levels[:level] for p, c in known}
                edges = [
                    (i, j)
                    for i in sorted(senders)
                    for j in self._neighbours[i]
                    if j != parent.get(i)
                ]
            self._step(kind, edges, payload_bytes)
        if how == "flood":
            # The last peers to be reached forward too; their copies are ignored.
            parent = {c: p for known in levels for p, c in known}
            last = {c for _, c in levels[-1]} if levels else set()
            self._step(
                kind,
                [
                    (i, j)
                    for i in sorted(last)
                    for j in self._neighbours[i]
                    if j != parent[i]
                ],
                payload_bytes,
            )
        return len(levels)

    def notify(
        self, source: int, kind: str, payload_bytes: int, hops: int | None = None
    ) -> None:
        """Tell the peers within some hops: a flood that stops there.

        Args:
            source: Where it starts.
            kind: What it carries.
            payload_bytes: Size without the header.
            hops: How far it goes; None is everywhere.
        """
        levels = self._levels(source)
        if hops is None or hops >= len(levels):
            self.broadcast(source, kind, payload_bytes, "flood")
            return
        parent: dict[int, int] = {}
        senders = {source}
        for edges in levels[:hops]:
            ways = [
                (i, j)
                for i in sorted(senders)
                for j in self._neighbours[i]
                if j != parent.get(i)
            ]
            self._step(kind, ways, payload_bytes)
            parent |= {child: above for above, child in edges}
            senders = {child for _, child in edges}

    def all_reduce(self, kind: str, payload_bytes: int, root: int = 0) -> None:
        """Count a sum over all peers: up a breadth-first tree and down again.

        The engine computes such sums fused, in peer order, in float64; this carries
        the messages a network needs for it: 2(N-1), in 2 ecc(root) steps.

        Args:
            kind: What is summed.
            payload_bytes: Size of one summand.
            root: Peer at the root of the tree.
        """
        levels = self._levels(root)
        for edges in reversed(levels):
            self._step(kind, [(c, p) for p, c in edges], payload_bytes, sums=True)
        for edges in levels:
            self._step(kind, edges, payload_bytes, sums=True)

    def exchange(self, kind: str, payload_bytes: int) -> None:
        """Count one gossip round: every peer sends its row to all neighbours."""
        self._step(
            kind,
            [(i, j) for i, near in enumerate(self._neighbours) for j in near],
            payload_bytes,
        )

    def _push(
        self,
        source: int,
        kind: str,
        payload_bytes: int,
        generator: np.random.Generator | None,
    ) -> int:
        """Spread a rumour; every round draws one number per peer, in peer order."""
        if generator is None:
            raise InvalidArgumentError(
                "generator: must be given with how='push', got None; take it from the "
                "run's rng"
            )
        informed = np.zeros(self.topology.n, dtype=np.bool_)
        informed[source] = True
        rounds = 0
        while not informed.all():
            draws = generator.random(self.topology.n)
            edges = [
                (i, near[int(draws[i] * len(near))])
                for i in np.flatnonzero(informed).tolist()
                if (near := self._neighbours[i])
            ]
            self._step(kind, edges, payload_bytes)
            informed[[j for _, j in edges]] = True
            rounds += 1
        return rounds

    def _hold_back(self, kind: str, *, sums: bool = False) -> None:
        """Refuse a message that must wait.

        Raises:
            SensitivityUnprovenError: If a guard stands and nothing was released yet.
        """
        guard = self._guard
        if guard is None or (sums and guard.sums) or guard.released():
            return
        raise SensitivityUnprovenError(
            f"send: must wait for the noised release of request {guard.request_id} "
            f"under a claim about all messages, got {kind!r} before it; nothing was "
            "sent: use what is known without a message, or a scope of final models"
        )

    def _step(
        self,
        kind: str,
        edges: list[tuple[int, int]],
        payload_bytes: int,
        *,
        sums: bool = False,
    ) -> None:
        """Log one communication step."""
        self._hold_back(kind, sums=sums)
        if edges:
            check_cap(MESSAGES, len(edges), f"message {kind!r}")
            ends = np.array(edges, dtype=np.int64)
            self._refuse_stale(kind, ends[:, 0])
            self.log.append(kind, ends[:, 0], ends[:, 1], payload_bytes + HEADER_BYTES)

    def _refuse_stale(self, kind: str, sources: NDArray[np.int64]) -> None:
        """Refuse a sender that still has a model from before the last correction.

        Raises:
            StaleModelError: If a sender's state is older than the last correction.
        """
        stale = sources[self.carried[sources] < self.required]
        if stale.size:
            raise StaleModelError(
                f"message {kind!r} from peer {stale[0]}: must come from a state "
                f"that carries {self.required} forget requests, got one that "
                f"carries {self.carried[stale[0]]}; hand that peer the corrected "
                "model first"
            )

    def _levels(self, root: int) -> list[list[tuple[int, int]]]:
        """Return the (parent, child) edges of the tree from ``root``, by depth."""
        seen, levels = {root}, []
        frontier = deque([root])
        while frontier:
            edges = []
            for i in frontier:
                for j in self._neighbours[i]:
                    if j not in seen:
                        seen.add(j)
                        edges.append((i, j))
            frontier = deque(child for _, child in edges)
            if edges:
                levels.append(edges)
        return levels


def multiples(
    topology: Topology, source: int, how: Dissemination
) -> NDArray[np.float64]:
    r"""Return which multiple of a vector every peer holds after ``broadcast``.

    Args:
        topology: The network.
        source: Where the vector starts.
        how: How it is sent; only ``gossip_average`` gives others than 1: after J
            rounds :math:`N [W^J]_{iu}` with source u, off by at most
            :math:`N \|W^J - \mathbf{1}\mathbf{1}^T / N\|`; J is the least that
            brings this norm to 1e-3.

    Returns:
        Shape ``(N,)``; they depend on the network alone, so they are public.

    Raises:
        TopologyError: If gossip on this network does not reach the average.
    """
    held = np.ones(topology.n)
    if how == "gossip_average":
        held = np.zeros(topology.n)
        held[source] = topology.n
        for _ in range(topology.mixing_rounds()):
            held = topology.weights @ held
    return held
