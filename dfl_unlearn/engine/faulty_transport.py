"""Messages of protocols in a network with faults: a clock, resends, acknowledgements.

The network's rounds are the clock. A message is sent again in every round until it has
arrived (the acknowledgement comes with the same round and is not counted); every send
is counted and logged with the round it was sent in and the round it arrived in. Copies
have the number of the first one, so that whoever gets two drops the second. Identical
bytes sent twice tell nobody anything new: resends cost no privacy.

Who takes part. A peer that left for good takes no part; one that is down is waited for,
up to ``patience`` rounds, since a sum over all peers needs every one of them. Nothing
that a sum is taken for has been charged or released by then.

Handing out. Whoever holds the corrected model hands it on to the neighbours that lack
it, in every round, until all that have not left hold it or patience ends. A crash loses
a model that was taken before (the peer restarts from a copy of before the request), so
such a peer lacks it again; where it was made it is on disk before it is sent. Who lacks
it sends no model: such a peer is left out of mixing like one that is down, and the
stamps of the base class refuse it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.deliveries import Edge, Handing, Send, arrival
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.fault_realized import RoundFaults
from dfl_unlearn.engine.faults import ScheduledChurn
from dfl_unlearn.engine.message_log import Passage
from dfl_unlearn.engine.transport import (
    HEADER_BYTES,
    Dissemination,
    Guard,
    RequestState,
    Transport,
)
from dfl_unlearn.errors import (
    InvalidArgumentError,
    RefusedError,
    UnsupportedRequestError,
)
from dfl_unlearn.topology.graph import Topology


class PeerLeftError(Exception):
    """A peer left for good in the middle of a sum; inside the program only."""


class FaultyTransport(Transport):
    """Carries messages on a clock, under the faults of a run.

    Attributes:
        clock: The network round in which the next message is sent.
        patience: Rounds that are waited for peers that are down.
        members: Peers that sums are taken over, shape ``(N,)``; see ``settle``.
        applied: Round in which each peer took the corrected model, -1 if it has not,
            shape ``(N,)``.
        states: State of the request -> round in which it was reached.
        sends: Sends, copies included.
        duplicates: Copies that arrived after the first one, and were dropped.
        stale: Models from before the request that somebody tried to send after it.
    """

    def __init__(
        self,
        topology: Topology,
        requests: int = 0,
        *,
        draws: FaultDraws,
        clock: int,
        patience: int,
        guard: Guard | None = None,
    ) -> None:
        """Open a transport with an empty log.

        Args:
            topology: The network.
            requests: Forget requests that every peer's state carries already.
            draws: What goes wrong, by key.
            clock: The network round to start in.
            patience: Rounds that are waited for peers that are down.
            guard: Holds messages back; None lets all pass.
        """
        super().__init__(topology, requests, guard=guard)
        self.draws, self.clock, self.patience = draws, clock, patience
        self.members = np.ones(topology.n, dtype=np.bool_)
        self.applied = np.full(topology.n, -1, dtype=np.int64)
        self.states: dict[str, int] = {}
        self.sends = self.duplicates = self.stale = 0
        self._everyone = [list(near) for near in self._neighbours]
        self._numbers = np.zeros(topology.n, dtype=np.int64)
        self._handing: Handing | None = None

    @property
    def now(self) -> RoundFaults:
        """What is up and what arrives in the present round."""
        return self.draws.at(self.clock)

    @property
    def left(self) -> NDArray[np.bool_]:
        """Peers that have left for good, shape ``(N,)``."""
        return self.now.left

    @property
    def current(self) -> NDArray[np.bool_]:
        """Peers whose state carries the last correction, shape ``(N,)``."""
        held: NDArray[np.bool_] = self.carried >= self.required
        return held

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Peers that have not left and lack the last correction, shape ``(N,)``."""
        return ~self.left & ~self.current

    def mark(self, state: RequestState) -> None:
        """Note the round in which the request came so far."""
        self.states.setdefault(state, self.clock)

    def settle(self) -> None:
        """Take sums over the peers that have not left by now.

        Raises:
            RefusedError: If these cannot all reach each other.
        """
        self.members = ~self.left
        self._neighbours = [
            [j for j in near if self.members[i] and self.members[j]]
            for i, near in enumerate(self._everyone)
        ]
        first = int(np.flatnonzero(self.members)[0])
        reached = {first} | {c for level in self._levels(first) for _, c in level}
        cut = [int(i) for i in np.flatnonzero(self.members) if int(i) not in reached]
        if cut:
            raise RefusedError(
                f"network: must hold together without the peers that left "
                f"({_listed(np.flatnonzero(self.left))}), got {_listed(cut)} cut off "
                "from the others, so no sum over all peers can be taken; nothing was "
                "charged or released: use rr-du"
            )

    def wait_for(self, peer: int) -> None:
        """Wait until a peer is up.

        Args:
            peer: Who.

        Raises:
            RefusedError: If it has left, or patience ends.
        """
        begin = self.clock
        while not self.now.up[peer]:
            if self.left[peer] or self.clock - begin >= self.patience:
                why = (
                    "a peer that left for good"
                    if self.left[peer]
                    else f"one that was down for {self.patience} rounds"
                )
                raise RefusedError(
                    f"request: must come from a peer that is there, got peer {peer}, "
                    f"{why}; nothing was charged or released: ask again later, or with "
                    "a larger patience"
                )
            self.clock += 1

    def correct(self, peers: object = None) -> None:
        """Do nothing: peers are noted as they acknowledge."""

    def broadcast(
        self,
        source: int,
        kind: str,
        payload_bytes: int,
        how: Dissemination,
        generator: np.random.Generator | None = None,
    ) -> int:
        """Hand a corrected model to all peers that have not left.

        From now on nobody who lacks it may send a model.

        Args:
            source: Who made it; it has it on disk.
            kind: What it is.
            payload_bytes: Size without the header.
            how: ``tree``: each peer gets it from its parent in a breadth-first tree,
                from the first neighbour that holds it where the parent cannot;
                ``flood``: whoever holds it sends it to all neighbours that lack it;
                ``push``: in every round to one random neighbour.
            generator: Draws the neighbours of ``push``.

        Returns:
            Rounds until all held it or patience ended.

        Raises:
            UnsupportedRequestError: If the sum of a gossip average was asked for.
            InvalidArgumentError: If ``push`` has no generator.
        """
        if how == "gossip_average":
            raise UnsupportedRequestError(
                "dissemination: must not be 'gossip_average' in a network with faults "
                "(what peers hold would depend on what was lost), got "
                "'gossip_average'; use 'tree', 'flood' or 'push'"
            )
        if how == "push" and generator is None:
            raise InvalidArgumentError(
                "generator: must be given with how='push', got None; take it from the "
                "run's rng"
            )
        self._hold_back(kind)
        parents = {c: p for level in self._levels(source) for p, c in level}
        self._handing = Handing(source, kind, payload_bytes, how, parents, generator)
        self.required = self._request
        begin = self.clock
        while self.lacking.any() and self.clock - begin < self.patience:
            if self.left[source] and not (self.current & ~self.left).any():
                break  # whoever held it has left
            self.hand_on()
            self.clock += 1
        return self.clock - begin

    def hand_on(self, copy: int = 0) -> None:
        """Hand the corrected model on for one round; the clock stands still.

        Args:
            copy: Number of messages that these edges carry in this round besides.
        """
        handing = self._handing
        assert handing is not None
        lost = (self.now.crashed | self._crash_now()) & self.current
        source = handing.source
        lost[source] = False
        if self.now.up[source] and not self.current[source]:
            self.carried[source], self.applied[source] = self.required, self.clock
        self.carried[lost], self.applied[lost] = self.required - 1, -1
        handing.forget(np.flatnonzero(lost).tolist())
        waiting = {}
        senders = self.current & self.now.up
        for edge in handing.edges(self._everyone, senders, self.lacking):
            waiting[edge] = handing.numbers.setdefault(edge, -1)
            if waiting[edge] < 0:
                waiting[edge] = handing.numbers[edge] = self._number(edge[0])
        self._attempt(handing.kind, waiting, handing.nbytes, handing.coming, copy)
        for (_, target), came in list(handing.coming.items()):
            if came <= self.clock and not self.current[target]:
                self.carried[target], self.applied[target] = self.required, self.clock

    def left_since(self) -> dict[int, int]:
        """Return peer -> round in which it left for good, up to now."""
        events = sorted(
            (t, peer)
            for model in self.draws.plan.models
            if isinstance(model, ScheduledChurn)
            for t, peer, what in model.events
            if what == "leave" and t <= self.clock
        )
        return {peer: t for t, peer in reversed(events)}

    def _crash_now(self) -> NDArray[np.bool_]:
        """Return who loses its state in this round, restarting later or now."""
        crashed = np.zeros(self.topology.n, dtype=np.bool_)
        for model in self.draws.plan.models:
            if isinstance(model, ScheduledChurn):
                for t, peer, what in model.events:
                    crashed[peer] |= what == "crash" and t == self.clock
        return crashed & ~self.left

    def exchange(
        self, kind: str, payload_bytes: int, *, again: int | None = None
    ) -> None:
        """Carry one gossip round: every peer that may sends its row to all neighbours.

        Who lacks the last correction, or took it in this very round, sends nothing.
        Nothing is sent again.

        Args:
            kind: What it carries.
            payload_bytes: Size of a row.
            again: The round whose faults are met, where training repeats them; None is
                the present one.
        """
        self._hold_back(kind)
        t = self.clock if again is None else again
        sending = self.draws.at(t).up & self.current & (self.applied < self.clock)
        waiting = {
            (i, j): self._number(i)
            for i, near in enumerate(self._everyone)
            if sending[i]
            for j in near
            if not self.left[j]
        }
        self._attempt(kind, waiting, payload_bytes, {}, 0, again=again)
        self.clock += 1

    def carry(self, kind: str, payload_bytes: int, sends: Iterable[Send]) -> None:
        """Carry messages whose way was drawn ahead; the clock goes with them.

        Args:
            kind: What they carry.
            payload_bytes: Size without the header.
            sends: In the order of their rounds.
        """
        self._hold_back(kind)
        for send in sends:
            if not send.copy:
                self._number(send.source)
            self.clock = max(self.clock, send.round)
            self._log(
                kind,
                [(send.source, send.target)],
                [int(self._numbers[send.source]) - 1],
                [send.arrived],
                payload_bytes,
                send.round,
            )

    def _step(
        self,
        kind: str,
        edges: list[Edge],
        payload_bytes: int,
        *,
        sums: bool = False,
    ) -> None:
        """Send messages until all have arrived; the clock goes on.

        Raises:
            RefusedError: If patience ends first.
            PeerLeftError: If a peer of the sums has left.
        """
        self._hold_back(kind, sums=sums)
        waiting = {edge: self._number(edge[0]) for edge in edges}
        coming: dict[Edge, int] = {}
        begin = self.clock
        while waiting:
            if (self.members & self.left).any():
                raise PeerLeftError
            if self.clock - begin > self.patience:
                ends = {end for edge in waiting for end in edge}
                down = sorted(i for i in ends if not self.now.up[i]) or sorted(ends)
                raise RefusedError(
                    f"{kind}: must get through between all peers that have not left "
                    f"within {self.patience} rounds, got no way to {_listed(down)}; "
                    "nothing was charged or released: raise the fault plan's patience"
                )
            self._attempt(kind, waiting, payload_bytes, coming, 0)
            waiting = {
                edge: seq
                for edge, seq in waiting.items()
                if edge not in coming or coming[edge] > self.clock
            }
            self.clock += 1

    def _attempt(
        self,
        kind: str,
        waiting: dict[Edge, int],
        payload_bytes: int,
        coming: dict[Edge, int],
        copy: int,
        *,
        again: int | None = None,
    ) -> None:
        """Send once what waits and whose sender is up; note when it will arrive."""
        t = self.clock if again is None else again
        up = self.draws.at(t).up
        edges = sorted(edge for edge in waiting if up[edge[0]])
        if not edges:
            return
        self._refuse_stale(kind, np.array([i for i, _ in edges], dtype=np.int64))
        shift = self.clock - t
        arrived = [arrival(self.draws, t, i, j, copy) for i, j in edges]
        arrived = [came if came < 0 else came + shift for came in arrived]
        for edge, came in zip(edges, arrived, strict=True):
            if came < 0:
                continue
            self.duplicates += edge in coming
            self.duplicates += self.draws.at(t).duplicated(*edge, copy)
            coming[edge] = min(came, coming.get(edge, came))
        numbers = [waiting[edge] for edge in edges]
        self._log(kind, edges, numbers, arrived, payload_bytes, self.clock)

    def _refuse_stale(self, kind: str, sources: NDArray[np.int64]) -> None:
        """Count a model from before the last correction, and refuse it."""
        self.stale += int(np.count_nonzero(~self.current[sources]))
        super()._refuse_stale(kind, sources)

    def _log(
        self,
        kind: str,
        edges: Sequence[Edge],
        numbers: Sequence[int],
        arrived: Sequence[int],
        payload_bytes: int,
        t: int,
    ) -> None:
        ends = np.array(edges, dtype=np.int64)
        passage = Passage(
            round=t,
            arrived=np.array(arrived, dtype=np.int64),
            seqs=np.array(numbers, dtype=np.int64),
        )
        self.sends += len(edges)
        nbytes = payload_bytes + HEADER_BYTES
        self.log.append(kind, ends[:, 0], ends[:, 1], nbytes, passage)

    def _number(self, source: int) -> int:
        """Return the number of a sender's next message."""
        self._numbers[source] += 1
        return int(self._numbers[source]) - 1


def _listed(peers: Sequence[int] | NDArray[np.int64]) -> str:
    names = ", ".join(str(int(i)) for i in peers)
    return f"peer {names}" if len(peers) == 1 else f"peers {names}"
