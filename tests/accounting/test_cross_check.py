"""Other accountants, where they are sound; which faults they have: the specification.

Both are bounds of the same kind, so agreement in digits says that formulas and
constants are the same ones. Neither is ever used for a certificate.
"""

import math
import warnings

import numpy as np
import pytest

from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.rdp import (
    DEFAULT_ORDERS,
    curve_of,
    rdp_gaussian,
    rdp_sampled_gaussian,
)

SAFETY = 1 + 1e-8  # the accountant's own factor, which the others do not have
ORDERS = np.array(DEFAULT_ORDERS)
WHOLE = np.array([order for order in DEFAULT_ORDERS if order == int(order)])
RATES = (1e-3, 0.01, 0.1, 0.5, 0.9)
NOISES = (0.5, 0.7, 1.0, 3.0, 10.0)
CASES = [
    (1, 1, 1, 1e-5),
    (1, 5, 1, 1e-5),
    (1, 2, 10, 1e-5),
    (0.01, 1, 1000, 1e-5),
    (0.01, 0.8, 10000, 1e-5),
    (0.001, 1.1, 10000, 1e-6),
    (0.04, 1.5, 2250, 1e-5),
    (0.1, 4, 200, 1e-5),
    (0.5, 3, 20, 1e-4),
    (0.2, 3, 50, 1e-5),
    (0.05, 0.6, 100, 1e-5),
    (0.02, 20, 100, 1e-5),
    (1 / 64, 0.5, 40, 1e-5),
    (0.4, 12, 30, 1e-6),
    (1e-5, 2, 100000, 1e-7),
    (0.99, 2, 5, 1e-5),
]


@pytest.fixture(scope="module")
def opacus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis import rdp

    return rdp


@pytest.fixture(scope="module")
def dp_accounting():
    pytest.importorskip("dp_accounting")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dp_accounting

    return dp_accounting


def curve(rate, noise, steps):
    return curve_of(
        SampledGaussianMechanism(rate=rate, noise_multiplier=noise, steps=steps)
    )


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("noise", NOISES)
def test_cross_check_opacus(opacus, rate, noise):
    whole = WHOLE[WHOLE <= 1000]
    ours = rdp_sampled_gaussian(whole, rate, noise) / SAFETY
    theirs = np.array(opacus.compute_rdp(
        q=rate, noise_multiplier=noise, steps=1, orders=whole
    ))  # fmt: skip
    large = theirs > 1e-9
    assert large.any()
    np.testing.assert_allclose(ours[large], theirs[large], rtol=1e-9)
    between = ORDERS[(ORDERS < 11) & (np.floor(ORDERS) != ORDERS)]
    ours = rdp_sampled_gaussian(between, rate, noise)
    theirs = np.array(opacus.compute_rdp(
        q=rate, noise_multiplier=noise, steps=1, orders=between
    ))  # fmt: skip
    # Opacus stops its series at terms of e^-30 of A, about 1e-13 of ln A.
    cut = 1e-12 / (between - 1)
    large = theirs > 1e-9
    assert large.any()
    assert (np.abs(ours - theirs) <= 2e-8 * theirs + cut)[large].all()


@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (5.0, 10), (0.8, 3)])
def test_cross_check_opacus_without_sampling(opacus, noise, times):
    orders = list(DEFAULT_ORDERS)
    theirs = opacus.compute_rdp(
        q=1.0, noise_multiplier=noise, steps=times, orders=orders
    )
    ours = curve(1.0, noise, times)
    np.testing.assert_allclose(ours.values, theirs, rtol=1e-9)
    np.testing.assert_array_less(np.asarray(theirs) * (1 - 1e-15), ours.values)
    epsilon, _ = opacus.get_privacy_spent(orders=orders, rdp=theirs, delta=1e-5)
    result = ours.to_epsilon(1e-5).epsilon
    assert epsilon - 1e-9 <= result <= epsilon * (1 + 1e-7)
    assert (ours.values == times * rdp_gaussian(DEFAULT_ORDERS, noise)).all()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("noise", NOISES)
def test_cross_check_dp_accounting(dp_accounting, rate, noise):
    accountant = dp_accounting.rdp.RdpAccountant(list(DEFAULT_ORDERS))
    event = dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(noise)
    )
    accountant.compose(event)
    theirs = np.array(accountant._rdp)
    finite = np.isfinite(theirs)
    assert finite.any()
    ours = rdp_sampled_gaussian(DEFAULT_ORDERS, rate, noise)
    assert (ours[finite] <= theirs[finite] * (1 + 2e-8)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), CASES)
def test_cross_check_dp_accounting_by_loss_distributions(
    dp_accounting, rate, noise, steps, delta
):
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4)
    event = dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(noise)
    )
    accountant.compose(event, steps)
    tighter = accountant.get_epsilon(delta)
    assert math.isfinite(tighter)
    assert curve(rate, noise, steps).to_epsilon(delta).epsilon >= tighter - 1e-3


@pytest.mark.slow
def test_cross_check_dp_accounting_of_a_mixed_sequence(dp_accounting):
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(5.0), 3)
    step = dp_accounting.GaussianDpEvent(2.0)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, step), 50)
    tighter = accountant.get_epsilon(1e-5)
    assert tighter == pytest.approx(2.162026, abs=2e-3)
    ours = (curve(1.0, 5.0, 3) + curve(0.1, 2.0, 50)).to_epsilon(1e-5).epsilon
    assert ours >= tighter - 1e-3
