import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.sampled_gaussian import (
    adaptive_rdp,
    directions,
    exact_rdp,
    random_cases,
)

from dfl_unlearn.accounting import sampled
from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, RdpCurve, rdp_gaussian
from dfl_unlearn.accounting.sampled import rdp_sampled_gaussian
from dfl_unlearn.errors import InvalidArgumentError, InvalidPrivacyParameterError

INTEGERS = tuple(order for order in DEFAULT_ORDERS if order == int(order))

rates = st.floats(1e-8, 0.999)
multipliers = st.floats(0.3, 200)


def one(rate, noise, order):
    (value,) = rdp_sampled_gaussian([order], rate, noise)
    return value


def epsilon(rate, noise, times, delta, orders=DEFAULT_ORDERS):
    curve = RdpCurve(
        orders=orders,
        values=rdp_sampled_gaussian(orders, rate, noise),
        adjacency="add_remove",
    )
    return (times * curve).to_epsilon(delta)


@pytest.mark.parametrize(
    ("rate", "noise", "order", "digits"),
    [
        (0.01, 1, 8, "8.936439076e-4"),
        (0.1, 1, 2, "1.70368632e-2"),
        (0.05, 2, 16, "7.347314103e-3"),
        (0.01, 4, 32, "1.0526360659e-4"),
        (0.01, 1, 2.5, "2.1757533e-4"),
        (0.1, 1, 3.7, "4.83316244e-2"),
    ],
)
def test_values_meet_the_oracle_to_its_last_digit(rate, noise, order, digits):
    ours = one(rate, noise, order)
    mantissa, power = digits.split("e")
    unit = 10.0 ** (int(power) - len(mantissa) + 2)
    assert ours / (1 + 1e-8) == pytest.approx(float(digits), abs=0.5001 * unit, rel=0)
    assert ours >= float(digits) - unit / 2


@pytest.mark.parametrize(
    ("rate", "noise", "order", "value"),
    [
        (0.01, 1, 2, 1.7181342207455e-4),
        (0.01, 1, 32, 11.246275937048),
        (0.1, 2, 8, 0.01372543010322),
        (0.5, 1, 4, 1.1507097873087),
        (1e-6, 5, 10, 2.0405393848895e-13),
        (1, 3, 7.5, 0.41666666666667),
        (0.2, 0.7, 3, 0.83222259642019),
        (0.4, 12, 59, 0.036373346794959),
        (0.001, 50, 2, 4.000800105877e-10),
        (0.04, 1.5, 3.9, 0.00183320219958),
        (0.4, 12, 58.75, 0.0362021491812),
        (0.5, 30, 45.5, 0.00639941994239),
        (0.3, 20, 84.5, 0.00995233987542),
        (1e-5, 50, 1.1, 2.20044005075e-14),
        (0.05, 0.6, 1.2, 0.013175127606),
        (0.5, 3, 1.5, 0.021413356320632),
        (0.001, 0.7, 1.5, 4.9740550941e-6),
        (1e-4, 0.4, 2.3, 7.9626524289e-6),
        (0.9, 2, 2.5, 0.26135314073747),
    ],
)
def test_rdp_oracles_of_single_values(rate, noise, order, value):
    ours = one(rate, noise, order)
    assert value * (1 - 1e-11) <= ours <= value * (1 + 2e-8)  # 1e-11: digits printed


