"""A finished training run: everything a protocol may look at, in memory and on disk."""

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faulty_transport import FaultyTransport
from dfl_unlearn.engine.personal import Personal
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Guard, Transport
from dfl_unlearn.errors import InvalidArgumentError, NumericalError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.training import TrainingRecord
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.inputs import read_arrays
from dfl_unlearn.topology.graph import Topology, TopologySchedule


@dataclass(frozen=True, kw_only=True)
class History:
    """Figures taken while training, at the evaluated rounds only.

    Attributes:
        rounds: Rounds completed, shape ``(E,)``.
        loss: Batch loss of every peer's last round, shape ``(E, N)``.
        accuracy: Test accuracy (a fraction; for regression minus the mean squared
            error) of every peer, shape ``(E, N)``.
        consensus: Mean squared distance to the average, shape ``(E,)``.
        seconds: Elapsed training time, shape ``(E,)``; not part of the digest.
        simulated_seconds: When the last peer was done, on the clock of
            ``engine.clock``, shape ``(E,)``; not part of the digest. None in runs
            made before there was one.
    """

    rounds: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    consensus: NDArray[np.float64]
    seconds: NDArray[np.float64]
    simulated_seconds: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class CarriedOut:
    """A forget request that a state already carries.

    Attributes:
        request_id: Its id.
        round: The state's round when it was asked.
        rows: Owner -> number of rows that went.
        pending: Peer that left before it took the corrected model -> norm of the
            influence that it left with, None where that is not known.
    """

    request_id: str
    round: int
    rows: Mapping[int, int]
    pending: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained network.

    Attributes:
        topology: Who talks to whom.
        data: What each peer holds.
        model: The model, a function of one row of the state.
        config: How it was trained.
        state: Every peer's parameters.
        record: What training wrote down, or None for states made elsewhere.
        history: Figures over the rounds, or None.
        ledger: Privacy spent so far.
        rng: The run's draws.
        digest: SHA-256 of what must be equal in a repeated run.
        folder: Where it is stored, or None.
        info: Kernel, threads, versions and seconds, for readers only.
        carried_out: Requests that this state carries, oldest first.
        guard: Holds messages back, in an attempt whose claim is about all of them.
        ahead: Rounds by which the network's clock is ahead of ``state.round``; steps
            of communication in which nobody trained.
        personal: What peers keep beside the models, by peer and name, as the last
            request left it; see ``engine.personal``.
    """

    topology: Topology
    data: PeerData
    model: FlatModel
    config: SimulationConfig
    state: PeerState
    record: TrainingRecord | None
    history: History | None
    ledger: PrivacyLedger
    rng: RngTree
    digest: str
    folder: Path | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    carried_out: tuple[CarriedOut, ...] = ()
    guard: Guard | None = None
    ahead: int = 0
    personal: Personal = field(default_factory=dict)

    @classmethod
    def from_states(
        cls,
        topology: Topology,
        data: PeerData,
        model: FlatModel,
        states: Tensor | str | Path,
        config: SimulationConfig | None = None,
    ) -> "TrainedRun":
        """Bring in models that were trained elsewhere.

        Such a run has no record; protocols that need one say so.

        Args:
            topology: The network.
            data: What each peer holds.
            model: The model.
            states: One row of parameters per peer, shape ``(N, P)``; or a ``.npz`` or
                ``.safetensors`` file with the one array ``params``, or a ``.npy``.
            config: How training would go on; its seed names all further draws.

        Returns:
            The run.

        Raises:
            InvalidArgumentError: If the shape does not fit network and model.
            NumericalError: If a row is not finite.
        """
        config = config if config is not None else SimulationConfig()
        if isinstance(states, str | Path):
            states = torch.from_numpy(read_arrays(states, names=("params",))["params"])
        _validate.of_type(Tensor, why="or the path of a file", states=states)
        if not states.is_floating_point():
            raise InvalidArgumentError(
                f"states: must be float32 or float64, got {states.dtype}; convert them"
            )
        if tuple(states.shape) != (data.n, model.size) or topology.n != data.n:
            raise InvalidArgumentError(
                f"states: must have shape ({topology.n}, {model.size}) for "
                f"{topology.n} peers, got {tuple(states.shape)} and data for {data.n} "
                "peers; give one row per peer"
            )
        bad = ~states.isfinite().all(dim=1)
        if bool(bad.any()):
            raise NumericalError(
                f"states: must be finite, got peer {int(bad.nonzero()[0])} that is not"
            )
        state = PeerState(params=states.detach().to(config.torch_dtype, copy=True))
        return cls(
            topology=topology,
            data=data,
            model=model,
            config=config,
            state=state,
            record=None,
            history=None,
            ledger=PrivacyLedger(config.privacy_budget),
            rng=RngTree(config.seed),
            digest=state_digest(state),
        )

    def replaced(self, **changes: Any) -> "TrainedRun":
        """Return a copy with other fields.

        A copy with another state no longer has the record, the history and the digest
        of the training that made the old one.
        """
        if "state" in changes:
            changes = {"record": None, "history": None, "folder": None, **changes}
            changes.setdefault("digest", state_digest(changes["state"]))
        return replace(self, **changes)

    @property
    def network_round(self) -> int:
        """The network's clock: training round t is in round t + ``ahead`` of it."""
        return self.state.round + self.ahead

    @property
    def schedule(self) -> TopologySchedule:
        """The network of every round when nothing fails."""
        schedule = self.config.schedule
        return self.topology if schedule is None else schedule

    def faults(self) -> FaultDraws | None:
        """Return what goes wrong in every round of the network; None if nothing does.

        Equal for every run with the same seed, plan and network.
        """
        if not self.config.faults:
            return None
        return FaultDraws.of(self.config.faults, self.schedule, self.rng)

    def transport(self) -> Transport:
        """Return a transport over this network with an empty log."""
        draws = self.faults()
        if draws is None:
            return Transport(self.topology, self.requests, guard=self.guard)
        return FaultyTransport(
            self.topology,
            self.requests,
            guard=self.guard,
            draws=draws,
            clock=self.network_round,
            patience=self.config.faults.patience,
        )

    @property
    def requests(self) -> int:
        """Number of forget requests that this state already carries."""
        return int(self.info.get("requests", 0))

    def save(self, path: str | Path) -> "TrainedRun":
        """Write the run into a run folder; see ``engine.stored.save_run``."""
        from dfl_unlearn.engine.stored import save_run

        return save_run(self, path)

    def _repr_html_(self) -> str:
        """Return a short table for notebooks."""
        accuracy = "-"
        if self.history is not None and len(self.history.rounds):
            accuracy = f"{self.history.accuracy[-1].mean():.4f}"
        rows = {
            "network": f"{self.topology.name}, {self.topology.n} peers",
            "data": f"{self.data.name}, {int(self.data.retained.sum())} rows",
            "rounds": self.state.round,
            "mean test score": accuracy,
            "digest": self.digest[:16],
        }
        if "faults" in self.info:
            totals = self.info["faults"]["totals"].items()
            rows["faults"] = ", ".join(f"{n} {count}" for n, count in totals)
        cells = "".join(
            f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>"
            for key, value in rows.items()
        )
        return f"<table>{cells}</table>"


def state_digest(state: PeerState) -> str:
    """Return the SHA-256 of a state's parameters alone."""
    raw = state.params.contiguous().numpy()
    return hashlib.sha256(raw.astype(raw.dtype.newbyteorder("<")).tobytes()).hexdigest()


def load_run(
    path: str | Path, *, data: PeerData | None = None, model: FlatModel | None = None
) -> TrainedRun:
    """Read a finished run from its folder.

    Args:
        path: The run folder.
        data: The peers' data where the run was made from arrays of your own, which
            are never stored.
        model: The model where it is not one of the zoo's.

    Returns:
        The run as it was saved, its ledger bound to the folder.
    """
    from dfl_unlearn.engine.stored import read_run

    return read_run(path, data=data, model=model)
