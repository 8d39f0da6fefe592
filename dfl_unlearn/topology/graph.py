"""A frozen network of peers: the graph, its mixing matrix W and what follows from them.

Peers are exactly ``0 .. N-1`` and row i of every array is peer i. A graph with other
node names is relabelled once: names are sorted by (type name, value), numbered in that
order and kept as labels, so that the result does not depend on the order in which nodes
or edges were added.
"""

import hashlib
import html
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csgraph, csr_array

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    ResourceError,
    TopologyError,
    UnknownPeerError,
)
from dfl_unlearn.topology import mixing as _mixing
from dfl_unlearn.topology._simple import check_connected, check_size, to_graph
from dfl_unlearn.topology._spectrum import (
    DENSE_LIMIT,
    is_normal,
    is_symmetric,
    rounds_of_matrix,
    rounds_of_rate,
    slem,
)
from dfl_unlearn.topology.mixing import Stochastic, mixing_rules


class TopologySchedule(Protocol):
    """The network of every gossip round; a Topology is the schedule of itself.

    Attributes:
        n: Number of peers, the same in every round.
        connected_within: Rounds whose union of edges is connected, whatever the start.
        stochastic: ``doubly``, ``row`` or ``column``, true of every round's weights.
    """

    @property
    def n(self) -> int: ...  # noqa: D102

    @property
    def connected_within(self) -> int: ...  # noqa: D102

    @property
    def stochastic(self) -> Stochastic: ...  # noqa: D102

    def at(self, t: int) -> "Topology":
        """Return the network of gossip round t."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """A connected network of peers with the weights they mix by.

    Checked at construction: see ``dfl_unlearn.topology.mixing.checked``.

    Attributes:
        graph: Nodes exactly ``0 .. N-1`` in this order, no self-loops, frozen. In a
            directed graph the arc u -> v means that u sends to v.
        weights: Mixing matrix W, CSR float64 with sorted indices, shape ``(N, N)``;
            ``weights[i, j]`` is what peer i takes from peer j.
        name: What reports and figures call the network.
        labels: One text per peer; the peers' numbers unless given.
        stochastic: Which sums of W are one: ``doubly``, ``row`` or ``column``.
        connected: Whether the graph must be connected; False for single rounds of a
            schedule only.

    Example:
        >>> import networkx as nx
        >>> topology = Topology.from_graph(nx.cycle_graph(6), name="six")
        >>> round(topology.spectral_gap, 6), topology.diameter
        (0.333333, 3)
    """

    graph: nx.Graph
    weights: csr_array
    name: str = ""
    labels: tuple[str, ...] = ()
    stochastic: Stochastic = "doubly"
    connected: bool = True

    def __post_init__(self) -> None:
        """Check graph, weights and labels, and freeze copies of them."""
        _validate.of_type(nx.Graph, graph=self.graph)
        _validate.of_type(str, name=self.name)
        _validate.one_of(("doubly", "row", "column"), stochastic=self.stochastic)
        n = self.graph.number_of_nodes()
        if n == 0:
            raise TopologyError(
                "graph: graph has no nodes; a network needs at least 2 peers"
            )
        if self.graph.is_multigraph() or list(self.graph) != list(range(n)):
            raise TopologyError(
                "graph: must be a simple graph with nodes 0 .. N-1 in this order, got "
                f"{_validate.show(list(self.graph)[:5])} ...; use Topology.from_graph"
            )
        if (loops := nx.number_of_selfloops(self.graph)) > 0:
            raise TopologyError(
                f"graph: must have no self-loops, got {loops}; a peer's weight on "
                "itself is the diagonal of W"
            )
        check_size(n, self.graph.number_of_edges())
        labels = tuple(self.labels) or tuple(map(str, range(n)))
        _check_labels(labels, n)
        if self.connected:
            check_connected(self.graph, labels)
        graph = self.graph
        if not nx.is_frozen(graph):
            graph = nx.freeze(graph.copy())
        weights = _mixing.checked(
            self.weights, graph, stochastic=self.stochastic, connected=self.connected
        )
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "labels", labels)

    @classmethod
    def from_graph(
        cls,
        graph: nx.Graph,
        mixing: str = "metropolis-hastings",
        *,
        name: str = "",
        labels: tuple[str, ...] | None = None,
        **mixing_options: Any,
    ) -> "Topology":
        """Make a network from a NetworkX graph and a mixing rule.

        Args:
            graph: At least two nodes of any names, connected; self-loops are dropped
                with a warning, parallel edges refused.
            mixing: A registered mixing rule, see ``mixing_rules.names()``.
            name: What reports and figures call the network.
            labels: One text per peer in the new order; the nodes' names unless given.
            **mixing_options: The rule's own arguments, e.g. ``matrix`` of ``user``.

        Returns:
            The network, doubly stochastic.

        Raises:
            TopologyError: If the graph has fewer than two nodes or cannot serve.
        """
        plain, names = to_graph(graph)
        if plain.number_of_nodes() == 1:
            raise TopologyError(
                "graph: a network needs at least 2 peers, got 1; "
                "for one model use Topology.single()"
            )
        labels = tuple(labels or names)
        check_connected(plain, labels)
        weights = mixing_rules.build(mixing, graph=plain, **mixing_options)
        return cls(graph=plain, weights=weights, name=name, labels=labels)

    @classmethod
    def single(cls) -> "Topology":
        """Return the one-peer network, W = [1], on which training is centralized."""
        return cls(
            graph=nx.empty_graph(1), weights=csr_array(np.ones((1, 1))), name="single"
        )

    @property
    def n(self) -> int:
        """Number of peers N."""
        return int(self.weights.shape[0])

    @property
    def directed(self) -> bool:
        """Whether an edge carries messages in one direction only."""
        return bool(self.graph.is_directed())

    @property
    def connected_within(self) -> int:
        """Rounds whose union is connected: 1, every round uses the whole graph."""
        return 1

    def at(self, t: int) -> "Topology":
        """Return the network of gossip round ``t``: always this one."""
        return self

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """Edges (i, j) with i < j, shape ``(E, 2)``, sorted; directed: arcs i -> j."""
        pairs = np.array(
            [e if self.directed else sorted(e) for e in self.graph.edges],
            dtype=np.int64,
        ).reshape(-1, 2)
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

    @cached_property
    def slem(self) -> float:
        """Second largest absolute eigenvalue of W: the rate at which gossip forgets."""
        return slem(self.weights)

    @property
    def spectral_gap(self) -> float:
        """One minus the SLEM."""
        return 1.0 - self.slem

    def hops(self, source: int) -> NDArray[np.int64]:
        """Count the rounds that a message needs from one peer to every other.

        Args:
            source: A peer.

        Returns:
            Hop distances along edges, shape ``(N,)``; 0 for the source itself.

        Raises:
            UnknownPeerError: If there is no such peer.
        """
        _validate.integer(
            source=source, at_least=0, at_most=self.n - 1, error=UnknownPeerError
        )
        distances: NDArray[np.int64] = self._distances(np.array([source]))[0]
        return distances

    @cached_property
    def diameter(self) -> int:
        """Largest hop distance between two peers; O(N E), computed once."""
        chunk = max(1, 4_000_000 // self.n)
        return max(
            int(self._distances(np.arange(start, min(start + chunk, self.n))).max())
            for start in range(0, self.n, chunk)
        )

    def mixing_rounds(self, tolerance: float = 1e-3) -> int:
        r"""Count the rounds until gossip has averaged up to a tolerance.

        Args:
            tolerance: Largest allowed :math:`\|W^t - J\|_2`, above 0, where J
                averages all peers.

        Returns:
            The smallest such t; from the SLEM where W commutes with its transpose
            (then the norm is exactly SLEM^t), else from powers of W.

        Raises:
            TopologyError: If W is not doubly stochastic: its powers do not go to J.
            ResourceError: If W is neither normal nor small enough for dense powers.
        """
        _validate.number(tolerance=tolerance, above=0.0)
        if self.stochastic != "doubly":
            raise TopologyError(
                "mixing_rounds: must have doubly stochastic weights, "
                f"got {self.stochastic}; such gossip does not reach the average"
            )
        if self.n == 1 or tolerance >= 1.0:
            return 0
        symmetric = is_symmetric(self.weights)
        if symmetric or is_normal(self.weights):
            return rounds_of_rate(self.slem, tolerance)
        if self.n > DENSE_LIMIT:
            raise ResourceError(
                "mixing_rounds: weights that are not normal need dense powers, for at "
                f"most {DENSE_LIMIT} peers, got {self.n}; use symmetric weights"
            )
        return rounds_of_matrix(self.weights.toarray() - 1.0 / self.n, tolerance)

    def fingerprint(self) -> str:
        """Return the SHA-256 of who talks to whom and with which weights.

        Name, labels and attributes are left out; equal bits of W give equal texts.
        """
        head = f"topology/1|{self.n}|{self.directed}|{self.stochastic}|"
        digest = hashlib.sha256(head.encode())
        for part, kind in (
            (self.edges, "<i8"),
            (self.weights.indptr, "<i8"),
            (self.weights.indices, "<i8"),
            (self.weights.data, "<f8"),
        ):
            digest.update(np.ascontiguousarray(part, dtype=kind).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Return name and size; nothing that takes time to compute."""
        return (
            f"Topology(name={self.name!r}, n={self.n}, edges={len(self.edges)}, "
            f"stochastic={self.stochastic!r})"
        )

    def _repr_html_(self) -> str:
        """Return a small table for notebooks; spectra only where they are quick."""
        rows: dict[str, object] = {
            "peers": self.n,
            "arcs" if self.directed else "edges": len(self.edges),
        }
        if self.n <= DENSE_LIMIT:
            rows["diameter"] = self.diameter
            rows["spectral gap"] = f"{self.spectral_gap:.6g}"
            if self.stochastic == "doubly":
                rows["rounds to average to 0.1 %"] = self.mixing_rounds(1e-3)
        body = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        title = html.escape(_validate.clean(self.name) or "unnamed network")
        return f"<table><caption>{title}</caption>{body}</table>"

    def _distances(self, sources: NDArray[np.int64]) -> NDArray[np.int64]:
        found = csgraph.dijkstra(self._adjacency, unweighted=True, indices=sources)
        distances: NDArray[np.int64] = np.asarray(found).astype(np.int64)
        return distances

    @cached_property
    def _adjacency(self) -> csr_array:
        return _mixing.adjacency(self.graph)


def _check_labels(labels: tuple[str, ...], n: int) -> None:
    if len(labels) != n:
        raise TopologyError(
            f"labels: must be one text per peer, {n} of them, got {len(labels)}"
        )
    for peer, label in enumerate(labels):
        _validate.of_type(str, **{f"labels[{peer}]": label})
        if _validate.clean(label) != label:
            raise TopologyError(
                f"labels[{peer}]: must have no control characters, "
                f"got {_validate.show(label)}"
            )
