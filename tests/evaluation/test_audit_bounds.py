import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dfl_unlearn.accounting.gaussian import gaussian_epsilon
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    NumericalError,
)
from dfl_unlearn.evaluation.audit_bounds import (
    audit_ceiling,
    best_threshold,
    epsilon_lower_bound,
    one_run_epsilon,
    one_run_p_value,
    per_bit_claim,
)


@pytest.mark.parametrize(
    ("counts", "delta", "gamma", "expected"),
    [
        ((0, 1000, 0, 1000), 1e-5, 0.05, 5.60057749),
        ((10, 1000, 400, 1000), 1e-5, 0.05, 3.43602474),
        ((3, 500, 250, 500), 1e-5, 0.05, 3.26249927),
        ((50, 100, 50, 100), 0, 0.05, 0),
        ((0, 200, 150, 200), 1e-5, 0.01, 1.90362516),
        ((25, 2000, 1200, 2000), 1e-6, 0.05, 3.02383931),
        ((500, 500, 0, 500), 1e-5, 0.05, 0),
        ((400, 1000, 100, 1000), 1e-5, 0.05, 1.55376087),
        # Shift over noise 3, what a missing correction looks like: roots of the
        # binomial tails in 60-digit arithmetic (the text's 4.6928408394 is 4e-7 off).
        ((3, 2000, 1000, 2000), 1e-5, 0.05, 4.6928404194),
    ],
)
def test_audit_oracles(counts, delta, gamma, expected):
    assert epsilon_lower_bound(*counts, delta, gamma) == pytest.approx(
        expected, abs=1e-7
    )


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (50, 2.5696),
        (100, 3.2813),
        (200, 3.9837),
        (500, 4.9056),
        (1000, 5.6006),
        (2000, 6.2946),
        (5000, 7.2115),
        (10000, 7.9048),
    ],
)
def test_audit_ceilings_are_the_oracles(n, expected):
    assert audit_ceiling(n, n, 1e-5, 0.05) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("guesses", "delta", "gamma", "expected"),
    [
        ((1000, 100, 100), 0, 0.05, 3.49296543),
        ((1000, 100, 100), 1e-5, 0.05, 3.46537635),
        ((1000, 200, 150), 0, 0.05, 0.82139624),
        ((1000, 200, 150), 1e-5, 0.05, 0.81997291),
        ((1000, 1000, 550), 0, 0.05, 0.09422369),
        ((5000, 500, 500), 1e-5, 0.05, 4.97775757),
        ((100, 20, 20), 0, 0.05, 1.82271561),
        ((1000, 100, 55), 0, 0.05, 0),
        ((1000, 100, 95), 1e-6, 0.01, 1.93613417),
        ((2000, 400, 380), 1e-5, 0.05, 2.55415014),
        ((100, 100, 75), 0, 0.05, 0.7022139309),
        ((1000, 1000, 600), 0, 0.05, 0.2974679236),
    ],
)
def test_one_run_oracles(guesses, delta, gamma, expected):
    assert one_run_epsilon(*guesses, delta, gamma) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("guesses", "delta", "expected"),
    [
        ((1000, 100, 95), 0, 1.460470075e-8),
        ((1000, 100, 95), 1e-5, 6.639144684e-4),
        ((1000, 200, 150), 0, 0.3031877298),
        ((1000, 200, 150), 1e-5, 0.3044225124),
    ],
)
def test_one_run_p_values_are_the_oracles(guesses, delta, expected):
    assert one_run_p_value(*guesses, 1.0, delta) == pytest.approx(expected, rel=1e-9)


