"""Curves between two parameter vectors, bent by a control point that is fitted."""

from collections.abc import Callable

import torch
from torch import Tensor

from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer


def bezier(start: Tensor, control: Tensor, end: Tensor, t: float) -> Tensor:
    """Return a point of the quadratic Bezier curve.

    ``(1-t)^2 start + 2t(1-t) control + t^2 end``: ``start`` at 0 and ``end`` at 1; a
    straight line where ``control`` is their midpoint.

    Args:
        start: Shape ``(P,)``.
        control: What bends the curve; it lies on it only if the curve is straight.
        end: Same shape.
        t: Where, in [0, 1].

    Returns:
        Same shape.
    """
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def fit_control(
    work: LocalWork,
    loss: Callable[[Tensor], Tensor],
    rows: int,
    *,
    start: Tensor,
    control: Tensor,
    end: Tensor,
    t: float,
    optimizer: LocalOptimizer,
    steps: int,
) -> Tensor:
    """Fit the control point so that the model at t has a small loss.

    The endpoints are read, never written. Every step is counted as ``rows`` gradients
    of ``work``, and none is taken once its budget is spent.

    Args:
        work: Counts, and knows the budget.
        loss: Of the parameters ``(P,)`` at t.
        rows: Samples that the loss goes through.
        start: Where the curve starts, shape ``(P,)``.
        control: Where the control point starts.
        end: Where the curve ends.
        t: Where the loss is taken, in (0, 1).
        optimizer: What takes the steps.
        steps: At most so many.

    Returns:
        The control point, a new tensor.
    """
    moved = control.detach().clone().requires_grad_()
    steps_of = optimizer.build(moved)
    for _ in range(steps):
        if work.spent():
            break
        value = loss(bezier(start, moved, end, t))
        work.sample_gradients += rows
        (moved.grad,) = torch.autograd.grad(value, [moved])
        steps_of.step()
    return moved.detach()