@pytest.mark.parametrize(
    ("rate", "noise", "times", "delta", "full", "order", "whole"),
    [
        (1, 1, 1, 1e-5, 4.7285070672, 5.4, 4.7527283368),
        (1, 5, 1, 1e-5, 0.7945220325, 22, 0.7945220325),
        (1, 2, 10, 1e-5, 8.0794062224, 3.9, 8.0878616288),
        (0.01, 1, 1000, 1e-5, 2.1013652717, 7.8, 2.1077530755),
        (0.01, 0.8, 10000, 1e-5, 10.9353734446, 3, None),
        (0.001, 1.1, 10000, 1e-6, 0.7856438504, 16, None),
        (0.04, 1.5, 2250, 1e-5, 7.3291111715, 3.9, 7.3298767738),
        (0.1, 4, 200, 1e-5, 1.5568078922, 12, None),
        (0.5, 3, 20, 1e-4, 3.2341849675, 5.5, 3.2588529931),
        (0.2, 3, 50, 1e-5, 2.2671494340, 8.6, 2.2711893850),
        (0.05, 0.6, 100, 1e-5, 13.2897280239, 2.2, 13.828084398),
        (0.02, 20, 100, 1e-5, 0.0311537250, 320, None),
        (1 / 64, 0.5, 40, 1e-5, 8.2207657979, 2.5, 10.6466555238),
        (0.4, 12, 30, 1e-6, 0.8353612815, 25, None),
        (1e-5, 2, 100000, 1e-7, 0.1360926912, 80, None),
        (0.99, 2, 5, 1e-5, 5.3381442351, 5, None),
        (0.01, 1.1, 1000, 1e-5, 1.7117700912, None, 1.7252908180),
        (0.02, 1, 500, 1e-5, 3.1442564752, None, None),
    ],
)
def test_rdp_oracles(rate, noise, times, delta, full, order, whole):
    result = epsilon(rate, noise, times, delta)
    assert full - 1e-9 <= result.epsilon <= full * (1 + 1e-7)
    assert order is None or result.order == order
    if whole is not None:
        integers = epsilon(rate, noise, times, delta, INTEGERS).epsilon
        assert whole - 1e-9 <= integers <= whole * (1 + 1e-7)


def test_rdp_oracles_of_a_mixed_sequence():
    full = 3 * rdp_gaussian(DEFAULT_ORDERS, 5.0)
    values = full + 50 * rdp_sampled_gaussian(DEFAULT_ORDERS, 0.1, 2.0)
    curve = RdpCurve(orders=DEFAULT_ORDERS, values=values, adjacency="add_remove")
    result = curve.to_epsilon(1e-5)
    assert 2.3770778758 - 1e-9 <= result.epsilon <= 2.3770778758 * (1 + 1e-7)
    assert result.order == 8.3


def never_below(count, seed):
    pytest.importorskip("mpmath")
    for rate, noise, order in random_cases(count, seed):
        exact, ours = exact_rdp(rate, noise, order), one(rate, noise, order)
        assert exact <= ours <= exact * (1 + 2e-8) + 1e-300, (rate, noise, order)


def test_rdp_never_below_exact():
    never_below(count=40, seed=1)


@pytest.mark.slow
def test_rdp_never_below_exact_in_five_hundred_cases():
    never_below(count=500, seed=2)


@pytest.mark.parametrize(
    ("rate", "noise", "order"), [(0.01, 1.0, 2.5), (0.3, 0.5, 7.3), (1e-6, 20.0, 1.1)]
)
def test_the_many_digits_do_not_depend_on_the_rule(rate, noise, order):
    mpmath = pytest.importorskip("mpmath")
    exact, other = exact_rdp(rate, noise, order), adaptive_rdp(rate, noise, order)
    with mpmath.workdps(40):
        assert abs(exact / other - 1) < mpmath.mpf("1e-25")


@pytest.mark.parametrize(
    ("rate", "noise", "order"),
    [
        (0.04, 0.066, 1.0002),  # r^a and a r are of the same size where it matters
        (0.56, 0.0865, 1.0054),
        (1.9e-6, 0.0974, 1.02),
        (4e-8, 0.11, 1.0009),
        (0.3, 0.06, 3.5),
        (1e-8, 200.0, 1.1),
    ],
)
def test_sharp_and_flat_cases_are_as_tight(rate, noise, order):
    pytest.importorskip("mpmath")
    exact = exact_rdp(rate, noise, order)
    assert exact <= one(rate, noise, order) <= exact * (1 + 2e-8)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.7, 2.0])
@pytest.mark.parametrize("order", [1.3, 2.0, 4.5, 8.0])
def test_both_directions_are_covered(rate, noise, order):
    there, back = directions(rate, noise, order)
    ours = one(rate, noise, order)
    np.testing.assert_allclose(ours, there, rtol=1e-6, atol=1e-12)
    assert back <= ours * (1 + 1e-6)


