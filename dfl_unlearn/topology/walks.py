r"""Random walks on a network: where a token is, how long it stays away, what it sends.

A token is held by one peer at a time. At every hop it restarts at its source u with
probability :math:`\pi_r`, else it moves by the transition matrix P: from peer i to peer
j with probability ``P[i, j]``. A *segment* lasts from one visit of u to the next; with
``avoid=u`` only a restart leads to u, so that segments are geometric on every graph.

=====================  ==============================
symbol                 name here
=====================  ==============================
:math:`P`              ``transition``, shape ``(N, N)``
:math:`\pi`            ``law``, shape ``(N,)``
:math:`\pi_r`          ``restart``
:math:`u`              ``source``
=====================  ==============================

Sources: the token walk with restarts is the one of Lamri and Maniatakos (2025), Fully
decentralized certified unlearning [notes: read in public summaries only]. Everything
computed here is standard Markov chain algebra [derived]: Levin, Peres and Wilmer
(2009), Markov chains and mixing times, chapters 1, 3 and 10 [recalled].
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.sparse import (
    coo_array,
    csc_array,
    csgraph,
    csr_array,
    diags_array,
    eye_array,
)
from scipy.sparse.linalg import spsolve

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    TopologyError,
    UnknownPeerError,
)
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.mixing import TOLERANCE, Matrix, adjacency

Walk = Literal["uniform", "mh"]
WALKS: tuple[Walk, ...] = get_args(Walk)


def walk_matrix(
    topology: Topology,
    walk: Walk = "uniform",
    *,
    lazy: float = 0.0,
    avoid: int | None = None,
) -> csr_array:
    r"""Return the transition matrix of a walk on an undirected network.

    ``uniform`` moves to every neighbour with equal probability; its stationary law is
    proportional to the degree. ``mh`` (Metropolis-Hastings) moves along an edge with
    probability :math:`1/\max(d_i, d_j)` and stays otherwise; its stationary law is
    uniform on every connected graph.

    Args:
        topology: Undirected, with at least two peers. Its weights play no role.
        walk: ``uniform`` or ``mh``.
        lazy: Probability :math:`\kappa` of staying before P is asked:
            :math:`(1-\kappa)P + \kappa I`; in [0, 1).
        avoid: A peer u that the walk never moves to and never stays at: each row is
            conditioned on that. Leaving u, after a restart there, is allowed.

    Returns:
        P, CSR float64 with sorted indices, shape ``(N, N)``, rows summing to 1.

    Raises:
        TopologyError: If the network is directed or has one peer, or if a peer's only
            neighbour is the one to avoid.
        UnknownPeerError: If there is no peer ``avoid``.

    References:
        Metropolis et al. (1953); the form without self-weight is the one of Lamri and
        Maniatakos (2025) [notes].
    """
    _validate.one_of(WALKS, walk=walk)
    _validate.number(lazy=lazy, at_least=0.0, below=1.0)
    _check_walkable(topology)
    links = coo_array(adjacency(topology.graph))
    rows, columns = links.coords
    degrees = np.bincount(rows, minlength=topology.n)
    if walk == "uniform":
        moves = 1.0 / degrees[rows]
    else:
        moves = 1.0 / np.maximum(degrees[rows], degrees[columns])
    moving = csr_array(coo_array((moves, (rows, columns)), shape=links.shape))
    rest = 1.0 - moving.sum(axis=1)
    rest[rest < 1e-14 * degrees] = 0.0  # what rounding left of d (1/d)
    transition = csr_array((1.0 - lazy) * (moving + diags_array(rest)))
    if lazy > 0:
        transition = csr_array(transition + lazy * eye_array(topology.n))
    if avoid is not None:
        transition = _conditioned(topology, transition, avoid)
    transition.eliminate_zeros()
    scale = 1.0 / transition.sum(axis=1)
    transition = csr_array(diags_array(scale) @ transition)
    transition.sort_indices()
    return transition


def restart_law(transition: Matrix, source: int, restart: float) -> NDArray[np.float64]:
    r"""Return where the token is in the long run, when it restarts at its source.

    .. math:: \pi = \pi_r\, e_u^\top (I - (1 - \pi_r) P)^{-1},

    the only solution of :math:`\pi = \pi_r e_u^\top + (1 - \pi_r)\,\pi P`.

    Args:
        transition: P, shape ``(N, N)``, rows summing to 1.
        source: The peer u of the restarts.
        restart: :math:`\pi_r` in (0, 1].

    Returns:
        The stationary law, shape ``(N,)``, summing to 1.

    Raises:
        InvalidArgumentError: If P is not stochastic, or restart not in (0, 1].
        UnknownPeerError: If there is no peer ``source``.

    Example:
        >>> import networkx as nx
        >>> ring = Topology.from_graph(nx.cycle_graph(8))
        >>> law = restart_law(walk_matrix(ring), source=0, restart=0.2)
        >>> print(law.round(6)[:3])
        [0.335948 0.169935 0.088889]
    """
    chain = _chain(transition)
    n = chain.shape[0]
    _check_peer(n, source=source)
    _check_restart(restart)
    system = csc_array(eye_array(n) - (1.0 - restart) * chain.T)
    start = np.zeros(n)
    start[source] = restart
    law = np.maximum(np.atleast_1d(spsolve(system, start)), 0.0)
    normed: NDArray[np.float64] = law / law.sum()
    return normed


def hitting_times(transition: Matrix, target: int) -> NDArray[np.float64]:
    r"""Return how many hops a walk needs on average to reach a peer.

    The least solution of :math:`h_v = 1 + \sum_w P_{vw} h_w` with
    :math:`h_{target} = 0`.

    Args:
        transition: P, shape ``(N, N)``, rows summing to 1.
        target: A peer.

    Returns:
        Mean numbers of hops, shape ``(N,)``; 0 at the target, infinite where the walk
        may never arrive.

    Raises:
        InvalidArgumentError: If P is not stochastic.
        UnknownPeerError: If there is no such peer.
    """
    chain = _chain(transition)
    n = chain.shape[0]
    _check_peer(n, target=target)
    times = np.where(_may_miss(chain, target), np.inf, 0.0)
    inner = np.flatnonzero(np.isfinite(times) & (np.arange(n) != target))
    if inner.size:
        system = csc_array(eye_array(inner.size) - chain[inner][:, inner])
        times[inner] = np.atleast_1d(spsolve(system, np.ones(inner.size)))
    return times


def visit_weights(law: ArrayLike, most: float = 10.0) -> NDArray[np.float64]:
    r"""Return the step weights that make an uneven walk follow the mean objective.

    A step at v of size :math:`\eta w_v` with :math:`w_v = 1/(N\pi_v)` moves the token
    by :math:`-\eta \sum_v \pi_v w_v \nabla f_v = -\eta \nabla F` on average [derived].
    Clipping gives up part of that at peers that are rarely visited.

    Args:
        law: :math:`\pi`, shape ``(N,)``, non-negative and summing to 1.
        most: Largest weight, above 0.

    Returns:
        Weights, shape ``(N,)``, in (0, most].
    """
    pi = _law(law)
    _validate.number(most=most, above=0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.minimum(1.0 / (pi.size * pi), most)


def expected_messages(
    topology: Topology, law: ArrayLike, source: int, restart: float
) -> float:
    r"""Return a bound on the mean number of messages per hop.

    A move sends one message (none when the token stays); a restart is routed along a
    shortest path: :math:`(1 - \pi_r) + \pi_r\, \mathbb{E}_{v \sim \pi}\, d(v, u)`.

    Args:
        topology: Undirected, with N peers.
        law: Where the token is before a hop, shape ``(N,)``, e.g. ``restart_law``.
        source: The peer u of the restarts.
        restart: :math:`\pi_r` in (0, 1].

    Returns:
        Messages per hop; exact for walks that never stay.

    Raises:
        TopologyError: If the network is directed or has one peer.
        InvalidArgumentError: If the law does not have one entry per peer.
    """
    _check_walkable(topology)
    pi = _law(law)
    if pi.size != topology.n:
        raise InvalidArgumentError(
            f"law: must have one entry for each of {topology.n} peers, got {pi.size}"
        )
    _check_restart(restart)
    return float((1.0 - restart) + restart * (pi @ topology.hops(source)))


def next_hops(topology: Topology, target: int) -> NDArray[np.int64]:
    """Return where every peer forwards what is on its way to a target.

    Args:
        topology: Undirected.
        target: A peer.

    Returns:
        Shape ``(N,)``: of the neighbours one hop nearer to the target, the one with the
        lowest index; the target itself at the target.

    Raises:
        TopologyError: If the network is directed or has one peer.
        UnknownPeerError: If there is no such peer.
    """
    _check_walkable(topology)
    distance = topology.hops(target)
    rows, columns = coo_array(adjacency(topology.graph)).coords
    nearer = distance[columns] == distance[rows] - 1
    following = np.full(topology.n, topology.n, dtype=np.int64)
    following[target] = target
    np.minimum.at(following, rows[nearer], columns[nearer])
    return following


def shortest_path(topology: Topology, source: int, target: int) -> list[int]:
    """Return the peers along a shortest path, always the same one.

    Args:
        topology: Undirected.
        source: Where the path begins.
        target: Where it ends.

    Returns:
        Both ends and all peers between them, by ``next_hops``.

    Raises:
        TopologyError: If the network is directed or has one peer.
        UnknownPeerError: If there is no such peer.
    """
    _check_walkable(topology)
    _check_peer(topology.n, source=source)
    following = next_hops(topology, target)
    path = [int(source)]
    while path[-1] != target:
        path.append(int(following[path[-1]]))
    return path


def segment_law(restart: float, length: int) -> NDArray[np.float64]:
    r"""Return how many steps a segment takes elsewhere, when only restarts lead back.

    .. math:: P(h) = \pi_r (1 - \pi_r)^h, \quad h = 0, 1, \dots

    of mean :math:`(1 - \pi_r)/\pi_r` and variance :math:`(1 - \pi_r)/\pi_r^2`. The gap
    between two visits is h + 1.

    Args:
        restart: :math:`\pi_r` in (0, 1].
        length: Number of values, at least 1.

    Returns:
        Probabilities of h = 0 .. length - 1, shape ``(length,)``.
    """
    _check_restart(restart)
    _validate.integer(length=length, at_least=1)
    law: NDArray[np.float64] = restart * np.power(1.0 - restart, np.arange(length))
    return law


def visits_law(restart: float, hops: int) -> NDArray[np.float64]:
    r"""Return the law of the number of visits, :math:`1 + Bin(T - 1, \pi_r)`.

    The first hop is a visit; later ones are restarts (no other move leads to u).

    Args:
        restart: :math:`\pi_r` in (0, 1].
        hops: T, at least 1.

    Returns:
        Probabilities of K = 0 .. T, shape ``(T + 1,)``; that of 0 visits is 0.
    """
    _check_restart(restart)
    _validate.integer(hops=hops, at_least=1)
    law = stats.binom.pmf(np.arange(-1, hops), hops - 1, restart)
    return np.asarray(law, dtype=np.float64)


def draw_holders(
    transition: Matrix,
    source: int,
    restart: float,
    hops: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw who holds the token at every hop; the first holder is the source.

    Args:
        transition: P, shape ``(N, N)``, rows summing to 1.
        source: The peer of the restarts.
        restart: Probability of a restart at each hop after the first, in (0, 1].
        hops: T, at least 1.
        generator: Two uniforms are taken for each hop after the first, whether the
            second is used or not.

    Returns:
        Holders, shape ``(T,)``.

    Raises:
        InvalidArgumentError: If P is not stochastic, or restart not in (0, 1].
        UnknownPeerError: If there is no peer ``source``.
    """
    chain = _chain(transition)
    n = chain.shape[0]
    _check_peer(n, source=source)
    _check_restart(restart)
    _validate.integer(hops=hops, at_least=1)
    holders = np.full(hops, source, dtype=np.int64)
    uniforms = generator.random((hops - 1, 2))
    for t, (coin, place) in enumerate(uniforms, start=1):
        if coin < restart:
            continue
        begin, end = chain.indptr[holders[t - 1] : holders[t - 1] + 2]
        reached = np.cumsum(chain.data[begin:end])
        step = int(np.searchsorted(reached, place * reached[-1], side="right"))
        holders[t] = chain.indices[begin + min(step, end - begin - 1)]
    return holders


