"""Limits: notes by default, refusals and holds where they are passed."""

import pytest
import torch
from networks import blobs, full_batch, r4_data, r4_request, ridge

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import CarriedOut, load_run, state_digest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    RefusedError,
    RequestRateError,
    ResidualExceedsCapError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.report import report_page
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.screening import Screening
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes

DATA = blobs([12, 20, 9, 10])
SMALL = ForgetRequest.samples(peer=1, indices=[0, 4])  # exactly 10 %
LARGE = ForgetRequest.samples(peer=1, indices=[0, 4, 7])
MORE = ForgetRequest.samples(peer=1, indices=[5])


@pytest.fixture(scope="module")
def run():
    config = SimulationConfig(
        rounds=30,
        local=LocalSteps(batch_size=5),
        evaluate_every=0,
        record=RecordPlan.for_protocols(RrDu),
    )
    return simulate("ring", DATA, "logistic", config)


def loud(epsilon=0.001):
    """A release whose noise costs the accuracy."""
    return NewtonFisher(epsilon=epsilon, residual_cap=1.0, recovery_rounds=0)


def test_by_default_a_large_request_is_carried_out_with_a_note(run):
    outcome = unlearn(run, LARGE, "newton-fisher")
    assert outcome.status == "complete"
    assert outcome.notes == (
        "screening advises against requests like this one: 15% of peer 1's rows within "
        "100 rounds (3 now and 0 before, of 20), above max_share 10%",
    )
    assert unlearn(run, SMALL, "newton-fisher").notes == ()


def test_a_passed_limit_refuses_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setattr(
        NewtonFisher, "unlearn", lambda *given: pytest.fail("it was carried out")
    )
    words = r"request r0: asks for 15% of peer 1's .* nothing was sent: ask for fewer"
    with pytest.raises(RequestRateError, match=words) as caught:
        unlearn(run, LARGE, "newton-fisher", screening=Screening())
    assert caught.value.exit_code == 4
    assert run.ledger.entries == ()


def test_a_share_of_exactly_the_limit_passes_and_limits_can_be_lifted(run):
    unlearn(run, SMALL, "newton-fisher", screening=Screening())
    unlearn(run, LARGE, "newton-fisher", screening=Screening(max_share=0.15))
    whole = ForgetRequest.whole_peer(2)
    unlearn(run, whole, "newton-fisher", screening=Screening(max_share=None))
    with pytest.raises(RequestRateError, match="100% of peer 2's"):
        unlearn(run, whole, "newton-fisher", screening=Screening())


def test_each_owner_of_a_request_is_looked_at(run):
    request = ForgetRequest.class_(1)
    with pytest.raises(RequestRateError) as caught:
        unlearn(run, request, "retrain", screening=Screening())
    labels = DATA.store.labels.numpy()
    shares = [
        (labels[DATA.rows(i)] == 1).mean() if i in range(4) else 0 for i in range(4)
    ]
    worst = max(range(4), key=lambda i: shares[i])
    assert f"{shares[worst]:.0%} of peer {worst}'s" in str(caught.value)


def test_requests_within_a_window_count_together(run):
    limits = Screening()
    once = unlearn(run, SMALL, "newton-fisher", screening=limits).as_run()
    assert once.carried_out == (
        CarriedOut(request_id="r0", round=run.state.round, rows={1: 2}),
    )
    with pytest.raises(RequestRateError, match=r"1 now and 2 before, of 20"):
        unlearn(once, MORE, "newton-fisher", screening=limits)
    other = ForgetRequest.samples(3, [0])
    assert unlearn(once, other, "retrain", screening=limits).status == "complete"
    # With a window of one round the first request is past: training went on since.
    later = unlearn(once, MORE, FineTune(rounds=1), screening=Screening(window=1))
    assert later.status == "complete"
    with pytest.raises(RequestRateError):
        unlearn(once, MORE, "newton-fisher", screening=Screening(window=2))


