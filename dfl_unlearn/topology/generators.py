"""Named families of graphs: NetworkX's and ours, each a function of the peer count.

A family is a function ``(n, *, ...) -> nx.Graph`` whose nodes are ``0 .. n-1``. Random
families take a ``seed``, draw through the keyed generator of the package, and are drawn
again until they are connected, so equal arguments give equal graphs.
"""

import math
from collections.abc import Callable, Iterable

import networkx as nx
import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.errors import DisconnectedGraphError, InvalidArgumentError
from dfl_unlearn.registry import Registry
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology._simple import check_size

MAX_DRAWS = 100

topologies: Registry[nx.Graph] = Registry(
    "topologies", packages=("dfl_unlearn.topology.generators",)
)


@topologies.register("ring")
def ring(n: int) -> nx.Graph:
    """Connect every peer with the next, the last with the first.

    Args:
        n: Number of peers, at least 3.

    Returns:
        The cycle; diameter n // 2.
    """
    n = _peers(n, at_least=3)
    return _graph(n, ((i, (i + 1) % n) for i in range(n)))


@topologies.register("path")
def path(n: int) -> nx.Graph:
    """Connect every peer with the next: the slowest connected network to mix.

    Args:
        n: Number of peers, at least 2.

    Returns:
        The path from peer 0 to peer n - 1.
    """
    n = _peers(n, at_least=2)
    return _graph(n, ((i, i + 1) for i in range(n - 1)))


