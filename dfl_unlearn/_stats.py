"""Small exact statistics that several layers need."""

from decimal import ROUND_CEILING, Context, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, NumericalError


def auc(scores_members: ArrayLike, scores_nonmembers: ArrayLike) -> NDArray[np.float64]:
    """Return the chance that a member scores above a non-member, ties counting half.

    The Mann-Whitney form of the area under the ROC curve, computed from ranks and exact
    up to the last division.

    Args:
        scores_members: Shape ``(..., K)``; higher means more like a member.
        scores_nonmembers: Shape ``(..., L)``, same leading axes.

    Returns:
        In [0, 1], shape ``(...,)``.

    Raises:
        InvalidArgumentError: If a side is empty or the leading axes differ.
        NumericalError: If a score is NaN.

    Example:
        >>> float(auc([2.0, 1.0], [1.0, 0.0]))
        0.875
    """
    members = np.asarray(scores_members, dtype=np.float64)
    others = np.asarray(scores_nonmembers, dtype=np.float64)
    if (
        not members.size
        or not others.size
        or not members.ndim == others.ndim >= 1
        or members.shape[:-1] != others.shape[:-1]
    ):
        raise InvalidArgumentError(
            "scores: must be at least one on each side with equal leading axes, got "
            f"shapes {members.shape} and {others.shape}"
        )
    if np.isnan(members).any() or np.isnan(others).any():
        raise NumericalError("scores: must not be NaN, got NaN; check the model's loss")
    k, pairs = members.shape[-1], members.shape[-1] * others.shape[-1]
    both = np.concatenate([members, others], axis=-1)
    order = np.argsort(both, axis=-1, kind="stable")
    ranks = _twice_average_ranks(np.take_along_axis(both, order, axis=-1))
    twice = np.where(order < k, ranks, 0).sum(axis=-1)
    return np.asarray((twice - k * (k + 1)) / (2 * pairs))


def auc_standard_error(
    value: ArrayLike, members: ArrayLike, nonmembers: ArrayLike
) -> NDArray[np.float64]:
    """Return the standard error of an AUC from its value and the two counts.

    Hanley and McNeil's form: it needs no second look at the scores and works for one
    member too; it is 0 at an AUC of 0 or 1, where it says nothing.

    Args:
        value: AUC, in [0, 1], shape ``(...,)``.
        members: Number of members, at least 1, broadcast with ``value``.
        nonmembers: Number of non-members, likewise.

    Returns:
        Standard errors, shape ``(...,)``.

    Raises:
        InvalidArgumentError: If a value is outside [0, 1] or a count below 1.

    References:
        Hanley and McNeil (1982), The meaning and use of the area under a receiver
        operating characteristic (ROC) curve.
    """
    a = np.asarray(value, dtype=np.float64)
    m, n = (np.asarray(x, dtype=np.float64) for x in (members, nonmembers))
    if not (((a >= 0) & (a <= 1)).all() and (m >= 1).all() and (n >= 1).all()):
        raise InvalidArgumentError(
            "value: must be in [0, 1] with counts of at least 1, got "
            f"{_validate.show(value)}, {_validate.show(members)}, "
            f"{_validate.show(nonmembers)}"
        )
    above_two = a / (2 - a)  # two members both above one non-member
    below_two = 2 * a * a / (1 + a)  # one member above two non-members
    variance = a * (1 - a) + (m - 1) * (above_two - a * a)
    variance += (n - 1) * (below_two - a * a)
    return np.asarray(np.sqrt(np.maximum(variance, 0) / (m * n)))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided confidence interval of a proportion.

    Args:
        k: Successes, 0 .. n.
        n: Trials, at least 1.
        level: Confidence, in (0, 1).

    Returns:
        Lower and upper end; each side errs with at most half of ``1 - level``.

    References:
        Clopper and Pearson (1934), The use of confidence or fiducial limits
        illustrated in the case of the binomial.

    Example:
        >>> low, high = clopper_pearson(95, 100)
        >>> round(low, 10), round(high, 10)
        (0.8871650889, 0.9835681208)
    """
    _validate.number(above=0, below=1, level=level)
    tail = (1 - level) / 2
    upper = clopper_pearson_upper(k, n, tail)
    return 1 - clopper_pearson_upper(n - k, n, tail), upper


def clopper_pearson_upper(k: int, n: int, tail: float) -> float:
    """Return the exact one-sided upper limit of a proportion.

    Args:
        k: Successes, 0 .. n.
        n: Trials, at least 1.
        tail: Chance, in (0, 1), that the limit lies below the true proportion.

    Returns:
        The limit; 1 when every trial succeeded.
    """
    from scipy.special import betainccinv

    _validate.integer(at_least=1, n=n)
    _validate.integer(at_least=0, at_most=n, k=k)
    _validate.number(above=0, below=1, tail=tail)
    return 1.0 if k == n else float(betainccinv(k + 1, n - k, tail))


def round_up(value: float, digits: int = 6) -> float:
    """Return a number rounded up to some significant digits, for printing bounds.

    Args:
        value: Any float; infinities and NaN come back as they are.
        digits: Significant decimal digits to keep.

    Returns:
        The nearest such number that is not below ``value`` as Python prints it.

    Example:
        >>> round_up(0.43441638), round_up(1e-5)
        (0.434417, 1e-05)
    """
    rounded = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(value))
    return float(Decimal(rounded))


def _twice_average_ranks(ordered: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return twice the tie-averaged ranks (from 1) of rows sorted along the last axis.

    Equal values share the mean of the first and the last place of their run.
    """
    size = ordered.shape[-1]
    places = np.broadcast_to(np.arange(size), ordered.shape)
    starts = np.ones(ordered.shape, dtype=bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.ones(ordered.shape, dtype=bool)
    ends[..., :-1] = starts[..., 1:]
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=-1)
    last = np.where(ends, places, size)[..., ::-1]
    last = np.minimum.accumulate(last, axis=-1)[..., ::-1]
    return np.asarray(first + last + 2, dtype=np.int64)
