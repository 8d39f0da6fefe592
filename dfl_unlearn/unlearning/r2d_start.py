"""Where rewinding takes training up again: a kept state, or one worked out backwards.

After a first request the models that training ended with are gone, or noised, and the
record stays behind; so a peer keeps the state that it rewound to as personal state, and
every later request begins there too. What the forgotten rows went into is secret.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._assumption import Assumption, Source, State
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import (
    MissingInputError,
    MissingRecordError,
    ReconstructionError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalTask
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.rewinding import rewind

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.methods.r2d import R2d

STATE, PLACE = "r2d-start", "r2d-place"
"""Names of personal tensors: the state, ``(P,)``; its step, the error that noise has
to cover, and the place in ``_CURVATURES`` of what that rests on, ``(3,)`` float64."""

_CURVATURES = ("estimated", "proven", "assumed", "contradicted")
"""What is known of L where steps were undone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The state that training is taken up from again.

    Attributes:
        params: Shape ``(P,)``.
        step: Steps of training behind it, T - K.
        error: Bound on its distance to the state of training, which the sensitivity
            includes; 0 for a state that was kept.
        source: Where it comes from, for the certificate.
        curvature: One of ``_CURVATURES``: how the L behind ``error`` is known.
        info: For readers of the simulator: it depends on the forgotten rows.
    """

    params: Tensor
    step: int
    error: float
    source: Assumption
    curvature: str
    info: dict[str, float | str]

    @property
    def personal(self) -> dict[str, Tensor]:
        """What later requests begin with."""
        known = _CURVATURES.index(self.curvature)
        place = torch.tensor([self.step, self.error, known], dtype=torch.float64)
        return {STATE: self.params, PLACE: place}


def start_of(
    method: "R2d",
    task: LocalTask[TensorBatch],
    work: LocalWork,
    rng: RngTree,
    wanted: int,
) -> Start | None:
    """Return the latest state of at most ``wanted`` steps that is to be had.

    Args:
        method: Its fields.
        task: The task.
        work: Counts what is computed.
        rng: Draws the starts of power iterations.
        wanted: T - K.

    Returns:
        The state; None where the budget was spent before.

    Raises:
        MissingRecordError: If no state is early enough.
    """
    history = task.history
    assert history is not None
    known = dict(history.checkpoints) if method.start == "checkpoint" else {}
    if _first_request(task):
        known[history.steps] = task.params
    found = {
        step: _kept(step, params, "kept in training")
        for step, params in known.items()
        if step <= wanted
    }
    earlier = _companion(task)
    if earlier is not None and earlier.step <= wanted:
        found.setdefault(earlier.step, earlier)
    if found:
        return found[max(found)]
    if method.start == "proximal":
        return _undone(method, task, work, rng, wanted)
    raise MissingRecordError(
        f"history: must have a state after at most {wanted} steps, got "
        f"{sorted(history.checkpoints) or 'none'}; train with "
        "record=RecordPlan.for_protocols(method), or give an earlier outcome's "
        "personal state as companions"
    )


def rounding_of(params: Tensor) -> float:
    """Return the relative rounding of one training step in the type of a state."""
    return float(torch.finfo(params.dtype).eps)


def _first_request(task: LocalTask[TensorBatch]) -> bool:
    """Tell whether the task's parameters are training's own last state."""
    assert task.history is not None
    return task.forget_size + task.retain_size == task.history.samples


def _kept(step: int, params: Tensor, how: str) -> Start:
    return Start(
        params=params.detach().clone(),
        step=step,
        error=0.0,
        source=Assumption(
            name="start", value=f"state after {step} steps", source="proven", note=how
        ),
        curvature="proven",
        info={},
    )


def _companion(task: LocalTask[TensorBatch]) -> Start | None:
    """Return the state that an earlier request was carried out from."""
    if STATE not in task.companions or PLACE not in task.companions:
        return None
    params = task.companions[STATE].to(task.params)
    step, error, known = task.companions[PLACE].tolist()
    curvature = _CURVATURES[int(known)]
    if error == 0:
        return _kept(int(step), params, "kept from an earlier request")
    return Start(
        params=params.detach().clone(),
        step=int(step),
        error=error,
        source=_undone_source(int(step), error, curvature),
        curvature=curvature,
        info={},
    )


def _undone(
    method: "R2d",
    task: LocalTask[TensorBatch],
    work: LocalWork,
    rng: RngTree,
    wanted: int,
) -> Start | None:
    """Return the state before the last steps; None where the budget ended.

    Raises:
        ReconstructionError: If the state may be off by more than ``start_error``.
    """
    history = task.history
    assert history is not None
    _check_undoable(task, history)
    smooth, curvature = method.smoothness, "assumed"
    if smooth is None and history.smoothness is not None:
        smooth = float(history.smoothness.value)
        source = history.smoothness.source
        curvature = source if source in _CURVATURES else "assumed"
    if smooth is None:
        curvature = "estimated"

    def count(gradients: int) -> None:
        work.sample_gradients += gradients

    found = rewind(
        _objectives(task, history),
        task.params,
        history.rates,
        steps=history.steps - wanted,
        rng=rng,
        decay=history.weight_decay,
        smoothness=smooth,
        rounding=rounding_of(task.params),
        stop=work.spent,
        count=count,
    )
    if found is None:
        return None
    if found.exceeded:
        curvature = "contradicted"
    params = found.params.to(task.params)
    error = found.error + rounding_of(params) * float(found.params.norm())
    if not error <= method.start_error:
        raise ReconstructionError(
            "start_error: must be at least how far the undone state may be off, "
            f"{error:.3g}, got {method.start_error:g}; rewind fewer steps, raise it, "
            "or keep checkpoints"
        )
    return Start(
        params=params,
        step=wanted,
        error=method.start_error,
        source=_undone_source(wanted, method.start_error, curvature),
        curvature=curvature,
        info={
            "start_error": error,
            "start_amplification": found.amplification,
            "start_residual": found.residual,
            "start_curvature": found.curvature,
        },
    )


def _undone_source(step: int, cap: float, curvature: str) -> Assumption:
    how: dict[str, tuple[Source, State, str]] = {
        "proven": ("measured", "held", "a bound"),
        "assumed": ("assumed", "held", "as stated"),
        "estimated": ("estimated", "held", "estimated"),
        "contradicted": (
            "assumed",
            "violated",
            "as stated, but a larger curvature was measured",
        ),
    }
    source, state, known = how[curvature]
    return Assumption(
        name="start",
        value=f"state after {step} steps, worked out backwards",
        source=source,
        state=state,
        note=f"off by at most {cap:.3g}, a public cap that noise covers: residuals and "
        f"rounding, carried back by 1/(1 - eta L) a step, were below it, L {known}",
    )


def _check_undoable(task: LocalTask[TensorBatch], history: LocalHistory) -> None:
    """Refuse a training whose steps cannot be undone.

    Raises:
        UnsupportedRequestError: If steps were no plain gradient steps of this peer.
        MissingInputError: If rows of training are gone, or the state was noised.
    """
    reasons = {
        "momentum": history.momentum > 0,
        "clip_norm": history.clip_norm is not None,
        "gossip": history.gossip,
        "noise in training": history.private,
    }
    found = [name for name, there in reasons.items() if there]
    if found:
        raise UnsupportedRequestError(
            f"start: must be 'checkpoint' for a training with {', '.join(found)}, got "
            "'proximal'; only plain gradient steps can be undone"
        )
    if not _first_request(task):
        raise MissingInputError(
            f"task: must have all {history.samples} rows of training to undo its "
            f"steps, got {task.forget_size + task.retain_size}; give the earlier "
            "outcome's personal state as companions, or use start='checkpoint'"
        )


def _objectives(
    task: LocalTask[TensorBatch], history: LocalHistory
) -> Callable[[int], Objective]:
    """Return what each step of training was taken on: step -> objective."""
    assert task.forget is not None
    assert task.retain is not None
    order = np.argsort(np.concatenate([task.forget_rows, task.retain_rows]))
    at = torch.from_numpy(order)
    inputs = torch.cat([task.forget.inputs, task.retain.inputs])[at]
    labels = torch.cat([task.forget.labels, task.retain.labels])[at]

    def of(rows: NDArray[np.int64]) -> Objective:
        weights = np.zeros(history.samples)
        weights[rows] = 1 / len(rows)
        return Objective(
            model=task.model, inputs=inputs, labels=labels, weights=weights
        )

    whole = of(np.arange(history.samples))

    def objective(step: int) -> Objective:
        rows = history.batch_rows(step)
        return whole if len(rows) == history.samples else of(rows)

    return objective
