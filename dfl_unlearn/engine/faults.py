"""What goes wrong in the simulated network: a plan of fault models.

Peers leave and return, messages are lost, late, doubled or out of order, some peers are
slow and the network may be split for a while. A plan says what can happen; what does
happen in which round is drawn by key (``engine.fault_draws``), so it is the same for
any engine, number of workers and protocol under the same seed.

Every model is a frozen dataclass with a registered name; a file gives them as
``[[training.faults.models]]`` with ``use = "markov-churn"``.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError
from dfl_unlearn.registry import Registry

if TYPE_CHECKING:
    from dfl_unlearn.engine.trainers.contract import Trainer

WeightPolicy = Literal["self", "symmetric_drop", "push_sum"]
Event = Literal["up", "down", "leave", "crash"]

_ROUNDS = 10_000_000
_OLDEST = 64  # rounds that a message may be old; each is one more copy of the state


@runtime_checkable
class FaultModel(Protocol):
    """One way in which the network fails; its fields say how often."""

    def peers_named(self) -> tuple[int, ...]:
        """Return the peers that the model names, for a check against the network."""
        ...


fault_models: Registry[FaultModel] = Registry(
    "faults", packages=("dfl_unlearn.engine.faults",)
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
            _validate.integer(at_least=0, at_most=_ROUNDS, **when)
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
        _validate.integer(slowdown=self.slowdown, at_least=1, at_most=_ROUNDS)
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
        _validate.integer(start=self.start, at_least=0, at_most=_ROUNDS)
        _validate.integer(end=self.end, at_least=self.start + 1, at_most=_ROUNDS)
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


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """The faults of a run's network; none unless models are given.

    Where a row of W lacks a message, ``weight_policy`` says where its weight goes:

    * ``symmetric_drop``: nothing crosses the edge in either direction and both ends
      keep the weight. Symmetric weights stay doubly stochastic, so the mean is kept.
    * ``self``: the receiver keeps the weight. Rows sum to one; after a loss in one
      direction columns do not, and the mean moves.
    * ``push_sum``: the sender keeps the weight (it is taken to notice), and models
      travel with a mass w; a peer's parameters are the estimate x/w. The mean of the
      estimates by mass is kept; a single round does not keep the plain mean.

    Attributes:
        models: What can go wrong; several of one kind are independent. At most one
            ``Delay``.
        weight_policy: As above.
        token_timeout: Rounds without a sign of life after which the last acknowledged
            holder of a token goes on.
        patience: Rounds that a request waits for peers that are down.
    """

    models: tuple[FaultModel, ...] = ()
    weight_policy: WeightPolicy = "symmetric_drop"
    token_timeout: int = 10
    patience: int = 1000

    def __post_init__(self) -> None:
        """Check the fields and that they go together.

        Raises:
            InvalidArgumentError: If two models contradict each other.
        """
        _validate.of_type(tuple, models=self.models)
        for k, model in enumerate(self.models):
            _validate.of_type(
                FaultModel, why="e.g. MessageLoss(p=0.1)", **{f"models.{k}": model}
            )
        _validate.one_of(
            ("self", "symmetric_drop", "push_sum"), weight_policy=self.weight_policy
        )
        _validate.integer(token_timeout=self.token_timeout, at_least=1, at_most=_ROUNDS)
        _validate.integer(patience=self.patience, at_least=0, at_most=_ROUNDS)
        delays = [m for m in self.models if isinstance(m, Delay)]
        if len(delays) > 1:
            raise InvalidArgumentError(
                f"models: must hold at most one delay, got {len(delays)}; give one "
                "with the distribution of the sum"
            )
        if delays and self.weight_policy == "push_sum":
            raise InvalidArgumentError(
                "weight_policy: must not be 'push_sum' with delay (mass would be on "
                "its way between rounds); use 'symmetric_drop' or 'self'"
            )
        if self.crashes and (delays or self.weight_policy == "push_sum"):
            raise InvalidArgumentError(
                "models: a crash must not go with delay or push_sum (mass and messages "
                "on their way would be lost with the state); use 'down' and 'up'"
            )
        restarts = {m.restart for m in self._scheduled if m.crashes}
        if len(restarts) > 1:
            raise InvalidArgumentError(
                "models: crashes must all restart in the same way, got both "
                "'neighbours' and 'checkpoint'"
            )

    def __bool__(self) -> bool:
        """Whether anything can go wrong."""
        return bool(self.models)

    def check(self, n: int) -> None:
        """Refuse models that name peers which are not there.

        Args:
            n: Number of peers.

        Raises:
            UnknownPeerError: Naming the model and the peer.
        """
        for k, model in enumerate(self.models):
            for peer in model.peers_named():
                if peer >= n:
                    raise UnknownPeerError(
                        f"faults.models.{k}: must name peers in 0..{n - 1}, got {peer}"
                    )

    @property
    def delay(self) -> Delay | None:
        """The model of late messages, or None."""
        return next((m for m in self.models if isinstance(m, Delay)), None)

    @property
    def oldest(self) -> int:
        """Rounds that a row may be old when it is mixed in; 0 without delay."""
        return 0 if self.delay is None else self.delay.oldest

    @property
    def crashes(self) -> bool:
        """Whether a peer's state is ever lost."""
        return any(m.crashes for m in self._scheduled)

    @property
    def own_checkpoints(self) -> int | None:
        """Rounds between peers' copies of their own parameters; None without any."""
        every = [
            m.checkpoint_every
            for m in self._scheduled
            if m.crashes and m.restart == "checkpoint"
        ]
        return min(every) if every else None

    @property
    def stops_work(self) -> bool:
        """Whether a peer ever skips its local work."""
        return any(
            isinstance(m, MarkovChurn | ScheduledChurn)
            or (isinstance(m, Straggler) and m.policy == "last")
            for m in self.models
        )

    @property
    def loses_messages(self) -> bool:
        """Whether a message ever does not arrive in its own round."""
        lossless = (Straggler, Duplicate, Reorder)
        return any(not isinstance(m, lossless) for m in self.models)

    @property
    def keeps_mean(self) -> bool:
        """Whether every round's weights are sure to keep the peers' plain mean.

        [derived] The mean is kept exactly if the columns of the effective matrix sum to
        one. Symmetric weights stay symmetric where both directions fail together.
        """
        moves = self.weight_policy == "push_sum" and self.loses_messages
        return not (self._one_way or moves or self.crashes or self._is_late)

    def breaks(self, trainer: "Trainer") -> tuple[str, ...]:
        """Say what no longer holds of a run trained under this plan.

        Args:
            trainer: The training iteration.

        Returns:
            One sentence per property that proofs about fault-free runs use; empty where
            the plan changes nothing.
        """
        policy, found = self.weight_policy, []
        if self.loses_messages:
            found.append("the weights differ from round to round: messages are missing")
        if self._one_way:
            found.append(
                "weights are row-stochastic only: weight_policy='self' with "
                + ("delay" if self._delays else "message-loss")
            )
        if policy == "push_sum" and self.loses_messages:
            found.append(
                "weights are row-stochastic only: weight_policy='push_sum' keeps the "
                "mean by mass, not the plain mean"
            )
        if self._is_late:
            found.append("the mean is not kept: rows are mixed when they are old")
        if self.crashes:
            found.append("the mean is not kept: a peer's state is lost in a crash")
        if self.stops_work:
            found.append("peers skip local work in some rounds")
        if found and trainer.form == "gradient_tracking" and not self.keeps_mean:
            found.append("the trackers' mean is not the mean gradient")
        return tuple(found)

    @property
    def _delays(self) -> bool:
        """Whether a message is ever late."""
        return self.delay is not None and any(self.delay.probabilities[1:])

    @property
    def _is_late(self) -> bool:
        """Whether a row is ever mixed in when it is old."""
        others = tuple(m for m in self.models if not isinstance(m, Delay))
        missing = replace(self, models=others).loses_messages if others else False
        return self.oldest > 0 and (self._delays or missing)

    @property
    def _one_way(self) -> bool:
        """Whether a receiver ever keeps the weight of one direction alone."""
        lossy = any(isinstance(m, MessageLoss) and m.p > 0 for m in self.models)
        return self.weight_policy == "self" and (lossy or self._delays)

    @property
    def _scheduled(self) -> tuple[ScheduledChurn, ...]:
        return tuple(m for m in self.models if isinstance(m, ScheduledChurn))
