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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn.engine.backends.contract import EngineSetup, RoundInfo
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.backends.ray_worker import Key, Worker, columns_digest
from dfl_unlearn.engine.backends.recorder import Recorder, check_finite
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
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
        self._data = LocalData.of(setup.data, setup.config)
        session = self._open.enter_context(ray_session(len(self._cut)))
        self._ray = session.ray
        self._actors: list[Any] = [None] * len(self._cut)
        self._reached = state.round
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
        loss, norms = self._trying(lambda: self._step(t))
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
        """End the workers, and Ray where no enclosing session holds it."""
        for actor in getattr(self, "_actors", ()):
            if actor is not None:
                self._ray.kill(actor)
        self._actors = []
        self._open.close()

    def report(self) -> dict[str, Any]:
        """Return who did what, for the manifest."""
        workers = self._trying(
            lambda: self._get([a.hello.remote() for a in self._actors])
        )
        return {
            "engine": "ray",
            "ray": self._ray.__version__,
            "rebuilt": self.rebuilt,
            "workers": [
                {"blocks": blocks.tolist(), **hello}
                for blocks, hello in zip(self._cut, workers, strict=True)
            ],
        }

    # --- one round -----------------------------------------------------------------

    def _step(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Run one round, or the rounds up to it after going back."""
        while self._round < t:
            self._one(self._round)
        return self._one(t)

    def _one(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        before = self._linked
        links = self._links(t)
        key = self._key(first=t >= self._reached)
        self._reached = max(self._reached, t + 1)
        sent: dict[tuple[int, int], Any] = {}
        faults: Sequence[ShardFaults | None] = [None] * len(links)
        if self._failing is not None:
            faults = self._failing.cut(t, [one.own for one in links])
        for s, (actor, one) in enumerate(zip(self._actors, links, strict=True)):
            changed = None if before is self._linked else one
            refs = actor.begin.options(num_returns=1 + len(one.send)).remote(
                key, changed, faults[s]
            )
            for r, ref in zip(
                sorted(one.send), refs[1:] if one.send else (), strict=True
            ):
                sent[s, r] = ref
        done = [
            actor.finish.remote(key, *(sent[s, r] for s in sorted(one.receive)))
            for r, (actor, one) in enumerate(zip(self._actors, links, strict=True))
        ]
        del sent
        loss, norms = np.zeros(self._setup.data.n), np.zeros(self._setup.data.n)
        for one, found in zip(links, self._get(done), strict=True):
            loss[one.own], norms[one.own] = found
        self._round = t + 1
        return loss, norms

    def _gather(self) -> PeerState:
        return self._trying(self._gather_once)

    def _gather_once(self) -> PeerState:
        if self._round < self._reached:  # went back: catch up first
            self._step(self._reached - 1)
        key = self._key()
        parts = self._get([actor.rows.remote(key) for actor in self._actors])
        whole: dict[str, torch.Tensor] = {}
        for one, rows in zip(self._links(self._round), parts, strict=True):
            for name, values in rows.items():
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
            StalledError: If workers did not answer in time again and again.
            ResourceError: If workers died again and again.
        """
        tries = self._execution.max_block_retries
        for attempt in range(tries + 1):
            try:
                if not self._fresh:
                    self._bring_back()
                return action()
            except Exception as error:
                cause = _cause(error)
                if not self._is_loss(cause):
                    raise cause from None
                self._fresh = False
                last = cause
                _log.warning(
                    "round %d: %s; the workers get their rows again (%d of %d)",
                    self._round + 1,
                    type(cause).__name__,
                    attempt + 1,
                    tries,
                )
                time.sleep(_FIRST_PAUSE * 2**attempt)
        if isinstance(last, self._ray.exceptions.GetTimeoutError):
            raise StalledError(
                f"round {self._round + 1}: {len(self._cut)} workers gave no answer for "
                f"{self._execution.block_timeout_s:g} s, {tries + 1} times; use "
                "engine='inline', fewer workers or a larger block_timeout_s"
            ) from last
        raise ResourceError(
            f"round {self._round + 1}: workers died {tries + 1} times, the last with "
            f"{type(last).__name__}; the machine may be short of memory: use fewer "
            "workers, smaller block_peers or engine='inline'"
        ) from last

    def _bring_back(self) -> None:
        """Make missing workers and send the driver's copy to all, under a new epoch."""
        if self._epoch:
            self.rebuilt += 1
        self._epoch += 1
        missing = [
            s
            for s, actor in enumerate(self._actors)
            if actor is None or not self._answers(actor)
        ]
        for s in missing:  # their processes start side by side
            self._actors[s] = (
                self._ray.remote(Worker)
                .options(num_cpus=1, max_restarts=0, max_task_retries=0)
                .remote(self._setup.config.threads)
            )
        for s in missing:
            self._furnish(self._actors[s], self._cut[s])
        self._round = self._copy.round
        links, key = self._links(self._round), self._key()
        done = []
        for actor, one in zip(self._actors, links, strict=True):
            own = torch.from_numpy(one.own)
            params = self._copy.params[own].numpy()
            held = torch.from_numpy(one.held)
            slots = {  # of rows sent in earlier rounds the neighbours' as well
                name: rows[held if name in self._past else own].numpy()
                for name, rows in self._copy.slots.items()
            }
            done.append(actor.load.remote(key, one, params, slots))
        self._get(done)
        self._fresh = True

    def _furnish(self, actor: Any, blocks: NDArray[np.int64]) -> None:
        """Send a new worker the data of its peers and what to do with them."""
        config = self._setup.config
        part = self._data.part(blocks, config.block_peers)
        inputs, labels = part.inputs.numpy(), part.labels.numpy()
        for name, column in (("inputs", inputs), ("labels", labels)):
            step = max(1, _SENT_BYTES // max(column[:1].nbytes, 1))
            for first in range(0, len(column), step):
                stretch = np.ascontiguousarray(column[first : first + step])
                self._get([actor.receive.remote(name, len(column), first, stretch)])
        counts = {
            name: getattr(part, name)
            for name in ("offsets", "keep", "counted", "scale", "blocks")
        }
        self._get(
            [
                actor.prepare.remote(
                    self._setup.model,
                    config,
                    self._setup.rng,
                    counts,
                    columns_digest(inputs, labels),
                )
            ]
        )

    def _answers(self, actor: Any) -> bool:
        try:
            self._get([actor.hello.remote()])
        except Exception as error:
            if not self._is_loss(_cause(error)):
                raise
            self._ray.kill(actor)
            return False
        return True

    def _is_loss(self, error: BaseException) -> bool:
        """Tell whether something died or got lost, as opposed to an error of ours."""
        lost = self._ray.exceptions
        return isinstance(
            error,
            (
                StaleStateError,
                lost.RayActorError,
                lost.WorkerCrashedError,
                lost.OutOfMemoryError,
                lost.ObjectLostError,
                lost.GetTimeoutError,
                lost.NodeDiedError,
            ),
        )

    def _get(self, refs: Sequence[Any]) -> list[Any]:
        found: list[Any] = self._ray.get(
            list(refs), timeout=self._execution.block_timeout_s
        )
        return found

    def _key(self, *, first: bool = False) -> Key:
        return Key(self._run, self._epoch, self._round, first)

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


def split_blocks(
    sizes: NDArray[np.int64], config: SimulationConfig, workers: int
) -> list[NDArray[np.int64]]:
    """Give each worker a run of blocks, of about equal work.

    Args:
        sizes: Stored rows per peer, shape ``(N,)``.
        config: Blocks and local steps.
        workers: Workers wanted; there are never more than blocks.

    Returns:
        The blocks of each worker, ascending; every worker has at least one.
    """
    local = config.local
    batch = sizes if local.batch_size is None else np.minimum(sizes, local.batch_size)
    firsts = np.arange(0, len(sizes), config.block_peers)
    work = np.cumsum(np.add.reduceat(local.per_round(sizes) * batch, firsts))
    workers = min(workers, len(firsts))
    # A worker ends with the block whose end is nearest to its share of the work.
    ends = [
        int(np.abs(work - work[-1] * (w + 1) / workers).argmin()) + 1
        for w in range(workers - 1)
    ]
    for w in range(workers - 1):  # nobody without a block
        low = ends[w - 1] + 1 if w else 1
        ends[w] = min(max(ends[w], low), len(firsts) - (workers - 1 - w))
    return np.split(np.arange(len(firsts)), ends)


def _cause(error: Exception) -> Exception:
    """Return the error inside a task that failed."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
