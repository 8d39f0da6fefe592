"""Boundary shrink: give a class's rows to their nearest neighbours across the boundary.

Chen, Gao, Liu, Peng and Wang (2023), *Boundary unlearning: rapid forgetting of deep
networks via shifting the decision boundary*. A frozen copy of the model is asked what
it calls ``x' = clip(x + bound sign(grad_x CE), 0, 1)``, x moved away from its label;
the model is then trained on (x, that answer), on nothing else; bound 0.1, 10 epochs
[code: OPTML-Group/Unlearn-WorstCase ``boundary_sh.py``; rates from 1e-8 up to 1e-4
recalled].

Deviations:

* inputs on another scale than [0, 1] are measured by the range of the rows that the
  method sees: the bound is a share of it, and x' is clipped to it;
* ``target="other"`` (default) takes the likeliest *wrong* class at x', as the paper's
  text has it; ``"predicted"`` is that code, where a row that stays on its side of the
  boundary is trained on the label that it should lose;
* default rates are those of small models: larger, with momentum.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.importance import CUT
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork, descend
from dfl_unlearn.unlearning.optimizers import LocalOptimizer, check_passes


@methods.register("boundary-shrink")
@dataclass(frozen=True, kw_only=True)
class BoundaryShrink:
    """Relabel a class by the nearest other ones and train on that; no claim.

    Attributes:
        epochs: Passes over the forgotten rows.
        batch_size: Rows per step; None is all of them.
        bound: How far an input moves in every coordinate, as a share of the inputs'
            range.
        target: ``other``: the likeliest class but the row's own at the moved input;
            ``predicted``: the likeliest one.
        optimizer: What takes the steps.
    """

    epochs: int = 10
    batch_size: int | None = 32
    bound: float = 0.1
    target: Literal["other", "predicted"] = "other"
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.001, momentum=0.9)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "forget_labels", "class_count"}
    )
    kinds: ClassVar[frozenset[ForgetKind]] = frozenset({"class"})

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )
        _validate.number(bound=self.bound, above=0, error=wrong)
        _validate.one_of(("other", "predicted"), target=self.target)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after training on the neighbours' labels."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.forget is not None
        work = LocalWork(task, rng)
        if work.spent():
            return work.outcome(notes=[CUT])
        low, high = input_range(task.forget.inputs)
        moved = self._moved(work, task.forget, low, high)
        with torch.no_grad():
            scores = task.model.predict(task.params, moved)
            if self.target == "other":
                rows = torch.arange(len(scores))
                scores[rows, task.forget.labels] = -torch.inf
            answers = scores.argmax(dim=1)
        changed = float((answers != task.forget.labels).double().mean())
        relabelled = TensorBatch(task.forget.inputs, answers)
        optimizer = work.optimizer(self.optimizer)
        losses = [
            descend(
                work,
                optimizer,
                relabelled,
                work.objective,
                batch_size=self.batch_size,
                epoch=epoch,
                objective="forget",
            )
            for epoch in work.epochs(self.epochs)
        ]
        return work.outcome(
            trace={"forget_loss": losses}, info={"relabelled_share": changed}
        )

    def _moved(
        self, work: LocalWork, data: TensorBatch, low: float, high: float
    ) -> Tensor:
        """Return the inputs one signed gradient step away from their labels."""
        x = as_features(data.inputs, work.flat.dtype).detach().requires_grad_()
        loss = functional.cross_entropy(work.logits(x), data.labels, reduction="sum")
        work.sample_gradients += len(data)
        (slope,) = torch.autograd.grad(loss, x)
        step = self.bound * (high - low)
        return (x.detach() + step * slope.sign()).clamp(low, high)


def input_range(inputs: Tensor) -> tuple[float, float]:
    """Return the range that inputs are on.

    Args:
        inputs: Shape ``(R, ...)``.

    Returns:
        (0, 1) for images and for features that lie in it; else the least and the
        largest value of all.
    """
    if inputs.dtype == torch.uint8:
        return 0.0, 1.0
    low, high = float(inputs.min()), float(inputs.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
