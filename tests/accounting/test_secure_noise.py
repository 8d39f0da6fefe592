import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import discrete_gaussian as oracle
from scipy.stats import binomtest, kstest

from dfl_unlearn.accounting import secure_noise
from dfl_unlearn.accounting.secure_noise import (
    discrete_gaussian,
    from_grid,
    grid_noise,
    grid_of,
    grid_sensitivity,
    to_grid,
)
from dfl_unlearn.errors import (
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
)
from dfl_unlearn.rng import RngTree

VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(25, 4)]
DRAWS = 120_000


def keyed(draw=0):
    """Bytes that repeat: for tests alone."""
    return RngTree(0).numpy("audit", draw=draw).bytes


# --- sampler -------------------------------------------------------------------------


def frequencies_fit(draws, variance):
    """Wilson intervals at 1e-6 around the counts of -5 .. 5."""
    for n in range(-5, 6):
        count = int((draws == n).sum())
        test = binomtest(count, len(draws))
        interval = test.proportion_ci(1 - 1e-6, method="wilson")
        if not interval.low <= oracle.probability(n, variance) <= interval.high:
            return False
    return True


@pytest.mark.statistical
@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_secure_noise_pmf(variance):
    draws = discrete_gaussian(variance, DRAWS, random_bytes=keyed())
    assert draws.dtype == np.int64
    assert frequencies_fit(draws, variance)
    wider = discrete_gaussian(variance * Fraction(11, 10), DRAWS, random_bytes=keyed())
    assert not frequencies_fit(wider, variance)


@pytest.mark.statistical
@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_coins_that_tie_in_their_first_bits_are_still_exact(monkeypatch, variance):
    # With 2 bits at a time every fourth coin goes on with fractions.
    monkeypatch.setattr(secure_noise, "_BITS", 2)
    draws = discrete_gaussian(variance, 20_000, random_bytes=keyed())
    assert frequencies_fit(draws, variance)


@pytest.mark.statistical
def test_a_sampler_that_calls_ties_lost_is_found(monkeypatch):
    monkeypatch.setattr(secure_noise, "_BITS", 2)
    monkeypatch.setattr(secure_noise, "_below_rest", lambda words, chance: False)
    draws = discrete_gaussian(VARIANCES[2], 20_000, random_bytes=keyed())
    assert not frequencies_fit(draws, VARIANCES[2])


@pytest.mark.statistical
def test_the_oracle_sampler_has_the_same_law():
    generator = RngTree(1).numpy("audit")
    draws = [
        oracle.draw(VARIANCES[2], lambda n: int(generator.integers(n)))
        for _ in range(5_000)
    ]
    assert frequencies_fit(np.array(draws), VARIANCES[2])


@pytest.mark.statistical
@pytest.mark.parametrize("std", [1500.123, 2.0**30 / 3])
def test_wide_noise_is_normal_at_the_scale_of_its_parameter(std):
    # The steps are a 1500th of the noise; Kolmogorov-Smirnov at 1e-6 sees 2 %.
    draws = discrete_gaussian(Fraction(std) ** 2, DRAWS, random_bytes=keyed()) / std
    assert kstest(draws, "norm").pvalue > 1e-6
    assert not kstest(draws * 1.05, "norm").pvalue > 1e-6
    assert not kstest(draws * 0.95, "norm").pvalue > 1e-6


def test_draws_come_from_the_system_unless_a_test_brings_its_own():
    first, second = (discrete_gaussian(10**6, 50) for _ in range(2))
    assert not np.array_equal(first, second)
    again = [discrete_gaussian(10**6, 50, random_bytes=keyed()) for _ in range(2)]
    assert np.array_equal(*again)
    assert discrete_gaussian(1, 0).shape == (0,)


def test_bytes_are_fetched_64_kib_at_a_time_and_used_once():
    asked = []

    def counting(count):
        asked.append(count)
        return keyed(len(asked))(count)

    words = secure_noise._Words(counting)
    taken = [words.take(count, 63) for count in (5, 8190, 1, 20_000)]
    assert set(asked) == {2**16}
    assert len(asked) == math.ceil(sum(map(len, taken)) * 8 / 2**16)
    together = np.concatenate(taken)
    assert len(np.unique(together)) == len(together)
    expected = [np.frombuffer(keyed(i)(2**16), "<u8") >> 1 for i in range(1, 5)]
    assert np.array_equal(together, np.concatenate(expected)[: len(together)])


@pytest.mark.parametrize(
    ("variance", "error", "message"),
    [
        (2.25, InvalidTypeError, r"got float; write Fraction"),
        (True, InvalidTypeError, r"got bool"),
        (0, InvalidPrivacyParameterError, r"variance: .* above 0 .* got 0"),
        (Fraction(-1, 3), InvalidPrivacyParameterError, r"got Fraction\(-1, 3\)"),
        (2**80 + 1, InvalidPrivacyParameterError, r"at most 2\*\*80"),
    ],
)
def test_variances_that_are_not_exact_or_too_large_are_refused(
    variance, error, message
):
    with pytest.raises(error, match=message):
        discrete_gaussian(variance, 1)


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [1.1, 2.0, 8.0])
def test_its_divergence_is_at_most_that_of_real_gaussians(variance, shift, order):
    bound = order * shift**2 / (2 * float(variance))
    exact = oracle.renyi(shift, variance, order)
    assert exact <= bound * (1 + 1e-12)
    assert exact >= 0.3 * bound  # the bound is about this mechanism


