"""What is known of a loss, for the bound on rewinding: stated, proven or estimated.

A word of the caller counts as assumed, an estimate makes the claim heuristic, and
neither makes convex or smooth what cannot be.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.trajectory import Regime
from dfl_unlearn.curvature.constants import (
    estimate_gradient_bound,
    estimate_smoothness,
)
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalTask
from dfl_unlearn.unlearning.local_work import LocalWork

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.methods.r2d import R2d

_NAMES = {
    "smoothness": "smoothness (L)",
    "gradient_bound": "gradient bound (G)",
    "strong_convexity": "strong convexity (mu)",
}
_HIDDEN = ("mlp", "small-cnn", "resnet8")
_FLATTENING = ("cross-entropy", "binary-logistic")
_KINKS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.MaxPool2d)
_LAST_DIGITS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What is known of the loss; None where nothing is.

    Attributes:
        smoothness: L, l2 and weight decay included.
        gradient_bound: G, of the data term.
        strong_convexity: mu >= 0, None where the loss need not be convex.
        nonconvex: Whether the model's type is known and proves nothing convex: a
            network with hidden layers, or clipped gradients of softmax.
    """

    smoothness: Assumption | None
    gradient_bound: Assumption | None
    strong_convexity: Assumption | None
    nonconvex: bool

    def regime(self, method: "R2d", rate: float) -> Regime:
        """Return the regime asked for; with ``auto`` the tightest that is known.

        Args:
            method: Its fields.
            rate: The largest step size.

        Returns:
            The regime.
        """
        if method.regime != "auto":
            return method.regime
        if method.bound == "published" or None in (
            self.smoothness,
            self.strong_convexity,
        ):
            return "nonconvex"
        assert self.smoothness is not None
        assert self.strong_convexity is not None
        product = rate * float(self.smoothness.value)
        if float(self.strong_convexity.value) > 0 and product < 2:
            return "strongly_convex"
        return "convex" if product <= 2 else "nonconvex"

    def assumptions(self, regime: Regime) -> list[Assumption]:
        """Return the constants that the bound of a regime uses."""
        used = ["smoothness", "gradient_bound"]
        used += ["strong_convexity"] if regime == "strongly_convex" else []
        found = []
        for key in used:
            constant: Assumption | None = getattr(self, key)
            if constant is None:
                constant = Assumption(
                    name="",
                    value="no bound is known",
                    source="proven",
                    state="violated",
                    note=f"give {key}, or safety to have it estimated",
                )
            found.append(replace(constant, name=_NAMES[key]))
        return [*found, self._regime_assumed(regime)]

    def _regime_assumed(self, regime: Regime) -> Assumption:
        """Return what taking the loss for convex, or for nothing, rests on."""
        convex = self.strong_convexity
        known = convex is not None and convex.source == "proven"
        note = "by the model's registered type"
        if regime == "nonconvex":
            known, note = True, "nothing is asked of the loss but smoothness"
        elif self.nonconvex:
            note = "the model's registered type is not convex; use regime='nonconvex'"
        elif not known:
            note = "as the caller says"
        wrong = regime != "nonconvex" and self.nonconvex
        return Assumption(
            name="regime",
            value=regime,
            source="proven" if known or wrong else "assumed",
            state="violated" if wrong else "held",
            note=note,
        )


def constants_of(
    method: "R2d", task: LocalTask[TensorBatch], work: LocalWork, rng: RngTree
) -> Constants | None:
    """Return the constants: given ones first, then known ones, then estimates.

    Args:
        method: Its fields.
        task: The task.
        work: Counts what estimates take.
        rng: Draws the starts of power iterations.

    Returns:
        The constants; None where the budget was spent before.
    """
    history = task.history
    assert history is not None
    found: dict[str, Assumption | None] = {}
    for name in _NAMES:
        value: float | None = getattr(method, name)
        found[name] = getattr(history, name)
        if value is not None:
            decay = task.model.l2 + history.weight_decay
            found[name] = stated(name, value, task.model, decay)
    if method.safety is not None:
        for name in ("smoothness", "gradient_bound"):
            if found[name] is None:
                found[name] = _estimate(name, method.safety, task, work, rng)
                if found[name] is None:
                    return None
    return Constants(
        **found,
        nonconvex=nonconvex_by_type(task.model)
        or (task.model.convex and history.strong_convexity is None),
    )


def nonconvex_by_type(model: FlatModel) -> bool:
    """Tell whether a model's type is known, and is none of a convex loss."""
    named = model.recipe is not None and model.recipe["use"] in _HIDDEN
    return not model.convex and (named or model.structure is not None)


def stated(name: str, value: float, model: FlatModel, decay: float) -> Assumption:
    """Return a constant that the caller states, violated where it cannot hold.

    The slope of ReLU jumps: it has no smoothness. Losses do not fall without end, so
    that no objective is less curved everywhere than its decay; and logistic losses
    flatten far out, so that theirs is all their strong convexity.

    Args:
        name: ``smoothness``, ``gradient_bound`` or ``strong_convexity``.
        value: What is stated.
        model: The model.
        decay: Its l2 and the weight decay of training.

    Returns:
        The assumption, under the field's name.
    """
    wrong = None
    if name == "smoothness" and _kinked(model):
        wrong = "the slope of ReLU jumps, so that there is no such constant; use a "
        wrong += "smooth model"
    elif name == "smoothness" and value < decay * (1 - _LAST_DIGITS):
        wrong = f"l2 and weight decay alone are {decay:g}; L includes them"
    elif (
        name == "strong_convexity"
        and value > decay * (1 + _LAST_DIGITS)
        and model.convex
        and model.loss_name in _FLATTENING
    ):
        wrong = f"a logistic loss has no more than its l2 and weight decay, {decay:g}"
    return Assumption(
        name=name,
        value=value,
        source="assumed",
        state="held" if wrong is None else "violated",
        note="given by the caller" + ("" if wrong is None else f", but {wrong}"),
    )


def _kinked(model: FlatModel) -> bool:
    if model.structure is not None:
        return len(model.structure.layers) > 1
    return any(isinstance(module, _KINKS) for _, module in model.modules())


def _estimate(
    name: str,
    safety: float,
    task: LocalTask[TensorBatch],
    work: LocalWork,
    rng: RngTree,
) -> Assumption | None:
    """Return the largest value over the kept states; None where the budget ended."""
    history, data = task.history, task.retain
    assert history is not None
    assert data is not None

    def count(gradients: int) -> None:
        work.sample_gradients += gradients

    found: list[Assumption] = []
    states = [*history.checkpoints.values(), task.params]
    for params in states:
        if work.spent():
            return None
        if name == "smoothness":
            each = estimate_smoothness(
                task.model, params, data, rng=rng, safety=safety, count=count
            )
            decayed = float(each.value) + safety * history.weight_decay
            found.append(replace(each, value=decayed))
        else:
            found.append(
                estimate_gradient_bound(
                    task.model, params, data, safety=safety, count=count
                )
            )
    largest = max(found, key=lambda each: float(each.value))
    return replace(
        largest,
        note=f"largest of {len(states)} kept states, {len(data)} retained rows, "
        f"times {safety:g}: what was seen, no bound",
    )
