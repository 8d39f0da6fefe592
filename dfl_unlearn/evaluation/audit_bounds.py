r"""What counts of right and wrong guesses prove about epsilon.

An audit plays a game: told only what a scope names, guess whether a release comes from
the world where the data were unlearned or from the reference world that never had
them. An :math:`(\varepsilon,\delta)` guarantee bounds how often any guesser can be
right, so too many right guesses prove that epsilon is larger. Every number here is a
*lower* bound at a stated confidence: it can refute a claim and never prove one.

References:
    Kairouz, Oh and Viswanath (2015), The composition theorem for differential privacy
    (error rates of a guesser).
    Clopper and Pearson (1934), The use of confidence or fiducial limits illustrated in
    the case of the binomial.
    Steinke, Nasr and Jagielski (2023), Privacy auditing with one (1) training run,
    the bound for delta above 0 [paper].
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn._stats import clopper_pearson_upper
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    NumericalError,
)

_WIDTH = 1e-10
_SLACK = 1e-12  # more than the quantiles and logarithms err: a bound rounds down


def epsilon_lower_bound(
    false_positives: int,
    negatives: int,
    false_negatives: int,
    positives: int,
    delta: float,
    gamma: float,
) -> float:
    r"""Return the epsilon that the errors of a fixed test prove, at least.

    .. math:: \max\Bigl(0,\;
        \ln\frac{1-\delta-\mathrm{FNR}}{\mathrm{FPR}},\;
        \ln\frac{1-\delta-\mathrm{FPR}}{\mathrm{FNR}}\Bigr)

    with the exact upper confidence limits of both rates, each at ``gamma / 2``. The
    test must not depend on these replicas: statistic and threshold come from others.

    Args:
        false_positives: Reference replicas called "unlearned", 0 .. negatives.
        negatives: Reference replicas, at least 1.
        false_negatives: Unlearned replicas called "reference", 0 .. positives.
        positives: Unlearned replicas, at least 1.
        delta: The claim's delta, in [0, 1).
        gamma: Chance in (0, 1) that the bound is above the true epsilon. With k tests
            on the same replicas pass ``gamma / k`` and keep the largest bound.

    Returns:
        At least 0; holds with confidence ``1 - gamma``.

    Example:
        >>> round(epsilon_lower_bound(10, 1000, 400, 1000, 1e-5, 0.05), 8)
        3.43602474
    """
    _check_levels(delta, gamma)
    wrong = clopper_pearson_upper(false_positives, negatives, gamma / 2)
    missed = clopper_pearson_upper(false_negatives, positives, gamma / 2)
    return float(_from_rates(np.float64(wrong), np.float64(missed), delta))


def audit_ceiling(negatives: int, positives: int, delta: float, gamma: float) -> float:
    """Return the bound of a guesser without errors: no audit this size proves more.

    A claim at or above it cannot be contradicted by these replicas.

    Args:
        negatives: Reference replicas, at least 1.
        positives: Unlearned replicas, at least 1.
        delta: In [0, 1).
        gamma: In (0, 1).

    Returns:
        At least 0.

    Example:
        >>> round(audit_ceiling(1000, 1000, 1e-5, 0.05), 4)
        5.6006
    """
    return epsilon_lower_bound(0, negatives, 0, positives, delta, gamma)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A rule that calls a release "unlearned" by its score.

    Attributes:
        value: The threshold, in the score's units.
        above: Whether scores above it are called "unlearned"; else those at or below.
    """

    value: float
    above: bool

    def errors(
        self, scores_reference: ArrayLike, scores_unlearned: ArrayLike
    ) -> tuple[int, int]:
        """Return how often the rule errs: false positives and false negatives.

        Args:
            scores_reference: Shape ``(K,)``.
            scores_unlearned: Shape ``(L,)``.

        Returns:
            Reference replicas called "unlearned", and unlearned ones called
            "reference".
        """
        reference, unlearned = _scores(scores_reference, scores_unlearned)
        over_reference = int((reference > self.value).sum())
        over_unlearned = int((unlearned > self.value).sum())
        if self.above:
            return over_reference, len(unlearned) - over_unlearned
        return len(reference) - over_reference, over_unlearned


