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
from dfl_unlearn.models.layers import MatrixLayer, matrix_layers, traced

if TYPE_CHECKING:
    from dfl_unlearn.curvature.operators import Objective

Labels = Literal["data", "model"]

PART_ROWS = 64  # rows whose gradients are held at once


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


def label_law(model: FlatModel, outputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return every label that the model's own law gives rows, and its probability.

    Args:
        model: The model, see ``check_labels``.
        outputs: What ``predict`` gave, ``(B, C)``, or ``(B,)`` for a regression.

    Returns:
        Pairs of labels and probabilities, both ``(B,)``; the probabilities of a row
        sum to 1.
    """
    outputs = outputs.detach()
    if model.loss_name == "squared-error":
        return [(outputs + 1, torch.ones_like(outputs))]
    law = outputs.softmax(dim=1)
    whole = torch.ones(len(outputs), dtype=torch.int64)
    return [(c * whole, law[:, c]) for c in range(law.shape[1])]


class PerSample:
    """Gradients of single samples at a point, the data term only.

    A model of linear layers and plain convolutions is differentiated once for all
    samples, in what its layers write: a sample's gradient in a layer's matrix is the
    sum over positions of outer products of that with what the layer reads. Other
    models go one sample at a time, batched by ``vmap``.
    """

    def __init__(self, model: FlatModel, theta: Tensor) -> None:
        """Take the model and the point, shape ``(P,)`` float64."""
        self._model = model
        self._theta = theta.detach()
        try:
            self._layers = matrix_layers(model)
        except UnsupportedModelError:
            self._layers = ()

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Return every sample's gradient.

        Args:
            x: Inputs, shape ``(B, ...)`` float64.
            y: Labels, shape ``(B,)``.

        Returns:
            Shape ``(B, P)``.
        """
        found = self._layer_values(x, y)
        if not found:
            return self._one_by_one(x, y)
        total = torch.empty((len(x), len(self._theta)), dtype=torch.float64)
        for layer, read, slope in found:
            layer.put_(slope.transpose(1, 2) @ read, total)
        return total

    def squares(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of squared gradients.

        Args:
            x: Inputs, shape ``(B, ...)`` float64.
            y: Labels, shape ``(B,)``.
            weights: Shape ``(B,)``.

        Returns:
            Shape ``(P,)``.
        """
        found = self._layer_values(x, y)
        if not found:
            return weights @ self._one_by_one(x, y).square_()
        total = torch.empty_like(self._theta)
        for layer, read, slope in found:
            if read.shape[1] == 1:  # the square of a product is that of its factors
                outer = slope[:, 0].square() * weights[:, None]
                square = outer.T @ read[:, 0].square()
            else:
                each = (slope.transpose(1, 2) @ read).square_()
                square = torch.tensordot(weights, each, dims=1)
            layer.put_(square, total)
        return total

    def _layer_values(
        self, x: Tensor, y: Tensor
    ) -> list[tuple[MatrixLayer, Tensor, Tensor]]:
        """Return what each layer reads and its outputs' derivatives, or nothing."""
        if not self._layers:
            return []
        leaf = self._theta.detach().requires_grad_()
        try:
            with traced(self._layers) as calls:
                losses = self._model.sample_losses(leaf, (x, y))
        except UnsupportedModelError:  # a layer that is not used once
            self._layers = ()
            return []
        slopes = torch.autograd.grad(
            losses.sum(),
            [calls[layer.name][1] for layer in self._layers],
            materialize_grads=True,
        )
        return [
            (layer, layer.positions(calls[layer.name][0]), layer.written(slope))
            for layer, slope in zip(self._layers, slopes, strict=True)
        ]

    def _one_by_one(self, x: Tensor, y: Tensor) -> Tensor:
        def sample_loss(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._model.sample_losses(p, (x[None], y[None]))[0]

        found: Tensor = torch.func.vmap(torch.func.grad(sample_loss), (None, 0, 0))(
            self._theta, x, y
        )
        return found


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
    per_sample = PerSample(model, theta)
    for x, y, w in row_parts(objective):
        pairs = [(y, torch.ones_like(w))]
        if labels == "model":
            with torch.no_grad():
                pairs = label_law(model, model.predict(theta, x))
        for label, share in pairs:
            yield per_sample.gradients(x, label), w * share


def row_parts(objective: "Objective") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield float64 inputs, labels and weights of at most 64 rows at a time."""
    for x, y, w in objective._chunks:
        for part in torch.arange(len(x)).split(PART_ROWS):
            yield x[part], y[part], w[part]
