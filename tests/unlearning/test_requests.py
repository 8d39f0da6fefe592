"""Lists of requests: none, one release for all, and one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import retrain, simulate
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    MissingInputError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.report import report_page
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import Cost, protocols
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.store import (
    commit_outcome,
    kept_certificate,
    load_outcomes,
)

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(
    rounds=6,
    local=LocalSteps(batch_size=5),
    evaluate_every=0,
    record=RecordPlan.for_protocols(RrDu),
)
NEWTON = NewtonFisher(disclose_m=True)
WALK = RrDu(residual_cap=0.5, delta0="assumed", hops=60, disclose_m=True)
THREE = [
    ForgetRequest.samples(peer=1, indices=[0, 4], request_id="mine"),
    ForgetRequest.samples(peer=1, indices=[1]),
    ForgetRequest.samples(peer=3, indices=[0, 2, 5]),
]
certified = pytest.mark.parametrize("protocol", [NEWTON, WALK], ids=["newton", "walk"])


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


# --- no request ----------------------------------------------------------------------


@pytest.mark.parametrize("name", protocols.names())
@pytest.mark.parametrize("coalesce", [False, True])
def test_an_empty_list_gives_the_runs_own_state(run, name, coalesce):
    outcome = unlearn(run, [], name, coalesce=coalesce, reference=True)
    assert outcome.state is run.state
    assert outcome.reference is run
    assert outcome.cost == Cost()
    assert len(outcome.messages) == 0
    assert outcome.ledger.entries == ()
    assert outcome.as_run() is run
    certificate = outcome.certificate
    assert certificate.status == "exact"
    assert (certificate.epsilon, certificate.delta) == (0, 0)
    assert certificate.method == name
    assert certificate.reasons == ()


def test_an_empty_list_is_measured_reported_and_kept_nowhere(tmp_path, run):
    saved = run.save(tmp_path / "a")
    before = sorted(saved.folder.rglob("*"))
    outcome = unlearn(saved, [], "newton-fisher", folder=saved.folder, reference=True)
    rows = evaluate(outcome).rows
    values = {(r["metric"], r["world"]): r["value"] for r in rows if r["peer"] == -1}
    assert values["test-accuracy", "after"] == values["test-accuracy", "reference"]
    assert values["cost-messages", "after"] == 0
    assert not any(metric == "forget-accuracy" for metric, _ in values)
    page = report_page(ResultsView.of(outcome))
    assert "No request: the network is as it was trained." in page
    assert commit_outcome(outcome) is saved
    assert sorted(saved.folder.rglob("*")) == before


# --- one release for several requests ------------------------------------------------


@certified
def test_coalesced_requests_cost_one_release(run, protocol):
    outcome = unlearn(run, THREE, protocol, coalesce=True)
    request = outcome.request
    assert request.coalesced == ("mine", "2", "3")
    assert request.peers == (1, 3)
    assert request.items == ((0, 1, 4), (0, 2, 5))
    # One release with one noise, charged to each owner whose data it depends on.
    assert [e.owner for e in outcome.ledger.entries] == ["peer:1", "peer:3"]
    assert len({e.release_id for e in outcome.ledger.entries}) == 1
    assert len({e.stream for e in outcome.ledger.entries}) == 1
    for owner in ("peer:1", "peer:3"):
        epsilon = outcome.ledger.epsilon(owner, "public", 1e-5)
        assert epsilon == pytest.approx(1.0, rel=1e-8)
    assert outcome.certificate.group_size == 6
    assert outcome.certificate.epsilon == 1.0
    assert any(
        note == "3 requests (mine, 2, 3) carried out as one: one correction, one "
        "release"
        for note in outcome.certificate.notes
    )


def test_the_same_requests_one_by_one_cost_a_release_each(run):
    together = unlearn(run, THREE, NEWTON, coalesce=True).as_run()
    apart = unlearn(run, THREE, NEWTON).as_run()
    np.testing.assert_array_equal(apart.data.keep, together.data.keep)
    assert len(apart.ledger.entries) == 3
    assert len(together.ledger.entries) == 2
    spent = [b.ledger.epsilon("peer:1", "public", 1e-5) for b in (apart, together)]
    assert spent == pytest.approx([1.4651699604, 1.0], abs=2e-10)


def test_coalesced_requests_have_the_group_size_in_the_ledger(run):
    entries = unlearn(run, THREE, NEWTON, coalesce=True).ledger.entries
    assert [e.group_size for e in entries] == [6, 6]
    hidden = unlearn(run, THREE, NewtonFisher(), coalesce=True)
    assert [e.group_size for e in hidden.ledger.entries] == [None, None]
    assert hidden.certificate.group_size is None


def test_coalesced_retraining_is_retraining_without_all_of_them(run):
    outcome = unlearn(run, THREE, "retrain", coalesce=True)
    expected = retrain(run, outcome.as_run().data)
    assert torch.equal(outcome.state.params, expected.state.params)


def test_a_whole_peer_may_be_among_coalesced_requests(run):
    requests = [ForgetRequest.whole_peer(2), ForgetRequest.class_(1)]
    outcome = unlearn(run, requests, "newton-fisher", coalesce=True)
    step = run.data.without(requests[0]).without(requests[1])
    np.testing.assert_array_equal(outcome.as_run().data.keep, step.keep)
    assert outcome.certificate.status == "certified"


def test_one_request_is_not_renamed_by_coalescing(run):
    alone = unlearn(run, THREE[:1], NEWTON, coalesce=True)
    assert alone.request == unlearn(run, THREE[0], NEWTON).request
    assert alone.request.coalesced == ()


def test_coalesced_requests_are_kept_committed_and_reported(tmp_path, run):
    saved = run.save(tmp_path / "a")
    outcome = unlearn(saved, THREE, NEWTON, coalesce=True, folder=saved.folder)
    assert outcome.request.request_id == "r0"
    (read,) = load_outcomes(saved)
    assert read.request == outcome.request
    again = unlearn(saved, THREE, "retrain", coalesce=True, folder=saved.folder)
    assert again.request.request_id == "r0"
    assert "3 requests as one: mine, 2, 3" in report_page(ResultsView.of(outcome))
    after = commit_outcome(read)
    assert after.data.retained.tolist() == [12, 4, 9, 7]
    assert after.requests == 1


def test_requests_that_do_not_combine_are_refused(run, monkeypatch):
    fixed = replace(THREE[2], normalization="fixed")
    with pytest.raises(InvalidForgetSetError, match="different retrainings"):
        unlearn(run, [THREE[0], fixed], NEWTON, coalesce=True)
    monkeypatch.setattr(NewtonFisher, "kinds", frozenset({"peer"}), raising=False)
    peers = [ForgetRequest.whole_peer(1), ForgetRequest.whole_peer(2)]
    with pytest.raises(UnsupportedRequestError, match="do not combine for it, send"):
        unlearn(run, peers, NEWTON, coalesce=True)
    monkeypatch.setattr(NewtonFisher, "kinds", frozenset({"samples"}), raising=False)
    with pytest.raises(UnsupportedRequestError, match="got kind 'peer'; use"):
        unlearn(run, peers, NEWTON, coalesce=True)
    assert run.ledger.entries == ()


# --- what every certificate says, whatever the protocol ------------------------------


@pytest.mark.parametrize("name", ["newton-fisher", "retrain"])
def test_a_trial_names_the_state_it_leaves_and_a_commit_does_not(tmp_path, run, name):
    saved = run.save(tmp_path / "a")
    own = 1 + len(list((saved.folder / "record").glob("*")))
    trial = unlearn(saved, THREE[0], name, folder=saved.folder)
    (line,) = kept_lines(trial.certificate)
    assert line.startswith(f"pre-request state kept: {own} files, the run's own: a tr")
    assert trial.certificate.status == protocols.get(name).claim
    again = unlearn(saved, THREE[2], name, folder=saved.folder)
    assert kept_lines(again.certificate) == [line]  # whatever was tried before
    assert kept_certificate(trial) == trial.certificate
    commit_outcome(trial)
    assert kept_lines(kept_certificate(trial)) == []
    assert kept_certificate(trial).status == protocols.get(name).claim
    in_memory = unlearn(run, THREE[0], name)
    assert kept_lines(in_memory.certificate) == []
    with pytest.raises(MissingInputError, match="got one in memory"):
        kept_certificate(in_memory)


def kept_lines(certificate):
    return [x for x in certificate.exposure if x.startswith("pre-request state kept")]


def test_a_kept_state_is_counted_on_the_committed_certificate(tmp_path, run):
    saved = run.save(tmp_path / "a")
    outcome = unlearn(saved, THREE[0], NEWTON, folder=saved.folder)
    files = len(list((saved.folder / "record").glob("*")))
    commit_outcome(outcome, keep_checkpoints=True)
    certificate = kept_certificate(outcome)
    assert kept_lines(certificate) == [f"pre-request state kept: {files} files"]
    assert certificate.status == "certified_conditional"


def test_a_delta_as_large_as_one_row_is_warned_of_beside_it(run):
    words = r"δ = 0\.2 is not below 1/n = 0\.143 \(n = 7 rows of peer 1\)"
    with pytest.warns(UserWarning, match=words):
        outcome = unlearn(run, THREE[0], NewtonFisher(delta=0.2))
    assert any(note.startswith("weak: δ = 0.2") for note in outcome.certificate.notes)
    # Of several owners the one with the fewest rows counts; 1/n itself is too much.
    with pytest.warns(UserWarning, match="n = 7 rows of peer 1"):
        unlearn(run, THREE, NewtonFisher(delta=1 / 7), coalesce=True)
    fine = unlearn(run, THREE[0], NewtonFisher(delta=0.14))
    assert not any("1/n" in note for note in fine.certificate.notes)


def test_a_large_epsilon_is_called_weak(run):
    outcome = unlearn(run, THREE[0], NewtonFisher(epsilon=11.0))
    assert "weak: ε > 10" in outcome.certificate.notes
    assert "weak: ε > 10" in str(outcome.certificate)
    ten = unlearn(run, THREE[0], NewtonFisher(epsilon=10.0))
    assert not any("weak" in note for note in ten.certificate.notes)
