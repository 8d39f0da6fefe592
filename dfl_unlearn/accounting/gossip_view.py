r"""What single peers see of private gossip training: how long, and at best how much.

In ``dp-gossip`` every peer adds noise in every round, so whoever sees all messages sees
all rounds of the peer u at their full cost. A single peer v sees its neighbours'
messages only.

*How many rounds* (``rounds_seen``) is proven, whatever the gradients are [derived]:
what v sees depends on the messages of its past light cone alone. Given those of earlier
rounds in the cone, the models of the peers in it are known, so the rounds of u in it
compose as they do for an observer of everything, and later ones do not matter.

*How much* (``linear_view_mu``) is exact for the linear part: with gradients that do not
depend on models, everything v sees is a linear map B of all noises, shifted by u's data
along the columns A of u's own noises, and

.. math:: \mu^2 = \sup_{\|\delta_t\| \le \Delta} \delta^\top
    A^\top (B \Sigma B^\top)^{-1} A\,\delta.

**It is no bound for training.** Gradients depend on models that v does not see: a peer
between u and v whose gradient doubles what it was sent passes u's share on louder than
W says, while its own noise stays as it is; and a bystander whose gradient forgets its
own past hides u less [derived; the tests hold an example]. Nor is the published sum
(``network.network_dp_pairwise``), which adds up messages that share their noise. Both
are figures for readers, never for a certificate.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from dfl_unlearn import _validate
from dfl_unlearn._limits import DENSE_PEERS, LOAD_BYTES, check_cap
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    UnknownPeerError,
)

_UP = 1 + 1e-9  # over the rounding of a well-conditioned solve


def rounds_seen(
    hops: NDArray[np.int64], rounds: int, form: Literal["atc", "cta"] = "atc"
) -> NDArray[np.int64]:
    """Return how many of a peer's private rounds each other peer can have seen.

    What it sees costs at most the steps of that many rounds. Final models of others are
    not part of a peer's view.

    Args:
        hops: Distance of every peer from the owner, shape ``(N,)``; 0 at the owner.
        rounds: Rounds T of training, at least 0.
        form: ``atc`` sends what has the round's noise already; ``cta`` what has not.

    Returns:
        Shape ``(N,)``: ``T - h + 1`` (``atc``) or ``T - h`` (``cta``) at h hops, never
        below 0; at the owner T.

    Example:
        >>> rounds_seen(np.array([0, 1, 2, 3]), 2)
        array([2, 2, 1, 0])
    """
    _validate.integer(at_least=0, rounds=rounds)
    _validate.one_of(("atc", "cta"), form=form)
    late = hops - 1 if form == "atc" else hops
    seen: NDArray[np.int64] = np.maximum(rounds - np.maximum(late, 0), 0)
    return seen


def linear_view_mu(
    weights: csr_array | NDArray[np.float64],
    *,
    source: int,
    rounds: int,
    noise_multiplier: float,
    form: Literal["atc", "cta"] = "atc",
) -> NDArray[np.float64]:
    """Return the Gaussian that each peer's whole view amounts to in the linear system.

    Full batches, the same noise at all peers, gradients that do not depend on models:
    a figure, no bound for training (see the module). The observer knows its own noise.

    Args:
        weights: Mixing matrix W, shape ``(N, N)``; v hears from w where
            ``weights[v, w] > 0``.
        source: The peer u whose data it is about.
        rounds: T, at least 0.
        noise_multiplier: Noise over sensitivity of one round, > 0.
        form: As in ``rounds_seen``.

    Returns:
        Shift over noise per observer, shape ``(N,)``; ``gaussian_epsilon`` makes an
        epsilon of it. At u itself the local value, ``sqrt(T) / noise_multiplier``.

    Raises:
        InvalidArgumentError: If W is not square or has no finite, non-negative rows.
        UnknownPeerError: If there is no peer ``source``.
        InvalidPrivacyParameterError: If the multiplier is not above 0.
    """
    sparse = csr_array(weights, dtype=np.float64)
    n = sparse.shape[0]
    check_cap(DENSE_PEERS, n, "linear_view_mu")
    w = sparse.toarray()
    if w.shape != (n, n) or not ((w >= 0) & np.isfinite(w)).all():
        raise InvalidArgumentError(
            "weights: must be a square matrix of finite, non-negative numbers, got "
            f"shape {w.shape}"
        )
    _validate.integer(at_least=0, at_most=n - 1, error=UnknownPeerError, source=source)
    _validate.integer(at_least=0, rounds=rounds)
    _validate.one_of(("atc", "cta"), form=form)
    _validate.number(
        error=InvalidPrivacyParameterError, above=0, noise_multiplier=noise_multiplier
    )
    # What cta sends in a round, atc has sent in the round before.
    sent = rounds if form == "atc" else max(rounds - 1, 0)
    check_cap(LOAD_BYTES, 8 * sent * n * n, "linear_view_mu")
    powers = np.empty((sent, n, n))
    for k in range(sent):
        powers[k] = np.eye(n) if k == 0 else w @ powers[k - 1]
    found = np.zeros(n)
    for v in range(n):
        heard = np.flatnonzero((w[v] > 0) & (np.arange(n) != v))
        if v == source:
            found[v] = rounds
        elif sent and len(heard):
            found[v] = _square(powers[:, heard], v, source)
    return np.sqrt(np.minimum(found * _UP, rounds)) / noise_multiplier


def _square(powers: NDArray[np.float64], observer: int, source: int) -> float:
    """Return the largest squared shift over noise of one observer's view.

    Args:
        powers: Rows of W^k of the peers it hears from, shape ``(T, D, N)``.
        observer: v, whose own noise it can take away.
        source: u.

    Returns:
        For shifts of length at most 1 in every round; an upper bound where rounds
        would have to pull in opposite directions.
    """
    sent, d, n = powers.shape
    rows = powers.copy()
    rows[:, :, observer] = 0
    # Message (t, w) is the sum over s <= t of row w of W^(t - s) times noise s.
    seen = np.zeros((sent, d, sent, n))
    for t in range(sent):
        for s in range(t + 1):
            seen[t, :, s] = rows[t - s]
    flat = seen.reshape(sent * d, sent * n)
    moved = seen[:, :, :, source].reshape(sent * d, sent)
    solved = cho_solve(cho_factor(flat @ flat.T), moved)
    return float(np.abs(moved.T @ solved).sum())
