r"""What peers see of one peer's data: token walks, the last model only, gossip.

A token starts at its source u with a release of noise :math:`s_0`, and is changed with
the help of u's data at every later visit of u, with noise :math:`\eta\sigma` for a
shift of :math:`\eta S`. Everything that happens elsewhere is the same map in both
worlds and costs nothing.

=======================  ===================================
symbol                   name here
=======================  ===================================
:math:`\Delta_0`         ``start_shift``
:math:`s_0`              ``start_noise``
:math:`S`                ``visit_sensitivity``
:math:`\sigma`           ``visit_noise``
:math:`K`                ``visits``, the start included
:math:`\pi_r`            ``restart``
=======================  ===================================

All bounds are rounded up. Sources: the theorems on walks are derived here, the
published proof of Lamri and Maniatakos (2025), Fully decentralized certified
unlearning, was not available [notes]; the last model only: Feldman, Mironov, Talwar and
Thakurta (2018), Privacy amplification by iteration [recalled]; gossip: Cyffers, Even,
Bellet and Massoulié (2022), Muffliato [code].
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from dfl_unlearn import _validate
from dfl_unlearn._limits import DENSE_PEERS, check_cap
from dfl_unlearn.accounting.gaussian import compose_gaussians
from dfl_unlearn.accounting.mechanisms import check_scale
from dfl_unlearn.accounting.renyi import rdp_gaussian
from dfl_unlearn.accounting.sampled import rdp_sampled_gaussian
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    SensitivityUnprovenError,
    UnknownPeerError,
)

CYFFERS_KAPPA = 4 * math.sqrt(2)

_EPS = float(np.finfo(np.float64).eps)


# --- token walks --------------------------------------------------------------------


def walk_rdp(
    orders: ArrayLike,
    *,
    start_shift: float,
    start_noise: float,
    visit_sensitivity: float,
    visit_noise: float,
    visits: int,
    rate: float = 1.0,
) -> NDArray[np.float64]:
    r"""Return the Rényi cost of a walk for all other peers together.

    .. math:: \rho(\alpha) = \frac{\alpha\Delta_0^2}{2 s_0^2}
        + (K - 1)\frac{\alpha S^2}{2\sigma^2}

    The proof [derived]: the first message is a Gaussian release with a shift of at
    most :math:`\Delta_0`. Given equal histories, a step elsewhere is the same map in
    both worlds and a step at u is a Gaussian with shift :math:`\eta S` and deviation
    :math:`\eta\sigma`. Adaptive composition adds these up. No convexity is needed; all
    difficulty is in :math:`\Delta_0`. K does not depend on data, so the number of
    visits that took place may be used.

    For worlds that start from the same model (a claim on the transcript only), pass the
    first visit as the start: ``start_shift=S, start_noise=sigma``.

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        start_shift: Largest distance of the two worlds' models at the start, >= 0.
        start_noise: Standard deviation of the first release; 0 costs infinity unless
            the shift is 0.
        visit_sensitivity: Largest change of u's clipped step direction, >= 0; 0 where
            later visits use retained data only, which costs nothing without noise too.
        visit_noise: Standard deviation added to the step direction at each visit.
        visits: K, at least 1: the start and the later visits.
        rate: Hidden probability that a later visit uses the data at all. Below 1 each
            visit must add its noise either way and nobody may see the coin; the visit
            then costs a sampled Gaussian.

    Returns:
        Bounds, shape ``(A,)``.

    Raises:
        NumericalError: If a shift or a noise is not finite.
        InvalidPrivacyParameterError: If one is negative, or the rate outside [0, 1].
    """
    alpha = np.asarray(orders, dtype=np.float64)
    _check_walk(start_shift, start_noise, visit_sensitivity, visit_noise, visits)
    cost = rdp_gaussian(alpha, _multiplier(start_noise, start_shift))
    if visits == 1:
        return cost
    each = rdp_sampled_gaussian(
        alpha, rate, _multiplier(visit_noise, visit_sensitivity)
    )
    return _up(cost + (visits - 1) * each, 4)


def walk_mu(
    *,
    start_shift: float,
    start_noise: float,
    visit_sensitivity: float,
    visit_noise: float,
    visits: int,
) -> float:
    r"""Return the one Gaussian that a walk without subsampling amounts to.

    .. math:: \mu = \sqrt{\Delta_0^2/s_0^2 + (K - 1)\,S^2/\sigma^2}

    Exact composition; ``gaussian_epsilon(mu, delta)`` is smaller than what any order of
    ``walk_rdp`` gives.

    Args:
        start_shift: As in ``walk_rdp``.
        start_noise: As in ``walk_rdp``.
        visit_sensitivity: As in ``walk_rdp``.
        visit_noise: As in ``walk_rdp``.
        visits: K, at least 1.

    Returns:
        Shift over noise, at least 0, rounded up; infinite without noise.

    Raises:
        NumericalError: If a shift or a noise is not finite.
        InvalidPrivacyParameterError: If one is negative.
    """
    _check_walk(start_shift, start_noise, visit_sensitivity, visit_noise, visits)
    start = _mu(start_shift, start_noise)
    if visits == 1:
        return start
    later = math.sqrt(visits - 1) * _mu(visit_sensitivity, visit_noise)
    return compose_gaussians([start, later * (1 + 4 * _EPS)])


def random_visits_rdp(
    orders: ArrayLike,
    *,
    restart: float,
    visit_sensitivity: float,
    visit_noise: float,
    hops: int,
) -> NDArray[np.float64]:
    r"""Return the Rényi cost of visits whose number stays random.

    .. math:: \rho(\alpha) = \frac{T}{\alpha - 1} \ln\Bigl(1 - \pi_r
        + \pi_r\, e^{(\alpha - 1)\alpha S^2/(2\sigma^2)}\Bigr)

    [derived]: the observer sees the visits, whose number is binomial and the same in
    both worlds, so the moment is the average over it. A fixed number of visits, once
    known, costs less or more than this; the mean number alone is no bound.

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        restart: Probability of a visit at each hop, in (0, 1].
        visit_sensitivity: S, >= 0.
        visit_noise: :math:`\sigma`, >= 0.
        hops: Hops T at which a visit is a matter of chance, >= 0. The visit that every
            walk begins with is not among them: a walk of T hops has T - 1, and the cost
            of its start comes on top.

    Returns:
        Bounds, shape ``(A,)``.

    Raises:
        NumericalError: If the shift or the noise is not finite.
        InvalidPrivacyParameterError: If one is negative.
    """
    alpha = np.asarray(orders, dtype=np.float64)
    check_scale(visit_sensitivity=visit_sensitivity, visit_noise=visit_noise)
    _validate.number(restart=restart, above=0.0, at_most=1.0)
    _validate.integer(hops=hops, at_least=0)
    if hops == 0 or visit_sensitivity == 0:
        return np.zeros_like(alpha)
    each = rdp_gaussian(alpha, _multiplier(visit_noise, visit_sensitivity))
    exponent = (alpha - 1) * each
    with np.errstate(over="ignore", divide="ignore"):
        moment = np.where(
            exponent < 30,
            np.log1p(restart * np.expm1(exponent)),
            np.logaddexp(np.log1p(-restart), math.log(restart) + exponent),
        )
    return _up(hops * (moment / (alpha - 1)), 32)


def final_model_rdp(
    orders: ArrayLike,
    *,
    contractions: ArrayLike,
    visits: Sequence[int],
    start_shift: float,
    sensitivity: float,
    noise: float,
    rates: float | Sequence[float],
) -> NDArray[np.float64]:
    r"""Return the Rényi cost for an observer of the last model only.

    .. math:: \rho(\alpha) = \frac{\alpha\,(W_0\Delta_0 + \sum_k \eta_k w_k S)^2}
        {2\sigma^2 \sum_k \eta_k^2 w_k^2}, \quad w_k = \prod_{t > t_k} c_t,\;
        W_0 = \prod_t c_t

    The distance that is left may be taken from any of the visits' noises (privacy
    amplification by iteration), here in proportion to :math:`\eta_k^2 w_k`. That is
    allowed as long as no more is taken than is there at any visit, which is checked:
    it holds for :math:`S = 0`, and for equal rates with no :math:`c_t > 1` [derived].
    The scalar linear case has equality.

    Args:
        orders: Rényi orders, each above 1, shape ``(A,)``.
        contractions: Lipschitz constants :math:`c_t` of the hops' maps, each finite and
            at least 0, shape ``(T,)``. A gradient step of rate
            :math:`\eta \le 2/(\beta + \lambda)` on a :math:`\lambda`-strongly convex,
            :math:`\beta`-smooth objective has :math:`1 - \eta\lambda`; a projection to
            a convex set 1. They must be proven for every hop.
        visits: Hops :math:`t_k`, from 0, strictly increasing, at which noise is added
            after the map.
        start_shift: :math:`\Delta_0`, >= 0; there is no noise at the start.
        sensitivity: S, >= 0.
        noise: :math:`\sigma`, >= 0; a visit adds :math:`\eta_k\sigma`.
        rates: :math:`\eta_k` above 0, one for all or one for each visit.

    Returns:
        Bounds, shape ``(A,)``; infinite where noise is missing.

    Raises:
        SensitivityUnprovenError: If the distance left would be negative at a visit, so
            that the formula is no bound.
        InvalidArgumentError: If shapes, hops or constants are outside what is allowed.
        NumericalError: If a shift or the noise is not finite.
        InvalidPrivacyParameterError: If a shift or the noise is negative.
    """
    alpha = np.asarray(orders, dtype=np.float64)
    check_scale(start_shift=start_shift, sensitivity=sensitivity, noise=noise)
    c, hops, eta = _iteration(contractions, visits, rates)
    if hops.size == 0:
        return rdp_gaussian(alpha, _multiplier(0.0, start_shift))
    # What follows the last visit is the same map in both worlds: it cancels, up to
    # there everything is counted in the units of the last visit.
    c = c[: hops[-1] + 1]
    tail = np.cumprod(np.append(c[1:], 1.0)[::-1])[::-1]  # prod over t > i
    w = tail[hops]
    start = float(tail[0] * c[0] * start_shift)
    if start == 0 and start_shift > 0 and (c > 0).all():
        start = math.ulp(0.0)  # an underflow is not nothing
    arriving = start + np.cumsum(eta * w * sensitivity)
    variance = np.cumsum((eta * w) ** 2)
    shift, spread = float(arriving[-1]), float(variance[-1])
    taken = shift * (variance / spread)
    short = np.flatnonzero(arriving < taken * (1 - 64 * c.size * _EPS))
    if sensitivity > 0 and short.size:
        k = int(short[0])
        raise SensitivityUnprovenError(
            "rates: must leave a distance >= 0 at every visit, got "
            f"{float(arriving[k] - taken[k]):.3g} at visit {k} (hop {hops[k]}), where "
            f"the contraction constants are up to {c.max():g} and the rates from "
            f"{eta.min():g} to {eta.max():g}; use equal rates and maps that do not "
            "expand, or add up all visits with walk_rdp"
        )
    scale = _multiplier(noise * math.sqrt(spread), shift)
    return _up(rdp_gaussian(alpha, scale), 16 * (c.size + 2))


def lamri_noise_std(
    gradient_bound: float,
    epsilon: float,
    delta: float,
    *,
    restart: float,
    hops: int,
    peers: int,
    kappa: float = CYFFERS_KAPPA,
) -> float:
    r"""Return the visit noise of the source's calibration; it proves nothing here.

    .. math:: \sigma = \kappa\,\frac{L}{\varepsilon}
        \sqrt{\pi_r T \ln(1/\delta)\,\frac{\ln N}{N}}

    For published tables. The factor :math:`\ln N / N` comes from networks where every
    peer adds noise. With noise only at u, the steps after a visit are noise-free; where
    they can be inverted, the first observation reveals the visit at its full cost
    :math:`\alpha S^2/(2\sigma^2)`. A certificate with this noise is at most heuristic.

    Args:
        gradient_bound: L, >= 0.
        epsilon: Above 0.
        delta: In (0, 1).
        restart: :math:`\pi_r` in (0, 1].
        hops: T, at least 1.
        peers: N, at least 2.
        kappa: The source's constant is not known; the default is the one of network
            privacy where every peer adds noise.

    Returns:
        The standard deviation of the noise on a step direction.

    References:
        Lamri and Maniatakos (2025) [notes]; kappa: Cyffers and Bellet (2022), Privacy
        amplification by decentralization [code].
    """
    check_scale(gradient_bound=gradient_bound)
    _validate.number(error=InvalidPrivacyParameterError, above=0, epsilon=epsilon)
    _validate.number(error=InvalidPrivacyParameterError, above=0, below=1, delta=delta)
    _validate.number(restart=restart, above=0.0, at_most=1.0)
    _validate.integer(hops=hops, at_least=1)
    _validate.integer(peers=peers, at_least=2)
    _validate.number(kappa=kappa, above=0.0)
    spread = restart * hops * math.log(1 / delta) * math.log(peers) / peers
    return kappa * gradient_bound / epsilon * math.sqrt(spread)


# --- gossip -------------------------------------------------------------------------


def network_dp_pairwise(
    orders: ArrayLike,
    weights: csr_array | NDArray[np.float64],
    *,
    source: int,
    rounds: int,
    noise_multiplier: float,
) -> NDArray[np.float64]:
    r"""Return the published pairwise loss of one gossip phase; no bound on the view.

    .. math:: \varepsilon_{u \to v}(\alpha) = \frac{\alpha}{2\nu^2} \sum_{t < T}
        \sum_{w \in N(v)} \frac{[W^t]_{wu}^2}{\lVert W^t_{w\cdot}\rVert^2}

    Every peer adds noise once to what it holds, then all average; v sees what its
    neighbours send in each of the T rounds. The formula adds up what each message shows
    **alone**. The messages share the same noise, so that seen together they can show
    more [derived]: on the path of four peers, peer 3 recovers peer 0's noised value
    from three rounds exactly, a cost of :math:`\alpha/(2\nu^2)`, of which the formula
    gives 4 per cent. What always holds is the local bound :math:`\alpha/(2\nu^2)`,
    ``rdp_gaussian``. Use this for published figures, never for a certificate above
    heuristic; ``gossip_view`` has what is proven, and what training adds.

    Args:
        orders: Rényi orders, each at least 1, shape ``(A,)``.
        weights: Mixing matrix W, shape ``(N, N)``; v hears from w where
            ``weights[v, w] > 0``.
        source: The peer u whose data it is about.
        rounds: T, at least 0; the first round sends what has not been mixed yet.
        noise_multiplier: :math:`\nu`, noise over sensitivity of one peer's value, > 0.

    Returns:
        One value per order and observer, shape ``(A, N)``; the column of u is what the
        formula gives for u itself.

    Raises:
        InvalidArgumentError: If W is not square or has no finite, non-negative rows.
        UnknownPeerError: If there is no peer ``source``.
        InvalidPrivacyParameterError: If the multiplier is not above 0.

    References:
        Cyffers, Even, Bellet and Massoulié (2022), Muffliato: peer-to-peer privacy
        amplification for decentralized optimization and averaging [code: the authors'
        repository totilas/muffliato].
    """
    alpha = np.asarray(orders, dtype=np.float64)
    if alpha.ndim != 1 or not ((alpha >= 1) & np.isfinite(alpha)).all():
        raise InvalidArgumentError(
            f"orders: must be finite and >= 1, got {_validate.show(orders)}"
        )
    w = csr_array(weights, dtype=np.float64)
    n = w.shape[0]
    if w.shape != (n, n) or not ((w.data >= 0) & np.isfinite(w.data)).all():
        raise InvalidArgumentError(
            "weights: must be a square matrix of finite, non-negative numbers, got "
            f"shape {w.shape}"
        )
    _validate.integer(at_least=0, at_most=n - 1, error=UnknownPeerError, source=source)
    _validate.integer(at_least=0, rounds=rounds)
    _validate.number(
        error=InvalidPrivacyParameterError, above=0, noise_multiplier=noise_multiplier
    )
    check_cap(DENSE_PEERS, n, "network_dp_pairwise")
    heard = (w.toarray() > 0) & ~np.eye(n, dtype=bool)
    power, shown = np.eye(n), np.zeros(n)
    for t in range(rounds):
        power = w @ power if t else power
        shown += power[:, source] ** 2 / (power**2).sum(axis=1)
    total = heard @ shown
    values = alpha[:, None] / 2 / noise_multiplier / noise_multiplier * total
    return np.where(total > 0, _up(values, 16 + 4 * n * max(rounds, 1)), 0.0)


# --- helpers ------------------------------------------------------------------------


def _check_walk(
    start_shift: float,
    start_noise: float,
    visit_sensitivity: float,
    visit_noise: float,
    visits: int,
) -> None:
    check_scale(
        start_shift=start_shift,
        start_noise=start_noise,
        visit_sensitivity=visit_sensitivity,
        visit_noise=visit_noise,
    )
    _validate.integer(visits=visits, at_least=1)


def _iteration(
    contractions: ArrayLike, visits: Sequence[int], rates: float | Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    c = np.asarray(contractions, dtype=np.float64)
    if c.ndim != 1 or not ((c >= 0) & np.isfinite(c)).all():
        raise InvalidArgumentError(
            "contractions: must be one finite number >= 0 for each hop, got "
            f"{_validate.show(c.tolist())}"
        )
    for k, hop in enumerate(visits):
        named: dict[str, Any] = {f"visits[{k}]": hop}
        _validate.integer(at_least=0, at_most=c.size - 1, **named)
    hops = np.array(visits, dtype=np.int64)
    if (np.diff(hops) <= 0).any():
        raise InvalidArgumentError(
            f"visits: must be strictly increasing hops, got {_validate.show(visits)}"
        )
    eta = np.asarray(rates, dtype=np.float64)
    if eta.shape not in {(), hops.shape} or not ((eta > 0) & np.isfinite(eta)).all():
        raise InvalidArgumentError(
            "rates: must be one finite number above 0, or one for each of "
            f"{hops.size} visits, got {_validate.show(rates)}"
        )
    return c, hops, np.broadcast_to(eta, hops.shape)


def _multiplier(noise: float, shift: float) -> float:
    """Noise over shift; infinite for a shift of 0 only."""
    if shift == 0:
        return math.inf
    return min(noise / shift, float(np.finfo(np.float64).max))


def _mu(shift: float, noise: float) -> float:
    if shift == 0:
        return 0.0
    return shift / noise if noise else math.inf


def _up(values: NDArray[np.float64], ulps: int) -> NDArray[np.float64]:
    """Round up by some units in the last place; 0 stays 0."""
    raised: NDArray[np.float64] = np.nextafter(values * (1 + ulps * _EPS), np.inf)
    return np.where(values == 0, 0.0, raised)
