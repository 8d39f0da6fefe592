"""What a backend promises: it holds the stacked state and advances it round by round.

Any backend runs the same block functions in the same blocks, so the results are the
same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.training import TrainingRecord
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import TopologySchedule

if TYPE_CHECKING:
    from dfl_unlearn.engine.backends.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """Everything a backend needs besides the state it starts from.

    Attributes:
        schedule: The network of every round when nothing fails.
        data: What the peers hold.
        model: What they train.
        config: How.
        rng: The run's draws.
        ahead: Rounds by which the network's clock, which faults go by, is ahead of the
            rounds of training.
        draws: What goes wrong, where it is not what the configuration's plan draws.
    """

    schedule: TopologySchedule
    data: PeerData
    model: FlatModel
    config: SimulationConfig
    rng: RngTree
    ahead: int = 0
    draws: FaultDraws | None = None


@dataclass(frozen=True, kw_only=True)
class RoundInfo:
    """What one round tells its callers.

    Attributes:
        round: Rounds completed, this one included.
        loss: Batch loss of every peer before its first step, shape ``(N,)``.
        gradient_norms: Sum over the local steps of the norm of the data term's
            gradient, shape ``(N,)``.
        seconds: Elapsed time of the round.
        simulated_seconds: When the last peer was done with it, since the start, on
            the clock of ``engine.clock``; the training loop fills it in.
        faults: How often what went wrong; see ``fault_draws.RoundFaults.counts``.
    """

    round: int
    loss: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]
    seconds: float
    simulated_seconds: float = 0.0
    faults: Mapping[str, int] = field(default_factory=dict)


class Backend(Protocol):
    """Holds the stacked state, whole or in row blocks, and advances it."""

    def start(
        self, setup: EngineSetup, state: PeerState, recorder: "Recorder | None" = None
    ) -> None:
        """Take over a state, and a record that was begun; the state is not written to.

        Without a recorder one is started.
        """
        ...

    def advance(self, t: int) -> RoundInfo:
        """Run round t (from 0) of the trainer at every peer; write the record."""
        ...

    def gather(self) -> PeerState:
        """Return the whole state (N, P)."""
        ...

    def stop(self) -> TrainingRecord:
        """Return what was recorded since ``start``."""
        ...

    def close(self) -> None:
        """End what the backend started; may be called at any time, also twice."""
        ...

    def report(self) -> dict[str, Any]:
        """Return who did what, for the manifest; it changes no result."""
        ...
