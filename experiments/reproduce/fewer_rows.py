"""A part of a data set, another one for every seed."""

from dataclasses import replace

import torch

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.rng import RngTree


def fewer_rows(name: str, rows: int, test_rows: int, seed: int) -> Dataset:
    """Return a data set of rows drawn without replacement.

    Args:
        name: Registered name.
        rows: Training rows to take; all if there are fewer.
        test_rows: The same for the test rows.
        seed: Of the draw.

    Returns:
        The smaller data set.
    """
    dataset = datasets.build(name)
    draws = RngTree(seed).child("rows").numpy("data-split")

    def some(batch: TensorBatch, count: int) -> TensorBatch:
        index = torch.from_numpy(draws.permutation(len(batch))[:count])
        return TensorBatch(batch.inputs[index], batch.labels[index])

    return replace(
        dataset, train=some(dataset.train, rows), test=some(dataset.test, test_rows)
    )
