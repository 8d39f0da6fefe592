"""Bad teacher: imitate an untrained network on what goes, oneself on what stays.

Chundawat, Tarun, Mandal and Kankanhalli (2023), *Can bad teaching induce forgetting?*
On batches of all rows, mixed, the student minimizes ``KL(teacher || student)``: the
teacher of a forgotten row is a network with fresh parameters, that of a retained row
the model as it was. SGD with rate 0.02, 10 epochs, temperature 1 [code:
K1nght/Unified-Unlearning-w-Remain-Geometry ``unlearn/bad_teacher.py``].

Deviations: the divergence is a mean over rows; that code's is a mean over rows and
classes, so our steps are C times its steps. Batches have 128 rows and the default rate
is 0.05, with momentum, for small models.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer, check_passes


@methods.register("bad-teacher")
@dataclass(frozen=True, kw_only=True)
class BadTeacher:
    """Distil an untrained network into the forgotten rows; no claim.

    Attributes:
        epochs: Passes over all rows.
        batch_size: Rows per step; None is all of them.
        temperature: Divides the logits of teachers and student.
        optimizer: What takes the steps.
    """

    epochs: int = 10
    batch_size: int | None = 128
    temperature: float = 1.0
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.05, momentum=0.9)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "retain_inputs", "fresh_start", "class_count"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )
        _validate.number(temperature=self.temperature, above=0, error=wrong)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the student's parameters."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.forget is not None
        assert task.retain is not None
        work = LocalWork(task, rng)
        inputs = torch.cat([task.forget.inputs, task.retain.inputs])
        targets = self._targets(task, rng)
        optimizer = work.optimizer(self.optimizer)
        numbered = TensorBatch(inputs, torch.arange(len(inputs)))
        losses = []
        for epoch in work.epochs(self.epochs):
            seen = []
            for batch in work.batches(numbered, self.batch_size, epoch=epoch):
                rows = batch.labels
                output = work.logits(batch.inputs) / self.temperature
                loss = functional.kl_div(
                    output.log_softmax(dim=1), targets[rows], reduction="batchmean"
                )
                gradient = work.gradient(loss, len(batch))
                about_forgotten = bool((rows < task.forget_size).any())
                work.step(
                    optimizer, gradient, "forget" if about_forgotten else "retain"
                )
                seen.append(float(loss.detach()))
            losses.append(float(np.mean(seen)) if seen else float("nan"))
        return work.outcome(trace={"divergence": losses})

    @torch.no_grad()
    def _targets(self, task: LocalTask[TensorBatch], rng: RngTree) -> Tensor:
        """Return the teachers' probabilities, forgotten rows first, ``(n, C)``."""
        assert task.forget is not None
        assert task.retain is not None
        assert task.fresh is not None
        # Not the start of training: the draws of "init" are the same there.
        untrained = task.fresh(rng.child(f"bad-teacher/{task.peer}")).to(task.params)
        logits = torch.cat(
            [
                task.model.predict(untrained, task.forget.inputs),
                task.model.predict(task.params, task.retain.inputs),
            ]
        )
        return (logits / self.temperature).softmax(dim=1)
