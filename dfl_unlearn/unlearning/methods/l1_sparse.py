"""l1-sparse: fine-tuning with a fading l1 penalty, on the view that sparse forgets.

Jia, Liu, Ram, Yao, Liu, Liu, Sharma and Liu (2023), *Model sparsity can simplify
machine unlearning*. In epoch e of E the penalty on all parameters is
``a_e ||params||_1`` with ``a_e = a (1 - e / (E - E0))``, and 0 in the last E0 epochs
[code: OPTML-Group/Unlearn-Sparse ``unlearn/FT.py``, which names a between 1e-5 and
5e-4].
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork, descend
from dfl_unlearn.unlearning.optimizers import LocalOptimizer, check_passes


@methods.register("l1-sparse")
@dataclass(frozen=True, kw_only=True)
class L1Sparse:
    """Train on the retained rows with an l1 penalty that fades; no claim.

    Attributes:
        alpha: Penalty a of the first epoch, on the sum of absolute parameters.
        epochs: Passes E over the retained rows.
        plain_epochs: Last passes E0 without the penalty, fewer than ``epochs``.
        batch_size: Rows per step; None is all of them.
        optimizer: What takes the steps.
    """

    alpha: float = 5e-4
    epochs: int = 10
    plain_epochs: int = 0
    batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.01, momentum=0.9)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset({"retain_inputs", "retain_labels"})

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.number(alpha=self.alpha, at_least=0, error=wrong)
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )
        _validate.integer(
            plain_epochs=self.plain_epochs,
            at_least=0,
            at_most=self.epochs - 1,
            error=wrong,
            why="fewer than epochs",
        )

    def penalty(self, epoch: int) -> float:
        """Return the weight of the l1 term in an epoch, counted from 0."""
        return self.alpha * max(0.0, 1 - epoch / (self.epochs - self.plain_epochs))

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.retain is not None
        work = LocalWork(task, rng)
        optimizer = work.optimizer(self.optimizer)
        losses, penalties = [], []
        for epoch in work.epochs(self.epochs):
            weight = self.penalty(epoch)

            def loss(batch: TensorBatch, weight: float = weight) -> Tensor:
                return work.objective(batch) + weight * _l1(work)

            losses.append(
                descend(
                    work,
                    optimizer,
                    task.retain,
                    loss,
                    batch_size=self.batch_size,
                    epoch=epoch,
                    objective="retain",
                )
            )
            penalties.append(weight)
        return work.outcome(trace={"retain_loss": losses, "penalty": penalties})


def _l1(work: LocalWork) -> Tensor:
    """Return the sum of absolute parameters, with its graph."""
    return torch.stack([leaf.abs().sum() for leaf in work.leaves.values()]).sum()
