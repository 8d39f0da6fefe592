from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import walks as oracle
from scipy import stats

from dfl_unlearn.errors import (
    InvalidArgumentError,
    TopologyError,
    UnknownPeerError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.generators import exponential
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.walks import (
    draw_holders,
    expected_messages,
    hitting_times,
    next_hops,
    restart_law,
    segment_law,
    shortest_path,
    visit_weights,
    visits_law,
    walk_matrix,
)

KINDS = ["uniform", "mh"]


def network(graph):
    return Topology.from_graph(graph)


def ring(n=8):
    return network(nx.cycle_graph(n))


def star():
    return network(nx.star_graph(4))  # hub 0, leaves 1 to 4


@st.composite
def connected(draw, at_least=2, at_most=12):
    n = draw(st.integers(at_least, at_most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    graph = nx.empty_graph(n)
    graph.add_edges_from((v, int(rng.integers(v))) for v in range(1, n))
    for _ in range(draw(st.integers(0, 2 * n))):
        a, b = (int(x) for x in rng.integers(n, size=2))
        if a != b:
            graph.add_edge(a, b)
    return graph


# --- transition matrices ----------------------------------------------------------


@given(graph=connected(), walk=st.sampled_from(KINDS), lazy=st.floats(0, 0.9))
def test_a_walk_is_its_definition_and_its_rows_sum_to_one(graph, walk, lazy):
    n = len(graph)
    ours = walk_matrix(network(graph), walk, lazy=lazy).toarray()
    assert (ours >= 0).all()
    np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=1e-14)
    expected = oracle.transition(graph.edges, n, walk, lazy)
    np.testing.assert_allclose(ours, expected, atol=1e-14)
    off_graph = (nx.to_numpy_array(graph, nodelist=range(n)) + np.eye(n)) == 0
    assert not ours[off_graph].any()


@given(graph=connected(at_least=3), walk=st.sampled_from(KINDS), data=st.data())
def test_an_avoided_peer_is_left_and_never_reached(graph, walk, data):
    n = len(graph)
    avoid = data.draw(st.integers(0, n - 1))
    lazy = data.draw(st.sampled_from([0.0, 0.25]))
    alone = [v for v in graph[avoid] if graph.degree[v] == 1]
    if alone:
        with pytest.raises(TopologyError, match=f"got peer {min(alone)} with none"):
            walk_matrix(network(graph), walk, lazy=lazy, avoid=avoid)
        return
    ours = walk_matrix(network(graph), walk, lazy=lazy, avoid=avoid).toarray()
    np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=1e-14)
    assert not ours[:, avoid].any()
    expected = oracle.transition(graph.edges, n, walk, lazy, avoid)
    np.testing.assert_allclose(ours, expected, atol=1e-13)
    law = restart_law(ours, avoid, 0.3)
    assert law[avoid] == pytest.approx(0.3, rel=1e-12)


@settings(max_examples=25)
@given(graph=connected(at_most=8), lazy=st.sampled_from([0.0, 0.5]))
def test_the_long_run_is_uniform_for_mh_and_the_degree_for_uniform(graph, lazy):
    n = len(graph)
    topology = network(graph)
    mh = walk_matrix(topology, "mh", lazy=lazy).toarray()
    np.testing.assert_allclose(np.full(n, 1 / n) @ mh, 1 / n, rtol=1e-12)
    np.testing.assert_allclose(oracle.stationary(mh), 1 / n, rtol=1e-9)
    degree = np.array([graph.degree[v] for v in range(n)]) / (2 * graph.size())
    plain = walk_matrix(topology, "uniform", lazy=lazy).toarray()
    np.testing.assert_allclose(oracle.stationary(plain), degree, rtol=1e-9)


@given(graph=connected(at_least=3), walk=st.sampled_from(KINDS), data=st.data())
def test_renaming_the_peers_renames_the_result(graph, walk, data):
    n = len(graph)
    order = data.draw(st.permutations(range(n)))
    new = [order.index(v) for v in range(n)]  # the new name of each old peer
    renamed = nx.empty_graph(n)
    renamed.add_edges_from((new[a], new[b]) for a, b in graph.edges)
    ours, theirs = (walk_matrix(network(g), walk) for g in (graph, renamed))
    np.testing.assert_allclose(theirs.toarray()[np.ix_(new, new)], ours.toarray())
    law = restart_law(theirs, new[0], 0.2)
    np.testing.assert_allclose(law[new], restart_law(ours, 0, 0.2), rtol=1e-10)


# --- the law of the holders ---------------------------------------------------------


@given(
    graph=connected(),
    walk=st.sampled_from(KINDS),
    restart=st.floats(0.01, 1.0),
    data=st.data(),
)
def test_restart_law_solves_its_fixed_point(graph, walk, restart, data):
    source = data.draw(st.integers(0, len(graph) - 1))
    transition = walk_matrix(network(graph), walk)
    law = restart_law(transition, source, restart)
    assert law.sum() == pytest.approx(1, rel=1e-13)
    unit = np.eye(len(graph))[source]
    step = restart * unit + (1 - restart) * (law @ transition.toarray())
    np.testing.assert_allclose(step, law, atol=1e-13)


def test_restart_law_of_the_eight_ring_meets_the_oracle():
    transition = walk_matrix(ring())
    law = restart_law(transition, 0, 0.2)
    half = [0.3359477124, 0.1699346405, 0.0888888889, 0.0522875817, 0.0418300654]
    np.testing.assert_allclose(law, [*half, *half[3:0:-1]], atol=5e-11)
    series = oracle.restart_series(transition.toarray(), 0, 0.2, 200)
    np.testing.assert_allclose(law, series, rtol=1e-12)


def test_a_complete_network_without_the_source_has_uniform_holders():
    transition = walk_matrix(network(nx.complete_graph(10)), avoid=3)
    np.testing.assert_allclose(restart_law(transition, 3, 0.1), 0.1, rtol=1e-13)
    weights = visit_weights(restart_law(transition, 3, 0.1))
    np.testing.assert_allclose(weights, 1.0, rtol=1e-12)


def test_visit_weights_undo_the_law_up_to_their_cap():
    law = restart_law(walk_matrix(ring()), 0, 0.2)
    np.testing.assert_allclose(visit_weights(law) * law, 1 / 8, rtol=1e-12)
    capped = visit_weights(law, most=2.0)
    np.testing.assert_allclose(capped, np.minimum(1 / (8 * law), 2.0), rtol=1e-12)
    assert visit_weights([1.0, 0.0], most=7.0).tolist() == [0.5, 7.0]


# --- times and ways ------------------------------------------------------------------


def test_hitting_times_of_the_eight_ring_meet_the_oracle():
    times = hitting_times(walk_matrix(ring()), 0)
    np.testing.assert_allclose(times, [0, 7, 12, 15, 16, 15, 12, 7], rtol=1e-12)


def test_hitting_times_of_the_star_meet_the_oracle():
    transition = walk_matrix(star(), "mh")
    np.testing.assert_allclose(
        hitting_times(transition, 0), [0, 4, 4, 4, 4], rtol=1e-12
    )
    np.testing.assert_allclose(
        hitting_times(transition, 2), [16, 20, 0, 20, 20], rtol=1e-12
    )


def test_a_place_that_is_never_reached_is_infinitely_far():
    away = walk_matrix(ring(5), avoid=2)
    assert hitting_times(away, 2).tolist() == [np.inf, np.inf, 0.0, np.inf, np.inf]
    # 0 -> 1 or the trap 2, each by half; 1 -> 0.
    trap = np.array([[0, 0.5, 0.5], [1, 0, 0], [0, 0, 1]])
    assert hitting_times(trap, 1).tolist() == [np.inf, 0.0, np.inf]
    # The trap lies behind the target, so the walk ends before it.
    behind = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 1.0]])
    assert hitting_times(behind, 1).tolist() == [1.0, 0.0, np.inf]


