"""Training one model from its start: as its history says, or by a recipe of one's own.

The recorded training is repeated step by step: the same learning rates, momentum and
decay, the same places in every batch, of which forgotten ones stay empty. A batch is
the mean over the rows that are left in it; one that is left empty still takes its step
of momentum and decay, as in the engine.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer, check_passes


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How a model is trained from its start where no record says so.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows per step; None is all of them.
        optimizer: What takes the steps.
        lr_schedule: ``constant``, or ``cosine``: falls to almost 0 in the last pass.
    """

    epochs: int = 60
    batch_size: int | None = 32
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.1)
    )
    lr_schedule: Literal["constant", "cosine"] = "cosine"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_passes(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer
        )
        _validate.one_of(("constant", "cosine"), lr_schedule=self.lr_schedule)

    def rate(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of one of ``epochs`` passes."""
        rate = self.optimizer.learning_rate
        if self.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        return rate


def train(
    work: LocalWork,
    optimizer: torch.optim.Optimizer,
    recipe: TrainingRecipe,
    data: TensorBatch,
    *,
    epochs: int,
    passes: Iterator[int],
    order: Callable[[int], torch.Generator],
) -> bool:
    """Go through rows for some epochs from where the parameters are.

    Args:
        work: The parameters on their way.
        optimizer: From ``work.optimizer``, with what it remembers.
        recipe: Batch size and learning rates.
        data: The rows; there may be none.
        epochs: Passes, also of the schedule.
        passes: ``work.epochs(...)``, one entry per pass that the budget allows.
        order: Gives the draws of a pass's order.

    Returns:
        Whether all of it was done; False where the budget was spent before.
    """
    for epoch in range(epochs):
        if next(passes, None) is None:
            return False
        rows = torch.arange(len(data))
        if recipe.batch_size is not None:
            rows = torch.randperm(len(data), generator=order(epoch))
        for index in rows.split(recipe.batch_size or max(1, len(data))):
            if work.spent():
                return False
            if not len(index):
                continue
            batch = TensorBatch(data.inputs[index], data.labels[index])
            gradient = work.gradient(work.objective(batch), len(batch))
            rate = recipe.rate(epoch, epochs)
            work.step(optimizer, gradient, "retain", learning_rate=rate)
    return True


def repeat_training(
    work: LocalWork,
    history: LocalHistory,
    batch_rows: Callable[[int], NDArray[np.int64]],
    *,
    first: int = 0,
) -> bool:
    """Take the recorded steps on the retained rows, from where the parameters are.

    Args:
        work: The parameters on their way, where training was before step ``first``.
        history: What training left.
        batch_rows: Step -> places of its batch among the rows that training began
            with; those of rows that are gone stay empty.
        first: The step to begin with; momentum begins anew there.

    Returns:
        Whether all of it was done; False where the budget was spent before.
    """
    task = work.task
    assert task.retain is not None
    at = np.full(history.samples, -1, dtype=np.int64)
    at[task.retain_rows] = np.arange(task.retain_size)
    optimizer = work.optimizer(
        LocalOptimizer(
            learning_rate=history.learning_rate,
            momentum=history.momentum,
            weight_decay=history.weight_decay,
        )
    )
    each = steps_per_epoch(history)
    for epoch in work.epochs(-(-(history.steps - first) // each)):
        begin = first + epoch * each
        for step in range(begin, min(begin + each, history.steps)):
            if work.spent():
                return False
            places = at[batch_rows(step)]
            rows = torch.from_numpy(places[places >= 0])
            batch = TensorBatch(task.retain.inputs[rows], task.retain.labels[rows])
            gradient = recorded_gradient(work, batch, history.clip_norm)
            rate = float(history.rates[step])
            work.step(optimizer, gradient, "retain", learning_rate=rate)
    return work.steps == history.steps - first


def steps_per_epoch(history: LocalHistory) -> int:
    """Return how many recorded steps go once through all rows."""
    return -(-history.samples // (history.batch_size or history.samples))


def recorded_gradient(
    work: LocalWork, batch: TensorBatch, clip_norm: float | None
) -> Tensor:
    """Return the gradient of training's objective on a batch, ``(P,)``.

    Args:
        work: The parameters.
        batch: What is left of a batch; none is the l2 term alone.
        clip_norm: Bound on every sample's gradient of the data term, or None.

    Returns:
        Mean over the rows, each clipped, plus the l2 term.
    """
    if len(batch) and clip_norm is None:
        return work.gradient(work.objective(batch), len(batch))
    model, params = work.model, work.params
    decay = model.l2 * params
    if not len(batch):
        return decay
    assert clip_norm is not None

    def loss(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return model.sample_losses(row, (x[None], y[None]))[0]

    each: Tensor = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
        params, batch.inputs, batch.labels
    )
    work.sample_gradients += len(batch)
    norms = torch.linalg.vector_norm(each, dim=1)
    factor = (clip_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
    mean: Tensor = factor @ each / len(batch)
    return mean + decay
