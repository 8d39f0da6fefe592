import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn._stats import (
    auc,
    auc_standard_error,
    clopper_pearson,
    clopper_pearson_upper,
    round_up,
)
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, NumericalError


@pytest.mark.parametrize(
    ("k", "n", "tail", "expected"),
    [
        (0, 1000, 0.025, 0.0036820839),
        (10, 1000, 0.025, 0.0183132431),
        (999, 1000, 0.025, 0.9999746825),
        (1000, 1000, 0.025, 1),
        (5, 50, 0.05, 0.1988330025),
        (0, 200, 0.025, 0.0182753404),
    ],
)
def test_clopper_pearson_upper_meets_the_oracles(k, n, tail, expected):
    assert clopper_pearson_upper(k, n, tail) == pytest.approx(expected, abs=6e-11)


def test_clopper_pearson_interval_meets_the_oracles():
    low, high = clopper_pearson(95, 100)
    assert (low, high) == pytest.approx((0.8871650889, 0.9835681208), abs=6e-11)
    low, high = clopper_pearson(0, 200)
    assert low == 0
    assert high == pytest.approx(0.0182753404, abs=6e-11)
    assert clopper_pearson(200, 200)[1] == 1


@given(n=st.integers(1, 40), data=st.data(), level=st.floats(0.5, 0.999))
def test_clopper_pearson_ends_leave_half_the_error_each(n, data, level):
    k = data.draw(st.integers(0, n))
    low, high = clopper_pearson(k, n, level)
    assert 0 <= low <= k / n <= high <= 1

    def at_most(count, p):
        return sum(
            math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count + 1)
        )

    if k < n:
        assert at_most(k, high) == pytest.approx((1 - level) / 2, rel=1e-6)
    if k > 0:
        assert 1 - at_most(k - 1, low) == pytest.approx((1 - level) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, 2), InvalidArgumentError),
        ((0, 0), InvalidArgumentError),
        ((-1, 5), InvalidArgumentError),
        ((1.5, 5), InvalidTypeError),
        ((1, 5, 1.0), InvalidArgumentError),
    ],
)
def test_impossible_counts_are_refused(arguments, error):
    with pytest.raises(error, match="must be"):
        clopper_pearson(*arguments)


def brute_force_auc(members, others):
    wins = sum((a > b) + 0.5 * (a == b) for a in members for b in others)
    return wins / (len(members) * len(others))


@given(
    peers=st.integers(1, 4),
    k=st.integers(1, 9),
    other=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_auc_counts_pairs_with_ties_as_half(peers, k, other, seed):
    rng = np.random.default_rng(seed)
    members = rng.integers(0, 5, (peers, k)).astype(float)
    others = rng.integers(0, 5, (peers, other)).astype(float)
    expected = [brute_force_auc(a, b) for a, b in zip(members, others, strict=True)]
    values = auc(members, others)
    assert values.shape == (peers,)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(auc(others, members), 1 - values, atol=1e-12)


def test_auc_of_one_row_has_no_axis_and_orders_infinities():
    value = auc([1.0, math.inf], [0.0, -math.inf])
    assert value.shape == ()
    assert value == 1.0
    assert auc([0.0] * 7, [0.0] * 5) == 0.5


def test_auc_refuses_nan_empty_and_unequal_axes():
    with pytest.raises(NumericalError, match="NaN"):
        auc([math.nan], [1.0])
    with pytest.raises(InvalidArgumentError, match=r"shapes \(0,\) and \(1,\)"):
        auc([], [1.0])
    with pytest.raises(InvalidArgumentError, match=r"\(2, 3\) and \(1, 3\)"):
        auc(np.zeros((2, 3)), np.zeros((1, 3)))


def test_auc_standard_error_is_hanley_and_mcneils():
    # Their table II: AUC 0.893 of 51 abnormal and 58 normal images has s.e. 0.032.
    assert auc_standard_error(0.893, 51, 58) == pytest.approx(0.0319, abs=1e-3)
    assert auc_standard_error(1.0, 10, 10) == 0
    assert auc_standard_error([0.5, 0.9], [1, 2], 5).shape == (2,)
    with pytest.raises(InvalidArgumentError, match=r"got 1\.2"):
        auc_standard_error(1.2, 3, 3)


@pytest.mark.statistical
def test_auc_standard_error_is_the_spread_of_equal_distributions():
    # 4000 repetitions: the sample std is within 5 % with far over 99.99 % confidence.
    rng = np.random.default_rng(3)
    values = auc(rng.normal(size=(4000, 30)), rng.normal(size=(4000, 50)))
    expected = auc_standard_error(0.5, 30, 50)
    assert values.std() == pytest.approx(expected, rel=0.05)


@given(value=st.floats(-1e6, 1e6), digits=st.integers(1, 12))
def test_rounding_up_is_never_below_and_close(value, digits):
    rounded = round_up(value, digits)
    assert rounded >= value
    assert rounded - value <= abs(value) * 10.0 ** (1 - digits) * (1 + 1e-9)


def test_rounding_up_keeps_what_is_short_and_what_is_not_finite():
    assert round_up(1e-5) == 1e-5
    assert round_up(0.43441638, 4) == 0.4345
    assert round_up(math.inf) == math.inf
