"""W @ params: every peer averages its parameters with its neighbours'."""

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


def as_csr(weights: sp.csr_array, dtype: torch.dtype) -> Tensor:
    """Return a mixing matrix as a torch CSR tensor with sorted columns.

    Args:
        weights: W, shape ``(N, N)``, float64.
        dtype: Type of the product.

    Returns:
        The same matrix, cast once.
    """
    weights = weights.tocsr()
    weights.sort_indices()
    with warnings.catch_warnings():
        # torch says once per process that CSR is in beta; the product is tested.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(weights.indptr.astype(np.int64)),
            torch.from_numpy(weights.indices.astype(np.int64)),
            torch.from_numpy(weights.data).to(dtype),
            size=weights.shape,
            check_invariants=True,
        )


def with_values(weights: Tensor, values: Tensor) -> Tensor:
    """Return a CSR matrix with the places of another one.

    Args:
        weights: From ``as_csr``.
        values: Its new entries, in order, of its type.

    Returns:
        The matrix; places are shared.
    """
    return torch.sparse_csr_tensor(
        weights.crow_indices(),
        weights.col_indices(),
        values,
        size=weights.shape,
        check_invariants=False,
    )


def mix(params: Tensor, weights: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Average every peer's parameters with its neighbours'.

    Each row is summed in ascending peer order.

    Args:
        params: One row per peer, shape ``(N, P)``.
        weights: Mixing matrix W as CSR (``as_csr``), shape ``(N, N)``.
        out: Receives the result; writing into a buffer that was used before is about
            eight times faster than into a fresh one (page faults).

    Returns:
        W @ params, shape ``(N, P)``: ``out`` where it was given.
    """
    if out is None:
        out = torch.empty_like(params)
    return torch.addmm(out, weights, params, beta=0, alpha=1, out=out)
