"""Newton/Fisher: bounds before and after a correction, with every constant's source."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blobs, full_batch, l6_data, logistic4, r4_data, ridge

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.newton_bounds import prior_bound
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

REQUEST = ForgetRequest.samples(peer=1, indices=[0, 1, 2])


def at(run, theta, residual):
    """The run with all peers at one model, and how far that rests, as recorded."""
    record = replace(run.record, training_residual={run.state.round: residual})
    state = PeerState(params=theta.expand(run.topology.n, -1).clone(), round=1)
    return replace(run, state=state, record=record)


@pytest.fixture(scope="module")
def rested():
    """L6 at the exact minimizer of all data."""
    run = simulate("ring", l6_data(), logistic4(), full_batch(rounds=1))
    return at(run, exact_minimizer(run, gradient_norm=1e-15).theta, 1e-15)


def test_the_bounds_of_logistic_regression_before_and_after(rested):
    """decentralized-certified 7, item 5."""
    protocol = NewtonFisher(
        curvature="diag_fisher", newton_steps_max=1, residual_cap=0.1
    )
    outcome = unlearn(rested, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    prior = prior_bound(protocol, rested, REQUEST.resolve(rested.data))
    assert prior.gradient == pytest.approx(0.2)
    assert prior.shift == pytest.approx(4.0)
    assert prior.newton == pytest.approx(15.396, abs=5e-4)
    assert outcome.info["prior_bound"] == pytest.approx(prior.newton + 4.0)
    (distance,) = [a for a in certificate.assumptions if a.source == "measured"][:1]
    assert distance.value == pytest.approx(0.0858093, abs=5e-8)
    text = str(certificate)
    assert "on which nothing rests: Delta_pri" in text
    assert "(vacuous: above the cap)" in text
    assert "|grad F-| / lambda was 0.2403507 at the mean model" in text
    assert "and 0.0858093 after it" in text
    for constant in ("lambda = 0.05 (l2, proven)", "M = 0.096225", "beta = 0.3 "):
        assert constant in text
    assert "B = 1 from the stored rows" in text


def test_one_exact_step_has_newtons_part_alone(rested):
    prior = prior_bound(NewtonFisher(), rested, REQUEST.resolve(rested.data))
    assert prior.curvature == 0
    assert prior.total == prior.newton
    damped = prior_bound(
        NewtonFisher(damping=0.05), rested, REQUEST.resolve(rested.data)
    )
    assert damped.curvature == pytest.approx(0.05 / (0.05 * 0.1) * 0.2)


def test_a_bound_before_never_changes_the_status(rested):
    """Vacuous, unknown or small, it is a sentence and no assumption."""
    certificate = unlearn(rested, REQUEST, NewtonFisher()).certificate
    assert certificate.status == "certified"
    assert not [a for a in certificate.assumptions if "before" in a.name]
    unrecorded = replace(rested, record=None)
    outcome = unlearn(unrecorded, REQUEST, NewtonFisher())
    assert outcome.certificate.status == "certified"
    assert outcome.certificate.epsilon == certificate.epsilon
    assert "L + lambda |theta|" in str(outcome.certificate)
    assert outcome.info["prior_bound"] > 15.4


def test_squared_errors_have_no_bound_on_gradients_but_need_none():
    run = simulate("path", r4_data(), ridge(), full_batch(rounds=5))
    request = ForgetRequest.samples(peer=2, indices=[0])
    prior = prior_bound(NewtonFisher(), run, request)
    assert prior.newton == prior.total == 0
    assert prior.gradient == math.inf
    damped = prior_bound(NewtonFisher(damping=1.0), run, request)
    assert damped.total == math.inf
    assert "none, since L is unknown" in damped.sentence
    outcome = unlearn(run, request, NewtonFisher())
    assert outcome.info["prior_bound"] == 0
    assert "prior_shift_bound" not in outcome.info


def test_no_bound_is_invented_for_networks():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,), l2=0.01)
    run = simulate("ring", blobs([8, 6, 7]), model, full_batch(rounds=2))
    request = ForgetRequest.samples(peer=1, indices=[0])
    outcome = unlearn(run, request, NewtonFisher(damping=3.0))
    assert "prior_bound" not in outcome.info
    text = str(outcome.certificate)
    assert "none is known for a model that is not strongly convex" in text
    assert "|grad F-| / lambda" not in text


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3]),
    weighting=st.sampled_from(["uniform", "size"]),
    kind=st.sampled_from(["samples", "fixed", "peer", "class"]),
)
def test_the_bounds_before_hold(seed, classes, weighting, kind):
    data = blobs([6, 5, 8], seed=seed, classes=classes, dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=classes, l2=0.3)
    config = full_batch("atc", rounds=1, peer_weighting=weighting)
    run = simulate("path", data, model, config)
    generator = torch.Generator().manual_seed(seed)
    theta = exact_minimizer(run, gradient_norm=1e-13).theta
    theta = theta + 0.05 * torch.randn(len(theta), generator=generator).double()
    residual = float(network_objective(run).gradient(theta).norm())
    run = at(run, theta, residual * (1 + 1e-9))
    request = {
        "samples": ForgetRequest.samples(peer=1, indices=[0, 2]),
        "fixed": ForgetRequest.samples(peer=1, indices=[0, 2], normalization="fixed"),
        "peer": ForgetRequest.whole_peer(2),
        "class": ForgetRequest.class_(0),
    }[kind].resolve(data)
    kept = network_objective(run, data.without(request))
    target = exact_minimizer(run, data.without(request), gradient_norm=1e-13).theta
    prior = prior_bound(NewtonFisher(), run, request)
    gradient = kept.gradient(theta)
    assert float(gradient.norm()) <= prior.gradient * (1 + 1e-9)
    assert float((theta - target).norm()) <= prior.shift + 1e-9
    operator = kept.hessian(theta)
    unit = torch.eye(len(theta), dtype=torch.float64)
    hessian = torch.stack([operator @ row for row in unit])
    exact = theta - torch.linalg.solve(hessian, gradient)
    assert float((exact - target).norm()) <= prior.newton + 1e-9
    # A curvature of at least lambda, here 2.5 lambda, is off by the curvature's part.
    rough = theta - gradient / 0.75
    off = prior_bound(NewtonFisher(curvature="diag_fisher"), run, request)
    assert float((rough - target).norm()) <= off.total + 1e-9
