"""The notebook of one training run: states, step sizes, gradient norms, dynamics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.record.plan import RecordPlan


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """What the influence recursions need to know of the training iteration.

    Attributes:
        form: ``atc`` (adapt, then combine), ``cta`` (combine the old rows, then add
            the local change) or ``gradient_tracking``.
        local_steps: Gradient steps per round and peer, shape ``(N,)``.
        scale: Factor on each peer's objective, shape ``(N,)``; 0 for a peer that only
            relays.
        decay: The model's l2, a part of each objective: ``scale`` applies to it.
        weight_decay: Decay of the optimizer, which no ``scale`` applies to.
        momentum: Momentum of the local steps; 0 for plain descent.
        convex: Whether the data term is convex by the model's registered type.
        smoothness: Bound on the largest eigenvalue of a batch Hessian, l2 included
            and weight decay not, or None where no bound is known.
        clip_norm: Per-sample clipping norm, or None.
        faulty: Whether the network could fail, so that a round did not mix by W.
    """

    form: Literal["atc", "cta", "gradient_tracking"]
    local_steps: NDArray[np.int64]
    scale: NDArray[np.float64]
    decay: float
    weight_decay: float = 0.0
    momentum: float
    convex: bool
    smoothness: Assumption | None
    clip_norm: float | None
    faulty: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What one training run left behind.

    Attributes:
        plan: What was to be kept.
        dynamics: The training iteration.
        step_sizes: Learning rate of each round, shape ``(T,)``, float64.
        initial: State before round 1, shape ``(N, P)``, or None.
        checkpoints: Round number -> state **after** that many rounds, ``(N, P)``.
        gradient_norms: Per round and peer the sum over local steps of the norm of the
            batch gradient's data term, shape ``(T, N)``, float64, or None.
        training_residual: Round number -> norm of the gradient of the network's
            objective at the mean of all models after that many rounds. Measured at the
            end of training, before any request, by two sums over all peers: everybody
            knows that mean model from then on.
    """

    plan: RecordPlan
    dynamics: Dynamics
    step_sizes: NDArray[np.float64]
    initial: Tensor | None = None
    checkpoints: Mapping[int, Tensor] = field(default_factory=dict)
    gradient_norms: NDArray[np.float64] | None = None
    training_residual: Mapping[int, float] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Number of rounds T that the record covers."""
        return len(self.step_sizes)

    @property
    def nbytes(self) -> int:
        """Bytes held by checkpoints and norms."""
        states = sum(c.numel() * c.element_size() for c in self.checkpoints.values())
        norms = 0 if self.gradient_norms is None else self.gradient_norms.nbytes
        return states + norms
