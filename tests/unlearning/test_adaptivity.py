"""Requests chosen after looking: conditional, unless all before was private."""

from dataclasses import replace

import pytest
from networks import blobs

from dfl_unlearn.accounting.certificate import ADAPTIVE, PRIVATE_BEFORE
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.protocols.rr_du import RrDu

DATA = blobs([12, 9, 9, 10])
TOLD = NewtonFisher(disclose_m=True)
WALK = RrDu(residual_cap=0.5, delta0="assumed", hops=40, disclose_m=True)
CHOSEN = ForgetRequest.samples(peer=1, indices=[3], adaptive=True)


@pytest.fixture(scope="module")
def plain():
    config = SimulationConfig(
        rounds=6,
        local=LocalSteps(batch_size=5),
        evaluate_every=0,
        record=RecordPlan.for_protocols(RrDu),
    )
    return simulate("ring", DATA, "logistic", config)


@pytest.fixture(scope="module")
def private():
    config = SimulationConfig(
        rounds=20,
        trainer=DpGossip(noise_multiplier=2.0, rate=0.1),
        evaluate_every=0,
    )
    return simulate("ring", DATA, "logistic", config)


def lifted(outcome):
    found = [a for a in outcome.certificate.assumptions if a.name == PRIVATE_BEFORE]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("protocol", [TOLD, WALK], ids=["newton", "walk"])
def test_a_chosen_request_is_conditional_with_the_fixed_reason(plain, protocol):
    outcome = unlearn(plain, CHOSEN, protocol)
    fixed = unlearn(plain, replace(CHOSEN, adaptive=False), protocol)
    assert outcome.certificate.status == "certified_conditional"
    assert outcome.certificate.reasons[-1] == ADAPTIVE
    assert ADAPTIVE == (
        "request may depend on released models: the guarantee covers requests fixed in "
        "advance only"
    )
    assert "adaptive requests: those chosen" in str(outcome.certificate)
    assert outcome.certificate.epsilon == fixed.certificate.epsilon
    assert {e.status for e in outcome.ledger.entries} == {"certified_conditional"}


def test_retraining_a_chosen_request_is_conditional_even_after_private_training(
    plain, private
):
    fresh = Retrain(coupled=False, seed_offset=1)
    for run, protocol in ((plain, Retrain()), (private, fresh)):
        certificate = unlearn(run, CHOSEN, protocol).certificate
        assert certificate.status == "certified_conditional"
        assert certificate.reasons == (ADAPTIVE,)


def test_private_training_lifts_the_claim_and_prints_the_total(private):
    outcome = unlearn(private, CHOSEN, TOLD)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert certificate.reasons == ()
    assert certificate.epsilon == 1.0
    public = private.ledger.public_epsilon("public", 1e-5)
    assert lifted(outcome).value == public > 0
    note = lifted(outcome).note
    assert "at delta 2e-05, for all that was seen before and after together" in note
    printed = float(note.split("epsilon_public = ")[1].split(" ")[0])
    assert 1.0 + public <= printed <= (1.0 + public) * 1.001
    assert "(private for any one record: account *" in certificate.exposure[0]
    covers = str(certificate).split("does not cover:")[1]
    assert "adaptive requests" not in covers
    owned = [e for e in outcome.ledger.entries if e.owner == "peer:1"]
    assert {e.status for e in owned} == {"certified"}


def test_the_total_is_that_of_the_group(private):
    two = replace(CHOSEN, items=((3, 5),))
    outcome = unlearn(private, two, TOLD)
    group = private.ledger.public_epsilon("public", 1e-5, group_size=2)
    assert lifted(outcome).value == group
    assert group > private.ledger.public_epsilon("public", 1e-5)
    assert "for 2 of them" in lifted(outcome).note


def test_nothing_lifts_a_request_that_was_fixed_in_advance(private):
    outcome = unlearn(private, replace(CHOSEN, adaptive=False), TOLD)
    assert outcome.certificate.status == "certified"
    assert lifted(outcome) is None


def test_the_number_of_records_must_not_be_a_secret(private):
    outcome = unlearn(private, CHOSEN, NewtonFisher())
    assert outcome.certificate.status == "certified_conditional"
    assert lifted(outcome) is None


def test_plain_training_is_not_made_private_by_an_entry(plain):
    ledger = plain.ledger.fork()
    ledger.charge(
        "training",
        "*",
        ("public",),
        GaussianMechanism(noise_std=9.0, sensitivity=1.0, adjacency="add_remove"),
    )
    outcome = unlearn(replace(plain, ledger=ledger), CHOSEN, TOLD)
    assert lifted(outcome) is None
    assert outcome.certificate.reasons == (ADAPTIVE,)


def test_what_was_released_for_another_request_is_not_private_for_all(private):
    first = unlearn(private, ForgetRequest.samples(peer=2, indices=[0]), TOLD)
    carried = first.as_run()
    assert lifted(unlearn(carried, CHOSEN, TOLD)) is None
    # Nor is a model that was trained on without noise of its own afterwards.
    other = ForgetRequest.samples(peer=2, indices=[0])
    retrained = unlearn(private, other, Retrain(coupled=False, seed_offset=1))
    assert lifted(unlearn(retrained.as_run(), CHOSEN, TOLD)) is None


def test_rounds_that_were_not_charged_are_not_private(private):
    longer = replace(private, state=replace(private.state, round=21))
    assert lifted(unlearn(longer, CHOSEN, TOLD)) is None