def refuse_dead_ends(topology: Topology, avoid: int) -> None:
    """Refuse a walk that avoids a peer which is somebody's only neighbour.

    Args:
        topology: The network.
        avoid: The peer that the walk never moves to.

    Raises:
        TopologyError: If a peer has no other neighbour.
        UnknownPeerError: If there is no peer ``avoid``.
    """
    _check_peer(topology.n, avoid=avoid)
    alone = [v for v in topology.graph[avoid] if topology.graph.degree[v] == 1]
    if alone:
        raise TopologyError(
            f"avoid: every other peer must have a neighbour besides peer {avoid}, got "
            f"peer {min(alone)} with none; allow visits of peer {avoid} "
            "(natural_visit='relay' or 'noisy') or add an edge"
        )


def _conditioned(topology: Topology, transition: csr_array, avoid: int) -> csr_array:
    """Drop every move to a peer, and staying there; the caller scales the rows."""
    refuse_dead_ends(topology, avoid)
    entries = coo_array(transition)
    rows, columns = entries.coords
    keep = columns != avoid
    return csr_array(
        coo_array(
            (entries.data[keep], (rows[keep], columns[keep])), shape=transition.shape
        )
    )


def _may_miss(chain: csr_array, target: int) -> NDArray[np.bool_]:
    """Tell from where the walk may get to a place that does not lead to the target."""
    n = chain.shape[0]
    back = csr_array(chain.T)
    lost = ~np.isfinite(csgraph.dijkstra(back, unweighted=True, indices=target))
    if not lost.any():
        return np.zeros(n, dtype=bool)
    entries = coo_array(chain)
    rows, columns = entries.coords
    keep = (rows != target) & (columns != target)
    open_back = csr_array(
        coo_array((entries.data[keep], (columns[keep], rows[keep])), shape=chain.shape)
    )
    far = csgraph.dijkstra(
        open_back, unweighted=True, indices=np.flatnonzero(lost), min_only=True
    )
    missing: NDArray[np.bool_] = np.isfinite(far)
    return missing


