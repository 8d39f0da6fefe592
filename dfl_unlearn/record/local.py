"""What training one model left behind, for methods that rewind or go on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._assumption import Assumption


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalHistory:
    """What one model's training left.

    Attributes:
        optimizer: ``sgd``; the only one that training knows.
        learning_rate: Step size of the first step.
        lr_schedule: ``constant``, ``cosine`` or ``inverse_sqrt``; ``rates`` has it
            step by step.
        momentum: Heavy-ball momentum.
        weight_decay: Added times the parameters to each gradient.
        clip_norm: Bound on every sample's gradient, or None.
        batch_size: Rows per step; None is the full batch.
        steps: T, optimizer steps (not epochs).
        steps_per_round: Steps between two rounds of mixing.
        rates: Learning rate of every step, shape ``(T,)``.
        samples: n, rows that training began with; earlier requests included.
        checkpoints: Step t -> parameters after t steps, ``(P,)``; 0 is the start.
        loss_name: The model's loss.
        start_norm: Norm of the initial parameters, which are drawn from a public key;
            None where they are not known.
        smoothness: L, bound on the largest eigenvalue of every sample's Hessian, l2
            and weight decay included; None where no bound is known.
        gradient_bound: G, bound on the norm of every sample's gradient, data term only.
        strong_convexity: mu >= 0 of the objective, or None where it is not convex.
        gossip: Whether the trajectory was mixed with neighbours'.
        private: Whether training added noise to its steps.
        batch_rows: Step -> places (``0 .. n-1``, forgotten ones included) of the rows
            that it took, as training drew them.
    """

    optimizer: Literal["sgd"] = "sgd"
    learning_rate: float
    lr_schedule: str
    momentum: float
    weight_decay: float
    clip_norm: float | None
    batch_size: int | None
    steps: int
    steps_per_round: int
    rates: NDArray[np.float64]
    samples: int
    checkpoints: Mapping[int, Tensor] = field(default_factory=dict)
    loss_name: str
    start_norm: float | None = None
    smoothness: Assumption | None = None
    gradient_bound: Assumption | None = None
    strong_convexity: Assumption | None = None
    gossip: bool
    private: bool = False
    batch_rows: Callable[[int], NDArray[np.int64]]
