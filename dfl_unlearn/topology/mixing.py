r"""Mixing rules: how much each peer takes from its neighbours.

A rule turns a graph with nodes ``0 .. N-1`` into a mixing matrix W, shape ``(N, N)``,
float64: ``W[i, j]`` is what peer i takes from peer j, so it may be positive only where
j sends to i (an edge, in a directed graph the arc j -> i) and on the diagonal. Every
rule here gives a doubly stochastic W: rows and columns sum to one, so gossip keeps the
average of all peers' parameters and converges to it at the rate of the second largest
absolute eigenvalue (SLEM).

A rule is a function ``(graph, *, ...)`` that returns a SciPy CSR array (or a dense
array); ``Topology`` checks what it returns.

References:
    Xiao and Boyd (2004), Fast linear iterations for distributed averaging, sections 4.1
    (max-degree, best constant) and 2 (conditions on W). Xiao, Boyd and Lall (2005), A
    scheme for robust distributed sensor fusion based on average consensus
    (Metropolis-Hastings).
"""

import math
from typing import Literal, TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csgraph, csr_array, diags_array, eye_array, issparse

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InvalidMixingMatrixError,
    InvalidTypeError,
    TopologyError,
)
from dfl_unlearn.registry import Registry
from dfl_unlearn.topology._spectrum import ends, slem, spectral_gap

Stochastic = Literal["doubly", "row", "column"]
Matrix: TypeAlias = csr_array | NDArray[np.float64]

TOLERANCE = 1e-10

__all__ = [
    "Matrix",
    "Stochastic",
    "adjacency",
    "best_constant",
    "checked",
    "is_doubly_stochastic",
    "laplacian",
    "lazy",
    "max_degree",
    "metropolis_hastings",
    "mixing_rules",
    "slem",
    "spectral_gap",
    "uniform",
    "user",
]

mixing_rules: Registry[Matrix] = Registry(
    "mixing", packages=("dfl_unlearn.topology.mixing",)
)


# --- rules ----------------------------------------------------------------------


@mixing_rules.register("metropolis-hastings")
def metropolis_hastings(graph: nx.Graph) -> csr_array:
    r"""Weigh an edge by the larger degree of its ends; works on every graph.

    Edge (i, j) gets weight :math:`1 / (1 + \max(d_i, d_j))`; the rest of each row stays
    on the diagonal, which is always positive. The result is symmetric and doubly
    stochastic.

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.

    Returns:
        W, shape ``(N, N)``.
    """
    links = _undirected(graph, "metropolis-hastings")
    degrees = _degrees(links)
    weights = 1.0 / (1.0 + np.maximum(degrees[links.row], degrees[links.col]))
    return _with_diagonal(links, weights)


@mixing_rules.register("max-degree")
def max_degree(graph: nx.Graph) -> csr_array:
    """Give every edge the weight 1 / (1 + the largest degree).

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.

    Returns:
        W, symmetric and doubly stochastic, shape ``(N, N)``.
    """
    links = _undirected(graph, "max-degree")
    return _constant_edge(links, 1.0 / (1.0 + _largest(links)))


@mixing_rules.register("lazy")
def lazy(graph: nx.Graph, *, kappa: float = 0.5) -> csr_array:
    """Keep a share of one's own value: (1 - kappa) W + kappa I of Metropolis-Hastings.

    From ``kappa=0.5`` on no eigenvalue is negative, so gossip never oscillates.

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.
        kappa: Share of the identity, in [0, 1).

    Returns:
        W, symmetric and doubly stochastic, shape ``(N, N)``.
    """
    _validate.number(kappa=kappa, at_least=0.0, below=1.0)
    weights = metropolis_hastings(graph)
    identity = eye_array(weights.shape[0], format="csr")
    return csr_array((1.0 - kappa) * weights + kappa * identity)


@mixing_rules.register("laplacian")
def laplacian(graph: nx.Graph, *, step: float | None = None) -> csr_array:
    """Take one step of diffusion: W = I - step * Laplacian.

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.
        step: In (0, 1 / largest degree], which keeps W non-negative, and below
            2 / largest Laplacian eigenvalue, without which gossip does not converge.
            None gives 1 / (1 + largest degree), the weights of ``max-degree``.

    Returns:
        W, symmetric and doubly stochastic, shape ``(N, N)``.

    Raises:
        InvalidMixingMatrixError: If ``step`` makes an entry negative. A step at the
            second limit is found when the Topology is built.
    """
    links = _undirected(graph, "laplacian")
    degree = _largest(links)
    if step is None:
        return _constant_edge(links, 1.0 / (1.0 + degree))
    _validate.number(step=step, above=0.0)
    if step * degree > 1.0 + TOLERANCE:
        raise InvalidMixingMatrixError(
            f"step: must be at most 1 / largest degree = {1 / degree:g} to keep the "
            f"weights non-negative, got {step:g}; lower it or leave it out"
        )
    return _constant_edge(links, step)


