"""Requests in a network where peers come and go: who was corrected, and who was not."""

from dataclasses import replace

import fault_logs
import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs, full_batch
from safetensors.torch import load_file

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    RrDu,
    evaluate,
    simulate,
    unlearn,
    write_report,
)
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.engine.fault_exclusion import WithoutPeers
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    Reorder,
    ScheduledChurn,
)
from dfl_unlearn.engine.faulty_transport import FaultyTransport
from dfl_unlearn.engine.influence import leave_out, track_influence
from dfl_unlearn.engine.message_log import Passage
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    RefusedError,
    StaleModelError,
    UnknownPeerError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation.audit import audit_epsilon
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.story import comparison_lines
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import unlearners
from dfl_unlearn.unlearning.dissemination import recover
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes

DATA = {n: blobs([8] * n, dtype=np.float64) for n in range(4, 10)}
PROTOCOLS = {
    "newton-fisher": NewtonFisher(recovery_rounds=2),
    "rr-du": RrDu(hops=50),
}


def network(graph, plan, *, rounds=4, data=None):
    n = len(graph)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)
    record = RecordPlan(parts=RecordPlan().parts | {"training_residual"})
    config = full_batch("atc", rounds, 0.3, faults=plan, record=record)
    return simulate(
        Topology.from_graph(graph), DATA[n] if data is None else data, model, config
    )


def ring(n, plan, **fields):
    return network(nx.cycle_graph(n), plan, **fields)


def plan_of(*events, models=(), patience=60, restart="checkpoint", **fields):
    churn = ScheduledChurn(
        events=tuple(sorted(events)), restart=restart, checkpoint_every=2
    )
    return FaultPlan(models=(*models, churn), patience=patience, **fields)


def asked(peer=0, request_id="r0"):
    return ForgetRequest.samples(peer=peer, fraction=0.25, request_id=request_id)


# --- random schedules, and a brute force that knows nothing of the protocol -----


def random_events(rng, n, begin, end, kinds, count, spare):
    """Events at random peers; whoever goes down comes back in most cases."""
    found = []
    for _ in range(count):
        peer, t = int(rng.integers(n)), int(rng.integers(begin, end))
        what = str(rng.choice(kinds))
        if what == "leave" and peer == spare and rng.random() < 0.8:
            continue
        found.append((t, peer, what))
        if what == "down" and rng.random() < 0.6:
            found.append((t + int(rng.integers(1, 30)), peer, "up"))
    return found


