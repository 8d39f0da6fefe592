"""Fine-tuning with an epsilon: descent to delete on the stack of all models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs, full_batch, path4, r4_data, r4_request, ridge

from dfl_unlearn import load_topology
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    PrivacyBudgetExceededError,
    ResidualExceedsCapError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.fixed_point import FixedPoint, stacked_newton
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune

REQUEST = r4_request("local_mean")
SAMPLES = ForgetRequest.samples(peer=1, indices=[0, 4])


@pytest.fixture(scope="module")
def trained():
    return simulate(path4(), r4_data(), ridge(), full_batch("cta", rounds=6000))


@pytest.fixture(scope="module")
def logistic():
    data = blobs([12, 7, 9, 10], dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)
    return simulate("ring", data, model, full_batch("cta", rounds=200, rate=0.02))


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


def rest(run, request):
    equation = FixedPoint(run, run.data.without(request))
    return stacked_newton(equation, run.state.params, target=1e-15, tolerance=1e-16)


@pytest.mark.parametrize(
    ("rounds", "true", "bound"),
    [(50, 0.0152946135, 1.0869130294), (200, 1.1077e-5, 0.2406988329)],
)
def test_the_certificate_stands_on_the_published_descent(trained, rounds, true, bound):
    protocol = FineTune(rounds=rounds, epsilon=1.0, residual_cap=bound)
    outcome = unlearn(trained, REQUEST, protocol)
    assert outcome.info["descent_to_delete_bound"] == pytest.approx(bound, abs=5e-11)
    tuned, _ = continue_training(
        trained, trained.data.without(REQUEST), trained.state, rounds
    )
    distance = float((tuned.params - rest(trained, REQUEST).state).norm())
    assert distance == pytest.approx(true, abs=5e-10)
    measured = assumption(outcome.certificate, "distance to the exact fixed point")
    assert distance <= measured.value <= bound
    assert measured.source == "measured"


def test_the_noise_follows_the_cap_and_is_one_release_of_the_whole_stack(logistic):
    protocol = FineTune(rounds=400, epsilon=0.5, residual_cap=2.0)
    outcome = unlearn(logistic, SAMPLES, protocol)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert (certificate.epsilon, certificate.delta) == (0.5, 1e-5)
    assert certificate.scope == "joint"
    assert certificate.bound == "capped"
    assert certificate.sensitivity == 2.0 * 1.01
    assert certificate.noise_std == gaussian_noise_std(0.5, 1e-5, 2.02)
    tuned, _ = continue_training(
        logistic, logistic.data.without(SAMPLES), logistic.state, 400
    )
    noise = RngTree(0).normal((4, 21), "unlearn-noise", who="peer:1", request="r0")
    expected = tuned.params + certificate.noise_std * noise
    assert torch.equal(outcome.state.params, expected)
    (entry,) = outcome.ledger.entries
    assert (entry.state, entry.owner, entry.scope) == ("committed", "peer:1", "joint")
    assert entry.mechanism.sensitivity == certificate.sensitivity
    assert "carry no noise: scope joint covers final models" in str(certificate)
    assert certificate.group_size is None
    disclosed = unlearn(logistic, SAMPLES, replace(protocol, disclose_m=True))
    assert disclosed.certificate.group_size == 2


def test_what_is_held_against_the_cap_is_measured_where_training_ended(logistic):
    tight = FineTune(rounds=400, epsilon=1.0, residual_cap=1e9)
    measured = unlearn(logistic, SAMPLES, tight).info["distance_bound"]
    just = replace(tight, residual_cap=measured)
    assert unlearn(logistic, SAMPLES, just).certificate.status == "certified"
    with pytest.raises(ResidualExceedsCapError, match=r"400 rounds.*factor of 0\.99"):
        unlearn(logistic, SAMPLES, replace(tight, residual_cap=measured * 0.999))


def test_a_missed_cap_charges_nothing(logistic):
    before = logistic.ledger.entries
    with pytest.raises(ResidualExceedsCapError, match=r"cap 0\.001; nothing was sent"):
        unlearn(logistic, SAMPLES, FineTune(epsilon=1.0))
    assert logistic.ledger.entries == before


def test_float32_that_is_too_coarse_for_the_cap_is_refused():
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=2.0)
    config = replace(full_batch("cta", rounds=200, rate=0.02), dtype="float32")
    run = simulate("ring", blobs([12, 7, 9, 10]), model, config)
    protocol = FineTune(rounds=1000, epsilon=1.0, residual_cap=1e-5)
    with pytest.raises(ResidualExceedsCapError, match=r"float32 may move them"):
        unlearn(run, SAMPLES, protocol)
    outcome = unlearn(run, SAMPLES, replace(protocol, residual_cap=5e-3))
    assert outcome.certificate.status == "certified"
    assert outcome.state.params.dtype == torch.float32
    rounding = assumption(outcome.certificate, "rounding of the released model").value
    assert 0 < rounding < 5e-5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"form": "atc"}, "trainer"),
        ({"batch_size": 4}, "local.batch_size"),
        ({"lr_schedule": "cosine"}, "local.lr_schedule"),
        ({"clip_norm": 1.0}, "local.clip_norm"),
        ({"model": "mlp"}, "model"),
    ],
)
def test_a_claim_that_training_does_not_carry_is_refused(fields, named):
    model, form = fields.pop("model", "logistic"), fields.pop("form", "cta")
    local = LocalSteps(**{"batch_size": None, **fields})
    config = replace(full_batch(form, rounds=2), local=local)
    run = simulate("ring", blobs([5] * 4, dtype=np.float64), model, config)
    with pytest.raises(UnsupportedRequestError, match=f"epsilon.*{named}"):
        unlearn(run, SAMPLES, FineTune(epsilon=1.0))
    assert unlearn(run, SAMPLES, FineTune()).certificate is None


def test_a_step_too_large_to_contract_has_no_formula_but_a_measured_bound():
    data = blobs([12, 7, 9, 10], dtype=np.float64)
    config = full_batch("cta", rounds=5, rate=3.0)
    run = simulate("ring", data, "logistic", config)
    assert FixedPoint(run).factor >= 1
    protocol = FineTune(rounds=2, epsilon=1.0, residual_cap=1e6)
    outcome = unlearn(run, SAMPLES, protocol)
    assert "descent_to_delete_bound" not in outcome.info
    with pytest.raises(ResidualExceedsCapError, match="No round is sure"):
        unlearn(run, SAMPLES, replace(protocol, residual_cap=1.0))
    assert outcome.certificate.status == "certified"


def test_the_budget_refuses_before_training_goes_on(logistic):
    budget = PrivacyBudget(epsilon_max=0.4)
    run = logistic.replaced(ledger=PrivacyLedger(budget))
    with pytest.raises(PrivacyBudgetExceededError, match=r"budget 0\.4"):
        unlearn(run, SAMPLES, FineTune(rounds=10**7, epsilon=0.5))


def test_releases_of_the_same_owner_compose(logistic):
    protocol = FineTune(rounds=3000, epsilon=1.0, residual_cap=0.1)
    first = unlearn(logistic, SAMPLES, protocol).as_run()
    second = unlearn(first, ForgetRequest.samples(peer=1, indices=[1]), protocol)
    # decentralized-certified 7, item 10: two (1, 1e-5) releases.
    assert second.certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)
    adaptive = replace(SAMPLES, adaptive=True)
    certificate = unlearn(logistic, adaptive, protocol).certificate
    assert certificate.status == "certified_conditional"


def test_several_owners_and_whole_peers_are_served(logistic):
    protocol = FineTune(rounds=50, epsilon=1.0, residual_cap=100.0)
    for request in (ForgetRequest.class_(0), ForgetRequest.whole_peer(2)):
        outcome = unlearn(logistic, request, protocol)
        assert outcome.certificate.status == "certified"
        assert {e.owner for e in outcome.ledger.entries} == {
            f"peer:{i}" for i in outcome.request.peers
        }


def test_one_peer_alone_is_plain_descent_to_delete():
    data = blobs([12, 7], dtype=np.float64).pooled()
    run = simulate(Topology.single(), data, "logistic", full_batch("cta", rounds=300))
    request = ForgetRequest.samples(peer=0, indices=[3])
    outcome = unlearn(run, request, FineTune(rounds=300, epsilon=1.0, residual_cap=5.0))
    assert outcome.certificate.status == "certified"
    assert outcome.certificate.observers == ("public",)
    # One peer: mu is rate times l2.
    assert FixedPoint(run).contraction == pytest.approx(0.1 * 0.01)


def test_a_directed_network_has_no_claim():
    run = simulate(
        load_topology("exponential", n=5),
        blobs([5] * 5, dtype=np.float64),
        "logistic",
        full_batch("cta", rounds=2),
    )
    with pytest.raises(UnsupportedRequestError, match="topology"):
        unlearn(run, SAMPLES, FineTune(epsilon=1.0))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"epsilon": 0.0}, InvalidPrivacyParameterError, "epsilon"),
        ({"delta": 1.0}, InvalidPrivacyParameterError, "delta"),
        ({"residual_cap": 0.0}, InvalidHyperparameterError, "residual_cap"),
        ({"noise_placement": "broadcast_model"}, InvalidArgumentError, "independent"),
    ],
)
def test_fields_out_of_bounds_are_named(fields, error, match):
    with pytest.raises(error, match=match):
        FineTune(**fields)
