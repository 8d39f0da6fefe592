"""The walk of a token where peers come and go and messages are lost.

Still drawn before anything is computed, from the run's keys alone: who is up, which
message arrives and where the token turns depend on no data, so the number of visits is
known when noise is calibrated.

* A message is sent again in every round until it has arrived.
* If the next holder is out of reach for ``token_timeout`` rounds, another neighbour
  that is up is drawn; one that has left is known at once.
* If the holder has left, or is down for ``token_timeout`` rounds, the last one before
  it that is up goes on from the copy it kept (it wrote it down before sending). What
  the lost holder did is done over: its noised visits stay charged, a visit done again
  is a new one with fresh noise.
* Each such step makes a new generation of the token. A peer that comes back takes what
  its neighbours keep for it before it sends anything, so an older token is dropped by
  its request and generation.
* A restart takes a shortest path around peers that have left.
* Once the requester has left, no hop restarts.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from dfl_unlearn.engine.deliveries import Send, arrival
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.walks import shortest_path


@dataclass
class Generations:
    """What a peer knows of the tokens of all requests: the newest of each."""

    newest: dict[str, int] = field(default_factory=dict)

    def accepts(self, request_id: str, generation: int) -> bool:
        """Tell whether a token is the newest known, and note it if so.

        Args:
            request_id: Its request.
            generation: Its generation.

        Returns:
            False for a token that another one has replaced: it is to be dropped.
        """
        if generation < self.newest.get(request_id, 0):
            return False
        self.newest[request_id] = generation
        return True


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One holding of the token.

    Attributes:
        holder: Who.
        parent: The hop whose model it goes on from; -1 at the start.
        restarted: Whether it came by a restart.
        generation: Of the token.
        round: Network round in which the holder does its step.
        messages: Sends that it took, copies included.
    """

    holder: int
    parent: int
    restarted: bool
    generation: int
    round: int
    messages: int


@dataclass(frozen=True, kw_only=True)
class FaultyWalk:
    """Where a token goes.

    Attributes:
        hops: Every holding, in order, T of them; the first is the source.
        sends: Every send of it.
        last: The hop whose model is handed out.
        end: Network round after the walk.
        dropped: Older tokens that came up again and were dropped.
    """

    hops: tuple[Hop, ...]
    sends: tuple[Send, ...]
    last: int
    end: int
    dropped: int

    @property
    def kept(self) -> frozenset[int]:
        """Hops whose model is gone back to later, or handed out though not the last."""
        again = {h.parent for k, h in enumerate(self.hops) if h.parent != k - 1}
        return frozenset(again | {self.last})

    @property
    def generations(self) -> int:
        """Tokens that there were, replaced ones included."""
        return 1 + max(h.generation for h in self.hops)


