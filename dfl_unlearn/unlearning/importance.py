"""What single rows' gradients say about each weight, counted, within a budget."""

import torch
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn.curvature.samples import (
    PART_ROWS,
    Labels,
    PerSample,
    check_labels,
    label_law,
)
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.unlearning.local_work import LocalWork

CUT = (
    "the budget was spent in preparation, before anything was known: nothing was "
    "changed"
)


def mean_squared_gradients(
    work: LocalWork, data: TensorBatch, *, labels: Labels = "data"
) -> Tensor | None:
    """Return the mean over rows of the squared gradients of single rows.

    Args:
        work: Where; its count and budget are used.
        data: The rows, at least one.
        labels: ``data``: a row's own label; ``model``: the expectation over labels
            drawn from the model, exact, one gradient per class and row.

    Returns:
        The data term's diagonal, shape ``(P,)`` float64; None where the budget was
        spent before the last row.
    """
    model, theta = work.model, work.params.double()
    check_labels(model, labels)
    per_sample = PerSample(model, theta)
    total = torch.zeros_like(theta)
    for rows in torch.arange(len(data)).split(PART_ROWS):
        x = as_features(data.inputs[rows], torch.float64)
        y = data.labels[rows]
        ones = torch.ones(len(rows), dtype=torch.float64)
        pairs = [(y.double() if y.is_floating_point() else y, ones)]
        if labels == "model":
            with torch.no_grad():
                pairs = label_law(model, model.predict(theta, x))
        for label, share in pairs:
            if work.spent():
                return None
            total += per_sample.squares(x, label, share)
            work.sample_gradients += len(rows)
    return total / len(data)
