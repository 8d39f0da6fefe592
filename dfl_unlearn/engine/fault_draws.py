"""What goes wrong in each round of a simulated network: a plan's realization.

Everything is a function of keys (purposes ``churn``, ``loss`` and ``delay``; the round;
the peer or the pair of peers), so any round can be asked for in any order, by training
on any number of workers and by protocols that go on after it, and all see the same.

Rounds are those of the network's clock, counted from 0 for the first training round.
Some things have a memory: who is up under Markov churn, who waits to restart after a
crash, and the mass of push-sum. They are carried from round 0 on, in every round of the
clock, whether the network trained in it or not.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.engine.fault_mixing import Arcs, check_weights
from dfl_unlearn.engine.fault_realized import RoundFaults
from dfl_unlearn.engine.faults import (
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    Reorder,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import TopologySchedule

Bools = NDArray[np.bool_]
Index = NDArray[np.int64]

_MARK_EVERY = 64  # rounds between kept memories of the chain
_RECENT = 8  # rounds kept whole, besides those whose rows may still be on their way
_UP, _DOWN, _LEFT = 0, 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    """What round t hands to round t + 1.

    Attributes:
        markov: Who is up in each Markov model, shape ``(K, N)``.
        status: ``_UP``, ``_DOWN`` or ``_LEFT`` of the scheduled events, shape ``(N,)``.
        waits: Who lost its state and has not restarted, shape ``(N,)``.
        mass: Mass of push-sum after the round, shape ``(N,)``, or None.
    """

    markov: Bools
    status: NDArray[np.int8]
    waits: Bools
    mass: NDArray[np.float64] | None


class FaultDraws:
    """The realization of a plan on a network.

    Attributes:
        plan: What can go wrong.
        schedule: The network of every round.
        n: Number of peers.
        since: Rows sent before this round are in no inbox.
    """

    def __init__(
        self,
        plan: FaultPlan,
        schedule: TopologySchedule,
        rng: RngTree,
        since: int = 0,
    ) -> None:
        """Prepare the draws; see ``of``."""
        plan.check(schedule.n)
        self.plan, self.schedule, self.n = plan, schedule, schedule.n
        self.since = since
        self._rng = rng
        self._numbered = _numbered(plan)
        self._arcs: Arcs | None = None
        self._marks: dict[int, _Memory] = {}
        self._last: tuple[int, _Memory] | None = None
        self._recent: OrderedDict[int, RoundFaults] = OrderedDict()
        self._events = _events_by_round(plan)
        self._slow = self._stragglers()

    @classmethod
    def of(
        cls,
        plan: FaultPlan,
        schedule: TopologySchedule,
        rng: RngTree,
        *,
        since: int = 0,
    ) -> "FaultDraws":
        """Return the realization of a plan.

        Args:
            plan: What can go wrong.
            schedule: The network of every round.
            rng: The run's draws.
            since: Rows sent before this round are in no inbox (with ``Delay``).

        Returns:
            The draws; nothing is drawn yet.
        """
        return cls(plan, schedule, rng, since)

    def at(self, t: int) -> RoundFaults:
        """Return what goes wrong in a round.

        Args:
            t: Round of the network's clock, >= 0, also after the last training round.

        Returns:
            The round's faults; the same for any order of calls.
        """
        _validate.integer(t=t, at_least=0)
        if t in self._recent:
            self._recent.move_to_end(t)
            return self._recent[t]
        begin, memory = self._start_for(t)
        for r in range(begin, t + 1):
            found, memory = self._advance(r, memory)
            self._note(r, memory, found)
        return self._recent[t]

    # --- the chain of rounds ---------------------------------------------------------

    def _start_for(self, t: int) -> tuple[int, _Memory]:
        """Return the first round to draw on the way to t, and what comes before it."""
        if self._last is not None and self._last[0] == t - 1:
            return t, self._last[1]
        mark = max((r for r in self._marks if r < t), default=-1)
        if self._last is not None and mark < self._last[0] < t:
            return self._last[0] + 1, self._last[1]
        if mark >= 0:
            return mark + 1, self._marks[mark]
        markov = len(self._numbered.get(MarkovChurn, ()))
        push_sum = self.plan.weight_policy == "push_sum"
        return 0, _Memory(
            markov=np.ones((markov, self.n), dtype=np.bool_),
            status=np.full(self.n, _UP, dtype=np.int8),
            waits=np.zeros(self.n, dtype=np.bool_),
            mass=np.ones(self.n) if push_sum else None,
        )

    def _note(self, r: int, memory: _Memory, found: RoundFaults) -> None:
        if r % _MARK_EVERY == 0:
            self._marks[r] = memory
        self._last = (r, memory)
        self._recent[r] = found
        while len(self._recent) > self.plan.oldest + _RECENT:
            self._recent.popitem(last=False)

    def _advance(self, r: int, before: _Memory) -> tuple[RoundFaults, _Memory]:
        markov = self._markov(r, before.markov)
        status, waits = before.status, before.waits
        if r in self._events:
            status, waits = self._apply(r, status, waits)
        there = (status == _UP) & markov.all(axis=0)
        crashed = np.zeros(self.n, dtype=np.bool_)
        if waits.any():
            crashed = waits & there
            if self.plan.own_checkpoints is None:
                crashed &= self._reached(r, there & ~waits, crashed)
            there = there & (~waits | crashed)
            waits = waits & ~crashed
        found = RoundFaults(
            round=r,
            up=there,
            left=status == _LEFT,
            crashed=crashed,
            works=there & ~crashed & self._finishes(r),
            mass=before.mass,
            draws=self,
        )
        mass = before.mass if before.mass is None else found.mixing.mass
        return found, _Memory(markov=markov, status=status, waits=waits, mass=mass)

    def _markov(self, r: int, before: Bools) -> Bools:
        if r == 0 or not len(before):
            return before
        peers, rows = np.arange(self.n), []
        for k, model in self._numbered[MarkovChurn]:
            assert isinstance(model, MarkovChurn)
            u = self._rng.uniform_at(peers, "churn", who=f"markov:{k}", round=r)
            was = before[k]
            rows.append(np.where(was, u >= model.p_leave, u < model.p_return))
        return np.array(rows)

    def _apply(
        self, r: int, status: NDArray[np.int8], waits: Bools
    ) -> tuple[NDArray[np.int8], Bools]:
        status, waits = status.copy(), waits.copy()
        for peer, what in self._events[r]:
            if status[peer] == _LEFT:
                continue
            status[peer] = {"down": _DOWN, "leave": _LEFT}.get(what, _UP)
            waits[peer] |= what == "crash"
        return status, waits

    def _reached(self, r: int, senders: Bools, receivers: Bools) -> Bools:
        """Return whom a message of a neighbour reaches in the round, shape ``(N,)``."""
        arcs = self.arcs(r)
        some = senders[arcs.source] & receivers[arcs.target]
        some &= self.whole(r, arcs.source, arcs.target)
        some &= ~self.lost(r, arcs.source, arcs.target)
        reached = np.zeros(self.n, dtype=np.bool_)
        reached[arcs.target[some & (arcs.weight > 0)]] = True
        return reached

    def _finishes(self, r: int) -> Bools:
        """Return who is not in the middle of slow local work, shape ``(N,)``."""
        done = np.ones(self.n, dtype=np.bool_)
        for model, slow in self._slow:
            if model.policy == "last" and (r + 1) % model.slowdown:
                done[slow] = False
        return done

    def _stragglers(self) -> list[tuple[Straggler, Index]]:
        peers, found = np.arange(self.n), []
        for k, model in self._numbered.get(Straggler, ()):
            assert isinstance(model, Straggler)
            u = self._rng.uniform_at(peers, "delay", who=f"straggler:{k}")
            count = int(np.floor(model.share * self.n + 1e-9))
            chosen = np.argsort(u, kind="stable")[:count]
            found.append((model, np.sort(chosen)))
        return found

    @property
    def stragglers(self) -> Index:
        """The peers that are slow under any model, ascending."""
        parts = [slow for _, slow in self._slow]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    @property
    def slowness(self) -> NDArray[np.float64]:
        """Factor on the time of every peer's work, others waiting for it, ``(N,)``."""
        slow = np.ones(self.n)
        for model, peers in self._slow:
            if model.policy == "wait":
                slow[peers] = np.maximum(slow[peers], model.slowdown)
        return slow

    # --- coins of messages -----------------------------------------------------------

    def arcs(self, r: int) -> Arcs:
        """Return who sends to whom in a round when nothing fails."""
        topology = self.schedule.at(r)
        if self._arcs is None or self._arcs.topology is not topology:
            self._arcs = Arcs.of(topology)
            if self.plan.loses_messages:
                check_weights(self._arcs, self.plan.weight_policy)
        return self._arcs

    def lost(self, r: int, source: Index, target: Index, copy: int = 0) -> Bools:
        """Tell which messages are lost, whoever is up.

        Args:
            r: The round in which they are sent.
            source: Senders, any shape.
            target: Receivers, same shape.
            copy: Number of the message on its edge in this round.

        Returns:
            True where a coin says so, same shape.
        """
        return self._any(MessageLoss, "loss", r, source, target, copy)

    def doubled(self, r: int, source: Index, target: Index, copy: int = 0) -> Bools:
        """Tell which messages arrive twice if they arrive; see ``lost``."""
        return self._any(Duplicate, "loss", r, source, target, copy)

    def overtaken(self, r: int, source: Index, target: Index, copy: int = 0) -> Bools:
        """Tell which messages arrive after later ones; see ``lost``."""
        return self._any(Reorder, "delay", r, source, target, copy)

    def delays(self, r: int, source: Index, target: Index, copy: int = 0) -> Index:
        """Return how many rounds messages take, 0 without a ``Delay``; see ``lost``."""
        delay = self.plan.delay
        if delay is None:
            return np.zeros(np.shape(source), dtype=np.int64)
        u = self._coins("delay", "delay:0", r, source, target, copy)
        steps = np.cumsum(delay.probabilities)[:-1]
        return np.searchsorted(steps, u, side="right").astype(np.int64)

    def _any(
        self,
        kind: type[MessageLoss] | type[Duplicate] | type[Reorder],
        purpose: str,
        r: int,
        source: Index,
        target: Index,
        copy: int,
    ) -> Bools:
        found = np.zeros(np.shape(source), dtype=np.bool_)
        for k, model in self._numbered.get(kind, ()):
            who = f"{kind.__name__.lower()}:{k}"
            p: float = getattr(model, "p", 0.0)
            found |= self._coins(purpose, who, r, source, target, copy) < p
        return found

    def _coins(
        self, purpose: str, who: str, r: int, source: Index, target: Index, copy: int
    ) -> NDArray[np.float64]:
        pair = np.asarray(source, dtype=np.int64) * self.n + target
        return self._rng.uniform_at(pair, purpose, who=who, round=r, draw=copy)

    def whole(self, r: int, source: Index, target: Index) -> Bools:
        """Tell which edges no split cuts in a round; see ``lost``."""
        together = np.ones(np.shape(source), dtype=np.bool_)
        for _, model in self._numbered.get(NetworkSplit, ()):
            assert isinstance(model, NetworkSplit)
            if model.start <= r < model.end:
                side = np.zeros(self.n, dtype=np.bool_)
                side[list(model.peers)] = True
                together &= side[source] == side[target]
        return together

    def ages(self, now: RoundFaults, arcs: Arcs) -> Index:
        """Return how old the row is that each arc brings in a round; -1 for none.

        Args:
            now: The round.
            arcs: Its arcs.

        Returns:
            Rounds since the row was sent, shape ``(E,)``.
        """
        age = np.full(len(arcs.source), -1, dtype=np.int64)
        listens = now.up[arcs.target] & ~now.crashed[arcs.source]
        ups = [now.up]
        for a in range(min(self.plan.oldest, max(now.round - self.since, 0)) + 1):
            r = now.round - a
            if a:
                ups.append(self.at(r).up)
            late = self.delays(r, arcs.source, arcs.target)
            came = (age < 0) & listens & (late <= a)
            came &= ups[a][arcs.source] & ups[a][arcs.target]
            came &= self.whole(r, arcs.source, arcs.target)
            came &= ~self.lost(r, arcs.source, arcs.target)
            for d in range(a + 1):  # up when it arrived
                came &= (late != d) | ups[a - d][arcs.target]
            age[came] = a
        return age


def _numbered(plan: FaultPlan) -> dict[type, list[tuple[int, object]]]:
    """Return the models of each kind with their number within it, which names keys."""
    found: dict[type, list[tuple[int, object]]] = {}
    for model in plan.models:
        same = found.setdefault(type(model), [])
        same.append((len(same), model))
    return found


def _events_by_round(plan: FaultPlan) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = {}
    for model in plan.models:
        if isinstance(model, ScheduledChurn):
            for r, peer, what in model.events:
                found.setdefault(r, []).append((peer, what))
    return found
