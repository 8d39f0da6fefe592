r"""Where a token walk drifts: the step at the requester and the mean of all steps.

At a peer v the token moves by :math:`-\eta\nabla f_v`, at the requester u by
:math:`+\eta g_u`. With holders spread evenly, :math:`\mathbb{E}[\Delta\theta]/\eta`
should be :math:`-\nabla F^-`, the direction of retraining; what is missing is the
*bias* of the alignment:

===============  =======================================================  ============
``alignment``    :math:`g_u`                                              follows
===============  =======================================================  ============
``exact``        :math:`-\nabla\ell_{u \setminus f} - r`                  local means
``corrected``    :math:`-(1 - m/n_u)\nabla\ell_{u \setminus f} - r`       fixed factor
``lightweight``  :math:`+(m/n_u)\nabla\ell_f`                             neither
===============  =======================================================  ============

Here :math:`\ell_f` and :math:`\ell_{u \setminus f}` are means of the data term over
what u forgets and keeps, :math:`r = \lambda\theta` is the gradient of the l2 term,
:math:`m` of :math:`n_u` samples are forgotten. ``corrected`` is :math:`-\nabla\ell_u +
(m/n_u)\nabla\ell_f - r` written without the cancellation.

Sources: ``lightweight`` is the pure ascent step of Lamri and Maniatakos (2025), Fully
decentralized certified unlearning [notes]; that its bias is of order L/N, and not
m/n_u, and ``corrected``, whose bias is, are derived here.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError

Alignment = Literal["exact", "corrected", "lightweight"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
Normalization = Literal["local_mean", "fixed"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


def visit_direction(
    alignment: Alignment,
    retained_gradient: Tensor,
    forget_gradient: Tensor,
    *,
    forgotten: int,
    samples: int,
    regularizer: Tensor | float = 0.0,
) -> Tensor:
    """Return the direction g_u in which a visit of the requester moves the token.

    Args:
        alignment: ``exact``, ``corrected`` or ``lightweight``, see the module.
        retained_gradient: Mean over u's retained samples of the data term's gradient,
            shape ``(P,)``; zeros where none are left.
        forget_gradient: The same mean over the forget set, shape ``(P,)``.
        forgotten: m, at least 1.
        samples: n_u before forgetting, at least m.
        regularizer: Gradient of the l2 term, shape ``(P,)``.

    Returns:
        g_u, shape ``(P,)``; to be added with the learning rate. Zeros under ``exact``
        when the whole peer is forgotten.
    """
    share = _share(alignment, forgotten, samples)
    if alignment == "lightweight":
        return share * forget_gradient
    if alignment == "exact" and share == 1:
        return torch.zeros_like(retained_gradient)
    keep = 1.0 if alignment == "exact" else 1.0 - share
    return -keep * retained_gradient - regularizer


def mean_update(
    alignment: Alignment,
    gradients: Tensor,
    forget_gradient: Tensor,
    *,
    source: int,
    forgotten: int,
    samples: int,
    regularizer: Tensor | float = 0.0,
    law: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Return the mean step of the walk over its learning rate.

    .. math:: \mathbb{E}[\Delta\theta]/\eta = \pi_u w_u g_u
        - \sum_{v \ne u} \pi_v w_v (\nabla\ell_v + r)

    Args:
        alignment: How the requester steps.
        gradients: Means of the data term's gradient over what each peer keeps, shape
            ``(N, P)``; row ``source`` is over the retained samples only.
        forget_gradient: The mean over the forget set, shape ``(P,)``.
        source: The requester u.
        forgotten: m, at least 1.
        samples: n_u before forgetting, at least m.
        regularizer: Gradient of the l2 term, shape ``(P,)``.
        law: :math:`\pi`, shape ``(N,)``; None is uniform.
        weights: :math:`w`, shape ``(N,)``; None is all ones.

    Returns:
        Shape ``(P,)``; where it is zero the walk has no drift.

    Raises:
        InvalidArgumentError: If shapes do not fit.
        UnknownPeerError: If there is no peer ``source``.
    """
    n = _check_stack(gradients, forget_gradient, source)
    mass = gradients.new_full((n,), 1 / n) if law is None else law.to(gradients)
    if weights is not None:
        mass = mass * weights.to(gradients)
    if mass.shape != (n,):
        raise InvalidArgumentError(
            f"law, weights: must have shape ({n},), got {tuple(mass.shape)}"
        )
    steps = -(gradients + regularizer)
    steps[source] = visit_direction(
        alignment,
        gradients[source],
        forget_gradient,
        forgotten=forgotten,
        samples=samples,
        regularizer=regularizer,
    )
    return mass @ steps


