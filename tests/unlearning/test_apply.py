"""The door: checks before work, a run that stays as it was, costs that are measured."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from networks import blobs, full_batch, r4_data, ridge

from dfl_unlearn.accounting.ledger import PrivacyBudget
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import state_digest
from dfl_unlearn.engine.simulator import retrain, simulate
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    InvalidTypeError,
    MissingRecordError,
    NumericalError,
    UnknownNameError,
    UnknownPeerError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(rounds=6, local=LocalSteps(batch_size=5), evaluate_every=0)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


@pytest.fixture
def registered(monkeypatch):
    """Registers protocols for one test only."""
    monkeypatch.setattr(protocols, "_entries", dict(protocols._entries))
    protocols.names()
    return protocols.register


def plain_outcome(protocol, run, request, state=None):
    return Outcome(
        run=run,
        request=request,
        protocol=protocol,
        state=run.state if state is None else state,
        certificate=None,
        cost=Cost(),
        ledger=run.ledger,
        messages=run.transport().log,
    )


def test_a_run_is_never_changed(run):
    digest, entries = state_digest(run.state), run.ledger.entries
    keep, info = run.data.keep.copy(), dict(run.info)
    for protocol in ("newton-fisher", "retrain", "fine-tune"):
        outcome = unlearn(run, REQUEST, protocol)
        assert outcome.run is run
        assert state_digest(outcome.state) != digest
    assert state_digest(run.state) == digest
    assert run.ledger.entries == entries == ()
    assert run.info == info
    np.testing.assert_array_equal(run.data.keep, keep)


def test_trials_on_one_run_do_not_charge_each_other():
    budget = PrivacyBudget(epsilon_max=1.0)
    run = simulate("ring", DATA, "logistic", replace(CONFIG, privacy_budget=budget))
    outcomes = [unlearn(run, REQUEST, "newton-fisher") for _ in range(3)]
    assert [len(o.ledger.entries) for o in outcomes] == [1, 1, 1]
    assert torch.equal(outcomes[0].state.params, outcomes[2].state.params)


def test_an_outcome_goes_on_as_a_run_without_the_data(run):
    outcome = unlearn(run, REQUEST, "newton-fisher")
    after = outcome.as_run()
    assert after.data.retained.tolist() == [12, 5, 9, 10]
    assert after.record is None
    assert after.history is None
    assert after.folder is None
    assert after.digest == state_digest(outcome.state)
    assert after.ledger is outcome.ledger
    assert after.requests == 1
    assert run.requests == 0
    second = unlearn(after, ForgetRequest.whole_peer(2), "fine-tune")
    assert second.request.request_id == "r1"
    assert second.as_run().requests == 2


def test_a_list_is_carried_out_in_order(run):
    requests = [REQUEST, ForgetRequest.whole_peer(2), ForgetRequest.class_(1)]
    outcome = unlearn(run, requests, "newton-fisher", reference=True)
    step = run
    for request in requests:
        last = unlearn(step, request, "newton-fisher")
        step = last.as_run()
    assert torch.equal(outcome.state.params, last.state.params)
    assert outcome.request.request_id == "r2"
    data = DATA
    for request in requests:
        data = data.without(request)
    expected = retrain(run, data)
    assert torch.equal(outcome.reference.state.params, expected.state.params)


def test_a_request_id_of_ones_own_is_kept(run):
    outcome = unlearn(run, replace(REQUEST, request_id="mine-1"), "newton-fisher")
    assert outcome.request.request_id == "mine-1"
    assert outcome.certificate.request_id == "mine-1"
    assert outcome.ledger.entries[0].request_id == "mine-1"


def test_the_reference_is_coupled_retraining_without_a_record(run):
    outcome = unlearn(run, REQUEST, FineTune(rounds=1), reference=True)
    expected = simulate("ring", DATA.without(REQUEST), "logistic", CONFIG)
    assert torch.equal(outcome.reference.state.params, expected.state.params)
    assert outcome.reference.record.plan.parts == frozenset()
    given = unlearn(run, REQUEST, FineTune(rounds=1), reference=outcome.reference)
    assert given.reference is outcome.reference
    assert unlearn(run, REQUEST, FineTune(rounds=1)).reference is None


def test_names_build_protocols_with_their_defaults(run):
    outcome = unlearn(run, REQUEST, "newton-fisher")
    assert outcome.protocol == NewtonFisher()
    assert outcome.protocol_name == "newton-fisher"


def test_an_unknown_protocol_is_met_with_a_suggestion(run):
    with pytest.raises(UnknownNameError, match="did you mean 'newton-fisher'"):
        unlearn(run, REQUEST, "newton-fischer")


def test_requests_that_do_not_fit_are_refused(run):
    with pytest.raises(UnknownPeerError, match=r"0\.\.3, got 9"):
        unlearn(run, ForgetRequest.whole_peer(9), "retrain")
    with pytest.raises(InvalidForgetSetError, match="index 70 out of range"):
        unlearn(run, ForgetRequest.samples(peer=1, indices=[70]), "retrain")
    with pytest.raises(InvalidForgetSetError, match="got nothing"):
        unlearn(run, ForgetRequest.nothing(), "retrain")
    with pytest.raises(InvalidTypeError, match="request: must be a ForgetRequest"):
        unlearn(run, [3], "retrain")
    with pytest.raises(InvalidTypeError, match="run: must be a TrainedRun"):
        unlearn(DATA, REQUEST, "retrain")
    with pytest.raises(InvalidForgetSetError, match="reference: must be True or False"):
        unlearn(run, [REQUEST, REQUEST], "retrain", reference=run)
    gone = unlearn(run, REQUEST, FineTune(rounds=1)).as_run()
    with pytest.raises(InvalidForgetSetError, match="forgotten already"):
        unlearn(gone, REQUEST, "retrain")


def test_a_protocol_that_lacks_its_record_names_it(registered):
    @registered("needy")
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        """Needs checkpoints."""

        needs: ClassVar = frozenset({"checkpoints", "gradient_norms"})

        def unlearn(self, run, request, rng):
            return plain_outcome(self, run, request)

    plan = RecordPlan(parts=frozenset({"gradient_norms"}))
    run = simulate("ring", DATA, "logistic", replace(CONFIG, record=plan))
    match = r"must hold checkpoints for needy, .*for_protocols\(Needy\)"
    with pytest.raises(MissingRecordError, match=match):
        unlearn(run, REQUEST, Needy())
    enough = replace(CONFIG, record=RecordPlan.for_protocols(Needy))
    served = simulate("ring", DATA, "logistic", enough)
    assert unlearn(served, REQUEST, Needy()).state.round == 6
    with pytest.raises(MissingRecordError, match="stayed behind with"):
        unlearn(unlearn(served, REQUEST, "retrain").as_run(), REQUEST_2, Needy())


REQUEST_2 = ForgetRequest.samples(peer=2, indices=[0])


def test_a_kind_that_is_not_served_is_refused_before_any_work(registered, run):
    @registered("whole-peers-only")
    @dataclass(frozen=True, kw_only=True)
    class WholePeersOnly:
        """Serves peers."""

        kinds: ClassVar = frozenset({"peer"})

        def unlearn(self, run, request, rng):
            raise AssertionError

    with pytest.raises(UnsupportedRequestError, match="serves peer, got kind 'sam"):
        unlearn(run, REQUEST, WholePeersOnly())


def test_a_state_that_is_not_finite_names_the_peer_and_leaves_nothing(
    registered, tmp_path
):
    @registered("exploding")
    @dataclass(frozen=True, kw_only=True)
    class Exploding:
        """Fails."""

        def unlearn(self, run, request, rng):
            params = run.state.params.clone()
            params[2] = float("nan")
            return plain_outcome(self, run, request, replace(run.state, params=params))

    run = simulate("ring", DATA, "logistic", CONFIG, folder=tmp_path / "a")
    with pytest.raises(NumericalError, match="peer 2 became non-finite in exploding"):
        unlearn(run, REQUEST, Exploding(), folder=run.folder)
    assert not list((run.folder / "outcomes").glob("*"))


def test_messages_and_time_are_measured_by_the_door(run):
    outcome = unlearn(run, REQUEST, FineTune(rounds=2))
    assert outcome.cost.messages == len(outcome.messages) == 2 * 8
    assert outcome.cost.payload_bytes == outcome.messages.nbytes
    assert outcome.cost.max_edge_bytes == outcome.messages.max_edge_bytes()
    assert outcome.cost.wall_seconds > 0


def test_the_number_of_threads_is_the_runs(registered):
    seen = []

    @registered("counting")
    @dataclass(frozen=True, kw_only=True)
    class Counting:
        """Counts threads."""

        def unlearn(self, run, request, rng):
            seen.append(torch.get_num_threads())
            return plain_outcome(self, run, request)

    before = torch.get_num_threads()
    run = simulate("ring", DATA, "logistic", replace(CONFIG, threads=2))
    unlearn(run, REQUEST, Counting())
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_costs_add_up_and_peaks_do_not():
    a = Cost(rounds=1, messages=2, max_edge_bytes=10, hvps=3, sample_gradients=5)
    b = Cost(rounds=4, messages=1, max_edge_bytes=7, record_bytes=9)
    total = a + b
    assert (total.rounds, total.messages) == (5, 3)
    assert (total.max_edge_bytes, total.record_bytes) == (10, 9)
    assert a.gradient_evaluations == 5 + 2 * 3


def test_the_objective_weighs_peers_and_leaves_the_forgotten_out(run):
    kept = network_objective(run, DATA.without(REQUEST))
    weights = kept.weights
    assert weights.sum() == pytest.approx(1.0)
    assert kept.rows == 36
    assert weights[12] == 0  # peer 1's first row
    assert weights[13] == pytest.approx(1 / 4 / 5)
    size = replace(run, config=replace(CONFIG, peer_weighting="size"))
    whole = network_objective(size).weights
    np.testing.assert_allclose(whole, 1 / 38)


def test_a_minimizer_needs_strong_convexity():
    flat = simulate("path", r4_data(), ridge(l2=0.0), full_batch(rounds=1))
    with pytest.raises(UnsupportedRequestError, match=r"convex=True, l2=0\.0"):
        exact_minimizer(flat)


def test_every_protocol_claims_what_it_can():
    assert {n: getattr(protocols.get(n), "claim", None) for n in BUILT_IN} == BUILT_IN
    assert Retrain.claim == "exact"


BUILT_IN = {
    "newton-fisher": "certified",
    "retrain": "exact",
    "fine-tune": "certified",
}
