r"""Gradients, and their derivatives along a direction, of many peers' batch losses.

For k peers with rows :math:`x_i`, directions :math:`v_i` and sample weights
:math:`w`, :math:`\kappa` (sums over a batch, float64):

.. math::
   g_i = \sum_r w_{ir} \nabla\ell_r(x_i), \qquad
   p_i = \sum_r w_{ir} \nabla^2\ell_r(x_i)\, v_i, \qquad
   c_i = \sum_r \kappa_{ir} \nabla\ell_r(x_i).

Linear models have closed forms, :math:`X^\top D X v` with all peers of a chunk in one
product; other models differentiate :math:`g \cdot v` once more, batched by ``vmap``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap

from dfl_unlearn._arrays import as_features
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.models.flat import FlatModel, LinearLayer


@dataclass(frozen=True, kw_only=True, eq=False)
class Derivatives:
    """What one batch of k peers gives; the data term only, float64, ``(k, P)`` each.

    Attributes:
        gradient: Of the batch loss.
        product: Hessian of the batch loss times the direction.
        chosen: Gradient of the chosen rows' part.
    """

    gradient: Tensor
    product: Tensor
    chosen: Tensor


class BatchLoss:
    """The data term of a model on rows of one store."""

    def __init__(self, model: FlatModel, store: TensorBatch) -> None:
        """Prepare the derivatives.

        Args:
            model: The model.
            store: The rows that batches name.
        """
        self._model = model
        self._store = store
        structure = model.structure
        linear = structure is not None and len(structure.layers) == 1
        self._layer = structure.layers[0] if structure and linear else None

    def at(
        self,
        params: Tensor,
        direction: Tensor,
        index: NDArray[np.int64],
        weights: NDArray[np.float64],
        chosen: NDArray[np.float64],
    ) -> Derivatives:
        """Return gradient, Hessian product and the chosen rows' gradient.

        Args:
            params: Where, shape ``(k, P)`` float64.
            direction: What the Hessians are multiplied by, shape ``(k, P)`` float64.
            index: Row numbers in the store, shape ``(k, B)``.
            weights: What each row counts in the loss, shape ``(k, B)``.
            chosen: What each row counts in the chosen part, shape ``(k, B)``.

        Returns:
            The three, nothing shared with the arguments.
        """
        k, slots = index.shape
        rows = torch.from_numpy(index.reshape(-1))
        x = as_features(self._store.inputs[rows], torch.float64)
        x = x.reshape(k, slots, *x.shape[1:])
        y = self._store.labels[rows].reshape(k, slots)
        if y.is_floating_point():
            y = y.double()
        w, c = torch.from_numpy(weights), torch.from_numpy(chosen)
        if self._layer is not None:
            x = x.reshape(k, slots, -1)
            return self._linear(self._layer, params, direction, x, y, w, c)
        return Derivatives(
            **vmap(self._one, randomness="error")(params, direction, x, y, w, c)
        )

    def _one(
        self, row: Tensor, v: Tensor, x: Tensor, y: Tensor, w: Tensor, c: Tensor
    ) -> dict[str, Tensor]:
        def gradient(row: Tensor, weights: Tensor) -> Tensor:
            def loss(p: Tensor) -> Tensor:
                return self._model.sample_losses(p, (x, y)) @ weights

            found: Tensor = grad(loss)(row)
            return found

        def along(p: Tensor) -> tuple[Tensor, Tensor]:
            g = gradient(p, w)
            return g @ v, g

        product, g = grad(along, has_aux=True)(row)
        return {"gradient": g, "product": product, "chosen": gradient(row, c)}

    def _linear(
        self,
        layer: LinearLayer,
        params: Tensor,
        direction: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        c: Tensor,
    ) -> Derivatives:
        """Return the closed forms; x is ``(k, B, F)``, y, w and c are ``(k, B)``."""

        def outputs(vector: Tensor) -> Tensor:
            z = x @ layer.weight.view(vector).transpose(1, 2)
            return z if layer.bias is None else z + layer.bias.view(vector)[:, None]

        def collect(outer: Tensor) -> Tensor:
            total = torch.zeros_like(params)
            layer.weight.view(total).copy_(outer.transpose(1, 2) @ x)
            if layer.bias is not None:
                layer.bias.view(total).copy_(outer.sum(1))
            return total

        z, u = outputs(params), outputs(direction)
        if self._model.loss_name == "cross-entropy":
            p = z.softmax(dim=2)
            error = p.clone()
            at = y[..., None]
            error.scatter_(2, at, error.gather(2, at) - 1)
            change = p * (u - (p * u).sum(dim=2, keepdim=True))
        elif self._model.loss_name == "binary-logistic":
            p = z.sigmoid()
            error, change = p - y[..., None], p * (1 - p) * u
        else:  # squared error
            error, change = z - y[..., None], u
        return Derivatives(
            gradient=collect(error * w[..., None]),
            product=collect(change * w[..., None]),
            chosen=collect(error * c[..., None]),
        )
