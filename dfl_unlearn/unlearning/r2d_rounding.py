r"""What rounding does to two trainings that rewinding compares, and what covers it.

A step of descent in floating point is the exact one and an error of at most

.. math:: \gamma\,[(d + 8)\,\eta L r + (k + 8)\,\eta G + (w + 4)\, r]

[derived, by the standard model of rounding, for a linear layer with a known loss]:
logits are sums of d terms, which the curvature carries into the gradient; the gradient
is a sum of k rows; the state, of norm at most r, is mixed from w terms and written.
Here gamma is half an epsilon of the type. Both the rewound and the retrained model have
it in every step, and steps carry it along as they carry what forgotten rows leave.

The bound is of public numbers alone (r is what T steps of length eta G can reach from
the initial parameters), so that noise may go by it. It is added to the sensitivity in
every type, unless it is below ``NEGLIGIBLE`` of it; above ``ROUNDING_SHARE`` of it the
claim is heuristic, though the noise covers it: what is about arithmetic more than about
data is no certificate.
"""

import math
from dataclasses import dataclass

import torch

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.trajectory import Regime, trajectory_sensitivity
from dfl_unlearn.models.flat import FlatModel

ROUNDING_SHARE = 0.01
"""Share of the sensitivity above which rounding makes a claim heuristic."""

NEGLIGIBLE = 1e-9
"""Share of the sensitivity below which rounding is left out: epsilon has fewer true
digits than that."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What rounding may do to a release.

    Attributes:
        distance: Bound on how far it moves the rewound from the retrained model (the
            stack of all of them); may be infinite.
        ulp: Bound on an ulp of a released parameter.
        proven: Whether the model is one that the bound is derived for.
    """

    distance: float
    ulp: float
    proven: bool

    def covered(self, sensitivity: float) -> tuple[float, list[Assumption]]:
        """Return a sensitivity that covers rounding too, and what that rests on.

        Args:
            sensitivity: In exact arithmetic.

        Returns:
            As it is, and nothing, where rounding is negligible beside it.
        """
        if self.distance <= NEGLIGIBLE * sensitivity:
            return sensitivity, []
        held = self.distance <= ROUNDING_SHARE * sensitivity
        finite = math.isfinite(self.distance)
        return sensitivity + (self.distance if finite else 0.0), [
            Assumption(
                name="rounding of training",
                value=self.distance if finite else "no bound",
                source="proven" if self.proven or not held else "assumed",
                state="held" if held else "violated",
                note="of every step of both trainings, carried along"
                + ("" if self.proven else ", counted as for a linear model")
                + ("; the noise covers it" if finite else "; no noise covers it")
                + (
                    ""
                    if held
                    else f"; above {ROUNDING_SHARE:.0%} of what the rows leave: train "
                    "with dtype='float64', rewind less, or all of training (rewind=1)"
                ),
            )
        ]

    def beside(self, noise_std: float) -> list[Assumption]:
        """Return what speaks against a noise that the state's digits do not show."""
        if noise_std >= self.ulp:
            return []
        return [
            Assumption(
                name="noise above rounding",
                value=noise_std,
                source="proven",
                state="violated",
                note=f"parameters may have an ulp of {self.ulp:.3g}: less noise is "
                "none; rewind less, or use a smaller epsilon",
            )
        ]


def rounding_of_training(
    *,
    model: FlatModel,
    dtype: torch.dtype,
    start_norm: float,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    rows: int,
    decay: float,
    clipped: bool,
    regime: Regime,
    strong_convexity: float = 0.0,
    peers: int = 1,
    mixed: int = 0,
) -> Rounding:
    """Return what rounding may do to a rewound and to a retrained model.

    Args:
        model: Its layers say how long sums are.
        dtype: Of the training.
        start_norm: Norm of the initial parameters, of one peer at most.
        steps: T.
        learning_rate: The largest eta.
        smoothness: L, l2 and weight decay included.
        gradient_bound: G of every row, data term.
        rows: The most rows that a step sums over.
        decay: l2 and weight decay.
        clipped: Whether rows' gradients are clipped, by their computed norm.
        regime: How steps stretch distances.
        strong_convexity: mu > 0 with ``strongly_convex``.
        peers: N models that are released together.
        mixed: The most models that a mixing averages; 0 where nothing is mixed.

    Returns:
        The bound.
    """
    epsilon = float(torch.finfo(dtype).eps)
    radius = _reach(start_norm, steps, learning_rate, gradient_bound, decay)
    structure = model.structure
    width = model.size
    if structure is not None:
        width = max(sum(layer.weight.shape) + 1 for layer in structure.layers)
    summed = rows + (model.size if clipped else 0)
    longest = max(width, summed, mixed) + 8
    each = math.inf
    if longest * epsilon < 1:  # gamma_k = k u / (1 - k u), u half an epsilon
        each = (epsilon / (1 - longest * epsilon / 2)) * (
            (width + 8) * learning_rate * smoothness * radius
            + (summed + 8) * learning_rate * gradient_bound
            + (mixed + 4) * radius
        )
    distance = math.inf
    if math.isfinite(each):
        # Both trainings are pushed off: the bound for half of all rows and that push.
        distance = trajectory_sensitivity(
            rewind_steps=0,
            steps=steps,
            learning_rate=learning_rate,
            smoothness=smoothness,
            gradient_bound=math.sqrt(peers) * each / learning_rate,
            forget=1,
            samples=2,
            regime=regime,
            strong_convexity=strong_convexity,
        )
    return Rounding(distance=distance, ulp=epsilon * radius, proven=model.convex)


def _reach(
    start: float, steps: int, rate: float, gradient_bound: float, decay: float
) -> float:
    """Return how long parameters can get, with 1 % for the rounding of all of it."""
    kept = abs(1 - rate * decay)
    if kept > 1:
        log = steps * math.log(kept)
        grown = math.exp(log) if log < 700 else math.inf
        return 1.01 * grown * (start + steps * rate * gradient_bound)
    pushes = steps if kept == 1 else min(steps, 1 / (1 - kept))
    return 1.01 * (start + pushes * rate * gradient_bound)
