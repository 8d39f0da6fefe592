import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.gossip import hop_distances, metropolis_hastings, rounds_to_average
from scipy.sparse import csr_array

from dfl_unlearn.errors import (
    DisconnectedGraphError,
    InvalidArgumentError,
    InvalidMixingMatrixError,
    InvalidTypeError,
    NumericalError,
    ResourceError,
    TopologyError,
    UnknownNameError,
    UnknownPeerError,
)
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology


def network(name, n=None):
    if name == "petersen":
        return Topology.from_graph(nx.petersen_graph())
    return load_topology(name) if n is None else load_topology(name, n=n)


# decentralized-certified.md §7 item 6: SLEM, rounds to 1e-3, flood messages.
SPECTRA = [
    ("path", 4, 0.8047378541, 32, 3),
    ("ring", 6, 2 / 3, 18, 7),
    ("ring", 10, 0.8726779962, 51, 11),
    ("star", 5, 0.8, 31, 4),
    ("complete", 5, 0.0, 1, 16),
    ("petersen", None, 0.5, 10, 21),
    ("torus", 16, 0.6, 14, 49),
    ("karate-34", None, 0.9687635821, 218, 123),
]


@pytest.mark.parametrize(("name", "n", "slem", "rounds", "flood"), SPECTRA)
def test_spectra_and_rounds_are_those_of_the_specification(
    name, n, slem, rounds, flood
):
    topology = network(name, n)
    assert topology.slem == pytest.approx(slem, abs=1e-10)
    assert topology.spectral_gap == pytest.approx(1 - slem, abs=1e-10)
    assert topology.mixing_rounds(1e-3) == rounds
    assert 2 * len(topology.edges) - topology.n + 1 == flood


def test_eigenvalues_of_the_path_are_those_of_the_specification():
    values = np.linalg.eigvalsh(network("path", 4).weights.toarray())
    expected = [(1 - 2**0.5) / 3, 1 / 3, (1 + 2**0.5) / 3, 1]
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("n", [3, 4, 7, 10, 33])
def test_a_rings_spectrum_is_a_cosine(n):
    values = np.linalg.eigvalsh(network("ring", n).weights.toarray())
    expected = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(n) / n)
    np.testing.assert_allclose(values, np.sort(expected), atol=1e-12)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (3, [1.925926, 1.333333, 0.592593, 0.148148]),
        (32, [1.001634, 1.000677, 0.999323, 0.998366]),
    ],
)
def test_a_unit_of_peer_0_spreads_on_the_path_as_specified(rounds, expected):
    topology = network("path", 4)
    share = np.eye(4)[0] * 4
    for t in range(rounds):
        share = topology.at(t).weights @ share
    np.testing.assert_allclose(share, expected, atol=5e-7)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (2, [2.444444, 1.333333, 0.222222, 0]),
        (50, [1.149997, 1.049999, 0.930001, 0.870003]),
    ],
)
def test_mean_power_shares_on_the_path_are_those_of_the_specification(rounds, expected):
    weights = network("path", 4).weights.toarray()
    powers = [np.linalg.matrix_power(weights, t) for t in range(1, rounds + 1)]
    np.testing.assert_allclose(4 * np.mean(powers, axis=0)[:, 0], expected, atol=5e-7)


@st.composite
def connected_graphs(draw):
    n = draw(st.integers(2, 16))
    tree = [(draw(st.integers(0, i - 1)), i) for i in range(1, n)]
    node = st.integers(0, n - 1)
    extra = draw(st.lists(st.tuples(node, node), max_size=20))
    return nx.Graph(tree + [(i, j) for i, j in extra if i != j])


@settings(deadline=None, max_examples=60)
@given(graph=connected_graphs())
def test_metropolis_hastings_keeps_the_average_on_every_connected_graph(graph):
    topology = Topology.from_graph(graph)
    weights = topology.weights.toarray()
    by_hand = metropolis_hastings(topology.n, topology.edges.tolist())
    np.testing.assert_allclose(weights, by_hand, atol=1e-15)
    np.testing.assert_array_equal(weights, weights.T)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-14)
    assert weights.min() >= 0
    assert topology.slem < 1
    values = np.cos(np.arange(topology.n))
    assert (topology.weights @ values).mean() == pytest.approx(values.mean(), abs=1e-14)


