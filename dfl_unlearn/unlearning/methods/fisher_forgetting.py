"""Fisher forgetting: noise where the retained rows do not need a weight.

Golatkar, Achille and Soatto (2020), *Eternal sunshine of the spotless net*, as run by
the SalUn benchmark [code: OPTML-Group/Unlearn-Saliency ``unlearn/fisher.py``]. With F
the diagonal of the Fisher information on the retained rows (expectation over the
model's own labels), every weight gets noise of variance
``alpha min(1 / (F + 1e-8), 1e3)``; the last layer's bound is 1e2; a weight matrix takes
the mean over each row; variances of the last layer and of one-dimensional parameters
are ten times that. Of a forgotten class the last layer's row becomes noise around 0
with variance 1e-4, ten times that as well [recalled].

The noise is no privacy mechanism: nothing bounds what it has to hide.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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

_LARGEST, _LARGEST_LAST = 1e3, 1e2  # bounds on 1 / F
_CLASS_VARIANCE = 1e-4


@methods.register("fisher-forgetting")
@dataclass(frozen=True, kw_only=True)
class FisherForgetting:
    """Add noise to weights in inverse proportion to their Fisher information; no claim.

    Attributes:
        alpha: Variance of the noise per inverse Fisher information; published values
            lie between 1e-8 and 3e-6.
    """

    alpha: float = 1e-6

    uses: ClassVar[frozenset[TaskPart]] = frozenset({"retain_inputs", "class_count"})

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.number(alpha=self.alpha, above=0, error=InvalidHyperparameterError)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters with noise."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.retain is not None
        work = LocalWork(task, rng)
        fisher = mean_squared_gradients(work, task.retain, labels="model")
        if fisher is None:
            return work.outcome(notes=[CUT])
        mean, variance = self._law(task, fisher)
        noise = rng.normal(
            (task.model.size,),
            "method",
            who=task.peer,
            request=task.request.request_id or None,
            draw=16,
        )
        return work.outcome(
            params=mean + variance.sqrt() * noise,
            info={"mean_noise_std": float(variance.sqrt().mean())},
        )

    def _law(
        self, task: LocalTask[TensorBatch], fisher: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of every weight, shape ``(P,)`` float64."""
        mean, variance = task.params.double().clone(), torch.empty_like(fisher)
        segments = task.model.segments
        last = next(reversed(segments)).rpartition(".")[0]
        for name, segment in segments.items():
            in_last = name.rpartition(".")[0] == last
            bound = _LARGEST_LAST if in_last else _LARGEST
            spread = self.alpha * (segment.view(fisher) + 1e-8).reciprocal()
            spread = spread.clamp(max=self.alpha * bound)
            if spread.ndim > 1:
                rows = spread.flatten(1).mean(dim=1)
                spread = rows.view(-1, *[1] * (spread.ndim - 1)).expand(spread.shape)
            spread = spread.clone()
            gone = task.request.class_id
            # One logit for two classes has no row of its own for either.
            if in_last and gone is not None and len(spread) == task.num_classes:
                segment.view(mean)[gone] = 0
                spread[gone] = _CLASS_VARIANCE
            if in_last or spread.ndim == 1:
                spread *= 10
            segment.view(variance).copy_(spread)
        return mean, variance