def test_messages_per_hop_count_the_way_back():
    topology = ring()
    law = restart_law(walk_matrix(topology), 0, 0.2)
    distance = np.array([0, 1, 2, 3, 4, 3, 2, 1])
    assert expected_messages(topology, law, 0, 0.2) == pytest.approx(
        0.8 + 0.2 * law @ distance, rel=1e-14
    )
    complete = network(nx.complete_graph(10))
    law = restart_law(walk_matrix(complete, avoid=0), 0, 0.1)
    # A restart at the source itself needs no message.
    assert expected_messages(complete, law, 0, 0.1) == pytest.approx(0.9 + 0.09)


@given(graph=connected(), data=st.data())
def test_a_path_is_shortest_and_takes_the_lowest_peers(graph, data):
    n = len(graph)
    topology = network(graph)
    source, target = (data.draw(st.integers(0, n - 1)) for _ in range(2))
    path = shortest_path(topology, source, target)
    assert (path[0], path[-1]) == (source, target)
    assert len(path) - 1 == nx.shortest_path_length(graph, source, target)
    assert all(graph.has_edge(a, b) for a, b in pairwise(path))
    left = nx.single_source_shortest_path_length(graph, target)
    following = next_hops(topology, target)
    for v in set(range(n)) - {target}:
        assert following[v] == min(w for w in graph[v] if left[w] == left[v] - 1)


def test_of_two_ways_round_a_ring_the_lower_one_is_taken():
    assert shortest_path(ring(), 4, 0) == [4, 3, 2, 1, 0]
    assert shortest_path(ring(), 0, 4) == [0, 1, 2, 3, 4]
    assert shortest_path(ring(), 5, 5) == [5]


# --- segments ---------------------------------------------------------------------