@settings(deadline=None, max_examples=25)
@given(graph=connected_graphs(), tolerance=st.floats(1e-6, 0.9))
def test_mixing_rounds_and_hops_are_those_counted_by_hand(graph, tolerance):
    topology = Topology.from_graph(graph)
    rounds = rounds_to_average(topology.weights.toarray(), tolerance)
    assert abs(topology.mixing_rounds(tolerance) - rounds) <= (
        0 if abs(topology.slem**rounds - tolerance) > 1e-9 else 1
    )
    arcs = [*topology.edges.tolist(), *topology.edges[:, ::-1].tolist()]
    by_hand = [hop_distances(topology.n, arcs, i) for i in range(topology.n)]
    assert [topology.hops(i).tolist() for i in range(topology.n)] == by_hand
    assert topology.diameter == np.max(by_hand)


@settings(deadline=None, max_examples=40)
@given(graph=connected_graphs(), seed=st.integers(0, 2**32 - 1))
def test_order_of_insertion_does_not_change_the_network(graph, seed):
    rng = np.random.Generator(np.random.Philox(seed))
    other = nx.Graph()
    other.add_nodes_from(rng.permutation(len(graph)).tolist())
    edges = [e if rng.random() < 0.5 else e[::-1] for e in graph.edges]
    other.add_edges_from(edges[i] for i in rng.permutation(len(edges)))
    assert (
        Topology.from_graph(other).fingerprint()
        == Topology.from_graph(graph).fingerprint()
    )


@settings(deadline=None, max_examples=40)
@given(graph=connected_graphs(), seed=st.integers(0, 2**32 - 1))
def test_renaming_peers_renames_the_weights(graph, seed):
    rng = np.random.Generator(np.random.Philox(seed))
    order = rng.permutation(len(graph))
    renamed = nx.relabel_nodes(graph, dict(enumerate(order.tolist())))
    before = Topology.from_graph(graph).weights.toarray()
    after = Topology.from_graph(renamed).weights.toarray()
    np.testing.assert_allclose(after[np.ix_(order, order)], before, atol=1e-15)


def test_names_are_sorted_by_type_and_value_and_kept_as_labels():
    graph = nx.Graph([("b", 10), (10, 9), (9, "a")])
    graph.nodes["a"]["role"] = "first"
    graph.edges[10, 9]["latency_ms"] = 3.5
    topology = Topology.from_graph(graph, name="mixed")
    assert topology.labels == ("9", "10", "a", "b")
    assert topology.edges.tolist() == [[0, 1], [0, 2], [1, 3]]
    assert topology.graph.nodes[2]["role"] == "first"
    assert topology.graph.edges[0, 1]["latency_ms"] == 3.5
    assert topology.name == "mixed"
    assert Topology.from_graph(graph, labels=("w", "x", "y", "z")).labels[3] == "z"


def test_a_network_is_frozen_and_independent_of_what_it_was_made_from():
    graph = nx.cycle_graph(4)
    matrix = np.full((4, 4), 0.25)
    topology = Topology.from_graph(nx.complete_graph(4), "user", matrix=matrix)
    matrix[0, 0] = 9
    assert topology.weights[0, 0] == 0.25
    ring = Topology.from_graph(graph)
    graph.add_edge(0, 2)
    assert len(ring.edges) == 4
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        ring.graph.add_edge(0, 2)
    with pytest.raises(AttributeError):
        ring.name = "other"


def test_weights_are_sorted_float64_csr():
    weights = network("torus", 9).weights
    assert weights.dtype == np.float64
    assert weights.has_sorted_indices
    for i in range(9):
        row = weights.indices[weights.indptr[i] : weights.indptr[i + 1]]
        assert (np.diff(row) > 0).all()


def test_a_directed_weight_is_what_a_peer_takes_from_its_sender():
    topology = load_topology("exponential", n=6)
    assert topology.directed
    assert topology.stochastic == "doubly"
    for sender, receiver in topology.edges:
        assert topology.weights[receiver, sender] == pytest.approx(1 / 4)
    assert topology.hops(1).tolist() == [2, 0, 1, 1, 2, 1]
    assert topology.hops(1).tolist() == hop_distances(6, topology.edges.tolist(), 1)
    assert topology.diameter == 2


