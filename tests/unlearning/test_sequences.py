"""E5: deletions one after the other until the budget refuses, and who saw them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyBudget
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run, state_digest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import PrivacyBudgetExceededError
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import protocols
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.store import commit_outcome

DATA = blobs([12, 9, 9, 10])
NEWTON = NewtonFisher()
WALK = RrDu(residual_cap=0.5, delta0="assumed", hops=60)
certified = pytest.mark.parametrize("protocol", [NEWTON, WALK], ids=["newton", "walk"])
every_protocol = pytest.mark.parametrize("name", protocols.names())

# K releases calibrated to (1, 1e-5) each, composed exactly (decentralized-certified 7).
COMPOSED = (1.0, 1.4651699604, 1.8349654335, 2.1546766577)


def trained(epsilon_max=None, folder=None):
    config = SimulationConfig(
        rounds=6,
        local=LocalSteps(batch_size=5),
        evaluate_every=0,
        record=RecordPlan.for_protocols(RrDu),
        privacy_budget=PrivacyBudget(epsilon_max=epsilon_max),
    )
    return simulate("ring", DATA, "logistic", config, folder=folder)


def after(outcome):
    """The run from which the next request starts.

    A walk starts from the trained models, of which alone a residual was recorded, so
    its later requests are made there, with what was spent before.
    """
    if outcome.protocol == WALK:
        return replace(outcome.run, ledger=outcome.ledger)
    return outcome.as_run()


def request(k, peer=1):
    return ForgetRequest.samples(peer=peer, indices=[k], request_id=f"r{k}")


@certified
def test_certificates_of_a_sequence_carry_the_composed_epsilon(protocol):
    run = trained()
    for k, expected in enumerate(COMPOSED):
        outcome = unlearn(run, request(k), protocol)
        certificate = outcome.certificate
        assert certificate.epsilon == pytest.approx(expected, abs=1e-8)
        assert certificate.epsilon >= expected - 1e-8
        assert certificate.accountant == "exact_gaussian"
        assert len(outcome.ledger.entries) == k + 1
        earlier = [a for a in certificate.assumptions if "earlier releases" in a.name]
        assert [a.value for a in earlier] == ([k] if k else [])
        run = after(outcome)


def test_two_claims_of_different_size_compose_to_the_oracle():
    first = unlearn(trained(), request(0), NewtonFisher(epsilon=1.0))
    second = unlearn(first.as_run(), request(1), NewtonFisher(epsilon=0.5))
    assert second.certificate.epsilon == pytest.approx(1.1460631918, abs=2e-10)


def test_another_owner_starts_at_its_own_account():
    first = unlearn(trained(), request(0), NEWTON)
    other = unlearn(first.as_run(), request(0, peer=2), NEWTON)
    assert other.certificate.epsilon == 1.0
    assert other.ledger.epsilon("peer:1", "public", 1e-5) == pytest.approx(1.0)


@certified
def test_the_budget_refuses_before_anything_is_computed_or_sent(protocol, monkeypatch):
    run = trained(epsilon_max=2.0)
    for k in range(3):
        run = after(unlearn(run, request(k), protocol))
    digest, entries = state_digest(run.state), run.ledger.entries
    keep, head = run.data.keep.copy(), run.ledger.head
    sent = []
    monkeypatch.setattr(Transport, "_step", lambda *step: sent.append(step))
    monkeypatch.setattr(Transport, "send", lambda *step: sent.append(step))
    monkeypatch.setattr(
        type(protocol), "unlearn", lambda *given: pytest.fail("it was carried out")
    )
    with pytest.raises(PrivacyBudgetExceededError) as caught:
        unlearn(run, request(3), protocol)
    assert str(caught.value) == (
        "request r3 needs ε=2.155 in total at δ=1e-05 for owner peer:1 and observer "
        "peer:0, budget 2 (spent 1.835). Nothing was sent; retrain instead, or start a "
        "run with a larger budget"
    )
    assert caught.value.exit_code == 4
    assert sent == []
    assert state_digest(run.state) == digest
    assert (run.ledger.entries, run.ledger.head) == (entries, head)
    np.testing.assert_array_equal(run.data.keep, keep)


def test_retraining_is_the_way_on_and_what_was_spent_stays_spent():
    run = trained(epsilon_max=1.2)
    run = unlearn(run, request(0), NEWTON).as_run()
    with pytest.raises(PrivacyBudgetExceededError):
        unlearn(run, request(1), NEWTON)
    retrained = unlearn(run, request(1), "retrain")
    assert retrained.certificate.status == "exact"
    assert any("stay spent" in note for note in retrained.certificate.notes)
    with pytest.raises(PrivacyBudgetExceededError, match=r"spent 1\)"):
        unlearn(retrained.as_run(), request(2), NEWTON)


def test_a_smaller_claim_may_still_fit():
    run = unlearn(trained(epsilon_max=1.2), request(0), NEWTON).as_run()
    outcome = unlearn(run, request(1), NewtonFisher(epsilon=0.5))
    assert outcome.certificate.epsilon == pytest.approx(1.1460631918, abs=2e-10)
    left = outcome.ledger.remaining("peer:1", "public")
    assert left == pytest.approx(1.2 - 1.1460631918, abs=2e-10)


def kept_in(folder):
    """The bytes of every file but the lock, which says who held it last, and when."""
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"
    }


def test_a_sequence_on_disk_ends_with_a_refusal_and_an_intact_ledger(tmp_path):
    run = trained(epsilon_max=1.5, folder=tmp_path / "a")
    for k in range(2):
        outcome = unlearn(run, request(k), NEWTON, folder=run.folder)
        run = commit_outcome(outcome)
    files = kept_in(run.folder)
    with pytest.raises(PrivacyBudgetExceededError, match=r"budget 1\.5 \(spent 1\.466"):
        unlearn(run, request(2), NEWTON, folder=run.folder)
    assert kept_in(run.folder) == files
    again = load_run(run.folder, data=DATA)
    assert again.ledger.verify()[0] == 3  # two releases, reserved and committed
    assert torch.equal(again.state.params, run.state.params)
    assert again.ledger.epsilon("peer:1", "peer:3", 1e-5) == pytest.approx(
        COMPOSED[1], abs=2e-10
    )
    with pytest.raises(PrivacyBudgetExceededError):
        unlearn(again, request(2), NEWTON, folder=again.folder)


def test_a_list_that_the_budget_stops_leaves_the_run_as_it_was():
    run = trained(epsilon_max=1.2)
    digest = state_digest(run.state)
    with pytest.raises(PrivacyBudgetExceededError, match="request r1 needs"):
        unlearn(run, [request(0), request(1)], NEWTON)
    assert run.ledger.entries == ()
    assert state_digest(run.state) == digest
    together = unlearn(run, [request(0), request(1)], NEWTON, coalesce=True)
    assert together.certificate.epsilon == 1.0


def test_a_budget_counts_releases_of_earlier_processes_too():
    run = trained(epsilon_max=1.0)
    std = gaussian_noise_std(0.62, 1e-5, 1.0)
    spent = GaussianMechanism(noise_std=std, sensitivity=1.0)
    run.ledger.charge("old", "peer:1", ("peer:3",), spent)
    with pytest.raises(PrivacyBudgetExceededError, match=r"peer:3.*\(spent 0\.62\)"):
        unlearn(run, request(0), NEWTON)


# --- who saw what, by the transport --------------------------------------------------

REQUESTS = {
    "samples": ForgetRequest.samples(peer=1, indices=[0, 3]),
    "peer": ForgetRequest.whole_peer(2),
    "class": ForgetRequest.class_(1, peers=[0, 2]),
}


def mischarged(outcome):
    """Peers that received a message and are not charged, or are charged for none."""
    log, owners = outcome.messages, outcome.request.peers
    wrong = set()
    for owner in owners:
        named = {
            one
            for entry in outcome.ledger.entries
            if entry.owner == f"peer:{owner}"
            for one in entry.observers
        }
        received = {
            f"peer:{i}"
            for i in range(outcome.run.topology.n)
            if i not in owners and any(m.target == i for m in log.view(i))
        }
        wrong |= received ^ (named - {"public"})
        # Other owners, and all who see final models, by the public's account.
        wrong |= {
            f"peer:{i}"
            for i in range(outcome.run.topology.n)
            if i != owner
            and not outcome.ledger.epsilon(f"peer:{owner}", f"peer:{i}", 1e-5) > 0
        }
    return wrong


@every_protocol
@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("network", ["ring", "complete"])
def test_who_received_a_release_is_charged_and_nobody_else(name, kind, network):
    run = replace(trained(), topology=load_topology(network, n=4))
    kinds = getattr(protocols.build(name), "kinds", REQUESTS)
    if kind not in kinds:
        pytest.skip(f"{name} serves {', '.join(sorted(kinds))}")
    outcome = unlearn(run, REQUESTS[kind], name)
    if outcome.certificate is None or outcome.certificate.noise_std == 0:
        assert outcome.ledger.entries == ()
        return
    assert mischarged(outcome) == set()


@pytest.mark.parametrize("dissemination", ["tree", "flood"])
def test_a_star_sends_the_release_through_its_hub(dissemination):
    run = replace(trained(), topology=load_topology("star", n=4))
    protocol = NewtonFisher(dissemination=dissemination, recovery_rounds=0)
    assert mischarged(unlearn(run, REQUESTS["peer"], protocol)) == set()


def test_a_peer_that_is_left_out_of_the_charge_is_found(monkeypatch):
    from dfl_unlearn.unlearning import newton_release

    monkeypatch.setattr(
        newton_release, "observers_of", lambda run, request: ("peer:0", "peer:2")
    )
    outcome = unlearn(trained(), REQUESTS["samples"], NEWTON)
    assert mischarged(outcome) == {"peer:3"}
