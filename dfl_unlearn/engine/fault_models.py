"""One way each in which the simulated network fails; ``engine.faults`` combines them.

Every model is a frozen dataclass with a registered name; a file gives them as
``[[training.faults.models]]`` with ``use = "markov-churn"``.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.registry import Registry

Event = Literal["up", "down", "leave", "crash"]

LAST_ROUND = 10_000_000
"""The largest round that a model may name."""
_OLDEST = 64  # rounds that a message may be old; each is one more copy of the state


@runtime_checkable
class FaultModel(Protocol):
    """One way in which the network fails; its fields say how often."""

    def peers_named(self) -> tuple[int, ...]:
        """Return the peers that the model names, for a check against the network."""
        ...


fault_models: Registry[FaultModel] = Registry(
    "faults", packages=("dfl_unlearn.engine.fault_models",)
)


@fault_models.register("markov-churn")
@dataclass(frozen=True, kw_only=True)
class MarkovChurn:
    """Peers go down and come back by a two-state chain of their own.

    All are up in round 0. A peer that is down neither computes nor sends nor receives;
    its state is frozen. In the long run it is up for a share
    ``p_return / (p_leave + p_return)`` of the rounds, 1 / p_leave rounds at a time.

    Attributes:
        p_leave: Probability that a peer that is up is down in the next round.
        p_return: Probability that a peer that is down is up in the next round.
    """

    p_leave: float
    p_return: float

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.number(
            p_leave=self.p_leave, p_return=self.p_return, at_least=0, at_most=1
        )

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()


@fault_models.register("scheduled-churn")
@dataclass(frozen=True, kw_only=True)
class ScheduledChurn:
    """Named peers go and come in named rounds.

    ``down`` and ``up`` freeze a peer and bring it back. ``leave`` is for good; its data
    are gone. ``crash`` loses the peer's state: it restarts as soon as it can; in that
    round it sends nothing and does no local work, and its momentum starts at 0. To
    restart from the neighbours it waits (down) until a message of one arrives.

    Attributes:
        events: (round, peer, what) with rounds from 0; an event holds from its round
            on. Later entries win within a round.
        restart: ``neighbours``: the average, by their weights, of what arrives in the
            round; ``checkpoint``: the peer's own last copy of its parameters.
        checkpoint_every: Rounds between a peer's copies of its own parameters; before
            the first it is what it started from. Only for ``checkpoint``.
    """

    events: tuple[tuple[int, int, Event], ...]
    restart: Literal["neighbours", "checkpoint"] = "neighbours"
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        """Check the fields."""
        for k, event in enumerate(self.events):
            if len(event) != 3:
                raise InvalidArgumentError(
                    f"events.{k}: must be (round, peer, what), got "
                    f"{_validate.show(event)}"
                )
            when: dict[str, Any] = {f"events.{k}.0": event[0]}
            whose: dict[str, Any] = {f"events.{k}.1": event[1]}
            _validate.integer(at_least=0, at_most=LAST_ROUND, **when)
            _validate.integer(at_least=0, **whose)
            _validate.one_of(
                ("up", "down", "leave", "crash"), **{f"events.{k}.2": event[2]}
            )
        _validate.one_of(("neighbours", "checkpoint"), restart=self.restart)
        _validate.integer(checkpoint_every=self.checkpoint_every, at_least=1)

    @property
    def crashes(self) -> bool:
        """Whether a state is ever lost."""
        return any(what == "crash" for _, _, what in self.events)

    def peers_named(self) -> tuple[int, ...]:
        """Return the peers of the events."""
        return tuple(peer for _, peer, _ in self.events)


@fault_models.register("message-loss")
@dataclass(frozen=True, kw_only=True)
class MessageLoss:
    """Every message is lost by a coin of its own, without anybody being told.

    Attributes:
        p: Probability, in [0, 1).
    """

    p: float

    def __post_init__(self) -> None:
        """Check the field.

        Raises:
            InvalidArgumentError: If nothing would ever arrive.
        """
        if isinstance(self.p, int | float) and self.p == 1:
            raise InvalidArgumentError(
                f"p: must be < 1 (nothing would ever arrive), got {self.p}"
            )
        _validate.number(p=self.p, at_least=0, below=1)

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()


@fault_models.register("delay")
@dataclass(frozen=True, kw_only=True)
class Delay:
    """Messages arrive some rounds late and lie in an inbox with the round they are of.

    In each round a peer takes the newest row of every neighbour that has arrived; one
    that is too old counts as missing. A message that arrives at a peer that is down is
    lost.

    Attributes:
        probabilities: Of a delay of 0, 1, .. d_max rounds; they sum to 1.
        max_staleness: Rounds that a row may be old, at most 64; None is d_max.
    """

    probabilities: tuple[float, ...]
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InvalidArgumentError: If the probabilities do not sum to 1.
        """
        if not 1 <= len(self.probabilities) <= _OLDEST + 1:
            raise InvalidArgumentError(
                f"probabilities: must be 1 to {_OLDEST + 1} numbers, got "
                f"{len(self.probabilities)}"
            )
        for k, p in enumerate(self.probabilities):
            named: dict[str, Any] = {f"probabilities.{k}": p}
            _validate.number(at_least=0, at_most=1, **named)
        total = math.fsum(self.probabilities)
        if abs(total - 1) > 1e-9:
            raise InvalidArgumentError(f"probabilities: must sum to 1, got {total:g}")
        if self.max_staleness is not None:
            _validate.integer(
                max_staleness=self.max_staleness, at_least=0, at_most=_OLDEST
            )

    @property
    def oldest(self) -> int:
        """The largest age of a row that is still used."""
        if self.max_staleness is None:
            return len(self.probabilities) - 1
        return self.max_staleness

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()


