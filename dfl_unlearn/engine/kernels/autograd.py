"""Any other model: automatic differentiation, peer by peer or batched by ``vmap``.

``loop`` takes one peer after the other on views of its row; on a CPU that is the
fastest way for convolutions, which do not batch over peers there. ``vmap`` batches the
peers of a chunk. Both clip per sample by a second ``vmap`` over the batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from dfl_unlearn._arrays import as_features
from dfl_unlearn.engine.batches import Batch
from dfl_unlearn.engine.kernels.contract import StepRule, apply_gradient
from dfl_unlearn.models.flat import FlatModel


class AutogradKernel:
    """Local steps of any model, through automatic differentiation."""

    def __init__(
        self,
        model: FlatModel,
        rule: StepRule,
        *,
        inputs: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        batched: bool,
    ) -> None:
        """Prepare the kernel.

        Args:
            model: The model.
            rule: How a gradient moves a row.
            inputs: The store's inputs, shape ``(R, ...)``.
            labels: The store's labels, shape ``(R,)``.
            dtype: Type of the arithmetic.
            batched: Whether the peers of a chunk go through ``vmap`` at once.
        """
        self._model = model
        self._rule = rule
        self._inputs = inputs
        self._labels = labels
        self._dtype = dtype
        self._gradients = self._vmapped if batched else self._looped

    def step(
        self,
        params: Tensor,
        batch: Batch,
        rates: NDArray[np.float64],
        scale: NDArray[np.float64],
        velocity: Tensor | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take one step of k peers in place; see ``Kernel.step``."""
        k, slots = batch.index.shape
        rows = torch.from_numpy(batch.index.reshape(-1))
        x = as_features(self._inputs[rows], self._dtype)
        x = x.reshape(k, slots, *x.shape[1:])
        y = self._labels[rows].reshape(k, slots)
        weights = torch.from_numpy(batch.weights).to(self._dtype)
        losses, gradient = self._gradients(params, x, y, weights)
        gradient.mul_(torch.from_numpy(scale).to(self._dtype)[:, None])
        norms = torch.linalg.vector_norm(gradient, dim=1).double().numpy()
        apply_gradient(params, gradient, self._rule, rates, scale, velocity)
        return losses.double().numpy(), norms

    def _looped(
        self, params: Tensor, x: Tensor, y: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return batch losses ``(k,)`` and data-term gradients ``(k, P)``."""
        losses = torch.empty(len(params), dtype=self._dtype)
        gradient = torch.empty_like(params)
        for i, row in enumerate(params):
            named = {
                name: part.requires_grad_()
                for name, part in self._model.fast_named(row).items()
            }
            loss = self._model.named_losses(named, x[i], y[i]) @ weights[i]
            losses[i] = loss.detach()
            if self._rule.clip_norm is None:
                parts = torch.autograd.grad(
                    loss, list(named.values()), materialize_grads=True
                )
                torch.cat([p.reshape(-1) for p in parts], out=gradient[i])
            else:
                gradient[i] = self._clipped(row, x[i], y[i], weights[i])
        return losses, gradient

    def _vmapped(
        self, params: Tensor, x: Tensor, y: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return batch losses ``(k,)`` and data-term gradients ``(k, P)``."""

        def loss(row: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return self._model.sample_losses(row, (x, y)) @ w

        gradient, losses = vmap(grad_and_value(loss))(params, x, y, weights)
        if self._rule.clip_norm is not None:
            gradient = torch.stack(
                [self._clipped(*one) for one in zip(params, x, y, weights, strict=True)]
            )
        return losses, gradient.contiguous()

    def _clipped(self, row: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Return one peer's weighted sum of clipped per-sample gradients, ``(P,)``."""
        clip_norm = self._rule.clip_norm
        assert clip_norm is not None

        def sample_loss(p: Tensor, one: Tensor, label: Tensor) -> Tensor:
            return self._model.sample_losses(p, (one[None], label[None]))[0]

        gradients = vmap(grad(sample_loss), in_dims=(None, 0, 0))(row, x, y)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        factor = (clip_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
        clipped: Tensor = (w * factor) @ gradients
        return clipped
