import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.divergences import gaussian_log_density, hockey_stick

from dfl_unlearn.accounting.gaussian import (
    compose_gaussians,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_std,
)
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    NumericalError,
)

DELTAS = (1e-3, 1e-5, 1e-6, 1e-8)
SIGMAS = {
    0.1: (17.4043962030, 30.7495661320, 36.3046904262, 45.9373601850),
    0.5: (4.6101279507, 7.0318266756, 8.0576184807, 9.8635337962),
    1.0: (2.5746570186, 3.7306316348, 4.2246788893, 5.1003087875),
    2.0: (1.4452391609, 1.9938124456, 2.2304762712, 2.6529267681),
    4.0: (0.8230776852, 1.0811618495, 1.1935185872, 1.3955826839),
    8.0: (0.4800137525, 0.6002290722, 0.6529353844, 0.7483942247),
}


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_analytic_noise_meets_the_oracles(epsilon):
    for delta, expected in zip(DELTAS, SIGMAS[epsilon], strict=True):
        std = gaussian_noise_std(epsilon, delta, 1.0)
        assert std == pytest.approx(expected, rel=1e-9)
        assert gaussian_delta(1 / std, epsilon) <= delta
        assert gaussian_delta(1 / (std * (1 - 1e-9)), epsilon) > delta


@pytest.mark.parametrize(
    ("mu", "epsilon"),
    [
        (0.1, 0.3406693647),
        (0.2, 0.7255217509),
        (0.5, 1.9930914044),
        (1, 4.3771780958),
        (2, 9.9972561464),
        (4, 24.3816108831),
        (0.125, 0.4344163801),
    ],
)
def test_epsilon_of_a_gaussian_meets_the_oracles(mu, epsilon):
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1.5e-10)


def test_delta_of_a_gaussian_meets_the_oracles():
    assert gaussian_delta(1 / 4, 1) == pytest.approx(2.9242721e-6, rel=1e-7)
    assert gaussian_delta(1 / 1, 2) == pytest.approx(0.0209236358, rel=1e-8)


def test_other_calibrations_meet_the_oracles():
    assert gaussian_noise_std(1, 1e-5, 1.0, "rdp") == pytest.approx(
        4.0453853689, rel=1e-9
    )
    assert gaussian_noise_std(0.5, 1e-5, 1.0, "classic") == pytest.approx(
        9.6896105252, rel=1e-10
    )
    reproduced = gaussian_noise_std(1, 1e-5, 1.0, "classic", reproduce=True)
    assert reproduced == pytest.approx(4.8448052626, rel=1e-10)


@pytest.mark.parametrize(
    ("epsilon", "sigma", "real"), [(10, 0.48448, 2.26537e-5), (20, None, 1.53e-3)]
)
def test_classic_refused(epsilon, sigma, real):
    with pytest.raises(InvalidPrivacyParameterError, match="use method='analytic'"):
        gaussian_noise_std(epsilon, 1e-5, 1.0, "classic")
    std = gaussian_noise_std(epsilon, 1e-5, 1.0, "classic", reproduce=True)
    assert sigma is None or std == pytest.approx(sigma, rel=1e-5)
    assert gaussian_delta(1 / std, epsilon) == pytest.approx(real, rel=3e-3)
    assert std < gaussian_noise_std(epsilon, 1e-5, 1.0)


def test_classic_refused_from_exactly_one_on():
    with pytest.raises(InvalidPrivacyParameterError, match=r"got 1\.0"):
        gaussian_noise_std(1.0, 1e-5, 1.0, "classic")


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
def test_gaussian_delta_is_the_integrated_divergence(mu, epsilon):
    exact = hockey_stick(
        gaussian_log_density(mu, 1.0),
        gaussian_log_density(0.0, 1.0),
        epsilon,
        low=-12,
        high=15,
    )
    assert gaussian_delta(mu, epsilon) == pytest.approx(exact, rel=1e-6)


def test_gaussian_delta_is_never_below_the_exact_value():
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    with mpmath.workdps(60):
        for _ in range(300):
            mu = float(10 ** rng.uniform(-3, 1.5))
            epsilon = float(10 ** rng.uniform(-3, 2))
            m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
            exact = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(
                -m / 2 - e / m
            )
            ours = gaussian_delta(mu, epsilon)
            assert ours >= exact
            assert exact < 1e-290 or ours <= exact * (1 + mpmath.mpf("1e-6")) + 1e-15


def test_analytic_sigma_meets_delta():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        epsilon = float(10 ** rng.uniform(-2, 1.5))
        delta = float(10 ** rng.uniform(-12, -0.5))
        sensitivity = float(10 ** rng.uniform(-6, 6))
        std = gaussian_noise_std(epsilon, delta, sensitivity)
        assert gaussian_delta(sensitivity / std, epsilon) <= delta