def best_threshold(
    scores_reference: ArrayLike, scores_unlearned: ArrayLike, delta: float, gamma: float
) -> Threshold:
    """Return the rule with the largest bound on these scores, in both directions.

    Choosing makes the bound on the *same* scores invalid: count errors on others.
    Where several rules are equal, also where all bounds are 0, the smallest sum of the
    two error rates decides, then the smallest value.

    Args:
        scores_reference: Scores of the reference world, shape ``(K,)``.
        scores_unlearned: Scores of the unlearned world, shape ``(L,)``.
        delta: In [0, 1).
        gamma: In (0, 1), as for the bound that follows.

    Returns:
        The rule; its value lies between two neighbouring scores.

    Raises:
        NumericalError: If a score is NaN.
    """
    from scipy.special import betainccinv

    _check_levels(delta, gamma)
    reference, unlearned = _scores(scores_reference, scores_unlearned)
    steps = np.unique(np.concatenate([reference, unlearned]))
    k, n = len(reference), len(unlearned)
    over_reference = k - np.searchsorted(np.sort(reference), steps, side="right")
    over_unlearned = n - np.searchsorted(np.sort(unlearned), steps, side="right")
    limits = []
    for size in (k, n):
        counts = np.arange(size)
        upper = betainccinv(counts + 1, size - counts, gamma / 2)
        limits.append(np.append(upper, 1.0))
    wrong = np.stack([over_reference, k - over_reference])
    missed = np.stack([n - over_unlearned, over_unlearned])
    bounds = _from_rates(limits[0][wrong], limits[1][missed], delta)
    rates = wrong / k + missed / n
    place = int(np.lexsort((rates.ravel(), -bounds.ravel()))[0])
    direction, step = divmod(place, len(steps))
    return Threshold(value=_between(steps, step), above=direction == 0)


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    r"""Return how likely so many right guesses are, at most, if the claim holds.

    With :math:`f(v) = P[\mathrm{Bin}(r, e^{\varepsilon}/(1+e^{\varepsilon})) \ge v]` it
    is :math:`f(v) + 2 m \delta \max_{1\le i\le v} (f(v-i)-f(v))/i`, at most 1: delta
    is paid for all m canaries, also those that nobody guessed.

    Args:
        canaries: Records m that were each included by a fair coin of its own.
        guesses: How many r of them were guessed, 1 .. canaries.
        correct: How many v of the guesses are right, 0 .. guesses.
        epsilon: Of one record's inclusion, at least 0.
        delta: In [0, 1).

    Returns:
        In [0, 1].

    Example:
        >>> round(one_run_p_value(1000, 200, 150, 1.0, 0.0), 9)
        0.30318773
    """
    _check_guesses(canaries, guesses, correct)
    _validate.number(error=InvalidPrivacyParameterError, at_least=0, epsilon=epsilon)
    _check_delta(delta)
    tails = _tails(guesses, correct, epsilon)
    value = float(tails[-1])
    if delta > 0 and correct > 0:
        steps = np.arange(1, correct + 1)
        value += 2 * canaries * delta * float(((tails[-2::-1] - value) / steps).max())
    return min(1.0, value)


