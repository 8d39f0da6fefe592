r"""How many samples may go before utility is lost, and how fast a walk converges.

Nothing here is a privacy claim: these are statements about accuracy, with capacities
rounded down. Symbols: :math:`L` ``gradient_bound``, :math:`\lambda`
``strong_convexity``, :math:`\beta` ``smoothness``, :math:`M` ``hessian_lipschitz``,
:math:`N` ``peers``, :math:`n_u` ``samples`` of the requester, :math:`m` samples to
forget, :math:`p` ``parameters``, :math:`\gamma` ``tolerance`` of the excess loss,
:math:`D` ``diameter`` of the set of models, :math:`G` ``second_moment`` of an update,
:math:`B` ``bias`` and :math:`V` ``variance`` of an update
:math:`-\eta(\nabla F^- + b + \xi)`.

A walk's holders are correlated from hop to hop. The rates below are for independent
updates; with T replaced by T over the mixing time they are a guide for walks, not a
theorem.

References:
    Sekhari et al. (2021), Remember what you want to forget, for the notion of deletion
    capacity and its centralized law [recalled]. Shamir and Zhang (2013), Stochastic
    gradient descent for non-smooth optimization, for last iterates [recalled].
"""

import math

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.gaussian import Calibration, gaussian_noise_std
from dfl_unlearn.errors import InvalidArgumentError

_DOWN = 1 - 32 * float(np.finfo(np.float64).eps)


# --- capacities ---------------------------------------------------------------------


def deletion_capacity(
    *,
    peers: int,
    samples: int,
    gradient_bound: float,
    strong_convexity: float,
    hessian_lipschitz: float,
    parameters: int,
    tolerance: float,
    epsilon: float,
    delta: float,
    calibration: Calibration = "analytic",
) -> float:
    r"""Return how many samples a Newton correction with noise can forget.

    One Newton step from the exact minimizer, with fixed normalization, is off by at
    most :math:`\Delta = M m^2 L^2/(2\lambda^3 N^2 n_u^2)`. With noise
    :math:`\sigma = s(\varepsilon, \delta)\,\Delta` the excess loss
    :math:`L\sigma\sqrt{p}` stays below the tolerance up to

    .. math:: m^* = N n_u \sqrt{\frac{2\lambda^3\gamma}{M L^3\, s\,\sqrt{p}}},

    the square root of epsilon and the fourth root of p of the centralized law
    [derived].

    Args:
        peers: N, at least 1.
        samples: :math:`n_u`, at least 1.
        gradient_bound: L, above 0.
        strong_convexity: :math:`\lambda`, above 0.
        hessian_lipschitz: M, at least 0; 0 (quadratics) sets no limit.
        parameters: p, at least 1.
        tolerance: :math:`\gamma`, above 0.
        epsilon: Above 0.
        delta: In (0, 1).
        calibration: How s is found; ``classic`` is the closed form of the literature,
            at any epsilon, and gives less.

    Returns:
        :math:`m^*` as a real number, rounded down, at most ``samples``.

    Example:
        >>> common = dict(peers=10, samples=1000, gradient_bound=1.0, parameters=50,
        ...     strong_convexity=0.1, hessian_lipschitz=0.09623, tolerance=0.1)
        >>> round(deletion_capacity(**common, epsilon=1.0, delta=1e-5), 1)
        88.8
    """
    _check_network(peers, samples)
    _validate.number(
        above=0.0,
        gradient_bound=gradient_bound,
        strong_convexity=strong_convexity,
        tolerance=tolerance,
    )
    _validate.number(at_least=0.0, hessian_lipschitz=hessian_lipschitz)
    scale = _noise_per_norm(epsilon, delta, parameters, calibration)
    if hessian_lipschitz == 0:
        return float(samples)
    room = 2 * strong_convexity**3 * tolerance / hessian_lipschitz
    most = peers * samples * math.sqrt(room / gradient_bound**3 / scale)
    return min(float(samples), most * _DOWN)


def walk_deletion_capacity(
    *,
    peers: int,
    samples: int,
    gradient_bound: float,
    diameter: float,
    tolerance: float,
    optimization_error: float,
) -> int:
    r"""Return how many samples a walk with ``corrected`` alignment can forget.

    Its mean update is off by at most :math:`B = mL/(N n_u)` from retraining with local
    means, which costs :math:`B D` on top of the optimization error A of
    ``convex_rate``:

    .. math:: m^* = \lfloor (\gamma - A)\,N n_u/(D L) \rfloor

    and 0 where A alone is above the tolerance [derived; the source's
    :math:`(\gamma - A)\,n_u/L` up to constants, notes].

    Args:
        peers: N, at least 1.
        samples: :math:`n_u`, at least 1.
        gradient_bound: L, above 0.
        diameter: D, above 0.
        tolerance: :math:`\gamma`, above 0.
        optimization_error: A, at least 0.

    Returns:
        :math:`m^*`, at most ``samples``.
    """
    _check_network(peers, samples)
    _validate.number(
        above=0.0,
        gradient_bound=gradient_bound,
        diameter=diameter,
        tolerance=tolerance,
    )
    _validate.number(at_least=0.0, optimization_error=optimization_error)
    room = max(tolerance - optimization_error, 0.0)
    most = room * peers * samples / (diameter * gradient_bound)
    return min(samples, math.floor(min(most, samples + 1.0) * _DOWN))


