"""Boundary expand: send a class's rows to a class that is then taken away.

Chen, Gao, Liu, Peng and Wang (2023), *Boundary unlearning: rapid forgetting of deep
networks via shifting the decision boundary*. The model gets one more output, is trained
to give it to the forgotten rows, and loses it again, so that it has the parameters that
it had before [code: OPTML-Group/Unlearn-WorstCase ``boundary_ex.py``, which forgets to
drop the output]. The new output starts as a linear layer does: uniform weights within
``1 / sqrt(d)``.

Deviation: the default rate is that of small models, larger than the published ones.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind
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


@methods.register("boundary-expand")
@dataclass(frozen=True, kw_only=True)
class BoundaryExpand:
    """Train the forgotten class into an output that is dropped; no claim.

    Attributes:
        epochs: Passes over the forgotten rows.
        batch_size: Rows per step; None is all of them.
        optimizer: What takes the steps, of the new output's weights as well.
    """

    epochs: int = 10
    batch_size: int | None = 32
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.001, momentum=0.9)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "features", "class_count"}
    )
    kinds: ClassVar[frozenset[ForgetKind]] = frozenset({"class"})

    def __post_init__(self) -> None:
        """Check the fields."""
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters without the new output."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.forget is not None
        work = LocalWork(task, rng)
        extra = self._new_output(task, rng)
        optimizer = work.optimizer(self.optimizer)
        beside = self.optimizer.build(extra)
        losses = []
        for epoch in work.epochs(self.epochs):
            seen = []
            for batch in work.batches(task.forget, self.batch_size, epoch=epoch):
                added = work.features(batch.inputs) @ extra[:-1] + extra[-1]
                logits = torch.cat([work.logits(batch.inputs), added[:, None]], dim=1)
                target = torch.full((len(batch),), logits.shape[1] - 1)
                loss = functional.cross_entropy(logits, target)
                # The backward pass that is counted is the one through the model.
                (extra.grad,) = torch.autograd.grad(loss, extra, retain_graph=True)
                gradient = work.gradient(loss, len(batch))
                beside.step()
                work.step(optimizer, gradient, "forget")
                seen.append(float(loss.detach()))
            losses.append(float(np.mean(seen)) if seen else float("nan"))
        return work.outcome(trace={"forget_loss": losses})

    def _new_output(self, task: LocalTask[TensorBatch], rng: RngTree) -> Tensor:
        """Return the new output's weights and last its constant, ``(d + 1,)``."""
        assert task.forget is not None
        with torch.no_grad():
            width = task.model.features(task.params, task.forget.inputs[:1]).shape[1]
        generator = rng.numpy(
            "method",
            who=task.peer,
            request=task.request.request_id or None,
            draw=16,
        )
        bound = width**-0.5
        drawn = torch.from_numpy(generator.uniform(-bound, bound, width + 1))
        return drawn.to(task.params).requires_grad_()