@settings(max_examples=12, deadline=None)
@given(rate=rates, noise=multipliers, more=st.floats(1, 3))
def test_rdp_shape(rate, noise, more):
    orders = np.array(DEFAULT_ORDERS)
    values = rdp_sampled_gaussian(orders, rate, noise)
    assert (values > 0).all()
    assert (np.diff(values) >= 0).all()
    slopes = np.diff((orders - 1) * values) / np.diff(orders)
    # Convex up to the jumps of the safety factor and of the integrals' last digits.
    assert (np.diff(slopes) >= -1e-6 * slopes[1:]).all()
    assert (values <= rdp_gaussian(orders, noise)).all()
    quieter = rdp_sampled_gaussian(orders, rate, noise * more)
    assert (quieter <= values * (1 + 2e-8)).all()
    rarer = rdp_sampled_gaussian(orders, rate / more, noise)
    assert (rarer <= values * (1 + 2e-8)).all()


def test_ends_of_the_ranges():
    orders = [1.5, 2.0, 100.0]
    assert not rdp_sampled_gaussian(orders, 0.0, 1.0).any()
    assert not rdp_sampled_gaussian(orders, 0.0, 0.0).any()
    assert not rdp_sampled_gaussian(orders, 0.5, math.inf).any()
    assert np.isinf(rdp_sampled_gaussian(orders, 0.5, 0.0)).all()
    full = rdp_sampled_gaussian(orders, 1.0, 3.0)
    np.testing.assert_array_equal(full, rdp_gaussian(orders, 3.0))
    np.testing.assert_array_equal(
        rdp_sampled_gaussian([3.0, 2.0, 2.5], 0.1, 1.0),
        rdp_sampled_gaussian([2.0, 2.5, 3.0], 0.1, 1.0)[[2, 0, 1]],
    )
    assert one(0.1, 1.0, 1 + 1e-9) >= one(0.1, 1.0, 1.0001) * (1 - 1e-12)


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.05])
@pytest.mark.parametrize("order", [1.5, 3.25, 20.5])
def test_sharp_integrals_stay_between_their_neighbours(noise, order):
    value = one(0.1, noise, order)
    assert one(0.1, noise, math.floor(order)) <= value if order > 2 else value > 0
    assert value <= one(0.1, noise, math.ceil(order))
    # Without noise to speak of, ln A is a ln q + a (a - 1) / (2 nu^2).
    assert value <= rdp_gaussian([order], noise)[0]
    limit = (order * math.log(0.1) + order * (order - 1) / 2 / noise**2) / (order - 1)
    assert value >= limit


@pytest.mark.parametrize("broken", [math.nan, -1.0, 0.0, 1e-9, 1e9])
def test_an_integral_that_went_wrong_gives_the_chord(broken, monkeypatch):
    exact = one(0.1, 1.0, 3.7)
    sampled._values.cache_clear()
    monkeypatch.setattr(sampled, "_log_moment_fractional", lambda *_: broken)
    chord = one(0.1, 1.0, 3.7)
    sampled._values.cache_clear()
    low, high = one(0.1, 1.0, 3), one(0.1, 1.0, 4)
    assert exact <= chord <= high
    assert chord == pytest.approx((0.3 * 2 * low + 0.7 * 3 * high) / 2.7, rel=1e-7)


def test_arguments_out_of_range_are_named():
    with pytest.raises(InvalidPrivacyParameterError, match=r"rate: .* got 1\.5"):
        rdp_sampled_gaussian([2.0], 1.5, 1.0)
    with pytest.raises(InvalidPrivacyParameterError, match=r"rate: .* got nan"):
        rdp_sampled_gaussian([2.0], math.nan, 1.0)
    for noise in (-1.0, math.nan):
        with pytest.raises(InvalidPrivacyParameterError, match="noise_multiplier: "):
            rdp_sampled_gaussian([2.0], 0.1, noise)
    for order in (1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgumentError, match="orders: must be"):
            rdp_sampled_gaussian([2.0, order], 0.1, 1.0)
