import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_unlearn.accounting.capacity import (
    convex_rate,
    deletion_capacity,
    limit_shift,
    mixing_time,
    nonconvex_rate,
    release_deletion_capacity,
    second_moment,
    strongly_convex_rate,
    walk_deletion_capacity,
)
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.errors import InvalidArgumentError, InvalidPrivacyParameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.walks import restart_law, walk_matrix

NEWTON = {  # decentralized-certified 7, item 14
    "peers": 10,
    "samples": 1000,
    "gradient_bound": 1.0,
    "strong_convexity": 0.1,
    "hessian_lipschitz": 1 / (6 * math.sqrt(3)),
    "parameters": 50,
    "tolerance": 0.1,
    "epsilon": 1.0,
    "delta": 1e-5,
}
WALK = {
    "peers": 10,
    "samples": 1000,
    "gradient_bound": 2.0,
    "diameter": 5.0,
    "tolerance": 0.3,
}


def test_the_capacity_of_newton_meets_the_oracle():
    classic = deletion_capacity(**NEWTON, calibration="classic")
    assert classic == pytest.approx(77.89, abs=0.005)
    assert deletion_capacity(**NEWTON) > classic


@settings(deadline=None)
@given(
    excess=st.floats(1e-4, 1.0),
    epsilon=st.floats(0.05, 8),
    parameters=st.integers(1, 10_000),
    peers=st.integers(1, 200),
)
def test_at_its_capacity_newtons_noise_just_fits(excess, epsilon, parameters, peers):
    fields = NEWTON | {
        "tolerance": excess,
        "epsilon": epsilon,
        "parameters": parameters,
        "peers": peers,
    }
    m = deletion_capacity(**fields)
    shift = fields["hessian_lipschitz"] * m**2 / (2 * 0.1**3 * (peers * 1000) ** 2)
    noise = gaussian_noise_std(epsilon, 1e-5, shift)
    loss = noise * math.sqrt(parameters)
    assert loss <= excess * (1 + 1e-9)
    assert m == 1000 or loss == pytest.approx(excess, rel=1e-8)
    assert deletion_capacity(**(fields | {"epsilon": 2 * epsilon})) >= m
    assert deletion_capacity(**(fields | {"parameters": 2 * parameters})) <= m


def test_quadratics_set_newton_no_limit():
    assert deletion_capacity(**(NEWTON | {"hessian_lipschitz": 0.0})) == 1000


def test_the_capacity_of_a_corrected_walk_is_what_its_bias_allows():
    assert walk_deletion_capacity(**WALK, optimization_error=0.0995) == 200
    m = walk_deletion_capacity(**WALK, optimization_error=0.1234)
    bias = m * 2.0 / (10 * 1000)
    assert 0.1234 + bias * 5.0 <= 0.3 < 0.1234 + (m + 1) * 2.0 / 10_000 * 5.0
    assert walk_deletion_capacity(**WALK, optimization_error=0.3) == 0
    assert walk_deletion_capacity(**WALK, optimization_error=9.0) == 0
    everything = WALK | {"tolerance": 1e300}
    assert walk_deletion_capacity(**everything, optimization_error=0.0) == 1000


@settings(deadline=None)
@given(tolerance=st.floats(1e-3, 1e3), decay=st.floats(1e-6, 1.0))
def test_at_its_capacity_the_noise_of_the_start_just_fits(tolerance, decay):
    fields = {k: v for k, v in NEWTON.items() if k != "hessian_lipschitz"}
    m = release_deletion_capacity(**(fields | {"tolerance": tolerance}), decay=decay)
    assert 0 < m < 1000
    shift = 2 * m / (0.1 * 10 * (1000 - m))
    loss = gaussian_noise_std(1.0, 1e-5, shift) * math.sqrt(50) * decay
    assert loss == pytest.approx(tolerance, rel=1e-6)
    assert loss <= tolerance * (1 + 1e-9)


# --- rates --------------------------------------------------------------------------


def test_noise_at_the_visits_enters_the_second_moment():
    moment = second_moment(3.0, restart=0.25, parameters=16, noise_std=2.0)
    assert moment == pytest.approx(5.0)