def test_weights_that_are_not_symmetric_are_counted_by_their_true_norm():
    matrix = np.array([[0.6, 0.4, 0], [0.1, 0.5, 0.4], [0.3, 0.1, 0.6]])
    topology = Topology.from_graph(nx.complete_graph(3), "user", matrix=matrix)
    assert topology.slem == pytest.approx(np.sort(abs(np.linalg.eigvals(matrix)))[-2])
    for tolerance in (0.5, 1e-2, 1e-3, 1e-9):
        rounds = rounds_to_average(matrix, tolerance)
        assert topology.mixing_rounds(tolerance) == rounds
    ring = load_topology("exponential", n=8)
    assert ring.mixing_rounds(1e-3) == rounds_to_average(ring.weights.toarray(), 1e-3)


def test_one_sided_weights_are_allowed_but_do_not_reach_the_average():
    weights = np.array([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]])
    for kind, matrix in (("row", weights), ("column", weights.T)):
        topology = Topology(
            graph=nx.path_graph(3), weights=csr_array(matrix), stochastic=kind
        )
        assert topology.slem == pytest.approx(0.5)
        with pytest.raises(TopologyError, match=f"got {kind}"):
            topology.mixing_rounds()
    with pytest.raises(InvalidMixingMatrixError, match="column 1 must sum to 1"):
        Topology(graph=nx.path_graph(3), weights=weights, stochastic="column")


def test_the_single_peer_is_its_own_network():
    single = Topology.single()
    assert (single.n, single.slem, single.spectral_gap, single.diameter) == (1, 0, 1, 0)
    assert single.weights.toarray().tolist() == [[1.0]]
    assert single.edges.shape == (0, 2)
    assert single.mixing_rounds() == 0
    assert single.hops(0).tolist() == [0]


def test_fingerprints_tell_networks_and_weights_apart_but_not_names():
    graph = nx.cycle_graph(6)
    one = Topology.from_graph(graph)
    assert one.fingerprint() == Topology.from_graph(graph, name="x").fingerprint()
    others = [
        Topology.from_graph(graph, "lazy"),
        Topology.from_graph(nx.path_graph(6)),
        load_topology("ring", n=7),
    ]
    assert len({one.fingerprint(), *(t.fingerprint() for t in others)}) == 4


def test_slem_and_diameter_are_computed_once(monkeypatch):
    topology = network("ring", 6)
    first = topology.slem, topology.diameter
    monkeypatch.setattr("dfl_unlearn.topology.graph.slem", None)
    monkeypatch.setattr(Topology, "_distances", None)
    assert (topology.slem, topology.diameter) == first


def test_notebooks_show_a_table_with_the_name_escaped():
    topology = Topology.from_graph(nx.cycle_graph(6), name="<b>\x1b")
    page = topology._repr_html_()
    assert "&lt;b&gt;" in page
    assert "\x1b" not in page
    assert "<td>0.333333</td>" in page
    assert "<td>18</td>" in page
    assert repr(topology).startswith("Topology(name='<b>")


def test_large_rings_and_random_graphs_have_exact_gaps():
    n = 2500
    ring = Topology.from_graph(nx.cycle_graph(n))
    gap = 2 / 3 * (1 - np.cos(2 * np.pi / n))
    assert ring.spectral_gap == pytest.approx(gap, rel=1e-6)
    star = load_topology("star", n=2500)
    assert star.slem == pytest.approx(1 - 1 / 2500, abs=1e-12)


def test_a_large_directed_network_has_the_gap_of_its_circulant():
    n = 2101
    jumps = [1 << k for k in range((n - 1).bit_length())]
    modes = np.exp(2j * np.pi * np.outer(np.arange(n), jumps) / n).sum(axis=1) + 1
    expected = np.sort(abs(modes) / (len(jumps) + 1))[-2]
    topology = load_topology("exponential", n=n)
    assert topology.slem == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("peer", [-1, 8, 100])
def test_an_unknown_peer_has_no_hops(peer):
    with pytest.raises(UnknownPeerError, match=f"source: .* got {peer}"):
        network("ring", 8).hops(peer)


