"""Gradient tracking: reaches the exact minimizer at the published rate; refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs, full_batch, path4, r4_data, ridge

from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedRequestError
from dfl_unlearn.record.influence import influence_trace

MINIMIZER = torch.tensor([-0.1700389253, -0.2287810290], dtype=torch.float64)


def tracking(rounds):
    return replace(full_batch(rounds=rounds), trainer=GradientTracking())


def from_zero(config, data=None):
    model = ridge()
    model.init = lambda rng: torch.zeros(model.size, dtype=torch.float64)
    return simulate(path4(), r4_data() if data is None else data, model, config)


@pytest.mark.parametrize(
    ("rounds", "error"), [(50, 7.36e-3), (200, 8.35e-7)]
)  # decentralized-certified 7, item 2
def test_the_error_falls_as_published(rounds, error):
    run = from_zero(tracking(rounds))
    worst = (run.state.params - MINIMIZER).abs().max()
    np.testing.assert_allclose(worst, error, rtol=2e-3)


def test_it_reaches_the_exact_minimizer_where_d_sgd_does_not():
    tracked, plain = from_zero(tracking(800)), from_zero(full_batch(rounds=800))
    # The published minimizer has ten digits.
    assert (tracked.state.params - MINIMIZER).abs().max() < 1e-10
    assert tracked.state.consensus_distance() < 1e-30
    assert (plain.state.params - MINIMIZER).abs().max() > 1e-2


def test_the_trackers_mean_is_the_mean_gradient():
    config = replace(
        tracking(7),
        local=LocalSteps(batch_size=4, learning_rate=0.2),
        peer_weighting="size",
    )
    run = simulate("star", blobs([9, 20, 4, 13, 6], dtype=np.float64), "mlp", config)
    slots = run.state.slots
    np.testing.assert_allclose(
        slots["tracker"].mean(0), slots["gradient"].mean(0), atol=1e-14
    )
    assert float(slots["tracker"].norm()) > 1e-3


def test_a_state_without_slots_starts_the_trackers_anew():
    run = from_zero(tracking(300))
    state = replace(run.state, slots={})
    again, _ = continue_training(run, run.data, state, 500)
    assert (again.params - MINIMIZER).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (LocalSteps(steps=2), "local.steps: must be 1 for gradient-tracking, got 2"),
        (LocalSteps(epochs=1.5), "got epochs=1.5"),
        (LocalSteps(momentum=0.9), "local.momentum: must be 0 .* got 0.9"),
    ],
)
def test_what_the_iteration_has_not_is_refused(local, message):
    with pytest.raises(InvalidArgumentError, match=message):
        SimulationConfig(trainer=GradientTracking(), local=local)


def test_a_norm_bound_is_refused_for_trackers():
    run = from_zero(tracking(3))
    with pytest.raises(UnsupportedRequestError, match="gradient tracker"):
        influence_trace(run.record, run.topology, 2)
