"""Which worker gets which blocks, and what a block needs of the memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.shard import slot_names


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


def memory_kills() -> int:
    """Return how often the kernel ended a process because memory ran out.

    Counted in this control group, else on the whole machine; 0 where neither says so.
    """
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def listed(blocks: Sequence[int]) -> str:
    """Return numbers of blocks for a message, each once."""
    return ", ".join(map(str, sorted(set(blocks))))


def block_bytes(setup: EngineSetup) -> int:
    """Return what the rows and the data of one block take, the process itself not.

    Args:
        setup: Data, model and configuration.

    Returns:
        Bytes: two copies of what is mixed, one of the other slots, and the data.
    """
    config = setup.config
    mixed = set(config.trainer.mixed)
    vectors = 2 * len(mixed) + len(set(slot_names(config)) - mixed)
    rows = min(config.block_peers, setup.data.n)
    state = rows * setup.model.size * config.item_size * vectors
    store = setup.data.store
    blocks = -(-setup.data.n // config.block_peers)
    return state + (store.inputs.nbytes + store.labels.nbytes) // blocks
