import html

import numpy as np
import pytest
from networks import blobs
from results.handmade import made_run

from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.faults import FaultPlan, MessageLoss
from dfl_unlearn.engine.influence import best_influence, mixing_of, track_influence
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.pages import sources
from dfl_unlearn.pages.sources import pairwise_influence
from dfl_unlearn.plots import draw
from dfl_unlearn.record.influence import influence_matrix, mixing_power
from dfl_unlearn.report import report_page
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.topology.files import load_topology


def test_by_mixing_alone_each_source_is_its_own_mixing_power():
    run = made_run(n=7)  # it recorded no initial state: nothing exact can be had
    rounds = np.array([1, 2, 5, 30])
    pairs = pairwise_influence(run, rounds)
    assert pairs.mode == "mixing_power"
    for source in range(7):
        trace = mixing_power(run.topology, source, 30)
        shares = trace.shares()[rounds - 1]
        np.testing.assert_allclose(pairs.shares[:, source], shares, rtol=1e-12)
        np.testing.assert_array_equal(pairs.arrival[source], trace.front(0.1))
    held = influence_matrix(run.topology, 30)
    np.testing.assert_allclose(pairs.shares[-1].T, held, rtol=1e-9)


def test_nothing_is_held_outside_the_light_cone():
    pairs = pairwise_influence(made_run(n=7), np.array([1, 2]))
    hops = made_run(n=7).topology.hops(0)
    np.testing.assert_array_equal(pairs.shares[0, 0] > 0, hops <= 1)
    np.testing.assert_array_equal(pairs.shares[1, 0] > 0, hops <= 2)


def test_a_network_that_failed_is_followed_through_what_really_mixed():
    config = SimulationConfig(
        rounds=6, faults=FaultPlan(models=(MessageLoss(p=0.5),), weight_policy="self")
    )
    run = simulate("ring", blobs([6] * 5), "logistic", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "influence_is_cheap", lambda *_, **__: False)
        pairs = pairwise_influence(run, np.arange(1, 7))
    for source in range(5):
        mixing = mixing_of(run, "mixing_power")
        trace = mixing_power(run.topology, source, 6, mixing=mixing)
        np.testing.assert_allclose(pairs.shares[:, source], trace.shares(), rtol=1e-12)


def test_many_replays_are_not_made_for_a_page(monkeypatch):
    monkeypatch.setattr(sources, "_MOST_REPLAYED", 39)
    run = simulate("ring", blobs([6] * 5), "logistic", SimulationConfig(rounds=8))
    assert pairwise_influence(run, np.array([1, 8])).mode == "mixing_power"


def test_a_small_run_is_followed_exactly_from_every_peer():
    run = simulate("ring", blobs([6] * 5), "logistic", SimulationConfig(rounds=8))
    pairs = pairwise_influence(run, np.array([1, 3, 8]))
    assert pairs.mode == "exact" == best_influence(run, 0).mode
    for source in range(5):
        shares = track_influence(run, source).shares()[[0, 2, 7]]
        np.testing.assert_allclose(pairs.shares[:, source], shares, rtol=1e-12)


class RingThenComplete:
    """Two networks in turn; hops are those of the first."""

    n, connected_within, stochastic = 6, 1, "doubly"

    def __init__(self):
        self.networks = load_topology("ring", n=6), load_topology("complete", n=6)

    def at(self, t):
        return self.networks[t % 2]


@pytest.fixture(scope="module")
def changing():
    config = SimulationConfig(rounds=4, schedule=RingThenComplete())
    return simulate("ring", blobs([6] * 6), "logistic", config)


def test_a_network_that_changes_is_followed_round_by_round(changing, monkeypatch):
    monkeypatch.setattr(sources, "influence_is_cheap", lambda *_, **__: False)
    pairs = pairwise_influence(changing, np.arange(1, 5))
    held = np.zeros((6, 6))
    for t in range(4):
        held = changing.schedule.at(t).weights @ (held + np.eye(6))
        shares = (held / held.sum(axis=0)).T
        np.testing.assert_allclose(pairs.shares[t], shares, rtol=1e-12)


def test_a_network_that_changes_has_no_light_cone_of_its_first_one(changing):
    """Data cross three hops of the ring in two rounds, by the complete network."""
    trace = best_influence(changing, 0)
    assert trace.front(0.1)[3] < trace.hops[3]
    page = html.unescape(report_page(changing))
    assert "Every round had a network of its own" in page
    assert "Nothing can lie below the light cone" not in page
    steady = simulate("ring", blobs([6] * 6), "logistic", SimulationConfig(rounds=4))
    assert "Nothing can lie below the light cone" in html.unescape(report_page(steady))
    for run, cones in ((changing, 0), (steady, 1)):
        axes = draw("influence-front", ResultsView.of(run)).axes[0]
        legend = axes.get_legend_handles_labels()[1]
        assert legend.count("light cone") == cones