def one_run_epsilon(
    canaries: int, guesses: int, correct: int, delta: float, gamma: float
) -> float:
    """Return the epsilon of one record's inclusion that one run proves, at least.

    A certificate about a whole forgotten set implies ``per_bit_claim`` of it for one
    record: compare with that pair, at its delta.

    Args:
        canaries: Records m that were each included by a fair coin of its own.
        guesses: How many of them were guessed, 1 .. canaries.
        correct: How many guesses are right, 0 .. guesses.
        delta: In [0, 1).
        gamma: Chance in (0, 1) that the bound is above the true epsilon.

    Returns:
        At least 0: every smaller epsilon has a p-value of at most ``gamma``, to
        within 1e-10.

    Example:
        >>> round(one_run_epsilon(1000, 100, 100, 1e-5, 0.05), 8)
        3.46537635
    """
    _check_guesses(canaries, guesses, correct)
    _check_levels(delta, gamma)

    def rejected(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) <= gamma

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    while high - low > _WIDTH:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def per_bit_claim(epsilon: float, delta: float) -> tuple[float, float]:
    r"""Return what a claim about a whole forgotten set says about one record of it.

    A certificate compares the release with that of *no* forgotten record at all. Two
    inclusion vectors that differ in one bit are both close to that third world, hence
    within :math:`(2\varepsilon, (1+e^{\varepsilon})\delta)` of each other [derived].

    Args:
        epsilon: At least 0.
        delta: In [0, 1).

    Returns:
        The pair, rounded up; a delta of 1 says nothing.

    Example:
        >>> epsilon, delta = per_bit_claim(1.0, 1e-5)
        >>> epsilon, round(delta, 14)
        (2.0, 3.718281828e-05)
    """
    _validate.number(error=InvalidPrivacyParameterError, at_least=0, epsilon=epsilon)
    _check_delta(delta)
    if delta == 0:
        return 2 * epsilon, 0.0
    if epsilon > -math.log(delta):
        return 2 * epsilon, 1.0
    return 2 * epsilon, min(1.0, (1 + math.exp(epsilon)) * delta * (1 + 2.0**-50))


def _from_rates(
    wrong: NDArray[np.float64] | np.float64,
    missed: NDArray[np.float64] | np.float64,
    delta: float,
) -> NDArray[np.float64]:
    """Return the bound from upper limits of both error rates, which are above 0."""
    floor = np.finfo(np.float64).tiny  # a useless side gives a huge negative logarithm
    first = np.log(np.maximum(1 - delta - missed, floor) / wrong)
    second = np.log(np.maximum(1 - delta - wrong, floor) / missed)
    return np.asarray(np.maximum(np.maximum(first, second) - _SLACK, 0.0))


def _tails(guesses: int, correct: int, epsilon: float) -> NDArray[np.float64]:
    """Return P[at least i right guesses] for i = 0 .. correct."""
    from scipy.special import betainc

    right = 1 / (1 + math.exp(-epsilon))
    counts = np.arange(1, correct + 1)
    tails = betainc(counts, guesses - counts + 1, right)
    return np.append(1.0, np.asarray(tails, dtype=np.float64))


def _between(steps: NDArray[np.float64], index: int) -> float:
    """Return a number from ``steps[index]`` up to, but below, the next step."""
    low = float(steps[index])
    if index + 1 == len(steps):
        return low
    high = float(steps[index + 1])
    middle = low + (high - low) / 2
    return middle if low <= middle < high else low


def _scores(
    scores_reference: ArrayLike, scores_unlearned: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = []
    for name, given in (
        ("scores_reference", scores_reference),
        ("scores_unlearned", scores_unlearned),
    ):
        scores = np.asarray(given, dtype=np.float64)
        if scores.ndim != 1 or not scores.size:
            raise InvalidArgumentError(
                f"{name}: must be one row of at least one score, got shape "
                f"{scores.shape}"
            )
        if np.isnan(scores).any():
            raise NumericalError(
                f"{name}: must not be NaN, got {int(np.isnan(scores).sum())} NaN; "
                "check the statistic"
            )
        found.append(scores)
    return found[0], found[1]


def _check_guesses(canaries: int, guesses: int, correct: int) -> None:
    _validate.integer(at_least=1, canaries=canaries)
    _validate.integer(at_least=1, at_most=canaries, guesses=guesses)
    _validate.integer(at_least=0, at_most=guesses, correct=correct)


def _check_levels(delta: float, gamma: float) -> None:
    _check_delta(delta)
    _validate.number(above=0, below=1, gamma=gamma)


def _check_delta(delta: float) -> None:
    _validate.number(
        error=InvalidPrivacyParameterError, at_least=0, below=1, delta=delta
    )