def test_requests_before_are_known_from_the_folder_too(tmp_path, run):
    saved = run.save(tmp_path / "a")
    after = commit_outcome(unlearn(saved, SMALL, NewtonFisher(), folder=saved.folder))
    assert after.carried_out == (
        CarriedOut(request_id="r0", round=run.state.round, rows={1: 2}),
    )
    again = load_run(saved.folder, data=DATA)
    assert again.carried_out == after.carried_out
    with pytest.raises(RequestRateError, match="2 before"):
        unlearn(again, MORE, "newton-fisher", screening=Screening())
    copy = again.save(tmp_path / "b")
    assert load_run(copy.folder, data=again.data).carried_out == after.carried_out


@pytest.mark.parametrize(
    ("protocol", "shift"),
    [
        (NewtonFisher(residual_cap=2e-3), 2e-3 * 1.01),
        (RrDu(residual_cap=0.5, delta0="assumed", hops=40), 0.5),
    ],
)
def test_the_shift_of_a_release_is_predicted_and_limited(run, protocol, shift):
    assert protocol.predicted_shift(run, SMALL.resolve(DATA)) == pytest.approx(shift)
    outcome = unlearn(
        run, SMALL, protocol, screening=Screening(max_delta=1.001 * shift)
    )
    assert outcome.certificate.sensitivity == pytest.approx(shift)
    with pytest.raises(ResidualExceedsCapError, match=r"above max_delta .* retrain"):
        unlearn(run, SMALL, protocol, screening=Screening(max_delta=0.999 * shift))


def test_retraining_has_no_shift_and_a_protocol_without_one_is_refused(run):
    limits = Screening(max_delta=1e-9)
    assert unlearn(run, SMALL, "retrain", screening=limits).status == "complete"
    with pytest.raises(UnsupportedRequestError, match="None with FineTune, which"):
        unlearn(run, SMALL, FineTune(), screening=limits)
    tuned = FineTune(epsilon=1.0, residual_cap=0.5)
    assert tuned.predicted_shift(run, SMALL.resolve(DATA)) == 0.5


def test_an_outcome_that_costs_too_much_is_held_charged_and_not_committed(
    tmp_path, run
):
    saved = run.save(tmp_path / "a")
    digest = state_digest(saved.state)
    outcome = unlearn(saved, SMALL, loud(), screening=Screening(), folder=saved.folder)
    assert outcome.status == "held_for_review"
    assert "mean test accuracy fell from 0." in outcome.notes[-1]
    assert len(outcome.ledger.entries) == 1
    assert outcome.ledger.entries[0].state == "committed"
    (read,) = load_outcomes(saved)
    assert read.status == "held_for_review"
    for one in (outcome, read):
        with pytest.raises(RefusedError, match=r"held for review .*reviewed=True"):
            commit_outcome(one)
    assert state_digest(load_run(saved.folder, data=DATA).state) == digest
    assert "held for review: mean test accuracy" in report_page(ResultsView.of(outcome))
    after = commit_outcome(read, reviewed=True)
    assert torch.equal(after.state.params, outcome.state.params)


def test_a_harmless_outcome_is_complete_and_the_guard_can_be_lifted(run):
    quiet = unlearn(run, SMALL, NewtonFisher(), screening=Screening())
    assert quiet.status == "complete"
    limits = Screening(max_utility_drop=None)
    assert unlearn(run, SMALL, loud(), screening=limits).status == "complete"
    assert unlearn(run, SMALL, loud()).status == "complete"


def test_a_list_ends_with_a_held_outcome(run):
    requests = [SMALL, ForgetRequest.samples(2, [0]), ForgetRequest.samples(3, [0])]
    limits = Screening(max_share=None)
    outcome = unlearn(run, requests, loud(), screening=limits)
    assert outcome.request.request_id == "r0"
    assert outcome.notes[0] == "2 later requests of the list were not carried out"


def test_a_regression_has_no_guard():
    run = simulate("path", r4_data(), ridge(), full_batch(rounds=5))
    limits = Screening(max_share=None, max_utility_drop=0.0)
    outcome = unlearn(run, r4_request(), loud(), screening=limits)
    assert outcome.status == "complete"


def test_impossible_limits_are_refused(run):
    for fields in (
        {"max_share": 0.0},
        {"max_share": 1.5},
        {"window": 0},
        {"max_delta": -1.0},
        {"max_utility_drop": float("nan")},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(fields))):
            Screening(**fields)
    with pytest.raises(InvalidTypeError, match="screening: must be a Screening"):
        unlearn(run, SMALL, "retrain", screening=0.1)