@topologies.register("torus")
def torus(n: int, *, rows: int | None = None) -> nx.Graph:
    """Arrange the peers on a grid that closes at its borders; four neighbours each.

    Args:
        n: Number of peers, rows x columns with both at least 3.
        rows: Number of rows; None takes the most square grid.

    Returns:
        The graph; peer ``r * columns + c`` stands in row r and column c.

    Raises:
        InvalidArgumentError: If ``n`` is no such product; names the nearest that are.
    """
    n = _peers(n, at_least=1)
    height = _square_rows(n) if rows is None else rows
    if height is None:
        near = [m for m in range(max(9, n - 12), n + 13) if _square_rows(m)]
        near = sorted(sorted(near, key=lambda m: abs(m - n))[:3])
        raise InvalidArgumentError(
            f"n: must be rows x columns, both at least 3, got {n}; "
            f"near it {', '.join(map(str, near))} work"
        )
    _validate.integer(rows=height, at_least=3)
    if n % height or n // height < 3:
        fit = [r for r in range(3, n // 3 + 1) if n % r == 0]
        raise InvalidArgumentError(
            f"rows: must divide n={n} into at least 3 columns, got {height}; "
            f"use one of {', '.join(map(str, fit)) or 'another n'}"
        )
    width = n // height
    return _graph(
        n,
        (
            (r * width + c, other)
            for r in range(height)
            for c in range(width)
            for other in (r * width + (c + 1) % width, (r + 1) % height * width + c)
        ),
    )


@topologies.register("star")
def star(n: int) -> nx.Graph:
    """Connect every peer with peer 0, the hub, and with nobody else.

    Args:
        n: Number of peers with the hub, at least 2.

    Returns:
        The star.
    """
    n = _peers(n, at_least=2)
    return _graph(n, ((0, i) for i in range(1, n)))


@topologies.register("complete")
def complete(n: int) -> nx.Graph:
    """Connect every peer with every other: one round averages everything.

    Args:
        n: Number of peers, at least 2.

    Returns:
        The complete graph.
    """
    n = _peers(n, at_least=2)
    check_size(n, n * (n - 1) / 2)
    return _graph(n, ((i, j) for i in range(n) for j in range(i + 1, n)))


@topologies.register("erdos-renyi")
def erdos_renyi(n: int, *, p: float | None = None, seed: int = 0) -> nx.Graph:
    """Connect every pair of peers with probability p, independently.

    Args:
        n: Number of peers, at least 2.
        p: In (0, 1]; None gives 2 ln(n) / n, twice the threshold below which large
            graphs fall apart.
        seed: Of the draw.

    Returns:
        A connected draw.

    References:
        Erdos and Renyi (1959), On random graphs I.
    """
    n = _peers(n, at_least=2)
    share = min(1.0, 2 * math.log(n) / n) if p is None else p
    _validate.number(p=share, above=0.0, at_most=1.0)
    check_size(n, share * n * (n - 1) / 2)
    return _connected(
        lambda generator: nx.fast_gnp_random_graph(
            n, share if 1.0 - share < 1.0 else 0.0, seed=generator
        ),
        seed,
        f"p: must be large enough for a connected graph of {n} peers, got {share:g}; "
        f"use at least {min(1.0, 2 * math.log(n) / n):.3g}",
    )


@topologies.register("random-regular")
def random_regular(n: int, *, degree: int = 4, seed: int = 0) -> nx.Graph:
    """Give every peer equally many random neighbours: sparse, and mixes fast.

    Args:
        n: Number of peers, above ``degree``; n * degree must be even.
        degree: Neighbours of each peer, at least 2 (1 where n is 2).
        seed: Of the draw.

    Returns:
        A connected draw.

    Raises:
        InvalidArgumentError: If n * degree is odd.

    References:
        Steger and Wormald (1999), Generating random regular graphs quickly.
    """
    _validate.integer(degree=degree, at_least=1)
    n = _peers(n, at_least=degree + 1)
    check_size(n, n * degree / 2)
    if n * degree % 2:
        raise InvalidArgumentError(
            f"degree: n * degree must be even, got {n} * {degree}; "
            f"use degree {degree + 1} or another n"
        )
    return _connected(
        lambda generator: nx.random_regular_graph(degree, n, seed=generator),
        seed,
        f"degree: must be at least 2 for a connected graph of {n} peers, got {degree}",
    )


@topologies.register("watts-strogatz")
def watts_strogatz(n: int, *, k: int = 4, p: float = 0.2, seed: int = 0) -> nx.Graph:
    """Rewire a share of a ring lattice's edges: local, with a few shortcuts.

    Args:
        n: Number of peers, above ``k``.
        k: Neighbours of each peer before rewiring, even.
        p: Probability that an edge is rewired, in [0, 1].
        seed: Of the draw.

    Returns:
        A connected draw.

    Raises:
        InvalidArgumentError: If ``k`` is odd.

    References:
        Watts and Strogatz (1998), Collective dynamics of small-world networks.
    """
    _validate.integer(k=k, at_least=2)
    _validate.number(p=p, at_least=0.0, at_most=1.0)
    n = _peers(n, at_least=k + 1)
    check_size(n, n * k / 2)
    if k % 2:
        raise InvalidArgumentError(
            f"k: must be even, half to either side, got {k}; use {k - 1} or {k + 1}"
        )
    return _connected(
        lambda generator: nx.watts_strogatz_graph(n, k, p, seed=generator),
        seed,
        f"k: must be large enough for a connected graph of {n} peers, got {k}; "
        "use 4 or more",
    )


@topologies.register("barabasi-albert")
def barabasi_albert(n: int, *, m: int = 2, seed: int = 0) -> nx.Graph:
    """Let each new peer connect to m popular ones: few hubs, many leaves.

    Args:
        n: Number of peers, above ``m``.
        m: Edges that a new peer brings, at least 1.
        seed: Of the draw.

    Returns:
        The graph, always connected.

    References:
        Barabasi and Albert (1999), Emergence of scaling in random networks.
    """
    _validate.integer(m=m, at_least=1)
    n = _peers(n, at_least=m + 1)
    check_size(n, m * (n - m))
    return _connected(
        lambda generator: nx.barabasi_albert_graph(n, m, seed=generator),
        seed,
        f"m: must be at least 1, got {m}",
    )


@topologies.register("stochastic-block")
def stochastic_block(
    n: int, *, blocks: int = 2, p_in: float = 0.6, p_out: float = 0.1, seed: int = 0
) -> nx.Graph:
    """Connect peers often within their community and seldom across.

    Args:
        n: Number of peers, at least two per block.
        blocks: Number of communities of (nearly) equal size, at least 1.
        p_in: Probability of an edge within a community, in (0, 1].
        p_out: Probability of an edge across, in [0, 1].
        seed: Of the draw.

    Returns:
        A connected draw; the node attribute ``block`` is a peer's community.

    References:
        Holland, Laskey and Leinhardt (1983), Stochastic blockmodels: first steps.
    """
    _validate.integer(blocks=blocks, at_least=1)
    _validate.number(p_in=p_in, above=0.0, at_most=1.0)
    _validate.number(p_out=p_out, at_least=0.0, at_most=1.0)
    n = _peers(n, at_least=2 * blocks)
    inside = n / blocks
    check_size(n, n * ((inside - 1) * p_in + (n - inside) * p_out) / 2)
    sizes = [n // blocks + (b < n % blocks) for b in range(blocks)]
    # NetworkX divides by log(1 - p): 0 for a chance that 1 does not notice.
    inner, outer = (p if 1.0 - p < 1.0 else 0.0 for p in (p_in, p_out))
    chance = [
        [inner if a == b else outer for b in range(blocks)] for a in range(blocks)
    ]
    graph = _connected(
        lambda generator: nx.stochastic_block_model(sizes, chance, seed=generator),
        seed,
        f"p_in, p_out: must be large enough for a connected graph of {n} peers in "
        f"{blocks} blocks, got {p_in:g} and {p_out:g}; raise them",
    )
    block = np.repeat(np.arange(blocks), sizes).tolist()
    nx.set_node_attributes(graph, dict(enumerate(block)), "block")
    return graph


@topologies.register("hypercube")
def hypercube(n: int) -> nx.Graph:
    """Connect peers whose numbers differ in one binary digit; log2(n) neighbours each.

    Args:
        n: Number of peers, a power of 2, at least 2.

    Returns:
        The hypercube.

    Raises:
        InvalidArgumentError: If ``n`` is not a power of 2; names the nearest two.
    """
    n = _peers(n, at_least=2)
    if n & (n - 1):
        low = 1 << (n.bit_length() - 1)
        raise InvalidArgumentError(
            f"n: must be a power of 2, got {n}; near it {low} and {2 * low} work"
        )
    digits = [1 << k for k in range(n.bit_length() - 1)]
    return _graph(n, ((i, i ^ digit) for i in range(n) for digit in digits))


@topologies.register("exponential")
def exponential(n: int) -> nx.DiGraph:
    """Send to the peers 1, 2, 4, 8, ... places on; directed, mix it with ``uniform``.

    Args:
        n: Number of peers, at least 2.

    Returns:
        The static exponential graph: ceil(log2(n)) arcs leave and reach each peer.

    References:
        Ying et al. (2021), Exponential graph is provably efficient for decentralized
        deep training, section 3.
    """
    n = _peers(n, at_least=2)
    jumps = [1 << k for k in range((n - 1).bit_length())]
    arcs = ((i, (i + jump) % n) for i in range(n) for jump in jumps)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(sorted(arcs))
    return graph


@topologies.register("single")
def single(n: int = 1) -> nx.Graph:
    """Take one peer alone: centralized training is gossip on this network.

    Args:
        n: Number of peers, 1.

    Returns:
        The graph of one node.
    """
    _validate.integer(n=n, at_least=1, at_most=1, why="use another family for more")
    return _graph(1, ())


def _peers(n: int, *, at_least: int) -> int:
    _validate.integer(n=n, at_least=at_least)
    check_size(n, 0)
    return int(n)


def _graph(n: int, edges: Iterable[tuple[int, int]]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(sorted(tuple(sorted(edge)) for edge in edges))
    return graph


def _square_rows(n: int) -> int | None:
    """Largest divisor of n up to its root, if it is at least 3."""
    fit = [r for r in range(3, math.isqrt(n) + 1) if n % r == 0]
    return fit[-1] if fit else None


def _connected(
    draw: Callable[[np.random.Generator], nx.Graph], seed: int, advice: str
) -> nx.Graph:
    """Draw with counted keys until the graph is connected."""
    _validate.integer(seed=seed, at_least=0)
    for count in range(MAX_DRAWS):
        found = draw(RngTree(seed).numpy("topology", draw=count))
        graph = _graph(found.number_of_nodes(), found.edges)
        if nx.is_connected(graph):
            return graph
    raise DisconnectedGraphError(
        f"{advice}; all of {MAX_DRAWS} draws from seed {seed} fell apart"
    )
