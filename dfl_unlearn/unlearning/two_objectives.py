"""Methods with two objectives, and the one loop that alternates their steps.

Such a method lowers a loss of the forgotten rows and a loss of the retained rows in
turn, **forget first, then retain** [paper: DualOptim, arXiv 2504.15827, Algorithm 1].
It declares the two as ``Objectives``; the loop takes the steps, counts them, honours
masks and the budget, and does not care whether both kinds of steps share an optimizer
(``with_one_optimizer``) or have one each (``methods/dual_optim``).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, unchanged
from dfl_unlearn.unlearning.local_work import LocalWork, Objective
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

LrSchedule = Literal["constant", "cosine"]
Turn = tuple[Objective, TensorBatch, float]

RETAIN_ORDER = 0
FORGET_ORDER = 1


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Every epoch is a pass over the forgotten rows, then one over the retained.

    Attributes:
        epochs: How many.
        forget_epochs: How many of the first ones have a forget pass; None is all.
    """

    epochs: int
    forget_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Every iteration is a retain step, some have a forget step before it.

    An epoch is a pass over the retained rows; the forgotten rows are cycled.

    Attributes:
        iterations: How many.
        forget_every: A forget step comes before iterations 0, k, 2k, ...
    """

    iterations: int
    forget_every: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Objectives:
    """What a method's steps make smaller, and in which order it takes them.

    Attributes:
        forget: Pass -> the forgotten rows as that pass sees them.
        retain: The rows of retain steps.
        forget_loss: Of a batch and the progress in [0, 1) of the whole method.
        retain_loss: Of a batch.
        schedule: The order of steps.
        batch_size: Rows per retain step; None is all of them.
        forget_batch_size: Rows per forget step; None is all of them.
        forget_learning_rate: With one optimizer; None is the optimizer's.
        lr_schedule: ``cosine`` lets both rates fall to 0 with the progress.
        clip_norm: Bound on the gradient's norm in forget steps.
        forget_mask: Gradients of forget steps are 0 outside it, bool ``(P,)``; retain
            steps move every weight. (``LocalWork.mask`` freezes weights in both.)
        joint: Add both gradients and take one step, counted as a retain step.
        after_epoch: Called after every epoch.
        finish: Called once after the last; may move the parameters.
        info: For readers.
        notes: For the report.
    """

    forget: Callable[[int], TensorBatch]
    retain: TensorBatch
    forget_loss: Callable[[TensorBatch, float], Tensor]
    retain_loss: Callable[[TensorBatch], Tensor]
    schedule: Passes | Turns
    batch_size: int | None
    forget_batch_size: int | None
    forget_learning_rate: float | None = None
    lr_schedule: LrSchedule = "constant"
    clip_norm: float | None = None
    forget_mask: Tensor | None = None
    joint: bool = False
    after_epoch: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None
    info: Mapping[str, float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@runtime_checkable
class TwoObjectiveMethod(Protocol):
    """A method that declares its two objectives instead of taking steps itself."""

    @property
    def optimizer(self) -> LocalOptimizer:
        """What takes all steps where the method is used alone."""

    def objectives(self, work: LocalWork) -> Objectives:
        """Prepare (set ``work.mask``, count gradients) and declare the objectives."""

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return new parameters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Steppers:
    """The optimizer and the learning rate of either kind of step.

    Attributes:
        forget: Takes forget steps.
        retain: Takes retain steps; may be the same object, with one state.
        forget_rate: Learning rate of the first forget step.
        retain_rate: Learning rate of the first retain step.
    """

    forget: torch.optim.Optimizer
    retain: torch.optim.Optimizer
    forget_rate: float
    retain_rate: float

    def of(self, objective: Objective) -> tuple[torch.optim.Optimizer, float]:
        """Return the optimizer and the learning rate of a kind of step."""
        if objective == "forget":
            return self.forget, self.forget_rate
        return self.retain, self.retain_rate


def with_one_optimizer(
    method: TwoObjectiveMethod, task: LocalTask[TensorBatch], rng: RngTree
) -> LocalOutcome:
    """Run a method whose two kinds of steps share one optimizer and its state.

    Args:
        method: The method.
        task: The task.
        rng: The method's draws.

    Returns:
        The outcome; no claim.
    """
    same = unchanged(method, task)
    if same is not None:
        return same
    work = LocalWork(task, rng)
    aims = method.objectives(work)
    shared = work.optimizer(method.optimizer)
    rate = method.optimizer.learning_rate
    forget_rate = aims.forget_learning_rate
    steppers = Steppers(
        forget=shared,
        retain=shared,
        forget_rate=rate if forget_rate is None else forget_rate,
        retain_rate=rate,
    )
    return alternate(work, aims, steppers)


def alternate(work: LocalWork, aims: Objectives, steppers: Steppers) -> LocalOutcome:
    """Take the steps of two objectives in turn until the schedule or budget ends.

    Args:
        work: The parameters on their way.
        aims: The objectives.
        steppers: Who takes the steps.

    Returns:
        The outcome, without a claim; its trace has the mean loss of either kind of
        step, an entry per epoch that had such steps.
    """
    trace: dict[str, list[float]] = {"forget_loss": [], "retain_loss": []}
    for epoch in work.epochs(_epochs(aims)):
        seen: dict[Objective, list[float]] = {"forget": [], "retain": []}
        held: Tensor | None = None
        for objective, batch, progress in _turns(work, aims, epoch):
            forgets = objective == "forget"
            loss = (
                aims.forget_loss(batch, progress)
                if forgets
                else aims.retain_loss(batch)
            )
            seen[objective].append(float(loss.detach()))
            gradient = work.gradient(loss, len(batch))
            if forgets and aims.forget_mask is not None:
                gradient = torch.where(aims.forget_mask, gradient, 0)
            if forgets and aims.joint:
                held = gradient
                continue
            if held is not None:
                gradient, held = gradient + held, None
            optimizer, rate = steppers.of(objective)
            if aims.lr_schedule == "cosine":
                rate *= cosine(progress)
            work.step(
                optimizer,
                gradient,
                objective,
                clip_norm=aims.clip_norm if forgets else None,
                learning_rate=rate,
            )
        for name, losses in seen.items():
            if losses:
                trace[f"{name}_loss"].append(float(np.mean(losses)))
        aims.after_epoch()
    aims.finish()
    return work.outcome(trace=trace, info=aims.info, notes=aims.notes)


def cosine(progress: float) -> float:
    """Return ``(1 + cos(pi s)) / 2``: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * progress)) / 2


