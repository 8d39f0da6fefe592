r"""How far gradient descent without some rows ends from gradient descent with them.

Train T steps on n rows, go back to the state after T - K of them, and take the last K
steps on the n - m rows that stay. With per-sample gradients of norm at most G, the
gradients of the two mean losses differ by at most :math:`2mG/n` anywhere; with a step
on the retained rows that is c-Lipschitz, the end is from retraining at most

.. math:: \Delta(K) = \frac{2\eta m G}{n}\, c^K \sum_{i=0}^{T-K-1} c^i

away, where c is :math:`1 + \eta L` in general, 1 for a convex loss with
:math:`\eta \le 2/L`, and :math:`\max(|1-\eta\mu|, |1-\eta L|)` for a mu-strongly convex
one with :math:`\eta < 2/L` [derived]. A start that is off by e adds :math:`c^K e`.

The *published* bound [paper, theorem 3.1; its h(K): code of the authors] splits
training on all rows off another way and is never smaller:
:math:`\frac{2mG}{Ln}((1 + \eta L \frac{n}{n-m})^{T-K} - 1)(1 + \eta L)^K`.

All bounds are about full-batch steps of one constant size without momentum. They are
rounded up; where one does not fit a float64 it is infinite.

==========  ===================  ======================================
symbol      name here            meaning
==========  ===================  ======================================
K, T        rewind_steps, steps  steps taken again, steps of training
eta         learning_rate        step size
L, mu       smoothness,          curvature of the mean loss of retained
            strong_convexity     rows, above and below
G           gradient_bound       norm of a row's gradient
m, n        forget, samples      rows that go, rows of training
==========  ===================  ======================================

References:
    Mu and Klabjan (2025), Rewind-to-delete: certified machine unlearning for nonconvex
    functions.
"""

import math
from typing import Literal, get_args

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.errors import InvalidPrivacyParameterError, SensitivityUnprovenError

Regime = Literal["nonconvex", "convex", "strongly_convex"]
TrajectoryBound = Literal["tight", "published"]

_ULP = 16 * float(np.finfo(np.float64).eps)
_TINY = math.ulp(0.0)


def trajectory_sensitivity(
    *,
    rewind_steps: int,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
    regime: Regime = "nonconvex",
    strong_convexity: float = 0.0,
    bound: TrajectoryBound = "tight",
    start_error: float = 0.0,
) -> float:
    """Return how far rewinding ends from retraining at most.

    Args:
        rewind_steps: K, 0 .. T; T is retraining itself.
        steps: T, at least 1.
        learning_rate: eta > 0.
        smoothness: L >= 0.
        gradient_bound: G >= 0.
        forget: m, 0 .. n - 1, all rows removed so far.
        samples: n >= 1, the rows that training began with.
        regime: What is known of the loss.
        strong_convexity: mu > 0 with ``strongly_convex``.
        bound: ``tight``, or ``published`` (``nonconvex`` only).
        start_error: e >= 0, distance of the start from the state of training.

    Returns:
        Delta >= 0 in the units of the parameters, rounded up; may be infinite.

    Raises:
        SensitivityUnprovenError: If no such bound holds for the step size.
        InvalidPrivacyParameterError: If a number is outside its range.

    Example:
        >>> bound = trajectory_sensitivity(
        ...     rewind_steps=10, steps=20, learning_rate=0.1, smoothness=1.0,
        ...     gradient_bound=1.0, forget=10, samples=1000, regime="convex",
        ... )
        >>> round(bound, 12)
        0.02
    """
    wrong = InvalidPrivacyParameterError
    _check_descent(steps, learning_rate, smoothness, gradient_bound, forget, samples)
    _validate.integer(error=wrong, rewind_steps=rewind_steps, at_least=0, at_most=steps)
    _validate.number(error=wrong, start_error=start_error, at_least=0)
    _validate.one_of(get_args(TrajectoryBound), bound=bound)
    if bound == "published" and regime != "nonconvex":
        raise SensitivityUnprovenError(
            f"bound: must be 'tight' with regime {regime!r}, got 'published', which "
            "is about losses that need not be convex"
        )
    later = _excess(learning_rate, smoothness, regime, strong_convexity)
    earlier, divisor = later, samples
    if bound == "published":
        divisor = samples - forget
        earlier *= samples / divisor
    growth = rewind_steps * _log1p(later) if rewind_steps else 0.0
    total = _scaled(start_error, growth)
    moves = start_error > 0
    slack = _ULP * (4 + (abs(growth) if math.isfinite(growth) else 0.0))
    if forget and gradient_bound and rewind_steps < steps:
        push = _up(2 * learning_rate * forget * gradient_bound / divisor)
        reach, error = _geometric(earlier, steps - rewind_steps)
        total += _scaled(push * reach, growth)
        slack += error
        moves = True
    if not moves or growth == -math.inf:  # nothing to carry, or c = 0 drops it
        return 0.0
    return max(total * (1 + slack), total + 8 * _TINY)