@fault_models.register("straggler")
@dataclass(frozen=True, kw_only=True)
class Straggler:
    """Some peers need several rounds for their local work.

    A straggler finishes its work in rounds k-1, 2k-1, .. for ``slowdown`` k, so T / k
    times (rounded down) in T rounds. It sends and mixes in every round.

    Attributes:
        share: Share of the peers, rounded down to whole peers; which is drawn by key.
        slowdown: k, rounds per local work.
        policy: ``last``: neighbours use its last model meanwhile; ``wait``: everybody
            waits, which costs simulated time and changes no result.
    """

    share: float
    slowdown: int
    policy: Literal["last", "wait"] = "last"

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.number(share=self.share, at_least=0, at_most=1)
        _validate.integer(slowdown=self.slowdown, at_least=1, at_most=LAST_ROUND)
        _validate.one_of(("last", "wait"), policy=self.policy)

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()


@fault_models.register("network-split")
@dataclass(frozen=True, kw_only=True)
class NetworkSplit:
    """No message crosses between some peers and the others for some rounds.

    Attributes:
        start: First round of the split.
        end: The first round after it.
        peers: One side.
    """

    start: int
    end: int
    peers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InvalidArgumentError: If one side would be empty or named twice.
        """
        _validate.integer(start=self.start, at_least=0, at_most=LAST_ROUND)
        _validate.integer(end=self.end, at_least=self.start + 1, at_most=LAST_ROUND)
        for k, peer in enumerate(self.peers):
            named: dict[str, Any] = {f"peers.{k}": peer}
            _validate.integer(at_least=0, **named)
        if not self.peers or len(set(self.peers)) != len(self.peers):
            raise InvalidArgumentError(
                f"peers: must name each peer of one side once, got "
                f"{_validate.show(self.peers)}"
            )

    def peers_named(self) -> tuple[int, ...]:
        """Return the peers of one side."""
        return self.peers


@fault_models.register("duplicate")
@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Messages arrive twice; the second is known by sender and number and dropped.

    Changes no result; how often it happened is counted.

    Attributes:
        p: Probability that a message that arrives does so twice.
    """

    p: float

    def __post_init__(self) -> None:
        """Check the field."""
        _validate.number(p=self.p, at_least=0, at_most=1)

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()


@fault_models.register("reorder")
@dataclass(frozen=True, kw_only=True)
class Reorder:
    """Messages of a round arrive after later ones; numbers put them in order again.

    Changes no result; how often it happened is counted.

    Attributes:
        p: Probability that a message that arrives is overtaken.
    """

    p: float

    def __post_init__(self) -> None:
        """Check the field."""
        _validate.number(p=self.p, at_least=0, at_most=1)

    def peers_named(self) -> tuple[int, ...]:
        """Return no peers."""
        return ()
