import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.divergences import gaussian_log_density, renyi_divergence

from dfl_unlearn.accounting.gaussian import gaussian_delta, gaussian_epsilon
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.pairs import group_privacy, triangle
from dfl_unlearn.accounting.rdp import (
    DEFAULT_ORDERS,
    EpsilonResult,
    RdpCurve,
    curve_of,
    rdp_gaussian,
    rdp_sampled_gaussian,
    rdp_to_delta,
    rdp_to_epsilon,
)
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    GroupPrivacyError,
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
    UnsupportedMechanismError,
)

multipliers = st.floats(0.05, 200)
deltas = st.floats(1e-12, 0.4)


def gaussians(noise_multiplier, times=1, orders=DEFAULT_ORDERS):
    mechanism = GaussianMechanism(noise_std=noise_multiplier, sensitivity=1.0)
    return times * curve_of(mechanism, orders)


def assert_upper_bound(ours, exact):
    """The rule of the accounting oracles: never more than 1e-9 below, tight above."""
    assert exact - 1e-9 <= ours <= exact * (1 + 1e-7)


def test_default_orders_are_the_documented_grid():
    assert len(DEFAULT_ORDERS) == 99 + 54 + 12
    assert DEFAULT_ORDERS[:2] == (1.1, 1.2)
    assert DEFAULT_ORDERS[98:100] == (10.9, 11.0)
    assert DEFAULT_ORDERS[-12:-10] == (80.0, 96.0)
    assert DEFAULT_ORDERS[-1] == 1024.0


@pytest.mark.parametrize(
    ("noise", "times", "delta", "epsilon", "order"),
    [
        (1, 1, 1e-5, 4.7285070672, 5.4),
        (5, 1, 1e-5, 0.7945220325, 22),
        (2, 10, 1e-5, 8.0794062224, 3.9),
        (5, 10, 1e-5, 2.8136532471, 7.9),
        (8, 1, 1e-5, 0.4775539008, 33),
        (8, 3, 1e-5, 0.8657300315, 20),
        (8, 5, 1e-5, 1.1431505950, 16),
    ],
)
def test_epsilon_of_gaussians_meets_the_oracles(noise, times, delta, epsilon, order):
    result = gaussians(noise, times).to_epsilon(delta)
    assert_upper_bound(result.epsilon, epsilon)
    assert result.order == order
    assert not result.order_at_edge


@pytest.mark.parametrize(
    ("noise", "times", "epsilon"),
    [(1, 1, 4.7527283368), (5, 1, 0.7945220325), (2, 10, 8.0878616288)],
)
def test_epsilon_on_integer_orders_meets_the_oracles(noise, times, epsilon):
    integers = [order for order in DEFAULT_ORDERS if order == int(order)]
    result = gaussians(noise, times, integers).to_epsilon(1e-5)
    assert_upper_bound(result.epsilon, epsilon)


def test_single_rdp_value_meets_the_oracle():
    (value,) = rdp_gaussian([7.5], 3)
    assert value == pytest.approx(0.41666666666667, rel=2e-8)
    assert value >= 7.5 / 18


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("order", [1.5, 2.0, 8.0])
def test_rdp_gaussian_is_the_integrated_divergence(order, noise_multiplier):
    exact = renyi_divergence(
        gaussian_log_density(1.0, noise_multiplier),
        gaussian_log_density(0.0, noise_multiplier),
        order,
        low=-14 * noise_multiplier,
        high=14 * noise_multiplier + order,
    )
    (ours,) = rdp_gaussian([order], noise_multiplier)
    np.testing.assert_allclose(ours, exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("rho", "delta", "epsilon", "order", "simple"),
    [
        (0.5, 1e-5, 4.7285070672, 5.4, 5.2985259122),
        (0.02, 1e-6, 0.8999385042, 24, 1.0713043540),
    ],
)
def test_conversion_beats_the_simple_zcdp_formula(rho, delta, epsilon, order, simple):
    for curve in (gaussians(1 / math.sqrt(2 * rho)), RdpCurve.from_zcdp(rho)):
        result = curve.to_epsilon(delta)
        assert_upper_bound(result.epsilon, epsilon)
        assert result.order == order
    assert rho + 2 * math.sqrt(rho * math.log(1 / delta)) == pytest.approx(
        simple, abs=1e-10
    )
    assert result.epsilon < simple