def step_contraction(
    *,
    learning_rate: float,
    smoothness: float,
    regime: Regime = "nonconvex",
    strong_convexity: float = 0.0,
) -> float:
    """Return c, the factor by which one step at most stretches distances.

    Args:
        learning_rate: eta > 0.
        smoothness: L >= 0.
        regime: What is known of the loss.
        strong_convexity: mu > 0 with ``strongly_convex``.

    Returns:
        At least 0, rounded up; below 1 only with ``strongly_convex``.

    Raises:
        SensitivityUnprovenError: If the step size is outside what the regime allows.
    """
    wrong = InvalidPrivacyParameterError
    _validate.number(error=wrong, learning_rate=learning_rate, above=0)
    _validate.number(error=wrong, smoothness=smoothness, at_least=0)
    excess = _excess(learning_rate, smoothness, regime, strong_convexity)
    return 1.0 if excess == 0 else _up(1 + excess)


def rewind_steps_for(
    *,
    noise_std: float,
    epsilon: float,
    delta: float,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
    regime: Regime = "nonconvex",
    strong_convexity: float = 0.0,
    bound: TrajectoryBound = "tight",
    calibration: Literal["analytic", "classic"] = "analytic",
    reproduce: bool = False,
) -> int:
    """Return the fewest steps to rewind so that a given noise is enough.

    Args:
        noise_std: sigma > 0.
        epsilon: Above 0.
        delta: In (0, 1).
        steps: T.
        learning_rate: eta.
        smoothness: L.
        gradient_bound: G.
        forget: m.
        samples: n.
        regime: As in ``trajectory_sensitivity``.
        strong_convexity: mu.
        bound: As in ``trajectory_sensitivity``.
        calibration: How noise, epsilon and sensitivity go together; see
            ``gaussian_noise_std``.
        reproduce: Use ``classic`` at any epsilon, for published tables.

    Returns:
        K in 0 .. T, exact: one step less does not suffice. T always does.
    """
    allowed = _allowed_shift(noise_std, epsilon, delta, calibration, reproduce)

    def enough(rewind: int) -> bool:
        reached = trajectory_sensitivity(
            rewind_steps=rewind,
            steps=steps,
            learning_rate=learning_rate,
            smoothness=smoothness,
            gradient_bound=gradient_bound,
            forget=forget,
            samples=samples,
            regime=regime,
            strong_convexity=strong_convexity,
            bound=bound,
        )
        return reached <= allowed

    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def rewind_steps_bound(
    *,
    noise_std: float,
    epsilon: float,
    delta: float,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
    calibration: Literal["analytic", "classic"] = "analytic",
    reproduce: bool = False,
) -> float:
    r"""Return a closed form above ``rewind_steps_for`` with the published bound.

    :math:`\ln((1+a)^T - H) / \ln(1 + \eta L)` with :math:`a = \eta L n/(n-m)` and
    :math:`H = \Delta L n / (2 m G)`, Delta the shift that the noise allows [derived;
    the paper's corollary 3.2 is of this kind].

    Args:
        noise_std: sigma > 0.
        epsilon: Above 0.
        delta: In (0, 1).
        steps: T.
        learning_rate: eta.
        smoothness: L > 0.
        gradient_bound: G > 0.
        forget: m >= 1.
        samples: n.
        calibration: As in ``rewind_steps_for``.
        reproduce: As in ``rewind_steps_for``.

    Returns:
        A number of steps, to be rounded up; in 0 .. T, since T always suffices.
    """
    wrong = InvalidPrivacyParameterError
    _check_descent(steps, learning_rate, smoothness, gradient_bound, forget, samples)
    _validate.number(
        error=wrong, above=0, smoothness=smoothness, gradient_bound=gradient_bound
    )
    _validate.integer(error=wrong, at_least=1, forget=forget)
    allowed = _allowed_shift(noise_std, epsilon, delta, calibration, reproduce)
    room = allowed * smoothness * samples / (2 * forget * gradient_bound)
    rate = learning_rate * smoothness
    whole = steps * math.log1p(rate * samples / (samples - forget))
    share = room * math.exp(-whole)
    if share >= 1 or whole + math.log1p(-share) <= 0:
        return 0.0
    return min(float(steps), (whole + math.log1p(-share)) / math.log1p(rate))


