"""Eigenvalues of mixing matrices: how fast gossip forgets where a value came from."""

import contextlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh

from dfl_unlearn.errors import NumericalError, SolverNotConvergedError
from dfl_unlearn.rng import RngTree

DENSE_LIMIT = 2000  # eigenvalues are dense up to this many peers, Lanczos above

_STOPPED = (
    "spectral_gap: the eigenvalue iteration for {} peers stopped before it converged; "
    f"use a network with a larger gap or at most {DENSE_LIMIT} peers"
)


def slem(weights: csr_array | NDArray[np.float64]) -> float:
    """Return the second largest absolute eigenvalue of a stochastic matrix.

    Dense up to 2000 peers; Lanczos or Arnoldi with a fixed start above.

    Args:
        weights: Dense or sparse, shape ``(N, N)``.

    Returns:
        The SLEM, in [0, 1]; 0 for a single peer.

    Raises:
        SolverNotConvergedError: If the iteration for more than 2000 peers stops early.
    """
    matrix = csr_array(weights)
    n = matrix.shape[0]
    if n == 1:
        return 0.0
    if is_symmetric(matrix):
        return min(1.0, max(map(abs, ends(matrix))))
    if n <= DENSE_LIMIT:
        values = np.linalg.eigvals(matrix.toarray())
    else:
        try:
            values = eigs(matrix, k=2, v0=_start(n), return_eigenvectors=False)
        except ArpackNoConvergence as error:
            raise SolverNotConvergedError(_STOPPED.format(n)) from error
    return min(1.0, float(np.sort(np.abs(values))[-2]))


def spectral_gap(weights: csr_array | NDArray[np.float64]) -> float:
    """Return one minus the SLEM: how much faster than not at all gossip averages."""
    return 1.0 - slem(weights)


def is_symmetric(weights: csr_array) -> bool:
    """Tell whether W equals its transpose up to rounding."""
    return bool(abs(weights - weights.T).max() <= 1e-12)


def is_normal(weights: csr_array) -> bool:
    """Tell whether W commutes with its transpose up to rounding, as circulants do."""
    return bool(abs(weights @ weights.T - weights.T @ weights).max() <= 1e-12)


def rounds_of_rate(rate: float, tolerance: float) -> int:
    """Return the smallest t with rate^t <= tolerance.

    Args:
        rate: In [0, 1].
        tolerance: In (0, 1).

    Returns:
        The number of rounds, at least 1.

    Raises:
        NumericalError: If the rate is 1 in double precision.
    """
    if rate <= tolerance:
        return 1
    if rate == 1.0:
        raise NumericalError(
            "mixing_rounds: the spectral gap must be representable in double "
            "precision, got 0; use a smaller network or larger weights"
        )
    t = max(1, math.floor(math.log(tolerance) / math.log(rate)) - 1)
    while rate**t > tolerance:
        t += 1
    return t


def rounds_of_matrix(deviation: NDArray[np.float64], tolerance: float) -> int:
    """Return the smallest t with ||D^t||_2 <= tolerance, by binary lifting.

    Args:
        deviation: D = W - J of a doubly stochastic W, whose powers never grow, dense.
        tolerance: In (0, 1).

    Returns:
        The number of rounds, at least 1.
    """
    squares = [deviation]
    while np.linalg.norm(squares[-1], 2) > tolerance:
        squares.append(squares[-1] @ squares[-1])
    t, power = 0, np.eye(len(deviation))
    for k in range(len(squares) - 2, -1, -1):
        longer = power @ squares[k]
        if np.linalg.norm(longer, 2) > tolerance:
            t, power = t + 2**k, longer
    return t + 1


def ends(matrix: csr_array) -> tuple[float, float]:
    """Return the second largest and the smallest eigenvalue of a symmetric W.

    Args:
        matrix: Symmetric and stochastic, CSR, shape ``(N, N)``, N at least 2.

    Returns:
        Both eigenvalues in this order.
    """
    n = matrix.shape[0]
    if n <= DENSE_LIMIT:
        values = np.linalg.eigvalsh(matrix.toarray())
        return float(values[-2]), float(values[0])
    deflated = LinearOperator(
        matrix.shape, matvec=lambda x: matrix @ x - x.mean(), dtype=np.float64
    )  # W - J: its largest eigenvalue is the second of W
    lower = 2.0 * matrix.diagonal().min() - 1.0  # Gershgorin: no eigenvalue is below
    second = _extreme(deflated, matrix, which="LA", shift=1.0 + 1e-9, skip=1)
    smallest = _extreme(matrix, matrix, which="SA", shift=lower - 1e-9, skip=0)
    return second, smallest


def _extreme(
    operator: csr_array | LinearOperator,
    matrix: csr_array,
    *,
    which: Literal["LA", "SA"],
    shift: float,
    skip: int,
) -> float:
    """Largest or smallest eigenvalue: Lanczos, and where that is slow, inverted."""
    # Lanczos needs a gap at the end of the spectrum. Rings, paths and tori have none,
    # but their factors stay sparse, so there the eigenvalue nearest to a shift just
    # beyond the spectrum (after `skip` known ones) is found through the inverse.
    n = matrix.shape[0]
    options = {"v0": _start(n), "return_eigenvectors": False}
    with contextlib.suppress(ArpackNoConvergence):
        return float(
            eigsh(operator, k=1, which=which, ncv=64, maxiter=20, **options)[0]
        )
    try:
        found = eigsh(matrix, k=1 + skip, sigma=shift, **options)
    except ArpackNoConvergence as error:
        raise SolverNotConvergedError(_STOPPED.format(n)) from error
    return float(found.min() if which == "LA" else found.max())


def _start(n: int) -> NDArray[np.float64]:
    return RngTree("lanczos").numpy("topology").standard_normal(n)
