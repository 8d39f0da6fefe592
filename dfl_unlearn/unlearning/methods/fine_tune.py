"""Fine-tuning: go on training on what is kept, and hope that the rest is forgotten.

Learning rate 0.01, 10 epochs, constant, batches of 128, momentum 0.9 [code:
OPTML-Group/Unlearn-Sparse ``unlearn/FT.py``]; rates up to 0.1 forget more. Deviation:
that code's weight decay of 5e-4 is left out; the model's own l2 stays.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from dfl_unlearn.data.batch import TensorBatch
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


@methods.register("fine-tune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Train on the retained rows for some epochs; no claim.

    Attributes:
        epochs: Passes over the retained rows.
        batch_size: Rows per step; None is all of them.
        optimizer: What takes the steps.
    """

    epochs: int = 10
    batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.01, momentum=0.9)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset({"retain_inputs", "retain_labels"})

    def __post_init__(self) -> None:
        """Check the fields."""
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.retain is not None
        work = LocalWork(task, rng)
        optimizer = work.optimizer(self.optimizer)
        losses = [
            descend(
                work,
                optimizer,
                task.retain,
                work.objective,
                batch_size=self.batch_size,
                epoch=epoch,
                objective="retain",
            )
            for epoch in work.epochs(self.epochs)
        ]
        return work.outcome(trace={"retain_loss": losses})
