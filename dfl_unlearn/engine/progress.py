"""How far a training has come: all that its next round depends on, as named arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.engine.backends.recorder import Recorded
from dfl_unlearn.engine.figures import Evaluated, history_of
from dfl_unlearn.engine.state import PeerState

Array = Tensor | NDArray[np.generic]

_SLOT = "slot."


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A training between two rounds.

    Attributes:
        state: Every peer's parameters and slots.
        recorded: What the rounds so far wrote down; None where nothing is kept.
        rows: Figures taken so far.
        seconds: Time spent so far, for readers only.
        faults: What went wrong so far, as JSON values, for readers only.
    """

    state: PeerState
    recorded: Recorded | None
    rows: tuple[Evaluated, ...] = ()
    seconds: float = 0.0
    faults: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """Return everything but the record's states, by name."""
        history = history_of(self.rows)
        n = self.state.n
        found: dict[str, Array] = {"params": self.state.params}
        found |= {f"{_SLOT}{name}": rows for name, rows in self.state.slots.items()}
        if self.recorded is not None:
            found["record.rates"] = self.recorded.rates
            if self.recorded.norms is not None:
                found["record.norms"] = self.recorded.norms
        found["history.rounds"] = history.rounds
        found["history.loss"] = history.loss.reshape(-1, n)
        found["history.accuracy"] = history.accuracy.reshape(-1, n)
        found["history.consensus"] = history.consensus
        found["history.seconds"] = history.seconds
        simulated = history.simulated_seconds
        if simulated is not None:
            found["history.simulated_seconds"] = simulated
        return found

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, Tensor],
        *,
        round: int,
        seconds: float,
        faults: Mapping[str, Any],
        states: Mapping[int, Tensor],
    ) -> "Progress":
        """Return what ``arrays`` gave.

        Args:
            arrays: Name -> array.
            round: Rounds that are behind it.
            seconds: Time spent on them.
            faults: What went wrong in them.
            states: The record's states: round -> ``(N, P)``.

        Returns:
            The progress.
        """
        recorded = None
        if "record.rates" in arrays:
            norms = arrays.get("record.norms")
            recorded = Recorded(
                rates=arrays["record.rates"].numpy(),
                norms=None if norms is None else norms.numpy(),
                checkpoints=states,
            )
        names = ("rounds", "loss", "accuracy", "consensus", "seconds")
        columns = [arrays[f"history.{name}"].numpy() for name in names]
        simulated = arrays.get("history.simulated_seconds")
        columns.append(
            np.full(len(columns[0]), np.nan) if simulated is None else simulated.numpy()
        )
        return cls(
            state=PeerState(
                params=arrays["params"],
                slots={
                    name.removeprefix(_SLOT): rows
                    for name, rows in arrays.items()
                    if name.startswith(_SLOT)
                },
                round=round,
            ),
            recorded=recorded,
            rows=tuple(
                (int(done), loss, accuracy, float(consensus), float(at), float(there))
                for done, loss, accuracy, consensus, at, there in zip(
                    *columns, strict=True
                )
            ),
            seconds=seconds,
            faults=faults,
        )
