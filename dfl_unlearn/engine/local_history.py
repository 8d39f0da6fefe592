"""One peer's own past, read from a run and its record."""

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.batches import BatchPlan
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.record.local import LocalHistory


def history_of(run: TrainedRun, peer: int) -> LocalHistory | None:
    """Return what one peer's training left, or None where nothing was recorded.

    Args:
        run: The trained run.
        peer: Whose; only its own states and rows are looked at.

    Returns:
        The history, its checkpoints counted in the peer's own optimizer steps.
    """
    record, local = run.record, run.config.local
    if record is None:
        return None
    data = run.data
    each = int(local.per_round(data.sizes)[peer])
    states = {0: record.initial} if record.initial is not None else {}
    states |= record.checkpoints
    start = int(data.offsets[peer])
    everything = np.ones(len(data.store), dtype=np.bool_)
    plan = BatchPlan(
        offsets=data.offsets,
        keep=everything,
        counted=everything,
        local=local,
        rng=run.rng,
        block_peers=run.config.block_peers,
    )

    def batch_rows(step: int) -> NDArray[np.int64]:
        batch = plan.batch(np.array([peer]), np.array([step]))
        rows: NDArray[np.int64] = batch.index[0][batch.weights[0] > 0] - start
        return rows

    return LocalHistory(
        learning_rate=local.learning_rate,
        lr_schedule=local.lr_schedule,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        clip_norm=run.config.clip_norm,
        batch_size=local.batch_size,
        steps=record.rounds * each,
        steps_per_round=each,
        rates=np.repeat(record.step_sizes, each),
        samples=int(data.sizes[peer]),
        checkpoints={t * each: state[peer] for t, state in states.items()},
        loss_name=run.model.loss_name,
        gossip=run.topology.n > 1,
        private=run.config.private is not None,
        batch_rows=batch_rows,
    )
