"""Retraining one model from its start on what is kept: the yardstick of all others.

Recipe: fresh parameters and training's own recipe, without the forgotten rows; two
seeds at least, since the distance between two of them is the noise floor of every
comparison. As in the engine the forgotten rows' places in the batches stay empty, so
that a coupled run differs from training in the data alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Assumption, Certificate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import InvalidHyperparameterError, MissingRecordError
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.record.plan import RecordPart
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    exact_certificate,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.recipe import (
    TrainingRecipe,
    repeat_training,
    steps_per_epoch,
    train,
)

_PUBLIC = (
    "the forgotten rows' places in the batches stay empty: how many rows there were, "
    "and which of them are gone, is taken as public"
)


@methods.register("retrain")
@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train again from the start without the forgotten rows: exact, and dear.

    Attributes:
        coupled: Whether initial parameters and batches are those of training, so that
            only the data differ; with a recipe of its own, those of the draws given.
        seed_offset: Names other draws where they are not coupled, >= 1.
        recipe: How to train; None is as recorded.
    """

    coupled: bool = True
    seed_offset: int = 0
    recipe: TrainingRecipe | None = None

    claim: ClassVar[Literal["exact"]] = "exact"

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.of_type(bool, coupled=self.coupled)
        _validate.integer(
            seed_offset=self.seed_offset,
            at_least=0 if self.coupled else 1,
            at_most=0 if self.coupled else None,
            error=InvalidHyperparameterError,
            why="0 with coupled=True, at least 1 with coupled=False",
        )
        _validate.of_type((TrainingRecipe, type(None)), recipe=self.recipe)

    @property
    def uses(self) -> frozenset[TaskPart]:
        """Retained rows; the history unless there is a recipe; a start of its own."""
        used: set[TaskPart] = {"retain_inputs", "retain_labels"}
        if self.recipe is None:
            used.add("history")
        if not self._from_record:
            used.add("fresh_start")
        return frozenset(used)

    @property
    def needs(self) -> frozenset[RecordPart]:
        """The initial parameters where training's own are taken."""
        return frozenset({"initial_state"} if self._from_record else ())

    @property
    def _from_record(self) -> bool:
        return self.coupled and self.recipe is None

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters of a model that never had the rows.

        Args:
            task: The task.
            rng: The draws.

        Returns:
            Certificate ``exact``; ``heuristic`` where the budget ended training early,
            or training was not descent on this model's own rows alone.

        Raises:
            MissingRecordError: If training's initial parameters were not kept.
        """
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.retain is not None
        if not self.coupled:
            rng = rng.child(f"retrain/{self.seed_offset}")
        history = task.history
        work = LocalWork(task, rng, params=self._start(task, rng))
        if self.recipe is not None:
            done = train(
                work,
                work.optimizer(self.recipe.optimizer),
                self.recipe,
                task.retain,
                epochs=self.recipe.epochs,
                passes=work.epochs(self.recipe.epochs),
                order=lambda epoch: work.generator(round=epoch),
            )
        else:
            assert history is not None
            rows = history.batch_rows if self.coupled else _other_rows(work, history)
            done = repeat_training(work, history, rows)
        return work.outcome(
            self._certificate(task, work, done),
            notes=() if self.recipe is not None else (_PUBLIC,),
        )

    def _start(self, task: LocalTask[TensorBatch], rng: RngTree) -> Tensor:
        if not self._from_record:
            assert task.fresh is not None
            return task.fresh(rng)
        assert task.history is not None
        if 0 not in task.history.checkpoints:
            raise MissingRecordError(
                "history: must have the parameters of step 0 for coupled=True, got "
                f"steps {sorted(task.history.checkpoints)}; train with "
                "record=RecordPlan.for_protocols(method), or set coupled=False and "
                "seed_offset=1"
            )
        return task.history.checkpoints[0]

    def _certificate(
        self, task: LocalTask[TensorBatch], work: LocalWork, done: bool
    ) -> Certificate:
        assumptions = [
            Assumption(
                name="training data",
                value="retained rows only",
                source="proven",
                note="started again from parameters that no data went into",
            )
        ]
        history = None if self.recipe is not None else task.history
        conditions = {
            "length": (not done, f"stopped by the budget after {work.steps} steps"),
            "trajectory": (
                history is not None and history.gossip,
                "training mixed with neighbours' models; this one trained alone",
            ),
            "training noise": (
                history is not None and history.private,
                "training added noise to its steps; this one did not",
            ),
        }
        for name, (violated, value) in conditions.items():
            if violated:
                assumptions.append(
                    Assumption(
                        name=name, value=value, source="proven", state="violated"
                    )
                )
        return exact_certificate(methods.name_of(self), task, *assumptions)


def _other_rows(
    work: LocalWork, history: LocalHistory
) -> Callable[[int], NDArray[np.int64]]:
    """Return batches of training's shape over the same places, in orders of their own.

    Args:
        work: Gives the draws.
        history: Batch size and number of places.

    Returns:
        Step -> places.
    """
    each, size = steps_per_epoch(history), history.batch_size
    everything = np.arange(history.samples)

    def batch_rows(step: int) -> NDArray[np.int64]:
        if size is None:
            return everything
        epoch, position = divmod(step, each)
        generator = work.generator(round=epoch)
        order = torch.randperm(history.samples, generator=generator).numpy()
        rows: NDArray[np.int64] = order[position * size : (position + 1) * size]
        return rows

    return batch_rows
