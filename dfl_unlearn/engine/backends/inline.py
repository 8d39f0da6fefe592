"""The reference backend: one process, one shard with every peer."""

import time
from typing import Any

import numpy as np
import torch

from dfl_unlearn.engine.backends.contract import EngineSetup, RoundInfo
from dfl_unlearn.engine.backends.recorder import Recorder, check_finite
from dfl_unlearn.engine.fault_rounds import RoundsOfFaults, network_weights
from dfl_unlearn.engine.local import LocalData, LocalWork
from dfl_unlearn.engine.shard import Links, Shard, link
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.record.training import TrainingRecord


class Inline:
    """Trains all peers in this process, chunk by chunk."""

    def start(
        self, setup: EngineSetup, state: PeerState, recorder: Recorder | None = None
    ) -> None:
        """Take over a state; it is not written to.

        Args:
            setup: Network, data, model, configuration and draws.
            state: Where training starts; ``state.round`` rounds are behind it.
            recorder: One that has recorded the rounds so far; None starts one.
        """
        config = setup.config
        self._setup = setup
        self._round = state.round
        self._everyone = np.arange(setup.data.n)
        self.recorder = recorder if recorder is not None else Recorder(setup, state)
        data = LocalData.of(setup.data, config)
        self._shard = Shard(LocalWork(data, setup.model, config, setup.rng), config)
        self._faults = RoundsOfFaults.of(setup, state.slots, state.round)
        self._linked: tuple[object, Links] | None = None
        self._shard.load(
            self._links(state.round), state.params, state.slots, state.round
        )

    def advance(self, t: int) -> RoundInfo:
        """Run round t (from 0) at every peer.

        Args:
            t: Round to run.

        Returns:
            Losses, gradient norms and seconds of the round.
        """
        began = time.perf_counter()
        self._shard.relink(self._links(t))
        faults = self._faults
        now = None if faults is None else faults.cut(t, [self._everyone])[0]
        self._shard.begin(t, now)
        loss, norms = self._shard.finish(t, {})
        self._round = t + 1
        self.recorder.after(t, loss, norms, lambda: self._shard.rows()["params"])
        return RoundInfo(
            round=self._round,
            loss=loss,
            gradient_norms=norms,
            seconds=time.perf_counter() - began,
            faults={} if faults is None else faults.counts(t),
        )

    def gather(self) -> PeerState:
        """Return a copy of the whole state."""
        slots: dict[str, torch.Tensor] = self._shard.rows()
        params = slots.pop("params")
        return check_finite(PeerState(params=params, slots=slots, round=self._round))

    def stop(self) -> TrainingRecord:
        """Return what was recorded since ``start``."""
        return self.recorder.record()

    def close(self) -> None:
        """End nothing: there is only this process."""

    def report(self) -> dict[str, Any]:
        """Return who did what, for the manifest."""
        return {"engine": "inline"}

    def _links(self, t: int) -> Links:
        weights = network_weights(self._setup.schedule, self._faults, t)
        if self._linked is None or self._linked[0] is not weights:
            self._linked = (weights, link(weights, [self._everyone])[0])
        return self._linked[1]