def test_zero_concentrated_privacy_of_nothing_and_of_anything():
    assert RdpCurve.from_zcdp(0.0) == RdpCurve.zero()
    assert RdpCurve.from_zcdp(math.inf).to_epsilon(0.5).epsilon == math.inf
    assert (RdpCurve.from_zcdp(0.3).values >= 0.3 * np.array(DEFAULT_ORDERS)).all()
    for rho in (-1.0, math.nan):
        with pytest.raises(InvalidPrivacyParameterError, match="rho: must be >= 0"):
            RdpCurve.from_zcdp(rho)


def test_shift_of_zero_costs_nothing_and_noise_of_zero_costs_everything():
    nothing = curve_of(GaussianMechanism(noise_std=1.0, sensitivity=0.0))
    assert not nothing.values.any()
    assert nothing.to_epsilon(0.0).epsilon == 0
    assert nothing.to_delta(0.0) == 0
    bare = curve_of(GaussianMechanism(noise_std=0.0, sensitivity=1.0))
    assert np.isinf(bare.values).all()
    assert bare.to_epsilon(0.5).epsilon == math.inf
    assert bare.to_delta(3.0) == 1.0
    assert curve_of(GaussianMechanism(noise_std=0.0, sensitivity=0.0)) == nothing


@given(noise=multipliers, seed=st.integers(0, 2**32 - 1))
def test_curves_are_monotone_and_convex_in_the_order(noise, seed):
    orders = np.sort(1 + np.random.default_rng(seed).random(30) * 500)
    values = rdp_gaussian(orders, noise)
    assert (np.diff(values) >= 0).all()
    slopes = np.diff((orders - 1) * values) / np.diff(orders)
    assert (np.diff(slopes) >= -1e-9 * slopes[1:]).all()


@given(noise=multipliers, delta=deltas)
def test_rdp_is_never_below_the_exact_gaussian(noise, delta):
    curve = gaussians(noise)
    epsilon = curve.to_epsilon(delta).epsilon
    assert epsilon >= gaussian_epsilon(1 / noise, delta) * (1 - 1e-12)
    assert curve.to_delta(epsilon) <= delta * (1 + 1e-6)
    assert curve.to_delta(1.0) >= gaussian_delta(1 / noise, 1.0) * (1 - 1e-9)


@given(a=multipliers, b=multipliers, c=multipliers, n=st.integers(0, 6))
def test_composition_algebra(a, b, c, n):
    x, y, z = gaussians(a), gaussians(b), gaussians(c)
    np.testing.assert_allclose(((x + y) + z).values, (x + (y + z)).values, rtol=1e-12)
    assert x + y == y + x
    assert x + RdpCurve.zero() == x
    assert 0 * x == RdpCurve.zero()
    total = RdpCurve.zero()
    for _ in range(n):
        total = total + x
    np.testing.assert_allclose((n * x).values, total.values, rtol=1e-12)
    assert (x + y).gaussian_like
    assert x.max(y) == (x if a <= b else y)


@given(noise=multipliers, more=st.floats(1, 10), times=st.integers(1, 50), delta=deltas)
def test_epsilon_monotone(noise, more, times, delta):
    epsilon = gaussians(noise, times).to_epsilon(delta).epsilon
    assert epsilon >= 0
    assert gaussians(noise * more, times).to_epsilon(delta).epsilon <= epsilon
    assert gaussians(noise, times + 1).to_epsilon(delta).epsilon >= epsilon
    assert gaussians(noise, times).to_epsilon(delta * 1.5).epsilon <= epsilon


@settings(max_examples=10, deadline=None)
@given(
    rate=st.floats(1e-4, 0.5),
    noise=st.floats(0.5, 20),
    more=st.floats(1.001, 2),
    steps=st.integers(1, 1000),
    delta=deltas,
)
def test_epsilon_monotone_with_sampling(rate, noise, more, steps, delta):
    epsilon = sampled(rate, noise, steps).to_epsilon(delta).epsilon
    slack = 1 + 1e-7  # of the accountant's safety factor
    assert sampled(rate, noise * more, steps).to_epsilon(delta).epsilon <= (
        epsilon * slack
    )
    assert sampled(rate * more, noise, steps).to_epsilon(delta).epsilon >= (
        epsilon / slack
    )
    assert sampled(rate, noise, 2 * steps).to_epsilon(delta).epsilon >= epsilon
    assert sampled(rate, noise, steps).to_epsilon(delta * 1.5).epsilon <= epsilon


