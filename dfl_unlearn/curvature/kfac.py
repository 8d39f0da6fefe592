r"""Kronecker-factored Fisher information of linear and convolutional layers.

Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored Approximate
Curvature* (2015), and Grosse and Martens, *A Kronecker-factored approximate Fisher
matrix for convolution layers* (2016); both [recalled].

======================  ==========================================================
symbol                  name here
======================  ==========================================================
:math:`\bar a`          what a layer's matrix is applied to, a 1 appended for a bias
:math:`g`               derivative of a row's loss in what the matrix gives
:math:`A`, :math:`G`    ``inputs`` and ``outputs`` of ``KroneckerBlock``
:math:`\pi`             ``balance``
:math:`\lambda+\eta`    l2 and damping
======================  ==========================================================

With row weights w, their sum S and T positions per row (1 for a linear layer on
vectors, the pixels of its output for a convolution):

.. math::
   A = \sum_r \tfrac{w_r}{S} \sum_t \bar a_{rt} \bar a_{rt}^\top, \qquad
   G = \sum_r w_r \tfrac1T \sum_t E[g_{rt} g_{rt}^\top], \qquad
   \hat H_l = (A + \pi \sqrt{d}\, I) \otimes (G + \sqrt{d} / \pi\, I),

d being l2 plus damping and :math:`\pi^2` the mean eigenvalue of A over that of G. The
product stands for the layer's block of the Fisher information: exact for one row with
one position, else it takes inputs and derivatives as independent; nothing bounds the
error. Labels are the model's own, in exact expectation (``curvature.samples``); the
source draws one.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from dfl_unlearn.curvature.blocks import MAX_DENSE, positive_factor
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.curvature.samples import check_labels, label_law, row_parts
from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.layers import MatrixLayer, matrix_layers, traced


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerBlock:
    """One layer's damped factors.

    Attributes:
        layer: Its parameters.
        inputs: A with its part of the damping, shape ``(a, a)`` float64.
        outputs: G with its part, shape ``(b, b)``.
        inputs_factor: Cholesky factor of ``inputs``.
        outputs_factor: Cholesky factor of ``outputs``.
    """

    layer: MatrixLayer
    inputs: Tensor
    outputs: Tensor
    inputs_factor: Tensor
    outputs_factor: Tensor

    @classmethod
    def of(
        cls, layer: MatrixLayer, a: Tensor, g: Tensor, *, l2: float, damping: float
    ) -> "KroneckerBlock":
        """Damp and factor what a layer's rows gave.

        Args:
            layer: Its parameters.
            a: A, shape ``(a, a)``.
            g: G, shape ``(b, b)``.
            l2: Of the objective.
            damping: As the caller set it.

        Returns:
            The block.
        """
        root, pi = sqrt(l2 + damping), balance(a, g)
        a = a + pi * root * torch.eye(len(a), dtype=torch.float64)
        g = g + root / pi * torch.eye(len(g), dtype=torch.float64)
        what = f"the Kronecker factor of layer {layer.name or 'itself'!r}"
        return cls(
            layer=layer,
            inputs=a,
            outputs=g,
            inputs_factor=positive_factor(a, what, damping),
            outputs_factor=positive_factor(g, what, damping),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class KfacFisher:
    """A Kronecker product per layer, with damping split between its factors.

    Attributes:
        blocks: One per layer; together they cover the model.
        size: P.
        rows: Per-sample gradients that it took.
    """

    blocks: tuple[KroneckerBlock, ...]
    size: int
    rows: int

    @classmethod
    def at(cls, objective: Objective, theta: Tensor, *, damping: float) -> "KfacFisher":
        """Compute the factors at a point.

        Args:
            objective: Whose rows and weights to use.
            theta: The point, shape ``(P,)``.
            damping: Added to l2, >= 0.

        Returns:
            The operator.
        """
        model, theta = objective.model, theta.double()
        layers = check_kfac(model)
        sides = [_sides(layer) for layer in layers]
        inputs = [torch.zeros(a, a, dtype=torch.float64) for a, _ in sides]
        outputs = [torch.zeros(b, b, dtype=torch.float64) for _, b in sides]
        total = float(objective.weights.sum())
        rows = 0
        for x, _, w in row_parts(objective):
            with traced(layers) as calls:
                given = model.predict(theta.detach().requires_grad_(), x)
            for a, layer in zip(inputs, layers, strict=True):
                a += _moment(layer.positions(calls[layer.name][0]), w / total)
            written = [calls[layer.name][1] for layer in layers]
            for label, share in label_law(model, given):
                slopes = torch.autograd.grad(
                    _total_loss(given, label),
                    written,
                    retain_graph=True,
                    materialize_grads=True,
                )
                rows += len(x)
                for g, layer, slope in zip(outputs, layers, slopes, strict=True):
                    at = layer.written(slope)
                    g += _moment(at, w * share / at.shape[1])
        return cls(
            blocks=tuple(
                KroneckerBlock.of(layer, a, g, l2=model.l2, damping=damping)
                for layer, a, g in zip(layers, inputs, outputs, strict=True)
            ),
            size=model.size,
            rows=rows,
        )

    @property
    def floats(self) -> int:
        """Numbers that peers must add up to have it: the factors' squared sides."""
        return sum(len(b.inputs) ** 2 + len(b.outputs) ** 2 for b in self.blocks)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the damped products times a vector, shape ``(P,)`` float64."""
        result = torch.empty(self.size, dtype=torch.float64)
        for block in self.blocks:
            layer = block.layer
            layer.put_(block.outputs @ layer.matrix(vector) @ block.inputs, result)
        return result

    def solve(self, vector: Tensor) -> Tensor:
        """Return the inverse products times a vector, shape ``(P,)``."""
        result = torch.empty(self.size, dtype=torch.float64)
        for block in self.blocks:
            given = block.layer.matrix(vector)
            half = torch.cholesky_solve(given, block.outputs_factor)
            whole = torch.cholesky_solve(half.T, block.inputs_factor).T
            block.layer.put_(whole, result)
        return result


def check_kfac(model: FlatModel) -> tuple[MatrixLayer, ...]:
    """Refuse a model that Kronecker factors are not defined for here.

    Args:
        model: The model.

    Returns:
        Its layers.

    Raises:
        UnsupportedModelError: If a layer's factor would be too large.
    """
    check_labels(model, "model")
    layers = matrix_layers(model)
    for layer in layers:
        if max(_sides(layer)) > MAX_DENSE:
            raise UnsupportedModelError(
                f"model: layer {layer.name or 'itself'!r} must have <= {MAX_DENSE} "
                f"inputs and outputs for dense Kronecker factors, got {_sides(layer)}; "
                "use curvature='diag_fisher'"
            )
    return layers


def balance(a: Tensor, g: Tensor) -> float:
    """Return pi: the root of A's mean eigenvalue over G's, 1 where one of them is 0."""
    mean_a, mean_g = float(a.trace()) / len(a), float(g.trace()) / len(g)
    return sqrt(mean_a / mean_g) if mean_a > 0 and mean_g > 0 else 1.0


def _sides(layer: MatrixLayer) -> tuple[int, int]:
    """Return the sides of A and of G."""
    outputs = layer.weight.shape[0]
    return layer.weight.size // outputs + (layer.bias is not None), outputs


def _total_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the losses of what ``predict`` gave.

    Rows do not influence each other, so its gradient in a layer's outputs is that of
    each row's own loss.
    """
    if labels.is_floating_point():
        return 0.5 * (outputs - labels).square().sum()
    return functional.cross_entropy(outputs, labels, reduction="sum")


def _moment(values: Tensor, weights: Tensor) -> Tensor:
    """Return sum_r w_r sum_t v_rt v_rt' for values ``(B, T, n)``, shape ``(n, n)``."""
    flat = values.flatten(0, 1)
    scaled = (values * weights[:, None, None]).flatten(0, 1)
    return flat.T @ scaled
