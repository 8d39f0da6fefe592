import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_unlearn.accounting.calibrate import noise_multiplier_for
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.rdp import curve_of
from dfl_unlearn.errors import (
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
    PrivacyBudgetExceededError,
)


def epsilon_of(rate, noise, steps, delta):
    mechanism = SampledGaussianMechanism(rate=rate, noise_multiplier=noise, steps=steps)
    return curve_of(mechanism).to_epsilon(delta).epsilon


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta", "epsilon"),
    [
        (1, 5, 1, 1e-5, 0.7945220325),
        (1, 2, 10, 1e-5, 8.0794062224),
        (0.01, 1, 1000, 1e-5, 2.1013652717),
        (0.001, 1.1, 10000, 1e-6, 0.7856438504),
        (0.05, 0.6, 100, 1e-5, 13.2897280239),
        (0.02, 20, 100, 1e-5, 0.0311537250),
        (0.4, 12, 30, 1e-6, 0.8353612815),
        (0.99, 2, 5, 1e-5, 5.3381442351),
    ],
)
def test_calibration_gives_back_the_noise_of_the_oracles(
    rate, noise, steps, delta, epsilon
):
    found = noise_multiplier_for(epsilon, delta, rate, steps)
    assert found == pytest.approx(noise, rel=3e-8)
    assert epsilon_of(rate, found, steps, delta) <= epsilon


@settings(max_examples=5, deadline=None)
@given(
    rate=st.floats(1e-4, 1),
    steps=st.integers(1, 5000),
    epsilon=st.floats(0.05, 20),
    delta=st.floats(1e-9, 1e-2),
)
def test_calibrated_noise_meets_the_claim_and_little_less_does_not(
    rate, steps, epsilon, delta
):
    noise = noise_multiplier_for(epsilon, delta, rate, steps)
    assert epsilon_of(rate, noise, steps, delta) <= epsilon
    assert epsilon_of(rate, noise * (1 - 1e-6), steps, delta) > epsilon
    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=epsilon, delta_max=delta))
    training = SampledGaussianMechanism(rate=rate, noise_multiplier=noise, steps=steps)
    ledger.charge("train", "*", ("public",), training)
    with pytest.raises(PrivacyBudgetExceededError):
        ledger.charge("again", "*", ("public",), training)


def test_one_full_step_is_the_renyi_calibration_of_a_gaussian():
    by_rdp = gaussian_noise_std(1.0, 1e-5, 1.0, "rdp")
    assert noise_multiplier_for(1.0, 1e-5) == pytest.approx(by_rdp, rel=1e-8)


def test_nothing_that_joins_needs_no_noise():
    assert noise_multiplier_for(1.0, 1e-5, rate=0.0, steps=9) == 0.0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epsilon": 0.0}, InvalidPrivacyParameterError),
        ({"epsilon": float("inf")}, InvalidPrivacyParameterError),
        ({"delta": 0.0}, InvalidPrivacyParameterError),
        ({"delta": 1.0}, InvalidPrivacyParameterError),
        ({"rate": 1.5}, InvalidPrivacyParameterError),
        ({"steps": 0}, InvalidPrivacyParameterError),
        ({"steps": 2.5}, InvalidTypeError),
    ],
)
def test_impossible_claims_are_refused(change, error):
    given = {"epsilon": 1.0, "delta": 1e-5, "rate": 0.1, "steps": 10} | change
    with pytest.raises(error, match=f"{next(iter(change))}: must be"):
        noise_multiplier_for(**given)


def test_a_claim_that_no_noise_meets_is_named():
    with pytest.raises(NumericalError, match="ask for a larger"):
        noise_multiplier_for(1e-9, 1e-200)
