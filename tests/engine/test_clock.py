"""Simulated time: by hand, against a simulation of events, and beside everything."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from networks import blobs, path4
from oracles.event_clock import training_times

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import (
    NetworkClock,
    PeerClocks,
    TrainingClock,
    protocol_seconds,
    samples_each,
)
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig, trainers
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faults import (
    FaultPlan,
    MessageLoss,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.engine.transport import HEADER_BYTES, Transport
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.store import load_outcomes

CLOCK = NetworkClock(
    latency_s=0.5, bandwidth_bytes_per_s=1000.0, samples_per_s=10.0
)  # a sample takes 0.1 s, a kilobyte 1 s
UNLIKE = replace(CLOCK, speed_spread=0.7, link_spread=0.5)
P = 75  # parameters: 300 bytes, 396 with the header
X = (4 * P + HEADER_BYTES) / 1000.0
W, L = 2.0, 0.5  # 20 samples, all rows of a peer


def training(topology, clock=CLOCK, trainer=None, sizes=None, ahead=0, **fields):
    data = blobs(sizes or [20] * topology.n)
    config = SimulationConfig(
        trainer=trainer or DSgd(),
        local=LocalSteps(batch_size=None),
        clock=clock,
        **fields,
    )
    setup = SimpleNamespace(
        schedule=topology,
        data=data,
        model=SimpleNamespace(size=P),
        config=config,
        rng=RngTree(3),
        ahead=ahead,
    )
    return TrainingClock(setup)


def test_a_round_of_equal_peers_on_a_ring_is_work_latency_and_two_messages():
    ring = Topology.from_graph(nx.cycle_graph(7))
    clock = training(ring)
    times = [clock.after(t) for t in range(4)]
    np.testing.assert_allclose(times, (W + L + 2 * X) * np.arange(1, 5), rtol=1e-12)


def test_the_form_says_what_waits_for_the_local_work():
    ring = Topology.from_graph(nx.cycle_graph(5))
    way = L + 2 * X
    cta = training(ring, trainer=DSgd(form="cta")).after(9)
    np.testing.assert_allclose(cta, 10 * max(W, way), rtol=1e-12)
    tracking = training(ring, trainer=GradientTracking()).after(9)
    both = L + 2 * (8 * P + HEADER_BYTES) / 1000.0  # two vectors cross each edge
    np.testing.assert_allclose(tracking, 10 * (both + W), rtol=1e-12)


def test_the_hub_of_a_star_shares_its_line_among_all():
    clock = training(Topology.from_graph(nx.star_graph(5)))
    clock.after(0)
    leaf = W + L + 5 * X
    np.testing.assert_allclose(clock.now, [W + L + X, *[leaf] * 5], rtol=1e-12)
    clock.after(1)
    np.testing.assert_allclose(clock.now, [2 * W + 2 * L + 6 * X] * 6, rtol=1e-12)


def test_a_slow_peer_is_felt_one_hop_further_every_round():
    quick = replace(CLOCK, latency_s=0.0, bandwidth_bytes_per_s=1e18)
    clock = training(path4(), quick, sizes=[100, 10, 10, 10])
    seen = []
    for t in range(4):
        clock.after(t)
        seen.append(clock.now.copy())
    expected = [[10, 10, 1, 1], [20, 20, 11, 2], [30, 30, 21, 12], [40, 40, 31, 22]]
    np.testing.assert_allclose(seen, expected, rtol=1e-9)


@pytest.mark.parametrize("form", ["atc", "cta", "gradient_tracking"])
@pytest.mark.parametrize("seed", range(6))
def test_the_recursion_is_the_simulation_of_every_message(form, seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 9))
    graph = nx.connected_watts_strogatz_graph(n, min(4, n), 0.5, seed=seed)
    topology = Topology.from_graph(graph, name="random")
    sizes = draw.integers(1, 50, n).tolist()
    trainer = GradientTracking() if form == "gradient_tracking" else DSgd(form=form)
    clock = training(topology, UNLIKE, trainer, sizes)
    clock.after(11)
    pace = UNLIKE.pace(n, RngTree(3))
    oracle = training_times(
        form,
        12,
        (np.array(sizes) / pace.samples_per_s).tolist(),
        [(i, j) for a, b in graph.edges for i, j in ((a, b), (b, a))],
        pace.access_s.tolist(),
        pace.bytes_per_s.tolist(),
        HEADER_BYTES + 4 * P * len(trainer.mixed),
    )
    assert clock.now.tolist() == oracle


def test_a_changing_network_waits_only_along_the_edges_of_the_round():
    pairs = [Topology.from_graph(nx.cycle_graph(4)), path4()]
    schedule = SimpleNamespace(n=4, at=lambda t: pairs[t % 2])
    clock = training(pairs[0])
    changing = training(schedule)
    assert changing.after(0) == clock.after(0)
    assert changing.after(1) == clock.after(0) + W + L + 2 * X
    ends = W + L + 2 * X + np.array([2 * X, 2 * X, 2 * X, 2 * X]) + W + L
    np.testing.assert_allclose(changing.now, ends, rtol=1e-12)


def faulty(*models, **options):
    return FaultPlan(models=models, **options)


def test_nobody_waits_for_a_lost_message_but_its_sender_spent_the_line():
    star = Topology.from_graph(nx.star_graph(3))
    plan = faulty(MessageLoss(p=0.5), weight_policy="self")
    clock = training(star, faults=plan)
    draws = FaultDraws.of(plan, star, RngTree(3))
    clock.after(0)
    for leaf in (1, 2, 3):
        arrives = draws.at(0).delivers(0, leaf)
        assert clock.now[leaf] == pytest.approx(W + (L + 3 * X if arrives else 0))
    heard = any(draws.at(0).delivers(leaf, 0) for leaf in (1, 2, 3))
    assert clock.now[0] == pytest.approx(W + (L + X if heard else 0))
    assert len({round(float(now), 6) for now in clock.now[1:]}) == 2  # both happen


def test_a_slow_peer_that_is_waited_for_slows_the_network():
    ring = Topology.from_graph(nx.cycle_graph(5))
    slow = faulty(Straggler(share=0.2, slowdown=3, policy="wait"))
    clock = training(ring, faults=slow)
    clock.after(0)
    way = L + 2 * X
    peer = int(np.argmax(clock.now))  # itself or a neighbour
    assert clock.now[peer] == pytest.approx(3 * W + way)
    assert sorted(clock.now)[:3] == pytest.approx([W + way, W + way, 3 * W])
    idle = training(ring, faults=faulty(Straggler(share=0.2, slowdown=3)))
    idle.after(1)
    assert idle.now.max() == pytest.approx(2 * (W + way))
    assert idle.now.min() == pytest.approx(2 * (W + way))  # it mixes all the same


def test_a_peer_that_is_down_stands_still_and_returns_to_its_neighbours_round():
    events = ((1, 3, "down"), (3, 3, "up"))
    clock = training(path4(), faults=faulty(ScheduledChurn(events=events)))
    times = [(clock.after(t), clock.now.copy())[1] for t in range(4)]
    assert times[1][3] == times[2][3] == times[0][3]
    both = L + 2 * X
    # peer 2 sends one message less while peer 3 is down
    assert times[2][0] == pytest.approx(3 * (W + L) + (2 + 1 + 2) * X)
    # from where peer 2 was, then work, then the row of peer 2
    assert times[3][3] == pytest.approx(times[2][2] + W + both)


def test_training_after_a_request_is_in_later_rounds_of_the_network():
    plan = faulty(ScheduledChurn(events=((0, 3, "down"), (5, 3, "up"))))
    early, late = (training(path4(), faults=plan, ahead=a) for a in (0, 5))
    assert early.after(0) < late.after(0) + 1e-9
    assert early.now[3] == 0.0
    assert late.now[3] > 0.0


def test_a_plan_in_which_nothing_happens_takes_the_same_time():
    ring = Topology.from_graph(nx.cycle_graph(6))
    plain = training(ring, UNLIKE)
    quiet = training(ring, UNLIKE, faults=faulty(MessageLoss(p=0.0)))
    for t in range(5):
        assert quiet.after(t) == plain.after(t)


def test_rounds_may_be_skipped_and_repeated():
    ring = Topology.from_graph(nx.cycle_graph(5))
    steps, jump = training(ring, UNLIKE), training(ring, UNLIKE)
    times = [steps.after(t) for t in range(8)]
    assert jump.after(7) == times[7]
    assert jump.after(2) == times[2]
    assert jump.after(7) == times[7]


def test_unlike_peers_have_the_stated_spread_and_keep_it_in_any_network():
    few, many = (UNLIKE.pace(n, RngTree(5)) for n in (4, 4000))
    assert (few.samples_per_s == many.samples_per_s[:4]).all()
    for values, median, spread in (
        (many.samples_per_s, 10.0, 0.7),
        (many.access_s, 0.25, 0.5),
        (many.bytes_per_s, 1000.0, 0.5),
    ):
        logs = np.log(values / median)
        assert abs(logs.mean()) < 4 * spread / np.sqrt(4000)
        assert abs(logs.std() - spread) < 4 * spread / np.sqrt(8000)
    alike = CLOCK.pace(4, RngTree(5))
    assert set(alike.samples_per_s) == {10.0}
    assert set(alike.access_s) == {0.25}


def test_work_is_that_of_the_steps_and_of_the_expected_private_batch():
    data = blobs([20, 7])
    steps = SimulationConfig(local=LocalSteps(steps=3, batch_size=5))
    np.testing.assert_allclose(samples_each(data, steps), [15.0, 3 * 7 / 2])
    private = SimulationConfig(trainer=trainers.build("dp-gossip", rate=0.25))
    np.testing.assert_allclose(samples_each(data, private), [5.0, 1.75])
    gone = data.without(ForgetRequest.whole_peer(1).resolve(data))
    np.testing.assert_allclose(samples_each(gone, steps), [15.0, 0.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_s", -1.0),
        ("bandwidth_bytes_per_s", 0.0),
        ("samples_per_s", float("nan")),
        ("speed_spread", 6.0),
        ("link_spread", -0.1),
    ],
)
def test_a_clock_refuses_what_no_network_has(field, value):
    with pytest.raises(InvalidArgumentError, match=field):
        NetworkClock(**{field: value})


def test_messages_of_a_protocol_wait_for_what_came_before():
    """A tree along path4: three hops; the answer overlaps with the second tree."""
    transport = Transport(path4())
    transport.work(np.array([10.0]), np.array([0]))
    transport.broadcast(0, "a", 100, "tree")
    way = L + (100 + HEADER_BYTES) / 1000.0
    pace = CLOCK.pace(4, RngTree(0))
    seconds = protocol_seconds(transport.log, pace, samples=10, requester=0)
    np.testing.assert_allclose(seconds, 1 + 3 * way, rtol=1e-12)
    transport.broadcast(0, "b", 100, "tree")  # leaves while the first is on its way
    seconds = protocol_seconds(transport.log, pace, samples=10, requester=0)
    np.testing.assert_allclose(seconds, 1 + 3 * way, rtol=1e-12)
    transport.send(3, 2, "c", 100)
    seconds = protocol_seconds(transport.log, pace, samples=10, requester=0)
    np.testing.assert_allclose(seconds, 1 + 4 * way, rtol=1e-12)


def test_work_that_no_step_is_told_of_is_the_requesters_and_comes_first():
    transport = Transport(path4())
    transport.send(2, 1, "a", 100)
    pace = CLOCK.pace(4, RngTree(0))
    way = L + (100 + HEADER_BYTES) / 1000.0
    seconds = protocol_seconds(transport.log, pace, samples=30, requester=2)
    np.testing.assert_allclose(seconds, 3 + way, rtol=1e-12)
    idle = protocol_seconds(transport.log, pace, samples=2, requester=2, rounding=2)
    np.testing.assert_allclose(idle, way, rtol=1e-12)


RUN = SimulationConfig(rounds=6, evaluate_every=2, local=LocalSteps(batch_size=5))
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])


@pytest.fixture(scope="module")
def run():
    config = replace(RUN, clock=UNLIKE)
    return simulate("ring", blobs([12, 7, 9, 10]), "logistic", config)


def test_the_clock_is_in_the_history_and_in_no_digest(run):
    seen = []
    other = simulate(
        "ring",
        run.data,
        "logistic",
        RUN,
        callbacks=[SimpleNamespace(on_round=lambda info: seen.append(info))],
    )
    assert other.digest == run.digest
    assert (np.diff(run.history.simulated_seconds) > 0).all()
    assert (other.history.simulated_seconds != run.history.simulated_seconds).all()
    times = [info.simulated_seconds for info in seen]
    assert times[1::2] == other.history.simulated_seconds.tolist()


@pytest.mark.parametrize(
    "protocol",
    [
        "retrain",
        "fine-tune",
        "newton-fisher",
        NewtonFisher(curvature="lissa", assume_stationary=True),
        NewtonFisher(curvature="local", damping=0.1, assume_stationary=True),
        NewtonFisher(curvature="diag_fisher", damping=0.1, assume_stationary=True),
        RrDu(hops=40),
    ],
    ids=str,
)
def test_every_gradient_of_a_protocol_is_placed_at_a_peer(run, protocol):
    outcome = unlearn(run, REQUEST, protocol)
    placed = sum(float(samples.sum()) for _, samples in outcome.messages.works)
    cost = outcome.cost
    # rr-du's bounds are the requester's own work before it sends anything
    own = 7 if isinstance(protocol, RrDu) else 0
    assert placed == pytest.approx(cost.gradient_evaluations - own, abs=cost.rounds / 2)
    pace = UNLIKE.pace(4, run.rng)
    hops = outcome.messages.steps
    assert hops
    assert cost.simulated_seconds > 2 * pace.access_s.min()
    # no more than all of it one after the other
    one = cost.gradient_evaluations / pace.samples_per_s.min()
    size = outcome.messages.max_edge_bytes() * 3 / pace.bytes_per_s.min()
    assert cost.simulated_seconds <= one + hops * (2 * pace.access_s.max() + size)


def test_retraining_takes_what_training_took(run):
    outcome = unlearn(run, REQUEST, "retrain")
    history = outcome.reference.history
    assert outcome.cost.simulated_seconds == pytest.approx(
        history.simulated_seconds[-1], rel=1e-12
    )


def test_the_clock_is_stored_and_may_be_missing(run, tmp_path):
    place = tmp_path / "a"
    saved = run.save(place)
    outcome = unlearn(saved, REQUEST, "fine-tune", folder=place)
    back = load_run(place, data=run.data)
    assert back.config.clock == UNLIKE
    assert (back.history.simulated_seconds == run.history.simulated_seconds).all()
    (kept,) = load_outcomes(back)
    assert kept.cost.simulated_seconds == outcome.cost.simulated_seconds > 0

    without(place / "manifest.json", "training", "clock")
    (told,) = place.glob("outcomes/*/outcome.json")
    without(told, "cost", "simulated_seconds")
    older = load_run(place, data=run.data)
    assert older.config.clock == NetworkClock()
    (kept,) = load_outcomes(older)
    assert math.isnan(kept.cost.simulated_seconds)  # never a number nobody took


def without(path, section, name):
    """Rewrite a file as a version without the entry would have."""
    values = json.loads(path.read_text())
    del values[section][name]
    path.write_text(json.dumps(values))


def test_a_history_without_simulated_seconds_is_read(run, tmp_path):
    older = replace(run, history=replace(run.history, simulated_seconds=None))
    back = load_run(older.save(tmp_path / "a").folder, data=run.data)
    assert back.history.simulated_seconds is None
    assert (back.history.seconds == run.history.seconds).all()


def test_all_clocks_start_at_zero():
    assert PeerClocks(CLOCK.pace(3, RngTree(0))).end == 0.0