def test_composition_algebra_of_different_mechanisms():
    x, y = sampled(0.1, 2.0, steps=3), sampled(0.02, 0.8, steps=7)
    z = curve_of(
        GaussianMechanism(noise_std=5.0, sensitivity=1.0, adjacency="add_remove")
    )
    np.testing.assert_allclose(((x + y) + z).values, (x + (y + z)).values, rtol=1e-14)
    assert x + y == y + x
    assert x + z == z + x
    np.testing.assert_allclose((3 * x).values, (x + x + x).values, rtol=1e-14)
    np.testing.assert_allclose((2 * (x + z)).values, (2 * x + 2 * z).values, rtol=1e-14)
    assert x + RdpCurve.zero(adjacency="add_remove") == x
    assert not (x + z).gaussian_like
    assert (z + z).gaussian_like


def test_optimum_at_the_end_of_the_grid_is_reported():
    short = gaussians(20.0, 1, (2.0, 3.0, 4.0)).to_epsilon(1e-5)
    assert short.order_at_edge
    assert "order grid exhausted: bound may be loose" in str(short)
    assert short.epsilon > gaussians(20.0).to_epsilon(1e-5).epsilon


def test_tiny_total_variation_gives_epsilon_zero():
    result = rdp_to_epsilon([1.5, 1024.0], [1e-5, 1e-2], 0.1)
    assert result == EpsilonResult(epsilon=0.0, order=1.5, order_at_edge=False)
    assert str(result) == "0 (total variation ≤ δ)"
    assert rdp_to_epsilon([2.0], [0.02], 0.1).epsilon > 0
    assert rdp_to_delta([1.5, 1024.0], [1e-5, 1e-2], 0.0) <= 0.1


def test_infinite_values_are_skipped():
    result = rdp_to_epsilon([2.0, 4.0], [0.5, math.inf], 1e-3)
    assert result.order == 2.0
    assert math.isfinite(result.epsilon)
    assert rdp_to_delta([2.0, 4.0], [0.5, math.inf], 5.0) < 1


@pytest.mark.parametrize("delta", [-1e-9, 1.0, math.nan, math.inf])
def test_delta_outside_its_range_is_refused(delta):
    with pytest.raises(InvalidPrivacyParameterError, match="delta: must be"):
        gaussians(1.0).to_epsilon(delta)


def test_delta_of_zero_proves_nothing():
    assert gaussians(1.0).to_epsilon(0.0).epsilon == math.inf


def test_adjacency_mismatch():
    unlearn = gaussians(1.0)
    other = curve_of(
        GaussianMechanism(noise_std=1.0, sensitivity=1.0, adjacency="replace_one")
    )
    with pytest.raises(AdjacencyMismatchError, match="'unlearn' curve with a 'replace"):
        unlearn + other
    with pytest.raises(AdjacencyMismatchError, match="cannot compare"):
        unlearn.max(other)
    with pytest.raises(InvalidArgumentError, match="orders: must be the same"):
        unlearn + unlearn.restrict((2.0, 3.0))


def sampled(rate, noise, steps=1):
    return curve_of(
        SampledGaussianMechanism(rate=rate, noise_multiplier=noise, steps=steps)
    )


def test_exchanging_a_record_is_a_gaussian_of_twice_the_shift():
    one = GaussianMechanism(noise_std=3.0, sensitivity=1.0, adjacency="add_remove")
    two = GaussianMechanism(noise_std=3.0, sensitivity=2.0, adjacency="replace_one")
    exchanged = curve_of(one).to_adjacency("replace_one")
    assert exchanged.adjacency == "replace_one"
    np.testing.assert_allclose(exchanged.values, curve_of(two).values, rtol=1e-12)
    assert exchanged + curve_of(two) == curve_of(two) + exchanged


@pytest.mark.parametrize("rate", [0.05, 0.4])
@pytest.mark.parametrize("noise", [1.0, 4.0])
@pytest.mark.parametrize("order", [1.5, 2.0, 5.0, 16.0])
def test_exchange_under_sampling_is_above_the_integrated_divergence(rate, noise, order):
    def joined(shift):
        still = gaussian_log_density(0.0, noise)
        moved = gaussian_log_density(shift, noise)
        return lambda x: np.logaddexp(
            np.log1p(-rate) + still(x), np.log(rate) + moved(x)
        )

    span = 20 * noise + 2 * order
    exact = renyi_divergence(joined(1.0), joined(-1.0), order, low=-span, high=span)
    curve = sampled(rate, noise).to_adjacency("replace_one")
    ours = curve.values[curve.orders.index(order)]
    assert exact <= ours
    assert noise < 4 or ours <= 5 * exact
    assert np.isinf(curve.values[-1])  # 2 * 1024 is beyond the grid
    assert math.isfinite(curve.to_epsilon(1e-5).epsilon)


