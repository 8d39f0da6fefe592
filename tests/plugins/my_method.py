"""Head-reset: draw the last layer anew and train it alone, on what is kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import LocalOutcome, LocalTask, TaskPart, methods
from dfl_unlearn.unlearning.local import unchanged
from dfl_unlearn.unlearning.local_work import LocalWork, descend
from dfl_unlearn.unlearning.optimizers import LocalOptimizer


@methods.register("head-reset")
@dataclass(frozen=True, kw_only=True)
class HeadReset:
    """Forget what the last layer knew; what the layers before it learned stays.

    Attributes:
        epochs: Passes over the retained rows.
        learning_rate: Of plain descent.
    """

    epochs: int = 5
    learning_rate: float = 0.1

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"retain_inputs", "retain_labels", "fresh_start", "features"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise InvalidHyperparameterError(
                f"epochs: must be an integer >= 1, got {self.epochs}"
            )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters with a new last layer."""
        same = unchanged(self, task)
        if same is not None:
            return same
        head = torch.zeros(task.model.size, dtype=torch.bool)
        for name, segment in task.model.segments.items():
            if name.startswith(f"{task.model.feature_layer}."):
                segment.view(head).fill_(True)
        start = torch.where(head, task.fresh(rng).to(task.params), task.params)
        work = LocalWork(task, rng, params=start, mask=head)
        optimizer = work.optimizer(LocalOptimizer(learning_rate=self.learning_rate))
        for epoch in work.epochs(self.epochs):
            descend(
                work,
                optimizer,
                task.retain,
                work.objective,
                batch_size=32,
                epoch=epoch,
                objective="retain",
            )
        return work.outcome()
