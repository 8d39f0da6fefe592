"""One model while a method works on it: gradients, steps, counts, budget, mask.

A method makes one ``LocalWork`` per call, draws batches from it, and gives every step
back to it, so that counting, budgets and frozen weights are the same for all methods.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import NumericalError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.cost import Cost
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

Objective = Literal["forget", "retain"]


class LocalWork:
    """The parameters of one task on their way to an outcome.

    Attributes:
        task: The task; never written to.
        model: Its model.
        mask: Weights that may change, bool ``(P,)``; None is all of them.
        steps_forget: Steps taken on forgotten rows so far.
        steps_retain: Steps taken on retained rows so far.
        sample_gradients: Per-sample gradients computed so far.
        optimizer_floats: Numbers that optimizers hold beside the parameters.
    """

    def __init__(
        self,
        task: LocalTask[TensorBatch],
        rng: RngTree,
        *,
        params: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Start from a copy of the task's parameters.

        Args:
            task: The task.
            rng: The method's draws.
            params: Start elsewhere, e.g. from fresh parameters; shape ``(P,)``.
            mask: Weights that may change, bool ``(P,)``; None is all of them.
        """
        self.task = task
        self.model = task.model
        start = task.params if params is None else params.to(task.params)
        self.flat = start.detach().clone().requires_grad_()
        self._start = start.detach().clone()
        self.mask = mask
        # Views of the same memory: a step on the flat vector moves them all.
        self.leaves = {
            name: view.detach().requires_grad_()
            for name, view in self.model.named(self.flat.detach()).items()
        }
        self.steps_forget = 0
        self.steps_retain = 0
        self.sample_gradients = 0
        self.optimizer_floats = 0
        self._rng = rng
        self._began = time.perf_counter()

    @property
    def params(self) -> Tensor:
        """A copy of the current parameters, shape ``(P,)``."""
        return self.flat.detach().clone()

    def set(self, params: Tensor) -> None:
        """Move to other parameters, shape ``(P,)``; frozen weights stay."""
        with torch.no_grad():
            self.flat.copy_(params)
            self._freeze()

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the outputs at the current parameters, with their graph: (B, C)."""
        return self.model.named_logits(self.leaves, inputs)

    def losses(self, batch: TensorBatch) -> Tensor:
        """Return the data term of every sample, with its graph: ``(B,)``."""
        return self.model.named_sample_losses(self.leaves, batch)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the model's last layer reads, with its graph: ``(B, d)``."""
        return self.model.named_features(self.leaves, inputs)

    def decay(self) -> Tensor:
        """Return the model's l2 term ``(lambda/2) ||params||^2``, with its graph."""
        total = torch.stack([x.square().sum() for x in self.leaves.values()]).sum()
        return self.model.l2 / 2 * total

    def objective(self, batch: TensorBatch, logits: Tensor | None = None) -> Tensor:
        """Return what training minimized, on a batch: mean data term plus l2 term.

        Args:
            batch: The rows.
            logits: Theirs from ``logits``, where a loss reads them elsewhere too: one
                pass through the model, and one back, serve both.

        Returns:
            Shape ``()``.
        """
        if logits is None:
            mean = self.losses(batch).mean()
        else:
            mean = self.model.losses_of(logits, batch.labels).mean()
        return mean + self.decay() if self.model.l2 else mean

    def gradient(self, loss: Tensor, rows: int) -> Tensor:
        """Return the gradient of a loss at the current parameters, shape ``(P,)``.

        Args:
            loss: Made from ``logits``, ``losses``, ``features`` or ``objective``.
            rows: Samples that it went through, to be counted.

        Returns:
            A flat vector; 0 where the loss does not depend on a parameter.
        """
        self.sample_gradients += rows
        leaves = list(self.leaves.values())
        parts = torch.autograd.grad(loss, leaves, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(leaf) if part is None else part).reshape(-1)
                for leaf, part in zip(leaves, parts, strict=True)
            ]
        )

    def optimizer(self, spec: LocalOptimizer) -> torch.optim.Optimizer:
        """Return an optimizer of the parameters; its state counts as memory."""
        self.optimizer_floats += spec.state_floats(self.model.size)
        return spec.build(self.flat)

    def holds(self, floats: int) -> None:
        """Count numbers that an optimizer of something else than the model keeps."""
        self.optimizer_floats += floats

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        gradient: Tensor,
        objective: Objective,
        *,
        clip_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Take one step; weights outside the mask stay as they were, to the bit.

        Args:
            optimizer: From ``optimizer``.
            gradient: Shape ``(P,)``.
            objective: Which rows it was about.
            clip_norm: Bound on the norm of the (masked) gradient.
            learning_rate: Of this step; None is the optimizer's.

        Raises:
            NumericalError: If the parameters are no longer finite.
        """
        if self.mask is not None:
            gradient = torch.where(self.mask, gradient, 0)
        if clip_norm is not None:
            gradient = gradient * (clip_norm / gradient.norm().clamp(min=clip_norm))
        if learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        self.flat.grad = gradient
        optimizer.step()
        self.flat.grad = None
        self.after_step(objective, optimizer)

    def after_step(
        self, objective: Objective, *optimizers: torch.optim.Optimizer
    ) -> None:
        """Freeze what is masked and count; for steps that ``step`` did not take.

        Args:
            objective: Which rows the step was about.
            *optimizers: Whose buffers are masked as well.

        Raises:
            NumericalError: If the parameters are no longer finite.
        """
        self._freeze(*optimizers)
        if objective == "forget":
            self.steps_forget += 1
        else:
            self.steps_retain += 1
        if not bool(self.flat.detach().sum().isfinite()):
            raise NumericalError(
                f"peer {self.task.peer} became non-finite after {self.steps} steps; "
                "nothing was changed; lower learning_rate"
            )

    @torch.no_grad()
    def _freeze(self, *optimizers: torch.optim.Optimizer) -> None:
        if self.mask is None:
            return
        self.flat.copy_(torch.where(self.mask, self.flat, self._start))
        for optimizer in optimizers:
            for value in optimizer.state[self.flat].values():
                if isinstance(value, Tensor) and value.shape == self.flat.shape:
                    value.mul_(self.mask)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self.steps_forget + self.steps_retain

    def spent(self) -> bool:
        """Tell whether a limit of the budget is reached."""
        budget = self.task.budget
        return (
            (budget.max_steps is not None and self.steps >= budget.max_steps)
            or (
                budget.max_sample_gradients is not None
                and self.sample_gradients >= budget.max_sample_gradients
            )
            or (
                budget.max_seconds is not None
                and time.perf_counter() - self._began >= budget.max_seconds
            )
        )

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of a method's passes until the budget is spent."""
        limit = self.task.budget.max_epochs
        for epoch in range(count if limit is None else min(count, limit)):
            if self.spent():
                return
            yield epoch

    def batches(
        self,
        data: TensorBatch,
        size: int | None,
        *,
        epoch: int = 0,
        draw: int = 0,
    ) -> Iterator[TensorBatch]:
        """Yield the rows of a set in a drawn order until the budget is spent.

        Args:
            data: The rows.
            size: Rows per batch; None is all of them, in their own order.
            epoch: Names the order, with ``draw``.
            draw: One per set that a method goes through.

        Yields:
            Batches; the last one may be smaller.
        """
        order = torch.arange(len(data))
        if size is not None:
            generator = self.generator(round=epoch, draw=draw)
            order = torch.randperm(len(data), generator=generator)
        for index in order.split(size or max(1, len(data))):
            if self.spent():
                return
            yield TensorBatch(data.inputs[index], data.labels[index])

    def generator(self, *, round: int = 0, draw: int = 0) -> torch.Generator:
        """Return the draws of this method, peer and request for one pass.

        Args:
            round: The pass.
            draw: What is drawn in it. Numbers below 16 are orders of batches.

        Returns:
            A fresh generator of torch.
        """
        return self._rng.torch(
            "method",
            who=self.task.peer,
            request=self.task.request.request_id or None,
            round=round,
            draw=draw,
        )

    def outcome(
        self,
        certificate: Certificate | None = None,
        *,
        params: Tensor | None = None,
        personal: Mapping[str, Tensor] | None = None,
        trace: Mapping[str, Sequence[float] | NDArray[np.float64]] | None = None,
        info: Mapping[str, float | str] | None = None,
        notes: Sequence[str] = (),
    ) -> LocalOutcome:
        """Return the outcome at the current parameters, with what was counted.

        Args:
            certificate: The claim, or None.
            params: Other parameters than the current ones, shape ``(P,)``.
            personal: Tensors that stay with the peer.
            trace: Values per step or epoch.
            info: For readers.
            notes: Sentences for the report.

        Returns:
            The outcome.
        """
        end = self.flat.detach() if params is None else params
        changeable = self.model.size if self.mask is None else int(self.mask.sum())
        remarks = list(notes)
        if self.task.budget.max_seconds is not None:
            remarks.append("max_seconds was set: the result depends on the machine")
        return LocalOutcome(
            params=end.to(self.task.params).clone(),
            certificate=certificate,
            cost=Cost(
                sample_gradients=self.sample_gradients,
                steps_forget=self.steps_forget,
                steps_retain=self.steps_retain,
                optimizer_floats=self.optimizer_floats,
                trainable_parameters=changeable,
                wall_seconds=time.perf_counter() - self._began,
            ),
            personal=personal or {},
            trace={k: np.asarray(v, np.float64) for k, v in (trace or {}).items()},
            info=info or {},
            notes=tuple(remarks),
        )


def descend(
    work: LocalWork,
    optimizer: torch.optim.Optimizer,
    data: TensorBatch,
    loss: Callable[[TensorBatch], Tensor],
    *,
    batch_size: int | None,
    epoch: int,
    objective: Objective,
    draw: int = 0,
    clip_norm: float | None = None,
) -> float:
    """Go through a set once, one step per batch.

    Args:
        work: The parameters on their way.
        optimizer: From ``work.optimizer``.
        data: The rows.
        loss: What a step makes smaller, of a batch.
        batch_size: Rows per step; None is all.
        epoch: Names the order of rows.
        objective: Which rows these are.
        draw: As in ``LocalWork.batches``.
        clip_norm: Bound on the gradient's norm.

    Returns:
        Mean of the losses before each step; NaN where no step was taken.
    """
    seen = []
    for batch in work.batches(data, batch_size, epoch=epoch, draw=draw):
        value = loss(batch)
        gradient = work.gradient(value, len(batch))
        work.step(optimizer, gradient, objective, clip_norm=clip_norm)
        seen.append(float(value.detach()))
    return float(np.mean(seen)) if seen else float("nan")
