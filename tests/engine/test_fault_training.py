"""Training under faults: against a loop over messages, and what must stay as it is."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs
from oracles import faults as oracle
from scipy.sparse import csr_array

from dfl_unlearn import PeerData, load_topology
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    Reorder,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import (
    continue_training,
    kept_open,
    retrain,
    simulate,
)
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.topology.graph import Topology

N = 8
DATA = blobs([6, 9, 5, 12, 7, 8, 10, 6])
RING = load_topology("ring", n=N)
FULL = SimulationConfig(
    rounds=12,
    local=LocalSteps(batch_size=None, learning_rate=0.3),
    dtype="float64",
    common_init=False,
)
BATCHES = SimulationConfig(
    rounds=12,
    local=LocalSteps(steps=2, batch_size=4, learning_rate=0.2, momentum=0.7),
    block_peers=4,
)
CHURN = MarkovChurn(p_leave=0.2, p_return=0.4)
LATE = Delay(probabilities=(0.5, 0.3, 0.2), max_staleness=3)
EVENTS = ScheduledChurn(
    events=((2, 1, "down"), (6, 1, "up"), (4, 5, "leave"), (7, 3, "crash"))
)


def plan(*models, policy="symmetric_drop"):
    return FaultPlan(models=models, weight_policy=policy)


def trained(config, *models, policy="symmetric_drop", topology=RING, **execution):
    config = replace(config, faults=plan(*models, policy=policy))
    return simulate(
        topology, DATA, "logistic", config, execution=ExecutionConfig(**execution)
    )


def written_out(run, count, form, start):
    """What a loop over messages gives for a full-batch run."""
    return oracle.train(
        start,
        RING.weights.toarray(),
        run.faults().at,
        count,
        oracle.gradients_of(run),
        0.3,
        policy=run.config.faults.weight_policy,
        oldest=run.config.faults.oldest,
        form=form,
    )


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize(
    ("models", "policy"),
    [
        ((MessageLoss(p=0.3),), "symmetric_drop"),
        ((MessageLoss(p=0.3),), "self"),
        ((MessageLoss(p=0.3), CHURN), "push_sum"),
        ((CHURN, Straggler(share=0.5, slowdown=3)), "symmetric_drop"),
        ((LATE,), "symmetric_drop"),
        ((LATE, MessageLoss(p=0.2), CHURN), "self"),
        ((EVENTS, MessageLoss(p=0.1)), "symmetric_drop"),
        ((NetworkSplit(start=2, end=9, peers=(0, 1, 2)),), "self"),
    ],
)
def test_training_equals_a_loop_over_messages(models, policy, form):
    config = replace(FULL, trainer=DSgd(form=form))
    run = trained(config, *models, policy=policy)
    start = run.record.initial.numpy().copy()
    expected = written_out(run, FULL.rounds, form, start)
    np.testing.assert_allclose(run.state.params, expected, rtol=1e-10, atol=1e-12)
    plain = simulate(RING, DATA, "logistic", config)
    assert not np.allclose(plain.state.params, expected, rtol=1e-4)


class Alternating:
    """A ring and a star in turn."""

    n, connected_within, stochastic = N, 1, "doubly"

    def __init__(self):
        self._both = [load_topology(name, n=N) for name in ("ring", "star")]

    def at(self, t):
        return self._both[t % 2]


@pytest.mark.parametrize("policy", ["symmetric_drop", "self", "push_sum"])
def test_networks_that_change_fail_as_they_are_in_the_round(policy):
    schedule = Alternating()
    config = replace(FULL, schedule=schedule)
    run = trained(config, MessageLoss(p=0.3), CHURN, policy=policy)
    expected = oracle.train(
        run.record.initial.numpy(),
        lambda t: schedule.at(t).weights.toarray(),
        run.faults().at,
        FULL.rounds,
        oracle.gradients_of(run),
        0.3,
        policy=policy,
    )
    np.testing.assert_allclose(run.state.params, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(InvalidArgumentError, match="no delay with a schedule"):
        trained(config, LATE)


@pytest.mark.parametrize("policy", ["self", "push_sum"])
def test_one_way_edges_need_a_policy_that_needs_no_pairs(policy):
    arcs = load_topology("exponential", n=N)
    run = trained(FULL, MessageLoss(p=0.3), policy=policy, topology=arcs)
    expected = oracle.train(
        run.record.initial.numpy(),
        arcs.weights.toarray(),
        run.faults().at,
        FULL.rounds,
        oracle.gradients_of(run),
        0.3,
        policy=policy,
    )
    np.testing.assert_allclose(run.state.params, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(InvalidArgumentError, match="weights that are not symmetric"):
        trained(FULL, MessageLoss(p=0.3), topology=arcs)


def test_one_peer_may_be_down_as_well():
    events = ScheduledChurn(events=((1, 0, "down"), (3, 0, "up")))
    data = blobs([30])
    config = replace(FULL, faults=plan(events, MessageLoss(p=0.5)))
    found = [
        simulate(Topology.single(), data, "logistic", replace(config, rounds=r)).state
        for r in (1, 2, 3, 4)
    ]
    assert torch.equal(found[0].params, found[2].params)
    assert not torch.equal(found[2].params, found[3].params)


def test_a_plan_says_what_it_breaks():
    trainer = DSgd()
    assert plan().breaks(trainer) == ()
    assert plan(Duplicate(p=0.1), Reorder(p=0.1)).breaks(trainer) == ()
    wait = Straggler(share=0.5, slowdown=3, policy="wait")
    assert plan(wait).breaks(trainer) == ()
    changes = "the weights differ from round to round: messages are missing"
    skips = "peers skip local work in some rounds"
    assert plan(MessageLoss(p=0.1)).breaks(trainer) == (changes,)
    assert plan(CHURN).breaks(trainer) == (changes, skips)
    assert plan(MessageLoss(p=0.1), policy="self").breaks(trainer) == (
        changes,
        "weights are row-stochastic only: weight_policy='self' with message-loss",
    )
    assert "push_sum" in plan(CHURN, policy="push_sum").breaks(trainer)[1]
    assert any("old" in text for text in plan(LATE).breaks(trainer))
    assert any("crash" in text for text in plan(EVENTS).breaks(trainer))


@pytest.mark.parametrize(
    ("models", "policy"),
    [
        ((MessageLoss(p=0.3), CHURN), "symmetric_drop"),
        ((CHURN, NetworkSplit(start=3, end=6, peers=(0, 1))), "self"),
        ((MessageLoss(p=0.3),), "self"),
        ((Delay(probabilities=(1.0,), max_staleness=2), MessageLoss(p=0.3)), "self"),
        ((Delay(probabilities=(0.5, 0.5), max_staleness=0),), "symmetric_drop"),
        ((Delay(probabilities=(0.5, 0.5), max_staleness=0),), "self"),
        ((MessageLoss(p=0.3),), "push_sum"),
        ((EVENTS,), "symmetric_drop"),
    ],
)
def test_what_a_plan_promises_of_the_mean_is_what_its_rounds_do(models, policy):
    run = trained(replace(FULL, rounds=20), *models, policy=policy)
    marked = run.info["faults"]["mean_moved"]
    assert run.config.faults.keeps_mean is (not marked)


@pytest.mark.parametrize("config", [FULL, BATCHES])
@pytest.mark.parametrize(
    "models",
    [
        (),
        (MessageLoss(p=0.0),),
        (MarkovChurn(p_leave=0.0, p_return=1.0),),
        (Delay(probabilities=(1.0, 0.0)),),
        (Straggler(share=0.5, slowdown=3, policy="wait"),),
        (Duplicate(p=0.5), Reorder(p=0.5)),
        (ScheduledChurn(events=()),),
    ],
)
def test_a_plan_without_an_effect_changes_no_bit(config, models):
    plain = simulate(RING, DATA, "logistic", config)
    run = trained(config, *models)
    assert torch.equal(run.state.params, plain.state.params)
    assert run.digest == plain.digest
    if models and isinstance(models[0], Duplicate):
        assert run.info["faults"]["totals"]["duplicates"] > 0
        assert run.info["faults"]["totals"]["reordered"] > 0


def test_messages_that_come_twice_change_no_bit_of_a_lossy_run():
    models = (MessageLoss(p=0.2), CHURN)
    once = trained(BATCHES, *models)
    twice = trained(BATCHES, *models, Duplicate(p=0.5), Reorder(p=0.3))
    assert torch.equal(once.state.params, twice.state.params)


class Watch:
    """Keeps what rounds told."""

    def __init__(self):
        self.faults = []

    def on_round(self, info):
        self.faults.append(dict(info.faults))


def states(config, rounds, *models):
    """Parameters and momentum after each of some rounds."""
    found = []
    for r in range(1, rounds + 1):
        run = trained(replace(config, rounds=r), *models)
        found.append((run.state.params, run.state.slots["momentum"]))
    return found


def test_a_peer_that_is_down_keeps_every_bit_of_its_state():
    events = ScheduledChurn(
        events=((2, 1, "down"), (2, 6, "down"), (5, 1, "up"), (3, 4, "leave"))
    )
    found = states(BATCHES, 7, events, MessageLoss(p=0.2))
    for peer, frozen in ((1, (2, 3, 4)), (6, (2, 3, 4, 5, 6)), (4, (3, 4, 5, 6))):
        for t in range(1, 7):
            same = [
                torch.equal(now[peer], before[peer])
                for now, before in zip(found[t], found[t - 1], strict=True)
            ]
            assert all(same) if t in frozen else not any(same), (peer, t)


def test_no_gradient_is_noted_where_none_was_taken():
    run = trained(BATCHES, CHURN, Straggler(share=0.5, slowdown=3))
    norms = run.record.gradient_norms
    works = np.array([run.faults().at(t).works for t in range(BATCHES.rounds)])
    np.testing.assert_array_equal(norms > 0, works)
    assert not works.all()


def test_the_restarted_peer_takes_the_average_and_forgets_its_momentum():
    crash = ScheduledChurn(events=((4, 3, "crash"),))
    before, after = states(BATCHES, 5, crash)[3:]
    config = replace(BATCHES, rounds=5)
    neighbours = trained(config, crash)
    assert float(after[1][3].norm()) == 0
    assert float(before[1][3].norm()) > 0
    # What the neighbours sent in that round: their rows after local work.
    plain = [trained(replace(BATCHES, rounds=4), crash).state.params]
    assert torch.equal(plain[0], before[0])
    assert not torch.equal(after[0][3], before[0][3])
    assert neighbours.info["faults"]["totals"]["crashed"] == 1
    assert neighbours.info["faults"]["mean_moved"] == [5]


def test_a_crashed_peer_may_restart_from_its_own_checkpoint():
    crash = ScheduledChurn(
        events=((7, 3, "crash"),), restart="checkpoint", checkpoint_every=3
    )
    found = states(BATCHES, 8, crash)
    assert torch.equal(found[7][0][3], found[5][0][3])  # after round 6 = 2 x 3
    early = ScheduledChurn(
        events=((1, 3, "crash"),), restart="checkpoint", checkpoint_every=3
    )
    run = trained(replace(BATCHES, rounds=2), early)
    assert torch.equal(run.state.params[3], run.record.initial[3])


@pytest.mark.parametrize("policy", ["symmetric_drop", "self", "push_sum"])
def test_rounds_that_move_the_mean_are_marked(policy):
    watch = Watch()
    config = replace(BATCHES, faults=plan(MessageLoss(p=0.2), policy=policy))
    run = simulate(RING, DATA, "logistic", config, callbacks=[watch])
    marked = [t + 1 for t, seen in enumerate(watch.faults) if "mean_moved" in seen]
    assert run.info["faults"]["mean_moved"] == marked
    assert bool(marked) is (policy != "symmetric_drop")
    assert sum(seen.get("lost", 0) for seen in watch.faults) > 0


@pytest.mark.parametrize("models", [(MessageLoss(p=0.3),), (CHURN,)])
def test_gossip_keeps_the_mean_under_symmetric_drop(models):
    still = replace(FULL, local=LocalSteps(batch_size=None, learning_rate=1e-300))
    run = trained(still, *models)
    start = run.record.initial
    assert torch.allclose(run.state.mean(), start.mean(0), rtol=0, atol=1e-12)
    assert run.state.consensus_distance() < 0.9 * float(
        (start - start.mean(0)).square().sum(1).mean()
    )


def test_after_a_split_heals_the_consensus_distance_decays_at_the_squared_slem():
    still = replace(FULL, local=LocalSteps(batch_size=None, learning_rate=1e-300))
    split = NetworkSplit(start=0, end=60, peers=(0, 1, 2, 3))
    far = [
        trained(replace(still, rounds=r), split).state.consensus_distance()
        for r in (60, 90, 91)
    ]
    assert far[0] > 1e-3  # the halves agree within, not with each other
    assert far[2] / far[1] == pytest.approx(RING.slem**2, rel=1e-6)
    assert far[1] / far[0] < RING.slem**40


def test_gradient_tracking_keeps_the_trackers_mean_under_churn():
    config = replace(FULL, trainer=GradientTracking(), rounds=20)
    run = trained(config, CHURN, MessageLoss(p=0.2))
    slots = run.state.slots
    tracked, taken = slots["tracker"].mean(0), slots["gradient"].mean(0)
    assert torch.allclose(tracked, taken, rtol=0, atol=1e-12)
    with pytest.raises(InvalidArgumentError, match="must keep the mean for gradient"):
        trained(config, MessageLoss(p=0.2), policy="self")
    with pytest.raises(InvalidArgumentError, match="must keep the mean for gradient"):
        trained(config, LATE)


def test_private_training_is_charged_in_full_whoever_is_down():
    config = replace(BATCHES, trainer=DpGossip(rate=0.5), local=LocalSteps())
    plain = simulate(RING, DATA, "logistic", config)
    run = trained(config, CHURN, MessageLoss(p=0.2))
    assert str(run.ledger.table()) == str(plain.ledger.table())
    assert not torch.equal(run.state.params, plain.state.params)


@pytest.mark.parametrize(
    ("models", "policy"),
    [
        ((MessageLoss(p=0.2), CHURN), "push_sum"),
        ((LATE, MessageLoss(p=0.1)), "symmetric_drop"),
        ((EVENTS,), "self"),
    ],
)
def test_a_run_is_the_same_when_it_is_made_again(models, policy, tmp_path):
    run = trained(BATCHES, *models, policy=policy)
    again = trained(BATCHES, *models, policy=policy)
    assert run.digest == again.digest
    assert torch.equal(retrain(run, DATA).state.params, run.state.params)
    stored = run.save(tmp_path / "run")
    loaded = load_run(tmp_path / "run", data=DATA)
    assert loaded.config == stored.config
    assert loaded.config.faults == run.config.faults
    assert loaded.network_round == run.state.round
    assert loaded.info["faults"] == run.info["faults"]
    events = [r for r in RunFolder(tmp_path / "run").records() if r["type"] == "event"]
    assert [(e["what"], e["round"]) for e in events] == [
        ("mean_moved", r) for r in run.info["faults"]["mean_moved"][:1]
    ]
    assert loaded.faults().at(3).counts() == run.faults().at(3).counts()


def test_training_goes_on_by_the_networks_clock():
    events = ScheduledChurn(events=((14, 2, "down"), (16, 2, "up")))
    run = trained(BATCHES, events)
    assert run.network_round == 12
    frozen, _ = continue_training(
        run.replaced(ahead=2), DATA, replace(run.state, slots={}), 2
    )
    assert torch.equal(frozen.params[2], run.state.params[2])
    free, _ = continue_training(run, DATA, replace(run.state, slots={}), 2)
    assert not torch.equal(free.params[2], run.state.params[2])


def test_rows_sent_before_training_went_on_are_in_no_inbox():
    stale = Delay(probabilities=(0.0, 0.0, 1.0))
    run = trained(FULL, stale)
    moved = replace(run.state, params=run.state.params + 100, slots={})
    after, _ = continue_training(run, DATA, moved, 1)
    # Nothing fresh has arrived: everybody is alone, nobody meets an old row.
    assert (after.params - moved.params).abs().max() < 5


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_relabelling_the_peers_relabels_a_run_with_named_faults(form):
    order = np.array([3, 0, 6, 2, 7, 5, 1, 4])  # new peer k is old peer order[k]
    place = np.argsort(order)
    weights = RING.weights.toarray()[np.ix_(order, order)]
    graph = nx.relabel_nodes(RING.graph, dict(enumerate(place.tolist())))
    plain = nx.Graph()
    plain.add_nodes_from(range(N))
    plain.add_edges_from(graph.edges)
    topology = Topology(graph=plain, weights=csr_array(weights))
    data = PeerData.from_tensors(
        [(DATA.local(i).inputs, DATA.local(i).labels) for i in order],
        test=(DATA.test.inputs, DATA.test.labels),
        num_classes=DATA.num_classes,
    )

    def named(new):
        at = place if new else np.arange(N)
        events = tuple((t, int(at[i]), what) for t, i, what in EVENTS.events)
        side = tuple(int(at[i]) for i in (0, 1, 2))
        return plan(
            ScheduledChurn(events=events), NetworkSplit(start=5, end=9, peers=side)
        )

    config = replace(FULL, trainer=DSgd(form=form), common_init=True)
    old = simulate(RING, DATA, "logistic", replace(config, faults=named(False)))
    new = simulate(topology, data, "logistic", replace(config, faults=named(True)))
    torch.testing.assert_close(
        new.state.params, old.state.params[torch.from_numpy(order)], rtol=1e-11, atol=0
    )


def test_the_network_of_a_split_round_is_in_parts():
    run = trained(FULL, NetworkSplit(start=2, end=4, peers=(0, 1, 2)))
    apart, whole = run.faults().at(2).topology, run.faults().at(4).topology
    assert nx.number_connected_components(apart.graph) == 2
    assert apart.stochastic == "doubly"
    np.testing.assert_array_equal(whole.weights.toarray(), RING.weights.toarray())


def test_peers_that_are_not_there_are_refused():
    with pytest.raises(UnknownPeerError, match=r"models\.0"):
        trained(BATCHES, ScheduledChurn(events=((0, 8, "down"),)))


@pytest.fixture(scope="module")
def workers():
    with kept_open(ExecutionConfig(engine="ray", workers=2)):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(
    ("models", "policy"),
    [
        ((LATE, MessageLoss(p=0.1), CHURN), "symmetric_drop"),
        ((MessageLoss(p=0.2), CHURN), "push_sum"),
        (
            (
                ScheduledChurn(
                    events=((2, 1, "down"), (5, 1, "up"), (7, 3, "crash")),
                    restart="checkpoint",
                    checkpoint_every=3,
                ),
                Straggler(share=0.3, slowdown=2),
            ),
            "self",
        ),
    ],
)
def test_workers_give_the_bits_of_one_process(models, policy):
    here = trained(BATCHES, *models, policy=policy)
    there = trained(
        BATCHES, *models, policy=policy, engine="ray", workers=2, checkpoint_every=3
    )
    assert there.digest == here.digest
    for name, rows in here.state.slots.items():
        assert torch.equal(rows, there.state.slots[name]), name


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_a_worker_killed_under_late_messages_changes_no_bit(monkeypatch):
    here = trained(BATCHES, LATE)
    monkeypatch.setenv("DFL_UNLEARN_FAULT", "worker:9:during-return")
    there = trained(BATCHES, LATE, engine="ray", workers=2, checkpoint_every=5)
    assert there.info["execution"]["rebuilt"] == 1
    assert there.digest == here.digest
