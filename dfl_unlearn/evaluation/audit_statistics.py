r"""Scores by which a guesser tells two worlds apart.

Everything a score needs besides the release itself is fitted on one half of the
replicas, or known to everybody (the target, the forgotten rows, the correction that was
due). Counting happens on the other half.

================  =====================================================================
name              score of a release
================  =====================================================================
``projection``    along the difference of the worlds' means, whitened by the shrunk
                  covariance: the likelihood ratio of two Gaussians
``residual``      along the correction that was due (target with the rows minus without)
``distance``      squared distance to the mean release of the reference world, each
                  number in units of its deviation there
``loss``          mean loss on the forgotten rows
================  =====================================================================

An observer of one peer is given the peer whose scores tell most on the fitting half.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from dfl_unlearn._arrays import as_features
from dfl_unlearn.evaluation.audit_bounds import (
    Threshold,
    best_threshold,
    epsilon_lower_bound,
)
from dfl_unlearn.models.flat import FlatModel

Statistic = Literal["auto", "projection", "residual", "distance", "loss"]
NAMES = ("projection", "residual", "distance", "loss")

Floats = NDArray[np.float64]
_CHUNK = 256
_LEAST_SCALE = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What every guesser knows.

    Attributes:
        model: The model.
        inputs: The forgotten rows' inputs, shape ``(m, ...)``.
        labels: Their labels, shape ``(m,)``.
        target: Where a network without them rests, shape ``(N, P)`` float64.
        correction: What separates it from one with them, shape ``(N, P)`` float64.
        single: Whether one vector of a release is seen, not all.
    """

    model: FlatModel
    inputs: Tensor
    labels: Tensor
    target: Tensor
    correction: Tensor
    single: bool


@dataclass(frozen=True, kw_only=True)
class Count:
    """Errors of one fixed rule on the counting half.

    Attributes:
        statistic: Name of the score.
        rule: Its threshold, from the fitting half.
        errors: False positives and false negatives.
    """

    statistic: str
    rule: Threshold
    errors: tuple[int, int]


Score = Callable[[Tensor], Floats]


def count_errors(
    known: Known,
    reference: Tensor,
    unlearned: Tensor,
    *,
    fitted: tuple[int, int],
    names: tuple[str, ...],
    delta: float,
    gamma: float,
) -> list[Count]:
    """Fit every score and its threshold on first halves, count errors on the others.

    Args:
        known: What every guesser knows.
        reference: Releases of the reference world, shape ``(R0, S, P)`` float64.
        unlearned: Releases of the unlearned world, shape ``(R1, S, P)`` float64.
        fitted: How many of each, from the first on, are for fitting.
        names: Scores to try.
        delta: The claim's delta.
        gamma: Error of each count; the caller has divided it by the number of names.

    Returns:
        One count per name.
    """
    k, n = fitted
    counts = []
    for name in names:
        score, rule = _fitted(
            name, known, reference[:k], unlearned[:n], delta=delta, gamma=gamma
        )
        errors = rule.errors(score(reference[k:]), score(unlearned[n:]))
        counts.append(Count(statistic=name, rule=rule, errors=errors))
    return counts


def _fitted(
    name: str,
    known: Known,
    reference: Tensor,
    unlearned: Tensor,
    *,
    delta: float,
    gamma: float,
) -> tuple[Score, Threshold]:
    """Return a score with the best rule on these replicas."""
    places: list[int | None] = [None]
    if known.single:
        places = list(range(reference.shape[1]))
    best: tuple[float, Score, Threshold] | None = None
    for place in places:
        score = _SCORES[name](known, place, reference, unlearned)
        low, high = score(reference), score(unlearned)
        rule = best_threshold(low, high, delta, gamma)
        wrong, missed = rule.errors(low, high)
        bound = epsilon_lower_bound(wrong, len(low), missed, len(high), delta, gamma)
        if best is None or bound > best[0]:
            best = bound, score, rule
    assert best is not None
    return best[1], best[2]


def _seen(values: Tensor, place: int | None) -> Floats:
    """Return what is seen of releases as rows, ``(R, S P)`` or ``(R, P)``."""
    part = values if place is None else values[:, place]
    rows: Floats = part.reshape(len(values), -1).numpy()
    return rows


def _at(known: Known, values: Tensor, what: Tensor) -> Tensor:
    """Return per-peer rows for the vectors of a release.

    These are the peers' models, perhaps several times over, or a token's on its way,
    where all peers have the same row.
    """
    times, rest = divmod(values.shape[1], len(what))
    if rest == 0:
        return what.repeat(times, 1)
    return what[:1].expand(values.shape[1], -1)


def _projection(
    known: Known, place: int | None, reference: Tensor, unlearned: Tensor
) -> Score:
    def centred(values: Tensor) -> Floats:
        # The target goes first: what is left of an un-noised release is tiny.
        return _seen(values - _at(known, values, known.target), place)

    low, high = centred(reference), centred(unlearned)
    scale = np.sqrt((low.var(axis=0) + high.var(axis=0)) / 2)
    scale = np.where(scale > 0, scale, 1.0)
    low, high = low / scale, high / scale
    size = low.shape[1]
    within = np.concatenate([low - low.mean(axis=0), high - high.mean(axis=0)])
    covariance = within.T @ within / len(within)
    shrink = min(1.0, max(0.01, size / len(within)))
    whitened = (1 - shrink) * covariance + shrink * np.eye(size)
    apart = high.mean(axis=0) - low.mean(axis=0)
    direction: Floats = np.linalg.solve(whitened, apart) / scale

    def score(values: Tensor) -> Floats:
        along: Floats = centred(values) @ direction
        return along

    return score


def _residual(
    known: Known, place: int | None, reference: Tensor, unlearned: Tensor
) -> Score:
    def score(values: Tensor) -> Floats:
        moved = values - _at(known, values, known.target)
        along = moved * _at(known, values, known.correction)
        total: Floats = _seen(along, place).sum(axis=1)
        return total

    return score


def _distance(
    known: Known, place: int | None, reference: Tensor, unlearned: Tensor
) -> Score:
    # Not the target itself: what follows the release may lead away from it.
    centre = reference.mean(0)
    low, high = (_seen(values - centre, place) for values in (reference, unlearned))
    # Without noise nothing varies in one world: what the other adds then counts most.
    scale = np.maximum(low.std(axis=0), _LEAST_SCALE * high.std(axis=0))
    scale = np.where(scale > 0, scale, 1.0)

    def score(values: Tensor) -> Floats:
        away: Floats = np.square(_seen(values - centre, place) / scale).sum(axis=1)
        return away

    return score


def _loss(
    known: Known, place: int | None, reference: Tensor, unlearned: Tensor
) -> Score:
    inputs = as_features(known.inputs, torch.float64)
    labels = known.labels.double() if known.labels.is_floating_point() else known.labels

    def one(row: Tensor) -> Tensor:
        return known.model.sample_losses(row, (inputs, labels)).mean()

    def score(values: Tensor) -> Floats:
        part = values if place is None else values[:, place : place + 1]
        rows = part.reshape(-1, part.shape[2])
        losses = torch.cat([vmap(one)(some) for some in rows.split(_CHUNK)])
        found: Floats = losses.reshape(len(values), -1).mean(1).numpy()
        return found

    return score


_SCORES: Mapping[str, Callable[[Known, int | None, Tensor, Tensor], Score]] = {
    "projection": _projection,
    "residual": _residual,
    "distance": _distance,
    "loss": _loss,
}
