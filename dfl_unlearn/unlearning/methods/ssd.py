"""Selective synaptic dampening: shrink the weights that matter to what goes.

Foster, Schoepf and Brintrup (2024), *Fast machine unlearning without retraining
through selective synaptic dampening* [recalled]. With importances I (the mean over rows
of squared gradients) of all rows D and of the forgotten ones f, every weight with
``I_f > alpha I_D`` is multiplied by ``min(lambda I_D / I_f, 1)``; nothing is trained.

Since I_D is a mean over all n rows, the m forgotten ones included,
``I_f / I_D <= n / m`` [derived]: alpha at or above n / m selects nothing. The published
alpha 10, lambda 1 is for classes that are a hundredth of the data; our default of 5
leaves room for a tenth. On a model that fits all its rows the retained rows' gradients
vanish and every weight comes near that bound, so that the whole model is dampened
(digits, 10 % mislabelled: retained accuracy falls from 100 to 17 %); a lambda of 8
holds it there, and forgets little.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.importance import CUT, mean_squared_gradients
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork


@methods.register("ssd")
@dataclass(frozen=True, kw_only=True)
class Ssd:
    """Dampen the weights that matter more to forgotten rows than to all; no claim.

    Attributes:
        alpha: A weight is dampened where the forgotten rows' importance is more than
            this times that of all rows.
        dampening: lambda; smaller dampens more.
    """

    alpha: float = 5.0
    dampening: float = 1.0

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"forget_inputs", "forget_labels", "retain_inputs", "retain_labels"}
    )

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.number(alpha=self.alpha, above=0, error=wrong)
        _validate.number(dampening=self.dampening, above=0, error=wrong)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the dampened parameters."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.forget is not None
        assert task.retain is not None
        work = LocalWork(task, rng)
        forgotten = mean_squared_gradients(work, task.forget)
        retained = mean_squared_gradients(work, task.retain)
        if forgotten is None or retained is None:
            return work.outcome(notes=[CUT])
        m, n = task.forget_size, task.forget_size + task.retain_size
        everything = (m * forgotten + (n - m) * retained) / n
        selected = forgotten > self.alpha * everything
        shrink = (self.dampening * everything / forgotten).clamp(max=1.0)
        factor = torch.where(selected, shrink, 1.0)
        notes = []
        if self.alpha >= n / m:
            notes.append(
                f"alpha {self.alpha:g} selects nothing: the importance of {m} of {n} "
                f"rows is at most {n / m:.3g} times that of all"
            )
        return work.outcome(
            params=task.params * factor.to(task.params),
            info={"dampened_share": float(selected.double().mean())},
            notes=notes,
        )