def alignment_bias(
    alignment: Alignment,
    normalization: Normalization,
    gradients: Tensor,
    forget_gradient: Tensor,
    *,
    source: int,
    forgotten: int,
    samples: int,
    regularizer: Tensor | float = 0.0,
) -> Tensor:
    r"""Return how far the mean step is from the direction of retraining.

    .. math:: b = \mathbb{E}[\Delta\theta]/\eta + \nabla F^-

    Args:
        alignment: How the requester steps.
        normalization: What retraining means: ``local_mean`` divides by the retained
            samples, ``fixed`` by all.
        gradients: As in ``mean_update``; holders are uniform.
        forget_gradient: As in ``mean_update``.
        source: The requester u.
        forgotten: m, at least 1; below ``samples`` with ``local_mean``.
        samples: n_u before forgetting.
        regularizer: Gradient of the l2 term, shape ``(P,)``.

    Returns:
        b of an update :math:`-\eta(\nabla F^- - b)`, shape ``(P,)``; zeros for
        ``exact`` with ``local_mean`` and for ``corrected`` with ``fixed``.
    """
    share = _retraining_share(normalization, forgotten, samples)
    n = _check_stack(gradients, forget_gradient, source)
    target = gradients + regularizer
    target[source] = (1.0 - share) * gradients[source] + regularizer
    drift = mean_update(
        alignment,
        gradients,
        forget_gradient,
        source=source,
        forgotten=forgotten,
        samples=samples,
        regularizer=regularizer,
    )
    return drift + target.sum(dim=0) / n


def alignment_bias_bound(
    alignment: Alignment,
    normalization: Normalization,
    *,
    gradient_bound: float,
    forgotten: int,
    samples: int,
    peers: int,
    regularizer_norm: float = 0.0,
) -> float:
    r"""Return the largest norm that the bias of an alignment can have.

    ===============  ==============================  ====================
    ``alignment``    ``local_mean``                  ``fixed``
    ===============  ==============================  ====================
    ``exact``        0                               :math:`mL/(N n_u)`
    ``corrected``    :math:`mL/(N n_u)`              0
    ``lightweight``  :math:`((1+m/n_u)L + |r|)/N`    :math:`(L + |r|)/N`
    ===============  ==============================  ====================

    Args:
        alignment: How the requester steps.
        normalization: What retraining means.
        gradient_bound: L, on the data term's gradient of every sample, at least 0.
        forgotten: m, at least 1.
        samples: n_u, above m with ``local_mean``.
        peers: N, at least 1.
        regularizer_norm: :math:`\lambda\lVert\theta\rVert`, at least 0: pure ascent has
            no l2 term at u.

    Returns:
        A bound on the norm of ``alignment_bias`` [derived].
    """
    share = _share(alignment, forgotten, samples)
    lost = _retraining_share(normalization, forgotten, samples)
    _validate.integer(at_least=1, peers=peers)
    _validate.number(
        at_least=0.0, gradient_bound=gradient_bound, regularizer_norm=regularizer_norm
    )
    if alignment == "lightweight":
        factor = 1.0 - lost + share
        return (factor * gradient_bound + regularizer_norm) / peers
    taken = share if alignment == "corrected" else 0.0
    return abs(taken - lost) * gradient_bound / peers


def _share(alignment: Alignment, forgotten: int, samples: int) -> float:
    _validate.one_of(ALIGNMENTS, alignment=alignment)
    _validate.integer(at_least=1, forgotten=forgotten, samples=samples)
    _validate.integer(at_least=1, at_most=samples, forgotten=forgotten)
    return forgotten / samples


def _retraining_share(
    normalization: Normalization, forgotten: int, samples: int
) -> float:
    """Return by how much retraining scales u's retained mean down."""
    _validate.one_of(NORMALIZATIONS, normalization=normalization)
    if normalization == "fixed":
        return forgotten / samples
    if forgotten >= samples:
        raise InvalidArgumentError(
            f"forgotten: must be below samples = {samples} with local_mean, got "
            f"{forgotten}; there is no mean over nothing, remove the peer instead"
        )
    return 0.0


def _check_stack(gradients: Tensor, forget_gradient: Tensor, source: int) -> int:
    if gradients.ndim != 2 or forget_gradient.shape != gradients.shape[1:]:
        raise InvalidArgumentError(
            "gradients: must have shape (N, P) with a forget_gradient of shape (P,), "
            f"got {tuple(gradients.shape)} and {tuple(forget_gradient.shape)}"
        )
    n = int(gradients.shape[0])
    _validate.integer(at_least=0, at_most=n - 1, error=UnknownPeerError, source=source)
    return n
