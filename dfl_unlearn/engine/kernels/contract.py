"""What a kernel does: one local step of a chunk of peers, in place."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.engine.batches import Batch


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """How a gradient moves a row.

    Attributes:
        l2: Regularization of the model's objective.
        weight_decay: Decay of the optimizer.
        momentum: Heavy-ball momentum.
        clip_norm: Per-sample clipping norm of the data term, or None.
    """

    l2: float
    weight_decay: float
    momentum: float
    clip_norm: float | None


class Kernel(Protocol):
    """Takes local steps of peers whose rows lie together in one array."""

    def step(
        self,
        params: Tensor,
        batch: Batch,
        rates: NDArray[np.float64],
        scale: NDArray[np.float64],
        velocity: Tensor | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take one step of k peers in place.

        Args:
            params: Rows of the peers, shape ``(k, P)``; written to.
            batch: Their rows of data.
            rates: Learning rate of each peer, shape ``(k,)``; 0 for a peer that takes
                no step.
            scale: Factor on each peer's objective, shape ``(k,)``.
            velocity: Momentum rows, shape ``(k, P)``, or None; written to.

        Returns:
            Batch loss before the step (data term, mean over the batch) and norm of the
            batch gradient's data term times ``scale``, shape ``(k,)`` each.
        """
        ...


def apply_gradient(
    params: Tensor,
    gradient: Tensor,
    rule: StepRule,
    rates: NDArray[np.float64],
    scale: NDArray[np.float64],
    velocity: Tensor | None,
) -> None:
    """Move rows against their gradients, in place.

    Args:
        params: Rows, shape ``(k, P)``.
        gradient: Data-term gradients times ``scale``, shape ``(k, P)``; overwritten.
        rule: Regularization and momentum.
        rates: Learning rates, shape ``(k,)``.
        scale: Factors on the objectives, shape ``(k,)``; they scale l2 as well.
        velocity: Momentum rows or None.
    """
    decay = _column(scale * rule.l2 + rule.weight_decay, params)
    rate = _column(rates, params)
    if velocity is None:
        params.mul_(1 - rate * decay)
        params.sub_(gradient.mul_(rate))
        return
    gradient.addcmul_(params, decay.expand_as(params))
    moving = torch.from_numpy(rates > 0)
    if bool(moving.all()):
        velocity.mul_(rule.momentum).add_(gradient)
    else:
        velocity[moving] = velocity[moving] * rule.momentum + gradient[moving]
    params.sub_(gradient.copy_(velocity).mul_(rate))


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.dtype)[:, None]