def test_segments_and_visits_have_the_moments_of_the_oracle():
    steps = np.arange(6000)
    for restart, reciprocal in ((0.1, 0.2558427881), (0.01, 0.0465168706)):
        law = segment_law(restart, 6000)
        assert law.sum() == pytest.approx(1, abs=1e-12)
        mean = law @ steps
        assert mean == pytest.approx((1 - restart) / restart, rel=1e-12)
        variance = law @ (steps - mean) ** 2
        assert variance == pytest.approx((1 - restart) / restart**2, rel=1e-12)
        assert law @ (1 / (steps + 1)) == pytest.approx(reciprocal, abs=5e-11)
    count = np.arange(101)
    law = visits_law(0.1, 100)
    assert law[0] == 0
    assert law.sum() == pytest.approx(1, rel=1e-12)
    assert law @ count == pytest.approx(10.9, rel=1e-12)
    assert law @ (count - 10.9) ** 2 == pytest.approx(8.91, rel=1e-12)
    assert segment_law(1.0, 3).tolist() == [1.0, 0.0, 0.0]


def segments(transition, restart, hops=40_000):
    generator = RngTree("segments").numpy("walk", who=0)
    holders = draw_holders(transition, 0, restart, hops, generator)
    assert holders[0] == 0
    return np.diff(np.flatnonzero(holders == 0)) - 1, holders


def p_value(observed, restart):
    """Chi-square of segment lengths against the geometric law; the tail is one bin."""
    law = segment_law(restart, 25)
    law = np.append(law, 1 - law.sum())
    counts = np.bincount(np.minimum(observed, 25), minlength=26)
    return stats.chisquare(counts, observed.size * law).pvalue


@pytest.mark.statistical  # accepts at p > 0.001, rejects at p < 1e-6; fixed seed
@pytest.mark.parametrize("walk", KINDS)
def test_segments_are_geometric_when_only_restarts_lead_back(walk):
    graph = nx.wheel_graph(8)  # hub 0
    away = walk_matrix(network(graph), walk, avoid=0)
    observed, _ = segments(away, 0.15)
    assert p_value(observed, 0.15) > 0.001
    assert p_value(observed, 0.17) < 1e-6  # another restart probability
    home = walk_matrix(network(graph), walk)
    assert p_value(segments(home, 0.15)[0], 0.15) < 1e-6  # moves lead back too


@pytest.mark.statistical  # five standard errors of a walk renewed at every restart
def test_holders_follow_the_restart_law():
    transition = walk_matrix(ring())
    law = restart_law(transition, 0, 0.2)
    _, holders = segments(transition, 0.2)
    share = np.bincount(holders, minlength=8) / holders.size
    # Correlations die as 0.8^(t/2) at least, so 18 hops count for a free one or more.
    error = np.sqrt(18 * law * (1 - law) / holders.size)
    assert (np.abs(share - law) < 5 * error).all()
    other = restart_law(transition, 0, 0.3)
    assert (np.abs(share - other) > 5 * error).any()


def test_the_same_key_draws_the_same_holders():
    transition = walk_matrix(ring())
    draws = [segments(transition, 0.2, hops=50)[1] for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    assert draw_holders(transition, 3, 1.0, 5, np.random.default_rng(0)).tolist() == (
        [3] * 5
    )


# --- what is refused ---------------------------------------------------------------


def test_directed_networks_and_single_peers_are_refused():
    directed = Topology.from_graph(exponential(8), "uniform", name="arrows")
    for call in (
        lambda t: walk_matrix(t),
        lambda t: shortest_path(t, 0, 0),
        lambda t: next_hops(t, 0),
        lambda t: expected_messages(t, np.full(t.n, 1 / t.n), 0, 0.1),
    ):
        with pytest.raises(TopologyError, match=r"directed one.*arrows"):
            call(directed)
        with pytest.raises(TopologyError, match=r"at least 2 peers.*got 1"):
            call(Topology.single())


def test_arguments_out_of_range_are_named():
    topology = ring()
    transition = walk_matrix(topology)
    with pytest.raises(InvalidArgumentError, match="walk: must be one of uniform, mh"):
        walk_matrix(topology, "levy")
    with pytest.raises(InvalidArgumentError, match=r"lazy: .* got 1\.0"):
        walk_matrix(topology, lazy=1.0)
    with pytest.raises(UnknownPeerError, match=r"avoid: .* got 8"):
        walk_matrix(topology, avoid=8)
    with pytest.raises(InvalidArgumentError, match=r"restart: .* got 0\.0"):
        restart_law(transition, 0, 0.0)
    with pytest.raises(UnknownPeerError, match=r"target: .* got -1"):
        hitting_times(transition, -1)
    with pytest.raises(UnknownPeerError, match=r"source: .* got 9"):
        shortest_path(topology, 9, 0)
    with pytest.raises(InvalidArgumentError, match=r"row 1 must sum to 1, got 0\.5"):
        restart_law(np.array([[0.5, 0.5], [0.5, 0.0]]), 0, 0.1)
    with pytest.raises(InvalidArgumentError, match=r"no negative entry, got -0.5"):
        restart_law(np.array([[1.5, -0.5], [0.5, 0.5]]), 0, 0.1)
    with pytest.raises(InvalidArgumentError, match="square matrix, got shape"):
        hitting_times(np.ones((2, 3)) / 3, 0)
    with pytest.raises(InvalidArgumentError, match="law: must be"):
        visit_weights([0.5, 0.4])
    with pytest.raises(InvalidArgumentError, match=r"law: .*8 peers, got 2"):
        expected_messages(topology, [0.5, 0.5], 0, 0.1)
