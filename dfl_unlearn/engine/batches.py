"""Which rows each peer takes in each local step, drawn by key.

One key per (block, epoch) gives one uniform per stored row, in peer order; a peer's
order in that epoch is the argsort of its own rows' uniforms, and steps consume it batch
by batch. Forgotten rows keep their slot with weight 0. Poisson batches take one key per
(block, round) and every row whose uniform is below the rate. So another peer's
forgetting, the number of workers or the order of completion never change a peer's
batches.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.rng import RngTree


@dataclass(frozen=True)
class Batch:
    """One step's rows for k peers.

    Attributes:
        index: Row numbers in the store, shape ``(k, B)``; padded slots repeat a row.
        weights: What each slot counts, shape ``(k, B)`` float64: one over the number
            of counted slots, 0 for padded and forgotten ones.
    """

    index: NDArray[np.int64]
    weights: NDArray[np.float64]


class Batches(Protocol):
    """Gives the batches of any peers at any of their steps."""

    def batch(self, peers: NDArray[np.int64], steps: NDArray[np.int64]) -> Batch:
        """Return one batch for each of the given peers; see ``BatchPlan.batch``."""
        ...

    def poisson(self, peers: NDArray[np.int64], t: int, rate: float) -> Batch:
        """Return batches that rows join by coins; see ``BatchPlan.poisson``."""
        ...


class BatchPlan:
    """Gives the batches of any peers at any of their steps.

    Holds one order per peer, that of the epoch it is in; which epoch that is follows
    from the step asked for, so a plan can start anywhere.
    """

    def __init__(
        self,
        *,
        offsets: NDArray[np.int64],
        keep: NDArray[np.bool_],
        counted: NDArray[np.bool_],
        local: LocalSteps,
        rng: RngTree,
        block_peers: int,
        blocks: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare the plan of some whole blocks of peers.

        Args:
            offsets: Peer i owns the stored rows ``offsets[i] .. offsets[i+1]-1``;
                shape ``(N+1,)``.
            keep: Whether a row is retained, shape ``(R,)``.
            counted: Whether a row counts in the divisor, shape ``(R,)``; differs from
                ``keep`` under ``normalization="fixed"``.
            local: Batch size and epochs.
            rng: The run's draws.
            block_peers: Peers per block; names the keys.
            blocks: Number of each of these blocks among all, for the keys; None means
                that these are all.
        """
        self._offsets = offsets
        self._sizes = np.diff(offsets)
        self._keep = keep
        self._counted = counted
        self._all_kept = bool(keep.all())
        self._rng = rng
        self._block_peers = block_peers
        self._blocks = blocks
        self._full = local.batch_size is None
        self._batch_size = local.batch_size or 0
        self._batches = local.batches(self._sizes)
        self._order = np.arange(offsets[-1], dtype=np.int64)
        self._epoch = np.full(len(self._sizes), -1, dtype=np.int64)

    def batch(self, peers: NDArray[np.int64], steps: NDArray[np.int64]) -> Batch:
        """Return one batch for each of the given peers.

        Args:
            peers: Peers of one block, shape ``(k,)``.
            steps: Each peer's own step, counted over the whole run, shape ``(k,)``.

        Returns:
            The batch; B is the largest number of slots among these peers.
        """
        sizes = self._sizes[peers]
        if self._full:
            first, length = np.zeros_like(sizes), sizes
        else:
            epoch, position = np.divmod(steps, self._batches[peers])
            stale = epoch != self._epoch[peers]
            if stale.any():
                self._shuffle(peers[stale], epoch[stale])
            first = position * self._batch_size
            length = np.minimum(sizes - first, self._batch_size)
        slots = np.arange(length.max())
        at = first[:, None] + slots
        filled = slots < length[:, None]
        start = self._offsets[peers][:, None]
        index = self._order[start + np.minimum(at, (sizes - 1)[:, None])]
        if self._all_kept:
            return Batch(index, filled / length[:, None])
        count = (filled & self._counted[index]).sum(axis=1, keepdims=True)
        return Batch(index, (filled & self._keep[index]) / np.maximum(count, 1))

    def poisson(self, peers: NDArray[np.int64], t: int, rate: float) -> Batch:
        """Return batches that every row joins by a coin of its own.

        Args:
            peers: Consecutive peers of one block, shape ``(k,)``.
            t: Round; one draw per round.
            rate: Probability of every stored row, in (0, 1].

        Returns:
            The batch; it may be empty at any peer. A row weighs one over the
            *expected* size, ``rate`` times the peer's stored rows, whatever was taken
            or forgotten. Forgotten rows are never taken; their coins are drawn all the
            same.
        """
        assert peers[-1] - peers[0] + 1 == len(peers)  # rows lie together
        begin, end = self._offsets[peers[0]], self._offsets[peers[-1] + 1]
        uniforms = self._uniforms(int(peers[0]), t, int(end - begin))
        taken = begin + np.flatnonzero((uniforms < rate) & self._keep[begin:end])
        owner = np.searchsorted(self._offsets, taken, side="right") - 1
        place = np.searchsorted(peers, owner)
        counts = np.bincount(place, minlength=len(peers))
        slot = np.arange(len(taken)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = _roomy(int(counts.max()))
        index = np.repeat(self._offsets[peers][:, None], width, axis=1)
        weights = np.zeros(index.shape)
        index[place, slot] = taken
        weights[place, slot] = (1 / (rate * self._sizes[peers]))[place]
        return Batch(index, weights)

    def _uniforms(self, first: int, key: int, count: int) -> NDArray[np.float64]:
        """Return what an epoch's or round's key draws for rows from a peer's on."""
        block = first // self._block_peers
        origin = self._offsets[block * self._block_peers]
        name = block if self._blocks is None else int(self._blocks[block])
        return self._rng.numpy(
            "batch",
            who=f"block:{name}",
            round=key,
            skip=int(self._offsets[first] - origin),
        ).random(count)

    def _shuffle(self, peers: NDArray[np.int64], epochs: NDArray[np.int64]) -> None:
        """Draw the orders that the given peers of one block enter now."""
        for epoch in np.unique(epochs):
            entering = np.sort(peers[epochs == epoch])
            begin, end = self._offsets[entering[0]], self._offsets[entering[-1] + 1]
            uniforms = self._uniforms(int(entering[0]), int(epoch), int(end - begin))
            sizes = self._sizes[entering]
            whole = int(sizes.sum()) == end - begin
            if whole and (sizes == sizes[0]).all():
                shape = (len(entering), int(sizes[0]))
                inside = uniforms.reshape(shape).argsort(axis=1, kind="stable")
                starts = self._offsets[entering][:, None]
                self._order[begin:end] = (starts + inside).reshape(-1)
            else:
                rows = _ranges(self._offsets[entering], sizes)
                owner = np.repeat(np.arange(len(entering)), sizes)
                self._order[rows] = rows[np.lexsort((uniforms[rows - begin], owner))]
            self._epoch[entering] = epoch


def _roomy(count: int) -> int:
    """Return a number of slots >= count; few of them, since kernels keep buffers."""
    grain = 1 << max(0, count.bit_length() - 4)  # at most 1/8 more than needed
    return max(1, -(-count // grain) * grain)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the concatenation of ``arange(start, start + length)``."""
    ends = np.cumsum(lengths)
    rows: NDArray[np.int64] = np.arange(ends[-1])
    rows += np.repeat(starts - (ends - lengths), lengths)
    return rows