def test_a_tolerance_must_be_positive():
    with pytest.raises(InvalidArgumentError, match=r"tolerance: .* got 0"):
        network("ring", 8).mixing_rounds(0)


def test_weights_too_small_to_mix_in_double_precision_are_said_so():
    matrix = np.array([[1.0, 1e-300], [1e-300, 1.0]])
    topology = Topology.from_graph(nx.path_graph(2), "user", matrix=matrix)
    with pytest.raises(NumericalError, match="got 0"):
        topology.mixing_rounds()


def test_components_are_listed_sizes_first_and_at_most_five():
    graph = nx.path_graph(12)
    graph.add_node(12)
    graph.add_edge(13, 14)
    with pytest.raises(
        DisconnectedGraphError,
        match=r"3 components of sizes 12, 1, 2: \{0\.\.11\}, \{12\}, \{13, 14\}",
    ):
        Topology.from_graph(graph)
    with pytest.raises(
        DisconnectedGraphError,
        match=r"7 components of sizes 1, 1, 1, 1, 1, \.\.\.: \{0\}, .*\{4\}, \.\.\.;",
    ):
        Topology.from_graph(nx.empty_graph(7))
    with pytest.raises(DisconnectedGraphError, match=r"\{a, b\}, \{c\}"):
        Topology.from_graph(nx.Graph({"a": ["b"], "c": []}))


def test_a_directed_graph_must_be_strongly_connected():
    graph = nx.DiGraph([(0, 1), (1, 0), (1, 2)])
    with pytest.raises(DisconnectedGraphError, match=r"sizes 2, 1: \{0, 1\}, \{2\}"):
        Topology.from_graph(graph, "uniform")


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (nx.Graph(), TopologyError, "graph has no nodes"),
        (nx.empty_graph(1), TopologyError, r"at least 2 peers.*Topology\.single\(\)"),
        (nx.MultiGraph([(0, 1), (0, 1)]), TopologyError, r"parallel edges, got 0.1"),
        (nx.Graph([(0, (1, 2)), ((1, 2), (3, "x")), ((3, 4), 0)]), TopologyError, "so"),
        ([(0, 1)], InvalidTypeError, "graph: must be a Graph"),
        (nx.Graph([(0, 1, {"weight": -1})]), TopologyError, "edge 0.1: .*got -1"),
        (nx.path_graph(2), UnknownNameError, "did you mean 'lazy'"),
        (nx.path_graph(["a\n", "b"]), TopologyError, r"labels\[0\].*control"),
        (nx.empty_graph(100_001), ResourceError, "at most 100000 peers, got 100001"),
    ],
)
def test_graphs_that_cannot_serve_are_refused_with_the_reason(graph, error, message):
    mixing = "lasy" if error is UnknownNameError else "metropolis-hastings"
    with pytest.raises(error, match=message):
        Topology.from_graph(graph, mixing)


def test_self_loops_are_dropped_with_their_count():
    graph = nx.Graph([(0, 0), (0, 1), (1, 1)])
    with pytest.warns(UserWarning, match="dropped 2 self-loops"):
        assert len(Topology.from_graph(graph).edges) == 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"graph": nx.Graph([(1, 0)])},
            TopologyError,
            r"nodes 0 \.\. N-1 in this order",
        ),
        ({"graph": nx.Graph([(0, 1), (0, 0)])}, TopologyError, "no self-loops, got 1"),
        ({"labels": ("a",)}, TopologyError, "2 of them, got 1"),
        ({"labels": ("a", 3)}, InvalidTypeError, r"labels\[1\]: must be a str"),
        ({"stochastic": "both"}, InvalidArgumentError, "got 'both'"),
        ({"name": 3}, InvalidTypeError, "name: must be a str"),
        ({"weights": [[1, 0]]}, InvalidTypeError, "weights: .* got list"),
        ({"weights": np.eye(2) * 1j}, InvalidTypeError, "complex"),
    ],
)
def test_a_network_checks_its_fields(fields, error, message):
    good = {"graph": nx.path_graph(2), "weights": np.full((2, 2), 0.5)}
    assert Topology(**good).n == 2
    with pytest.raises(error, match=message):
        Topology(**(good | fields))
