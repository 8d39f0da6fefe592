import networkx as nx
import numpy as np
import pytest
from networks import path4
from scipy.sparse import csr_array

from dfl_unlearn.engine.transport import HEADER_BYTES, Transport, multiples
from dfl_unlearn.errors import InvalidArgumentError, StaleModelError, TopologyError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology

GRAPHS = {
    "path4": (nx.path_graph(4), 3),
    "ring6": (nx.cycle_graph(6), 7),
    "ring10": (nx.cycle_graph(10), 11),
    "star5": (nx.star_graph(4), 4),
    "K5": (nx.complete_graph(5), 16),
    "Petersen": (nx.petersen_graph(), 21),
    "torus": (
        nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True)),
        49,
    ),
    "karate": (nx.karate_club_graph(), 123),
}


def topology_of(graph):
    return Topology.from_graph(nx.Graph(graph.edges))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("source", [0, 3])
def test_a_flood_sends_two_messages_an_edge_less_a_tree(name, source):
    graph, expected = GRAPHS[name]
    transport = Transport(topology_of(graph))
    steps = transport.broadcast(source, "model", 100, "flood")
    assert len(transport.log) == expected
    assert steps == nx.eccentricity(graph, source)
    received = transport.log.received(len(graph))
    assert (np.delete(received, source) >= 1).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_tree_reaches_everyone_once(name):
    graph, _ = GRAPHS[name]
    transport = Transport(topology_of(graph))
    transport.broadcast(0, "model", 100, "tree")
    received = transport.log.received(len(graph))
    assert received[0] == 0
    assert (received[1:] == 1).all()
    assert transport.log.nbytes == (len(graph) - 1) * (100 + HEADER_BYTES)


def test_an_all_reduce_goes_up_and_down_the_tree():
    transport = Transport(path4())
    transport.all_reduce("gradient", 8, root=1)
    assert len(transport.log) == 2 * 3
    assert transport.log.steps == 2 * 2


def test_every_message_runs_along_an_edge():
    topology = topology_of(nx.petersen_graph())
    transport = Transport(topology)
    transport.all_reduce("gradient", 8)
    transport.broadcast(3, "model", 8, "flood")
    transport.exchange("recovery", 8)
    edges = {tuple(sorted(e)) for e in topology.edges.tolist()}
    assert {tuple(sorted((m.source, m.target))) for m in transport.log} == edges


def test_a_message_to_a_stranger_is_refused():
    with pytest.raises(TopologyError, match="0 -> 3 must be an edge"):
        Transport(path4()).send(0, 3, "model", 8)


def test_a_view_holds_what_a_peer_sent_or_received():
    transport = Transport(path4())
    transport.send(0, 1, "a", 1)
    transport.send(2, 3, "b", 1)
    assert [m.kind for m in transport.log.view(1)] == ["a"]
    assert [m.kind for m in transport.log.view(2)] == ["b"]


def test_one_gossip_round_uses_both_directions_of_every_edge():
    transport = Transport(path4())
    transport.exchange("recovery", 10)
    transport.exchange("recovery", 10)
    assert len(transport.log) == 2 * 2 * 3
    assert transport.log.max_edge_bytes() == 2 * (10 + HEADER_BYTES)


# --- averaging and rumours -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("path4", 32),
        ("ring6", 18),
        ("ring10", 51),
        ("star5", 31),
        ("K5", 1),
        ("Petersen", 10),
        ("torus", 14),
        ("karate", 218),
    ],
)
def test_averaging_sends_two_messages_an_edge_and_round(name, rounds):
    """decentralized-certified 7, item 6: rounds until W^t is 1e-3 from the mean."""
    topology = topology_of(GRAPHS[name][0])
    transport = Transport(topology)
    assert transport.broadcast(0, "model", 8, "gossip_average") == rounds
    assert len(transport.log) == 2 * len(topology.edges) * rounds
    held = multiples(topology, 0, "gossip_average")
    assert held.sum() == pytest.approx(topology.n)
    assert abs(held - 1).max() <= 1e-3 * topology.n


def test_what_averaging_leaves_at_each_peer():
    """decentralized-certified 7, item 6: N W^32 e_0 on path4."""
    held = multiples(path4(), 0, "gossip_average")
    expected = [1.001634, 1.000677, 0.999323, 0.998366]
    np.testing.assert_allclose(held, expected, atol=5e-7)
    for how in ("tree", "flood", "push"):
        np.testing.assert_array_equal(multiples(path4(), 0, how), 1.0)


def test_averaging_needs_weights_that_average():
    weights = csr_array(np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]]))
    topology = Topology(graph=nx.path_graph(3), weights=weights, stochastic="row")
    with pytest.raises(TopologyError, match="doubly stochastic"):
        multiples(topology, 0, "gossip_average")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_rumour_reaches_everyone_through_random_neighbours(name):
    topology = topology_of(GRAPHS[name][0])
    transport = Transport(topology)
    rounds = transport.broadcast(1, "model", 8, "push", RngTree(0).numpy("walk"))
    informed = {1}
    for step in range(rounds):
        sent = [(m.source, m.target) for m in transport.log if m.step == step]
        assert {i for i, _ in sent} == informed  # each that holds it tells one
        assert len(sent) == len(informed)
        informed |= {j for _, j in sent}
    assert informed == set(range(topology.n))
    again = Transport(topology)
    again.broadcast(1, "model", 8, "push", RngTree(0).numpy("walk"))
    assert list(again.log) == list(transport.log)


def test_a_rumour_takes_about_log_n_rounds_on_a_complete_graph():
    """Pittel (1987): log2 N + ln N rounds, about N ln N messages; 40 fixed seeds."""
    topology = topology_of(nx.complete_graph(64))
    rounds, messages = [], []
    for seed in range(40):
        transport = Transport(topology)
        generator = RngTree(seed).numpy("walk")
        rounds.append(transport.broadcast(0, "model", 8, "push", generator))
        messages.append(len(transport.log))
    assert np.mean(rounds) == pytest.approx(np.log2(64) + np.log(64), abs=1.0)
    assert 0.8 < np.mean(messages) / (64 * (np.log(64) + 1)) < 1.3


def test_a_rumour_needs_draws():
    with pytest.raises(InvalidArgumentError, match="generator"):
        Transport(path4()).broadcast(0, "model", 8, "push")


def test_after_a_correction_no_older_model_is_sent():
    transport = Transport(path4(), requests=2)
    transport.exchange("model", 8)  # all are alike before the correction
    transport.correct([0, 1, 3])
    sent = len(transport.log)
    message = r"'model' from peer 2: must come .* carries 3 forget requests, got .* 2;"
    with pytest.raises(StaleModelError, match=message):
        transport.exchange("model", 8)
    with pytest.raises(StaleModelError, match="from peer 2"):
        transport.send(2, 1, "model", 8)
    assert len(transport.log) == sent  # nothing of the refused step was sent
    transport.send(1, 2, "noised model", 8)  # the straggler may receive
    transport.correct([2])
    transport.exchange("model", 8)
    assert len(transport.log) == sent + 1 + 6


def test_a_peer_that_returns_with_its_old_model_is_refused():
    transport = Transport(path4())
    transport.correct()
    transport.carried[3] = 0
    with pytest.raises(StaleModelError, match="from peer 3"):
        transport.all_reduce("gradient", 8)
    transport.correct([3])
    transport.all_reduce("gradient", 8)