def release_deletion_capacity(
    *,
    peers: int,
    samples: int,
    gradient_bound: float,
    strong_convexity: float,
    parameters: int,
    tolerance: float,
    epsilon: float,
    delta: float,
    decay: float = 1.0,
    calibration: Calibration = "analytic",
) -> float:
    r"""Return how many samples a walk with ``exact`` alignment can forget.

    Its mean update has no bias; what is lost is lost to the noise of the start,
    :math:`s_0 = s(\varepsilon, \delta)\,\Delta_0` with the worst case
    :math:`\Delta_0 = 2mL/(\lambda N (n_u - m))`. Requiring
    :math:`L s_0 \sqrt{p}\, c \le \gamma` gives

    .. math:: m^* = \frac{x}{1 + x}\, n_u, \quad
        x = \frac{\gamma\lambda N}{2 L^2 s \sqrt{p}\, c}.

    [derived, without the approximation :math:`n_u - m \approx n_u`]

    Args:
        peers: N, at least 1.
        samples: :math:`n_u`, at least 1.
        gradient_bound: L, above 0.
        strong_convexity: :math:`\lambda`, above 0.
        parameters: p, at least 1.
        tolerance: :math:`\gamma` that is left for the noise, above 0.
        epsilon: Above 0.
        delta: In (0, 1).
        decay: c, the share of the noise that the walk leaves, in (0, 1].
        calibration: How s is found.

    Returns:
        :math:`m^*` as a real number, rounded down, below ``samples``.
    """
    _check_network(peers, samples)
    _validate.number(
        above=0.0,
        gradient_bound=gradient_bound,
        strong_convexity=strong_convexity,
        tolerance=tolerance,
    )
    _validate.number(above=0.0, at_most=1.0, decay=decay)
    scale = _noise_per_norm(epsilon, delta, parameters, calibration)
    x = tolerance * strong_convexity * peers / (2 * gradient_bound**2 * scale * decay)
    return x / (1 + x) * samples * _DOWN


# --- rates --------------------------------------------------------------------------


def second_moment(
    gradient_bound: float, *, restart: float, parameters: int, noise_std: float
) -> float:
    r"""Return the root mean square of an update's norm, with noise at the visits.

    .. math:: G = \sqrt{L^2 + \pi_r\, p\, \sigma^2}

    Args:
        gradient_bound: L, at least 0.
        restart: :math:`\pi_r` in [0, 1].
        parameters: p, at least 1.
        noise_std: :math:`\sigma`, at least 0.

    Returns:
        G. Averaging mini-batches does not shrink a noise that is drawn once a visit.
    """
    _validate.number(at_least=0.0, gradient_bound=gradient_bound, noise_std=noise_std)
    _validate.number(at_least=0.0, at_most=1.0, restart=restart)
    _validate.integer(at_least=1, parameters=parameters)
    return math.hypot(gradient_bound, math.sqrt(restart * parameters) * noise_std)


def convex_rate(
    *,
    diameter: float,
    second_moment: float,
    steps: int,
    bias: float = 0.0,
    last_iterate: bool = False,
) -> float:
    r"""Return the expected excess loss on a convex objective.

    With the constant rate :math:`D/(G\sqrt{T})` the average of the iterates has
    :math:`DG/\sqrt{T} + BD` [derived]. Without bias the last iterate at rates
    :math:`D/(G\sqrt{t})` has :math:`2DG(2 + \ln T)/\sqrt{T}` [recalled].

    Args:
        diameter: D, at least 0.
        second_moment: G, at least 0.
        steps: T, at least 1.
        bias: B, at least 0.
        last_iterate: For the last iterate; only without bias.

    Returns:
        The bound.

    Raises:
        InvalidArgumentError: If ``last_iterate`` is asked for with a bias.
    """
    _validate.number(
        at_least=0.0, diameter=diameter, second_moment=second_moment, bias=bias
    )
    _validate.integer(at_least=1, steps=steps)
    mean = diameter * second_moment / math.sqrt(steps)
    if not last_iterate:
        return mean + bias * diameter
    if bias > 0:
        raise InvalidArgumentError(
            f"bias: must be 0 with last_iterate, got {bias:g}; take the average iterate"
        )
    return 2 * mean * (2 + math.log(steps))


