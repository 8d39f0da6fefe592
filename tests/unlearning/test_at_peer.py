"""At-peer: what each value of reentry does, who sees what, and what is claimed."""

from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import numpy as np
import pytest
import torch
from networks import blobs, opposed_run

from dfl_unlearn.accounting.certificate import Assumption
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.fault_models import MessageLoss
from dfl_unlearn.engine.faults import FaultPlan
from dfl_unlearn.engine.personal import PINNED
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingInputError,
    UnknownNameError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.dilution import dilution_weights, right_share
from dfl_unlearn.unlearning.forms import form_of, protocol_of
from dfl_unlearn.unlearning.local import (
    Budget,
    LocalOutcome,
    exact_certificate,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork, descend
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.methods.retrain import Retrain
from dfl_unlearn.unlearning.methods.sisa import Sisa
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.protocols.at_peer import GOSSIP, AtPeer
from dfl_unlearn.unlearning.reentry import Reentry

SIZES = [30, 20, 25, 20, 24, 22]
OWNER = 2
REQUEST = ForgetRequest.samples(peer=OWNER, indices=[0, 3, 5, 8])
TUNE = FineTune(epochs=2, batch_size=None)
SEEN: list = []


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """One step up the loss of the forgotten rows; sees no retained ones."""

    learning_rate: float = 0.5
    uses: ClassVar = frozenset({"forget_inputs", "forget_labels"})

    def unlearn(self, task, rng):
        same = unchanged(self, task)
        if same is not None:
            return same
        work = LocalWork(task, rng)
        optimizer = work.optimizer(LocalOptimizer(learning_rate=self.learning_rate))
        descend(
            work,
            optimizer,
            task.forget,
            lambda batch: -work.objective(batch),
            batch_size=None,
            epoch=0,
            objective="forget",
        )
        return work.outcome(personal={"steps": torch.tensor([work.steps])})


@dataclass(frozen=True, kw_only=True)
class Spy:
    """Looks at everything it is given and keeps it in ``SEEN``."""

    uses: ClassVar = frozenset(
        {
            "forget_inputs",
            "forget_labels",
            "retain_inputs",
            "retain_labels",
            "history",
            "fresh_start",
            "class_count",
            "features",
        }
    )

    def unlearn(self, task, rng):
        SEEN.append(task)
        return LocalWork(task, rng).outcome()


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Adds noise in the task's ledger and says it is exact, as a bad method might."""

    claim: ClassVar = "exact"

    def unlearn(self, task, rng):
        same = unchanged(self, task)
        if same is not None:
            return same
        name, rows = task.request.request_id, task.params
        release = GaussianRelease(sensitivity=0.1, noise_std=0.2)
        rows = release(
            rows,
            ledger=task.ledger,
            request_id=name,
            owner=f"peer:{task.peer}",
            observers=("public",),
            rng=rng,
            status="heuristic",
        )
        task.ledger.commit(name)
        claim = exact_certificate(
            "noised", task, Assumption(name="a", value=1.0, source="proven")
        )
        return LocalOutcome(
            params=rows, certificate=claim, cost=LocalWork(task, rng).outcome().cost
        )


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Register the methods of this file for one test."""
    SEEN.clear()
    methods.names()
    for name, entry in (("ascent", Ascent), ("spy", Spy), ("noised", Noised)):
        monkeypatch.setitem(methods._entries, name, entry)


def network(topology="ring", sizes=SIZES, dtype="float64", **fields):
    return simulate(
        topology,
        blobs(sizes, dtype=np.float64 if dtype == "float64" else np.float32),
        models.build("mlp", input_shape=(6,), num_classes=3, hidden=(5,)),
        SimulationConfig(
            rounds=6,
            local=LocalSteps(batch_size=10, learning_rate=0.3),
            evaluate_every=0,
            dtype=dtype,
            **fields,
        ),
    )


@pytest.fixture(scope="module")
def run():
    return network()


def change(run, method=TUNE, peer=OWNER):
    """The change that the method alone makes at an owner."""
    return (
        unlearn(run, REQUEST, AtPeer(method=method)).state.params[peer]
        - (run.state.params[peer])
    )


def moved(run, outcome):
    return (outcome.state.params != run.state.params).any(dim=1).tolist()


# --- what each value does -----------------------------------------------------


def test_the_requester_alone_changes(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=TUNE))
    assert moved(run, outcome) == [i == OWNER for i in range(6)]
    assert not list(outcome.messages)


def test_scaled_moves_the_mean_by_the_whole_change(run):
    protocol = AtPeer(method=TUNE, reentry="scaled", gossip_rounds=300)
    outcome = unlearn(run, REQUEST, protocol)
    expected = run.state.mean() + change(run)
    for row in outcome.state.params:
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_scaled_without_a_round_would_leave_n_changes_at_the_requester():
    with pytest.raises(InvalidHyperparameterError, match=r"gossip_rounds.*scaled"):
        AtPeer(method=TUNE, reentry="scaled")


@pytest.mark.parametrize("how", ["tree", "flood", "push"])
def test_a_delta_reaches_every_peer_once(run, how):
    protocol = AtPeer(method=TUNE, reentry="delta", dissemination=how)
    outcome = unlearn(run, REQUEST, protocol)
    expected = run.state.params + change(run)
    torch.testing.assert_close(outcome.state.params, expected, rtol=1e-12, atol=1e-14)
    assert {message.kind for message in outcome.messages} == {"change"}
    assert any("without noise" in note for note in outcome.notes)
    told = {message.target for message in outcome.messages} | {OWNER}
    assert told == set(range(6))


def test_a_delta_that_is_averaged_reaches_peers_as_multiples(run):
    protocol = AtPeer(method=TUNE, reentry="delta", dissemination="gossip_average")
    outcome = unlearn(run, REQUEST, protocol)
    rounds = run.topology.mixing_rounds()
    held = 6 * dilution_weights(run.topology, OWNER, rounds)[-1]
    expected = torch.from_numpy(held)[:, None] * change(run)
    torch.testing.assert_close(
        outcome.state.params - run.state.params, expected, rtol=1e-9, atol=1e-12
    )
    assert any("averaging" in note for note in outcome.notes)


def test_a_delta_by_the_resolvent_is_largest_at_the_requester():
    run = simulate(
        "ring",
        blobs(SIZES, dtype=np.float64),
        "logistic",
        SimulationConfig(rounds=6, evaluate_every=0, dtype="float64"),
    )
    protocol = AtPeer(method=TUNE, reentry="delta", influence_weights="resolvent")
    outcome = unlearn(run, REQUEST, protocol)
    delta = change(run)
    shares = (outcome.state.params - run.state.params) @ delta / (delta @ delta)
    assert int(shares.argmax()) == OWNER
    assert float(shares.sum()) == pytest.approx(6, rel=1e-9)


def test_all_lets_the_others_tune_on_their_own_rows(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=TUNE, reentry="all"))
    assert all(moved(run, outcome))
    torch.testing.assert_close(
        outcome.state.params[OWNER], run.state.params[OWNER] + change(run)
    )
    alone = unlearn(run, REQUEST, AtPeer(method=TUNE))
    assert outcome.cost.steps_retain > alone.cost.steps_retain
    assert not list(outcome.messages)


def test_all_takes_a_counterpart_that_never_sees_forgotten_rows(run):
    protocol = AtPeer(method=Ascent(), reentry="all", counterpart=FineTune(epochs=1))
    assert all(moved(run, unlearn(run, REQUEST, protocol)))
    assert AtPeer(method=Ascent(), reentry="all").neighbours_method == FineTune()
    with pytest.raises(InvalidHyperparameterError, match=r"counterpart.*ascent"):
        AtPeer(method=TUNE, reentry="all", counterpart=Ascent())


def test_the_counterpart_of_a_method_on_the_past_is_itself():
    protocol = AtPeer(method=Retrain(), reentry="all")
    assert protocol.neighbours_method == Retrain()


def test_notify_runs_the_method_within_reach_only(run):
    protocol = AtPeer(method=TUNE, reentry="notify", reach=1)
    outcome = unlearn(run, REQUEST, protocol)
    assert moved(run, outcome) == [i in (1, 2, 3) for i in range(6)]
    told = {(m.source, m.target) for m in outcome.messages}
    assert told == {(OWNER, 1), (OWNER, 3)}
    everyone = unlearn(run, REQUEST, AtPeer(method=TUNE, reentry="notify"))
    assert all(moved(run, everyone))
    assert len(everyone.messages) == 2 * 6 - 6 + 1  # 2|E| - N + 1 of a flood


def test_notify_sends_the_rows_only_where_that_is_said(run):
    with pytest.raises(InvalidHyperparameterError, match=r"share_forget.*discloses"):
        AtPeer(method=Ascent(), reentry="notify")
    shared = AtPeer(method=Ascent(), reentry="notify", share_forget=True)
    outcome = unlearn(run, REQUEST, shared)
    assert all(moved(run, outcome))
    assert any("disclosure: the 4 forgotten rows" in note for note in outcome.notes)
    rows = run.data.store.inputs[:1].nbytes + run.data.store.labels[:1].nbytes
    quiet = unlearn(run, REQUEST, AtPeer(method=TUNE, reentry="notify"))
    more = next(iter(outcome.messages)).nbytes - next(iter(quiet.messages)).nbytes
    assert more == 4 * rows
    assert not any("disclosure" in note for note in quiet.notes)


def test_a_pinned_change_is_used_by_its_owner_and_never_mixed(run):
    protocol = AtPeer(method=TUNE, reentry="pinned", gossip_rounds=3)
    outcome = unlearn(run, REQUEST, protocol)
    mixed = unlearn(run, REQUEST, AtPeer(method=Original(), gossip_rounds=3))
    assert torch.equal(outcome.state.params, mixed.state.params)
    pinned = outcome.personal[OWNER][PINNED]
    torch.testing.assert_close(pinned, change(run), rtol=1e-12, atol=1e-14)
    assert list(outcome.personal) == [OWNER]


def test_evaluation_sees_a_pinned_change_at_its_owner_alone(run):
    pinned = unlearn(run, REQUEST, AtPeer(method=TUNE, reentry="pinned"))
    plain = unlearn(run, REQUEST, AtPeer(method=TUNE))
    columns = [
        [
            row["value"]
            for row in evaluate(outcome, "forget-accuracy", "after").rows
            if row["peer"] >= 0
        ]
        for outcome in (pinned, plain)
    ]
    assert columns[0] == pytest.approx(columns[1])


def test_the_next_request_starts_from_what_its_peer_uses(run):
    first = unlearn(run, REQUEST, AtPeer(method=TUNE, reentry="pinned"))
    plain = unlearn(run, REQUEST, AtPeer(method=TUNE))
    again = ForgetRequest.samples(peer=OWNER, indices=[1])
    after = unlearn(first.as_run(), again, AtPeer(method=TUNE))
    expected = unlearn(plain.as_run(), again, AtPeer(method=TUNE))
    torch.testing.assert_close(
        after.state.params[OWNER], expected.state.params[OWNER], rtol=1e-9, atol=1e-9
    )
    assert PINNED not in after.personal.get(OWNER, {})
    other = unlearn(
        first.as_run(),
        ForgetRequest.samples(peer=0, indices=[1]),
        AtPeer(method=TUNE),
    )
    assert torch.equal(other.personal[OWNER][PINNED], first.personal[OWNER][PINNED])


def test_maintain_repeats_steps_while_the_owner_remembers(run):
    fields = {"method": Ascent(learning_rate=2.0), "gossip_rounds": 4}
    once = unlearn(run, REQUEST, AtPeer(**fields))
    kept = unlearn(
        run,
        REQUEST,
        AtPeer(**fields, reentry="maintain", maintain_steps=1, maintain_threshold=0.25),
    )
    forgotten = run.data.store.inputs[run.data.rows(OWNER)][[0, 3, 5, 8]]
    labels = run.data.store.labels[run.data.rows(OWNER)][[0, 3, 5, 8]]
    batch = type(run.data.store)(forgotten, labels)
    score = [
        right_share(run.model, outcome.state.params, batch)[OWNER]
        for outcome in (once, kept)
    ]
    assert score[0] > 0.25 >= score[1]
    assert kept.cost.steps_forget > once.cost.steps_forget
    assert any("repeated" in note for note in kept.notes)


def test_maintain_below_its_threshold_does_nothing_more(run):
    fields = {"method": Ascent(learning_rate=1e-6), "gossip_rounds": 2}
    plain = unlearn(run, REQUEST, AtPeer(**fields))
    never = AtPeer(
        **fields, reentry="maintain", maintain_steps=3, maintain_threshold=0.999
    )
    score = right_share(
        run.model,
        plain.state.params,
        type(run.data.store)(
            run.data.store.inputs[run.data.rows(OWNER)][[0, 3, 5, 8]],
            run.data.store.labels[run.data.rows(OWNER)][[0, 3, 5, 8]],
        ),
    )[OWNER]
    outcome = unlearn(run, REQUEST, never)
    assert (outcome.cost.steps_forget > plain.cost.steps_forget) == (score > 0.999)


# --- gossip afterwards ---------------------------------------------------------


def test_training_on_is_the_runs_own_training_on_what_is_kept(run):
    outcome = unlearn(
        run, REQUEST, AtPeer(method=TUNE, gossip_rounds=2, gossip_after="train")
    )
    assert outcome.state.round == run.state.round + 2
    assert outcome.cost.rounds == 2
    assert {m.kind for m in outcome.messages} == {"training"}
    assert "peers_change" not in outcome.trace
    assert outcome.trace["peers_forget_loss"].shape == (3, 6)


def test_messages_run_along_edges_only(run):
    edges = {tuple(edge) for edge in run.topology.edges.tolist()}
    for reentry in ("requester", "delta", "all", "notify", "rewind_network"):
        fields = {} if reentry == "rewind_network" else {"gossip_rounds": 1}
        method = Original() if reentry == "rewind_network" else TUNE
        outcome = unlearn(
            run, REQUEST, AtPeer(method=method, reentry=reentry, **fields)
        )
        assert len(outcome.messages)
        for message in outcome.messages:
            assert tuple(sorted((message.source, message.target))) in edges


# --- what a peer may see -------------------------------------------------------


def rows_of(run, peer):
    batch = run.data.local(peer)
    return {tuple(row) for row in batch.inputs.tolist()}


def test_a_method_sees_its_own_peers_rows_and_past_and_no_others(run):
    unlearn(run, REQUEST, AtPeer(method=Spy()))
    (task,) = SEEN
    own = rows_of(run, OWNER)
    assert {tuple(x) for x in task.forget.inputs.tolist()} < own
    assert {tuple(x) for x in task.retain.inputs.tolist()} < own
    assert len(task.forget) + len(task.retain) == SIZES[OWNER]
    assert task.params.shape == (run.model.size,)
    checkpoints = run.record.checkpoints
    for step, state in task.history.checkpoints.items():
        past = run.record.initial if step == 0 else checkpoints[step]
        assert torch.equal(state, past[OWNER])


def test_neighbours_that_are_told_see_their_own_rows_and_what_was_sent(run):
    unlearn(
        run,
        REQUEST,
        AtPeer(method=Spy(), reentry="notify", share_forget=True),
    )
    sent = SEEN[0].forget
    for task in SEEN[1:]:
        assert {tuple(x) for x in task.retain.inputs.tolist()} == rows_of(
            run, task.peer
        )
        assert torch.equal(task.forget.inputs, sent.inputs)
        assert task.forget_size == 4
    assert [task.peer for task in SEEN] == [OWNER, 0, 1, 3, 4, 5]


def test_a_task_is_a_copy_of_what_it_shows(run):
    """Whoever writes into its task changes nothing of the run."""
    unlearn(run, REQUEST, AtPeer(method=Spy()))
    before = run.data.store.inputs.clone()
    SEEN[0].retain.inputs.zero_()
    assert torch.equal(run.data.store.inputs, before)


# --- whole peers, classes, several owners --------------------------------------


def test_a_whole_peer_is_forgotten_by_methods_without_retained_rows_only(run):
    request = ForgetRequest.whole_peer(3)
    outcome = unlearn(run, request, AtPeer(method=Ascent()))
    assert moved(run, outcome) == [i == 3 for i in range(6)]
    with pytest.raises(UnsupportedRequestError, match="got kind 'peer'"):
        unlearn(run, request, AtPeer(method=TUNE))
    others = AtPeer(method=Ascent(), reentry="all")
    assert all(moved(run, unlearn(run, request, others)))


def test_an_owner_without_rows_left_is_named_with_the_way_out():
    parts = [blobs(SIZES[:4], dtype=np.float64).local(i) for i in range(4)]
    pairs = [
        (part.inputs, torch.full_like(part.labels, 1) if i == 1 else part.labels)
        for i, part in enumerate(parts)
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0], num_classes=3)
    config = SimulationConfig(rounds=2, evaluate_every=0, dtype="float64")
    run = simulate("ring", data, "mlp", config)
    with pytest.raises(MissingInputError, match=r"retain_inputs.*peer 1.*gradient"):
        unlearn(run, ForgetRequest.class_(1), AtPeer(method=TUNE))


def test_a_class_is_forgotten_at_all_its_owners(run):
    outcome = unlearn(run, ForgetRequest.class_(1), AtPeer(method=TUNE))
    owners = set(outcome.request.peers)
    assert moved(run, outcome) == [i in owners for i in range(6)]
    diluted = unlearn(
        run, ForgetRequest.class_(1), AtPeer(method=TUNE, gossip_rounds=2)
    )
    deltas = outcome.state.params - run.state.params
    expected = sum(
        torch.from_numpy(dilution_weights(run.topology, u, 2)[-1])[:, None] * deltas[u]
        for u in owners
    )
    np.testing.assert_allclose(
        diluted.trace["peers_change"][-1], expected.norm(dim=1), rtol=1e-9
    )


def test_a_peer_that_is_gone_takes_no_part_as_a_neighbour(run):
    gone = unlearn(run, ForgetRequest.whole_peer(4), AtPeer(method=Ascent()))
    after = gone.as_run()
    outcome = unlearn(after, REQUEST, AtPeer(method=TUNE, reentry="all"))
    assert moved(after, outcome) == [i != 4 for i in range(6)]


# --- claims ---------------------------------------------------------------------


@pytest.mark.parametrize("reentry", sorted(set(get_args(Reentry)) - {"rewind_network"}))
def test_in_a_network_a_perfect_local_result_is_heuristic(reentry):
    """Retraining at one peer is exact alone; the network remembers."""
    run = network()
    fields = {"gossip_rounds": 1, "reentry": reentry, "method": Retrain()}
    if reentry == "maintain":
        fields["maintain_steps"] = 1
    outcome = unlearn(run, REQUEST, AtPeer(**fields))
    certificate = outcome.certificate
    assert certificate is not None
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert any(GOSSIP in reason for reason in certificate.reasons)
    assert certificate.exposure


def test_a_method_cannot_talk_itself_out_of_the_network(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=Noised()))
    assert outcome.certificate.status == "heuristic"
    owners = {entry.owner for entry in outcome.ledger.entries}
    assert owners == {f"peer:{OWNER}"}
    assert {entry.state for entry in outcome.ledger.entries} == {"committed"}
    assert not run.ledger.entries


def test_neighbours_charge_nothing_to_the_owners_ledger(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=Noised(), reentry="notify"))
    assert {entry.owner for entry in outcome.ledger.entries} == {f"peer:{OWNER}"}


def test_alone_the_methods_own_claim_stands_but_not_when_steps_are_repeated():
    run = network("single", sizes=[40])
    request = ForgetRequest.samples(peer=0, indices=[1, 2])
    alone = unlearn(run, request, AtPeer(method=Noised()))
    assert alone.certificate.status == "exact"
    again = AtPeer(
        method=Noised(), reentry="maintain", maintain_steps=1, gossip_rounds=1
    )
    assert unlearn(run, request, again).certificate.status == "heuristic"


def test_an_adaptive_request_is_noted(run):
    request = replace(REQUEST, adaptive=True)
    outcome = unlearn(run, request, AtPeer(method=Retrain()))
    assert outcome.certificate.status == "heuristic"
    assert any("released models" in reason for reason in outcome.certificate.reasons)


# --- refusals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reentry": "everywhere"}, "reentry.*everywhere"),
        ({"share_forget": True}, "share_forget.*notify"),
        ({"maintain_steps": 2}, "maintain_steps.*reentry='maintain'"),
        ({"reentry": "maintain", "gossip_rounds": 1}, "maintain_steps.*got 0"),
        ({"reach": 2}, "reach.*notify"),
        ({"reach": 0, "reentry": "notify"}, "reach"),
        ({"rewind_rounds": 2}, "rewind_rounds.*rewind_network"),
        ({"influence_threshold": 0.1}, "influence_threshold.*rewind_network"),
        ({"counterpart": FineTune()}, "counterpart.*all"),
        ({"reentry": "rewind_network"}, "method.*fine-tune, which would not run"),
        ({"maintain_threshold": float("nan")}, "maintain_threshold"),
        ({"gossip_after": "rest"}, "gossip_after.*rest"),
        ({"influence_weights": "even"}, "influence_weights.*even"),
        ({"dissemination": "pigeon"}, "dissemination.*pigeon"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AtPeer(**fields)


def test_a_network_with_faults_is_refused_with_the_way_out():
    run = network(faults=FaultPlan(models=(MessageLoss(p=0.1),)))
    with pytest.raises(UnsupportedRequestError, match=r"at-peer.*retrain"):
        unlearn(run, REQUEST, AtPeer(method=TUNE))


def test_the_old_divisor_is_refused(run):
    request = replace(REQUEST, normalization="fixed")
    for reentry in ("requester", "rewind_network"):
        method = TUNE if reentry == "requester" else Original()
        with pytest.raises(UnsupportedRequestError, match="local_mean"):
            unlearn(run, request, AtPeer(method=method, reentry=reentry))


def test_a_budget_holds_at_every_peer(run):
    protocol = AtPeer(
        method=FineTune(epochs=9), reentry="all", budget=Budget(max_steps=1)
    )
    assert unlearn(run, REQUEST, protocol).cost.steps_retain == 6


def test_labels_tell_methods_and_reentries_apart():
    assert AtPeer(method=TUNE).label == "at-peer.fine-tune"
    assert AtPeer(method=TUNE, reentry="all").label == "at-peer.fine-tune.all"


@pytest.mark.parametrize("reentry", get_args(Reentry))
def test_the_same_draws_give_the_same_bits(reentry, run):
    fields = {"reentry": reentry, "method": TUNE}
    if reentry == "rewind_network":
        fields["method"] = Original()
    if reentry in ("scaled", "maintain"):
        fields["gossip_rounds"] = 1
    if reentry == "maintain":
        fields["maintain_steps"] = 1
    first, second = (unlearn(run, REQUEST, AtPeer(**fields)) for _ in range(2))
    assert torch.equal(first.state.params, second.state.params)
    assert first.certificate == second.certificate


@pytest.mark.parametrize(
    "method", [Retrain(), R2d(epsilon=1.0)], ids=["retrain", "r2d"]
)
def test_a_pinned_change_claims_nothing_of_the_shared_model(method):
    run = opposed_run()
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    assert unlearn(run, request, AtPeer(method=method)).certificate.epsilon is not None
    pinned = unlearn(run, request, AtPeer(method=method, reentry="pinned"))
    assert torch.equal(pinned.state.params, run.state.params)
    assert pinned.certificate.status == "heuristic"
    assert any("shared model" in reason for reason in pinned.certificate.reasons)
    assert any("never sent" in line for line in pinned.certificate.exposure)


def test_neighbours_that_are_told_add_no_noise_of_their_own():
    run = opposed_run(peers=4)
    protocol = AtPeer(method=R2d(epsilon=1.0), reentry="notify")
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    outcome = unlearn(run, request, protocol)
    assert {entry.owner for entry in outcome.ledger.entries} == {"peer:0"}
    assert outcome.certificate.status == "heuristic"


@pytest.mark.parametrize(
    "method", [Retrain(), R2d(epsilon=1.0)], ids=["retrain", "r2d"]
)
def test_a_claim_on_features_names_their_extractor(method):
    run = opposed_run()
    assumed = Assumption(name="features", value="frozen", source="assumed")
    run = run.replaced(data=replace(run.data, extractor=assumed))
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    outcome = unlearn(run, request, AtPeer(method=method))
    assert assumed in outcome.certificate.assumptions
    assert outcome.certificate.status == "certified_conditional"
    assert {e.status for e in outcome.ledger.entries} <= {"certified_conditional"}


@pytest.mark.parametrize("reentry", ["scaled", "delta"])
def test_alone_nothing_of_the_old_model_is_in_the_new_ones_rounding(reentry):
    run = opposed_run()
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    rounds = 1 if reentry == "scaled" else 0
    protocol = AtPeer(method=Retrain(), reentry=reentry, gossip_rounds=rounds)
    plain = unlearn(run, request, AtPeer(method=Retrain()))
    again = unlearn(run, request, protocol)
    assert torch.equal(again.state.params, plain.state.params)


def test_a_registered_name_is_the_method_with_its_defaults():
    by_name = AtPeer(method="salun", reentry="all", counterpart="fine-tune")
    assert by_name == AtPeer(
        method=methods.build("salun"), reentry="all", counterpart=FineTune()
    )
    assert by_name.label == "at-peer.salun.all"
    assert protocol_of(form_of(by_name)) == by_name
    with pytest.raises(UnknownNameError, match=r"method: 'salum' .*did you mean 'salu"):
        AtPeer(method="salum")
    with pytest.raises(UnknownNameError, match="counterpart: 'tune' is not"):
        AtPeer(reentry="all", counterpart="tune")


def test_a_bare_method_is_told_to_be_wrapped(run):
    with pytest.raises(UnknownNameError, match=r"AtPeer\(method=FineTune\(\.\.\.\)\)"):
        unlearn(run, REQUEST, TUNE)
    with pytest.raises(UnknownNameError, match=r"AtPeer\(method='salun'\)"):
        unlearn(run, REQUEST, "salun")


def test_a_broken_claim_still_says_what_the_method_said_of_itself():
    run = opposed_run(peers=4)
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    kept = unlearn(run, request, AtPeer(method=R2d(epsilon=1.0))).certificate
    assert any("secret state" in line for line in kept.exposure)
    ensemble = unlearn(run, request, AtPeer(method=Sisa(shards=2, slices=1)))
    assert ensemble.certificate.status == "heuristic"
    assert ensemble.certificate.covers != ("all",)
