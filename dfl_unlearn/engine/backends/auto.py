"""Starts in this process and moves to Ray where the rest of the run gains by it.

Both backends give the same bits, so the clock may decide where a round is computed: it
changes nothing but the time. The first rounds are measured instead of guessed.
"""

import logging
import os
import statistics
from dataclasses import replace
from typing import Any

from dfl_unlearn.engine.backends.contract import EngineSetup, RoundInfo
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.backends.ray import RaySharded
from dfl_unlearn.engine.backends.ray_split import split_blocks
from dfl_unlearn.engine.backends.recorder import Recorder
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.record.training import TrainingRecord

_log = logging.getLogger(__name__)

# Measured on two cores: Ray starts, workers import torch and get their data.
START_SECONDS = 8.0
# One round's calls, and one byte from worker to worker, put and get together.
CALL_SECONDS = 0.004
BYTE_SECONDS = 1.0e-9
# What a second worker is worth: memory is shared, work is not cut evenly.
EFFICIENCY = 0.88

_LEAST_ROUNDS = 3  # before the first is believed: the first round is slower
_LAST = 15  # rounds whose median counts


class Auto:
    """Inline until Ray is worth its start."""

    def __init__(self, execution: ExecutionConfig) -> None:
        """Prepare the backend.

        Args:
            execution: ``workers`` 1 means one per core.
        """
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
        workers = execution.workers if execution.workers > 1 else cores
        self._execution = replace(execution, workers=min(workers, cores))
        self._now: Inline | RaySharded = Inline()
        self._seconds: list[float] = []

    def start(
        self, setup: EngineSetup, state: PeerState, recorder: Recorder | None = None
    ) -> None:
        """Take over a state; it is not written to."""
        self._setup = setup
        self._workers = len(
            split_blocks(setup.data.sizes, setup.config, self._execution.workers)
        )
        self._now.start(setup, state, recorder)

    def advance(self, t: int) -> RoundInfo:
        """Run round t (from 0) at every peer.

        Args:
            t: Round to run.

        Returns:
            Losses, gradient norms and seconds of the round.
        """
        if isinstance(self._now, Inline) and self._gain(t) > START_SECONDS:
            self._move(t)
        info = self._now.advance(t)
        self._seconds.append(info.seconds)
        return info

    def gather(self) -> PeerState:
        """Return a copy of the whole state."""
        return self._now.gather()

    def stop(self) -> TrainingRecord:
        """Return what was recorded since ``start``."""
        return self._now.stop()

    def close(self) -> None:
        """End what was started."""
        self._now.close()

    def report(self) -> dict[str, Any]:
        """Return who did what, for the manifest."""
        return self._now.report()

    def _gain(self, t: int) -> float:
        """Return the seconds that the rest of the run would save on Ray."""
        if self._workers < 2 or len(self._seconds) < _LEAST_ROUNDS:
            return 0.0
        here = statistics.median(self._seconds[-_LAST:])
        vectors = len(self._setup.config.trainer.mixed)
        config, n = self._setup.config, self._setup.data.n
        # At worst every worker needs all other rows.
        topology = self._setup.schedule.at(t)
        rows = min(topology.weights.nnz - n, n * (self._workers - 1))
        nbytes = rows * vectors * self._setup.model.size * config.item_size
        there = (
            here / (self._workers * EFFICIENCY)
            + CALL_SECONDS
            + nbytes * BYTE_SECONDS / self._workers
        )
        return float((config.rounds - t) * (here - there))

    def _move(self, t: int) -> None:
        """Go on with Ray from the state that is here."""
        _log.info("round %d: going on with %d Ray workers", t + 1, self._workers)
        state = self._now.gather()
        assert isinstance(self._now, Inline)
        recorder, self._now = self._now.recorder, RaySharded(self._execution)
        self._now.start(self._setup, state, recorder)
