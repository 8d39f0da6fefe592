import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import trajectory as oracle

from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.trajectory import (
    rewind_fraction_for,
    rewind_steps_bound,
    rewind_steps_for,
    step_contraction,
    trajectory_sensitivity,
)
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    SensitivityUnprovenError,
)

FIRST = {
    "steps": 20,
    "learning_rate": 0.1,
    "smoothness": 1.0,
    "gradient_bound": 1.0,
    "forget": 10,
    "samples": 1000,
}
SECOND = {
    "steps": 100,
    "learning_rate": 0.01,
    "smoothness": 2.0,
    "gradient_bound": 0.5,
    "forget": 6,
    "samples": 600,
}
CASES = {"first": (FIRST, 1.0, 1e-5), "second": (SECOND, 0.5, 1e-4)}
# Case, K; h, sensitivity (published and tight each); classic, analytic (published).
ROWS = """
first  0  5.852137462 5.727499949 0.1170427492   0.1145499990  0.5670493275 0.436643383
first  10 4.195790251 4.133757489 0.08391580501  0.08267514978 0.4065557337 0.3130589568
first  18 1.17994368  1.167582636 0.02359887361  0.02335165272 0.1143319471 0.0880387044
first  20 0 0 0 0 0 0
second 50 4.625150702 4.553058089 0.02312575351  0.02276529045 0.200898615  0.1362982837
second 90 1.315874462 1.301512992 0.006579372312 0.00650756496 0.05715648505 .0387774242
"""


@pytest.mark.parametrize("row", ROWS.strip().splitlines())
def test_sensitivity_and_noise_meet_the_oracles(row):
    case, *numbers = row.split()
    rewind = int(numbers[0])
    h, h_tight, published, tight, *stds = map(float, numbers[1:])
    given_, epsilon, delta = CASES[case]
    shift = 2 * given_["forget"] * given_["gradient_bound"]
    shift /= given_["smoothness"] * given_["samples"]
    for bound, expected, factor in (
        ("published", published, h),
        ("tight", tight, h_tight),
    ):
        found = trajectory_sensitivity(rewind_steps=rewind, bound=bound, **given_)
        assert found == pytest.approx(expected, rel=1e-9)
        assert found == pytest.approx(shift * factor, rel=1e-9)
    found = trajectory_sensitivity(rewind_steps=rewind, bound="published", **given_)
    for method, expected in zip(("classic", "analytic"), stds, strict=True):
        std = gaussian_noise_std(epsilon, delta, found, method, reproduce=True)
        assert std == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("regime", "mu", "c", "expected"),
    [
        ("nonconvex", 0.0, 1.1, 0.08267514978),
        ("convex", 0.0, 1.0, 0.02),
        ("strongly_convex", 0.5, 0.95, 0.009610040673),
    ],
)
def test_one_formula_serves_all_regimes(regime, mu, c, expected):
    found = trajectory_sensitivity(
        rewind_steps=10, regime=regime, strong_convexity=mu, **FIRST
    )
    assert found == pytest.approx(expected, rel=1e-9)
    contraction = step_contraction(
        learning_rate=0.1, smoothness=1.0, regime=regime, strong_convexity=mu
    )
    assert contraction == pytest.approx(c, rel=1e-15)


rates = st.floats(1e-3, 0.5)
curvatures = st.floats(1e-2, 3.0)
slopes = st.floats(1e-2, 10.0)


@given(
    steps=st.integers(1, 30),
    rewind=st.floats(0, 1),
    eta=rates,
    smooth=curvatures,
    slope=slopes,
    forget=st.integers(1, 20),
    error=st.sampled_from([0.0, 1e-9, 0.3]),
)
def test_bounds_are_the_unrolled_recursions_rounded_up(
    steps, rewind, eta, smooth, slope, forget, error
):
    rewind = round(rewind * steps)
    given_ = {
        "rewind_steps": rewind,
        "steps": steps,
        "learning_rate": eta,
        "smoothness": smooth,
        "gradient_bound": slope,
        "forget": forget,
        "samples": 50,
    }
    rate = Fraction(eta) * Fraction(smooth)
    mu = Fraction(smooth) / 4
    gap = min(Fraction(eta) * mu, 2 - rate)
    cases = [
        (1 + rate, {}),
        (Fraction(1), {"regime": "convex"}),
        (1 - gap, {"regime": "strongly_convex", "strong_convexity": float(mu)}),
    ]
    for c, regime in cases:
        exact = oracle.tight(rewind, steps, c, eta, slope, forget, 50, error)
        found = trajectory_sensitivity(start_error=error, **given_, **regime)
        assert exact <= Fraction(found) <= exact * Fraction(1 + 1e-11)
    exact = oracle.published(rewind, steps, eta, smooth, slope, forget, 50)
    found = trajectory_sensitivity(bound="published", **given_)
    assert exact <= Fraction(found) <= exact * Fraction(1 + 1e-11)


