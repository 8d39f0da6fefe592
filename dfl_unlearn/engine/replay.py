"""Running a finished training again, to look at what was not kept.

Batches come from the same keys and states from the same block functions, so a replay
passes through the states of the run bit for bit; that it ends in the run's own state is
checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.batches import Batch, BatchPlan
from dfl_unlearn.engine.fault_rounds import RoundsOfFaults
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import (
    MissingRecordError,
    ReplayDivergedError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.graph import TopologySchedule

_DIFFERENTIABLE = (DSgd, GradientTracking)
_CHUNK_PEERS = 16  # as in the local work


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalStep:
    """One local step of some peers of a block, all that its derivative needs.

    Attributes:
        peers: The peers, shape ``(k,)``.
        batch: Their rows.
        rates: Learning rates; 0 for a peer that takes no step, shape ``(k,)``.
        scale: Factors on the objectives, shape ``(k,)``.
        decay: Factor on the parameters in each gradient: l2 (scaled) and weight decay.
    """

    peers: NDArray[np.int64]
    batch: Batch
    rates: NDArray[np.float64]
    scale: NDArray[np.float64]
    decay: NDArray[np.float64]


class Replay:
    """The rounds of a run, one after the other, from its initial state."""

    def __init__(self, run: TrainedRun) -> None:
        """Check that the run can be replayed; nothing is computed.

        Args:
            run: The trained run.

        Raises:
            MissingRecordError: If the run has no record of its initial state.
        """
        record = run.record
        if record is None or record.initial is None:
            raise MissingRecordError(
                "run: must hold a record with initial_state to be replayed, got "
                f"{'no record' if record is None else 'one without it'}; train with "
                "record=RecordPlan()"
            )
        self.run = run
        self.config = replace(run.config, record=RecordPlan(parts=frozenset()))
        self.rounds = record.rounds
        self.rates = record.step_sizes
        self.scale = peer_scale(run.data, run.config.peer_weighting)
        self.steps = run.config.local.per_round(run.data.sizes)
        self.initial = PeerState(params=record.initial)
        # Training began with the network's clock, whatever came after it.
        draws = run.faults()
        self.faults = None if draws is None else RoundsOfFaults(draws, 0)
        self._plan = BatchPlan(
            offsets=run.data.offsets,
            keep=run.data.keep,
            counted=run.data.counted,
            local=run.config.local,
            rng=run.rng,
            block_peers=run.config.block_peers,
        )

    def states(self, start: PeerState, rounds: int) -> Iterator[PeerState]:
        """Train on from a state and yield it after every round.

        Args:
            start: Where to start; ``start.round`` rounds are behind it.
            rounds: How many rounds.

        Yields:
            Copies, of the run's type.
        """
        backend = Inline()
        backend.start(
            EngineSetup(
                schedule=self.schedule,
                data=self.run.data,
                model=self.run.model,
                config=self.config,
                rng=self.run.rng,
            ),
            start,
        )
        for t in range(start.round, start.round + rounds):
            backend.advance(t)
            yield backend.gather()

    @property
    def schedule(self) -> TopologySchedule:
        """The networks of the rounds."""
        schedule = self.config.schedule
        return self.run.topology if schedule is None else schedule

    def check_end(self, state: PeerState) -> None:
        """Compare a state with the run's own, where it is of the same round.

        Args:
            state: The replay's state.

        Raises:
            ReplayDivergedError: If one bit differs.
        """
        run = self.run
        if state.round != run.state.round:
            return  # the run went on elsewhere
        if not torch.equal(state.params, run.state.params):
            wrong = (state.params != run.state.params).any(dim=1)
            peer = int(wrong.nonzero()[0])
            off = float((state.params - run.state.params).abs().max())
            raise ReplayDivergedError(
                f"run: a replay must end in the run's state after round {state.round}, "
                f"got another one at {int(wrong.sum())} peers (first {peer}, by up to "
                f"{off:.3g}); use the versions, threads and machine type that trained "
                "it, or train it again"
            )

    def local_steps(
        self, t: int, active: NDArray[np.bool_]
    ) -> Iterator[list[LocalStep]]:
        """Yield a round's local steps, one list per chunk of a block.

        Args:
            t: Round, counted from 0.
            active: Which peers are asked for, shape ``(N,)``.

        Yields:
            Steps in order; each one's peers are a prefix of the first one's.
        """
        width = self.config.block_peers
        for begin in range(0, len(self.steps), width):
            peers = np.flatnonzero(active[begin : begin + width]) + begin
            if not len(peers):
                continue
            peers = peers[np.argsort(-self.steps[peers], kind="stable")]
            for first in range(0, len(peers), _CHUNK_PEERS):
                chunk = peers[first : first + _CHUNK_PEERS]
                yield [
                    self.local_step(t, chunk[self.steps[chunk] > s], s)
                    for s in range(int(self.steps[chunk].max()))
                ]

    def local_step(self, t: int, peers: NDArray[np.int64], s: int = 0) -> LocalStep:
        """Return step s of round t of some peers of one block."""
        scale = self.scale[peers]
        rate = self.rates[min(t, self.rounds - 1)]
        return LocalStep(
            peers=peers,
            batch=self._plan.batch(peers, t * self.steps[peers] + s),
            rates=np.where(scale > 0, rate, 0.0),
            scale=scale,
            decay=scale * self.run.model.l2 + self.config.local.weight_decay,
        )

    def works(self, t: int) -> NDArray[np.bool_]:
        """Return who did its local work in round t, shape ``(N,)``."""
        if self.faults is None:
            return np.ones(len(self.steps), dtype=np.bool_)
        return self.faults.works(t)

    def forget_crashed(self, t: int, slot: Tensor) -> None:
        """Set the rows of a slot to 0 that were lost in round t, in place."""
        if self.faults is not None and (crashed := self.faults.crashed(t)).any():
            slot[torch.from_numpy(crashed)] = 0.0

    def mix(self, t: int, rows: Tensor, *, back: bool = False) -> Tensor:
        """Return W rows of round t in float64, or W' rows (``back``), ``(N, P)``."""
        weights = self.schedule.at(t).weights
        if self.faults is not None:
            weights = self.faults.weights(t).by_age[0]
        mixed = (weights.T if back else weights) @ rows.numpy()
        return torch.from_numpy(np.ascontiguousarray(mixed))


