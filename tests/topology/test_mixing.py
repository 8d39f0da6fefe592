import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array

from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidMixingMatrixError,
    TopologyError,
)
from dfl_unlearn.topology import mixing
from dfl_unlearn.topology.generators import exponential, star
from dfl_unlearn.topology.graph import Topology


def test_max_degree_gives_every_edge_the_same_weight():
    weights = mixing.max_degree(star(5)).toarray()
    expected = np.diag([0.2, 0.8, 0.8, 0.8, 0.8])
    expected[0, 1:] = expected[1:, 0] = 0.2
    np.testing.assert_allclose(weights, expected, atol=1e-15)


def test_lazy_moves_the_spectrum_towards_one():
    graph = nx.path_graph(4)
    plain = np.linalg.eigvalsh(mixing.metropolis_hastings(graph).toarray())
    for kappa in (0.0, 0.3, 0.5):
        values = np.linalg.eigvalsh(mixing.lazy(graph, kappa=kappa).toarray())
        np.testing.assert_allclose(values, (1 - kappa) * plain + kappa, atol=1e-14)


def test_laplacian_is_one_step_of_diffusion():
    graph = nx.barabasi_albert_graph(12, 2, seed=0)
    expected = np.eye(12) - 0.05 * nx.laplacian_matrix(graph).toarray()
    weights = mixing.laplacian(graph, step=0.05).toarray()
    np.testing.assert_allclose(weights, expected, atol=1e-15)
    np.testing.assert_array_equal(
        mixing.laplacian(graph).toarray(), mixing.max_degree(graph).toarray()
    )


@pytest.mark.parametrize(
    "graph",
    [nx.cycle_graph(6), nx.path_graph(5), star(6), nx.petersen_graph()],
    ids=["ring", "path", "star", "petersen"],
)
def test_no_constant_weight_mixes_faster_than_the_best(graph):
    best = mixing.slem(mixing.best_constant(graph))
    limit = 1 / max(degree for _, degree in graph.degree)
    tried = [
        mixing.slem(mixing.laplacian(graph, step=share * limit))
        for share in np.linspace(0.01, 1, 100)
    ]
    assert min(tried) >= best - 1e-12
    assert min(tried) <= best + 0.01


def test_the_best_constant_of_the_six_ring_is_two_fifths():
    # Laplacian eigenvalues 1 and 4: weight 2/5, SLEM 3/5 (Xiao and Boyd 2004).
    weights = mixing.best_constant(nx.cycle_graph(6))
    assert weights[0, 1] == pytest.approx(0.4, abs=1e-14)
    assert mixing.slem(weights) == pytest.approx(0.6, abs=1e-14)


def test_a_step_that_makes_weights_negative_is_refused():
    with pytest.raises(InvalidMixingMatrixError, match=r"= 0\.25 .* got 0\.3"):
        mixing.laplacian(star(5), step=0.3)


@pytest.mark.parametrize("kappa", [-0.1, 1.0, float("nan")])
def test_a_share_of_laziness_lies_below_one(kappa):
    with pytest.raises(InvalidArgumentError, match=r"kappa: .* got"):
        mixing.lazy(nx.path_graph(3), kappa=kappa)


def test_uniform_weights_need_equal_degrees():
    ring = mixing.uniform(nx.cycle_graph(5)).toarray()
    np.testing.assert_allclose(ring[0], [1 / 3, 1 / 3, 0, 0, 1 / 3], atol=1e-15)
    assert mixing.is_doubly_stochastic(mixing.uniform(exponential(7)))
    with pytest.raises(
        InvalidMixingMatrixError, match="degrees from 1 to 4; use metropolis-hastings"
    ):
        mixing.uniform(star(5))


@pytest.mark.parametrize(
    "rule", ["metropolis-hastings", "max-degree", "lazy", "laplacian", "best-constant"]
)
def test_symmetric_rules_refuse_directed_graphs_and_name_uniform(rule):
    with pytest.raises(TopologyError, match="directed one; use mixing='uniform'"):
        Topology.from_graph(exponential(8), rule)


def test_a_diagonal_never_rounds_below_zero():
    for n in range(2, 60):
        weights = mixing.laplacian(nx.complete_graph(n), step=1 / (n - 1))
        assert weights.data.min() > 0
        assert weights.nnz == n * (n - 1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.1, -0.1, 0], [-0.1, 1.1, 0], [0, 0, 1]], r"\[0, 1\].*non-neg.*got -0\.1"),
        ([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]], r"\[0, 0\].*finite, got nan"),
        ([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], r"\[0, 2\]: must be 0.*got 0\.5"),
        ([[0.5, 0.4, 0], [0.5, 0.2, 0.3], [0, 0.3, 0.7]], r"row 0 .*to 1, got 0\.9;"),
        ([[0.5, 0.5, 0], [0.3, 0.4, 0.3], [0, 0.5, 0.5]], r"column 1 .*, got 1\.4"),
        ([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], "none between peers 0 and 2"),
        ([[1, 0], [0, 1]], r"shape \(3, 3\).*got \(2, 2\)"),
    ],
)
def test_a_matrix_of_ones_own_is_checked(matrix, message):
    for form in (np.array, lambda m: csr_array(np.array(m))):
        with pytest.raises(InvalidMixingMatrixError, match=message):
            Topology.from_graph(nx.path_graph(3), "user", matrix=form(matrix))


def test_a_matrix_that_only_swaps_never_mixes():
    swap = np.array([[0, 1.0], [1, 0]])
    with pytest.raises(InvalidMixingMatrixError, match="only every 2 rounds"):
        Topology.from_graph(nx.path_graph(2), "user", matrix=swap)
    triangle = (np.ones((3, 3)) - np.eye(3)) / 2  # no diagonal, but period one
    assert Topology.from_graph(
        nx.complete_graph(3), "user", matrix=triangle
    ).slem == pytest.approx(0.5)


def test_entries_within_the_tolerance_become_zero():
    matrix = np.array([[0.5, 0.5, 1e-11], [0.5, 0.25, 0.25], [0, 0.25, 0.75]])
    weights = mixing.checked(matrix, nx.path_graph(3), stochastic="doubly")
    assert weights[0, 2] == 0
    assert weights.nnz == 7
    matrix[0, 2] = 1e-9
    with pytest.raises(InvalidMixingMatrixError, match="must be 0"):
        mixing.checked(matrix, nx.path_graph(3), stochastic="doubly")


def test_doubly_stochastic_is_told_from_one_sided():
    assert mixing.is_doubly_stochastic(np.full((3, 3), 1 / 3))
    assert not mixing.is_doubly_stochastic(np.array([[0.5, 0.5], [0.4, 0.6]]))
    assert not mixing.is_doubly_stochastic(np.array([[2.0, -1], [-1, 2]]))
    assert mixing.spectral_gap(np.full((3, 3), 1 / 3)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("part", "place", "value"), [("indices", 1, 10**9), ("indices", 0, -3)]
)
def test_places_outside_the_matrix_are_not_written_to(part, place, value):
    graph = nx.cycle_graph(4)
    weights = mixing.metropolis_hastings(graph).copy()
    getattr(weights, part)[place] = value
    with pytest.raises(InvalidMixingMatrixError, match="sparse matrix in order"):
        Topology(graph=graph, weights=weights)
