"""SFRon: ascend on what goes where it matters more than what stays does.

Huang, Liu, Qin, Cheng and others (2024), Unified gradient-based machine unlearning with
remain geometry enhancement [code: K1nght/Unified-Unlearning-w-Remain-Geometry
``sfron.py``, read in CityU-MLO/DualOptim]. Weights whose diagonal Fisher information
over the forgotten rows is at least ``threshold`` times that over the retained rows may
be moved by forget steps. A forget step minimizes ``-a_s sum_i w_i l_i`` with
``w_i = l_i^-lambda / sum_j l_j^-lambda`` (constants for the gradient) and
``a_s = alpha (1 + cos(pi s / S)) / 2`` at iteration s of S, its gradient clipped at
norm 7; it comes before every 5th of the retain steps. Both rates fall as a cosine.

The mask is on the gradient of forget steps, not a freeze: retain steps move every
weight, and so do momentum and weight decay [code].

Deviations: the code averages parameters with weight 1, which does nothing, and is left
out. Losses below 1e-12 count as that, or one row that is fitted to the last bit would
take all the weight. Defaults are for small models [computed]: 300 iterations instead of
1500, alpha 1 instead of 31, and a forget learning rate of its own.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, TaskPart, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.two_objectives import (
    LrSchedule,
    Objectives,
    Turns,
    check_fields,
    cosine,
    with_one_optimizer,
)

FISHER_FLOOR = 1e-15
LOSS_FLOOR = 1e-12
FORGET_FISHER_ORDER = 2
RETAIN_FISHER_ORDER = 3


@methods.register("sfron")
@dataclass(frozen=True, kw_only=True)
class SfRon:
    """Ascend adaptively on the forgotten rows between retain steps; no claim.

    Attributes:
        iterations: S, retain steps.
        forget_every: A forget step comes before every k-th of them.
        alpha: Scale of the forget loss at the start; it falls as a cosine.
        weight_power: lambda >= 0 of the weights of forgotten rows: the larger, the
            more those count that are fitted best.
        threshold: Least ratio of the two Fisher informations of a masked-in weight.
        clip_norm: Bound on the gradient's norm in forget steps.
        batch_size: Retained rows per step; None is all of them.
        forget_batch_size: Forgotten rows per step; None is all of them.
        optimizer: What takes both kinds of steps.
        forget_learning_rate: Of forget steps; None is the optimizer's.
        lr_schedule: ``cosine``, or ``constant``, of both rates.
    """

    iterations: int = 300
    forget_every: int = 5
    alpha: float = 1.0
    weight_power: float = 0.5
    threshold: float = 1.0
    clip_norm: float = 7.0
    batch_size: int | None = 128
    forget_batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(
            learning_rate=0.01, momentum=0.9, weight_decay=5e-4
        )
    )
    forget_learning_rate: float | None = None
    lr_schedule: LrSchedule = "cosine"

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "forget_labels", "retain_inputs", "retain_labels"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        check_fields(
            optimizer=self.optimizer,
            lr_schedule=self.lr_schedule,
            rate=self.forget_learning_rate,
            iterations=self.iterations,
            forget_every=self.forget_every,
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
        )
        _validate.number(alpha=self.alpha, above=0, error=wrong)
        _validate.number(weight_power=self.weight_power, at_least=0, error=wrong)
        _validate.number(threshold=self.threshold, at_least=0, error=wrong)
        _validate.number(clip_norm=self.clip_norm, above=0, error=wrong)

    def objectives(self, work: LocalWork) -> Objectives:
        """Compare the Fisher informations, and return the weighted ascent."""
        task = work.task
        assert task.forget is not None
        assert task.retain is not None
        forget, retain = task.forget, task.retain
        ratio = _fisher(work, forget, self.forget_batch_size, FORGET_FISHER_ORDER) / (
            _fisher(work, retain, self.batch_size, RETAIN_FISHER_ORDER) + FISHER_FLOOR
        )
        mask = ratio >= self.threshold

        def forget_loss(batch: TensorBatch, progress: float) -> Tensor:
            weighted = adaptive_loss(work.losses(batch), self.weight_power)
            return -self.alpha * cosine(progress) * weighted

        return Objectives(
            forget=lambda _: forget,
            retain=retain,
            forget_loss=forget_loss,
            retain_loss=work.objective,
            schedule=Turns(iterations=self.iterations, forget_every=self.forget_every),
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
            forget_learning_rate=self.forget_learning_rate,
            lr_schedule=self.lr_schedule,
            clip_norm=self.clip_norm,
            forget_mask=mask,
            info={"forget_step_weights": float(mask.sum()) / len(mask)},
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the iterations."""
        return with_one_optimizer(self, task, rng)


def adaptive_loss(losses: Tensor, power: float) -> Tensor:
    """Return the mean of losses weighted by ``l^-power``; weights are constants.

    Args:
        losses: Of each row, >= 0, shape ``(B,)``.
        power: lambda >= 0; 0 is the plain mean.

    Returns:
        ``sum_i w_i l_i``, shape ``()``.
    """
    floored = losses.detach().clamp(min=LOSS_FLOOR)
    weights = torch.softmax(-power * floored.log(), dim=0)
    return (weights * losses).sum()


def _fisher(work: LocalWork, data: TensorBatch, size: int | None, draw: int) -> Tensor:
    """Return the mean over batches of squared batch-mean gradients, ``(P,)``.

    Over the batches that the budget allows; 0 if it allows none.
    """
    total, count = torch.zeros_like(work.task.params), 0
    for batch in work.batches(data, size, draw=draw):
        total += work.gradient(work.losses(batch).mean(), len(batch)).square()
        count += 1
    return total / max(1, count)
