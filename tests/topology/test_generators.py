import networkx as nx
import pytest

from dfl_unlearn.errors import (
    DisconnectedGraphError,
    InvalidArgumentError,
    InvalidTypeError,
    ResourceError,
)
from dfl_unlearn.topology import generators as families

ISOMORPHIC = [
    (families.ring(7), nx.cycle_graph(7)),
    (families.path(5), nx.path_graph(5)),
    (families.star(6), nx.star_graph(5)),
    (families.complete(6), nx.complete_graph(6)),
    (families.torus(12), nx.grid_2d_graph(3, 4, periodic=True)),
    (families.torus(24, rows=3), nx.grid_2d_graph(3, 8, periodic=True)),
    (families.hypercube(16), nx.hypercube_graph(4)),
]


@pytest.mark.parametrize(("ours", "theirs"), ISOMORPHIC)
def test_fixed_families_are_the_graphs_of_networkx(ours, theirs):
    assert nx.is_isomorphic(ours, theirs)


def test_a_torus_takes_the_most_square_grid():
    assert sorted(families.torus(36)[0]) == [1, 5, 6, 30]


def test_the_exponential_graph_jumps_by_powers_of_two():
    assert sorted(families.exponential(8).successors(5)) == [1, 6, 7]
    assert sorted(families.exponential(9).successors(0)) == [1, 2, 4, 8]
    assert sorted(families.exponential(2).edges) == [(0, 1), (1, 0)]


def test_random_regular_and_block_graphs_have_their_shape():
    graph = families.random_regular(30, degree=3, seed=4)
    assert {degree for _, degree in graph.degree} == {3}
    blocks = families.stochastic_block(11, blocks=3, p_in=1.0, p_out=0.2)
    sizes = [b for _, b in blocks.nodes(data="block")]
    assert sizes == [0] * 4 + [1] * 4 + [2] * 3
    assert all(blocks.has_edge(i, j) for i in range(4) for j in range(i))


def test_the_default_probability_is_twice_the_threshold():
    edges = [families.erdos_renyi(200, seed=s).number_of_edges() for s in range(5)]
    expected = 2 * 5.298317 / 200 * 200 * 199 / 2
    assert sum(edges) / 5 == pytest.approx(expected, rel=0.1)
    assert families.erdos_renyi(2).number_of_edges() == 1


@pytest.mark.parametrize(
    "family", ["erdos-renyi", "random-regular", "watts-strogatz", "stochastic-block"]
)
def test_another_seed_gives_another_graph(family):
    one, other = (
        families.topologies.build(family, n=24, seed=seed).edges for seed in (0, 1)
    )
    assert sorted(one) != sorted(other)


def test_draws_are_repeated_until_the_graph_is_connected():
    # At this p most draws fall apart, so a connected one shows the redraw at work.
    for seed in range(5):
        graph = families.erdos_renyi(20, p=0.12, seed=seed)
        assert nx.is_connected(graph)
        assert families.erdos_renyi(20, p=0.12, seed=seed).edges == graph.edges


def test_a_probability_that_never_connects_says_which_would():
    with pytest.raises(
        DisconnectedGraphError, match=r"p: .* 50 peers, got 0\.01; use at least 0\.156"
    ):
        families.erdos_renyi(50, p=0.01)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: families.ring(2), InvalidArgumentError, ">= 3, got 2"),
        (lambda: families.complete("8"), InvalidTypeError, "integer >= 2, got '8'"),
        (lambda: families.path(True), InvalidTypeError, "got True"),
        (lambda: families.torus(10), InvalidArgumentError, "got 10; near it 9, 12, 15"),
        (lambda: families.torus(7), InvalidArgumentError, "near it 9, 12, 15"),
        (lambda: families.torus(24, rows=5), InvalidArgumentError, "one of 3, 4, 6, 8"),
        (lambda: families.hypercube(12), InvalidArgumentError, "near it 8 and 16"),
        (lambda: families.random_regular(9, degree=3), InvalidArgumentError, "even"),
        (lambda: families.random_regular(4), InvalidArgumentError, ">= 5, got 4"),
        (
            lambda: families.random_regular(6, degree=1),
            DisconnectedGraphError,
            "at least 2 .* got 1",
        ),
        (lambda: families.watts_strogatz(9, k=3), InvalidArgumentError, "use 2 or 4"),
        (lambda: families.watts_strogatz(9, p=2), InvalidArgumentError, "got 2"),
        (lambda: families.barabasi_albert(2, m=2), InvalidArgumentError, ">= 3"),
        (lambda: families.stochastic_block(5, blocks=3), InvalidArgumentError, ">= 6"),
        (
            lambda: families.stochastic_block(8, p_out=0.0),
            DisconnectedGraphError,
            "2 blocks, got 0.6 and 0",
        ),
        (lambda: families.erdos_renyi(8, p=0), InvalidArgumentError, "p: .*got 0"),
        (lambda: families.erdos_renyi(8, seed=-1), InvalidArgumentError, "got -1"),
        (lambda: families.single(2), InvalidArgumentError, "another family"),
        (lambda: families.ring(100_001), ResourceError, "100000 peers, got 100001"),
        (lambda: families.complete(5000), ResourceError, "5000000 edges, got 12497500"),
        (lambda: families.erdos_renyi(90_000, p=0.5), ResourceError, "5000000 edges"),
    ],
)
def test_impossible_sizes_are_refused_with_what_is_possible(build, error, message):
    with pytest.raises(error, match=message):
        build()