@given(
    steps=st.integers(1, 400),
    eta=rates,
    smooth=st.floats(0.0, 3.0),
    forget=st.integers(0, 49),
    bound=st.sampled_from(["tight", "published"]),
)
def test_more_rewinding_never_costs_more(steps, eta, smooth, forget, bound):
    found = [
        trajectory_sensitivity(
            rewind_steps=rewind,
            steps=steps,
            learning_rate=eta,
            smoothness=smooth,
            gradient_bound=1.0,
            forget=forget,
            samples=50,
            bound=bound,
        )
        for rewind in range(0, steps + 1, max(1, steps // 7))
    ]
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(found))
    last = trajectory_sensitivity(
        rewind_steps=steps,
        steps=steps,
        learning_rate=eta,
        smoothness=smooth,
        gradient_bound=1.0,
        forget=forget,
        samples=50,
        bound=bound,
    )
    assert last == 0


@given(steps=st.integers(2, 200), eta=rates, smooth=curvatures, m=st.integers(1, 20))
def test_the_tight_bound_is_never_above_the_published_one(steps, eta, smooth, m):
    given_ = {
        "rewind_steps": steps // 2,
        "steps": steps,
        "learning_rate": eta,
        "smoothness": smooth,
        "gradient_bound": 1.0,
        "forget": m,
        "samples": 50,
    }
    tight = trajectory_sensitivity(**given_)
    assert tight <= trajectory_sensitivity(bound="published", **given_)


def test_sensitivity_goes_with_the_share_of_rows_that_go():
    one = trajectory_sensitivity(rewind_steps=5, **FIRST)
    other = FIRST | {"forget": 20, "samples": 2000}
    twice = FIRST | {"forget": 20}
    assert trajectory_sensitivity(rewind_steps=5, **other) == pytest.approx(one)
    assert trajectory_sensitivity(rewind_steps=5, **twice) == pytest.approx(2 * one)


def test_long_trainings_give_large_numbers_or_infinity_and_never_small_ones():
    long = {
        "learning_rate": 1.0,
        "smoothness": 0.5,
        "gradient_bound": math.sqrt(2),
        "forget": 14,
        "samples": 1437,
    }
    found = trajectory_sensitivity(rewind_steps=0, steps=300, **long)
    assert found == pytest.approx(3.7036e51, rel=1e-4)
    exact = oracle.tight(0, 300, 1.5, 1.0, math.sqrt(2), 14, 1437)
    assert exact <= Fraction(found) <= exact * Fraction(1 + 1e-11)
    near = trajectory_sensitivity(rewind_steps=900, steps=1740, **long)
    exact = oracle.tight(900, 1740, 1.5, 1.0, math.sqrt(2), 14, 1437)
    assert exact <= Fraction(near) <= exact * Fraction(1 + 1e-11)
    for rewind in (0, 2000, 2999):
        assert trajectory_sensitivity(rewind_steps=rewind, steps=3000, **long) == (
            math.inf
        )
    assert trajectory_sensitivity(rewind_steps=3000, steps=3000, **long) == 0
    steep = long | {"learning_rate": 1e200, "smoothness": 1e200}
    assert trajectory_sensitivity(rewind_steps=1, steps=3, **steep) == math.inf
    assert trajectory_sensitivity(rewind_steps=3, steps=3, **steep) == 0
    only = trajectory_sensitivity(rewind_steps=0, steps=1, **steep)
    assert only == pytest.approx(2e200 * 14 * math.sqrt(2) / 1437)


def test_what_is_too_small_for_a_float_is_rounded_up_to_the_smallest():
    found = trajectory_sensitivity(
        rewind_steps=5000,
        steps=5001,
        learning_rate=1.0,
        smoothness=1.0,
        gradient_bound=1.0,
        forget=1,
        samples=2,
        regime="strongly_convex",
        strong_convexity=0.5,
    )
    assert 0 < found < 1e-300


def test_a_step_onto_the_minimizer_forgets_the_start():
    given_ = {
        "steps": 4,
        "learning_rate": 1.0,
        "smoothness": 1.0,
        "gradient_bound": 1.0,
        "forget": 1,
        "samples": 2,
        "regime": "strongly_convex",
        "strong_convexity": 1.0,
        "start_error": 7.0,
    }
    assert trajectory_sensitivity(rewind_steps=1, **given_) == 0
    assert trajectory_sensitivity(rewind_steps=0, **given_) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("given_", "std", "epsilon", "delta", "steps", "closed"),
    [
        (FIRST, 0.2, 1.0, 1e-5, 17, 16.4319),
        (SECOND, 0.1, 0.5, 1e-4, 81, 82.148),
    ],
)
def test_the_fewest_steps_meet_the_oracles(given_, std, epsilon, delta, steps, closed):
    noise = {"noise_std": std, "epsilon": epsilon, "delta": delta}
    classic = {"calibration": "classic", "reproduce": True}
    found = rewind_steps_for(bound="published", **noise, **classic, **given_)
    assert found == steps
    bound = rewind_steps_bound(**noise, **classic, **given_)
    assert bound == pytest.approx(closed, rel=1e-5)
    assert found <= math.ceil(bound) <= given_["steps"]