def refuse_undifferentiable(run: TrainedRun) -> None:
    """Refuse training iterations whose derivative is not known here.

    Args:
        run: The trained run.

    Raises:
        UnsupportedRequestError: For per-sample clipping, and for other trainers.
    """
    local = run.config.local
    reason = ""
    if run.config.clip_norm is not None:
        reason = (
            f"clip_norm={run.config.clip_norm:g}: clipped gradients have no derivative "
            "where they are cut"
        )
    elif getattr(local, "optimizer", "sgd") != "sgd":
        reason = f"optimizer={getattr(local, 'optimizer', '')!r}: it adapts its steps"
    elif type(run.config.trainer) not in _DIFFERENTIABLE:
        reason = f"trainer {type(run.config.trainer).__name__}: no derivative is known"
    elif run.config.faults.oldest > 0:
        reason = "delay: old rows are mixed in"
    elif run.config.faults.own_checkpoints is not None:
        reason = "restarts from own checkpoints"
    if reason:
        raise UnsupportedRequestError(
            f"mode: must not be 'exact' for a run trained with {reason}; use "
            "influence_trace with mode='norm_bound' or 'mixing_power'"
        )


class Chosen:
    """Whose weight is differentiated: rows and how the divisor answers."""

    def __init__(self, run: TrainedRun, what: ForgetRequest | int) -> None:
        """Resolve a request, or take all rows of a peer.

        Args:
            run: The trained run.
            what: A request or a peer.
        """
        if isinstance(what, ForgetRequest):
            request = what.resolve(run.data)
            self.source = request.requester
            self.owners = request.peers
            self.rows = request.mask(run.data)
            self.moves_divisor = (
                request.kind != "peer" and request.normalization == "local_mean"
            )
        else:
            run.data.check_peer(what)
            self.source, self.owners = int(what), (int(what),)
            self.rows = np.zeros(len(run.data.store), dtype=np.bool_)
            self.rows[run.data.rows(what)] = True
            self.moves_divisor = False

    def weights(self, batch: Batch) -> NDArray[np.float64]:
        """Return the derivative of a batch's weights in omega, shape ``(k, B)``."""
        share: NDArray[np.float64] = batch.weights * self.rows[batch.index]
        if self.moves_divisor:
            share = share - batch.weights * share.sum(axis=1, keepdims=True)
        return share
