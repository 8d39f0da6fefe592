"""What goes wrong in the simulated network: a plan of fault models.

Peers leave and return, messages are lost, late, doubled or out of order, some peers are
slow and the network may be split for a while. A plan says what can happen; what does
happen in which round is drawn by key (``engine.fault_draws``), so it is the same for
any engine, number of workers and protocol under the same seed.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dfl_unlearn import _validate
from dfl_unlearn.engine.fault_models import (
    LAST_ROUND,
    Delay,
    Duplicate,
    FaultModel,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    Reorder,
    ScheduledChurn,
    Straggler,
    fault_models,
)
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError

if TYPE_CHECKING:
    from dfl_unlearn.engine.trainers.contract import Trainer

__all__ = [
    "Delay",
    "Duplicate",
    "FaultModel",
    "FaultPlan",
    "MarkovChurn",
    "MessageLoss",
    "NetworkSplit",
    "Reorder",
    "ScheduledChurn",
    "Straggler",
    "WeightPolicy",
    "fault_models",
]

WeightPolicy = Literal["self", "symmetric_drop", "push_sum"]


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
        _validate.integer(
            token_timeout=self.token_timeout, at_least=1, at_most=LAST_ROUND
        )
        _validate.integer(patience=self.patience, at_least=0, at_most=LAST_ROUND)
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
        one. Symmetric weights stay symmetric where both directions fail together. Push-
        sum is counted as not keeping it, though it does where no mass moves.
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
