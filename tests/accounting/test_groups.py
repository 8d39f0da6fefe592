"""Several records at once: never below the true divergence of their mixture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.divergences import gaussian_log_density, renyi_divergence
from scipy.special import logsumexp
from scipy.stats import binom

from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.rdp import curve_of
from dfl_unlearn.errors import InvalidArgumentError


def steps(rate, noise, times=1, **fields):
    return SampledGaussianMechanism(
        rate=rate, noise_multiplier=noise, steps=times, **fields
    )


def directions(rate, noise, shifts, order):
    """Divergences of a step in which every record joins by a coin of its own."""
    shifts = np.asarray(shifts, dtype=float)
    subsets = np.array(np.meshgrid(*[[0, 1]] * len(shifts))).reshape(len(shifts), -1)
    moved = shifts @ subsets
    weight = binom.logpmf(subsets, 1, rate).sum(axis=0)
    still = gaussian_log_density(0.0, noise)

    def mixture(x):
        parts = [
            w + gaussian_log_density(m, noise)(x)
            for w, m in zip(weight, moved, strict=True)
        ]
        return logsumexp(parts, axis=0)

    reach = np.abs(shifts).sum()
    span = {"low": -20 * noise - order * reach, "high": 20 * noise + order * reach}
    return (
        renyi_divergence(mixture, still, order, points=40_001, **span),
        renyi_divergence(still, mixture, order, points=40_001, **span),
    )


@settings(max_examples=40)
@given(
    rate=st.floats(0.01, 0.95),
    noise=st.floats(0.8, 6.0),
    shifts=st.lists(st.floats(-1, 1), min_size=1, max_size=5),
    order=st.sampled_from([1.1, 1.5, 2.0, 3.7, 6.0]),
)
def test_no_group_costs_more_than_the_bound(rate, noise, shifts, order):
    curve = group_curve(steps(rate, noise), len(shifts))
    bound = curve.values[curve.orders.index(order)]
    assert max(directions(rate, noise, shifts, order)) <= bound * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(("size", "lost"), [(2, 1.02), (3, 1.12), (4, 1.04)])
def test_the_bound_is_near_for_equal_records(size, lost):
    # The worst case is a group that pulls one way; the bound by halving loses little
    # where a step costs little.
    epsilon = group_curve(steps(0.05, 4, 100), size).to_epsilon(1e-5).epsilon
    orders = np.arange(2, 30)
    true = [max(directions(0.05, 4, np.ones(size), float(a))) for a in orders]
    least = min(
        100 * v + np.log(1 - 1 / a) - (np.log(1e-5) + np.log(a)) / (a - 1)
        for v, a in zip(true, orders, strict=True)
    )
    assert least <= epsilon < lost * least


def test_one_record_is_the_mechanism_itself():
    mechanism = steps(0.1, 2, 30)
    assert group_curve(mechanism, 1) == curve_of(mechanism)


def test_without_sampling_it_is_the_exact_rule_of_gaussians():
    mechanism = steps(1.0, 2, 30)
    assert group_curve(mechanism, 7) == curve_of(mechanism).group(7)


@pytest.mark.parametrize(
    ("rate", "noise", "times"), [(0.05, 4, 100), (0.01, 1, 1000), (0.9, 10, 5)]
)
def test_more_records_cost_more(rate, noise, times):
    curves = [group_curve(steps(rate, noise, times), m) for m in (1, 2, 3, 4, 7, 8, 40)]
    found = [curve.to_epsilon(1e-5).epsilon for curve in curves]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_it_is_never_above_one_coin_for_all():
    for rate, noise, size in [(0.05, 4, 8), (0.9, 5, 4), (0.3, 1, 3)]:
        curve = group_curve(steps(rate, noise, 3), size)
        whole = curve_of(steps(1 - (1 - rate) ** size, noise / size, 3))
        assert (curve.values <= whole.values * (1 + 1e-12)).all()


def test_the_relation_is_kept_and_converts_to_forgetting():
    curve = group_curve(steps(0.1, 2, 10), 4)
    assert curve.adjacency == "add_remove"
    assert curve.to_adjacency("unlearn").adjacency == "unlearn"


def test_a_group_has_a_record():
    with pytest.raises(InvalidArgumentError, match=r"size: must be .* got 0"):
        group_curve(steps(0.1, 2), 0)
