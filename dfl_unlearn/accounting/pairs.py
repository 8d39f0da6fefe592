r"""Rules for claims of which only the pair (epsilon, delta) is known.

They lose much: deriving the sensitivity of a whole forget set, or adding Rényi curves,
is tighter wherever it is possible. Both follow from applying the definition
:math:`P(E) \le e^{\varepsilon} Q(E) + \delta` repeatedly.
"""

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidPrivacyParameterError


def group_privacy(epsilon: float, delta: float, k: int) -> tuple[float, float]:
    r"""Return the claim for k records from the claim for one.

    The fallback when nothing but (epsilon, delta) is known; deriving the sensitivity
    for the whole set is far tighter.

    Args:
        epsilon: Claim for one record, at least 0.
        delta: In [0, 1].
        k: Records, at least 1.

    Returns:
        :math:`(k\varepsilon,\ \delta\sum_{j<k} e^{j\varepsilon})`.
    """
    _check_claim(epsilon, delta)
    _validate.integer(at_least=1, k=k)
    with np.errstate(over="ignore"):
        factor = float(np.exp(epsilon * np.arange(k)).sum())
    return k * epsilon, min(1.0, delta * factor) if delta else 0.0


def triangle(
    first: tuple[float, float], second: tuple[float, float]
) -> tuple[float, float]:
    r"""Return the claim on two worlds that are both close to a third.

    Args:
        first: (epsilon, delta) of the first world and the third, both directions.
        second: (epsilon, delta) of the third world and the second, both directions.

    Returns:
        :math:`(\varepsilon_1 + \varepsilon_2,\ \max(\delta_1 + e^{\varepsilon_1}
        \delta_2,\ \delta_2 + e^{\varepsilon_2}\delta_1))`, valid in both directions.
    """
    _check_claim(*first)
    _check_claim(*second)
    delta = max(_chain(first, second), _chain(second, first))
    return first[0] + second[0], min(1.0, delta)


def _chain(near: tuple[float, float], far: tuple[float, float]) -> float:
    with np.errstate(over="ignore"):
        return near[1] + (float(np.exp(near[0])) * far[1] if far[1] else 0.0)


def _check_claim(epsilon: float, delta: float) -> None:
    _validate.number(error=InvalidPrivacyParameterError, at_least=0, epsilon=epsilon)
    _validate.number(
        error=InvalidPrivacyParameterError, at_least=0, at_most=1, delta=delta
    )
