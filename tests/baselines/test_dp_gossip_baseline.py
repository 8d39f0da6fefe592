"""Unlearning by doing nothing: what private training says of m forgotten records."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import (
    GaussianMechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.baselines.dp_gossip import DpGossipBaseline
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import TrainedRun, load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    GroupPrivacyError,
    InvalidPrivacyParameterError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import baselines, protocols, unlearners

DATA = blobs([12, 7, 9, 10])
TRAINER = DpGossip(rate=0.1, noise_multiplier=4.0, clip_norm=0.5)


def train(trainer=TRAINER, data=DATA, rounds=20, **fields):
    config = SimulationConfig(
        rounds=rounds, trainer=trainer, evaluate_every=0, **fields
    )
    return simulate("ring", data, "logistic", config)


@pytest.fixture(scope="module")
def run():
    return train()


def samples(*rows, peer=1):
    return ForgetRequest.samples(peer=peer, indices=rows)


def steps(rounds=20):
    return SampledGaussianMechanism(rate=0.1, noise_multiplier=4.0, steps=rounds)


def test_nothing_is_done_sent_or_charged(run):
    outcome = unlearn(run, samples(0, 4), "dp-gossip")
    assert outcome.state is run.state
    assert len(outcome.messages) == 0
    cost = outcome.cost
    assert (cost.rounds, cost.messages, cost.sample_gradients) == (0, 0, 0)
    assert outcome.ledger.entries == run.ledger.entries
    after = outcome.as_run()
    np.testing.assert_array_equal(after.data.keep, run.data.without(samples(0, 4)).keep)


def test_the_certificate_is_the_cost_of_the_group(run):
    certificate = unlearn(run, samples(0, 4), "dp-gossip").certificate
    assert certificate.status == "certified"
    assert (certificate.scope, certificate.adjacency) == ("view_joint", "unlearn")
    assert (certificate.accountant, certificate.bound) == ("rdp", "a_priori")
    curve = group_curve(steps(), 2)
    assert certificate.epsilon == curve.to_epsilon(1e-5).epsilon
    assert certificate.group_size == 2
    assert (certificate.sensitivity, certificate.noise_std) == (1.0, 2.0)
    assert "all messages of training are covered" in str(certificate)
    assert {a.source for a in certificate.assumptions} == {"clipped", "proven"}


def test_one_record_costs_what_the_ledger_says(run):
    certificate = unlearn(run, samples(3), "dp-gossip").certificate
    assert certificate.epsilon == run.ledger.epsilon("*", "public", 1e-5)
    smaller = unlearn(run, samples(3), DpGossipBaseline(delta=1e-7)).certificate
    assert smaller.epsilon == run.ledger.epsilon("*", "public", 1e-7)


def test_more_records_cost_more_and_never_a_share_of_epsilon(run):
    found = [
        unlearn(run, samples(*range(m)), "dp-gossip").certificate.epsilon
        for m in (1, 2, 3, 4)
    ]
    assert found == sorted(found)
    assert found[3] > 4 * found[0]


def test_records_of_several_owners_add_up(run):
    request = ForgetRequest.class_(1).resolve(run.data)
    sizes = [len(rows) for rows in request.items]
    assert len(sizes) > 1
    certificate = unlearn(run, request, "dp-gossip").certificate
    total = group_curve(steps(), sizes[0])
    for size in sizes[1:]:
        total = total + group_curve(steps(), size)
    assert certificate.epsilon == total.to_epsilon(1e-5).epsilon
    assert certificate.group_size == sum(sizes)


def test_the_world_compared_with_is_what_retraining_gives():
    # One round without mixing in between: the peers differ by clipped rows only, over
    # the public divisor, however the request normalizes.
    trainer = DpGossip(rate=1.0, noise_multiplier=1.0, clip_norm=0.5, form="cta")
    run = train(trainer, rounds=1, dtype="float64")
    for normalization in ("local_mean", "fixed"):
        request = replace(samples(0, 4), normalization=normalization)
        other = train(trainer, DATA.without(request), rounds=1, dtype="float64")
        moved = (run.state.params - other.state.params).norm(dim=1)
        assert float(moved[[0, 2, 3]].max()) < 1e-15
        assert 0 < float(moved[1]) <= 0.1 * 2 * 0.5 / 7 * (1 + 1e-12)


def test_a_request_that_saw_the_models_is_conditional(run):
    request = replace(samples(0), adaptive=True)
    certificate = unlearn(run, request, "dp-gossip").certificate
    assert certificate.status == "certified_conditional"


def test_rounds_that_followed_are_counted_too(run):
    tuned = unlearn(run, samples(5, peer=2), "fine-tune")
    later = run.replaced(ledger=tuned.ledger)
    certificate = unlearn(later, samples(0, 4), "dp-gossip").certificate
    total = group_curve(steps(20), 2) + group_curve(steps(10), 2)
    assert certificate.epsilon == total.to_epsilon(1e-5).epsilon


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda run: plain(), "trained by dp-gossip, got DSgd"),
        (lambda run: unlearn(run, samples(5), "fine-tune").as_run(), "as training"),
        (lambda run: brought_in(run), "as training left it"),
        (lambda run: run.replaced(ledger=PrivacyLedger()), "20 private rounds.*got 0"),
        (lambda run: run.replaced(ledger=charged(run)), "nothing else.*in 2 entries"),
        (lambda run: run.replaced(ledger=train(rounds=5).ledger), "got 5 of them"),
        (lambda run: run.replaced(config=quieter(run)), "got 0 of them"),
    ],
)
def test_what_group_privacy_does_not_cover_is_refused(run, broken, match):
    with pytest.raises(SensitivityUnprovenError, match=match):
        unlearn(broken(run), samples(0), "dp-gossip")


def plain():
    config = SimulationConfig(rounds=2, local=LocalSteps(clip_norm=1.0))
    return simulate("ring", DATA, "logistic", config)


def brought_in(run):
    return TrainedRun.from_states(
        run.topology, run.data, run.model, run.state.params, run.config
    )


def charged(run):
    ledger = run.ledger.fork()
    release = GaussianMechanism(noise_std=1.0, sensitivity=1.0)
    ledger.charge("r9", "peer:1", ("public",), release)
    return ledger


def quieter(run):
    return replace(run.config, trainer=replace(TRAINER, noise_multiplier=1.0))


def test_whole_peers_are_refused(run):
    with pytest.raises(
        UnsupportedRequestError, match="dp-gossip serves class, samples"
    ):
        unlearn(run, ForgetRequest.whole_peer(1), "dp-gossip")
    everything = replace(samples(*range(7)), normalization="fixed")
    with pytest.raises(UnsupportedRequestError, match="all rows of peer 1"):
        unlearn(run, everything, "dp-gossip")


def test_more_records_than_the_noise_hides_are_refused():
    run = train(DpGossip(rate=0.5, noise_multiplier=1e-160), rounds=1)
    with pytest.raises(GroupPrivacyError, match="no finite epsilon"):
        unlearn(run, samples(0, 1, 2, 3), "dp-gossip")


def test_a_stored_run_keeps_its_claim(tmp_path):
    from dfl_unlearn.data.peers import PeerData
    from dfl_unlearn.unlearning.store import load_outcomes

    data = PeerData.load("gaussian-classes", peers=4, seed=0)
    config = SimulationConfig(rounds=5, trainer=TRAINER, evaluate_every=0)
    simulate("ring", data, "logistic", config, folder=tmp_path / "a")
    run = load_run(tmp_path / "a")
    outcome = unlearn(run, samples(0, 4), "dp-gossip", folder=run.folder)
    (read,) = load_outcomes(run)
    assert read.protocol == outcome.protocol == DpGossipBaseline()
    assert read.certificate == outcome.certificate
    assert read.protocol_name == "dp-gossip"
    assert torch.equal(read.state.params, run.state.params)


def test_the_baseline_is_found_among_all_that_can_forget():
    assert "dp-gossip" in baselines
    assert "dp-gossip" not in protocols
    assert set(unlearners.names()) == {*baselines.names(), *protocols.names()}
    assert DpGossipBaseline().check.__doc__
    assert unlearners.name_of(DpGossipBaseline()) == "dp-gossip"


def test_delta_is_checked():
    with pytest.raises(InvalidPrivacyParameterError, match="delta"):
        DpGossipBaseline(delta=1.0)


def test_the_rng_is_not_read(run):
    request = samples(0).resolve(run.data)
    request = replace(request, request_id="r0")
    one, two = (
        DpGossipBaseline().unlearn(run, request, RngTree(seed)) for seed in (0, 1)
    )
    assert one.certificate == two.certificate
