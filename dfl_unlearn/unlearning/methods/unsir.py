"""UNSIR: learn noise that a class hates, unlearn on it, repair with few rows.

Tarun, Chundawat, Mandal and Kankanhalli (2024), *Fast yet effective machine unlearning*
[recalled]. Noise inputs are trained to make the class's loss large (plus 0.1 times
their mean square) by Adam with rate 0.1, 5 epochs of 8 steps; one epoch on that noise,
labelled with the class, and on at most 1,000 retained rows with rate 0.02 impairs the
model; one epoch on those rows with rate 0.01 repairs it. No forgotten row is seen.

Deviations: one set of 32 noise inputs, gone through ``noise_copies`` times, where the
published code stacks copies of batches of its own; rates are for small models.
"""

from dataclasses import dataclass, field
from typing import ClassVar

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
from dfl_unlearn.unlearning.optimizers import LocalOptimizer


@methods.register("unsir")
@dataclass(frozen=True, kw_only=True)
class Unsir:
    """Impair a class with learned noise, then repair the rest; no claim.

    Attributes:
        noise_rows: Noise inputs.
        noise_steps: Steps that train them.
        noise_rate: Adam's learning rate for them.
        noise_decay: Weight of their mean square.
        noise_copies: How often the impairing pass goes through them.
        retain_rows: Most retained rows that are used, drawn by key.
        batch_size: Rows per step.
        impair: What takes the steps of the impairing pass.
        repair: What takes those of the repairing pass.
    """

    noise_rows: int = 32
    noise_steps: int = 40
    noise_rate: float = 0.1
    noise_decay: float = 0.1
    noise_copies: int = 8
    retain_rows: int = 1000
    batch_size: int | None = 32
    impair: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.02)
    )
    repair: LocalOptimizer = field(
        default_factory=lambda: LocalOptimizer(learning_rate=0.01)
    )

    uses: ClassVar[frozenset[TaskPart]] = frozenset(
        {"retain_inputs", "retain_labels", "class_count"}
    )
    kinds: ClassVar[frozenset[ForgetKind]] = frozenset({"class"})

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        for name in ("noise_rows", "noise_steps", "noise_copies", "retain_rows"):
            value = getattr(self, name)
            _validate.integer(at_least=1, error=wrong, **{name: value})
        _validate.number(noise_rate=self.noise_rate, above=0, error=wrong)
        _validate.number(noise_decay=self.noise_decay, at_least=0, error=wrong)
        if self.batch_size is not None:
            _validate.integer(batch_size=self.batch_size, at_least=1, error=wrong)
        _validate.of_type(LocalOptimizer, impair=self.impair, repair=self.repair)

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after impairing and repairing."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert task.retain is not None
        work = LocalWork(task, rng)
        generator = work.generator(draw=16)
        order = torch.randperm(task.retain_size, generator=generator)
        rows = order[: self.retain_rows]
        kept = TensorBatch(
            as_features(task.retain.inputs[rows], work.flat.dtype),
            task.retain.labels[rows],
        )
        noise, noise_losses = self._noise(work, kept.inputs.shape[1:], generator)
        if work.spent():
            return work.outcome(notes=[CUT])
        label = _labels(task, len(noise))
        mixed = TensorBatch(
            torch.cat([*[noise] * self.noise_copies, kept.inputs]),
            torch.cat([*[label] * self.noise_copies, kept.labels]),
        )
        impaired: list[float] = []
        repaired: list[float] = []
        for epoch in work.epochs(2):
            data = (mixed, kept)[epoch]
            spec = (self.impair, self.repair)[epoch]
            value = descend(
                work,
                work.optimizer(spec),
                data,
                work.objective,
                batch_size=self.batch_size,
                epoch=0,
                draw=epoch,
                objective="retain" if epoch else "forget",
            )
            (repaired if epoch else impaired).append(value)
        return work.outcome(
            trace={
                "noise_loss": noise_losses,
                "impair_loss": impaired,
                "repair_loss": repaired,
            }
        )

    def _noise(
        self, work: LocalWork, shape: torch.Size, generator: torch.Generator
    ) -> tuple[Tensor, list[float]]:
        """Return noise inputs and the class's mean loss on them before every step."""
        drawn = torch.randn((self.noise_rows, *shape), generator=generator)
        noise = drawn.to(work.flat.dtype).requires_grad_()
        label = _labels(work.task, self.noise_rows)
        adam = torch.optim.Adam([noise], lr=self.noise_rate)
        losses: list[float] = []
        for _ in range(self.noise_steps):
            if work.spent():
                break
            loss = functional.cross_entropy(work.logits(noise), label)
            target = self.noise_decay * noise.square().mean() - loss
            work.sample_gradients += self.noise_rows
            (noise.grad,) = torch.autograd.grad(target, noise)
            adam.step()
            losses.append(float(loss.detach()))
        return noise.detach(), losses


def _labels(task: LocalTask[TensorBatch], rows: int) -> Tensor:
    """Return the forgotten class once per row."""
    assert task.request.class_id is not None
    return torch.full((rows,), task.request.class_id)
