"""Lazy Metropolis weights: half of what Metropolis' rule could give to neighbours."""

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.topology.mixing import mixing_rules


@mixing_rules.register("lazy-metropolis")
def lazy_metropolis(graph: nx.Graph) -> NDArray[np.float64]:
    """Weigh an edge by 1 / (2 max(d_i, d_j)) and keep at least half oneself.

    Args:
        graph: Undirected, with nodes ``0 .. N-1``.

    Returns:
        W, symmetric and doubly stochastic, shape ``(N, N)``.
    """
    weights = np.zeros((len(graph), len(graph)))
    for i, j in graph.edges:
        share = 1 / (2 * max(graph.degree[i], graph.degree[j]))
        weights[i, j] = weights[j, i] = share
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights
