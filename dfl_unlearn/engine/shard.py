"""The rows of some blocks of peers: trained in place, mixed with what they need.

A shard is all of the network in the inline backend and a worker's part of it in the
others; both run exactly this code on the same blocks, so the bits are the same. A shard
holds its own peers' rows and copies of their neighbours' ("held" rows) in one array in
ascending peer order. Columns of the mixing matrix are numbered anew in that order, so
each row is summed in the same order as in the whole product.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import contiguous
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_rounds import OWN_CHECKPOINT, ShardFaults, past_name
from dfl_unlearn.engine.gossip import as_csr, mix, with_values
from dfl_unlearn.engine.local import LocalWork
from dfl_unlearn.engine.trainers.contract import Report, Rows

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Links:
    """What a shard mixes, and what it exchanges with the others.

    Attributes:
        own: The shard's peers, ascending, shape ``(n,)``.
        held: Its peers and all that they take rows from, ascending, shape ``(h,)``.
        weights: Its rows of W on the held columns, shape ``(n, h)``, float64.
        send: Shard -> places among the held rows of what that shard needs.
        receive: Shard -> places among the held rows of what comes from there.
    """

    own: Index
    held: Index
    weights: sp.csr_array
    send: Mapping[int, Index]
    receive: Mapping[int, Index]

    @property
    def boundary(self) -> int:
        """Number of rows that the shard receives in a round."""
        return len(self.held) - len(self.own)


def link(weights: sp.csr_array, shards: Sequence[Index]) -> list[Links]:
    """Cut a mixing matrix into the parts of shards.

    Args:
        weights: W, shape ``(N, N)``.
        shards: The peers of each shard, ascending; together all peers, each once.

    Returns:
        One entry per shard.
    """
    weights = weights.tocsr()
    weights.sort_indices()
    owner = np.empty(weights.shape[0], dtype=np.int64)
    for s, own in enumerate(shards):
        owner[own] = s
    parts = [weights[own] for own in shards]
    held = [
        np.union1d(own, part.indices).astype(np.int64)
        for own, part in zip(shards, parts, strict=True)
    ]
    links = []
    for s, (own, part) in enumerate(zip(shards, parts, strict=True)):
        local = sp.csr_array(
            (part.data, np.searchsorted(held[s], part.indices), part.indptr),
            shape=(len(own), len(held[s])),
        )
        send = {
            other: np.searchsorted(held[s], needed)
            for other in range(len(shards))
            if other != s and len(needed := held[other][owner[held[other]] == s])
        }
        receive = {
            int(other): np.flatnonzero(owner[held[s]] == other)
            for other in np.unique(owner[held[s]])
            if other != s
        }
        links.append(
            Links(own=own, held=held[s], weights=local, send=send, receive=receive)
        )
    return links


class Shard:
    """Carries the rows of some blocks through the rounds."""

    def __init__(self, work: LocalWork, config: SimulationConfig) -> None:
        """Prepare the shard; ``load`` gives it its rows.

        Args:
            work: Local work of the shard's peers.
            config: Trainer and dtype.
        """
        self._config = config
        self._trainer = config.trainer
        self._blocks = [
            [(chunk, _ChunkWork(work, chunk)) for chunk in block]
            for block in work.chunks()
        ]
        self._slots = slot_names(config)
        self._oldest = config.faults.oldest
        self._faults: ShardFaults | None = None

    def load(
        self, links: Links, params: Tensor, slots: Mapping[str, Tensor], t: int
    ) -> None:
        """Take over the rows of the shard's own peers; they are copied.

        Args:
            links: What is mixed and exchanged.
            params: Shape ``(n, P)``.
            slots: Slot -> ``(n, P)``; slots that are missing start anew.
            t: The round that comes next.
        """
        dtype = self._config.torch_dtype
        mixed = self._trainer.mixed
        self._state: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        for name in ("params", *self._slots):
            given = params if name == "params" else slots.get(name)
            if name in mixed:
                self._state[name] = torch.zeros(
                    (len(links.held), params.shape[1]), dtype=dtype
                )
                self._next[name] = torch.zeros_like(self._state[name])
            else:
                self._kept[name] = torch.zeros(params.shape, dtype=dtype)
            if given is not None:
                places = torch.from_numpy(np.searchsorted(links.held, links.own))
                if name in mixed:
                    self._state[name][places] = given.to(dtype)
                else:
                    self._kept[name].copy_(given)
        self._load_past(links, slots)
        every = self._config.faults.own_checkpoints
        if every is not None:
            given = slots.get(OWN_CHECKPOINT, params)
            self._kept[OWN_CHECKPOINT] = given.to(dtype, copy=True)
        self._follow(links)
        if any(name not in slots for name in self._trainer.slots):
            for chunk, work in self._everyone():
                rows = self._rows(self._state, chunk)
                self._trainer.start(rows, work, t)
                rows.write_back()

    def begin(self, t: int, faults: ShardFaults | None = None) -> None:
        """Do the work of round t (from 0) before the mixing.

        Args:
            t: The round.
            faults: What goes wrong in it, also after the mixing; None for nothing.
        """
        self._faults = faults
        if faults is not None and faults.crashed.any():
            self._lose(faults.crashed)
        self._loss = np.zeros(len(self._links.own))
        self._norms = np.zeros(len(self._links.own))
        # Values that are not finite are found by the backend.
        with np.errstate(over="ignore", invalid="ignore"):
            for chunk, work in self._everyone():
                rows = self._rows(self._state, chunk)
                with self._idle_kept(rows, chunk):
                    self._note(chunk, self._trainer.before(rows, work, t))
                rows.write_back()

    def outgoing(self, shard: int) -> NDArray[np.floating]:
        """Return the rows that another shard needs, ``(len(mixed), k, P)``."""
        places = self._links.send[shard]
        return np.stack([self._state[m].numpy()[places] for m in self._trainer.mixed])

    def finish(
        self, t: int, incoming: Mapping[int, NDArray[np.floating]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mix and do the work of round t after it.

        Args:
            t: The round, from 0.
            incoming: Shard -> what its ``outgoing`` gave for this one.

        Returns:
            Loss and gradient norms of the shard's peers, shape ``(n,)`` each.
        """
        for shard, places in self._links.receive.items():
            for name, rows in zip(self._trainer.mixed, incoming[shard], strict=True):
                self._state[name].numpy()[places] = rows
        with np.errstate(over="ignore", invalid="ignore"):
            for block, (place, weights) in zip(self._blocks, self._mixing, strict=True):
                for name in self._trainer.mixed:
                    self._mix(name, place, weights)
                for chunk, work in block:
                    old = self._rows(self._state, chunk)
                    new = self._rows(self._next, chunk)
                    with self._idle_kept(new, chunk):
                        self._note(chunk, self._trainer.after(old, new, work, t))
                    new.write_back()
        self._turn()
        self._keep_own(t)
        return self._loss, self._norms

    def rows(self) -> dict[str, Tensor]:
        """Return copies of ``params`` and every slot of the shard's own peers."""
        places = torch.from_numpy(self._places)
        found = {name: held[places] for name, held in self._state.items()}
        for age, sent in enumerate(self._past, start=1):
            for name, held in sent.items():
                found[past_name(name, age)] = held[places]
        return found | {name: kept.clone() for name, kept in self._kept.items()}

    # --- faults of the simulated network ---------------------------------------------

    def _load_past(self, links: Links, slots: Mapping[str, Tensor]) -> None:
        """Make room for what was sent in earlier rounds; own rows or all held ones."""
        places = torch.from_numpy(np.searchsorted(links.held, links.own))
        self._past: list[dict[str, Tensor]] = []
        for age in range(1, self._oldest + 1):
            sent = {}
            for name in self._trainer.mixed:
                sent[name] = torch.zeros_like(self._state[name])
                given = slots.get(past_name(name, age))
                if given is not None and len(given) == len(links.held):
                    sent[name].copy_(given)
                elif given is not None:
                    sent[name][places] = given.to(sent[name])
            self._past.append(sent)

    def _lose(self, crashed: NDArray[np.bool_]) -> None:
        """Forget what peers that crashed had besides their own checkpoint."""
        lost = torch.from_numpy(np.flatnonzero(crashed))
        for name, rows in self._kept.items():
            if name != OWN_CHECKPOINT:
                rows[lost] = 0.0
        if OWN_CHECKPOINT in self._kept:
            places = torch.from_numpy(self._places)[lost]
            self._state["params"][places] = self._kept[OWN_CHECKPOINT][lost]

    @contextmanager
    def _idle_kept(self, rows: "_ChunkRows", chunk: Index) -> Iterator[None]:
        """Take back what is done to rows of peers that do no work in the round.

        The work of the whole chunk is computed, so its shapes never change.
        """
        idle = None if self._faults is None else ~self._faults.works[chunk]
        if idle is None or not idle.any():
            yield
            return
        which = torch.from_numpy(np.flatnonzero(idle))
        saved = {name: rows[name][which] for name in ("params", *self._slots)}
        yield
        for name, values in saved.items():
            rows[name][which] = values
        self._norms[chunk[idle]] = 0.0

    def _mix(self, name: str, place: slice, weights: Tensor) -> None:
        """Mix the rows of a block, old ones too where messages are late."""
        out = self._next[name][place]
        if self._faults is None:
            mix(self._state[name], weights, out=out)
            return
        values = self._entries(place)
        mix(self._state[name], with_values(weights, values[0][1]), out=out)
        for age, entries in values[1:]:
            held = self._past[age - 1][name]
            out.addmm_(with_values(weights, entries), held)

    def _entries(self, place: slice) -> list[tuple[int, Tensor]]:
        """Return the round's entries of a block's rows, without ages that are not."""
        assert self._faults is not None
        first = int(np.searchsorted(self._places, place.start))
        last = int(np.searchsorted(self._places, place.stop - 1))
        pointers = self._links.weights.indptr
        part = slice(int(pointers[first]), int(pointers[last + 1]))
        dtype = self._config.torch_dtype
        return [
            (age, torch.from_numpy(entries[part]).to(dtype))
            for age, entries in self._faults.entries
            if age == 0 or entries[part].any()
        ]

    def _turn(self) -> None:
        """Make the mixed rows the state; with late messages keep what was sent."""
        if self._past:
            self._past.insert(0, self._state)
            self._state, self._next = self._next, self._past.pop()
        else:
            self._state, self._next = self._next, self._state

    def _keep_own(self, t: int) -> None:
        """Let peers copy their own parameters after round t, where they do."""
        every = self._config.faults.own_checkpoints
        if every is None or self._faults is None or (t + 1) % every:
            return
        up = torch.from_numpy(np.flatnonzero(self._faults.up))
        places = torch.from_numpy(self._places)[up]
        self._kept[OWN_CHECKPOINT][up] = self._state["params"][places]

    def relink(self, links: Links) -> None:
        """Follow a network that changed: hold other rows, mix by other weights.

        Args:
            links: What is mixed from now on.
        """
        if links is self._links:
            return
        if not np.array_equal(links.held, self._links.held):
            new = torch.from_numpy(np.searchsorted(links.held, links.own))
            for name, old in self._state.items():
                held = torch.zeros((len(links.held), old.shape[1]), dtype=old.dtype)
                held[new] = old[torch.from_numpy(self._places)]
                self._state[name] = held
                self._next[name] = torch.zeros_like(held)
        self._follow(links)

    def _follow(self, links: Links) -> None:
        places = np.searchsorted(links.held, links.own)
        self._links, self._places = links, places
        self._mixing = [
            (
                slice(int(places[peers.start]), int(places[peers.stop - 1]) + 1),
                as_csr(links.weights[peers], self._config.torch_dtype),
            )
            for peers in map(_peers_of, self._blocks)
        ]

    def _everyone(self) -> "Iterator[tuple[Index, _ChunkWork]]":
        for block in self._blocks:
            yield from block

    def _rows(self, state: dict[str, Tensor], chunk: Index) -> "_ChunkRows":
        return _ChunkRows(state, self._kept, self._places, chunk)

    def _note(self, chunk: Index, report: Report | None) -> None:
        if report is not None:
            self._loss[chunk], self._norms[chunk] = report.loss, report.norms


def slot_names(config: SimulationConfig) -> tuple[str, ...]:
    """Return the slots of a run: the trainer's, and the optimizer's momentum."""
    momentum = ("momentum",) if config.local.momentum > 0 else ()
    return (*config.trainer.slots, *momentum)


class _ChunkRows:
    """A chunk's rows by name: views where they lie together, else copies."""

    def __init__(
        self,
        state: dict[str, Tensor],
        kept: dict[str, Tensor],
        places: Index,
        chunk: Index,
    ) -> None:
        self._state, self._kept = state, kept
        self._places, self._chunk = places, chunk
        self._taken: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._taken:
            whole, index = self._where(name)
            together = contiguous(index)
            self._taken[name] = whole[
                torch.from_numpy(index) if together is None else together
            ]
        return self._taken[name]

    def write_back(self) -> None:
        """Put copies that were taken where they belong."""
        for name, rows in self._taken.items():
            whole, index = self._where(name)
            if contiguous(index) is None:
                whole[torch.from_numpy(index)] = rows

    def _where(self, name: str) -> tuple[Tensor, Index]:
        if name in self._state:
            return self._state[name], self._places[self._chunk]
        return self._kept[name], self._chunk


@dataclass(frozen=True)
class _ChunkWork:
    """The local work of one chunk; a ``ChunkWork``."""

    work: LocalWork
    peers: Index

    def steps(self, t: int, params: Tensor, rows: Rows) -> Report:
        """Take the local steps of round t in place."""
        momentum = rows["momentum"] if self.work.config.local.momentum > 0 else None
        return Report(*self.work.round(t, self.peers, params, momentum))

    def gradient(self, t: int, params: Tensor) -> tuple[Tensor, Report]:
        """Return the gradients of the objectives on the batch of round t."""
        gradient, loss, norms = self.work.gradient(t, self.peers, params)
        return gradient, Report(loss, norms)

    def private_step(self, t: int, params: Tensor) -> Report:
        """Take the private step of round t in place."""
        return Report(*self.work.private_round(t, self.peers, params))

    def rate(self, t: int) -> float:
        """Return the learning rate of round t."""
        return self.work.config.local.rate(t, self.work.config.rounds)


def _peers_of(block: list[tuple[Index, _ChunkWork]]) -> slice:
    """Return the peers of a block, within the shard."""
    first = min(int(chunk.min()) for chunk, _ in block)
    return slice(first, first + sum(len(chunk) for chunk, _ in block))