@mixing_rules.register("best-constant")
def best_constant(graph: nx.Graph) -> csr_array:
    r"""Give every edge the one weight that mixes fastest and keeps W non-negative.

    With the Laplacian's second smallest and largest eigenvalue, the fastest weight is
    :math:`2 / (\lambda_2 + \lambda_N)`; where that passes 1 / (largest degree) and
    would make a diagonal entry negative, the largest allowed weight is the best one,
    since the SLEM is convex in the weight.

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.

    Returns:
        W, symmetric and doubly stochastic, shape ``(N, N)``.
    """
    links = _undirected(graph, "best-constant")
    degree = _largest(links)
    # I - L / (2 degree) is stochastic, so its ends give the Laplacian's.
    second, smallest = ends(_constant_edge(links, 0.5 / degree))
    fastest = 2.0 / (2.0 * degree * ((1.0 - second) + (1.0 - smallest)))
    return _constant_edge(links, min(fastest, 1.0 / degree))


@mixing_rules.register("uniform")
def uniform(graph: nx.Graph) -> csr_array:
    """Take equally from oneself and every neighbour; for regular graphs only.

    Each of a peer's weights is 1 / (1 + number of peers it hears). This is doubly
    stochastic where every peer hears, and is heard by, equally many: complete graphs,
    rings, tori, hypercubes, and the directed exponential graph.

    Args:
        graph: Undirected or directed, with nodes ``0 .. N-1``.

    Returns:
        W, doubly stochastic, shape ``(N, N)``.

    Raises:
        InvalidMixingMatrixError: If the weights are not doubly stochastic.
    """
    heard = coo_array(adjacency(graph).T)
    degrees = _degrees(heard)
    weights = _with_diagonal(heard, 1.0 / (1.0 + degrees[heard.row]))
    if not is_doubly_stochastic(weights):
        remedy = (
            "add arcs until every peer sends to and hears equally many"
            if graph.is_directed()
            else "use metropolis-hastings"
        )
        raise InvalidMixingMatrixError(
            "mixing 'uniform': every peer must have equally many neighbours for the "
            "columns to sum to 1, got degrees from "
            f"{int(degrees.min())} to {int(degrees.max())}; {remedy}"
        )
    return weights


@mixing_rules.register("user")
def user(graph: nx.Graph, *, matrix: Matrix) -> csr_array:
    """Use a matrix of one's own; it is checked like every other.

    Args:
        graph: Undirected or directed, with nodes ``0 .. N-1``.
        matrix: W, dense or sparse, shape ``(N, N)``; row i is peer i.

    Returns:
        W, shape ``(N, N)``.
    """
    return checked(matrix, graph, stochastic="doubly")


# --- properties of a mixing matrix ------------------------------------------------


def is_doubly_stochastic(weights: Matrix, *, tolerance: float = TOLERANCE) -> bool:
    """Tell whether entries are non-negative and rows and columns sum to one.

    Args:
        weights: Dense or sparse, shape ``(N, N)``.
        tolerance: Largest allowed deviation of an entry or a sum.

    Returns:
        True if W keeps the average and stays within the peers' range.
    """
    matrix = csr_array(weights)
    sums = np.concatenate([matrix.sum(axis=0), matrix.sum(axis=1)])
    return bool(
        matrix.shape[0] == matrix.shape[1]
        and np.all(matrix.data >= -tolerance)
        and np.all(np.abs(sums - 1.0) <= tolerance)
    )


def checked(
    weights: Matrix, graph: nx.Graph, *, stochastic: Stochastic, connected: bool = True
) -> csr_array:
    """Return W as sorted CSR after checking that it can average over the graph.

    Conditions, to a tolerance of 1e-10: non-negative; positive only on edges and the
    diagonal; rows sum to one (``doubly``, ``row``), columns too (``doubly``,
    ``column``). Convergence (SLEM < 1) is decided exactly and without eigenvalues: the
    positive entries must connect all peers and have period one.

    Args:
        weights: Dense or sparse, shape ``(N, N)``.
        graph: With nodes ``0 .. N-1``.
        stochastic: Which sums must be one.
        connected: Whether the entries must connect all peers; without it convergence
            is not asked for.

    Returns:
        A copy with sorted indices and no stored zeros.

    Raises:
        InvalidMixingMatrixError: If a condition fails; names the entry or the peer.
        InvalidTypeError: If ``weights`` is not a real matrix.
    """
    matrix = _as_csr(weights)
    n = graph.number_of_nodes()
    if matrix.shape != (n, n):
        raise InvalidMixingMatrixError(
            f"weights: must have shape ({n}, {n}), one row per peer, got {matrix.shape}"
        )
    _check_entries(matrix, graph)
    _check_sums(matrix, stochastic)
    if connected:
        _check_mixes(matrix)
    return matrix


def adjacency(graph: nx.Graph) -> csr_array:
    """Return the 0/1 matrix of a graph with nodes ``0 .. N-1``.

    Args:
        graph: Undirected or directed.

    Returns:
        Float64 CSR, shape ``(N, N)``; entry (u, v) is 1 where u sends to v.
    """
    n = graph.number_of_nodes()
    matrix = nx.to_scipy_sparse_array(
        graph, nodelist=range(n), weight=None, dtype=np.float64, format="csr"
    )
    matrix.sort_indices()
    return matrix