def test_what_is_private_for_any_record_is_private_for_a_forgotten_one():
    training = sampled(0.1, 2.0, steps=50)
    forgotten = training.to_adjacency("unlearn")
    assert forgotten.adjacency == "unlearn"
    assert forgotten.to_epsilon(1e-5) == training.to_epsilon(1e-5)
    assert training.to_adjacency("add_remove") is training
    with pytest.raises(GroupPrivacyError, match="whole forget set"):
        training.to_adjacency("unlearn", group_size=2)
    full = SampledGaussianMechanism(rate=1.0, noise_multiplier=6.0)
    three = curve_of(full).to_adjacency("unlearn", group_size=3)
    np.testing.assert_allclose(three.values, gaussians(2.0).values, rtol=1e-12)


@pytest.mark.parametrize("source", ["unlearn", "replace_one"])
@pytest.mark.parametrize("target", ["unlearn", "replace_one", "add_remove"])
def test_relations_that_say_nothing_about_another_are_not_converted(source, target):
    curve = RdpCurve.zero(adjacency=source)
    if source == target:
        assert curve.to_adjacency(target) is curve
        return
    with pytest.raises(AdjacencyMismatchError, match=f"to '{target}': it says noth"):
        curve.to_adjacency(target)


def test_a_group_is_converted_to_unlearning_only():
    curve = RdpCurve.zero(adjacency="add_remove")
    for target in ("add_remove", "replace_one"):
        with pytest.raises(InvalidArgumentError, match="group_size: must be 1"):
            curve.to_adjacency(target, group_size=2)


def test_restricting_orders_never_helps_and_knows_its_own_orders():
    curve = gaussians(2.0)
    few = curve.restrict((2.0, 8.0, 64.0))
    assert few.orders == (2.0, 8.0, 64.0)
    assert few.to_epsilon(1e-5).epsilon >= curve.to_epsilon(1e-5).epsilon
    with pytest.raises(InvalidArgumentError, match=r"got 2\.25"):
        curve.restrict((2.25,))


def test_group_rule_is_the_gaussian_of_the_larger_shift():
    np.testing.assert_allclose(
        gaussians(6.0).group(3).values, gaussians(2.0).values, rtol=1e-12
    )
    general = RdpCurve(
        orders=(2.0, 3.0), values=np.array([1.0, 1.1]), adjacency="unlearn"
    )
    with pytest.raises(GroupPrivacyError, match="whole forget set"):
        general.group(2)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([0.1, math.nan, 0.2], NumericalError, "got NaN at order 3"),
        ([-0.5197, 0.1, 0.2], InvalidArgumentError, r"got -0\.5197 at order 2"),
        ([0.1, 0.3, 0.2], InvalidArgumentError, "must not decrease"),
        ([0.1, 0.2], InvalidArgumentError, r"got shape \(2,\)"),
    ],
)
def test_impossible_curves_are_refused(values, error, words):
    with pytest.raises(error, match=words):
        RdpCurve(orders=(2.0, 3.0, 4.0), values=np.array(values), adjacency="unlearn")


