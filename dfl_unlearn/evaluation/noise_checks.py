r"""Is the noise there, as large as claimed, and fresh in every release?

A test that guesses worlds cannot see half the noise after a near-exact correction: the
true shift is about 0 then, and any noise hides it. These checks look at the noise
itself. A sample standard deviation of k normal numbers has relative error
:math:`1/\sqrt{2k}`, so from 6,100 numbers on a right one stays within 3 % in 99.9 % of
all cases.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, NumericalError

TOLERANCE = 0.03
"""Largest relative difference between measured and claimed noise std."""

ENOUGH = 6100
"""Numbers from which a right std passes ``TOLERANCE`` in 99.9 % of all cases."""


def measured_std(samples: ArrayLike) -> NDArray[np.float64]:
    """Return the standard deviation over replicas, pooled over coordinates.

    Args:
        samples: One release per replica and source, shape ``(n, ..., p)``, n at least
            2; a source is e.g. a peer. Each coordinate varies around its own mean.

    Returns:
        Square root of the mean unbiased variance, shape ``(...,)``.

    Example:
        >>> float(measured_std([[0.0, 5.0], [2.0, 7.0]]))
        1.4142135623730951
    """
    values = _samples(samples)
    return np.asarray(np.sqrt(values.var(axis=0, ddof=1).mean(axis=-1)))


def numbers_in(samples: ArrayLike) -> int:
    """Return how many independent numbers stand behind one measured std.

    Args:
        samples: Shape ``(n, ..., p)``.

    Returns:
        ``(n - 1) * p``: each coordinate's mean costs one.
    """
    values = _samples(samples)
    return int((len(values) - 1) * values.shape[-1])


def largest_correlation(samples: ArrayLike) -> float:
    """Return how alike the noise of two sources is, for the most alike pair.

    Args:
        samples: One release per replica and source, shape ``(n, K, p)``, n and K at
            least 2; sources are peers, or successive releases of one peer.

    Returns:
        Largest absolute correlation of two sources around their means, in [0, 1];
        1 if a source does not vary.

    Raises:
        InvalidArgumentError: If there is no second source.
    """
    values = _samples(samples)
    if values.ndim != 3 or values.shape[1] < 2:
        raise InvalidArgumentError(
            "samples: must have shape (replicas, sources, coordinates) with at least "
            f"two sources, got {values.shape}"
        )
    centred = values - values.mean(axis=0)
    rows = centred.transpose(1, 0, 2).reshape(values.shape[1], -1)
    norms = np.linalg.norm(rows, axis=1)
    if (norms == 0).any():
        return 1.0
    rows = rows / norms[:, None]
    alike = np.abs(rows @ rows.T)
    np.fill_diagonal(alike, 0.0)
    return min(1.0, float(alike.max()))


def correlation_limit(numbers: int, sources: int, gamma: float) -> float:
    r"""Return the correlation that independent sources pass with chance ``gamma``.

    Fisher's transform: :math:`\tanh(z / \sqrt{k - 2})` with the normal quantile z,
    shared by all pairs of sources (Bonferroni); an approximation that is good from
    some hundred numbers on.

    Args:
        numbers: Independent numbers k per source, at least 4; ``numbers_in``.
        sources: At least 2.
        gamma: Chance of a false alarm over all pairs, in (0, 1).

    Returns:
        In (0, 1).
    """
    from scipy.special import ndtri

    _validate.integer(at_least=4, numbers=numbers)
    _validate.integer(at_least=2, sources=sources)
    _validate.number(above=0, below=1, gamma=gamma)
    pairs = sources * (sources - 1) / 2
    return math.tanh(-float(ndtri(gamma / (2 * pairs))) / math.sqrt(numbers - 2))


def shift_of_means(
    reference: ArrayLike, unlearned: ArrayLike, noise_std: float, gamma: float
) -> tuple[float, float]:
    r"""Return how far the two worlds' means are apart, and how much of it is noise.

    Args:
        reference: Releases of the reference world, shape ``(n0, p)``.
        unlearned: Releases of the unlearned world, shape ``(n1, p)``.
        noise_std: Standard deviation per coordinate, at least 0.
        gamma: In (0, 1).

    Returns:
        The distance of the sample means, and the slack
        :math:`\sigma\sqrt{(1/n_0 + 1/n_1)\,q}` with the ``1 - gamma`` quantile q of
        chi-square with p degrees. The true shift is at least their difference, with
        confidence ``1 - gamma``.

    Raises:
        InvalidArgumentError: If the worlds have another shape or other sizes p.
    """
    from scipy.special import chdtri

    _validate.number(at_least=0, noise_std=noise_std)
    _validate.number(above=0, below=1, gamma=gamma)
    worlds = [_samples(given) for given in (reference, unlearned)]
    if any(w.ndim != 2 for w in worlds) or worlds[0].shape[1] != worlds[1].shape[1]:
        raise InvalidArgumentError(
            "reference and unlearned: must have shapes (n0, p) and (n1, p), got "
            f"{worlds[0].shape} and {worlds[1].shape}"
        )
    shift = float(np.linalg.norm(worlds[1].mean(axis=0) - worlds[0].mean(axis=0)))
    spread = sum(1 / len(world) for world in worlds)
    quantile = float(chdtri(worlds[0].shape[1], gamma))
    return shift, noise_std * math.sqrt(spread * quantile)


def _samples(given: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim < 2 or len(values) < 2 or not values.size:
        raise InvalidArgumentError(
            "samples: must be at least two replicas of at least one number, got shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise NumericalError(
            f"samples: must be finite, got {int((~np.isfinite(values)).sum())} numbers "
            "that are not"
        )
    return values