def random_case(seed, protocol):
    """Return (run, request, outcome) under a random schedule.

    Leaves and crashes of the last part are placed around the release, whose round a
    first attempt without them tells.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 10))
    owner = int(rng.integers(n))
    graph = nx.cycle_graph(n)
    for _ in range(3):
        graph.add_edge(*map(int, rng.choice(n, 2, replace=False)))
    always = [
        MarkovChurn(p_leave=rng.uniform(0.01, 0.1), p_return=rng.uniform(0.2, 0.6)),
        MessageLoss(p=rng.uniform(0, 0.3)),
    ]
    always += [Duplicate(p=0.3)] * bool(rng.random() < 0.3)
    early = []
    if rng.random() < 0.5:
        early = [(int(rng.integers(4)), int((owner + 1) % n), "leave")]
    if rng.random() < 0.5:  # too late to be reached by the data, back for the request
        early += [(0, (owner + n // 2) % n, "down"), (5, (owner + n // 2) % n, "up")]
    request = asked(owner)
    run = network(graph, plan_of(*early, models=always, patience=120))
    released = unlearn(run, request, protocol).progress.states["released"]
    begin = released - (0 if isinstance(protocol, NewtonFisher) else 8)
    late = random_events(
        rng,
        n,
        begin,
        released + 12,
        ["leave", "leave", "down", "crash"],
        int(rng.integers(1, 5)),
        owner,
    )
    plan = plan_of(*early, *late, models=always, patience=120)
    run = network(graph, plan)
    return run, request, unlearn(run, request, protocol)


def brute_force(run, request, outcome):
    """Return (peers that hold influence and never took the model, stale messages)."""
    begin, draws = outcome.progress.states["released"], run.faults()
    holds, stale = fault_logs.read(
        outcome.messages,
        run.config.faults,
        begin,
        outcome.progress.end - 1,
        request.requester,
        lambda t, peer: draws.at(t).up[peer],
    )
    without = leave_out(run, request).state.params
    reached = (run.state.params != without).any(dim=1)
    return {i for i in np.flatnonzero(reached).tolist() if i not in holds}, stale


def check_case(seed, name):
    run, request, outcome = random_case(seed, PROTOCOLS[name])
    holding, stale = brute_force(run, request, outcome)
    assert not stale
    assert outcome.progress.stale == 0
    assert set(outcome.pending) == holding
    assert outcome.status == ("incomplete" if holding else "complete")
    noted = {entry.status for entry in outcome.ledger.entries}
    if not outcome.progress.missing:  # else nobody says certified, influence or not
        assert noted == {outcome.certificate.status}
    else:
        assert noted == {"pending"}
    certificate = outcome.certificate
    assert set(certificate.pending_peers) == holding
    assert (certificate.status == "pending") == bool(holding)
    assert (certificate.epsilon is None) == bool(holding)
    for peer in holding:
        assert torch.equal(outcome.state.params[peer], run.state.params[peer])
        assert f"S_{peer}‖" in certificate.reasons[0]
    assert len(outcome.ledger.entries) > 0
    return outcome


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("seed", range(6))
def test_a_random_schedule_ends_complete_or_names_who_holds_influence(seed, name):
    check_case(seed, name)


@pytest.mark.chaos
@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_hundred_random_schedules_name_exactly_who_holds_influence(name):
    outcomes = [check_case(seed, name) for seed in range(200)]
    found = [outcome.status for outcome in outcomes]
    assert found.count("complete") + found.count("incomplete") == 200
    assert min(found.count("complete"), found.count("incomplete")) > 20


# --- no model of before the request is averaged in after it -----


def crash_in_recovery():
    """A ring in which a peer loses its model in the second recovery round."""
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    outcome = unlearn(run, asked(), NewtonFisher(recovery_rounds=4))
    t = outcome.progress.end - 3
    run = ring(6, plan_of((t, 3, "crash"), models=[MessageLoss(p=0.1)]))
    return run, t


def test_a_peer_that_crashes_in_recovery_is_handed_the_model_again():
    run, t = crash_in_recovery()
    outcome = unlearn(run, asked(), NewtonFisher(recovery_rounds=4))
    assert outcome.status == "complete"
    assert outcome.progress.applied[3] >= t
    _, stale = brute_force(run, asked(), outcome)
    assert not stale
    sent = [m for m in outcome.messages if m.kind == "recovery" and m.source == 3]
    assert sorted({m.round - t for m in sent}) == [-1, 1, 2]


def recovered_from_poison(run, rounds):
    """Rows after recovery where every model of before the request is far away."""
    transport = run.transport()
    transport.broadcast(0, "noised model", 8, "flood")
    far = torch.full_like(run.state.params, 1e9)
    poison = replace(run, state=replace(run.state, params=far))
    rows = torch.zeros_like(run.state.params)
    state, _ = recover(poison, run.data, rows, rounds, transport)
    return state.params, transport


def late_peer():
    """A ring whose peer 3 has left and whose peer 2 is back in the second round."""
    return ring(
        6,
        plan_of((5, 3, "leave"), (4, 2, "down"), (13, 2, "up"), patience=8),
    )


def test_no_number_of_an_old_model_gets_into_a_new_one(monkeypatch):
    params, transport = recovered_from_poison(late_peer(), rounds=3)
    assert transport.current.tolist() == [True, True, True, False, True, True]
    held = torch.from_numpy(transport.current)
    assert (params[held].abs() < 10).all()
    assert (params[~held] == 1e9).all()
    # Nobody hands it the model: it stays out.
    monkeypatch.setattr(FaultyTransport, "hand_on", lambda self, copy=0: None)
    monkeypatch.setattr(
        FaultyTransport, "broadcast", handed_to([0, 1, 4, 5], FaultyTransport.broadcast)
    )
    params, transport = recovered_from_poison(late_peer(), rounds=3)
    held = torch.from_numpy(transport.current)
    assert transport.current.tolist() == [True, True, False, False, True, True]
    assert (params[held].abs() < 10).all()
    # The rule taken out: its old model is averaged in.
    real = WithoutPeers.__init__
    monkeypatch.setattr(
        WithoutPeers,
        "__init__",
        lambda self, draws, out, since: real(self, draws, out & False, since),
    )
    params, _ = recovered_from_poison(late_peer(), rounds=3)
    assert (params[held].abs() > 1e6).any()


def handed_to(peers, real):
    """A broadcast that reaches these peers only, where nobody hands it on."""

    def broadcast(self, source, kind, nbytes, how, generator=None):
        real(self, source, kind, nbytes, how, generator)
        self.clock = 13
        self.carried[peers], self.applied[peers] = self.required, 5
        rows = np.array(peers[1:])
        sent = Passage(round=5, arrived=np.full(3, 5), seqs=np.arange(3))
        self.log.append(kind, np.zeros(3, dtype=np.int64), rows, nbytes, sent)
        return 8

    return broadcast


def test_the_log_shows_a_stale_model_when_the_rule_is_taken_out(monkeypatch):
    monkeypatch.setattr(FaultyTransport, "hand_on", lambda self, copy=0: None)
    monkeypatch.setattr(
        FaultyTransport, "broadcast", handed_to([0, 1, 4, 5], FaultyTransport.broadcast)
    )
    run = late_peer()
    _, transport = recovered_from_poison(run, rounds=3)
    found = fault_logs.read(transport.log, run.config.faults, 5, 16, 0)
    assert found == ({0, 1, 4, 5}, [])
    real = FaultyTransport.exchange

    def careless(self, kind, payload_bytes):
        with pytest.MonkeyPatch.context() as inner:
            everyone = property(lambda self: np.ones(self.topology.n, dtype=bool))
            inner.setattr(FaultyTransport, "current", everyone)
            real(self, kind, payload_bytes)

    monkeypatch.setattr(FaultyTransport, "exchange", careless)
    with pytest.raises(StaleModelError, match="from peer 2"):
        recovered_from_poison(run, rounds=3)
    monkeypatch.setattr(FaultyTransport, "_refuse_stale", lambda *_: None)
    _, transport = recovered_from_poison(run, rounds=3)
    _, stale = fault_logs.read(transport.log, run.config.faults, 5, 16, 0)
    assert {m.source for m in stale} == {2}


# --- the same result whatever happens to messages -----


@pytest.mark.parametrize(
    "models",
    [
        [MessageLoss(p=0.3)],
        [Duplicate(p=0.5), Reorder(p=0.5)],
        [Delay(probabilities=(0.5, 0.3, 0.2)), MessageLoss(p=0.1), Duplicate(p=0.5)],
    ],
)
def test_lost_late_doubled_and_reordered_messages_change_no_bit(models):
    clean = ring(6, FaultPlan())
    config = replace(clean.config, faults=FaultPlan(models=tuple(models)))
    protocol = NewtonFisher(recovery_rounds=0)
    there = unlearn(clean, asked(), protocol)
    here = unlearn(replace(clean, config=config), asked(), protocol)
    assert torch.equal(here.state.params, there.state.params)
    assert here.status == "complete"
    assert here.certificate.epsilon == there.certificate.epsilon
    assert [e.mechanism for e in here.ledger.entries] == [
        e.mechanism for e in there.ledger.entries
    ]
    assert len(here.messages) > len(there.messages) - 2


def test_doubled_and_reordered_messages_change_no_bit_of_recovery():
    clean = ring(6, FaultPlan())
    plan = FaultPlan(models=(Duplicate(p=0.5), Reorder(p=0.5)))
    there = unlearn(clean, asked(), NewtonFisher(recovery_rounds=3))
    config = replace(clean.config, faults=plan)
    here = unlearn(
        replace(clean, config=config), asked(), NewtonFisher(recovery_rounds=3)
    )
    assert torch.equal(here.state.params, there.state.params)
    assert here.progress.duplicates > 0


# --- who is waited for, and who is not -----


def test_a_sum_waits_for_a_peer_that_is_down():
    run = ring(6, plan_of((4, 2, "down"), (30, 2, "up")))
    outcome = unlearn(run, asked(), NewtonFisher())
    assert outcome.status == "complete"
    assert outcome.progress.states["received"] == 4
    assert outcome.progress.states["computed"] > 30
    assert list(outcome.progress.states) == [
        "received",
        "computed",
        "charged",
        "released",
    ]
    assert "acknowledged (6/6)" in outcome.progress.text()


def test_a_sum_that_nobody_comes_back_for_is_refused_and_costs_nothing():
    run = ring(6, plan_of((4, 2, "down"), patience=20))
    with pytest.raises(RefusedError, match="got no way to peer 2; nothing was charged"):
        unlearn(run, asked(), NewtonFisher())
    assert len(run.ledger.entries) == 0


def test_a_peer_that_left_takes_no_part_in_the_target():
    events = [(9, 3, "leave")]
    run = ring(6, plan_of(*events))
    outcome = unlearn(run, asked(), NewtonFisher(recovery_rounds=0, residual_cap=1e-6))
    rows = run.data.rows(3)
    keep = run.data.without(asked()).keep.copy()
    keep[rows] = False
    data = replace(run.data, dropped=~keep)
    from dfl_unlearn.unlearning.retained import exact_minimizer

    target = exact_minimizer(run, data).theta
    assert outcome.progress.left == {3: 9}
    assert outcome.pending == (3,)
    # the noise of the release is public here: it is drawn again and taken off
    noise = run.rng.normal(
        (run.model.size,), "unlearn-noise", who="peer:0", request="r0"
    )
    released = outcome.state.params[0] - outcome.certificate.noise_std * noise
    assert float((released - target).norm()) < 1e-6
    assert "5 of 6" in str(outcome.certificate)


def test_what_a_peer_left_with_is_told_and_remembered():
    run = ring(6, plan_of((4 + 300, 3, "leave"), models=[MessageLoss(p=0.1)]))
    first = unlearn(run, asked(), NewtonFisher())
    assert first.status == "complete"
    # later requests begin on the same clock, where the first one ended
    later = first.as_run()
    assert later.network_round == first.progress.end
    t = first.progress.states["released"]
    run = ring(6, plan_of((t, 3, "leave"), models=[MessageLoss(p=0.1)]))
    outcome = unlearn(run, asked(), NewtonFisher())
    assert outcome.pending == (3,)
    assert (
        f"peer 3 left at round {t} with residual influence ‖S_3‖ ≤ 0."
        in (outcome.notes[0])
    )
    value, mode = outcome.residual_influence[3]
    trace = track_influence(run, asked(), every=4)
    assert (value, mode) == (trace.norms[-1, 3], "exact")
    after = outcome.as_run()
    assert list(after.carried_out[0].pending) == [3]
    second = unlearn(after, asked(1, "r1"), NewtonFisher())
    assert 3 in second.still_holding
    assert torch.equal(second.state.params[3], run.state.params[3])


def test_an_outcome_that_waits_for_a_peer_is_no_run():
    run = ring(6, plan_of(patience=20))
    t = unlearn(run, asked(), NewtonFisher()).progress.states["released"]
    run = ring(6, plan_of((t, 2, "down"), patience=20))
    outcome = unlearn(run, asked(), NewtonFisher())
    assert outcome.pending == (2,)
    assert str(outcome.certificate).startswith("PENDING — incomplete: peer 2 still")
    with pytest.raises(RefusedError, match="2 still pending on request r0"):
        outcome.as_run()


def test_what_is_heuristic_stays_so_while_peers_are_pending():
    protocol = NewtonFisher(curvature="diag_fisher", assume_stationary=True, damping=1)
    run = ring(6, plan_of())
    complete = unlearn(run, asked(), protocol)
    assert complete.certificate.status == "heuristic"
    t = complete.progress.states["released"]
    outcome = unlearn(ring(6, plan_of((t, 3, "leave"))), asked(), protocol)
    certificate = outcome.certificate
    assert certificate.status == "pending"
    assert any(reason.startswith("HEURISTIC") for reason in certificate.reasons)
    assert set(complete.certificate.reasons) < set(certificate.reasons)
    assert certificate.epsilon is None
    assert Certificate.from_json(certificate.to_json()) == certificate


def test_an_owner_that_left_cannot_ask():
    run = ring(6, plan_of((3, 0, "leave")))
    with pytest.raises(UnknownPeerError, match="peer 0, which has left"):
        unlearn(run, asked(), NewtonFisher())


def test_an_owner_that_leaves_before_the_release_is_refused():
    run = ring(6, plan_of((8, 0, "leave")))
    with pytest.raises(RefusedError, match="peer 0, which left before"):
        unlearn(run, asked(), NewtonFisher())
    assert len(run.ledger.entries) == 0


def test_a_peer_that_the_data_never_reached_is_not_pending():
    # Down from the first round on: no message of training came to peer 3.
    plan = plan_of((0, 3, "down"), (4, 3, "leave"))
    run = ring(6, plan)
    outcome = unlearn(run, asked(), NewtonFisher())
    assert outcome.progress.missing == (3,)
    assert outcome.residual_influence[3] == (0.0, "light cone")
    assert outcome.status == "complete"
    assert outcome.certificate.status in ("certified", "certified_conditional")


def test_retraining_starts_when_all_were_told_and_names_who_left():
    run = ring(6, plan_of((4, 3, "leave"), models=[MessageLoss(p=0.2)]))
    outcome = unlearn(run, asked(), Retrain())
    assert outcome.pending == (3,)
    assert outcome.certificate.status == "pending"
    assert outcome.certificate.nominal_epsilon == 0
    assert torch.equal(outcome.state.params[3], run.state.params[3])
    run = ring(6, plan_of((4, 2, "down"), patience=10))
    with pytest.raises(RefusedError, match="got no way to peer 2; no model"):
        unlearn(run, asked(), Retrain())


@pytest.mark.parametrize(
    ("protocol", "match"),
    [
        (FineTune(), "use newton-fisher, rr-du or retrain"),
        (NewtonFisher(scope="view_joint", curvature="local"), "scope: must be 'joint'"),
        (NewtonFisher(dissemination="gossip_average"), "set dissemination='tree'"),
        (RrDu(dissemination="gossip_average"), "set dissemination='tree'"),
        (NewtonFisher(state_policy="secret_state"), "state_policy: must be"),
        (
            NewtonFisher(noise_placement="independent"),
            "noise_placement: must be 'broadcast_model'",
        ),
    ],
)
def test_what_takes_every_peer_to_be_there_is_refused(protocol, match):
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    with pytest.raises(UnsupportedRequestError, match=match):
        unlearn(run, asked(), protocol)


@pytest.mark.parametrize("how", ["tree", "flood", "push"])
def test_every_way_of_handing_out_reaches_all(how):
    run = ring(6, plan_of(models=[MessageLoss(p=0.2)], patience=500))
    outcome = unlearn(run, asked(), NewtonFisher(dissemination=how))
    assert outcome.status == "complete"


@pytest.mark.parametrize("name", unlearners.names())
def test_every_protocol_is_made_for_faults_or_refused(name):
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    protocol = unlearners.build(name)
    if not getattr(protocol, "serves_faults", False):
        with pytest.raises(UnsupportedRequestError, match="rr-du or retrain"):
            unlearn(run, asked(), protocol)
        return
    outcome = unlearn(run, asked(), protocol)
    assert outcome.progress.missing == ()
    assert outcome.certificate.status != "pending"


def test_an_audit_of_a_network_with_faults_is_refused():
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    with pytest.raises(UnsupportedRequestError, match=r"without training\.faults"):
        audit_epsilon(run, asked(), NewtonFisher(), replicas=40)


# --- kept in a folder, shown to readers -----


def test_an_incomplete_outcome_is_read_back_as_it_was(tmp_path):
    t = unlearn(ring(6, plan_of()), asked(), NewtonFisher()).progress
    run = ring(6, plan_of((t.states["released"], 3, "leave"))).save(tmp_path / "a")
    outcome = unlearn(run, asked(), NewtonFisher(), folder=run.folder)
    (back,) = load_outcomes(run)
    assert back.pending == outcome.pending == (3,)
    assert back.progress == outcome.progress
    assert back.residual_influence == outcome.residual_influence
    assert back.certificate == outcome.certificate
    assert list(back.messages) == list(outcome.messages)
    after = commit_outcome(outcome)
    assert dict(after.carried_out[0].pending) == {3: outcome.residual_influence[3][0]}
    assert after.network_round == outcome.progress.end
    assert outcome.as_run().network_round == after.network_round


def test_an_outcome_that_waits_for_a_peer_is_not_committed(tmp_path):
    t = unlearn(ring(6, plan_of(patience=9)), asked(), NewtonFisher()).progress
    plan = plan_of((t.states["released"], 3, "down"), patience=9)
    run = ring(6, plan).save(tmp_path / "a")
    outcome = unlearn(run, asked(), NewtonFisher(), folder=run.folder)
    with pytest.raises(RefusedError, match="3 still pending on request r0"):
        commit_outcome(outcome)


def test_exports_and_tables_name_who_was_not_corrected(tmp_path):
    t = unlearn(ring(6, plan_of()), asked(), NewtonFisher()).progress
    run = ring(6, plan_of((t.states["released"], 3, "leave")))
    outcome = unlearn(run, asked(), NewtonFisher())
    names = {key.split("/")[0] for key in load_file(outcome.export(tmp_path / "m"))}
    assert names == {"peer0", "peer1", "peer2", "peer3.pending", "peer4", "peer5"}
    assert "incomplete" in outcome._repr_html_()
    lines = "\n".join(comparison_lines([outcome], [evaluate(outcome)]))
    assert "pending" in lines
    assert "acknowledged (5/6)" in outcome.notes[1]
    page = write_report(outcome, tmp_path / "r.html").read_text()
    assert "peer 3 left at round" in page


# --- queues -----


def test_an_id_that_comes_twice_has_one_effect():
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    once = unlearn(run, [asked()], NewtonFisher())
    twice = unlearn(run, [asked(), asked()], NewtonFisher())
    assert torch.equal(once.state.params, twice.state.params)
    assert len(once.ledger.entries) == len(twice.ledger.entries)
    with pytest.raises(InvalidForgetSetError, match="its outcome stands"):
        unlearn(once.as_run(), asked(), NewtonFisher())
    other = replace(asked(), peers=(1,))
    with pytest.raises(InvalidForgetSetError, match="twice in one list"):
        unlearn(run, [asked(), other], NewtonFisher())


def test_queued_requests_go_on_where_the_one_before_ended():
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    first = unlearn(run, asked(), NewtonFisher())
    both = unlearn(run, [asked(), asked(2, "r1")], NewtonFisher())
    assert both.progress.states["received"] == first.progress.end


@pytest.mark.parametrize(("leaves", "source"), [(2, "proven"), (9, "assumed")])
def test_who_leaves_while_sums_are_taken_makes_the_claim_conditional(leaves, source):
    run = ring(6, plan_of((leaves, 3, "leave")))  # the request comes in round 4
    certificate = unlearn(run, asked(), NewtonFisher()).certificate
    (part,) = (a for a in certificate.assumptions if a.name == "peers that take part")
    assert part.source == source
    assert part.value == "5 of 6"
    assert ("number of rounds" in part.note) == (source == "assumed")
