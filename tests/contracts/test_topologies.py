"""What every registered family, mixing rule and schedule promises."""

import inspect

import networkx as nx
import numpy as np
import pytest

from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.topology import mixing
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.generators import topologies
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.mixing import mixing_rules
from dfl_unlearn.topology.schedules import schedules

GRAPHS = {"ring": nx.cycle_graph(7), "complete": nx.complete_graph(6)}


def build(name, **fields):
    """The family at the first of a few sizes that it accepts."""
    refusals = []
    for n in (8, 9, 16, 1):
        try:
            return topologies.build(name, n=n, **fields), n
        except DflUnlearnError as error:
            refusals.append(str(error))
    pytest.fail(f"{name} refuses all of 8, 9, 16 and 1 peers: {refusals}")


@pytest.mark.parametrize("name", topologies.names())
def test_a_family_has_exactly_the_peers_asked_for(name):
    graph, n = build(name)
    assert sorted(graph.nodes) == list(range(n))
    assert not graph.is_multigraph()
    assert nx.number_of_selfloops(graph) == 0


@pytest.mark.parametrize("name", topologies.names())
def test_a_family_gives_equal_graphs_for_equal_arguments(name):
    seeded = "seed" in inspect.signature(topologies.get(name)).parameters
    for fields in ({"seed": 0}, {"seed": 3}) if seeded else ({},):
        one, other = build(name, **fields)[0], build(name, **fields)[0]
        assert list(one.edges) == list(other.edges)


@pytest.mark.parametrize("name", topologies.names())
def test_a_family_makes_a_network_that_mixes(name):
    graph, n = build(name)
    rule = "uniform" if graph.is_directed() else "metropolis-hastings"
    topology = load_topology(name, n=n, mixing=rule)
    assert topology.n == n
    assert mixing.is_doubly_stochastic(topology.weights)
    assert topology.slem < 1
    assert topology.hops(0).max() <= topology.diameter


@pytest.mark.parametrize("name", topologies.names())
def test_a_family_refuses_a_size_that_is_no_number(name):
    with pytest.raises(DflUnlearnError, match="n: must be an integer"):
        topologies.build(name, n="eight")


@pytest.mark.parametrize("name", mixing_rules.names())
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_rule_gives_weights_that_keep_the_average(name, graph):
    needed = inspect.signature(mixing_rules.get(name)).parameters
    fields = {"matrix": mixing.metropolis_hastings(graph)} if "matrix" in needed else {}
    topology = Topology.from_graph(graph, name, **fields)
    weights = topology.weights.toarray()
    assert weights.dtype == np.float64
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert topology.slem < 1


@pytest.mark.parametrize("name", schedules.names())
def test_a_schedule_gives_networks_of_one_size_and_kind(name):
    ring = load_topology("ring", n=8)
    needed = inspect.signature(schedules.get(name)).parameters
    schedule = schedules.build(name, **({"topology": ring} if needed else {}))
    assert schedule.connected_within >= 1
    for t in range(5):
        network = schedule.at(t)
        assert network.n == schedule.n
        assert network.stochastic == schedule.stochastic
        assert network.fingerprint() == schedule.at(t).fingerprint()


@pytest.mark.parametrize("registry", [topologies, mixing_rules, schedules])
def test_every_entry_has_a_line_of_help(registry):
    assert all(registry.help(name).endswith(".") for name in registry)


def test_a_newcomers_family_works_by_its_name(monkeypatch):
    monkeypatch.setattr(topologies, "_entries", dict(topologies._entries))

    @topologies.register("newcomers-ring")
    def newcomers_ring(n: int, *, chord: int = 3) -> nx.Graph:
        """Add a chord to every peer of a ring."""
        graph = nx.cycle_graph(n)
        graph.add_edges_from((i, (i + chord) % n) for i in range(n))
        return graph

    topology = load_topology("newcomers-ring", n=10, chord=4, mixing="lazy")
    assert topology.name == "newcomers-ring"
    assert {degree for _, degree in topology.graph.degree} == {4}
    with pytest.raises(DflUnlearnError, match="newcomers-ring: n must be given"):
        load_topology("newcomers-ring")
