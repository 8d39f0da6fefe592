"""Small array conventions that several layers share.

Images are stored as uint8 and become floats in [0, 1] in the gathered batch; this is
the one place that says so.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGE_SCALE = 255.0


def as_features(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return inputs as floats: uint8 is divided by 255, floats are cast.

    Args:
        inputs: Any shape; uint8 images or floating-point features.
        dtype: Floating-point type of the result.

    Returns:
        Same shape; the input itself where nothing had to change.
    """
    if inputs.dtype == torch.uint8:
        return inputs.to(dtype) / IMAGE_SCALE
    return inputs.to(dtype)


def gather_rows(
    store: NDArray[np.generic], index: NDArray[np.intp], out: NDArray[np.floating]
) -> None:
    """Write rows of a store into a float buffer, converting images as above.

    Args:
        store: Rows of any number type, shape ``(R, F)``.
        index: Row numbers, shape ``(K,)``.
        out: Receives the rows, shape ``(K, F)``.
    """
    if store.dtype == out.dtype:
        np.take(store, index, axis=0, out=out, mode="clip")
        return
    out[...] = store[index]
    if store.dtype == np.uint8:
        out /= out.dtype.type(IMAGE_SCALE)


def contiguous(index: NDArray[np.int64]) -> slice | None:
    """Return the slice that an index is, or None where it is not one."""
    first, count = int(index[0]), len(index)
    if np.array_equal(index, np.arange(first, first + count)):
        return slice(first, first + count)
    return None