@pytest.mark.parametrize("bias", [0.0, 0.05])
@pytest.mark.parametrize("steps", [10, 400])
def test_projected_steps_on_a_convex_objective_keep_the_rate(bias, steps):
    # F(x) = |x| on [-1, 1], started at -1: D = 2, |update| <= 1 + bias.
    moment = 1 + bias
    rate = 2 / (moment * math.sqrt(steps))
    x, seen = -1.0, []
    for _ in range(steps):
        seen.append(x)
        x = float(np.clip(x - rate * (np.sign(x) - bias), -1, 1))
    bound = convex_rate(diameter=2.0, second_moment=moment, steps=steps, bias=bias)
    assert abs(np.mean(seen)) <= bound
    assert bound == pytest.approx(2 * moment / math.sqrt(steps) + 2 * bias)
    if bias == 0:
        last = convex_rate(
            diameter=2.0, second_moment=moment, steps=steps, last_iterate=True
        )
        assert last == pytest.approx(2 * bound * (2 + math.log(steps)))


def test_a_strongly_convex_objective_keeps_rate_and_shifted_limit():
    x, moment = 1.0, 0.5  # F = x^2 / 4 on [-1, 1]: gradients up to 1/2
    for t in range(1, 301):
        x = float(np.clip(x - (x / 2) / (0.5 * t), -1, 1))
        bound = strongly_convex_rate(
            strong_convexity=0.5, second_moment=moment, steps=t
        )
        assert x * x / 4 <= bound
    assert bound == pytest.approx(17 * 0.25 * (1 + math.log(300)) / 150)
    y = 1.0
    for _ in range(200):
        y -= 0.5 * (0.5 * y + 0.1)
    assert abs(y) == pytest.approx(limit_shift(bias=0.1, strong_convexity=0.5))


@pytest.mark.parametrize("bias", [0.0, 0.2])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_steps_without_convexity_keep_the_rate(bias, noise):
    # F = sum_i cos(x_i): smoothness 1, gap at most 2 per coordinate. Noise and bias per
    # coordinate; the mean over 4000 coordinates stands for the expectation.
    generator = RngTree("rates").numpy("method")
    start = generator.uniform(-3, 3, 4000)
    x, norms, rate = start.copy(), [], 0.5
    for _ in range(60):
        gradient = -np.sin(x)
        norms.append(np.mean(gradient**2))
        x = x - rate * (gradient + bias + noise * generator.standard_normal(x.size))
    bound = nonconvex_rate(
        gap=float(np.mean(np.cos(start)) + 1),
        learning_rate=rate,
        steps=60,
        smoothness=1.0,
        variance=noise**2,
        bias=bias,
    )
    assert np.mean(norms) <= bound


@pytest.mark.parametrize("restart", [0.05, 0.3])
def test_a_walk_has_mixed_by_its_mixing_time(restart):
    transition = walk_matrix(Topology.from_graph(nx.cycle_graph(12))).toarray()
    law = restart_law(transition, 0, restart)
    kernel = (1 - restart) * transition
    kernel[:, 0] += restart
    hops = math.ceil(mixing_time(restart, 0.01))
    far = np.linalg.matrix_power(kernel, hops)
    assert (0.5 * np.abs(far - law).sum(axis=1) <= 0.01).all()


def test_arguments_out_of_range_are_named():
    with pytest.raises(InvalidArgumentError, match=r"bias: must be 0 .* got 0\.1"):
        convex_rate(
            diameter=1.0, second_moment=1.0, steps=9, bias=0.1, last_iterate=True
        )
    with pytest.raises(InvalidArgumentError, match=r"at most .* = 0\.5, got 0\.6"):
        nonconvex_rate(
            gap=1.0, learning_rate=0.6, steps=9, smoothness=2.0, variance=0.0
        )
    with pytest.raises(InvalidArgumentError, match=r"distance: .* got 0\.0"):
        mixing_time(0.1, 0.0)
    with pytest.raises(InvalidPrivacyParameterError, match=r"delta: .* got 0\.0"):
        deletion_capacity(**(NEWTON | {"delta": 0.0}))
    with pytest.raises(InvalidArgumentError, match=r"strong_convexity: .* got 0\.0"):
        deletion_capacity(**(NEWTON | {"strong_convexity": 0.0}))
    with pytest.raises(InvalidArgumentError, match=r"samples: .* got 0"):
        walk_deletion_capacity(**(WALK | {"samples": 0}), optimization_error=0.0)
