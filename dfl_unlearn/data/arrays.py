"""A data set of your own from a file of plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._arrayfile import read_arrays
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.sources import Dataset, datasets, held_out
from dfl_unlearn.errors import DataError, InputFileError

_TRAIN, _TEST = ("inputs", "labels"), ("test_inputs", "test_labels")


@datasets.register("arrays")
def arrays(
    *,
    file: str | Path,
    num_classes: int | None = None,
    test_share: float = 0.2,
    feature_bound: float | None = None,
    norm_bound: float | None = None,
) -> Dataset:
    """Arrays of your own from a .npz or .safetensors file, read under strict limits.

    The file holds ``inputs`` ``(R, ...)`` (uint8 images, or float32 or float64
    features) and ``labels`` ``(R,)`` (whole numbers are classes, floating-point ones
    make it a regression), and may hold ``test_inputs`` and ``test_labels``; see
    ``store.inputs.read_arrays`` for what is refused.

    Args:
        file: The file.
        num_classes: Number of classes; None counts the labels.
        test_share: Where the file has no test rows: share of each class (of all rows
            of a regression) that is held out, always the same rows, in [0, 1).
        feature_bound: Public bound on the size of every feature, or None.
        norm_bound: Public bound on the norm of every row, or None.

    Returns:
        The data set.

    Raises:
        InputFileError: If the file holds other arrays.
        DataError: If they do not fit together.
    """
    _validate.of_type((str, Path), file=file)
    _validate.number(test_share=test_share, at_least=0, below=1)
    where = _validate.clean(str(file))
    found = read_arrays(file)
    if set(found) not in (set(_TRAIN), {*_TRAIN, *_TEST}):
        got = ", ".join(_validate.clean(key)[:80] for key in sorted(found))
        raise InputFileError(
            f"{where}: must hold the arrays inputs and labels, and test_inputs and "
            f"test_labels or neither, got {got or 'none'}; save them under these names"
        )
    inputs, labels = (found[key] for key in _TRAIN)
    if inputs.ndim < 2 or labels.shape != inputs.shape[:1] or not len(labels):
        raise DataError(
            f"{where}: inputs must have the shape (records, ...) and labels "
            f"(records,), got {inputs.shape} and {labels.shape}; give one label each"
        )
    if set(found) == set(_TRAIN):
        test = _test_rows(labels, test_share)
        parts = [(inputs[~test], labels[~test]), (inputs[test], labels[test])]
    else:
        parts = [(inputs, labels), (found[_TEST[0]], found[_TEST[1]])]
    train, tested = (_batch(where, *part) for part in parts)
    if num_classes is None:
        num_classes = 0 if train.is_regression else _count(train, tested)
    return Dataset(
        train=train,
        test=tested,
        num_classes=num_classes,
        name="arrays",
        source=f"the file {Path(file).name}",
        feature_bound=feature_bound,
        norm_bound=norm_bound,
    )


def _test_rows(labels: NDArray[Any], share: float) -> NDArray[np.bool_]:
    whole = np.zeros(len(labels), np.int64)
    classes = whole if np.issubdtype(labels.dtype, np.floating) else labels
    return held_out(classes, "arrays", share)


def _batch(where: str, inputs: NDArray[Any], labels: NDArray[Any]) -> TensorBatch:
    """Return rows as tensors; classes in any whole type become int64.

    Raises:
        DataError: If types or shapes do not fit.
    """
    if not np.issubdtype(labels.dtype, np.floating):
        labels = labels.astype(np.int64)
    pair = (torch.from_numpy(np.ascontiguousarray(part)) for part in (inputs, labels))
    try:
        return TensorBatch(*pair)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _count(train: TensorBatch, test: TensorBatch) -> int:
    highest = max(int(part.labels.max()) for part in (train, test) if len(part))
    return max(2, 1 + highest)
