"""Gradient ascent on what goes, with brakes.

The oldest recipe: raise the loss of the forgotten rows, nothing else. Too small a step
changes nothing and one slightly too large ruins the model, so two guards [derived] stop
it: the mean loss on the forgotten rows above ``ln C``, the loss of guessing, and a drop
of the accuracy on retained rows, where those may be seen.

Deviation: the step that crosses a guard is taken back, so that what is returned
satisfies both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

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
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer, check_passes

PROBE = 16


@methods.register("gradient-ascent")
@dataclass(frozen=True, kw_only=True)
class GradientAscent:
    """Raise the loss of the forgotten rows until a guard stops it; no claim.

    Attributes:
        epochs: Passes over the forgotten rows.
        batch_size: Rows per step; None is all of them.
        optimizer: What takes the steps.
        stop_at_chance: Stop before the mean loss on forgotten rows exceeds ``ln C``.
        max_retain_drop: Stop before the accuracy on retained rows drops by more, in
            (0, 1]; None looks at no retained row.
        probe_rows: How many retained rows are looked at.
    """

    epochs: int = 10
    batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.01)
    )
    stop_at_chance: bool = True
    max_retain_drop: float | None = None
    probe_rows: int = 256

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )
        _validate.of_type(bool, stop_at_chance=self.stop_at_chance)
        if self.max_retain_drop is not None:
            _validate.number(
                max_retain_drop=self.max_retain_drop, above=0, at_most=1, error=wrong
            )
        _validate.integer(probe_rows=self.probe_rows, at_least=1, error=wrong)

    @property
    def uses(self) -> frozenset[TaskPart]:
        """The forgotten rows; retained rows only for the guard that looks at them."""
        parts: set[TaskPart] = {"forget_inputs", "forget_labels"}
        if self.stop_at_chance or self.max_retain_drop is not None:
            parts.add("class_count")
        if self.max_retain_drop is not None:
            parts |= {"retain_inputs", "retain_labels"}
        return frozenset(parts)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs, or before a guard is crossed."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.forget is not None
        work = LocalWork(task, rng)
        optimizer = work.optimizer(self.optimizer)
        crossed = self._guards(work)
        losses: list[float] = []
        notes: list[str] = []
        for epoch in work.epochs(self.epochs):
            for batch in work.batches(task.forget, self.batch_size, epoch=epoch):
                before = work.params
                loss = work.losses(batch).mean()
                work.step(optimizer, work.gradient(-loss, len(batch)), "forget")
                losses.append(float(loss.detach()))
                reason = crossed()
                if reason:
                    work.set(before)
                    notes.append(f"stopped before step {work.steps}: {reason}")
                    break
            if notes:
                break
        return work.outcome(trace={"forget_loss": losses}, notes=notes)

    def _guards(self, work: LocalWork) -> Callable[[], str]:
        """Return what says which guard the current parameters cross, if any."""
        task = work.task
        probe = self._probe(work)
        floor = -math.inf
        if self.max_retain_drop is not None:
            floor = _accuracy(work, probe) - self.max_retain_drop

        def crossed() -> str:
            if self.stop_at_chance:
                loss, chance = _mean_loss(work, task.forget), math.log(task.num_classes)
                if loss > chance:
                    return (
                        f"the loss on forgotten rows was {loss:.3g}, that of guessing "
                        f"is {chance:.3g}"
                    )
            if self.max_retain_drop is not None:
                accuracy = _accuracy(work, probe)
                if accuracy < floor:
                    return f"the accuracy on retained rows was {accuracy:.3g}"
            return ""

        return crossed

    def _probe(self, work: LocalWork) -> TensorBatch | None:
        retain = work.task.retain
        if self.max_retain_drop is None or retain is None:
            return None
        order = torch.randperm(len(retain), generator=work.generator(draw=PROBE))
        rows = order[: self.probe_rows]
        return TensorBatch(retain.inputs[rows], retain.labels[rows])


@torch.no_grad()
def _mean_loss(work: LocalWork, data: TensorBatch | None) -> float:
    assert data is not None
    return float(work.model.sample_losses(work.flat.detach(), data).mean())


@torch.no_grad()
def _accuracy(work: LocalWork, data: TensorBatch | None) -> float:
    assert data is not None
    outputs: Tensor = work.model.predict(work.flat.detach(), data.inputs)
    return float((outputs.argmax(1) == data.labels).double().mean())
