"""Chordal rings: a ring on which every peer also talks to one further away."""

import networkx as nx

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.topology.generators import topologies


@topologies.register("chordal-ring")
def chordal_ring(n: int, *, chord: int = 3) -> nx.Graph:
    """Connect every peer with the next and with the one ``chord`` steps ahead.

    Args:
        n: Number of peers, at least 3.
        chord: Length of the chords, from 2 to n - 2.

    Returns:
        The graph, nodes ``0 .. n-1``.

    Raises:
        InvalidArgumentError: If an argument is no integer or out of range.
    """
    if not isinstance(n, int) or n < 3:
        raise InvalidArgumentError(f"n: must be an integer >= 3, got {n!r}")
    if not isinstance(chord, int) or not 2 <= chord <= n - 2:
        raise InvalidArgumentError(
            f"chord: must be an integer in 2..{n - 2}, got {chord!r}"
        )
    graph = nx.cycle_graph(n)
    graph.add_edges_from((i, (i + chord) % n) for i in range(n))
    return graph
