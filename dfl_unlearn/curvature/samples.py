r"""Gradients of single samples, with the labels of the data or with the model's own.

The empirical Fisher information takes each row's gradient at its label in the data; the
true one takes the expectation over labels drawn from the model,
:math:`E_{y \sim p_\theta}[g(y) g(y)^\top]`. Here that expectation is exact: a row
comes once for every class, weighted by the class's probability; a regression has unit
variance, so one pseudo-label at distance 1 from the prediction gives the same outer
product. For the known losses the true Fisher information is the Gauss-Newton matrix
(Martens, *New insights and perspectives on the natural gradient method*, 2020, section
9, [recalled]).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel

if TYPE_CHECKING:
    from dfl_unlearn.curvature.operators import Objective

Labels = Literal["data", "model"]

_PART_ROWS = 64  # rows whose gradients are held at once


def check_labels(model: FlatModel, labels: Labels) -> None:
    """Refuse to take the expectation over labels of a model that has no such law.

    Args:
        model: The model.
        labels: Whose labels are asked for.

    Raises:
        UnsupportedModelError: If the loss is one of your own and labels are the
            model's.
    """
    if labels == "model" and model.loss_name == "custom":
        raise UnsupportedModelError(
            "loss: must be cross-entropy, binary-logistic or squared-error where "
            "labels are drawn from the model, got 'custom'; use "
            "curvature='empirical_fisher' or 'exact_cg'"
        )


@torch.no_grad()
def labelled(
    model: FlatModel, theta: Tensor, x: Tensor, y: Tensor, labels: Labels
) -> list[tuple[Tensor, Tensor]]:
    """Return every label that rows are to be taken with, and its probability.

    Args:
        model: The model, see ``check_labels``.
        theta: Where the model's labels are drawn, shape ``(P,)`` float64.
        x: Inputs, shape ``(B, ...)`` float64.
        y: Labels in the data, shape ``(B,)``.
        labels: ``data``, or ``model`` for the exact expectation.

    Returns:
        Pairs of labels and probabilities, both ``(B,)``; the probabilities of a row
        sum to 1.
    """
    ones = torch.ones(len(x), dtype=torch.float64)
    if labels == "data":
        return [(y, ones)]
    outputs = model.predict(theta, x)
    if model.loss_name == "squared-error":
        return [(outputs + 1, ones)]
    law = outputs.softmax(dim=1)
    return [(torch.full_like(y, c), law[:, c]) for c in range(law.shape[1])]


def sample_gradients(
    objective: "Objective", theta: Tensor, labels: Labels
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the gradients of single samples, a few rows at a time.

    Args:
        objective: Its rows; the l2 term is left out.
        theta: Where, shape ``(P,)`` float64.
        labels: Whose labels.

    Yields:
        Gradients ``(B, P)`` and weights ``(B,)``, float64; the sum of weighted outer
        products over all of them is the Fisher information of the data term.
    """
    model = objective.model
    check_labels(model, labels)

    def sample_loss(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return model.sample_losses(p, (x[None], y[None]))[0]

    per_sample = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))
    for x, y, w in row_parts(objective):
        for label, share in labelled(model, theta, x, y, labels):
            yield per_sample(theta, x, label).detach(), w * share


def row_parts(objective: "Objective") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield float64 inputs, labels and weights of at most 64 rows at a time."""
    for x, y, w in objective._chunks:
        for part in torch.arange(len(x)).split(_PART_ROWS):
            yield x[part], y[part], w[part]
