"""Random labels: learn noise on what goes, and the truth on what stays.

Recipe [code: OPTML-Group/Unlearn-Saliency ``Classification/unlearn/RL.py``]: every
epoch draws fresh labels, uniform over all classes (the true one included), for the
forgotten rows; a pass over them is followed by a pass over the retained rows, 10
epochs, SGD with momentum 0.9 and weight decay 5e-4. Without the second pass the model
collapses.

Deviations: the l2 term of the model is part of retain steps only, so that it acts once
an iteration; learning rate 0.05, chosen on small models [computed].
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, TaskPart, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.two_objectives import (
    LrSchedule,
    Objectives,
    Passes,
    check_fields,
    with_one_optimizer,
)

LABELS = 16


@methods.register("random-label")
@dataclass(frozen=True, kw_only=True)
class RandomLabel:
    """Train on random labels for the forgotten rows, then on the retained; no claim.

    Attributes:
        epochs: Passes over each of the two sets.
        batch_size: Retained rows per step; None is all of them.
        forget_batch_size: Forgotten rows per step; None is all of them.
        optimizer: What takes both kinds of steps.
        forget_learning_rate: Of forget steps; None is the optimizer's.
        lr_schedule: ``constant``, or ``cosine`` for both rates.
    """

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

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "retain_inputs", "retain_labels", "class_count"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(
            optimizer=self.optimizer,
            lr_schedule=self.lr_schedule,
            rate=self.forget_learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
        )

    def objectives(self, work: LocalWork) -> Objectives:
        """Return cross-entropy to random labels, and the objective of training."""
        task = work.task
        assert task.forget is not None
        assert task.retain is not None
        forget = task.forget

        def relabelled(epoch: int) -> TensorBatch:
            return TensorBatch(forget.inputs, random_labels(work, len(forget), epoch))

        def forget_loss(batch: TensorBatch, _: float) -> Tensor:
            return work.losses(batch).mean()

        return Objectives(
            forget=relabelled,
            retain=task.retain,
            forget_loss=forget_loss,
            retain_loss=work.objective,
            schedule=Passes(epochs=self.epochs),
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
            forget_learning_rate=self.forget_learning_rate,
            lr_schedule=self.lr_schedule,
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs."""
        return with_one_optimizer(self, task, rng)


def random_labels(work: LocalWork, count: int, epoch: int) -> Tensor:
    """Return labels of one epoch, uniform over all classes, int64 ``(count,)``."""
    generator = work.generator(round=epoch, draw=LABELS)
    return torch.randint(work.task.num_classes, (count,), generator=generator)
