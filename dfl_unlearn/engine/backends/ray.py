"""Blocks of peers on a few Ray workers; the same bits as in one process.

A worker owns whole blocks and keeps them between rounds. In each round it works on
them, sends the rows that another worker's mixing needs (one array per pair of workers,
from worker to worker) and mixes. The driver keeps a copy of the state from some rounds
ago. Whatever dies, it makes anew what is missing, sends that copy to everybody under a
new epoch and runs the rounds since then again: keyed draws make them the same.

Workers are never restarted by Ray itself, since a restarted one has lost its rows; the
driver starts new ones.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn.engine.backends.contract import EngineSetup, RoundInfo
from dfl_unlearn.engine.backends.fault_hook import read_faults
from dfl_unlearn.engine.backends.ray_crew import (
    Crew,
    SilenceError,
    cause_of,
    is_loss,
)
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.backends.ray_split import (
    block_bytes,
    listed,
    memory_kills,
    split_blocks,
)
from dfl_unlearn.engine.backends.ray_worker import Key, columns_digest
from dfl_unlearn.engine.backends.recorder import Recorder, check_finite
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.fault_rounds import (
    RoundsOfFaults,
    ShardFaults,
    network_weights,
    past_names,
)
from dfl_unlearn.engine.local import LocalData
from dfl_unlearn.engine.shard import Links, link
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import ResourceError, StaleStateError, StalledError
from dfl_unlearn.record.training import TrainingRecord

_log = logging.getLogger(__name__)
T = TypeVar("T")

_SENT_BYTES = 64 * 2**20  # data on their way at once
_COPY_EVERY = 25  # rounds between the driver's copies, where "auto"
_FIRST_PAUSE = 0.1  # seconds before the first new try; doubles
_HALVINGS = 2  # of the number of workers, where memory runs out


class RaySharded:
    """Trains blocks of peers on Ray workers."""

    def __init__(self, execution: ExecutionConfig) -> None:
        """Prepare the backend; Ray starts with ``start``.

        Args:
            execution: Number of workers, copies, tries and time limits.
        """
        self._execution = execution
        self._open = ExitStack()
        self._every = (
            _COPY_EVERY
            if execution.checkpoint_every == "auto"
            else execution.checkpoint_every
        )
        self.rebuilt = 0

    def start(
        self, setup: EngineSetup, state: PeerState, recorder: Recorder | None = None
    ) -> None:
        """Start workers and send them their blocks; the state is not written to.

        Args:
            setup: Network, data, model, configuration and draws.
            state: Where training starts.
            recorder: One that has recorded the rounds so far; None starts one.
        """
        self._setup = setup
        self._recorder = recorder if recorder is not None else Recorder(setup, state)
        self._cut = split_blocks(
            setup.data.sizes, setup.config, self._execution.workers
        )
        self._run, self._epoch, self._round = secrets.token_hex(8), 0, state.round
        self._copy = state
        self._past = past_names(setup.config)
        self._failing = RoundsOfFaults.of(setup, state.slots, state.round)
        self._linked: tuple[object, list[Links]] | None = None
        self._told: list[Links] | None = None  # what the workers hold
        self._data = LocalData.of(setup.data, setup.config)
        self._faults = read_faults()
        session = self._open.enter_context(
            ray_session(
                len(self._cut),
                address=self._execution.ray_address,
                allow_remote=self._execution.ray_allow_remote,
            )
        )
        self._ray = session.ray
        self._crew = Crew(session, self._execution, setup.config.threads)
        self._crew.resize(len(self._cut))
        self._reached, self._attempt = state.round, 0
        self._losses: Counter[int] = Counter()
        self._memory_kills, self._halved = memory_kills(), 0
        self._fresh = False
        self._trying(lambda: None)

    def advance(self, t: int) -> RoundInfo:
        """Run round t (from 0) at every peer.

        Args:
            t: Round to run.

        Returns:
            Losses, gradient norms and seconds of the round.
        """
        began = time.perf_counter()
        self._crew.rest()
        loss, norms = self._trying(lambda: self._step(t))
        self._losses.clear()
        self._recorder.after(t, loss, norms, lambda: self._gather().params)
        if self._round - self._copy.round >= self._every:
            self._copy = self._gather()
        return RoundInfo(
            round=self._round,
            loss=loss,
            gradient_norms=norms,
            seconds=time.perf_counter() - began,
            faults={} if self._failing is None else self._failing.counts(t),
        )

    def gather(self) -> PeerState:
        """Return a copy of the whole state."""
        return check_finite(self._gather())

    def stop(self) -> TrainingRecord:
        """Return what was recorded since ``start``."""
        return self._recorder.record()

    def close(self) -> None:
        """Leave the workers to the next run, or end them and Ray with the session."""
        if hasattr(self, "_crew"):
            self._crew.leave(healthy=self._fresh)
        self._open.close()

    def report(self) -> dict[str, Any]:
        """Return who did what, for the manifest."""
        workers = self._trying(
            lambda: self._crew.ask(
                {s: a.hello.remote() for s, a in enumerate(self._crew.actors)}
            )
        )
        return {
            "engine": "ray",
            "ray": self._ray.__version__,
            "rebuilt": self.rebuilt,
            "workers": [
                {"blocks": blocks.tolist(), **hello}
                for blocks, hello in zip(self._cut, workers.values(), strict=True)
            ],
        }

    @property
    def _number(self) -> int:
        """The round that is being worked on, or was last, from 1."""
        return max(self._reached, 1)

    # --- one round -----------------------------------------------------------------

    def _step(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Run one round, or the rounds up to it after going back."""
        while self._round < t:
            self._one(self._round)
        return self._one(t)

    def _one(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        links = self._links(t)
        if t >= self._reached:
            self._reached, self._attempt = t + 1, 0
        elif t == self._reached - 1:
            self._attempt += 1
        key = self._key(self._attempt if t == self._reached - 1 else None)
        sent: dict[tuple[int, int], Any] = {}
        faults: Sequence[ShardFaults | None] = [None] * len(links)
        if self._failing is not None:
            faults = self._failing.cut(t, [one.own for one in links])
        for s, (actor, one) in enumerate(zip(self._crew.actors, links, strict=True)):
            changed = None if self._told is links else one
            refs = actor.begin.options(num_returns=1 + len(one.send)).remote(
                key, changed, faults[s]
            )
            for r, ref in zip(
                sorted(one.send), refs[1:] if one.send else (), strict=True
            ):
                sent[s, r] = ref
        self._told = links
        done = {
            r: actor.finish.remote(key, *(sent[s, r] for s in sorted(one.receive)))
            for r, (actor, one) in enumerate(zip(self._crew.actors, links, strict=True))
        }
        del sent
        loss, norms = np.zeros(self._setup.data.n), np.zeros(self._setup.data.n)
        for r, found in self._crew.ask(done, moves=True).items():
            loss[links[r].own], norms[links[r].own] = found
        self._round = t + 1
        return loss, norms

    def _gather(self) -> PeerState:
        return self._trying(self._gather_once)

    def _gather_once(self) -> PeerState:
        if self._round < self._reached:  # went back: catch up first
            self._step(self._reached - 1)
        key = self._key()
        parts = self._crew.ask(
            {s: actor.rows.remote(key) for s, actor in enumerate(self._crew.actors)}
        )
        whole: dict[str, torch.Tensor] = {}
        for s, one in enumerate(self._links(self._round)):
            for name, values in parts[s].items():
                if name not in whole:
                    shape = (self._setup.data.n, values.shape[1])
                    whole[name] = torch.empty(
                        shape, dtype=self._setup.config.torch_dtype
                    )
                whole[name].numpy()[one.own] = values
        params = whole.pop("params")
        return PeerState(params=params, slots=whole, round=self._round)

    # --- starting and going back ---------------------------------------------------

    def _trying(self, action: Callable[[], T]) -> T:
        """Do something with the workers; bring them back and do it again if need be.

        Returns:
            What the action gave.

        Raises:
            StalledError: If nothing got on, or workers were late again and again.
            ResourceError: If workers died again and again, or memory is short.
        """
        while True:
            try:
                if not self._fresh:
                    self._bring_back()
                return action()
            except SilenceError as silence:
                self._fresh = False
                raise StalledError(self._silence(silence.waiting)) from None
            except Exception as error:
                cause = cause_of(error)
                self._fresh = False
                if not isinstance(cause, StaleStateError) and not is_loss(
                    self._ray, cause
                ):
                    raise cause from None
                pause = self._after_loss(cause)
            time.sleep(pause)

    def _after_loss(self, cause: Exception) -> float:
        """Find out who is lost, and whether it makes sense to go on.

        Returns:
            Seconds to wait before the next try.
        """
        lost = self._crew.lost()
        if self._short_of_memory(cause):
            self._back_off(cause)
            return _FIRST_PAUSE
        blocks = [int(b) for s in lost or range(len(self._cut)) for b in self._cut[s]]
        self._losses.update(blocks)
        worst = max(self._losses.values())
        _log.warning(
            "round %d: %s; the workers of blocks %s are replaced, all get their rows "
            "again (%d of %d)",
            self._number,
            type(cause).__name__,
            listed(blocks),
            worst,
            self._execution.max_block_retries,
        )
        if worst > self._execution.max_block_retries:
            given_up = [b for b in blocks if self._losses[b] == worst]
            self._give_up(cause, given_up, worst)
        return float(_FIRST_PAUSE * 2 ** (worst - 1))

    def _give_up(self, cause: Exception, blocks: Sequence[int], times: int) -> None:
        where = f"round {self._number}"
        if isinstance(cause, self._ray.exceptions.GetTimeoutError):
            raise StalledError(
                f"{where}: the workers of blocks {listed(blocks)} gave no answer for "
                f"{self._execution.block_timeout_s:g} s, {times} times; use "
                "engine='inline', fewer workers or a larger block_timeout_s"
            ) from cause
        raise ResourceError(
            f"{where}: the workers of blocks {listed(blocks)} died {times} times, the "
            f"last with {type(cause).__name__}; the machine may be short of memory: "
            "use fewer workers, smaller block_peers or engine='inline'"
        ) from cause

    def _silence(self, waiting: Sequence[int]) -> str:
        blocks = [int(b) for s in waiting for b in self._cut[s]]
        return (
            f"no block finished for {self._execution.stall_timeout_s:g} s (round "
            f"{self._number}, waiting for blocks {listed(blocks)}; workers alive: "
            f"{self._crew.alive()})"
        )

    def _short_of_memory(self, cause: Exception) -> bool:
        """Tell whether a worker was ended because memory ran out."""
        kills, before = memory_kills(), self._memory_kills
        self._memory_kills = kills
        return kills > before or isinstance(
            cause, self._ray.exceptions.OutOfMemoryError
        )

    def _back_off(self, cause: Exception) -> None:
        """Go on with half the workers; results do not depend on their number."""
        workers = len(self._cut)
        if self._halved >= _HALVINGS or workers == 1:
            size, need = self._setup.config.block_peers, block_bytes(self._setup)
            raise ResourceError(
                f"round {self._number}: memory ran out with {workers} workers, "
                f"after {self._halved} halvings; a block of {size} peers needs "
                f"{need / 1e6:.3g} MB besides its process: lower block_peers, or use "
                "engine='inline' or a smaller model"
            ) from cause
        self._halved += 1
        self._crew.clear_idle()
        self._split(workers // 2)
        self._losses.clear()
        _log.warning(
            "round %d: memory ran out; going on with %d instead of %d workers",
            self._number,
            len(self._cut),
            workers,
        )

    def _split(self, workers: int) -> None:
        """Give the blocks to so many workers, all of them new ones."""
        self._cut = split_blocks(self._setup.data.sizes, self._setup.config, workers)
        self._linked = None
        self._crew.resize(len(self._cut))

    def _bring_back(self) -> None:
        """Make missing workers and send the driver's copy to all, under a new epoch."""
        if self._epoch:
            self.rebuilt += 1
        self._epoch += 1
        ready = [f"{self._run}:{cut[0]}-{cut[-1]}" for cut in self._cut]
        for s in self._crew.bring(ready):
            self._furnish(s, ready[s])
        self._round = self._copy.round
        links, key = self._links(self._round), self._key()
        done = {}
        for s, (actor, one) in enumerate(zip(self._crew.actors, links, strict=True)):
            own = torch.from_numpy(one.own)
            params = self._copy.params[own].numpy()
            held = torch.from_numpy(one.held)
            slots = {  # of rows sent in earlier rounds the neighbours' as well
                name: rows[held if name in self._past else own].numpy()
                for name, rows in self._copy.slots.items()
            }
            done[s] = actor.load.remote(key, one, params, slots)
        self._crew.ask(done)
        self._told = links
        self._fresh = True

    def _furnish(self, s: int, ready: str) -> None:
        """Send a new worker the data of its peers and what to do with them."""
        config, actor = self._setup.config, self._crew.actors[s]
        part = self._data.part(self._cut[s], config.block_peers)
        inputs, labels = part.inputs.numpy(), part.labels.numpy()
        for name, column in (("inputs", inputs), ("labels", labels)):
            step = max(1, _SENT_BYTES // max(column[:1].nbytes, 1))
            for first in range(0, len(column), step):
                stretch = np.ascontiguousarray(column[first : first + step])
                sent = actor.receive.remote(name, len(column), first, stretch)
                self._crew.ask({s: sent}, moves=True)
        counts = {
            name: getattr(part, name)
            for name in ("offsets", "keep", "counted", "scale", "blocks")
        }
        prepared = actor.prepare.remote(
            ready,
            s,
            self._faults,
            self._setup.model,
            replace(config, schedule=None),  # workers are told what changes
            self._setup.rng,
            counts,
            columns_digest(inputs, labels),
        )
        self._crew.ask({s: prepared})

    def _key(self, attempt: int | None = None) -> Key:
        return Key(self._run, self._epoch, self._round, attempt)

    def _links(self, t: int) -> list[Links]:
        weights = network_weights(self._setup.schedule, self._failing, t)
        if self._linked is None or self._linked[0] is not weights:
            size, n = self._setup.config.block_peers, self._setup.data.n
            peers = [
                np.concatenate(
                    [np.arange(b * size, min((b + 1) * size, n)) for b in blocks]
                )
                for blocks in self._cut
            ]
            self._linked = (weights, link(weights, peers))
        return self._linked[1]