@given(
    epsilon=st.floats(0.01, 20),
    delta=st.floats(1e-10, 0.3),
    sensitivity=st.floats(1e-3, 1e3),
)
def test_epsilon_and_noise_are_inverse(epsilon, delta, sensitivity):
    std = gaussian_noise_std(epsilon, delta, sensitivity)
    back = gaussian_epsilon(sensitivity / std, delta)
    assert back == pytest.approx(epsilon, rel=1e-8, abs=1e-9)
    assert gaussian_noise_std(epsilon, delta, sensitivity, "rdp") >= std


@given(mu=st.floats(1e-3, 50), delta=st.floats(1e-12, 0.3), grow=st.floats(1.0, 3.0))
def test_epsilon_is_monotone_in_shift_and_delta(mu, delta, grow):
    epsilon = gaussian_epsilon(mu, delta)
    # Each value is rounded up by its own error, so equal inputs may differ by it.
    assert gaussian_epsilon(mu * grow, delta) >= epsilon * (1 - 1e-9)
    assert gaussian_epsilon(mu, delta * grow) <= epsilon * (1 + 1e-9)
    assert gaussian_delta(mu, epsilon) <= delta


@pytest.mark.parametrize(
    ("releases", "epsilon"),
    [(1, 0.4344163801), (3, 0.7912753789), (5, 1.0470536091)],
)
def test_releases_compose_exactly(releases, epsilon):
    mu = compose_gaussians([0.05 / 0.4] * releases)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1.5e-10)


def test_calibrated_releases_compose_to_the_oracles():
    one = 1 / gaussian_noise_std(1, 1e-5, 1.0)
    half = 1 / gaussian_noise_std(0.5, 1e-5, 1.0)
    for times, epsilon in ((2, 1.4651699604), (3, 1.8349654335), (4, 2.1546766577)):
        mu = compose_gaussians([one] * times)
        assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=2e-10)
    mixed = compose_gaussians([one, half])
    assert gaussian_epsilon(mixed, 1e-5) == pytest.approx(1.1460631918, abs=2e-10)
    ten = compose_gaussians([1 / 5] * 10)
    assert gaussian_epsilon(ten, 1e-5) == pytest.approx(2.5943833805, abs=2e-10)


def test_composition_of_nothing_and_one_is_exact():
    assert compose_gaussians([]) == 0
    assert compose_gaussians([0.3, 0.0]) == 0.3
    assert compose_gaussians([3.0, 4.0]) >= 5
    assert compose_gaussians([1.0, math.inf]) == math.inf


def test_extreme_shifts_have_their_limits():
    assert gaussian_delta(0.0, 0.0) == 0
    assert gaussian_delta(math.inf, 3.0) == 1
    assert gaussian_delta(1e-3, 50.0) > 0  # underflows upwards
    assert gaussian_delta(1e-300, 1.0) > 0
    assert gaussian_epsilon(0.0, 0.0) == 0
    assert gaussian_epsilon(1.0, 0.0) == math.inf
    assert gaussian_epsilon(math.inf, 0.1) == math.inf
    assert gaussian_epsilon(1e200, 0.1) == math.inf
    assert gaussian_epsilon(1e-10, 1e-5) == 0
    assert gaussian_noise_std(1.0, 1e-5, 0.0) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0.0, 1e-5, 1.0), InvalidPrivacyParameterError, "epsilon: .* got 0.0"),
        ((math.inf, 1e-5, 1.0), InvalidPrivacyParameterError, "epsilon: .* got inf"),
        ((1.0, 0.0, 1.0), InvalidPrivacyParameterError, "delta: .* got 0.0"),
        ((1.0, 1.0, 1.0), InvalidPrivacyParameterError, "delta: .* got 1.0"),
        ((1.0, 1e-5, -1.0), InvalidPrivacyParameterError, "sensitivity: .* got -1.0"),
        ((1.0, 1e-5, math.nan), NumericalError, "sensitivity: .* got nan"),
        ((1.0, 1e-5, 1e308), NumericalError, "noise_std: must be finite"),
        ((1.0, 1e-5, 1.0, "gdp"), InvalidArgumentError, "method: .* got 'gdp'"),
    ],
)
def test_impossible_claims_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        gaussian_noise_std(*arguments)


def test_impossible_shifts_are_refused():
    for call in (gaussian_delta, gaussian_epsilon):
        with pytest.raises(InvalidPrivacyParameterError, match=r"mu: .* got -1\.0"):
            call(-1.0, 0.5)
        with pytest.raises(InvalidPrivacyParameterError, match=r"mu: .* got nan"):
            call(math.nan, 0.5)
    with pytest.raises(InvalidPrivacyParameterError, match="epsilon"):
        gaussian_delta(1.0, -0.1)
    with pytest.raises(InvalidPrivacyParameterError, match="delta"):
        gaussian_epsilon(1.0, 1.0)