def rewind_fraction_for(divide_by: float, growth: float) -> float:
    r"""Return the share K/T of training to take again to divide the noise.

    In the nonconvex regime :math:`\Delta(K)/\Delta(0) = (A - A^{K/T})/(A - 1)` with
    :math:`A = (1 + \eta L)^T` [derived], so that a small rewind buys almost nothing
    once :math:`\eta L T` is large.

    Args:
        divide_by: At least 1.
        growth: ln A, at least 0: eta L T in the limit of small steps.

    Returns:
        In [0, 1).

    Example:
        >>> [round(rewind_fraction_for(d, 5.0), 3) for d in (2, 10, 100)]
        [0.863, 0.979, 0.998]
    """
    wrong = InvalidPrivacyParameterError
    _validate.number(error=wrong, at_least=1, divide_by=divide_by)
    _validate.number(error=wrong, at_least=0, growth=growth)
    if growth < 1e-12:  # the limit: Delta falls linearly
        return 1 - 1 / divide_by
    return 1 + math.log1p(math.expm1(-growth) / divide_by) / growth


def _check_descent(
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
) -> None:
    wrong = InvalidPrivacyParameterError
    _validate.integer(error=wrong, steps=steps, at_least=1)
    _validate.number(error=wrong, learning_rate=learning_rate, above=0)
    _validate.number(error=wrong, smoothness=smoothness, at_least=0)
    _validate.number(error=wrong, gradient_bound=gradient_bound, at_least=0)
    _validate.integer(error=wrong, samples=samples, at_least=1)
    _validate.integer(error=wrong, forget=forget, at_least=0, at_most=samples - 1)


def _allowed_shift(
    noise_std: float,
    epsilon: float,
    delta: float,
    calibration: Literal["analytic", "classic"],
    reproduce: bool,
) -> float:
    """Return the largest sensitivity that the noise covers, rounded down."""
    _validate.number(error=InvalidPrivacyParameterError, above=0, noise_std=noise_std)
    each = gaussian_noise_std(epsilon, delta, 1.0, calibration, reproduce=reproduce)
    return noise_std / each * (1 - _ULP)


def _excess(
    learning_rate: float, smoothness: float, regime: Regime, strong_convexity: float
) -> float:
    """Return c - 1, which keeps the digits that c loses near 1."""
    _validate.one_of(get_args(Regime), regime=regime)
    product = learning_rate * smoothness
    if regime == "nonconvex":
        return product
    fits = product <= 2 if regime == "convex" else product < 2
    if not fits:
        raise SensitivityUnprovenError(
            f"learning_rate: must be at most 2 / L for regime {regime!r} (below it "
            f"where strongly convex), got {learning_rate!r} with L = {smoothness!r}; "
            "use regime='nonconvex'"
        )
    if regime == "convex":
        return 0.0
    _validate.number(
        error=InvalidPrivacyParameterError,
        above=0,
        at_most=smoothness,
        strong_convexity=strong_convexity,
    )
    # max(|1 - eta mu|, |1 - eta L|) = 1 - min(eta mu, 2 - eta L), as mu <= L.
    return -min(learning_rate * strong_convexity, 2 - product)


def _geometric(excess: float, terms: int) -> tuple[float, float]:
    """Return the sum of c^i over ``terms`` terms, and its relative error at most."""
    if terms == 1 or excess == 0:
        return float(terms), 0.0
    log = _log1p(excess)
    if log == math.inf:
        return math.inf, 0.0
    if log == -math.inf:  # c = 0: only c^0 counts
        return 1.0, _ULP
    total = terms * log
    if total > 700:
        # Near the largest float; what is left out of c^terms - 1 makes it larger.
        return _scaled(1 / excess, total), _ULP * (4 + total)
    return math.expm1(total) / excess, _ULP * (4 + abs(total))


def _log1p(excess: float) -> float:
    return math.log1p(excess) if excess > -1 else -math.inf


def _scaled(value: float, log: float) -> float:
    """Return value times e^log; infinite where it does not fit."""
    if value == 0 or log == -math.inf:
        return 0.0
    if value == math.inf:
        return math.inf
    exponent = math.log(value) + log
    if exponent > 709:
        return math.inf
    if log > 700:
        return math.exp(exponent)
    return value * math.exp(log)


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)
