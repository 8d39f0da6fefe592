"""Which parts of a training run to keep, and how often."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError

RecordPart = Literal[
    "initial_state", "checkpoints", "gradient_norms", "training_residual"
]

_MOST_CHECKPOINTS = 8


@dataclass(frozen=True, kw_only=True)
class RecordPlan:
    """What training writes down besides the final state.

    Batches are never kept: the keyed draws give them again.

    Attributes:
        parts: Any of ``initial_state``, ``checkpoints`` (the state after some rounds),
            ``gradient_norms`` (one number per round and peer, for influence) and
            ``training_residual`` (how far the last mean model is from a minimizer).
        every: Rounds between checkpoints; ``"auto"`` spreads at most eight of them
            evenly, fewer if they would not fit the budget.
        memory_budget: Bytes that checkpoints may take in memory.
    """

    parts: frozenset[RecordPart] = field(
        default_factory=lambda: frozenset(get_args(RecordPart))
    )
    every: int | Literal["auto"] = "auto"
    memory_budget: int = 2**30

    def __post_init__(self) -> None:
        """Check the fields."""
        known = get_args(RecordPart)
        for part in self.parts:
            _validate.one_of(known, parts=part)
        if self.every != "auto":
            _validate.integer(every=self.every, at_least=1)
        _validate.integer(memory_budget=self.memory_budget, at_least=0)

    @classmethod
    def for_protocols(cls, *protocols: Any) -> "RecordPlan":
        """Return the smallest plan that serves the given protocols.

        Args:
            *protocols: Protocol classes or instances; their ``needs`` are united.

        Returns:
            The plan.
        """
        needs: frozenset[RecordPart] = frozenset()
        for protocol in protocols:
            found: Any = getattr(protocol, "needs", frozenset())
            # Of a class whose fields decide: what its defaults need.
            needs |= protocol().needs if isinstance(found, property) else found
        return cls(parts=needs)

    def checkpoint_rounds(self, rounds: int, state_bytes: int) -> tuple[int, ...]:
        """Return after which rounds the state is kept.

        Args:
            rounds: Length of the run.
            state_bytes: Size of one state.

        Returns:
            Ascending round numbers in ``1 .. rounds``; the last round is not among
            them, since the final state is kept anyway.

        Raises:
            InvalidArgumentError: If a given cadence does not fit the budget.
        """
        if "checkpoints" not in self.parts:
            return ()
        room = self.memory_budget // max(state_bytes, 1)
        if self.every == "auto":
            count = min(_MOST_CHECKPOINTS, room, rounds - 1)
            if count < 1:
                return ()
            every = -(-rounds // (count + 1))
        else:
            every = self.every
            if (rounds - 1) // every > room:
                raise InvalidArgumentError(
                    f"record.every: must be >= {-(-rounds // (room + 1))} to fit "
                    f"memory_budget={self.memory_budget}, got {every}; raise either "
                    "or use every='auto'"
                )
        return tuple(range(every, rounds, every))
