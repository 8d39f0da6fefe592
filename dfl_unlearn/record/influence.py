r"""How far a peer's influence has travelled, from W and recorded scalars.

Give peer u's data the weight :math:`\omega` and let :math:`S_i = \partial x_i /
\partial \omega`. Two bounds on it need no gradients of others:

* ``norm_bound`` propagates :math:`s_i \ge \|S_i\|` with the recorded norms of u's batch
  gradients. For convex losses (decentralized-certified 2.2, [derived])

  - cta: :math:`s^+ = (W + (c_i - W_{ii}) I) s + \eta \|g\| e_u`,
    :math:`c_i = \max(W_{ii} - \eta\lambda, \eta\beta - W_{ii})`;
  - atc: :math:`s^+ = W (c\, s + \eta \|g\| e_u)`,
    :math:`c = \max(1 - \eta\lambda, \eta\beta - 1)`;

  c is below 1 under the usual step conditions; above it the bound is valid but grows,
  and is flagged ``vacuous``.
* ``mixing_power`` looks at the network alone: :math:`\frac1T \sum_{k=1}^T (W^k)_{iu}`.

Both are exactly 0 outside the light cone: where no message can have carried the data.
The derivative itself (mode ``exact``) takes a replay of training:
``engine.influence.track_influence``.

What the network alone says: ``first_contact`` (the light cone), ``influence_matrix``
(whom every model comes from) and ``resolvent_weights`` (how a correction of the mean
model is shared out).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path
from scipy.sparse.linalg import spsolve

from dfl_unlearn import _validate
from dfl_unlearn._limits import DENSE_PEERS, check_cap
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingRecordError,
    UnknownPeerError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.round_weights import Inboxes, Mixing, RoundWeights
from dfl_unlearn.record.training import Dynamics, TrainingRecord
from dfl_unlearn.topology.graph import Topology, TopologySchedule

InfluenceMode = Literal["exact", "norm_bound", "mixing_power"]
Form = Literal["atc", "cta"]


@dataclass(frozen=True, kw_only=True)
class InfluenceTrace:
    """One peer's influence on every peer, round by round.

    Attributes:
        source: The peer whose data spread.
        mode: ``exact`` (norms of the derivative :math:`S_i`, the parameters' units),
            ``norm_bound`` (an upper bound of them) or ``mixing_power`` (shares of a
            walk; no training data needed).
        rounds: Rounds completed, shape ``(T',)``.
        norms: Influence on each peer, shape ``(T', N)``, float64, >= 0.
        hops: Hop distance of each peer from the source, shape ``(N,)``.
        vacuous: Whether a peer's bound is too loose to say anything, shape ``(N,)``;
            never for ``exact``.
        vectors: The derivatives themselves, shape ``(T', N, P)`` float64, or None.
    """

    source: int
    mode: InfluenceMode
    rounds: NDArray[np.int64]
    norms: NDArray[np.float64]
    hops: NDArray[np.int64]
    vacuous: NDArray[np.bool_]
    vectors: NDArray[np.float64] | None = None

    def shares(self) -> NDArray[np.float64]:
        """Return each peer's share of the influence, shape ``(T', N)``.

        Rows sum to 1, or are 0 where nothing has happened yet.
        """
        total = self.norms.sum(axis=1, keepdims=True)
        shares: NDArray[np.float64] = np.zeros_like(self.norms)
        np.divide(self.norms, total, out=shares, where=total > 0)
        return shares

    def by_hop(self) -> NDArray[np.float64]:
        """Return the mean share at each hop distance, shape ``(T', diameter+1)``."""
        shares = self.shares()
        means: NDArray[np.float64] = np.stack(
            [
                shares[:, self.hops == h].mean(axis=1)
                for h in range(int(self.hops.max()) + 1)
            ],
            axis=1,
        )
        return means

    def front(self, x: float = 0.1) -> NDArray[np.float64]:
        """Return the first round in which each peer's share reaches x/N.

        Args:
            x: Fraction of the uniform share, > 0.

        Returns:
            Rounds, shape ``(N,)``, float64; inf where it never does.
        """
        _validate.number(x=x, above=0)
        reached = self.shares() >= x / self.norms.shape[1]
        first = self.rounds[reached.argmax(axis=0)].astype(np.float64)
        return np.where(reached.any(axis=0), first, np.inf)

    def effective_spread(self) -> NDArray[np.float64]:
        """Return exp(entropy of the shares), shape ``(T',)``, in [1, N].

        It is the number of peers among which the influence is spread; 0 before any.
        """
        shares = self.shares()
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        spread = np.exp(-(shares * logs).sum(axis=1))
        return np.where(shares.sum(axis=1) > 0, spread, 0.0)

    def distance_to_uniform(self) -> NDArray[np.float64]:
        """Return the total variation distance of the shares to 1/N, ``(T',)``."""
        n = self.norms.shape[1]
        distance: NDArray[np.float64] = 0.5 * np.abs(self.shares() - 1 / n).sum(axis=1)
        return distance


def influence_trace(
    record: TrainingRecord,
    topology: Topology,
    source: int,
    mode: Literal["norm_bound", "mixing_power"] = "norm_bound",
    *,
    gradient_norms: NDArray[np.float64] | None = None,
    mixing: Mixing | None = None,
) -> InfluenceTrace:
    """Return how a peer's influence spread over the rounds of a run.

    Args:
        record: What training left behind.
        topology: The network.
        source: The peer.
        mode: ``norm_bound`` or ``mixing_power``.
        gradient_norms: Norms of the forget set's part of the source's gradients, shape
            ``(T,)``; None takes the whole peer's, as recorded.
        mixing: What mixed in each round of a network that failed, as
            ``engine.influence.mixing_of`` gives it; None is W.

    Returns:
        The trace of all rounds.

    Raises:
        UnknownPeerError: If ``source`` is not a peer.
        InvalidArgumentError: If ``gradient_norms`` has another shape.
        MissingRecordError: If the record lacks gradient norms.
        UnsupportedRequestError: If the training iteration has no such bound, or the
            network failed and ``mixing`` does not say how.
    """
    _validate.one_of(("norm_bound", "mixing_power"), mode=mode)
    _check_peer(topology, source)
    if record.dynamics.faulty and mixing is None:
        raise UnsupportedRequestError(
            "mixing: must be given for a run whose network failed (W is not what mixed "
            "in its rounds), got None; use engine.influence.track_influence"
        )
    if mode == "mixing_power":
        return mixing_power(topology, source, record.rounds, mixing=mixing)
    if gradient_norms is None:
        if record.gradient_norms is None:
            raise MissingRecordError(
                "record: must hold gradient_norms for mode='norm_bound', got none; "
                "train with RecordPlan() or use mode='mixing_power'"
            )
        gradient_norms = record.gradient_norms[:, source]
    dynamics = record.dynamics
    _refuse_unbounded(dynamics)
    if np.shape(gradient_norms) != (record.rounds,):
        raise InvalidArgumentError(
            f"gradient_norms: must have shape ({record.rounds},), got "
            f"{np.shape(gradient_norms)}"
        )
    norms = np.zeros((record.rounds, topology.n))
    s = np.zeros(topology.n)
    grows = np.zeros(topology.n, dtype=bool)
    now = RoundWeights(by_age=(topology.weights,), works=np.ones(topology.n, np.bool_))
    boxes = Inboxes()
    assert dynamics.smoothness is not None
    beta = float(dynamics.smoothness.value)
    for t, (eta, g) in enumerate(zip(record.step_sizes, gradient_norms, strict=True)):
        low, high = (
            eta * (dynamics.scale * b + dynamics.weight_decay * (dynamics.scale > 0))
            for b in (dynamics.decay, beta)
        )
        kick = eta * g
        now = now if mixing is None else mixing(t)
        own, works = now.by_age[0].diagonal(), now.works
        kick *= works[source]
        if dynamics.form == "atc":
            step = np.maximum(1 - low, high - 1)
            factor = np.where(works, step**dynamics.local_steps, 1.0)
            kick *= max(1.0, step[source]) ** (dynamics.local_steps[source] - 1)
            local = factor * s
            local[source] += kick
            s = boxes.mix(now, local)
            grows |= factor > 1
        elif (dynamics.local_steps == 1).all():
            step = np.where(works, np.maximum(own - low, high - own), own)
            s = boxes.mix(now, s) + (step - own) * s
            s[source] += kick
            grows |= step > own
        else:
            # The local change is L(x) - x, and L has Lipschitz factor step**K.
            step = np.maximum(1 - low, high - 1)
            factor = np.maximum(step, 1.0) ** dynamics.local_steps
            kick *= factor[source]
            s = boxes.mix(now, s) + np.where(works, 1 + factor, 0.0) * s
            s[source] += kick
            grows |= True
        norms[t] = s
    return InfluenceTrace(
        source=source,
        mode="norm_bound",
        rounds=np.arange(1, record.rounds + 1),
        norms=norms,
        hops=topology.hops(source),
        vacuous=grows,
    )


def mixing_power(
    topology: Topology, source: int, rounds: int, *, mixing: Mixing | None = None
) -> InfluenceTrace:
    """Return the structure-only influence of a peer: the mean of W's powers.

    Args:
        topology: The network.
        source: The peer.
        rounds: How many powers, T.
        mixing: What mixed in each round of a network that failed; None is W.

    Returns:
        A trace whose row t is ``(1/t) sum_{k=1..t} W^k e_source``, or the same with
        the products of what mixed in the rounds.
    """
    norms = np.zeros((rounds, topology.n))
    power = np.zeros(topology.n)
    power[source] = 1.0
    total = np.zeros(topology.n)
    boxes = Inboxes()
    for t in range(rounds):
        if mixing is None:
            power = topology.weights @ power
            total += power
        else:
            total = boxes.mix(mixing(t), total + power)
        norms[t] = total / (t + 1)
    return InfluenceTrace(
        source=source,
        mode="mixing_power",
        rounds=np.arange(1, rounds + 1),
        norms=norms,
        hops=topology.hops(source),
        vacuous=np.zeros(topology.n, dtype=bool),
    )


def first_contact(topology: Topology, source: int, form: str) -> NDArray[np.int64]:
    """Return the first round after which a peer's data can have moved each peer.

    Before that round the influence is exactly 0 (the light cone).

    Args:
        topology: The network.
        source: The peer.
        form: ``cta`` takes one round to leave the peer, so hop distance + 1; ``atc``
            and ``gradient_tracking`` send what was just learned, so at least 1 and
            else the hop distance.

    Returns:
        Rounds counted from 1, shape ``(N,)``.
    """
    _validate.one_of(("atc", "cta", "gradient_tracking"), form=form)
    hops = topology.hops(source)
    return hops + 1 if form == "cta" else np.maximum(hops, 1)


def influence_matrix(topology: TopologySchedule, rounds: int) -> NDArray[np.float64]:
    r"""Return where every peer's model comes from, by mixing alone.

    :math:`C = \frac1T \sum_{k=1}^{T} W_T \cdots W_k`, which is
    :math:`\frac1T \sum_k W^k` on a network that does not change: what every peer holds
    after T rounds of what each peer added, equally, in each of them. A symmetric W is
    taken apart once, whatever T; otherwise T sparse products. The result is dense:
    more than 2000 peers are refused (``influence_trace`` follows one source).

    Args:
        topology: A network, or a schedule of networks.
        rounds: T >= 1.

    Returns:
        Shape ``(N, N)``; row i says whose additions peer i holds and sums to 1 (for
        row-stochastic W). Exactly 0 outside the light cone.

    Example:
        >>> from dfl_unlearn import load_topology
        >>> influence_matrix(load_topology("ring", n=4), 1)[0].round(3).tolist()
        [0.333, 0.333, 0.0, 0.333]
    """
    _validate.integer(rounds=rounds, at_least=1)
    n = topology.n
    check_cap(DENSE_PEERS, n, "influence_matrix")
    if isinstance(topology, Topology):
        dense = topology.weights.toarray()
        if np.array_equal(dense, dense.T):
            values, basis = np.linalg.eigh(dense)
            gap = 1 - values
            # A geometric series; at the eigenvalue 1 every term is 1.
            near = gap < 1e-12
            series = np.where(
                near,
                1.0,
                values * (1 - values**rounds) / np.where(near, 1.0, gap) / rounds,
            )
            matrix: NDArray[np.float64] = (basis * series) @ basis.T
            if rounds < n - 1:  # farther apart no two peers can be
                apart = shortest_path(topology.weights, unweighted=True)
                matrix[apart > rounds] = 0.0
            return np.maximum(matrix, 0.0)
    total = np.zeros((n, n))
    eye = np.eye(n)
    for t in range(rounds):
        total = topology.at(t).weights @ (total + eye)
    return total / rounds


def resolvent_weights(
    topology: Topology,
    source: int,
    learning_rate: float,
    curvature: float,
    form: Form = "cta",
) -> NDArray[np.float64]:
    r"""Return how much of a mean-model correction each peer is due.

    D-SGD with the uniform curvature h answers a small change of the source's gradient
    by the multiples (decentralized-certified 2.3, [derived])

    - cta: :math:`a = N\eta h\,(I - W + \eta h I)^{-1} e_u`,
    - atc: :math:`a = N\eta h\,(I - (1 - \eta h) W)^{-1} W e_u`

    of the change of the mean; for :math:`\eta h \ll 1 - \rho` all tend to 1.

    Args:
        topology: The network; doubly stochastic weights.
        source: The peer u whose gradient changes.
        learning_rate: Step size, above 0.
        curvature: h, above 0, e.g. the mean of the Hessian's diagonal;
            ``learning_rate * curvature`` at most 1.
        form: ``cta`` or ``atc``.

    Returns:
        a, shape ``(N,)``, >= 0, with sum N.

    Raises:
        UnknownPeerError: If ``source`` is not a peer.
        InvalidArgumentError: If a number is out of bounds or W is not doubly
            stochastic.
    """
    _validate.one_of(("atc", "cta"), form=form)
    _check_peer(topology, source)
    _validate.number(learning_rate=learning_rate, above=0)
    _validate.number(curvature=curvature, above=0)
    step = learning_rate * curvature
    if not step <= 1:
        raise InvalidArgumentError(
            "curvature: times learning_rate must be at most 1, got "
            f"{learning_rate:g} * {curvature:g}; D-SGD does not converge there"
        )
    if topology.stochastic != "doubly":
        raise InvalidArgumentError(
            "topology: must have doubly stochastic weights, got "
            f"{topology.stochastic!r}; use mixing='metropolis-hastings'"
        )
    n, weights = topology.n, topology.weights
    unit = np.zeros(n)
    unit[source] = 1.0
    identity = sp.eye_array(n, format="csr")
    if form == "cta":
        system, right = (1 + step) * identity - weights, unit
    else:
        system, right = identity - (1 - step) * weights, weights @ unit
    if n <= DENSE_PEERS.most:
        solution = np.linalg.solve(system.toarray(), right)
    else:
        solution = spsolve(system.tocsc(), right)
    shares: NDArray[np.float64] = n * step * solution
    return shares


def best_trace(
    record: TrainingRecord,
    topology: Topology,
    source: int,
    *,
    mixing: Mixing | None = None,
) -> InfluenceTrace:
    """Return the norm bound where it says something, else the mixing power."""
    try:
        trace = influence_trace(record, topology, source, "norm_bound", mixing=mixing)
    except (UnsupportedRequestError, MissingRecordError):
        return mixing_power(topology, source, record.rounds, mixing=mixing)
    if trace.vacuous.any():
        return mixing_power(topology, source, record.rounds, mixing=mixing)
    return trace


def _check_peer(topology: Topology, source: int) -> None:
    _validate.integer(source=source)
    if not 0 <= source < topology.n:
        raise UnknownPeerError(
            f"source: must be a peer in 0..{topology.n - 1}, got {source}"
        )


def _refuse_unbounded(dynamics: Dynamics) -> None:
    reasons: Mapping[str, bool] = {
        "the loss is not convex with a known smoothness": not dynamics.convex
        or dynamics.smoothness is None,
        "momentum carries influence in its own state": dynamics.momentum > 0,
        "a gradient tracker carries influence in its own state": dynamics.form
        == "gradient_tracking",
    }
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedRequestError(
                f"mode: must be 'mixing_power' for this run, got 'norm_bound'; {reason}"
            )