# --- helpers ----------------------------------------------------------------------


def _undirected(graph: nx.Graph, rule: str) -> coo_array:
    if graph.is_directed():
        raise TopologyError(
            f"mixing {rule!r}: must have an undirected graph, got a directed one; "
            "use mixing='uniform' (regular digraphs such as exponential) or 'user'"
        )
    return coo_array(adjacency(graph))


def _degrees(links: coo_array) -> NDArray[np.int64]:
    return np.bincount(links.row, minlength=links.shape[0]).astype(np.int64)


def _largest(links: coo_array) -> int:
    return int(max(1, _degrees(links).max()))


def _constant_edge(links: coo_array, weight: float) -> csr_array:
    return _with_diagonal(links, np.full(links.nnz, weight))


def _with_diagonal(links: coo_array, weights: NDArray[np.float64]) -> csr_array:
    """Put weights on links and what is missing to one on the diagonal."""
    n = links.shape[0]
    off = csr_array(coo_array((weights, (links.row, links.col)), shape=(n, n)))
    rest = np.maximum(1.0 - off.sum(axis=1), 0.0)  # 1 - d (1/d) may round below zero
    rest[rest < 1e-15] = 0.0
    return csr_array(off + diags_array(rest))


def _as_csr(weights: Matrix) -> csr_array:
    if not issparse(weights) and not isinstance(weights, np.ndarray):
        raise InvalidTypeError(
            "weights: must be a NumPy array or a SciPy sparse matrix, "
            f"got {type(weights).__name__}"
        )
    if weights.ndim != 2 or weights.dtype.kind not in "fiu":
        raise InvalidTypeError(
            "weights: must be a real matrix, got "
            f"{weights.ndim} dimensions of type {weights.dtype}"
        )
    matrix = csr_array(weights, dtype=np.float64, copy=True)
    try:  # SciPy's own loops believe the places and write outside otherwise
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise InvalidMixingMatrixError(
            f"weights: must be a sparse matrix in order, got one whose {error}; build "
            "it with scipy.sparse.coo_array"
        ) from error
    matrix.sum_duplicates()
    matrix.sort_indices()
    return matrix


def _check_entries(matrix: csr_array, graph: nx.Graph) -> None:
    """Refuse negative, non-finite and off-graph entries; zero those in tolerance."""
    entries = coo_array(matrix)
    rows, columns = entries.coords
    values = matrix.data
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= -TOLERANCE)))
    if bad.size:
        i, j, value = rows[bad[0]], columns[bad[0]], values[bad[0]]
        raise InvalidMixingMatrixError(
            f"weights[{i}, {j}]: must be non-negative and finite, got {value:g}"
        )
    allowed = adjacency(graph).T + eye_array(matrix.shape[0])
    on_graph = np.asarray(csr_array(allowed)[rows, columns]).ravel() > 0
    off = np.flatnonzero(~on_graph & (values > TOLERANCE))
    if off.size:
        i, j, value = rows[off[0]], columns[off[0]], values[off[0]]
        raise InvalidMixingMatrixError(
            f"weights[{i}, {j}]: must be 0 because peer {j} does not send to peer {i}, "
            f"got {value:g}; add the edge or remove the weight"
        )
    values[(values < 0) | ~on_graph] = 0.0
    matrix.eliminate_zeros()


def _check_sums(matrix: csr_array, stochastic: Stochastic) -> None:
    for axis, word in ((1, "row"), (0, "column")):
        if stochastic not in {"doubly", word}:
            continue
        sums = matrix.sum(axis=axis)
        worst = int(np.argmax(np.abs(sums - 1.0)))
        if abs(sums[worst] - 1.0) > TOLERANCE:
            raise InvalidMixingMatrixError(
                f"weights: {word} {worst} must sum to 1, got {sums[worst]:.12g}; "
                f"stochastic={stochastic!r} was declared"
            )


def _check_mixes(matrix: csr_array) -> None:
    """Refuse a stochastic matrix with SLEM 1: reducible, or periodic."""
    count, parts = csgraph.connected_components(matrix, connection="strong")
    if count > 1:
        stray = int(np.flatnonzero(parts != parts[0])[0])
        raise InvalidMixingMatrixError(
            f"weights: must connect all peers, got none between peers 0 and {stray} "
            "in one of the directions (SLEM 1); give every edge a positive weight"
        )
    if matrix.diagonal().any():
        return
    level = csgraph.dijkstra(matrix, unweighted=True, indices=0).astype(np.int64)
    rows, columns = coo_array(matrix).coords
    period = math.gcd(*np.unique(np.abs(level[rows] + 1 - level[columns])).tolist())
    if period != 1:
        raise InvalidMixingMatrixError(
            f"weights: must have SLEM < 1, got 1 (values return only every {period} "
            "rounds); give a peer a positive weight on itself"
        )