@given(
    std=st.floats(1e-3, 10.0),
    epsilon=st.floats(0.05, 20.0),
    regime=st.sampled_from(["nonconvex", "convex"]),
)
def test_one_step_less_would_not_do(std, epsilon, regime):
    noise = {"noise_std": std, "epsilon": epsilon, "delta": 1e-5}
    found = rewind_steps_for(regime=regime, **noise, **SECOND)

    def reached(rewind):
        shift = trajectory_sensitivity(rewind_steps=rewind, regime=regime, **SECOND)
        return gaussian_epsilon(shift / std, 1e-5)

    assert reached(found) <= epsilon
    assert found == 0 or reached(found - 1) > epsilon * (1 - 1e-9)
    if regime == "nonconvex":
        closed = rewind_steps_bound(**noise, **SECOND)
        assert found <= math.ceil(closed)


def test_the_closed_form_survives_what_does_not_fit_a_float():
    long = SECOND | {"steps": 100_000, "learning_rate": 1.0}
    noise = {"noise_std": 0.1, "epsilon": 1.0, "delta": 1e-5}
    assert rewind_steps_for(**noise, **long) == 100_000
    assert 99_000 < rewind_steps_bound(**noise, **long) <= 100_000
    much = noise | {"noise_std": 1e9}
    assert rewind_steps_bound(**much, **SECOND) == 0
    assert rewind_steps_for(**much, **SECOND) == 0


@pytest.mark.parametrize("seed", range(50))
def test_gossip_of_all_peers_together_stays_below_the_bound_of_one_owner(seed):
    """Stacked over peers the bound holds with the owner's own number of rows."""
    generator = np.random.default_rng(seed)
    n, rows, steps, gone = 6, 12, 20, int(generator.integers(1, 4))
    weights = ring(n, generator)
    x = generator.normal(size=(n, rows, 3))
    x /= np.linalg.norm(x, axis=2, keepdims=True)  # slopes and curvatures are <= 1
    y = 4 * generator.normal(size=(n, rows))

    def train(first, rounds, counted):
        states = [first]
        for _ in range(rounds):
            slope = np.tanh(np.einsum("pri,pi->pr", x, states[-1]) - y) * counted
            gradient = np.einsum("pr,pri->pi", slope, x) / counted.sum(axis=1)[:, None]
            states.append(weights @ states[-1] - 0.1 * gradient)
        return states

    everything, kept = np.ones((n, rows)), np.ones((n, rows))
    kept[0, :gone] = 0
    start = generator.normal(size=(n, 3))
    before, again = train(start, steps, everything), train(start, steps, kept)[-1]
    for rewind in (0, 7, 14, 19, 20):
        end = train(before[steps - rewind], rewind, kept)[-1]
        bound = trajectory_sensitivity(
            rewind_steps=rewind,
            steps=steps,
            learning_rate=0.1,
            smoothness=1.0,
            gradient_bound=1.0,
            forget=gone,
            samples=rows,
        )
        apart = np.linalg.norm(end - again)
        assert apart <= bound
        if rewind < steps:
            assert apart > bound / 1e4