class Walker:
    """Draws a walk, round by round."""

    def __init__(
        self,
        draws: FaultDraws,
        topology: Topology,
        chain: csr_array,
        source: int,
        *,
        clock: int,
        restart: float,
        avoids: bool,
        relays: bool,
        request_id: str,
        generator: np.random.Generator,
    ) -> None:
        """Start at the source.

        Args:
            draws: What goes wrong.
            topology: The network.
            chain: Transition matrix of a move that is no restart.
            source: The peer u of the restarts.
            clock: Network round of the start, in which u is up.
            restart: Probability of a restart at each hop.
            avoids: Whether only a restart leads to u.
            relays: Whether u does no step unless by a restart.
            request_id: The request.
            generator: Draws coins, moves and detours.
        """
        self._draws, self._topology, self._chain = draws, topology, chain
        self._source, self._restart = source, restart
        self._avoids, self._relays = avoids, relays
        self._request, self._generator = request_id, generator
        self._timeout, self._patience = draws.plan.token_timeout, draws.plan.patience
        self._clock, self._generation, self._dropped = clock, 0, 0
        self._known = Generations()
        self._sends: list[Send] = []
        self._hops = [self._hop(source, parent=-1, restarted=True, begun=0)]
        self._at = 0
        self._abandoned: list[tuple[int, int, int]] = []  # peer, generation, from round

    def walk(self, hops: int, most_visits: int | None) -> FaultyWalk:
        """Return the walk.

        Args:
            hops: Holdings in all, the start included.
            most_visits: The walk ends before a visit of the source more than this.

        Returns:
            The walk; shorter where nobody could go on for ``patience`` rounds.
        """
        visits = 1
        while len(self._hops) < hops:
            if not self._holder_there():
                break
            coin, place, *spare = self._generator.random(4)
            restarts = bool(coin < self._restart) and not self._left(self._source)
            target = self._source if restarts else self._move(float(place))
            counts = target == self._source and (restarts or not self._relays)
            if counts and visits == most_visits:
                break
            begun = len(self._sends)
            if not self._goes_to(target, restarts):
                if not self._holder_there():
                    continue
                detour = self._detour(target, float(spare[0]))
                restarts = False
                if detour is None or not self._goes_to(detour, restarts):
                    if not self._wait():
                        break
                    continue
                target = detour
                counts = target == self._source and not self._relays
                if counts and visits == most_visits:
                    break
            self._hops.append(
                self._hop(target, parent=self._at, restarted=restarts, begun=begun)
            )
            self._at = len(self._hops) - 1
            visits += counts
        self._holder_there()
        self._drop_returned()
        return FaultyWalk(
            hops=tuple(self._hops),
            sends=tuple(self._sends),
            last=self._at,
            end=self._clock,
            dropped=self._dropped,
        )

    # --- holders ---------------------------------------------------------------------

    def _hop(self, holder: int, *, parent: int, restarted: bool, begun: int) -> Hop:
        """Return a holding that begins now; the step waits for slow work."""
        accepted = self._known.accepts(self._request, self._generation)
        assert accepted, "the newest token was dropped"
        t = self._clock
        while not self._draws.at(t).works[holder]:
            slow = self._draws.at(t).up[holder]
            if t - self._clock >= (self._patience if slow else self._timeout):
                break
            t += 1
        else:
            self._clock = t
        return Hop(
            holder=holder,
            parent=parent,
            restarted=restarted,
            generation=self._generation,
            round=self._clock,
            messages=len(self._sends) - begun,
        )

    def _holder_there(self) -> bool:
        """Wait for the holder, else go back to one that is up; False without one."""
        begin = self._clock
        while not self._up(self._holder):
            waited = self._clock - begin
            if self._left(self._holder) or waited >= self._timeout:
                back = self._hops[self._at].parent
                while back >= 0 and not self._up(self._hops[back].holder):
                    back = self._hops[back].parent
                if back >= 0:
                    self._abandon(self._holder)
                    self._at = back
                    return True
                if waited >= self._patience or self._all_left():
                    return False
            self._clock += 1
        return True

    def _all_left(self) -> bool:
        """Tell whether everybody who holds a copy to go on from has left."""
        at = self._at
        while at >= 0:
            if not self._left(self._hops[at].holder):
                return False
            at = self._hops[at].parent
        return True

    def _wait(self) -> bool:
        """Let a round pass; False once nothing has moved for ``patience`` rounds."""
        self._clock += 1
        return self._clock - self._hops[-1].round <= self._patience

    def _abandon(self, peer: int) -> None:
        """Begin a new generation; the peer may come back with the old token."""
        self._abandoned.append((peer, self._generation, self._clock))
        self._generation += 1
        self._known.accepts(self._request, self._generation)

    def _drop_returned(self) -> None:
        """Count the older tokens whose holders came back during the walk."""
        for peer, generation, begin in self._abandoned:
            back = any(self._draws.at(t).up[peer] for t in range(begin, self._clock))
            if back and not self._known.accepts(self._request, generation):
                self._dropped += 1

    # --- moves -----------------------------------------------------------------------

    def _move(self, place: float) -> int:
        """Return where the walk's own law leads."""
        begin, end = self._chain.indptr[self._holder : self._holder + 2]
        reached = np.cumsum(self._chain.data[begin:end])
        step = int(np.searchsorted(reached, place * reached[-1], side="right"))
        return int(self._chain.indices[begin + min(step, end - begin - 1)])

    def _detour(self, failed: int, place: float) -> int | None:
        """Return another neighbour that is up, drawn evenly; None without one."""
        near = [
            j
            for j in sorted(self._topology.graph.neighbors(self._holder))
            if j != failed and self._up(j) and not (self._avoids and j == self._source)
        ]
        return near[int(place * len(near))] if near else None

    def _goes_to(self, target: int, restarts: bool) -> bool:
        """Send the token; True once it has arrived."""
        here = self._holder
        if target == here:
            self._clock += 1
            return True
        path = self._way(target) if restarts else [here, target]
        if path is None:
            return False
        out = False
        for i, j in pairwise(path):
            arrived = self._crosses(i, j)
            out |= arrived is not None
            if arrived is None:
                if out:  # a relay has it and may come back with it
                    self._abandon(i)
                return False
        return True

    def _way(self, target: int) -> list[int] | None:
        """Return a shortest path over peers that have not left; None without one."""
        left = self._draws.at(self._clock).left
        if not left.any():
            return shortest_path(self._topology, self._holder, target)
        following = {target: target}
        front = [target]
        while front and self._holder not in following:
            reached: dict[int, int] = {}
            for near in front:  # ascending: the lowest index wins
                for i in sorted(self._topology.graph.neighbors(near)):
                    if not left[i] and i not in following:
                        reached.setdefault(i, near)
            following |= reached
            front = sorted(reached)
        if self._holder not in following:
            return None
        path = [self._holder]
        while path[-1] != target:
            path.append(following[path[-1]])
        return path

    def _crosses(self, source: int, target: int) -> int | None:
        """Send over one edge until it arrives or the timeout ends."""
        first = True
        coming: int | None = None
        for _ in range(self._timeout):
            if self._left(target) or self._left(source):
                break
            if self._up(source):
                came = arrival(self._draws, self._clock, source, target)
                self._sends.append(
                    Send(
                        round=self._clock,
                        source=source,
                        target=target,
                        arrived=came,
                        copy=not first,
                    )
                )
                first = False
                if came >= 0:
                    coming = came if coming is None else min(coming, came)
            self._clock += 1
            if coming is not None and coming < self._clock:
                return coming
        if coming is not None:  # on its way, and too late: it will be dropped
            self._abandon(target)
        return None

    @property
    def _holder(self) -> int:
        return self._hops[self._at].holder

    def _up(self, peer: int) -> bool:
        return bool(self._draws.at(self._clock).up[peer])

    def _left(self, peer: int) -> bool:
        return bool(self._draws.at(self._clock).left[peer])
