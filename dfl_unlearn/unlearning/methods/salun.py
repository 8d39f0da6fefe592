"""SalUn: random labels, on the weights that matter most to what goes.

Fan, Liu, Zhang, Wong, Wei and Liu (2024), SalUn: Empowering machine unlearning via
gradient-based weight saliency [code: OPTML-Group/Unlearn-Saliency
``generate_mask.py``]. Before anything moves, ``ratio`` of all weights are chosen by the
size of the loss gradient over the forgotten rows; the others stay as they are.

Deviations: weights outside the mask are frozen to the bit; zeroing their gradient alone
lets momentum and weight decay move them (a known bug of the reference code, its issue
32). Gradients are means over a set, so that ``score="difference"``, ``|g_f| - |g_r|``
[code: CityU-MLO/DualOptim], does not depend on the sets' sizes. Ties go to the weight
that comes first.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, TaskPart, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.random_label import RandomLabel
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.two_objectives import (
    LrSchedule,
    Objectives,
    with_one_optimizer,
)

Score = Literal["forget", "difference"]


@methods.register("salun")
@dataclass(frozen=True, kw_only=True)
class SalUn:
    """Random labels on the most salient weights, the others frozen; no claim.

    Attributes:
        ratio: Share of all weights that may change, in (0, 1], to one weight.
        score: ``forget``: size of the mean gradient over the forgotten rows;
            ``difference``: that minus its size over the retained rows.
        epochs: Passes over each of the two sets.
        batch_size: Retained rows per step; None is all of them.
        forget_batch_size: Forgotten rows per step; None is all of them.
        optimizer: What takes both kinds of steps.
        forget_learning_rate: Of forget steps; None is the optimizer's.
        lr_schedule: ``constant``, or ``cosine`` for both rates.
    """

    ratio: float = 0.5
    score: Score = "forget"
    epochs: int = 10
    batch_size: int | None = 128
    forget_batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(
            learning_rate=0.05, momentum=0.9, weight_decay=5e-4
        )
    )
    forget_learning_rate: float | None = None
    lr_schedule: LrSchedule = "constant"

    uses: ClassVar[frozenset[TaskPart]] = RandomLabel.uses | {"forget_labels"}

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.number(
            ratio=self.ratio,
            above=0,
            at_most=1,
            error=wrong,
            why="give the share of the weights that may change, e.g. 0.5",
        )
        _validate.one_of(get_args(Score), score=self.score)
        self._labels()

    def _labels(self) -> RandomLabel:
        """Return the method without the mask; checks the fields both have."""
        return RandomLabel(
            epochs=self.epochs,
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
            optimizer=self.optimizer,
            forget_learning_rate=self.forget_learning_rate,
            lr_schedule=self.lr_schedule,
        )

    def objectives(self, work: LocalWork) -> Objectives:
        """Choose the weights, and return the objectives of random labels on them."""
        task = work.task
        assert task.forget is not None
        assert task.retain is not None
        score = _mean_gradient(work, task.forget, self.forget_batch_size).abs()
        if self.score == "difference":
            score -= _mean_gradient(work, task.retain, self.batch_size).abs()
        work.mask = largest(score, self.ratio)
        kept = float(work.mask.sum()) / len(work.mask)
        return replace(self._labels().objectives(work), info={"kept_weights": kept})

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs."""
        return with_one_optimizer(self, task, rng)


def largest(score: Tensor, ratio: float) -> Tensor:
    """Return which entries are among the ``ratio`` largest.

    Args:
        score: Shape ``(P,)``.
        ratio: In (0, 1].

    Returns:
        Bool ``(P,)`` with ``ratio * P`` entries true, rounded, at least one.
    """
    count = max(1, round(ratio * len(score)))
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[score.argsort(descending=True, stable=True)[:count]] = True
    return mask


def _mean_gradient(work: LocalWork, data: TensorBatch, size: int | None) -> Tensor:
    """Return the gradient of the mean data term over a set, ``(P,)``, batch by batch.

    Part of the sum only where the budget ends before the set does.
    """
    total = torch.zeros_like(work.task.params)
    for batch in work.batches(data, size):
        total += work.gradient(work.losses(batch).sum(), len(batch))
    return total / len(data)
