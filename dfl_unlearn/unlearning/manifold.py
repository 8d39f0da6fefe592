"""Geometry of representations: neighbours, distances, triplets; functions of arrays.

All distances are squared Euclidean ones, summed over dimensions.
"""

import torch
from torch import Tensor

_BLOCK_FLOATS = 2**24  # similarities of one block of queries: 64 MB in float32


def unit(z: Tensor) -> Tensor:
    """Return every row divided by its norm; rows of zeros stay zero.

    Args:
        z: Shape ``(..., d)``.

    Returns:
        Same shape.
    """
    norm = z.norm(dim=-1, keepdim=True)
    return z / torch.where(norm > 0, norm, 1.0)


def nearest(queries: Tensor, pool: Tensor, count: int) -> Tensor:
    """Return the places of the rows most similar to each query, by cosine.

    Args:
        queries: Shape ``(m, d)``.
        pool: Rows to choose from, shape ``(n, d)``.
        count: k, at most n of which there are.

    Returns:
        Places in the pool, most similar first, int64 ``(m, min(k, n))``.
    """
    pool = unit(pool).T
    block = max(1, _BLOCK_FLOATS // pool.shape[1])
    count = min(count, pool.shape[1])
    parts = [(rows @ pool).topk(count).indices for rows in unit(queries).split(block)]
    return torch.cat(parts)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance ``||a - b||^2`` over the last axis."""
    return (a - b).square().sum(-1)


def triplet_gap(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return how much farther the negative is from the anchor than the positive.

    Args:
        anchor: Shape ``(..., d)``.
        positive: What is to be near it, same shape.
        negative: What is to be far from it, same shape.

    Returns:
        ``||anchor - negative||^2 - ||anchor - positive||^2``, shape ``(...)``.
    """
    return distance(anchor, negative) - distance(anchor, positive)


def triplet_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: Tensor | float
) -> Tensor:
    """Return by how much the gap misses the margin, per sample: ``max(0, margin-gap)``.

    Args:
        anchor: Shape ``(..., d)``.
        positive: What is to be near it, same shape.
        negative: What is to be far from it, same shape.
        margin: The gap that is asked for, ``(...)`` or one for all.

    Returns:
        Shape ``(...)``; loss and gradient are 0 where the gap is reached.
    """
    return (margin - triplet_gap(anchor, positive, negative)).clamp(min=0)


def mmcr_loss(z_views: Tensor) -> Tensor:
    """Return minus the nuclear norm of the views' mean normalized embeddings.

    Maximum manifold capacity: small where views of one sample agree and samples
    differ. A term for pretraining of your own: it is a function of a whole batch, so
    it is no loss of a ``FlatModel``, whose losses are of one row each.

    Args:
        z_views: Embeddings of V views of B samples, shape ``(B, V, d)``.

    Returns:
        Shape ``()``, at least ``-sqrt(B min(B, d))``.

    References:
        The term and its place in pretraining as in [code: wwq5-code/ManiF].
    """
    norm: Tensor = torch.linalg.matrix_norm(unit(z_views).mean(dim=-2), "nuc")
    return -norm