# --- grid ----------------------------------------------------------------------------


@given(noise_std=st.floats(1e-300, 1e300))
def test_the_grid_is_the_largest_power_of_two_under_a_1024th(noise_std):
    grid = grid_of(noise_std)
    assert math.frexp(grid)[0] == 0.5
    assert grid <= noise_std / 1024 < 2 * grid


def test_grids_that_float64_cannot_multiply_are_refused():
    assert grid_of(2.0**-1012) == 2.0**-1022
    with pytest.raises(NumericalError, match=r"noise_std: .* got 1e-305"):
        grid_of(1e-305)
    with pytest.raises(InvalidPrivacyParameterError, match=r"noise_std: .* got 0"):
        grid_of(0.0)


@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-30, 10),
    p=st.integers(1, 300),
    size=st.floats(0, 1e3),
)
def test_values_on_the_grid_are_no_further_apart_than_said(seed, exponent, p, size):
    # 100 examples of 20 pairs, among them neighbours on both sides of a half step.
    rng = np.random.default_rng(seed)
    grid = 2.0**exponent
    for _ in range(20):
        one = rng.normal(size=p) * 10 ** rng.uniform(-3, 3)
        move = rng.normal(size=p)
        other = one + move * (size * grid / np.linalg.norm(move))
        shift = np.linalg.norm(to_grid(one, grid) - to_grid(other, grid))
        distance = np.linalg.norm(one - other)
        assert shift * grid <= grid_sensitivity(distance, grid, p)


def test_the_worst_case_of_rounding_is_reached_and_covered():
    grid, p = 2.0**-10, 64
    one = np.full(p, 0.5 * grid)  # half to even: 0
    other = np.full(p, np.nextafter(0.5 * grid, 1))
    steps = to_grid(one, grid), to_grid(other, grid)
    assert (steps[0] == 0).all()
    assert (steps[1] == 1).all()
    moved = grid * math.sqrt(p)
    distance = np.linalg.norm(one - other)
    assert 0 < distance < 1e-18
    assert moved <= grid_sensitivity(distance, grid, p) <= moved * (1 + 1e-15)
    assert grid_sensitivity(0.0, grid, p) == 0  # equal values are rounded alike


def test_rounding_is_half_to_even_and_back_is_exact():
    grid = 2.0**-4
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 3.0]) * grid
    assert to_grid(halves, grid).tolist() == [0, 2, 2, 0, -2, 3]
    large = np.array([2**53 - 1, -(2**53) + 1])
    for step in (2.0**-1022, 2.0**-40, 2.0**900):
        back = from_grid(large, step)
        assert [Fraction(x) / Fraction(step) for x in back] == large.tolist()
        assert np.array_equal(to_grid(back, step), large)


def test_integers_that_float64_would_skip_are_refused():
    for value in (2.0**53, -(2.0**60), 1e308):
        with pytest.raises(NumericalError, match=r"below 2\*\*53 steps"):
            to_grid(np.array([0.0, value]), 2.0**-3 if value > 1e300 else 1.0)
    with pytest.raises(NumericalError, match=r"below 2\*\*53 steps .* got 9\.01e\+15"):
        from_grid(np.array([2**53]), 1.0)
    with pytest.raises(NumericalError, match=r"grid: must keep .* finite"):
        from_grid(np.array([2**52]), 2.0**1000)


def test_noise_has_the_shape_asked_and_the_parameter_the_floats_are():
    noise = grid_noise((3, 4), 0.3, 2.0**-12, random_bytes=keyed())
    variance = (Fraction(0.3) * 2**12) ** 2
    drawn = discrete_gaussian(variance, 12, random_bytes=keyed())
    assert np.array_equal(noise, drawn.reshape(3, 4))


# --- what the bits of an output say --------------------------------------------------

STEP = 2.0**-10


def secure_world(shift, draw):
    """Released values under unit noise, from one world."""
    value = to_grid(np.full(50_000, shift), STEP)
    noise = grid_noise(value.shape, 1.0, STEP, random_bytes=keyed(draw))
    return from_grid(value + noise, STEP)


def simulated_world(shift, draw):
    """The same with float noise."""
    noise = RngTree(0).normal((50_000,), "unlearn-noise", draw=draw).numpy()
    return (np.float32(shift) + noise.astype(np.float32)).astype(np.float64)


def finest_step(outputs):
    """The largest power of two that all outputs below 1/4 are multiples of."""
    small = outputs[(np.abs(outputs) < 0.25) & (outputs != 0)]
    step = 1.0
    while not (np.rint(small / step) * step == small).all():
        step /= 2
    return step


def no_bit_tells_the_worlds_apart(world):
    """Whether no output of one world is off the grid that another's outputs have."""
    shifts = (0.0, STEP, 1.0, 1.0 + STEP)
    steps = {finest_step(world(shift, at)) for at, shift in enumerate(shifts)}
    return len(steps) == 1


@pytest.mark.statistical
def test_bit_leak():
    assert no_bit_tells_the_worlds_apart(secure_world)
    assert finest_step(secure_world(0.0, 0)) == STEP
    # Float noise near 0 is finer than 1 + noise near 0 can be.
    assert not no_bit_tells_the_worlds_apart(simulated_world)
    assert finest_step(simulated_world(1.0, 2)) >= 2.0**-24
    assert finest_step(simulated_world(0.0, 0)) < 2.0**-24
