"""A plan's realization as the engine follows it: what each shard is told in a round.

The driver draws; a shard is told which weights its rows are mixed by and which of its
peers work, so every backend does the same whatever the number of shards.

A peer's batch of round t is that of round t of its training whether or not it worked in
the rounds before: batches are keyed by the round, not by how much was done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faults import FaultPlan
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.record.round_weights import RoundWeights
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology, TopologySchedule

if TYPE_CHECKING:
    from dfl_unlearn.engine.backends.contract import EngineSetup
    from dfl_unlearn.engine.config import SimulationConfig

Index = NDArray[np.int64]
Bools = NDArray[np.bool_]

OWN_CHECKPOINT = "own_checkpoint"
"""Slot of the parameters that a peer restarts from after a crash."""

MEAN_MOVED = "mean_moved"
"""Name under which a round's counts say that its weights do not keep the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardFaults:
    """What goes wrong at a shard's peers in one round.

    Attributes:
        entries: (age, entries of the shard's rows of the pattern) for every age of
            rows that are mixed in, ascending from 0.
        up: Who takes part, shape ``(n,)``.
        works: Who does its local work, shape ``(n,)``.
        crashed: Who restarts, shape ``(n,)``.
    """

    entries: tuple[tuple[int, NDArray[np.float64]], ...]
    up: Bools
    works: Bools
    crashed: Bools


class RoundsOfFaults:
    """Tells shards what goes wrong, by rounds of training."""

    def __init__(self, draws: FaultDraws, ahead: int) -> None:
        """Follow a realization.

        Args:
            draws: The realization.
            ahead: Rounds by which the network's clock is ahead of training.
        """
        self.draws, self._ahead = draws, ahead
        self._cuts: tuple[object, list[Index]] | None = None

    @classmethod
    def of(
        cls, setup: "EngineSetup", slots: Mapping[str, object], begin: int
    ) -> "RoundsOfFaults | None":
        """Return what the engine follows, None where nothing can go wrong.

        Args:
            setup: Network, configuration and draws.
            slots: Of the state that training starts from: without rows of earlier
                rounds among them, rows sent before ``begin`` are in no inbox.
            begin: The first round of training that will be run.
        """
        config = setup.config
        if setup.draws is not None:
            return cls(setup.draws, setup.ahead)
        if not config.faults:
            return None
        inbox = all(name in slots for name in past_names(config))
        return cls(
            FaultDraws.of(
                config.faults,
                setup.schedule,
                setup.rng,
                since=0 if inbox else begin + setup.ahead,
            ),
            setup.ahead,
        )

    def pattern(self, t: int) -> sp.csr_array:
        """Return a matrix whose places hold every weight that round t can have.

        The same object as long as the network is the same.
        """
        return self.draws.arcs(t + self._ahead).pattern

    def cut(self, t: int, shards: Sequence[Index]) -> list[ShardFaults]:
        """Return what each shard is told in round t.

        Args:
            t: Round of training, from 0.
            shards: The peers of each shard, ascending.

        Returns:
            One entry per shard.
        """
        now, pattern = self.draws.at(t + self._ahead), self.pattern(t)
        if self._cuts is None or self._cuts[0] is not pattern:
            places = np.arange(len(pattern.data))
            numbered = sp.csr_array((places, pattern.indices, pattern.indptr))
            self._cuts = (pattern, [numbered[own].data for own in shards])
        return [
            ShardFaults(
                entries=tuple(
                    (age, data[places]) for age, data in now.mixing.entries.items()
                ),
                up=now.up[own],
                works=now.works[own],
                crashed=now.crashed[own],
            )
            for own, places in zip(shards, self._cuts[1], strict=True)
        ]

    def works(self, t: int) -> Bools:
        """Return who does its local work in round t, shape ``(N,)``."""
        return self.draws.at(t + self._ahead).works

    def crashed(self, t: int) -> Bools:
        """Return who restarts in round t, shape ``(N,)``."""
        return self.draws.at(t + self._ahead).crashed

    def weights(self, t: int) -> RoundWeights:
        """Return what mixes in round t."""
        now, pattern = self.draws.at(t + self._ahead), self.pattern(t)
        return RoundWeights(
            by_age=tuple(
                sp.csr_array(
                    (entries, pattern.indices, pattern.indptr), shape=pattern.shape
                )
                for entries in now.mixing.entries.values()
            ),
            works=now.works,
        )

    def counts(self, t: int) -> dict[str, int]:
        """Return how often what went wrong in round t; see ``RoundFaults.counts``."""
        now = self.draws.at(t + self._ahead)
        found = now.counts()
        if not now.mixing.keeps_mean(self.draws.arcs(now.round)):
            found[MEAN_MOVED] = 1
        return found