@pytest.mark.parametrize(
    "orders", [(), (1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (math.inf,)]
)
def test_impossible_orders_are_refused(orders):
    with pytest.raises(InvalidArgumentError, match="orders: must be strictly"):
        RdpCurve.zero(orders)


def test_normalizing_takes_the_smallest_bound_of_higher_orders():
    curve = RdpCurve(
        orders=(2.0, 3.0, 4.0),
        values=np.array([0.5, 0.2, 0.9]),
        adjacency="unlearn",
        normalize=True,
    )
    np.testing.assert_array_equal(curve.values, [0.2, 0.2, 0.9])


def test_a_curve_cannot_be_changed_or_marked_gaussian_falsely():
    curve = gaussians(1.0)
    with pytest.raises(ValueError, match="read-only"):
        curve.values[0] = 0.0
    with pytest.raises(InvalidArgumentError, match="gaussian_like"):
        RdpCurve(
            orders=(2.0, 3.0),
            values=np.array([1.0, 1.1]),
            adjacency="unlearn",
            gaussian_like=True,
        )


def test_sampled_steps_cost_their_number_times_one_step():
    mechanism = SampledGaussianMechanism(rate=0.1, noise_multiplier=2.0, steps=50)
    curve = curve_of(mechanism)
    one = rdp_sampled_gaussian(DEFAULT_ORDERS, 0.1, 2.0)
    np.testing.assert_array_equal(curve.values, 50 * one)
    assert curve.adjacency == "add_remove"
    assert not curve.gaussian_like
    always = SampledGaussianMechanism(rate=1, noise_multiplier=5.0, steps=3)
    assert curve_of(always).gaussian_like
    unlearn = replace(always, adjacency="unlearn")
    assert curve_of(unlearn) == gaussians(5.0, times=3)


def test_discrete_noise_costs_what_continuous_noise_does():
    rough = DiscreteGaussianMechanism(noise_std=0.4, grid=2**-12, sensitivity=0.05)
    smooth = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
    assert curve_of(rough) == curve_of(smooth)
    assert rough.rho == pytest.approx(0.05**2 / (2 * 0.4**2))
    still = DiscreteGaussianMechanism(noise_std=1.0, grid=0.5, sensitivity=0)
    assert (still.rho, curve_of(still)) == (0.0, RdpCurve.zero())


def discrete_divergence(shift, std, order):
    """The divergence between two discrete Gaussians, by summing their definition."""
    points = np.arange(-400.0, 401.0)
    there, back = -((points - shift) ** 2) / 2 / std**2, -(points**2) / 2 / std**2
    there -= np.logaddexp.reduce(there)
    back -= np.logaddexp.reduce(back)
    moment = np.logaddexp.reduce(order * there + (1 - order) * back)
    return moment / (order - 1)


@pytest.mark.parametrize("std", [0.4, 1.0, 7.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [1.5, 2.0, 8.0])
def test_discrete_cost_is_above_the_summed_divergence(order, shift, std):
    release = DiscreteGaussianMechanism(noise_std=std, grid=1.0, sensitivity=shift)
    (ours,) = curve_of(release, [order]).values
    exact = discrete_divergence(shift, std, order)
    assert exact <= ours * (1 + 1e-12)
    if std == 7.0:
        assert exact == pytest.approx(ours, rel=1e-9)


def test_unknown_mechanisms_are_refused():
    with pytest.raises(UnsupportedMechanismError, match="got float"):
        curve_of(1.0)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"noise_std": math.nan, "sensitivity": 1.0}, NumericalError),
        ({"noise_std": 1.0, "sensitivity": math.inf}, NumericalError),
        ({"noise_std": -1.0, "sensitivity": 1.0}, InvalidPrivacyParameterError),
        (
            {"noise_std": 1.0, "sensitivity": 1.0, "adjacency": "swap"},
            InvalidArgumentError,
        ),
    ],
)
def test_impossible_mechanisms_are_refused(fields, error):
    with pytest.raises(error, match="must be"):
        GaussianMechanism(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        (SampledGaussianMechanism, {"rate": 1.5}, InvalidPrivacyParameterError),
        (SampledGaussianMechanism, {"steps": 0}, InvalidPrivacyParameterError),
        (SampledGaussianMechanism, {"steps": 2.0}, InvalidTypeError),
        (SampledGaussianMechanism, {"noise_multiplier": math.nan}, NumericalError),
        (SampledGaussianMechanism, {"adjacency": "replace_one"}, InvalidArgumentError),
        (DiscreteGaussianMechanism, {"grid": 0.3}, InvalidPrivacyParameterError),
        (DiscreteGaussianMechanism, {"grid": 0.0}, InvalidPrivacyParameterError),
        (DiscreteGaussianMechanism, {"noise_std": -1.0}, InvalidPrivacyParameterError),
        (DiscreteGaussianMechanism, {"sensitivity": math.inf}, NumericalError),
    ],
)
def test_impossible_sampled_and_discrete_mechanisms_are_refused(kind, fields, error):
    sound = {
        SampledGaussianMechanism: {"rate": 0.1, "noise_multiplier": 1.0},
        DiscreteGaussianMechanism: {"noise_std": 1, "grid": 0.5, "sensitivity": 1},
    }[kind]
    kind(**sound)
    with pytest.raises(error, match=f"{next(iter(fields))}: must"):
        kind(**(sound | fields))


def test_group_and_triangle_of_bare_pairs_meet_the_oracles():
    assert group_privacy(0.5, 1e-6, 3) == pytest.approx(
        (1.5, 5.3670030992e-6), abs=1e-16
    )
    claim = (1.0, 1e-5)
    assert triangle(claim, claim) == pytest.approx((2, 3.7182818285e-5), abs=1e-15)
    half = (0.5, 1e-6)
    assert triangle(half, half) == pytest.approx((1, 2.6487212707e-6), abs=1e-16)
    assert group_privacy(0.3, 0.0, 4) == pytest.approx((1.2, 0.0))
    uneven = triangle((0.1, 1e-3), (2.0, 0.0))
    assert uneven[1] == pytest.approx(1e-3 * math.exp(2))