def strongly_convex_rate(
    *, strong_convexity: float, second_moment: float, steps: int
) -> float:
    r"""Return the expected excess loss of the last iterate, strongly convex.

    :math:`17\,G^2(1 + \ln T)/(\lambda T)` at rates :math:`1/(\lambda t)`, without bias
    [recalled]. A constant bias moves the limit, see ``limit_shift``.

    Args:
        strong_convexity: :math:`\lambda`, above 0.
        second_moment: G, at least 0.
        steps: T, at least 1.

    Returns:
        The bound.
    """
    _validate.number(above=0.0, strong_convexity=strong_convexity)
    _validate.number(at_least=0.0, second_moment=second_moment)
    _validate.integer(at_least=1, steps=steps)
    return 17 * second_moment**2 * (1 + math.log(steps)) / (strong_convexity * steps)


def limit_shift(*, bias: float, strong_convexity: float) -> float:
    r"""Return how far a bias moves the minimizer at most, :math:`B/\lambda` [derived].

    Args:
        bias: B, at least 0.
        strong_convexity: :math:`\lambda`, above 0.

    Returns:
        An L2 distance of parameters.
    """
    _validate.number(at_least=0.0, bias=bias)
    _validate.number(above=0.0, strong_convexity=strong_convexity)
    return bias / strong_convexity


def nonconvex_rate(
    *,
    gap: float,
    learning_rate: float,
    steps: int,
    smoothness: float,
    variance: float,
    bias: float = 0.0,
) -> float:
    r"""Return the mean squared gradient norm over the steps, without convexity.

    .. math:: \frac1T \sum_t \mathbb{E}\lVert\nabla F^-\rVert^2
        \le \frac{2(F_0 - F_*)}{\eta T} + B^2 + \eta\beta V

    for unprojected steps with :math:`\eta \le 1/\beta` [derived: descent lemma, with
    :math:`-\nabla\cdot(\nabla+b)+\tfrac12\lVert\nabla+b\rVert^2 =
    -\tfrac12\lVert\nabla\rVert^2+\tfrac12\lVert b\rVert^2`].

    Args:
        gap: :math:`F_0 - F_*`, at least 0.
        learning_rate: :math:`\eta`, above 0, at most 1 / smoothness.
        steps: T, at least 1.
        smoothness: :math:`\beta`, above 0.
        variance: V, at least 0.
        bias: B, at least 0.

    Returns:
        The bound.

    Raises:
        InvalidArgumentError: If the learning rate is above 1 / smoothness.
    """
    _validate.number(at_least=0.0, gap=gap, variance=variance, bias=bias)
    _validate.number(above=0.0, learning_rate=learning_rate, smoothness=smoothness)
    _validate.integer(at_least=1, steps=steps)
    if not learning_rate * smoothness <= 1 + 1e-12:
        raise InvalidArgumentError(
            f"learning_rate: must be at most 1 / smoothness = {1 / smoothness:g}, got "
            f"{learning_rate:g}; take smaller steps"
        )
    return (
        2 * gap / (learning_rate * steps)
        + bias**2
        + learning_rate * smoothness * variance
    )


def mixing_time(restart: float, distance: float) -> float:
    r"""Return the hops after which a walk has forgotten where it was.

    Every restart renews the walk, so that after t hops the holder's law is within
    :math:`(1 - \pi_r)^t` in total variation of the long run on any graph [derived:
    Doeblin's minorization by :math:`\pi_r e_u`]: :math:`\ln(1/\xi)/\pi_r` hops suffice.

    Args:
        restart: :math:`\pi_r` in (0, 1].
        distance: :math:`\xi` in (0, 1].

    Returns:
        A number of hops, not rounded.
    """
    _validate.number(above=0.0, at_most=1.0, restart=restart, distance=distance)
    return math.log(1 / distance) / restart


# --- helpers ------------------------------------------------------------------------


def _check_network(peers: int, samples: int) -> None:
    _validate.integer(at_least=1, peers=peers, samples=samples)


def _noise_per_norm(
    epsilon: float, delta: float, parameters: int, calibration: Calibration
) -> float:
    """Return s(epsilon, delta) sqrt(p): the norm of the noise for a shift of 1."""
    _validate.integer(at_least=1, parameters=parameters)
    scale = gaussian_noise_std(epsilon, delta, 1.0, calibration, reproduce=True)
    return scale * math.sqrt(parameters)
