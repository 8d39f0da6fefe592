"""NegGrad+: gradient descent on what stays minus some on what goes, in one step.

Kurmanji, Triantafillou, Hayes and Triantafillou (2023), Towards unbounded machine
unlearning, calls it so; recipe [recalled]: minimize ``beta L_r - (1 - beta) L_f`` with
beta in 0.95..0.999 and SGD at 0.01, 5-10 epochs over the retained rows while batches of
the forgotten rows are cycled.

Both losses share one step here. Under ``dual-optim`` the two terms become two steps,
each with its own optimizer [derived].
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

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
    with_one_optimizer,
)


@methods.register("neg-grad-plus")
@dataclass(frozen=True, kw_only=True)
class NegGradPlus:
    """Descend on the retained rows while ascending a little on the rest; no claim.

    Nothing bounds the ascent: too small a ``beta`` or too many epochs ruin the model.

    Attributes:
        beta: Weight of the retained rows, in (0, 1); 1 - beta is the other's.
        epochs: Passes over the retained rows.
        batch_size: Retained rows per step; None is all of them.
        forget_batch_size: Forgotten rows per step; None is all of them.
        optimizer: What takes the steps.
        lr_schedule: ``constant`` or ``cosine``.
    """

    beta: float = 0.95
    epochs: int = 10
    batch_size: int | None = 128
    forget_batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(
            learning_rate=0.01, momentum=0.9, weight_decay=5e-4
        )
    )
    lr_schedule: LrSchedule = "constant"

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "forget_labels", "retain_inputs", "retain_labels"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(
            optimizer=self.optimizer,
            lr_schedule=self.lr_schedule,
            rate=None,
            epochs=self.epochs,
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
        )
        _validate.number(
            beta=self.beta, above=0, below=1, error=InvalidHyperparameterError
        )

    def objectives(self, work: LocalWork) -> Objectives:
        """Return both terms, to be taken in one step."""
        task = work.task
        assert task.forget is not None
        assert task.retain is not None
        forget, retain = task.forget, task.retain

        def forget_loss(batch: TensorBatch, _: float) -> Tensor:
            return -(1 - self.beta) * work.losses(batch).mean()

        def retain_loss(batch: TensorBatch) -> Tensor:
            return self.beta * work.objective(batch)

        per_epoch = math.ceil(len(retain) / (self.batch_size or len(retain)))
        return Objectives(
            forget=lambda _: forget,
            retain=retain,
            forget_loss=forget_loss,
            retain_loss=retain_loss,
            schedule=Turns(iterations=self.epochs * per_epoch),
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
            lr_schedule=self.lr_schedule,
            joint=True,
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs."""
        return with_one_optimizer(self, task, rng)
