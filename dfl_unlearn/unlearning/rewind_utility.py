r"""How good a rewound model is on what is kept: two bounds, in numbers alone.

Both are about T - K steps on all n rows and K on the n - m that stay, of one size
:math:`\eta`, on losses that are L-smooth with gradients of norm at most G on the way,
l2 and decay included. They say nothing about privacy.

One step on all rows is a step on the retained mean loss f of size
:math:`\eta (n-m)/n`, plus an error that the m rows push; for
:math:`\eta \le n/(2(n-m)L)`

.. math:: f(\theta_{t+1}) \le f(\theta_t) - \frac{\eta}{2}\frac{n-m}{n}
    \|\nabla f(\theta_t)\|^2 + \frac{\eta m G^2}{n} + \frac{L \eta^2 m^2 G^2}{n^2}

[derived; the paper's corollaries have the same parts]. Summed it bounds gradients,
contracted it bounds the loss of functions with
:math:`\|\nabla f\|^2 \ge 2\mu (f - f^*)`.

References:
    Mu and Klabjan (2025), Rewind-to-delete: certified machine unlearning for nonconvex
    functions, corollary A.5 and the proof of theorem 3.1.
"""

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidHyperparameterError


def squared_gradients_bound(
    *,
    rewind_steps: int,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
    loss_drop: float,
) -> float:
    r"""Return a bound on the sum of squared gradients along a rewound training.

    :math:`\sum \|g\|^2 \le \frac{2n}{\eta (n-m)} (f(\theta_0) - f(v_K))
    + (T-K) (2 G^2 \frac{m}{n-m} + \frac{2 L \eta G^2 m^2}{n (n-m)})`, g the gradients
    of the retained mean loss at :math:`\theta_0 .. \theta_{T-K-1}, v_0 .. v_{K-1}`.

    Args:
        rewind_steps: K, 0 .. T.
        steps: T >= 1.
        learning_rate: eta, at most ``n / (2 (n - m) L)`` and ``1 / L``.
        smoothness: L >= 0.
        gradient_bound: G >= 0.
        forget: m, 0 .. n - 1.
        samples: n.
        loss_drop: ``f(theta_0) - f(v_K)``, of the retained mean loss, before noise.

    Returns:
        The bound; over T it bounds the smallest squared gradient.
    """
    _check(rewind_steps, steps, learning_rate, smoothness, gradient_bound)
    _check_rate(learning_rate, smoothness, forget, samples)
    kept, square = samples - forget, gradient_bound**2
    push = 2 * square * forget / kept
    push += 2 * smoothness * learning_rate * square * forget**2 / (samples * kept)
    whole = 2 * samples / (learning_rate * kept) * loss_drop
    return whole + (steps - rewind_steps) * push


def expected_loss_bound(
    *,
    rewind_steps: int,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forget: int,
    samples: int,
    curvature: float,
    start_gap: float,
    noise_std: float = 0.0,
    parameters: int = 0,
) -> float:
    r"""Return a bound on how far above the minimum a noised rewound model is.

    For :math:`\|\nabla f\|^2 \ge 2\mu (f - f^*)`, as in strongly convex losses:
    :math:`E f(v_K + \xi) - f^* \le (1-\eta\mu)^K [(1-\eta\mu\frac{n-m}{n})^{T-K}
    (f(\theta_0) - f^*) + \frac{m G^2}{\mu (n-m)} (1 + \eta L \frac{m}{n})]
    + L d \sigma^2 / 2`.

    Args:
        rewind_steps: K, 0 .. T.
        steps: T >= 1.
        learning_rate: eta, at most ``n / (2 (n - m) L)`` and ``1 / L``.
        smoothness: L.
        gradient_bound: G.
        forget: m.
        samples: n.
        curvature: mu > 0, at most L.
        start_gap: ``f(theta_0) - f*`` >= 0.
        noise_std: sigma >= 0.
        parameters: d, numbers that the noise is added to.

    Returns:
        The bound, in units of the loss.
    """
    _check(rewind_steps, steps, learning_rate, smoothness, gradient_bound)
    _check_rate(learning_rate, smoothness, forget, samples)
    wrong = InvalidHyperparameterError
    _validate.number(error=wrong, above=0, at_most=smoothness, curvature=curvature)
    _validate.number(error=wrong, at_least=0, start_gap=start_gap, noise_std=noise_std)
    _validate.integer(error=wrong, at_least=0, parameters=parameters)
    kept = samples - forget
    slow = 1 - learning_rate * curvature * kept / samples
    level = forget * gradient_bound**2 / (curvature * kept)
    level *= 1 + learning_rate * smoothness * forget / samples
    before = slow ** (steps - rewind_steps) * start_gap + level
    after: float = (1 - learning_rate * curvature) ** rewind_steps * before
    return after + smoothness * parameters * noise_std**2 / 2


def _check(
    rewind_steps: int,
    steps: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
) -> None:
    wrong = InvalidHyperparameterError
    _validate.integer(error=wrong, at_least=1, steps=steps)
    _validate.integer(error=wrong, at_least=0, at_most=steps, rewind_steps=rewind_steps)
    _validate.number(error=wrong, above=0, learning_rate=learning_rate)
    _validate.number(
        error=wrong, at_least=0, smoothness=smoothness, gradient_bound=gradient_bound
    )


def _check_rate(rate: float, smoothness: float, forget: int, samples: int) -> None:
    """Refuse steps that are too long for the bounds.

    Raises:
        InvalidHyperparameterError: If they are, or nothing would be kept.
    """
    wrong = InvalidHyperparameterError
    _validate.integer(error=wrong, at_least=1, samples=samples)
    _validate.integer(error=wrong, at_least=0, at_most=samples - 1, forget=forget)
    most = min(samples / (2 * (samples - forget)), 1.0)
    if rate * smoothness > most:
        raise wrong(
            f"learning_rate: must be at most min(1/L, n / (2 (n - m) L)) = "
            f"{most / smoothness:.6g}, got {rate:g}; nothing is known of longer steps"
        )