def cut_replicas(each: Sequence[RoundsOfFaults], t: int) -> ShardFaults:
    """Return what a shard of replicas is told: row ``i R + r`` is peer i of replica r.

    Args:
        each: What goes wrong in every replica, by its own draws.
        t: Round of training, from 0.

    Returns:
        For the pattern ``kron(pattern, identity of R)``.
    """
    pointers = each[0].pattern(t).indptr.astype(np.int64)
    lengths, r = np.diff(pointers), len(each)
    row = np.repeat(np.arange(len(lengths)), lengths)
    # Row i R + k of the product has the entries of row i, whatever k.
    first = (pointers[:-1] * r)[row] + np.arange(len(row)) - pointers[:-1][row]
    everyone = [np.arange(len(lengths))]
    cuts = [one.cut(t, everyone)[0] for one in each]
    ages = sorted({age for cut in cuts for age, _ in cut.entries})
    entries = {age: np.zeros(len(row) * r) for age in ages}
    for k, cut in enumerate(cuts):
        for age, values in cut.entries:
            entries[age][first + k * lengths[row]] = values

    def flat(name: str) -> Bools:
        return np.stack([getattr(cut, name) for cut in cuts], axis=1).reshape(-1)

    return ShardFaults(
        entries=tuple(entries.items()),
        up=flat("up"),
        works=flat("works"),
        crashed=flat("crashed"),
    )


class FaultsSeen:
    """Adds up what went wrong over the rounds of a run."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._totals: dict[str, int] = {}
        self._moved: list[int] = []

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "FaultsSeen":
        """Go on with what ``info`` gave."""
        seen, known = cls(), info.get("faults", {})
        seen._totals.update(known.get("totals", {}))
        seen._moved.extend(known.get(MEAN_MOVED, ()))
        return seen

    def add(self, completed: int, counts: Mapping[str, int]) -> None:
        """Note a round.

        Args:
            completed: Rounds completed, this one included.
            counts: Of ``RoundInfo.faults``.
        """
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0) + count
        if MEAN_MOVED in counts:
            self._moved.append(completed)

    def info(self) -> dict[str, Any]:
        """Return what ``TrainedRun.info`` says under ``faults``; empty for nothing.

        ``totals`` adds up the counts; ``mean_moved`` lists the rounds (counted from 1)
        whose weights did not keep the peers' mean.
        """
        if not self._totals:
            return {}
        totals = dict(sorted(self._totals.items()))
        return {"faults": {"totals": totals, MEAN_MOVED: list(self._moved)}}


def network_weights(
    schedule: TopologySchedule, faults: RoundsOfFaults | None, t: int
) -> sp.csr_array:
    """Return whose places round t mixes by; one object while nothing changes.

    Args:
        schedule: The network of every round.
        faults: What goes wrong, or None.
        t: Round of training, from 0.

    Returns:
        W itself, or under faults a matrix with W's places and all of the diagonal.
    """
    return schedule.at(t).weights if faults is None else faults.pattern(t)


def past_names(config: "SimulationConfig") -> tuple[str, ...]:
    """Return the slots of rows that were sent in earlier rounds, newest first."""
    return tuple(
        past_name(name, age)
        for age in range(1, config.faults.oldest + 1)
        for name in config.trainer.mixed
    )


def past_name(name: str, age: int) -> str:
    """Return the slot of what was sent some rounds ago."""
    return f"past{age}.{name}"


def check_network(config: "SimulationConfig", topology: Topology) -> None:
    """Refuse a plan that does not go with the network, before anything is made.

    Args:
        config: The plan, and the schedule if there is one.
        topology: The network.

    Raises:
        InvalidArgumentError: If the weight policy does not go with the weights.
        UnknownPeerError: If the plan names a peer that is not there.
    """
    if config.faults:
        schedule = topology if config.schedule is None else config.schedule
        FaultDraws.of(config.faults, schedule, RngTree(config.seed)).arcs(0)


def check_faults(plan: FaultPlan, config: "SimulationConfig") -> None:
    """Refuse a plan under which a trainer would not do what it says.

    Args:
        plan: What can go wrong.
        config: The trainer and the other settings.

    Raises:
        InvalidArgumentError: For gradient tracking under a plan that moves the mean,
            and for delay on networks that change.
    """
    if config.trainer.form == "gradient_tracking" and not plan.keeps_mean:
        reasons = "; ".join(plan.breaks(config.trainer))
        raise InvalidArgumentError(
            "faults: must keep the mean for gradient-tracking, whose trackers follow "
            f"the mean gradient only then; got {reasons}; use "
            "weight_policy='symmetric_drop' without delay and crashes, or d-sgd"
        )
    if plan.delay is not None and config.schedule is not None:
        raise InvalidArgumentError(
            "faults.models: must hold no delay with a schedule of networks (who hears "
            "whom changes while messages are on their way); leave schedule out"
        )
