"""Linear models and multilayer perceptrons: hand-batched products over peers.

Forward and backward passes of k peers are 3-D matrix products into reused buffers, in
NumPy (whose BLAS is the faster one on many CPUs), on views of the stacked parameters.
Per-sample clipping needs no per-sample gradient: a linear layer's has the norm
``|delta| * sqrt(|input|^2 + 1)``.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import gather_rows
from dfl_unlearn.engine.batches import Batch
from dfl_unlearn.engine.kernels.contract import StepRule
from dfl_unlearn.models.flat import LinearLayer, LinearStack, Segment

Floats = NDArray[np.floating]


class StackedKernel:
    """Local steps of models that are linear layers with ReLU between them."""

    def __init__(
        self,
        stack: LinearStack,
        rule: StepRule,
        *,
        inputs: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
    ) -> None:
        """Prepare the kernel.

        Args:
            stack: The model's layers and loss.
            rule: How a gradient moves a row.
            inputs: The store's inputs, shape ``(R, ...)``.
            labels: The store's labels, shape ``(R,)``.
            dtype: Type of the arithmetic.
        """
        self._layers = stack.layers
        self._loss = stack.loss
        self._rule = rule
        self._inputs = inputs.reshape(len(inputs), -1).numpy()
        self._labels = labels.numpy()
        self._dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self._buffers: dict[tuple[str, int, tuple[int, ...]], Floats] = {}
        self._counting = np.arange(0)

    def step(
        self,
        params: Tensor,
        batch: Batch,
        rates: NDArray[np.float64],
        scale: NDArray[np.float64],
        velocity: Tensor | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take one step of k peers in place; see ``Kernel.step``."""
        theta = params.numpy()
        k, slots = batch.index.shape
        rows = batch.index.reshape(-1)
        x = self._buffer("x", 0, (k * slots, self._inputs.shape[1]))
        gather_rows(self._inputs, rows, x)
        acts: list[Floats] = [x.reshape(k, slots, -1)]
        for depth, layer in enumerate(self._layers):
            acts.append(self._forward(theta, layer, depth, acts[-1]))
        labels = self._labels[rows].reshape(k, slots)
        loss, delta = self._loss_and_delta(acts.pop(), labels, batch.weights)
        deltas = self._backward(theta, acts, delta)
        if self._rule.clip_norm is not None:
            self._clip(acts, deltas, batch.weights)
        factor = scale if velocity is not None else scale * rates
        for d in deltas:
            d *= factor.astype(self._dtype)[:, None, None]
        squares = np.zeros(k)
        decay = scale * self._rule.l2 + self._rule.weight_decay
        if velocity is None:
            if decay.any():
                theta *= (1 - rates * decay).astype(self._dtype)[:, None]
            target, sign = theta, -1
        else:
            v = velocity.numpy()
            moving = rates > 0
            shrink = np.where(moving, self._rule.momentum, 1.0)
            v *= shrink.astype(self._dtype)[:, None]
            v += (decay * moving).astype(self._dtype)[:, None] * theta
            target, sign = v, 1
        for depth, layer in enumerate(self._layers):
            gradient = self._buffer("g", depth, (k, *layer.weight.shape))
            np.matmul(deltas[depth].transpose(0, 2, 1), acts[depth], out=gradient)
            squares += _squares(gradient)
            _accumulate(_view(target, layer.weight), gradient, sign)
            if layer.bias is not None:
                bias_gradient = deltas[depth].sum(axis=1)
                squares += _squares(bias_gradient)
                _accumulate(_view(target, layer.bias), bias_gradient, sign)
        if velocity is not None:
            theta -= rates.astype(self._dtype)[:, None] * velocity.numpy()
            return loss, np.sqrt(squares)
        # The learning rate is inside the deltas; a peer at rest has rate 0.
        return loss, np.sqrt(squares) / np.where(rates > 0, rates, 1.0)

    def _forward(
        self, theta: Floats, layer: LinearLayer, depth: int, x: Floats
    ) -> Floats:
        k, slots, _ = x.shape
        out = self._buffer("z", depth, (k, slots, layer.weight.shape[0]))
        np.matmul(x, _view(theta, layer.weight).transpose(0, 2, 1), out=out)
        if layer.bias is not None:
            out += _view(theta, layer.bias)[:, None, :]
        if layer.activation == "relu":
            np.maximum(out, 0, out=out)
        return out

    def _loss_and_delta(
        self, z: Floats, labels: NDArray[np.generic], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], Floats]:
        """Return the batch losses and the weighted gradient in the outputs.

        The outputs' buffer is overwritten with the gradient.
        """
        w = weights.astype(self._dtype)
        if self._loss == "cross-entropy":
            z -= z.max(axis=2, keepdims=True)
            flat = z.reshape(-1)
            at = labels.reshape(-1) + self._steps(labels.size) * z.shape[2]
            right = flat[at].reshape(labels.shape)
            np.exp(z, out=z)
            total = z.sum(axis=2)
            losses = np.log(total) - right
            z *= (w / total)[..., None]
            flat[at] -= w.reshape(-1)
        elif self._loss == "binary-logistic":
            logit = z[..., 0]
            y = labels.astype(self._dtype)
            losses = np.logaddexp(0, logit) - y * logit
            z[..., 0] = w * (_sigmoid(logit) - y)
        else:  # squared error
            error = z[..., 0] - labels.astype(self._dtype)
            losses = 0.5 * error**2
            z[..., 0] = w * error
        return (losses * weights).sum(axis=1).astype(np.float64), z

    def _backward(
        self, theta: Floats, acts: list[Floats], delta: Floats
    ) -> list[Floats]:
        """Return the gradient in every layer's output, first layer first."""
        deltas = [delta]
        for depth in range(len(self._layers) - 1, 0, -1):
            layer = self._layers[depth]
            below = self._buffer("d", depth, acts[depth].shape)
            np.matmul(deltas[0], _view(theta, layer.weight), out=below)
            below *= acts[depth] > 0
            deltas.insert(0, below)
        return deltas

    def _clip(
        self,
        acts: list[Floats],
        deltas: list[Floats],
        weights: NDArray[np.float64],
    ) -> None:
        """Scale every sample's share down to the clipping norm, in place."""
        assert self._rule.clip_norm is not None
        squares = np.zeros(weights.shape)
        for layer, x, d in zip(self._layers, acts, deltas, strict=True):
            size = np.einsum("kbf,kbf->kb", x, x, dtype=np.float64)
            if layer.bias is not None:
                size += 1
            squares += size * np.einsum("kbf,kbf->kb", d, d, dtype=np.float64)
        # The deltas carry the weight of their sample; the bound is on the sample's own.
        bound = self._rule.clip_norm * weights
        norms = np.sqrt(squares)
        factor = np.divide(
            bound, norms, out=np.ones_like(norms), where=norms > bound
        ).astype(self._dtype)
        for d in deltas:
            d *= factor[..., None]

    def _steps(self, count: int) -> NDArray[np.int64]:
        if len(self._counting) < count:
            self._counting = np.arange(count)
        return self._counting[:count]

    def _buffer(self, name: str, depth: int, shape: tuple[int, ...]) -> Floats:
        key = (name, depth, shape)
        if key not in self._buffers:
            self._buffers[key] = np.empty(shape, dtype=self._dtype)
        return self._buffers[key]


def _view(theta: Floats, segment: Segment) -> Floats:
    """Return one parameter of all peers as a view, ``(k, *shape)``."""
    part = theta[:, segment.offset : segment.offset + segment.size]
    return part.reshape(len(theta), *segment.shape, copy=False)


def _accumulate(target: Floats, gradient: Floats, sign: int) -> None:
    if sign < 0:
        np.subtract(target, gradient, out=target)
    else:
        np.add(target, gradient, out=target)


def _squares(gradient: Floats) -> NDArray[np.float64]:
    """Return the squared norm of each peer's part, shape ``(k,)``."""
    flat = gradient.reshape(len(gradient), 1, -1)
    products: Floats = np.matmul(flat, flat.transpose(0, 2, 1))
    return products[:, 0, 0].astype(np.float64)


def _sigmoid(z: Floats) -> Floats:
    smaller = np.exp(-np.abs(z))
    result: Floats = np.where(z >= 0, 1 / (1 + smaller), smaller / (1 + smaller))
    return result
