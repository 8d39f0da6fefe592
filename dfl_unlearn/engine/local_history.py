"""One peer's own past, read from a run and its record."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.engine.batches import BatchPlan
from dfl_unlearn.engine.loop import initial_params
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.record.local import LocalHistory


def history_of(run: TrainedRun, peer: int) -> LocalHistory | None:
    """Return what one peer's training left, or None where it was trained elsewhere.

    Args:
        run: The trained run.
        peer: Whose; only its own states and rows are looked at.

    Returns:
        The history, its checkpoints counted in the peer's own optimizer steps. After a
        request the record has stayed behind, and there are no checkpoints.
    """
    record, local = run.record, run.config.local
    data = run.data
    each = int(local.per_round(data.sizes)[peer])
    states: dict[int, Tensor] = {}
    if record is not None:
        rates = record.step_sizes
        states = {0: record.initial} if record.initial is not None else {}
        states |= record.checkpoints
    elif run.carried_out and run.carried_out[0].round:
        rounds = min(run.carried_out[0].round, run.config.rounds)
        rates = np.array([local.rate(t, run.config.rounds) for t in range(rounds)])
    else:
        return None
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

    constants = known_constants(run, peer)
    return LocalHistory(
        learning_rate=local.learning_rate,
        lr_schedule=local.lr_schedule,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        clip_norm=run.config.clip_norm,
        batch_size=local.batch_size,
        steps=len(rates) * each,
        steps_per_round=each,
        rates=np.repeat(rates, each),
        samples=int(data.sizes[peer]),
        checkpoints={t * each: state[peer] for t, state in states.items()},
        loss_name=run.model.loss_name,
        start_norm=float(
            initial_params(run.model, peer, run.config, run.rng).double().norm()
        ),
        smoothness=constants.get("smoothness"),
        gradient_bound=constants.get("gradient_bound"),
        strong_convexity=constants.get("strong_convexity"),
        gossip=run.topology.n > 1,
        private=run.config.private is not None,
        batch_rows=batch_rows,
    )


def known_constants(run: TrainedRun, peer: int) -> dict[str, Assumption]:
    """Return the constants of a peer's own objective, as far as they are known.

    Clipping keeps a sample's gradient Lipschitz, since the projection to a ball is
    nonexpansive, also where clipped gradients are none of a convex function [derived].

    Args:
        run: The trained run.
        peer: Whose.

    Returns:
        ``smoothness`` (l2 and weight decay included), ``gradient_bound`` (data term)
        and, of a convex objective, ``strong_convexity``.
    """
    model, clip_norm = run.model, run.config.clip_norm
    if not model.convex:
        return dict(model.constants(1.0, clip_norm))
    bias = any(name.endswith("bias") for name in model.segments)
    radius, public = run.data.input_radius(bias=bias, peer=peer)
    if radius == 0:
        return {}
    known = dict(model.constants(radius, clip_norm))
    decay = run.config.local.weight_decay
    smoothness = dict(model.constants(radius))["smoothness"]
    found = {
        "smoothness": replace(smoothness, value=float(smoothness.value) + decay),
    }
    if "gradient_bound" in known:
        found["gradient_bound"] = known["gradient_bound"]
    if not public:
        found = {name: _looked_up(constant) for name, constant in found.items()}
    if "smoothness" in known:  # what is descended on is the gradient of a convex loss
        found["strong_convexity"] = Assumption(
            name="strong convexity (lambda)",
            value=model.l2 + decay,
            source="proven",
            note="l2 and weight decay of a convex objective",
        )
    return found


def _looked_up(constant: Assumption) -> Assumption:
    """Return a constant that rests on the largest norm among the stored rows."""
    if constant.source == "clipped":
        return constant
    return replace(
        constant,
        source="assumed",
        note=f"{constant.note}, the largest norm among the stored rows, taken as "
        "public; state norm_bound or feature_bound for the data",
    )
