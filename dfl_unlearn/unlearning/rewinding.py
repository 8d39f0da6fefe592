r"""Steps of training undone: the state before a step from the one after it.

The state z before a step :math:`y = z - \eta \nabla f(z)` is the fixed point of
:math:`z \mapsto y + \eta \nabla f(z)`, a contraction by :math:`\eta L < 1`; where that
is slow, damped Newton steps solve :math:`(I - \eta H) s = y - z + \eta \nabla f(z)` by
conjugate gradients [paper, algorithm 3 and lemma 2.1]. It is not gradient ascent, whose
error per step is of order :math:`\eta^2`.

Every step undone multiplies what was off before by up to
:math:`1/(1 - \eta \lambda_{max})`, so that long trainings, and those near the edge of
stability, cannot be undone. Arithmetic is float64 whatever the model's type.

References:
    Mu and Klabjan (2025), Rewind-to-delete: certified machine unlearning for nonconvex
    functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.curvature.constants import largest_eigenvalue
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.curvature.solve import conjugate_gradient
from dfl_unlearn.errors import (
    NonPositiveCurvatureError,
    ReconstructionError,
    SolverNotConvergedError,
)
from dfl_unlearn.rng import RngTree

LARGEST_RESIDUAL = 1e-8
"""Residual above which a step counts as not undone, over max(1, norm of the state)."""

_EPS = float(torch.finfo(torch.float64).eps)
_FLOOR = 1e-13  # residuals of this size are rounding
_PATIENCE = 5
_MOST_SWEEPS = 1000
_MOST_NEWTON = 30
_HALVINGS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Undone:
    """The state before one step.

    Attributes:
        params: z, shape ``(P,)`` float64.
        residual: ``|z - eta grad f(z) - y|``.
        gradients: Gradients of single samples taken; a product with a Hessian is two.
    """

    params: Tensor
    residual: float
    gradients: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewound:
    """The state before several steps.

    Attributes:
        params: Shape ``(P,)`` float64.
        error: How far it is from where training was: residuals and rounding, carried
            back. A bound where L is known, else an estimate. A measured curvature
            above L counts instead of it.
        bounded: Whether L is known, and nothing measured contradicts it.
        exceeded: Whether a measured curvature was above L, which is no bound then.
        amplification: Product over the steps of ``1/(1 - eta lambda_max)``, the
            eigenvalue estimated every few steps; times 1e-16 what to expect of
            rounding.
        residual: The largest one over the steps.
        curvature: The largest ``eta lambda_max`` met.
    """

    params: Tensor
    error: float
    bounded: bool
    exceeded: bool
    amplification: float
    residual: float
    curvature: float


def undo_step(
    objective: Objective, after: Tensor, learning_rate: float, *, decay: float = 0.0
) -> Undone:
    """Return the state before one step of descent.

    Args:
        objective: f, what the step was taken on.
        after: y, the state after it, shape ``(P,)``.
        learning_rate: eta.
        decay: Weight decay, added times the parameters to the gradient.

    Returns:
        The state, with its residual.

    Raises:
        ReconstructionError: If the residual is above 1e-8 max(1, |y|).
    """
    y = after.detach().double()
    equation = _Equation(objective, y, learning_rate, decay)
    z, best, stale = y, math.inf, 0
    state = y
    for _ in range(_MOST_SWEEPS):
        off = equation.off(z)
        size = float(off.norm())
        stale += 1
        if size < best:
            state, best, stale = z, size, 0
        if best <= 2 * _EPS * equation.scale or stale == _PATIENCE:
            break
        z = z - off
    if not best <= _FLOOR * equation.scale:
        state, best = equation.newton(state, best)
    if not best <= LARGEST_RESIDUAL * equation.scale:
        raise ReconstructionError(
            f"start: a step of rate {learning_rate:g} is undone only to a residual of "
            f"{best:.3g}, above {LARGEST_RESIDUAL:g} max(1, |params|); keep "
            "checkpoints and use start='checkpoint', or train with a smaller rate"
        )
    return Undone(params=state, residual=best, gradients=equation.gradients)


def rewind(
    objective_of: Callable[[int], Objective],
    params: Tensor,
    rates: NDArray[np.float64],
    *,
    steps: int,
    rng: RngTree,
    decay: float = 0.0,
    smoothness: float | None = None,
    rounding: float = 0.0,
    check_every: int = 5,
    stop: Callable[[], bool] = lambda: False,
    count: Callable[[int], None] = lambda _: None,
) -> Rewound | None:
    """Return the state before the last steps of a training without momentum.

    Args:
        objective_of: Step -> what it was taken on, all rows included.
        params: The state after all steps, without noise, shape ``(P,)``.
        rates: Learning rate of every step, shape ``(T,)``.
        steps: K, how many of them are undone.
        rng: Draws the starts of power iterations.
        decay: Weight decay.
        smoothness: L, a bound on the curvature anywhere; None where none is known.
        rounding: Relative rounding of a training step, e.g. the type's epsilon.
        check_every: Steps between estimates of the curvature.
        stop: Asked before every step; True ends it with None.
        count: Told what was computed; as in ``Undone.gradients``.

    Returns:
        The state, or None.

    Raises:
        ReconstructionError: If ``eta L >= 1`` somewhere, or a residual stays.
    """
    state = params.detach().double()
    error = residual = largest = curvature = 0.0
    amplification, exceeded = 1.0, False
    for back in range(steps):
        if stop():
            return None
        step = len(rates) - 1 - back
        rate, objective = float(rates[step]), objective_of(step)
        if back % check_every == 0:
            curvature = _curvature(objective, state, decay, rng)
            count(2 * objective.rows * _ITERATIONS)
        known = curvature if smoothness is None else max(smoothness, curvature)
        exceeded = exceeded or (smoothness is not None and _above(known, smoothness))
        _check_step(rate, known, step, estimated=smoothness is None or exceeded)
        undone = undo_step(objective, state, rate, decay=decay)
        off = undone.residual + rounding * float(state.norm())
        error = (error + off) / (1 - rate * known)
        amplification /= 1 - rate * curvature
        largest = max(largest, rate * curvature)
        residual = max(residual, undone.residual)
        count(undone.gradients)
        state = undone.params
    return Rewound(
        params=state,
        error=error,
        bounded=smoothness is not None and not exceeded,
        exceeded=exceeded,
        amplification=amplification,
        residual=residual,
        curvature=largest,
    )


def _above(curvature: float, smoothness: float) -> bool:
    """Tell whether a curvature contradicts a bound; its last digits are rounding."""
    return curvature > smoothness * (1 + 1e-9)


_ITERATIONS = 20


def _curvature(
    objective: Objective, state: Tensor, decay: float, rng: RngTree
) -> float:
    """Return the size of the Hessian's largest eigenvalue, estimated."""
    operator = objective.hessian(state, damping=decay)
    found = largest_eigenvalue(operator, len(state), rng=rng, iterations=_ITERATIONS)
    return abs(found) if math.isfinite(found) else 0.0  # a Hessian of 0 gives NaN


