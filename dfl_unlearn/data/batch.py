"""Rows of inputs with their labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.errors import DataError

INPUT_TYPES = (torch.uint8, torch.float32, torch.float64)
LABEL_TYPES = (torch.int64, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """Inputs and labels of R records; never written to.

    Attributes:
        inputs: Shape ``(R, ...)``: uint8 images, or float32 or float64 features.
        labels: Shape ``(R,)``: int64 classes, or float32 or float64 targets of a
            regression.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check types and shapes.

        Raises:
            DataError: If a shape or a number type does not fit.
        """
        _validate.of_type(Tensor, inputs=self.inputs, labels=self.labels)
        if self.inputs.dtype not in INPUT_TYPES:
            raise DataError(
                f"inputs: must be uint8, float32 or float64, got {self.inputs.dtype}; "
                "images are uint8 and anything else is floating point"
            )
        if self.labels.dtype not in LABEL_TYPES:
            raise DataError(
                "labels: must be int64 (classes), float32 or float64 (regression), "
                f"got {self.labels.dtype}; convert them"
            )
        if self.inputs.ndim < 2:
            raise DataError(
                "inputs: must have the shape (records, ...) with at least one feature "
                f"dimension, got {tuple(self.inputs.shape)}; a single feature is a "
                "column, shape (records, 1)"
            )
        if self.labels.shape != self.inputs.shape[:1]:
            raise DataError(
                f"labels: must have the shape ({len(self.inputs)},), one per record, "
                f"got {tuple(self.labels.shape)}; pass one number per record"
            )

    def __len__(self) -> int:
        """Return the number of records R."""
        return len(self.labels)

    @property
    def is_regression(self) -> bool:
        """Whether the labels are floating-point targets instead of classes."""
        return self.labels.is_floating_point()


def check_values(
    batch: TensorBatch, num_classes: int, place: str, record: Callable[[int], str]
) -> None:
    """Refuse features that are not finite and labels outside the classes.

    Args:
        batch: The rows.
        num_classes: Number of classes; 0 means regression.
        place: Name of the rows in messages about all of them.
        record: Gives the name of one row in messages.

    Raises:
        DataError: Names the first record that does not fit.
    """
    inputs, labels = batch.inputs, batch.labels
    if batch.is_regression != (num_classes == 0):
        needed = "int64 classes" if num_classes else "floating-point targets"
        raise DataError(
            f"{place}: labels must be {needed} (num_classes={num_classes}), got "
            f"{labels.dtype}; num_classes=0 means regression"
        )
    # One NaN or infinity makes the sum non-finite; only then look closer.
    if inputs.is_floating_point() and not inputs.sum(dtype=torch.float64).isfinite():
        bad = torch.nonzero(~inputs.isfinite())
        if len(bad):
            row, *at = bad[0].tolist()
            value = inputs[(row, *at)].item()
            feature = int(np.ravel_multi_index(at, inputs.shape[1:]))
            word = "NaN" if np.isnan(value) else f"{value}"
            raise DataError(
                f"{record(row)}: feature {feature} is {word}; remove or impute it"
            )
    if num_classes:
        wrong = (labels < 0) | (labels >= num_classes)
        needed = f"in 0..{num_classes - 1}"
        remedy = "count the classes from 0, or set num_classes"
    else:
        wrong = ~labels.isfinite()
        needed, remedy = "a finite number", "remove or impute it"
    if wrong.any():
        row = int(torch.nonzero(wrong)[0])
        raise DataError(
            f"{record(row)}: label must be {needed}, got {labels[row].item()}; {remedy}"
        )
