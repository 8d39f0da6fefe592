"""Formulas of membership attacks and of distances between predictions, on arrays.

Everything is float64 NumPy. Natural logarithms; probabilities and their complements are
floored at ``FLOOR`` inside them, so that one sure prediction does not make a mean
infinite. A higher score always means more like a member.

Song and Mittal (2021), Systematic evaluation of privacy risks of machine learning
models (modified entropy); Carlini et al. (2022), Membership inference attacks from
first principles (logit score and likelihood ratio) [recalled].
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn._stats import auc
from dfl_unlearn.errors import InvalidArgumentError

__all__ = [
    "auc",
    "balanced_accuracy",
    "entropy",
    "jensen_shannon",
    "kullback_leibler",
    "lira_statistic",
    "logit_score",
    "modified_entropy",
    "softmax",
    "tpr_at_fpr",
]

FLOOR = 1e-20
"""Of what a logarithm is taken of [code: SFRon]."""

Floats = NDArray[np.float64]


def softmax(logits: ArrayLike) -> Floats:
    """Return the probabilities of logits, over the last axis."""
    z = np.asarray(logits, dtype=np.float64)
    weights = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def entropy(probabilities: ArrayLike) -> Floats:
    """Return ``-sum_c p_c ln p_c``, in nats.

    Args:
        probabilities: Shape ``(..., C)``.

    Returns:
        Shape ``(...,)``.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return np.asarray(-(p * _ln(p)).sum(axis=-1))


def modified_entropy(probabilities: ArrayLike, labels: ArrayLike) -> Floats:
    """Return ``-(1 - p_y) ln p_y - sum_{j != y} p_j ln(1 - p_j)``, in nats.

    Zero where the label is certain, and large where another class is.

    Args:
        probabilities: Shape ``(..., B, C)``.
        labels: Classes y, integers, shape ``(B,)``.

    Returns:
        Shape ``(..., B)``.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    true = _of_label(p, labels)
    every = -(p * _ln(1 - p)).sum(axis=-1)
    return np.asarray(every + true * _ln(1 - true) - (1 - true) * _ln(true))


def logit_score(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return ``ln(p_y / (1 - p_y))``, from logits and so without a floor.

    Args:
        logits: Shape ``(..., B, C)``; logarithms of probabilities are logits, too.
        labels: Classes y, integers, shape ``(B,)``.

    Returns:
        Shape ``(..., B)``.
    """
    z = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    others = np.where(np.arange(z.shape[-1]) == y[:, None], -np.inf, z)
    top = others.max(axis=-1)
    rest = np.log(np.exp(others - top[..., None]).sum(axis=-1)) + top
    return np.asarray(_of_label(z, y) - rest)


def lira_statistic(
    scores: ArrayLike,
    mean_in: ArrayLike,
    std_in: ArrayLike,
    mean_out: ArrayLike,
    std_out: ArrayLike,
) -> Floats:
    """Return ln of a score's density among members over that among non-members.

    Args:
        scores: Scores of a model on its examples.
        mean_in: Mean score of models that had the example; broadcast, as all others.
        std_in: Their standard deviation, > 0.
        mean_out: Mean score of models that never had it.
        std_out: Their standard deviation, > 0.

    Returns:
        Log-likelihood ratio of two normal distributions, shape of the scores.

    Raises:
        InvalidArgumentError: If a standard deviation is not positive.
    """
    s = np.asarray(scores, dtype=np.float64)
    terms = []
    for name, mean, std in (("in", mean_in, std_in), ("out", mean_out, std_out)):
        width = np.asarray(std, dtype=np.float64)
        if not (width > 0).all():
            raise InvalidArgumentError(
                f"std_{name}: must be > 0, got {float(width.min())}; pool the "
                "variance over examples, or train more models"
            )
        terms.append(-((s - np.asarray(mean)) ** 2) / (2 * width**2) - np.log(width))
    return np.asarray(terms[0] - terms[1])


def tpr_at_fpr(members: ArrayLike, nonmembers: ArrayLike, fpr: float) -> Floats:
    """Return the share of members found while at most ``fpr`` of the others are.

    The largest share over all thresholds; scores that tie fall on one side together,
    and nothing is interpolated. With L non-members a rate below 1/L means none of them.

    Args:
        members: Scores, shape ``(..., K)``; higher means more like a member.
        nonmembers: Scores, shape ``(..., L)``, same leading axes.
        fpr: Allowed share of false alarms, in [0, 1].

    Returns:
        In [0, 1], shape ``(...,)``.
    """
    _validate.number(at_least=0, at_most=1, fpr=fpr)
    inside = np.asarray(members, dtype=np.float64)
    outside = -np.sort(-np.asarray(nonmembers, dtype=np.float64), axis=-1)
    allowed = int(np.floor(fpr * outside.shape[-1] + 1e-9))
    if allowed == outside.shape[-1]:
        return np.ones(inside.shape[:-1])
    # The threshold is the first score that may not pass any more.
    return np.asarray((inside > outside[..., allowed, None]).mean(axis=-1))


def balanced_accuracy(members: ArrayLike, nonmembers: ArrayLike) -> float:
    """Return the best mean of both sides' shares told right, over all thresholds.

    Args:
        members: Scores, shape ``(K,)``; higher means more like a member.
        nonmembers: Scores, shape ``(L,)``.

    Returns:
        In [1/2, 1].
    """
    inside = np.sort(np.asarray(members, dtype=np.float64))
    outside = np.sort(np.asarray(nonmembers, dtype=np.float64))
    cuts = np.concatenate([inside, outside])
    found = 1 - np.searchsorted(inside, cuts, side="left") / len(inside)
    alarms = 1 - np.searchsorted(outside, cuts, side="left") / len(outside)
    return float(max(0.5, ((1 + found - alarms) / 2).max()))


def kullback_leibler(p: ArrayLike, q: ArrayLike) -> Floats:
    """Return ``KL(p || q) = sum_c p_c ln(p_c / q_c)``, in nats.

    Args:
        p: Probabilities, shape ``(..., C)``.
        q: Probabilities, same shape.

    Returns:
        Shape ``(...,)``.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (p, q))
    return np.asarray((first * (_ln(first) - _ln(second))).sum(axis=-1))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> Floats:
    """Return the mean of both divergences to the middle of two distributions.

    Args:
        p: Probabilities, shape ``(..., C)``.
        q: Probabilities, same shape.

    Returns:
        In [0, ln 2] nats, shape ``(...,)``.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (p, q))
    middle = (first + second) / 2
    both = kullback_leibler(first, middle) + kullback_leibler(second, middle)
    return np.asarray(both / 2)


def _ln(values: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(values, FLOOR)))


def _of_label(values: Floats, labels: ArrayLike) -> Floats:
    """Return the entries of each row's own class, shape ``(..., B)``."""
    index = np.asarray(labels, dtype=np.int64)
    shape = (*values.shape[:-1], 1)
    taken = np.take_along_axis(values, np.broadcast_to(index[:, None], shape), axis=-1)
    return taken[..., 0]