def _check_step(rate: float, curvature: float, step: int, *, estimated: bool) -> None:
    if rate * curvature >= 1:
        how = "estimated" if estimated else "bounded"
        raise ReconstructionError(
            f"learning_rate: must be below 1/L to undo step {step}, got {rate:g} with "
            f"L {how} as {curvature:.6g}; keep checkpoints and use start='checkpoint', "
            "or train with a smaller learning rate"
        )


class _Equation:
    """z - eta grad f(z) - y = 0."""

    def __init__(
        self, objective: Objective, y: Tensor, rate: float, decay: float
    ) -> None:
        self.scale = max(1.0, float(y.norm()))
        self.gradients = 0
        self._objective, self._y, self._rate, self._decay = objective, y, rate, decay

    @property
    def rows(self) -> int:
        """Per-sample products of one multiplication."""
        return self._objective.rows

    def off(self, z: Tensor) -> Tensor:
        """Return what is missing at z, ``(P,)``."""
        self.gradients += self.rows
        gradient = self._objective.gradient(z) + self._decay * z
        return z - self._rate * gradient - self._y

    def newton(self, z: Tensor, best: float) -> tuple[Tensor, float]:
        """Return a better state and its residual, by damped Newton steps."""
        off = self.off(z)
        for _ in range(_MOST_NEWTON):
            if best <= 2 * _EPS * self.scale:
                break
            self._hessian = self._objective.hessian(z, damping=self._decay)
            try:
                move = conjugate_gradient(self, -off, tolerance=1e-6).x
            except (NonPositiveCurvatureError, SolverNotConvergedError):
                break  # the residual that is left decides
            size = 1.0
            for _ in range(_HALVINGS):
                tried = z + size * move
                missing = self.off(tried)
                if float(missing.norm()) < best:
                    break
                size /= 2
            else:
                break
            z, off, best = tried, missing, float(missing.norm())
        return z, best

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return (I - eta H) v at the state of the last Newton step."""
        self.gradients += 2 * self.rows
        return vector - self._rate * (self._hessian @ vector)
