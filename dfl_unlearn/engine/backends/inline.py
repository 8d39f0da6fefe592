"""The reference backend: one process, two state buffers that swap roles."""

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.engine.backends.contract import EngineSetup, RoundInfo
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.local import LocalWork, contiguous, rows_of
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import NumericalError
from dfl_unlearn.record.training import Dynamics, TrainingRecord
from dfl_unlearn.topology.graph import Topology


class Inline:
    """Trains all peers in this process, chunk by chunk."""

    def start(self, setup: EngineSetup, state: PeerState) -> None:
        """Take over a state; it is not written to.

        Args:
            setup: Network, data, model, configuration and draws.
            state: Where training starts; ``state.round`` rounds are behind it.
        """
        config = setup.config
        self._setup = setup
        self.work = LocalWork(setup.data, setup.model, config, setup.rng)
        self._chunks = self.work.chunks()
        self._params = state.params.to(config.torch_dtype, copy=True).contiguous()
        self._buffer = torch.zeros_like(self._params)
        self._round = state.round
        self._velocity: Tensor | None = None
        if config.local.momentum > 0:
            old = state.slots.get("momentum")
            self._velocity = (
                torch.zeros_like(self._params)
                if old is None
                else old.to(config.torch_dtype, copy=True)
            )
        self._weights: tuple[Topology, Tensor] | None = None
        self._initial = state.params
        self._norms: list[NDArray[np.float64]] = []
        self._rates: list[float] = []
        self._checkpoints: dict[int, Tensor] = {}
        nbytes = self._params.numel() * self._params.element_size()
        self._keep_at = frozenset(
            config.record.checkpoint_rounds(config.rounds, nbytes)
        )

    def advance(self, t: int) -> RoundInfo:
        """Run round t (from 0) at every peer.

        Args:
            t: Round to run.

        Returns:
            Losses, gradient norms and seconds of the round.

        Raises:
            NumericalError: If a peer's loss or gradient is not finite.
        """
        began = time.perf_counter()
        n = len(self._params)
        loss, norms = np.zeros(n), np.zeros(n)
        weights = self._mixing(t)
        atc = self._setup.config.trainer.form == "atc"
        if not atc:
            mix(self._params, weights, out=self._buffer)
        for peers in self._chunks:
            before = rows_of(self._params, peers)
            rows = before if atc else before.clone()
            velocity = (
                None if self._velocity is None else rows_of(self._velocity, peers)
            )
            with np.errstate(over="ignore", invalid="ignore"):  # found by _check
                loss[peers], norms[peers] = self.work.round(t, peers, rows, velocity)
            self._put(self._params if atc else self._buffer, peers, rows, before, atc)
            if velocity is not None and contiguous(peers) is None:
                assert self._velocity is not None
                self._velocity[torch.from_numpy(peers)] = velocity
        self._check(t, loss, norms)
        if atc:
            mix(self._params, weights, out=self._buffer)
        self._params, self._buffer = self._buffer, self._params
        self._round = t + 1
        self._rates.append(self._setup.config.local.rate(t, self._setup.config.rounds))
        if "gradient_norms" in self._setup.config.record.parts:
            self._norms.append(norms)
        if self._round in self._keep_at:
            self._checkpoints[self._round] = self._params.clone()
        return RoundInfo(
            round=self._round,
            loss=loss,
            gradient_norms=norms,
            seconds=time.perf_counter() - began,
        )

    def gather(self) -> PeerState:
        """Return a copy of the whole state.

        Raises:
            NumericalError: If a peer's parameters are not finite.
        """
        finite = self._params.isfinite().all(dim=1)
        if not bool(finite.all()):
            peer = int(torch.nonzero(~finite)[0])
            raise NumericalError(
                f"peer {peer} became non-finite in round {self._round}; lower "
                "learning_rate or set clip_norm"
            )
        slots = {}
        if self._velocity is not None:
            slots["momentum"] = self._velocity.clone()
        return PeerState(params=self._params.clone(), slots=slots, round=self._round)

    def stop(self) -> TrainingRecord:
        """Return what was recorded since ``start``."""
        setup, config = self._setup, self._setup.config
        keep = config.record.parts
        return TrainingRecord(
            plan=config.record,
            dynamics=Dynamics(
                form=config.trainer.form,
                local_steps=self.work.steps,
                scale=self.work.scale,
                decay=setup.model.l2,
                weight_decay=config.local.weight_decay,
                momentum=config.local.momentum,
                convex=setup.model.convex,
                smoothness=_smoothness(setup),
                clip_norm=config.local.clip_norm,
            ),
            step_sizes=np.array(self._rates),
            initial=self._initial if "initial_state" in keep else None,
            checkpoints=self._checkpoints,
            gradient_norms=np.array(self._norms) if self._norms else None,
        )

    def _mixing(self, t: int) -> Tensor:
        topology = self._setup.schedule.at(t)
        if self._weights is None or self._weights[0] is not topology:
            dtype = self._setup.config.torch_dtype
            self._weights = (topology, as_csr(topology.weights, dtype))
        return self._weights[1]

    @staticmethod
    def _put(
        target: Tensor,
        peers: NDArray[np.int64],
        rows: Tensor,
        before: Tensor,
        atc: bool,
    ) -> None:
        """Write a chunk's new rows (atc) or add its local change (cta)."""
        if atc:
            if contiguous(peers) is None:
                target[torch.from_numpy(peers)] = rows
            return
        target.index_add_(0, torch.from_numpy(peers), rows.sub_(before))

    def _check(
        self, t: int, loss: NDArray[np.float64], norms: NDArray[np.float64]
    ) -> None:
        bad = ~(np.isfinite(loss) & np.isfinite(norms))
        if bad.any():
            peer = int(np.flatnonzero(bad)[0])
            raise NumericalError(
                f"peer {peer} became non-finite in round {t + 1} (loss "
                f"{loss[peer]:g}, gradient norm {norms[peer]:g}); lower learning_rate "
                "or set clip_norm"
            )


def _smoothness(setup: EngineSetup) -> Assumption | None:
    """Return a bound on every batch Hessian of a convex model, l2 included.

    None where clipping makes the steps something else than descent on such a model.
    """
    model = setup.model
    if not model.convex:
        return None
    largest = 0.0
    for part in setup.data.store.inputs.split(4096):
        x = as_features(part.reshape(len(part), -1), torch.float64)
        largest = max(largest, float(x.square().sum(1).max()))
    bias = any(name.endswith("bias") for name in model.segments)
    found = model.constants(
        math.sqrt(largest + bias) or 1.0, clip_norm=setup.config.local.clip_norm
    )
    return found.get("smoothness")