def check_fields(
    *, optimizer: object, lr_schedule: object, rate: object, **counts: Any
) -> None:
    """Check fields that several methods with two objectives have.

    Args:
        optimizer: A ``LocalOptimizer``.
        lr_schedule: ``constant`` or ``cosine``.
        rate: The forget learning rate, > 0 or None.
        **counts: Integers >= 1, or None for a batch size.
    """
    wrong = InvalidHyperparameterError
    _validate.of_type(LocalOptimizer, optimizer=optimizer)
    _validate.one_of(("constant", "cosine"), lr_schedule=lr_schedule)
    if rate is not None:
        _validate.number(forget_learning_rate=rate, above=0, error=wrong)
    for name, value in counts.items():
        if value is not None or not name.endswith("batch_size"):
            _validate.integer(at_least=1, error=wrong, **{name: value})


def _epochs(aims: Objectives) -> int:
    if isinstance(aims.schedule, Passes):
        return aims.schedule.epochs
    return math.ceil(aims.schedule.iterations / _batches(aims.retain, aims.batch_size))


def _batches(data: TensorBatch, size: int | None) -> int:
    return max(1, math.ceil(len(data) / (size or max(1, len(data)))))


def _turns(work: LocalWork, aims: Objectives, epoch: int) -> Iterator[Turn]:
    """Yield the steps of one epoch: whose, on which rows, at what progress."""
    if isinstance(aims.schedule, Passes):
        yield from _passes(work, aims, aims.schedule, epoch)
    else:
        yield from _interleaved(work, aims, aims.schedule, epoch)


def _passes(
    work: LocalWork, aims: Objectives, schedule: Passes, epoch: int
) -> Iterator[Turn]:
    def walk(
        objective: Objective, data: TensorBatch, size: int | None
    ) -> Iterator[Turn]:
        draw = FORGET_ORDER if objective == "forget" else RETAIN_ORDER
        count = _batches(data, size)
        for k, batch in enumerate(work.batches(data, size, epoch=epoch, draw=draw)):
            yield objective, batch, (epoch + k / count) / schedule.epochs

    if schedule.forget_epochs is None or epoch < schedule.forget_epochs:
        yield from walk("forget", aims.forget(epoch), aims.forget_batch_size)
    yield from walk("retain", aims.retain, aims.batch_size)


def _interleaved(
    work: LocalWork, aims: Objectives, schedule: Turns, epoch: int
) -> Iterator[Turn]:
    iteration = epoch * _batches(aims.retain, aims.batch_size)
    # Where the cycle stands follows from how often it was asked before.
    asked = -(-iteration // schedule.forget_every)
    cycle = _cycle(work, aims, asked)
    order = work.batches(aims.retain, aims.batch_size, epoch=epoch, draw=RETAIN_ORDER)
    for batch in order:
        if iteration == schedule.iterations:
            return
        progress = iteration / schedule.iterations
        if iteration % schedule.forget_every == 0:
            forgotten = next(cycle, None)
            if forgotten is None:
                return
            yield "forget", forgotten, progress
            if work.spent():
                return
        yield "retain", batch, progress
        iteration += 1


def _cycle(work: LocalWork, aims: Objectives, start: int) -> Iterator[TensorBatch]:
    """Yield batches of the forgotten rows for ever, from the ``start``-th on.

    It ends where the budget does.
    """
    size = aims.forget_batch_size
    round, skip = divmod(start, _batches(aims.forget(0), size))
    while not work.spent():
        order = work.batches(aims.forget(round), size, epoch=round, draw=FORGET_ORDER)
        yield from itertools.islice(order, skip, None)
        round, skip = round + 1, 0
