"""What the influence metrics say, held against the trace and second computations."""

import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from evaluation.outcomes import random_outcome
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.influence import best_influence, track_influence
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.evaluation.metrics import influence as module
from dfl_unlearn.evaluation.metrics import metrics
from dfl_unlearn.evaluation.view import EvaluationView, evaluate
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.schedules import Constant
from dfl_unlearn.unlearning.apply import unlearn

NAMES = ("spectral-gap", "front-time", "effective-spread", "influence-share")
REQUEST = ForgetRequest.samples(peer=2, indices=[0, 1])


def trained(topology, rounds=12):
    config = SimulationConfig(
        rounds=rounds,
        trainer=DSgd(form="cta"),
        local=LocalSteps(batch_size=None, learning_rate=0.1),
        evaluate_every=0,
    )
    return simulate(topology, blobs([8] * topology.n), "logistic", config)


@pytest.fixture(scope="module")
def run():
    return trained(load_topology("ring", n=6))


def measured(run, names=NAMES, protocols=("fine-tune",), request=REQUEST):
    tables = [evaluate(unlearn(run, request, p), names) for p in protocols]
    return [row for table in tables for row in table.rows]


def network_values(rows):
    return {row["metric"]: row["value"] for row in rows if row["peer"] == -1}


def test_the_values_are_those_of_the_trace_of_the_requester(run):
    trace = track_influence(run, 2)
    rows = measured(run)
    found = network_values(rows)
    assert found["front-time"] == trace.front(0.5).max()
    assert found["effective-spread"] == trace.effective_spread()[-1]
    for metric, per_peer in (
        ("front-time", trace.front(0.5)),
        ("influence-share", trace.shares()[-1]),
    ):
        values = [r["value"] for r in rows if r["metric"] == metric and r["peer"] >= 0]
        np.testing.assert_array_equal(values, per_peer)


def test_the_gap_of_a_ring_is_the_one_that_its_cosine_gives(run):
    gap = (1 - math.cos(2 * math.pi / 6)) * 2 / 3  # Metropolis: a third to each
    assert network_values(measured(run))["spectral-gap"] == pytest.approx(gap)


def test_the_farthest_peer_and_not_the_mean_is_the_network_s_front(run):
    rows = measured(run, names=["front-time"])
    peers = [row["value"] for row in rows if row["peer"] >= 0]
    assert network_values(rows)["front-time"] == max(peers) > np.mean(peers)


def test_units_world_and_set_are_those_that_tables_expect(run):
    units = {row["metric"]: row["unit"] for row in measured(run)}
    assert units == {
        "spectral-gap": "",
        "front-time": "rounds",
        "effective-spread": "peers",
        "influence-share": "fraction",
    }
    assert {(row["world"], row["set"]) for row in measured(run)} == {("before", "")}


def test_a_front_that_did_not_arrive_is_infinite():
    short = trained(Topology.from_graph(nx.cycle_graph(8)), rounds=3)
    rows = measured(short, names=["front-time"])
    assert network_values(rows)["front-time"] == math.inf
    reached = [row["value"] for row in rows if row["hop"] == 0]
    assert reached == [1.0]


def test_a_better_connected_network_is_crossed_earlier():
    fronts = [
        network_values(measured(trained(load_topology(name, n=9), 40)))["front-time"]
        for name in ("ring", "torus", "complete")
    ]
    assert fronts[0] > fronts[1] > fronts[2]


def test_the_trace_is_made_once_for_all_protocols(run, monkeypatch):
    calls = []

    def counted(run, source):
        calls.append(source)
        return best_influence(run, source)

    monkeypatch.setattr(module, "best_influence", counted)
    module._traces.clear()
    rows = measured(run, protocols=("fine-tune", "retrain", "newton-fisher"))
    assert calls == [2]
    values = {(r["metric"], r["peer"]): set() for r in rows}
    for row in rows:
        values[row["metric"], row["peer"]].add(row["value"])
    assert {len(found) for found in values.values()} == {1}


def test_kept_traces_do_not_grow_without_end(run):
    for peer in range(6):
        measured(run, request=ForgetRequest.samples(peer=peer, indices=[0]))
    assert len(module._traces) <= module._KEPT


def test_one_peer_s_view_has_that_peer_s_values(run):
    view = EvaluationView.of(unlearn(run, REQUEST, "fine-tune")).at("before")
    for name in ("front-time", "influence-share"):
        whole = metrics.get(name)(view)
        assert metrics.get(name)(view.only(4)).tolist() == [whole[4].item()]


def test_none_is_in_the_default_table(run):
    table = evaluate(unlearn(run, REQUEST, "fine-tune"))
    assert not {row["metric"] for row in table.rows} & set(NAMES)


def test_a_network_of_every_round_has_no_gap():
    outcome = random_outcome()
    schedule = Constant(topology=outcome.run.topology)
    outcome.run.config = replace(outcome.run.config, schedule=schedule)
    view = EvaluationView.of(outcome).at("before")
    with pytest.raises(UnsupportedRequestError, match=r"spectral-gap.*schedule"):
        metrics.get("spectral-gap")(view)


def test_nobody_s_influence_is_not_measured(run):
    outcome = unlearn(run, [], "fine-tune")
    with pytest.raises(MissingInputError, match="requester"):
        evaluate(outcome, ["front-time"])