def _chain(transition: Matrix) -> csr_array:
    try:
        chain = csr_array(transition, dtype=np.float64, copy=True)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            "transition: must be a NumPy array or a SciPy sparse matrix, "
            f"got {type(transition).__name__}"
        ) from error
    if chain.ndim != 2 or chain.shape[0] != chain.shape[1] or not chain.shape[0]:
        raise InvalidArgumentError(
            f"transition: must be a square matrix, got shape {chain.shape}"
        )
    chain.sum_duplicates()
    chain.eliminate_zeros()
    if not (chain.data > 0).all():  # False for NaN too
        raise InvalidArgumentError(
            f"transition: must have no negative entry, got {chain.data.min():g}"
        )
    sums = chain.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1.0)))
    if not abs(sums[worst] - 1.0) <= TOLERANCE:
        raise InvalidArgumentError(
            f"transition: row {worst} must sum to 1, got {sums[worst]:.12g}; "
            "use walk_matrix"
        )
    return chain


def _law(law: ArrayLike) -> NDArray[np.float64]:
    pi = np.asarray(law, dtype=np.float64)
    ok = pi.ndim == 1 and pi.size > 0 and bool((pi >= 0).all())
    if not ok or not abs(pi.sum() - 1.0) <= TOLERANCE:
        raise InvalidArgumentError(
            "law: must be non-negative numbers that sum to 1, "
            f"got {_validate.show(pi.tolist())}"
        )
    return pi


def _check_restart(restart: float) -> None:
    _validate.number(restart=restart, above=0.0, at_most=1.0)


def _check_peer(n: int, **named: Any) -> None:
    _validate.integer(at_least=0, at_most=n - 1, error=UnknownPeerError, **named)


def _check_walkable(topology: Topology) -> None:
    _validate.of_type(Topology, topology=topology)
    if topology.directed:
        raise TopologyError(
            "topology: must be undirected for a token walk, got a directed one "
            f"({_validate.show(topology.name)}); give every arc its way back"
        )
    if topology.n < 2:
        raise TopologyError(
            "topology: must have at least 2 peers for a token walk, got 1; a single "
            "model needs no token"
        )
