"""SCRUB: a student that disagrees with its teacher about what goes.

Kurmanji, Triantafillou, Hayes and Triantafillou (2023), Towards unbounded machine
unlearning [code: meghdadk/SCRUB]. The teacher is the model as it was. An epoch is a
pass over the forgotten rows that raises ``T^2 KL(teacher || student)`` (in the first
``msteps`` epochs), then a pass over the retained rows that lowers ``alpha T^2 KL +
gamma CE``. alpha 0.5, gamma 1 are the code's values for small data; T = 1 and a forget
pass in every epoch are DualOptim's [code: CityU-MLO/DualOptim].

At the start the student is the teacher, where the divergence is 0 and least: the first
forget pass has no gradient but rounding, since no retain step has moved the student
yet. An optimizer of Adam's kind makes full steps of that rounding.

``rewind`` is SCRUB+R [recalled]: of the parameters after every epoch, take those whose
error on the forgotten rows is nearest to that on reference rows. The reference here is
**retained rows that retain steps leave out**, never test data. They were trained on
before, so their error is below that of data never seen, and so is what is chosen: a
bias towards forgetting too little. It says nothing where the forgotten rows are unlike
the retained ones, as a class or wrong labels are.
"""

from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, TaskPart, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.two_objectives import (
    LrSchedule,
    Objectives,
    Passes,
    check_fields,
    with_one_optimizer,
)

HOLDOUT = 16


@methods.register("scrub")
@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Leave the teacher on the forgotten rows, follow it on the others; no claim.

    Attributes:
        epochs: Passes over the retained rows.
        msteps: First epochs with a pass over the forgotten rows; None is all.
        alpha: Weight >= 0 of the divergence on retained rows.
        gamma: Weight >= 0 of their objective.
        temperature: T > 0, divides logits in both divergences.
        rewind: Go back to the epoch whose forget error fits the reference best.
        holdout: Share of the retained rows that is the reference, in (0, 1); only
            with ``rewind``.
        batch_size: Retained rows per step; None is all of them.
        forget_batch_size: Forgotten rows per step; None is all of them.
        optimizer: What takes both kinds of steps.
        forget_learning_rate: Of forget steps; None is the optimizer's.
        lr_schedule: ``constant``, or ``cosine`` for both rates.
    """

    epochs: int = 10
    msteps: int | None = None
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 1.0
    rewind: bool = False
    holdout: float = 0.1
    batch_size: int | None = 128
    forget_batch_size: int | None = 128
    optimizer: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(kind="adam", learning_rate=1e-3)
    )
    forget_learning_rate: float | None = None
    lr_schedule: LrSchedule = "constant"

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        check_fields(
            optimizer=self.optimizer,
            lr_schedule=self.lr_schedule,
            rate=self.forget_learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
        )
        if self.msteps is not None:
            _validate.integer(msteps=self.msteps, at_least=0, error=wrong)
        _validate.number(alpha=self.alpha, at_least=0, error=wrong)
        _validate.number(gamma=self.gamma, at_least=0, error=wrong)
        _validate.number(temperature=self.temperature, above=0, error=wrong)
        _validate.of_type(bool, rewind=self.rewind)
        _validate.number(holdout=self.holdout, above=0, below=1, error=wrong)

    @property
    def uses(self) -> frozenset[TaskPart]:
        """Inputs of both sets and labels of the retained; ``rewind`` counts errors."""
        parts: set[TaskPart] = {
            "forget_inputs",
            "retain_inputs",
            "retain_labels",
            "class_count",
        }
        return frozenset(parts | ({"forget_labels"} if self.rewind else set()))

    @property
    def kinds(self) -> frozenset[ForgetKind]:
        """All; samples only with ``rewind``, which compares like with like."""
        return frozenset({"samples"} if self.rewind else get_args(ForgetKind))

    def objectives(self, work: LocalWork) -> Objectives:
        """Return the two divergences from the teacher."""
        task = work.task
        assert task.forget is not None
        assert task.retain is not None
        forget, retain = task.forget, task.retain
        factor = self.temperature**2
        rewind = None
        if self.rewind:
            order = torch.randperm(len(retain), generator=work.generator(draw=HOLDOUT))
            cut = min(len(retain) - 1, max(1, round(self.holdout * len(retain))))
            reference, retain = _rows(retain, order[:cut]), _rows(retain, order[cut:])
            rewind = _Rewind(work, forget, reference)

        def divergence(inputs: Tensor, student: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = task.model.predict(task.params, inputs)
            return factor * mean_kl(teacher, student, self.temperature)

        def forget_loss(batch: TensorBatch, _: float) -> Tensor:
            return -divergence(batch.inputs, work.logits(batch.inputs))

        def retain_loss(batch: TensorBatch) -> Tensor:
            student = work.logits(batch.inputs)  # once: a row is counted once
            objective = work.objective(batch, student)
            apart = divergence(batch.inputs, student)
            return self.gamma * objective + self.alpha * apart

        return Objectives(
            forget=lambda _: forget,
            retain=retain,
            forget_loss=forget_loss,
            retain_loss=retain_loss,
            schedule=Passes(epochs=self.epochs, forget_epochs=self.msteps),
            batch_size=self.batch_size,
            forget_batch_size=self.forget_batch_size,
            forget_learning_rate=self.forget_learning_rate,
            lr_schedule=self.lr_schedule,
            after_epoch=_nothing if rewind is None else rewind.keep,
            finish=_nothing if rewind is None else rewind.go_back,
        )

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the epochs, or after the one that fits best."""
        return with_one_optimizer(self, task, rng)


def mean_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of ``KL(teacher || student)``, in nats.

    Args:
        teacher: Logits, shape ``(B, C)``.
        student: Logits, shape ``(B, C)``.
        temperature: T > 0, divides both.

    Returns:
        Shape ``()``.
    """
    return F.kl_div(
        torch.log_softmax(student / temperature, dim=1),
        torch.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


class _Rewind:
    """Keeps the parameters after every epoch, and goes back to the best."""

    def __init__(
        self, work: LocalWork, forget: TensorBatch, reference: TensorBatch
    ) -> None:
        self._work = work
        self._forget = forget
        self._reference = reference
        self._kept: list[tuple[float, Tensor]] = []

    def keep(self) -> None:
        self._kept.append((self._error(self._forget), self._work.params))

    def go_back(self) -> None:
        """Move to the epoch, the latest of equals, whose forget error fits best."""
        if self._kept:
            target = self._error(self._reference)
            best = min(reversed(self._kept), key=lambda kept: abs(kept[0] - target))
            self._work.set(best[1])

    @torch.no_grad()
    def _error(self, data: TensorBatch) -> float:
        outputs = self._work.model.predict(self._work.flat.detach(), data.inputs)
        return float((outputs.argmax(1) != data.labels).double().mean())


def _rows(data: TensorBatch, rows: Tensor) -> TensorBatch:
    return TensorBatch(data.inputs[rows], data.labels[rows])


def _nothing() -> None:
    pass
