"""One worker process: owns some blocks of peers and keeps them between rounds.

Every call says which run, epoch and round it is about. A worker that does not hold just
that, because it is new or because the driver has gone back to an earlier round, says so
by ``StaleStateError`` instead of computing from other rows.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn.engine.backends.fault_hook import DiesWhenSent, Faults, die
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_rounds import ShardFaults
from dfl_unlearn.engine.local import LocalData, LocalWork
from dfl_unlearn.engine.shard import Links, Shard
from dfl_unlearn.engine.threads import blas_report, limited_threads
from dfl_unlearn.errors import StaleStateError, StoreCorruptError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree

Array = NDArray[Any]


@dataclass(frozen=True)
class Key:
    """Which state a call is about.

    Attributes:
        run: Identity of the run.
        epoch: How often its state was sent to the workers.
        round: Rounds that are behind the state.
        attempt: How often the round was tried before; None where it is only caught up.
    """

    run: str
    epoch: int
    round: int
    attempt: int | None = None


class Worker:
    """Holds a shard; a plain class that Ray makes an actor of."""

    def __init__(self, threads: int) -> None:
        """Limit the threads for good; everything else comes by calls.

        Args:
            threads: Threads of the linear algebra.
        """
        self._threads = limited_threads(threads)
        self._threads.__enter__()
        self._columns: dict[str, Array] = {}
        self._ready: str | None = None
        self._held: tuple[str, int, int, str] | None = None

    def hello(self) -> dict[str, Any]:
        """Return process id and BLAS, for the manifest."""
        return {"pid": os.getpid(), "blas": blas_report()}

    def ready(self) -> tuple[int, str | None]:
        """Return process id and the part of which run's data are here."""
        return os.getpid(), self._ready

    def forget(self) -> None:
        """Give all data and rows back; the process can serve another run."""
        self._columns, self._ready, self._held = {}, None, None
        for name in ("_shard", "_links"):
            self.__dict__.pop(name, None)

    def receive(self, name: str, rows: int, first: int, part: Array) -> None:
        """Take a stretch of a column of the data.

        Args:
            name: Of the column.
            rows: Length of the whole column.
            first: Where the stretch begins.
            part: The stretch.
        """
        if first == 0:
            self._columns[name] = np.empty((rows, *part.shape[1:]), dtype=part.dtype)
        self._columns[name][first : first + len(part)] = part

    def prepare(
        self,
        ready: str,
        number: int,
        faults: Faults,
        model: FlatModel,
        config: SimulationConfig,
        rng: RngTree,
        counts: Mapping[str, Array],
        digest: str,
    ) -> None:
        """Build the local work on the data that was received.

        Args:
            ready: What ``ready`` says from now on.
            number: Of this worker.
            faults: What it does to itself where a test wants it.
            model: The model.
            config: How it is trained.
            rng: The run's draws.
            counts: The fields of ``LocalData`` besides inputs and labels.
            digest: SHA-256 of inputs and labels.

        Raises:
            StoreCorruptError: If other data arrived than were sent.
        """
        inputs, labels = self._columns.pop("inputs"), self._columns.pop("labels")
        if columns_digest(inputs, labels) != digest:
            raise StoreCorruptError(
                f"worker {os.getpid()}: data must have the digest {digest[:16]}..., "
                "got others; the transfer went wrong, run it again"
            )
        data = LocalData(
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            **{name: np.array(value) for name, value in counts.items()},
        )
        self._shard = Shard(LocalWork(data, model, config, rng), config)
        self._ready, self._number, self._faults = ready, number, faults
        self._held = None

    def load(
        self, key: Key, links: Links, params: Array, slots: Mapping[str, Array]
    ) -> None:
        """Take over the rows of the worker's peers."""
        self._shard.load(
            links,
            torch.from_numpy(np.array(params)),
            {name: torch.from_numpy(np.array(rows)) for name, rows in slots.items()},
            key.round,
        )
        self._links = links
        self._held = (key.run, key.epoch, key.round, "begin")

    def begin(
        self, key: Key, links: Links | None, faults: ShardFaults | None = None
    ) -> tuple[Any, ...] | bool:
        """Work before the mixing.

        Args:
            key: What the worker must hold.
            links: What is mixed from now on, where it changed.
            faults: What goes wrong in the round, or None for nothing.

        Returns:
            True, then the rows for each shard that needs some, shards ascending.
        """
        self._expect(key, "begin")
        self._trouble(key, "before-compute")
        if links is not None:
            self._shard.relink(links)
            self._links = links
        self._shard.begin(key.round, faults)
        self._held = (key.run, key.epoch, key.round, "finish")
        sent = [self._shard.outgoing(s) for s in sorted(self._links.send)]
        return (True, *sent) if sent else True

    def finish(self, key: Key, *incoming: Array) -> tuple[Any, Any]:
        """Mix and work after it.

        Args:
            key: What the worker must hold.
            *incoming: Rows from the other shards, shards ascending.

        Returns:
            Losses and gradient norms of the worker's peers.
        """
        self._expect(key, "finish")
        shards = sorted(self._links.receive)
        loss, norms = self._shard.finish(
            key.round, dict(zip(shards, incoming, strict=True))
        )
        self._held = (key.run, key.epoch, key.round + 1, "begin")
        self._trouble(key, "after-compute")
        if self._struck(key, "during-return"):
            return loss, DiesWhenSent()
        return loss, norms

    def rows(self, key: Key) -> dict[str, Array]:
        """Return parameters and slots of the worker's peers."""
        self._expect(key, "begin")
        return {name: rows.numpy() for name, rows in self._shard.rows().items()}

    def _expect(self, key: Key, phase: str) -> None:
        wanted = (key.run, key.epoch, key.round, phase)
        if self._held != wanted:
            raise StaleStateError(f"worker holds {self._held}, asked for {wanted}")

    def _struck(self, key: Key, phase: str) -> bool:
        return key.attempt is not None and self._faults.strikes(
            self._number, key.round, key.attempt, phase
        )

    def _trouble(self, key: Key, phase: str) -> None:
        """Carry out the test hook."""
        self._faults.dawdle(self._number, key.round, key.attempt or 0, phase)
        if self._struck(key, phase):
            die()


def columns_digest(inputs: Array, labels: Array) -> str:
    """Return the SHA-256 of a part's data."""
    digest = sha256(np.ascontiguousarray(inputs).view(np.uint8).data)
    digest.update(np.ascontiguousarray(labels).view(np.uint8).data)
    return digest.hexdigest()
