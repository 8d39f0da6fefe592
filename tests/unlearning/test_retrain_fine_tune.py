"""Retraining is training without the data; fine-tuning is more training."""

from dataclasses import replace

import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import InvalidHyperparameterError, UnsupportedRequestError
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(rounds=6, local=LocalSteps(batch_size=5, momentum=0.5))
REQUESTS = [
    ForgetRequest.samples(peer=1, indices=[0, 4]),
    ForgetRequest.samples(peer=1, indices=[0, 4], normalization="fixed"),
    ForgetRequest.whole_peer(2),
    ForgetRequest.class_(0),
]


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.kind)
def test_coupled_retraining_is_the_simulation_without_the_data(run, request_):
    outcome = unlearn(run, request_, Retrain())
    expected = simulate("ring", DATA.without(request_), "logistic", CONFIG)
    assert torch.equal(outcome.state.params, expected.state.params)
    assert torch.equal(
        outcome.state.slots["momentum"], expected.state.slots["momentum"]
    )
    assert torch.equal(outcome.reference.state.params, expected.state.params)
    assert outcome.reference.digest == expected.digest


def test_independent_retraining_draws_afresh_and_is_no_reference(run):
    outcome = unlearn(run, REQUESTS[0], Retrain(coupled=False, seed_offset=3))
    config = replace(CONFIG, seed=3)
    expected = simulate("ring", DATA.without(REQUESTS[0]), "logistic", config)
    assert torch.equal(outcome.state.params, expected.state.params)
    assert outcome.reference is None
    assert outcome.certificate.status == "exact"


def test_retraining_is_exact_and_costs_the_whole_training(run):
    outcome = unlearn(run, REQUESTS[0], Retrain())
    certificate = outcome.certificate
    assert certificate.status == "exact"
    assert (certificate.epsilon, certificate.delta) == (0.0, 0.0)
    assert certificate.noise_std == certificate.sensitivity == 0
    assert certificate.reasons == ()
    assert "places in the batches stay empty" in str(certificate)
    assert outcome.ledger.entries == ()
    assert outcome.cost.rounds == 6
    assert len(outcome.messages) == 6 * 2 * 4
    assert outcome.cost.sample_gradients == run.info["sample_gradients"]


def test_retraining_after_another_request_leaves_both_out(run):
    first = unlearn(run, REQUESTS[0], FineTune(rounds=1)).as_run()
    outcome = unlearn(first, REQUESTS[2], Retrain())
    data = DATA.without(REQUESTS[0]).without(REQUESTS[2])
    expected = simulate("ring", data, "logistic", CONFIG)
    assert torch.equal(outcome.state.params, expected.state.params)


def test_private_training_is_never_repeated_with_the_same_noise():
    config = SimulationConfig(rounds=6, trainer=DpGossip(rate=0.5))
    run = simulate("ring", DATA, "logistic", config)
    with pytest.raises(UnsupportedRequestError, match=r"coupled: .*dp-gossip.*seed_of"):
        unlearn(run, REQUESTS[0], Retrain())
    outcome = unlearn(run, REQUESTS[0], Retrain(coupled=False, seed_offset=1))
    assert outcome.certificate.status == "exact"
    assert [e.mechanism.steps for e in outcome.ledger.entries] == [6, 6]
    assert {e.state for e in outcome.ledger.entries} == {"committed"}
    assert len(run.ledger.entries) == 1


def test_an_adaptive_request_is_not_called_exact(run):
    outcome = unlearn(run, replace(REQUESTS[0], adaptive=True), Retrain())
    assert outcome.certificate.status == "certified_conditional"
    assert outcome.certificate.epsilon == 0


def test_fine_tuning_is_more_rounds_on_what_is_kept(run):
    outcome = unlearn(run, REQUESTS[0], FineTune(rounds=4))
    data = DATA.without(REQUESTS[0])
    expected, gradients = continue_training(run, data, run.state, 4)
    assert torch.equal(outcome.state.params, expected.params)
    assert outcome.state.round == 10
    assert outcome.certificate is None
    assert outcome.ledger.entries == ()
    assert outcome.cost.rounds == 4
    assert outcome.cost.sample_gradients == gradients
    assert len(outcome.messages) == 4 * 2 * 4
    assert {m.kind for m in outcome.messages} == {"training"}


def test_one_peer_alone_may_retrain_and_fine_tune():
    alone = simulate(Topology.single(), DATA.pooled(), "logistic", CONFIG)
    request = ForgetRequest.samples(peer=0, indices=[3])
    for protocol in (Retrain(), FineTune(rounds=1)):
        outcome = unlearn(alone, request, protocol)
        assert outcome.state.params.shape == (1, 21)
        assert len(outcome.messages) == 0


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Retrain(coupled=False), "seed_offset"),
        (lambda: Retrain(seed_offset=1), "seed_offset"),
        (lambda: FineTune(rounds=0), "rounds"),
    ],
)
def test_fields_out_of_bounds_are_named(build, match):
    with pytest.raises(InvalidHyperparameterError, match=match):
        build()