def ring(n, generator):
    """Symmetric, doubly stochastic: a lazy ring of random laziness."""
    lazy = generator.uniform(0.1, 0.9)
    step = np.roll(np.eye(n), 1, axis=0)
    return lazy * np.eye(n) + (1 - lazy) / 2 * (step + step.T)


TABLE = {
    0.1: (0.513, 0.904, 0.991),
    1: (0.620, 0.935, 0.994),
    5: (0.863, 0.979, 0.998),
    10: (0.931, 0.990, 0.999),
}


@pytest.mark.parametrize("total", TABLE)
def test_how_much_rewinding_divides_the_noise(total):
    limit = [rewind_fraction_for(by, total) for by in (2, 10, 100)]
    assert limit == pytest.approx(TABLE[total], abs=1e-3)  # as many digits as it has
    steps = round(total / 0.01)
    growth = steps * math.log1p(0.01)
    found = [rewind_fraction_for(by, growth) for by in (2, 10, 100)]
    given_ = FIRST | {"learning_rate": 0.01, "steps": steps}
    none = trajectory_sensitivity(rewind_steps=0, **given_)
    for by, fraction in zip((2, 10, 100), found, strict=True):
        rewind = math.ceil(fraction * steps - 1e-9)
        reached = trajectory_sensitivity(rewind_steps=rewind, **given_)
        assert reached <= none / by * (1 + 1e-9)


def test_the_share_to_rewind_has_its_limits():
    assert rewind_fraction_for(1.0, 3.0) == pytest.approx(0.0, abs=1e-15)
    assert rewind_fraction_for(4.0, 0.0) == 0.75
    assert rewind_fraction_for(4.0, 1e-11) == pytest.approx(0.75)
    assert rewind_fraction_for(2.0, 1e6) == pytest.approx(1 - math.log(2) / 1e6)


def test_step_sizes_outside_the_regime_are_refused():
    large = {"learning_rate": 2.0, "smoothness": 1.0}
    assert step_contraction(regime="convex", **large) == 1
    for regime, rate in (("convex", 2.1), ("strongly_convex", 2.0)):
        with pytest.raises(SensitivityUnprovenError, match=rf"got {rate}"):
            step_contraction(
                learning_rate=rate, smoothness=1.0, regime=regime, strong_convexity=0.1
            )
    with pytest.raises(SensitivityUnprovenError, match="got 'published'"):
        trajectory_sensitivity(
            rewind_steps=1, regime="convex", bound="published", **FIRST
        )


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("rewind_steps", 21, InvalidPrivacyParameterError),
        ("rewind_steps", 1.0, InvalidTypeError),
        ("steps", 0, InvalidPrivacyParameterError),
        ("learning_rate", 0.0, InvalidPrivacyParameterError),
        ("smoothness", -1.0, InvalidPrivacyParameterError),
        ("gradient_bound", math.nan, InvalidPrivacyParameterError),
        ("forget", 1000, InvalidPrivacyParameterError),
        ("start_error", -1e-9, InvalidPrivacyParameterError),
        ("regime", "smooth", InvalidArgumentError),
        ("bound", "loose", InvalidArgumentError),
    ],
)
def test_wrong_numbers_are_named(name, value, error):
    with pytest.raises(error, match=name):
        trajectory_sensitivity(**({"rewind_steps": 10} | FIRST | {name: value}))


def test_strong_convexity_is_neither_missing_nor_above_the_smoothness():
    for mu in (0.0, 1.5):
        with pytest.raises(InvalidPrivacyParameterError, match="strong_convexity"):
            trajectory_sensitivity(
                rewind_steps=10,
                regime="strongly_convex",
                strong_convexity=mu,
                **FIRST,
            )
