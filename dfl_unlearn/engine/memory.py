"""How much memory a run will take, part by part, and a refusal before it starts.

The estimate is made of what the engine is known to hold at its worst moment: the state
in two buffers, the copy and the sums of an evaluation, the checkpoints of the record,
the kernel's buffers, and with Ray what every worker holds. What the program and its
data take already is measured, not guessed. ``benchmarks/memory.py`` compares it with
the measured peak.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.local import resolve_chunk, resolve_kernel
from dfl_unlearn.engine.private import record_plan
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.shard import slot_names
from dfl_unlearn.errors import ResourceError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.graph import Topology

SHARE = 0.8  # of the available memory that an estimate may take
# A Ray worker, pages that it shares not counted [measured]: with torch for CPUs, and
# with a build for GPUs, whose start touches more.
WORKER_BYTES = (194 * 10**6, 400 * 10**6)
RAY_BYTES = 350 * 10**6  # Ray's own processes [measured]
_SCORE_BYTES = 2**26  # logits held at once while scoring, in engine.figures
_CACHE_BYTES = 2**29  # inputs in float64 that are kept, in curvature.operators
_SLICE_BYTES = 2**25  # else they are converted piece by piece
_FEWER = "fewer peers or a smaller model"
_BOUND = "mode='norm_bound'"

_large: ContextVar[bool] = ContextVar("large", default=False)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that takes memory.

    Attributes:
        name: What it is.
        nbytes: How much, at the worst moment.
        remedy: What lowers it; empty where nothing does.
    """

    name: str
    nbytes: int
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What a piece of work is going to take.

    Attributes:
        what: The work, e.g. ``1000 peers x 7850 parameters``.
        held: Bytes that this process has already, data included.
        parts: What comes on top.
    """

    what: str
    held: int
    parts: tuple[Part, ...]

    @property
    def coming(self) -> int:
        """Bytes that are not there yet."""
        return sum(part.nbytes for part in self.parts)

    @property
    def total(self) -> int:
        """Bytes of all processes together at the worst moment."""
        return self.held + self.coming

    def check(self, *, allow_large: bool = False) -> None:
        """Refuse work that would take over 80 % of the memory that is left.

        Args:
            allow_large: Start all the same; so does a block of ``large_allowed``.

        Raises:
            ResourceError: If it does not fit; names the largest parts and what lowers
                them.
        """
        room = available_memory()
        if allow_large or _large.get() or self.coming <= SHARE * room:
            return
        largest = sorted(self.parts, key=lambda part: -part.nbytes)[:3]
        named = ", ".join(f"{part.name} {size(part.nbytes)}" for part in largest)
        remedies = dict.fromkeys(part.remedy for part in largest if part.remedy)
        raise ResourceError(
            f"{self.what} need about {size(self.coming)} ({size(room)} available, of "
            f"which {SHARE:.0%} may be taken): {named}; use "
            + "; ".join([*remedies, "or start all the same: allow_large"])
        )

    def __str__(self) -> str:
        """Return one line per part, the largest first."""
        rows = [("held already", self.held)]
        rows += [
            (part.name, part.nbytes)
            for part in sorted(self.parts, key=lambda part: -part.nbytes)
        ]
        return "\n".join(
            f"{name:<34}{size(nbytes):>10}"
            for name, nbytes in [*rows, ("together", self.total)]
        )


@contextmanager
def large_allowed(allowed: bool = True) -> Iterator[None]:
    """Start whatever is asked for in a block, however large the estimate.

    Args:
        allowed: False changes nothing.
    """
    token = _large.set(_large.get() or allowed)
    try:
        yield
    finally:
        _large.reset(token)


def training_memory(
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
    execution: ExecutionConfig,
    *,
    stored: bool = False,
    topology: Topology | None = None,
) -> MemoryEstimate:
    """Return what a training run is going to take.

    Args:
        data: What the peers hold; it is there already.
        model: The model.
        config: The training.
        execution: The engine.
        stored: Whether the run is written into a folder.
        topology: The network, for the rows that Ray's workers exchange; None takes it
            that each needs all.

    Returns:
        The estimate.
    """
    config = replace(config, record=record_plan(config))
    state = data.n * model.size * config.item_size
    slots, mixed = len(slot_names(config)), len(config.trainer.mixed)
    kept = config.record.checkpoint_rounds(config.rounds, state)
    parts = [
        Part(
            name=f"{len(kept)} checkpoints of the record",
            nbytes=state * len(kept),
            remedy="a smaller record.memory_budget or no 'checkpoints' in it",
        ),
        # moments that do not come together: the largest counts
        max(
            _evaluation(data, model, config, state, slots),
            _ending(data, config, state, slots),
            _saving(state, slots, stored),
            key=lambda part: part.nbytes,
        ),
    ]
    if not config.common_init:
        parts.append(
            Part(name="initial states", nbytes=2 * state, remedy="common_init=True")
        )
    buffers = Part(
        name="the state in two buffers",
        nbytes=state * (1 + slots + mixed),
        remedy=_FEWER,
    )
    work = Part(
        name="batches and gradients of a chunk",
        nbytes=_chunk(data, model, config),
        remedy="a smaller batch_size or chunk_peers",
    )
    if execution.engine == "ray":
        others = _exchanged(data, config, execution, topology)
        others *= model.size * config.item_size
        parts += _workers(data, config, execution, state, others, buffers, work)
    else:  # "auto" moves to Ray only later, if at all
        parts += [buffers, work]
    return MemoryEstimate(
        what=f"{data.n} peers x {model.size} parameters",
        held=resident_memory(),
        parts=tuple(part for part in parts if part.nbytes > 0),
    )


def _evaluation(
    data: PeerData, model: FlatModel, config: SimulationConfig, state: int, slots: int
) -> Part:
    """Return what an evaluation takes, at its worst moment."""
    whole = state * (1 + slots)
    flags = 3 * state // config.item_size
    checked = 2 * whole + state + flags  # the copy before, the new one, all finite?
    averaged = whole + 8 * state // config.item_size  # the mean is taken in float64
    scored = whole + _scoring(data, model, config)
    remedy = "fewer test rows" if scored > max(checked, averaged) else _FEWER
    return Part(
        name="copies and scores of an evaluation",
        nbytes=max(checked, averaged, scored),
        remedy=remedy,
    )


def _ending(data: PeerData, config: SimulationConfig, state: int, slots: int) -> Part:
    """Return what the end of training takes: the residual and the digest."""
    inputs = 0
    if "training_residual" in config.record.parts:
        inputs = 8 * data.store.inputs.numel()
        inputs = inputs if inputs <= _CACHE_BYTES else _SLICE_BYTES
    return Part(
        name="residual and digest at the end",
        nbytes=state * (1 + slots) + 2 * state + inputs,
        remedy="record without 'training_residual'" if inputs > state else _FEWER,
    )


def _saving(state: int, slots: int, stored: bool) -> Part:
    """Return what writing a checkpoint takes: two copies, its bytes twice."""
    nbytes = 4 * state * (1 + slots) if stored else 0
    return Part(name="writing a checkpoint", nbytes=nbytes, remedy=_FEWER)


def retraining_memory(run: TrainedRun, execution: ExecutionConfig) -> MemoryEstimate:
    """Return what training a run's network again is going to take; nothing is kept.

    Args:
        run: The run, which stays.
        execution: The engine.

    Returns:
        The estimate.
    """
    config = replace(run.config, record=RecordPlan(parts=frozenset()))
    return training_memory(
        run.data, run.model, config, execution, topology=run.topology
    )


def influence_memory(run: TrainedRun, *, kept: int) -> MemoryEstimate:
    """Return what an exact influence trace is going to take.

    Args:
        run: The run that is replayed.
        kept: Rounds whose derivatives are kept; 0 keeps their norms only.

    Returns:
        The estimate.
    """
    config, n, size = run.config, run.data.n, run.model.size
    state, wide = n * size * config.item_size, 8 * n * size
    slots = len(slot_names(config))
    derivatives = wide * (1 + slots)
    return MemoryEstimate(
        what=f"the exact influence on {n} peers x {size} parameters",
        held=resident_memory(),
        parts=(
            Part(
                name="the replay in two buffers, two states between rounds",
                nbytes=state * (5 + 3 * slots + len(config.trainer.mixed)),
                remedy=_BOUND,
            ),
            Part(
                name="derivatives before and after a round, in float64",
                nbytes=2 * derivatives,
                remedy=_BOUND,
            ),
            Part(
                name=f"derivatives of {kept} rounds",
                nbytes=2 * wide * kept,
                remedy="vectors=False, or a larger every",
            ),
        ),
    )


def _workers(
    data: PeerData,
    config: SimulationConfig,
    execution: ExecutionConfig,
    state: int,
    others: int,
    buffers: Part,
    work: Part,
) -> list[Part]:
    """Return what Ray, its workers and the driver's copies for them take."""
    workers = min(execution.workers, -(-data.n // config.block_peers))
    store = data.store.inputs.nbytes + data.store.labels.nbytes
    fewer = "fewer workers, or engine='inline'"
    return [
        Part(name="Ray itself", nbytes=RAY_BYTES, remedy="engine='inline'"),
        Part(
            name=f"{workers} workers with torch",
            nbytes=workers * worker_memory(data),
            remedy=fewer,
        ),
        Part(
            name="the workers' rows in two buffers",
            nbytes=buffers.nbytes + 2 * len(config.trainer.mixed) * others,
            remedy=fewer,
        ),
        Part(name="the workers' data", nbytes=store, remedy="fewer rows per peer"),
        Part(name="the workers' batches", nbytes=work.nbytes * workers, remedy=fewer),
        Part(
            name="the driver's copy, and rows on their way",
            nbytes=2 * state * len(slot_names(config)) + 2 * state + others,
            remedy=_FEWER,
        ),
    ]


def _exchanged(
    data: PeerData,
    config: SimulationConfig,
    execution: ExecutionConfig,
    topology: Topology | None,
) -> int:
    """Return how many rows of other workers' peers all workers hold together."""
    from dfl_unlearn.engine.backends.ray_split import split_blocks

    cut = split_blocks(data.sizes, config, execution.workers)
    if topology is None:
        return data.n * (len(cut) - 1)
    weights, total = topology.weights, 0
    for blocks in cut:
        first = int(blocks[0]) * config.block_peers
        last = min((int(blocks[-1]) + 1) * config.block_peers, data.n)
        needed = np.unique(weights[first:last].indices)
        total += int(((needed < first) | (needed >= last)).sum())
    return total


def _chunk(data: PeerData, model: FlatModel, config: SimulationConfig) -> int:
    """Return the buffers of one chunk's step."""
    peers = min(resolve_chunk(config), config.block_peers, data.n)
    largest = int(data.sizes.max())
    slots = largest
    if config.private is not None:
        slots = min(largest, int(np.ceil(1.5 * config.private.rate * largest)) + 1)
    elif config.local.batch_size is not None:
        slots = min(largest, config.local.batch_size)
    width = int(np.prod(data.store.inputs.shape[1:]))
    rows = peers * slots * (2 * width) * config.item_size
    gradients = 2 * peers * model.size * config.item_size
    clipped = config.clip_norm is not None
    if clipped and resolve_kernel(model, config.kernel) != "stacked":
        gradients += slots * model.size * config.item_size  # one per sample
    noise = peers * model.size * 16 if config.private is not None else 0
    order = 8 * len(data.store) * 2
    return rows + gradients + noise + order


def _scoring(data: PeerData, model: FlatModel, config: SimulationConfig) -> int:
    """Return what the test accuracy of all peers takes."""
    rows = len(data.test)
    width = int(np.prod(data.test.inputs.shape[1:]))
    logits = min(
        max(_SCORE_BYTES, rows * max(data.num_classes, 1) * config.item_size),
        data.n * rows * max(data.num_classes, 1) * config.item_size,
    )
    return rows * width * config.item_size + 3 * logits


def worker_memory(data: PeerData) -> int:
    """Return what a worker takes before it has any rows.

    That is about what this process has for itself, without its data.

    Args:
        data: What this process holds that a worker does not.

    Returns:
        Bytes, within what was measured.
    """
    import psutil

    own = int(psutil.Process().memory_full_info().uss)
    for batch in (data.store, data.test):
        own -= batch.inputs.nbytes + batch.labels.nbytes
    least, most = WORKER_BYTES
    return min(max(own, least), most)


def resident_memory() -> int:
    """Return the bytes that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Return the bytes this process may still take, control groups included."""
    import psutil

    room = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            most, now = (Path(p).read_text().strip() for p in (limit, used))
        except OSError:
            continue
        if most != "max":
            room = min(room, int(most) - int(now))
    return room


def size(nbytes: float) -> str:
    """Return bytes as people read them, e.g. ``1.6 TB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
