"""From any NetworkX graph to a simple one with nodes ``0 .. N-1``, and its checks."""

import itertools
import math
import numbers
import warnings
from typing import Any

import networkx as nx

from dfl_unlearn import _validate
from dfl_unlearn._limits import EDGES, PEERS, check_cap
from dfl_unlearn.errors import DisconnectedGraphError, TopologyError


def to_graph(
    graph: nx.Graph, *, strict: bool = False, source: str = "graph"
) -> tuple[nx.Graph, tuple[str, ...]]:
    """Rename the nodes of a graph to ``0 .. N-1`` and drop its self-loops.

    Args:
        graph: Nodes of any names that can be sorted within their type.
        strict: Refuse self-loops instead of dropping them with a warning.
        source: What messages call the graph.

    Returns:
        The renamed copy, nodes and edges in ascending order with their attributes, and
        the old names as texts.

    Raises:
        TopologyError: If the graph is empty, has parallel edges, a weight that is not
            positive and finite, names that cannot be sorted, or (strict) self-loops.
    """
    _validate.of_type(nx.Graph, graph=graph)
    check_size(graph.number_of_nodes(), graph.number_of_edges(), source=source)
    if graph.number_of_nodes() == 0:
        raise TopologyError(
            f"{source}: graph has no nodes; a network needs at least 2 peers"
        )
    try:
        names = sorted(graph, key=lambda node: (type(node).__name__, node))
    except TypeError as error:
        raise TopologyError(
            f"{source}: node names must be sortable within their type ({error}); "
            "use numbers or texts"
        ) from error
    place = {name: i for i, name in enumerate(names)}
    plain = nx.DiGraph() if graph.is_directed() else nx.Graph()
    plain.add_nodes_from((place[name], dict(graph.nodes[name])) for name in names)
    edges: list[tuple[int, int, dict[str, Any]]] = []
    loops = 0
    for u, v, attributes in graph.edges(data=True):
        check_weight(attributes, u, v, source)
        if u == v:
            loops += 1
            continue
        i, j = place[u], place[v]
        forward = graph.is_directed() or i < j
        edges.append((i, j, attributes) if forward else (j, i, attributes))
    edges.sort(key=lambda edge: edge[:2])
    _refuse_parallel(edges, names, source)
    if loops and strict:
        raise TopologyError(f"{source}: must have no self-loops, got {loops}")
    if loops:
        warnings.warn(
            f"{source}: dropped {loops} self-loop{'s' if loops > 1 else ''}; "
            "the mixing rule sets a peer's weight on itself",
            UserWarning,
            stacklevel=3,
        )
    plain.add_edges_from(edges)
    return plain, tuple(map(str, names))


def check_size(peers: int, edges: float, *, source: str = "graph") -> None:
    """Refuse networks beyond 100,000 peers or 5,000,000 edges.

    Args:
        peers: Number of nodes.
        edges: Number of edges, exact or expected.
        source: What the message calls the graph.
    """
    check_cap(PEERS, peers, source)
    check_cap(EDGES, edges, source)


def check_weight(attributes: dict[str, Any], u: object, v: object, source: str) -> None:
    """Refuse an edge attribute ``weight`` that is not a positive finite number.

    Args:
        attributes: The edge's attributes.
        u: One end, for the message.
        v: The other end.
        source: What the message calls the graph.

    Raises:
        TopologyError: If the weight is present and not positive and finite.
    """
    weight = attributes.get("weight", 1.0)
    good = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not good or not (math.isfinite(weight) and weight > 0):
        shown = f"{weight:g}" if good else _validate.show(weight)
        raise TopologyError(
            f"{source}: edge {edge_text(u, v)}: weight must be positive and finite, "
            f"got {shown}"
        )


def check_connected(
    graph: nx.Graph, labels: tuple[str, ...], *, source: str = "graph"
) -> None:
    """Refuse a graph in which some peer cannot reach another.

    Args:
        graph: With nodes ``0 .. N-1``.
        labels: What the message calls the peers.
        source: What the message calls the graph.

    Raises:
        DisconnectedGraphError: Lists the components, sizes first, at most five.
    """
    find = (
        nx.strongly_connected_components
        if graph.is_directed()
        else nx.connected_components
    )
    parts = sorted(sorted(part) for part in find(graph))
    if len(parts) > 1:
        more = ", ..." if len(parts) > 5 else ""
        sizes = ", ".join(str(len(part)) for part in parts[:5])
        sets = ", ".join(_members(part, labels) for part in parts[:5])
        raise DisconnectedGraphError(
            f"{source}: must be connected, got {len(parts)} components of sizes "
            f"{sizes}{more}: {sets}{more}; add edges or keep one component"
        )


def edge_text(u: object, v: object, arrow: str = "\N{EN DASH}") -> str:
    """Return an edge as text for a message, control characters out."""
    ends = [_validate.clean(str(end))[:80] for end in (u, v)]
    return arrow.join(ends)


def _members(part: list[int], labels: tuple[str, ...]) -> str:
    """Peers of a component as ``{0..11}`` or ``{13, 14}``; names if they have some."""
    words: list[str] = []
    run: list[int] = []
    for peer, following in zip(part, [*part[1:], -1], strict=True):
        run.append(peer)
        if following == peer + 1 and labels[following] == str(following):
            continue
        numbered = len(run) > 2 and labels[run[0]] == str(run[0])
        words += (
            [f"{run[0]}..{run[-1]}"] if numbered else [labels[peer] for peer in run]
        )
        run = []
    shown = [_validate.clean(word)[:80] for word in words[:10]]
    return "{" + ", ".join(shown + ["..."] * (len(words) > 10)) + "}"


def _refuse_parallel(
    edges: list[tuple[int, int, dict[str, Any]]], names: list[object], source: str
) -> None:
    for first, second in itertools.pairwise(edges):
        if first[:2] == second[:2]:
            pair = edge_text(names[first[0]], names[first[1]])
            raise TopologyError(
                f"{source}: must have no parallel edges, got {pair} more than once; "
                "keep one of them"
            )
