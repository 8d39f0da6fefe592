"""decentralized-certified 7, item 3: the decentralized target and its bounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blobs, full_batch, path4, r4_data, r4_request, ridge

from dfl_unlearn import load_topology
from dfl_unlearn.curvature.newton import newton_step
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedRequestError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.influence import resolvent_weights
from dfl_unlearn.unlearning.fixed_point import (
    FixedPoint,
    linearized_gossip,
    stacked_newton,
)
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

FULL = [
    [-0.0966602515, -0.2996974989],
    [-0.1363581786, -0.1887418784],
    [-0.1808748246, -0.2441529276],
    [-0.2079326265, -0.2203770732],
]
RETAINED = [
    [-0.1592754222, -0.2577579855],
    [-0.2069115917, -0.1450211067],
    [-0.2725194388, -0.1882173995],
    [-0.2826916963, -0.1768193626],
]
REQUEST = r4_request("local_mean")


@pytest.fixture(scope="module")
def trained():
    return simulate(path4(), r4_data(), ridge(), full_batch("cta", rounds=6000))


def kept(run, request=REQUEST):
    return FixedPoint(run, run.data.without(request))


def test_training_comes_to_rest_at_the_published_point(trained):
    np.testing.assert_allclose(trained.state.params, FULL, atol=5e-11)
    assert float(FixedPoint(trained).residual(trained.state.params).norm()) < 1e-14


def test_the_removal_shows_in_the_owners_block_alone(trained):
    residual = kept(trained).residual(trained.state.params).norm(dim=1)
    assert float(residual[2]) > 1e-3
    assert float(residual[[0, 1, 3]].max()) < 1e-14


def test_one_newton_step_equals_the_retrained_point(trained):
    equation = kept(trained)
    x = trained.state.params
    move, _ = linearized_gossip(equation, x, -equation.residual(x), tolerance=1e-17)
    np.testing.assert_allclose(x + move, RETAINED, atol=5e-11)
    retrained = simulate(
        path4(), r4_data().without(REQUEST), ridge(), full_batch("cta", rounds=6000)
    )
    # Published as below 1e-15; both sides carry the rounding of a thousand rounds.
    np.testing.assert_allclose(x + move, retrained.state.params, atol=3e-15)


def test_the_mean_models_correction_leaves_the_published_errors(trained):
    full = exact_minimizer(trained, gradient_norm=1e-15).theta
    data = trained.data.without(REQUEST)
    objective = network_objective(trained, data)
    delta, _ = newton_step(
        objective,
        full,
        objective.gradient(full),
        damping=0.0,
        tolerance=1e-14,
        max_iterations=50,
    )
    h = float(network_objective(trained).hessian(full).diagonal().mean())
    assert h == pytest.approx(0.6068255507, abs=5e-11)
    weights = {
        "uniform": np.ones(4),
        "resolvent": resolvent_weights(path4(), 2, 0.1, h, "cta"),
    }
    published = {
        "uniform": [0.01442, 0.00736, 0.02170, 0.00415],
        "resolvent": [0.01079, 0.00666, 0.00734, 0.00609],
    }
    for name, a in weights.items():
        corrected = trained.state.params + torch.from_numpy(a)[:, None] * delta
        error = (corrected - torch.tensor(RETAINED)).norm(dim=1)
        np.testing.assert_allclose(error, published[name], atol=5e-6, err_msg=name)


@pytest.mark.parametrize(
    ("rounds", "true", "bound"),
    [
        (0, 0.1777148943, 1.7965324455),
        (50, 0.0152946135, 1.0869130294),
        (200, 1.1077e-5, 0.2406988329),
    ],
)
def test_descent_to_delete_is_as_published(trained, rounds, true, bound):
    data, equation = trained.data.without(REQUEST), kept(trained)
    found = equation.distance_bound(trained.state.params, rounds)
    np.testing.assert_allclose(found, bound, atol=5e-9)
    start = PeerState(params=trained.state.params, round=trained.state.round)
    state, _ = continue_training(trained, data, start, rounds)
    rest = stacked_newton(equation, state.params, target=1e-16, tolerance=1e-16)
    distance = float((state.params - rest.state).norm())
    np.testing.assert_allclose(distance, true, atol=5e-10)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["ring", "path", "star", "complete"]),
    weighting=st.sampled_from(["uniform", "size"]),
    classes=st.sampled_from([2, 3]),
    decay=st.sampled_from([0.0, 0.05]),
    whole=st.booleans(),
    rounds=st.integers(0, 30),
)
def test_the_bounds_are_never_below_the_true_distance(
    seed, name, weighting, classes, decay, whole, rounds
):
    data = blobs([3, 7, 5, 4], seed=seed, classes=classes, dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=classes, l2=0.05)
    local = LocalSteps(batch_size=None, learning_rate=0.02, weight_decay=decay)
    config = replace(
        full_batch("cta", rounds=10), local=local, peer_weighting=weighting
    )
    run = simulate(load_topology(name, n=4), data, model, config)
    peer = seed % 4
    request = (
        ForgetRequest.whole_peer(peer)
        if whole
        else ForgetRequest.samples(peer, indices=[0, 2])
    )
    left = run.data.without(request)
    equation = FixedPoint(run, left)
    path = stacked_newton(equation, run.state.params, target=1e-13, tolerance=1e-8)
    assert path.residuals[-1] <= 1e-13
    start = PeerState(params=run.state.params, round=10)
    state, _ = continue_training(run, left, start, rounds)
    distance = float((state.params - path.state).norm())
    assert distance <= equation.distance_bound(state.params) + 1e-9
    try:
        assert distance <= equation.distance_bound(run.state.params, rounds) + 1e-9
    except InvalidArgumentError as error:
        assert "learning_rate" in str(error)  # noqa: PT017
    # What one round changes is the residual.
    moved, _ = continue_training(run, left, start, 1)
    np.testing.assert_allclose(
        moved.params,
        run.state.params - equation.residual(run.state.params),
        atol=1e-12,
    )


def test_the_jacobian_is_the_residuals_derivative():
    data = blobs([3, 7, 5, 4], dtype=np.float64)
    run = simulate("ring", data, "logistic", full_batch("cta", rounds=3))
    equation, x = FixedPoint(run), run.state.params
    rng = np.random.default_rng(0)
    v = torch.from_numpy(rng.standard_normal(x.shape))
    h = 1e-6
    numeric = (equation.residual(x + h * v) - equation.residual(x - h * v)) / (2 * h)
    np.testing.assert_allclose(equation.product(x, v), numeric, atol=1e-8)
    assert float((v * equation.product(x, v)).sum()) >= (
        equation.contraction * float(v.square().sum())
    )
    assert float(equation.product(x, v).norm()) <= equation.largest * float(v.norm())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"form": "atc"}, "trainer"),
        ({"batch_size": 4}, "local.batch_size"),
        ({"steps": 2}, "local.steps"),
        ({"lr_schedule": "cosine"}, "local.lr_schedule"),
        ({"momentum": 0.5}, "local.momentum"),
        ({"clip_norm": 1.0}, "local.clip_norm"),
        ({"topology": "exponential"}, "topology"),
        ({"model": "mlp"}, "model"),
    ],
)
def test_other_training_is_refused_and_pointed_to_consensus(fields, named):
    topology = load_topology(fields.pop("topology", "ring"), n=5)
    model, form = fields.pop("model", "logistic"), fields.pop("form", "cta")
    local = LocalSteps(**{"batch_size": None, **fields})
    config = replace(full_batch(form, rounds=2), local=local)
    run = simulate(topology, blobs([4] * 5, dtype=np.float64), model, config)
    with pytest.raises(UnsupportedRequestError, match=f"{named}.*target='consensus'"):
        FixedPoint(run)