@given(
    guesses=st.integers(1, 60),
    data=st.data(),
    epsilon=st.floats(0, 5),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_one_run_p_value_is_its_formula(guesses, data, epsilon, delta):
    correct = data.draw(st.integers(0, guesses))
    canaries = guesses + data.draw(st.integers(0, 100))
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    def tail(v):
        return float(stats.binom.sf(v - 1, guesses, right))

    steps = [(tail(correct - i) - tail(correct)) / i for i in range(1, correct + 1)]
    expected = tail(correct) + 2 * canaries * delta * max(steps, default=0)
    value = one_run_p_value(canaries, guesses, correct, epsilon, delta)
    assert value == pytest.approx(min(1, expected), rel=1e-9, abs=1e-14)


@given(
    guesses=st.integers(1, 300),
    data=st.data(),
    delta=st.sampled_from([0.0, 1e-6, 1e-4]),
    gamma=st.sampled_from([1e-3, 0.05]),
)
def test_one_run_bound_is_where_the_p_value_first_passes_gamma(
    guesses, data, delta, gamma
):
    # Valid only if no smaller epsilon has a larger p-value: it rises up to there.
    correct = data.draw(st.integers(0, guesses))
    bound = one_run_epsilon(400, guesses, correct, delta, gamma)
    grid = np.linspace(0, bound, 50)
    values = [one_run_p_value(400, guesses, correct, e, delta) for e in grid]
    assert (np.diff(values) >= -1e-12).all()
    if bound > 0:
        assert max(values) <= gamma
    assert one_run_p_value(400, guesses, correct, bound + 1e-9, delta) > gamma


def test_a_claim_about_the_set_says_less_about_one_record():
    assert per_bit_claim(1, 1e-5) == pytest.approx((2, 3.7182818285e-5), rel=1e-10)
    assert per_bit_claim(0.5, 1e-6) == pytest.approx((1, 2.6487212707e-6), rel=1e-10)
    assert per_bit_claim(3, 0) == (6, 0)
    assert per_bit_claim(1e4, 1e-5) == (2e4, 1)
    assert per_bit_claim(1, 1e-5)[1] >= (1 + math.e) * 1e-5


@given(
    n=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    data=st.data(),
    delta=st.floats(0, 0.5),
    gamma=st.floats(1e-6, 0.5),
)
def test_no_bound_is_above_the_ceiling_and_more_errors_prove_less(
    n, data, delta, gamma
):
    wrong = data.draw(st.integers(0, n[0]))
    missed = data.draw(st.integers(0, n[1] // 2))
    bound = epsilon_lower_bound(wrong, n[0], missed, n[1], delta, gamma)
    assert 0 <= bound <= audit_ceiling(*n, delta, gamma)
    # The other direction of the same guesser, worlds and answers exchanged.
    mirrored = epsilon_lower_bound(missed, n[1], wrong, n[0], delta, gamma)
    assert mirrored == pytest.approx(bound, abs=1e-12)
    assert bound >= epsilon_lower_bound(wrong, n[0], missed, n[1], delta, gamma / 2)


def brute_force_threshold(reference, unlearned, delta, gamma):
    best = -1.0
    for value in sorted({*reference, *unlearned}):
        for above in (True, False):
            wrong = sum((x > value) == above for x in reference)
            missed = sum((x > value) != above for x in unlearned)
            bound = epsilon_lower_bound(
                wrong, len(reference), missed, len(unlearned), delta, gamma
            )
            best = max(best, bound)
    return best


@given(
    reference=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    unlearned=st.lists(st.integers(0, 9), min_size=1, max_size=30),
)
def test_best_threshold_is_the_best_of_all(reference, unlearned):
    rule = best_threshold(reference, unlearned, 1e-5, 0.3)
    wrong, missed = rule.errors(reference, unlearned)
    bound = epsilon_lower_bound(
        wrong, len(reference), missed, len(unlearned), 1e-5, 0.3
    )
    assert bound == pytest.approx(
        brute_force_threshold(reference, unlearned, 1e-5, 0.3), abs=1e-12
    )


def test_the_direction_of_the_score_is_found():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=50), rng.normal(size=60) + 9
    up = best_threshold(low, high, 1e-5, 0.05)
    down = best_threshold(high, low, 1e-5, 0.05)
    assert (up.above, down.above) == (True, False)
    assert up.errors(low, high) == down.errors(high, low) == (0, 0)
    assert low.max() < up.value < high.min()


def test_without_any_evidence_the_threshold_still_separates_best():
    # Ten replicas prove nothing at this level, but the rule must not be arbitrary.
    rule = best_threshold([0.0] * 5, [1.0] * 4 + [0.0], 1e-5, 1e-6)
    assert rule.errors([0.0] * 5, [1.0] * 4 + [0.0]) == (0, 1)


def test_infinite_scores_have_a_place():
    rule = best_threshold([-math.inf, 0.0], [math.inf, math.inf], 1e-5, 0.05)
    assert rule.errors([-math.inf, 0.0], [math.inf, math.inf]) == (0, 0)


def test_what_cannot_be_a_count_or_a_level_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"k: must be .* <= 5, got 6"):
        epsilon_lower_bound(6, 5, 0, 5, 1e-5, 0.05)
    with pytest.raises(InvalidPrivacyParameterError, match=r"delta: .* got 1"):
        epsilon_lower_bound(0, 5, 0, 5, 1, 0.05)
    with pytest.raises(InvalidArgumentError, match=r"gamma: .* got 0"):
        audit_ceiling(5, 5, 0, 0)
    with pytest.raises(InvalidArgumentError, match=r"guesses: .* got 11"):
        one_run_epsilon(10, 11, 3, 0, 0.05)
    with pytest.raises(InvalidArgumentError, match=r"correct: .* got 5"):
        one_run_p_value(10, 4, 5, 1, 0)
    with pytest.raises(InvalidPrivacyParameterError, match=r"epsilon: .* got -1"):
        per_bit_claim(-1, 0)
    with pytest.raises(NumericalError, match=r"scores_unlearned: .* got 1 NaN"):
        best_threshold([0.0], [math.nan], 0, 0.05)
    with pytest.raises(InvalidArgumentError, match=r"scores_reference: .* \(0,\)"):
        best_threshold([], [1.0], 0, 0.05)


@pytest.mark.statistical
@pytest.mark.parametrize(("half", "expected"), [(250, 0.81), (1000, 1.40)])
def test_audit_coverage(half, expected):
    # A known Gaussian, mu = 1: 300 audits, whose mean has a standard error of about
    # 0.03; the bound may be above the truth in 5 % and is not in 1 %.
    rng = np.random.default_rng(5)
    truth = gaussian_epsilon(1.0, 1e-5)
    bounds = []
    for _ in range(300):
        reference, unlearned = rng.normal([[0], [1]], size=(2, 2 * half))
        rule = best_threshold(reference[:half], unlearned[:half], 1e-5, 0.05)
        wrong, missed = rule.errors(reference[half:], unlearned[half:])
        bounds.append(epsilon_lower_bound(wrong, half, missed, half, 1e-5, 0.05))
    assert truth == pytest.approx(4.3771780958)
    assert np.mean(bounds) == pytest.approx(expected, abs=0.1)
    assert np.mean(np.array(bounds) > truth) <= 0.01


@pytest.mark.statistical
def test_choosing_and_counting_on_the_same_scores_overstates():
    # Why the halves are apart. Equal worlds, 40 replicas each, level 1/2: fixed rules
    # err in at most half of all audits, the best rule on the same scores in most.
    rng = np.random.default_rng(6)
    same, apart = [], []
    for _ in range(400):
        reference, unlearned = rng.normal(size=(2, 80))
        rule = best_threshold(reference[:40], unlearned[:40], 0, 0.5)
        for found, rows in ((same, slice(40)), (apart, slice(40, None))):
            wrong, missed = rule.errors(reference[rows], unlearned[rows])
            found.append(epsilon_lower_bound(wrong, 40, missed, 40, 0, 0.5) > 0)
    assert np.mean(apart) < 0.5 < np.mean(same)
