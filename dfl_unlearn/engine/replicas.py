"""Many independent trainings of one setting at once, for audits and for spread.

Replicas are an extra axis of the stacked state: peer i of replica r is one row, data
are shared by index, and the mixing matrix becomes one with R equal parts. Each replica
draws by its own keys, so it is the run that ``simulate`` gives with these keys alone,
bit for bit; how many train together changes speed and memory only. (Except under
``dp-gossip``, whose batches differ in size: a replica's are padded to those of the
largest, and a sum over more zeros may differ in the last bit.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.batches import Batch, BatchPlan
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_rounds import (
    RoundsOfFaults,
    cut_replicas,
    network_weights,
)
from dfl_unlearn.engine.local import LocalData, LocalWork, batch_plan
from dfl_unlearn.engine.memory import available_memory
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.shard import Links, Shard, link
from dfl_unlearn.engine.simulator import initial_state
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import NumericalError, ResourceError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import TopologySchedule

BLOCK_REPLICAS = 64
"""Replicas that train together, unless they would take too much memory."""

_MEMORY_SHARE = 0.25
_SCRATCH = 2  # copies of the rows beside state, next state and slots


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """The end of many trainings.

    Attributes:
        params: Shape ``(R, N, P)``.
        round: Rounds that led here.
        block: Replicas that trained together; recorded, though no bit depends on it.
    """

    params: Tensor
    round: int
    block: int


def train_replicas(
    run: TrainedRun,
    trees: Sequence[RngTree],
    *,
    data: PeerData | None = None,
    block: int = BLOCK_REPLICAS,
    progress: Callable[[int], None] | None = None,
) -> Replicas:
    """Train a run's network again from its start, once per tree of draws.

    Args:
        run: Gives network, data, model and configuration; its state is not used.
        trees: The draws of every replica.
        data: What the peers hold; None is the run's own data.
        block: Replicas that train together at most.
        progress: Called with the number of replicas that each block has finished.

    Returns:
        The final states.
    """

    def start(tree: RngTree) -> Tensor:
        return initial_state(run.model, run.data.n, run.config, tree).params

    return _carried_on(
        run,
        run.data if data is None else data,
        trees,
        lambda some: torch.stack([start(tree) for tree in some], dim=1),
        begin=0,
        rounds=run.config.rounds,
        block=block,
        progress=progress,
        ahead=0,
    )


def continue_replicas(
    run: TrainedRun,
    data: PeerData,
    params: Tensor,
    rounds: int,
    trees: Sequence[RngTree],
    *,
    begin: int | None = None,
    block: int = BLOCK_REPLICAS,
) -> Replicas:
    """Run more rounds of the same training from many states at once.

    Momentum and other slots start anew, as in ``continue_training``.

    Args:
        run: Gives network, model and configuration.
        data: What is kept.
        params: Where every replica starts, shape ``(R, N, P)``; not written to.
        rounds: How many rounds, >= 0.
        trees: The draws of every replica, R of them.
        begin: Rounds that are behind; None is those of the run's state.
        block: Replicas that train together at most.

    Returns:
        The new states.
    """
    done = 0
    begin = run.state.round if begin is None else begin
    if rounds == 0:
        return Replicas(params=params, round=begin, block=block)

    def starts(some: Sequence[RngTree]) -> Tensor:
        nonlocal done
        part = params[done : done + len(some)]
        done += len(some)
        return part.transpose(0, 1)

    return _carried_on(
        run,
        data,
        trees,
        starts,
        begin=begin,
        rounds=rounds,
        block=block,
        progress=None,
        ahead=run.ahead,
    )


def _carried_on(
    run: TrainedRun,
    data: PeerData,
    trees: Sequence[RngTree],
    starts: Callable[[Sequence[RngTree]], Tensor],
    *,
    begin: int,
    rounds: int,
    block: int,
    progress: Callable[[int], None] | None,
    ahead: int,
) -> Replicas:
    """Train block after block of replicas; ``starts`` gives ``(N, k, P)`` for k."""
    _validate.integer(block=block, at_least=1)
    config = replace(run.config, record=RecordPlan(parts=frozenset()))
    block = min(block, len(trees), _fitting(run, config))
    found = []
    with limited_threads(config.threads):
        for first in range(0, len(trees), block):
            some = trees[first : first + block]
            start = starts(some)
            rows = _block(run, config, data, some, start, begin, rounds, first, ahead)
            found.append(rows)
            if progress is not None:
                progress(len(some))
    return Replicas(params=torch.cat(found), round=begin + rounds, block=block)


def _block(
    run: TrainedRun,
    config: SimulationConfig,
    data: PeerData,
    trees: Sequence[RngTree],
    start: Tensor,
    begin: int,
    rounds: int,
    first: int,
    ahead: int,
) -> Tensor:
    """Return the states after some rounds of replicas together, ``(k, N, P)``."""
    n, k = data.n, len(trees)
    schedule = run.topology if config.schedule is None else config.schedule
    work = ReplicaWork(LocalData.of(data, config), run.model, config, trees)
    shard = Shard(work, config)
    faults = _faults(run, config, schedule, trees, begin, ahead)
    linked: tuple[object, Links] | None = None
    for t in range(begin, begin + rounds):
        weights = network_weights(schedule, faults[0] if faults else None, t)
        if linked is None or linked[0] is not weights:
            linked = (weights, _links(weights, k))
        if t == begin:
            shard.load(linked[1], start.reshape(n * k, -1), {}, t)
        shard.relink(linked[1])
        shard.begin(t, cut_replicas(faults, t) if faults else None)
        shard.finish(t, {})
    rows: Tensor = shard.rows()["params"].reshape(n, k, -1).transpose(0, 1)
    bad = ~rows.isfinite().all(dim=2)
    if bool(bad.any()):
        replica, peer = (int(x) for x in bad.nonzero()[0])
        raise NumericalError(
            f"peer {peer} of replica {first + replica} became non-finite by round "
            f"{begin + rounds}; lower learning_rate or set clip_norm"
        )
    return rows


def _links(weights: sp.csr_array, replicas: int) -> Links:
    """Return the network of all replicas: R copies that exchange nothing."""
    copies = sp.kron(weights, sp.eye_array(replicas), format="csr")
    return link(sp.csr_array(copies), [np.arange(copies.shape[0])])[0]


def _faults(
    run: TrainedRun,
    config: SimulationConfig,
    schedule: TopologySchedule,
    trees: Sequence[RngTree],
    begin: int,
    ahead: int,
) -> list[RoundsOfFaults]:
    """Return what goes wrong in every replica by its own draws; empty for nothing."""
    setups = [
        EngineSetup(
            schedule=schedule,
            data=run.data,
            model=run.model,
            config=config,
            rng=tree,
            ahead=ahead,
        )
        for tree in trees
    ]
    found = [RoundsOfFaults.of(setup, {}, begin) for setup in setups]
    return [one for one in found if one is not None]


def _fitting(run: TrainedRun, config: SimulationConfig) -> int:
    """Return how many replicas fit into a quarter of the free memory.

    Raises:
        ResourceError: If not even one does.
    """
    slots = len(config.trainer.slots) + (config.local.momentum > 0)
    one = run.data.n * run.model.size * config.item_size * (2 + slots + _SCRATCH)
    room = int(_MEMORY_SHARE * available_memory())
    if one > room:
        raise ResourceError(
            f"replicas: one of {run.data.n} peers with {run.model.size} parameters "
            f"takes about {one / 2**30:.3g} GiB, above the {room / 2**30:.3g} GiB set "
            "aside; use a smaller network or model"
        )
    return room // one


class ReplicaWork(LocalWork):
    """Local work of R replicas: row ``i R + r`` is peer i of replica r."""

    def __init__(
        self,
        data: LocalData,
        model: FlatModel,
        config: SimulationConfig,
        trees: Sequence[RngTree],
    ) -> None:
        """Prepare batches and kernel.

        Args:
            data: What the peers hold; the same rows for all replicas.
            model: The model.
            config: Local steps, blocks and kernel.
            trees: The draws of every replica.
        """
        super().__init__(data, model, config, trees[0])
        replicas, inside = len(trees), np.arange(len(trees))
        self._chunks = [
            [(peers[:, None] * replicas + inside).reshape(-1) for peers in block]
            for block in super().chunks()
        ]
        self._trees = trees
        self.steps = np.repeat(self.steps, replicas)
        self.scale = np.repeat(self.scale, replicas)
        self._sizes = np.repeat(self._sizes, replicas)
        # Full batches need no draw: one plan serves all.
        drawn = trees if config.local.batch_size is not None else trees[:1]
        plans = [batch_plan(data, config, tree) for tree in drawn]
        self._plan = _ReplicaPlan(plans, replicas)

    def chunks(self) -> list[list[NDArray[np.int64]]]:
        """Return the rows of every chunk: its peers, each in all replicas."""
        return self._chunks

    def _noise(self, peers: NDArray[np.int64], t: int, size: int) -> Tensor:
        """Return every replica's noise for the rows of one block, ``(k, size)``."""
        replicas, per_block = len(self._trees), self.config.block_peers
        block = int(peers[0]) // replicas // per_block
        first = block * per_block
        if self._block_noise is None or self._block_noise[:2] != (block, t):
            count = min(per_block, len(self._sizes) // replicas - first)
            drawn = [
                tree.normal(
                    (count, size),
                    "train-noise",
                    who=f"block:{self._block_numbers[block]}",
                    round=t,
                )
                for tree in self._trees
            ]
            rows = torch.stack(drawn, dim=1).reshape(-1, size)
            self._block_noise = (block, t, rows)
        begin = int(peers[0]) - first * replicas
        return self._block_noise[2][begin : begin + len(peers)]


class _ReplicaPlan:
    """The batches of peers in all replicas."""

    def __init__(self, plans: Sequence[BatchPlan], replicas: int) -> None:
        self._plans, self._replicas = plans, replicas

    def batch(self, peers: NDArray[np.int64], steps: NDArray[np.int64]) -> Batch:
        """Return one batch for each of the given rows; see ``BatchPlan.batch``."""
        r = self._replicas
        each = [plan.batch(peers[::r] // r, steps[::r]) for plan in self._plans]
        if len(each) == 1:
            index, weights = each[0].index, each[0].weights
            return Batch(np.repeat(index, r, axis=0), np.repeat(weights, r, axis=0))
        return _together(each)

    def poisson(self, peers: NDArray[np.int64], t: int, rate: float) -> Batch:
        """Return batches that rows join by coins; see ``BatchPlan.poisson``.

        The replica with the most rows decides on the number of slots.
        """
        own = peers[:: self._replicas] // self._replicas
        return _together([plan.poisson(own, t, rate) for plan in self._plans])


def _together(batches: Sequence[Batch]) -> Batch:
    """Return the batches of all replicas, peer after peer, padded alike."""
    width = max(one.index.shape[1] for one in batches)
    index, weights = [], []
    for one in batches:
        more = width - one.index.shape[1]
        index.append(np.pad(one.index, ((0, 0), (0, more)), mode="edge"))
        weights.append(np.pad(one.weights, ((0, 0), (0, more))))
    return Batch(
        np.stack(index, axis=1).reshape(-1, width),
        np.stack(weights, axis=1).reshape(-1, width),
    )
