r"""Objectives over weighted rows, their gradients, and curvature as linear operators.

Everything here is a **sum with given row weights**:
:math:`F(\theta) = \sum_r w_r \ell(\theta; z_r) + \frac{\lambda}{2}\|\theta\|^2`. A mean
over peers of means over rows is the weights :math:`w_r = p_i / n_i`. Arithmetic is
float64, whatever the model was trained in, and the sum runs in row order.

Linear models have closed forms: one product with the inputs and one with their
transpose per gradient or Hessian-vector product. Other models go through automatic
differentiation in chunks of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn.curvature.samples import PART_ROWS, Labels, PerSample, row_parts
from dfl_unlearn.errors import InvalidArgumentError, NonPositiveCurvatureError
from dfl_unlearn.models.flat import FlatModel, LinearLayer
from dfl_unlearn.rng import RngTree

_CHUNK_ROWS = 1024
_CACHE_BYTES = 2**29  # inputs are kept as float64 where they fit into this
_LARGEST_DIAGONAL = 4096


class LinearOperator(Protocol):
    """A symmetric matrix that is only ever multiplied."""

    @property
    def rows(self) -> int:
        """Per-sample products that one multiplication takes."""
        ...

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector, ``(P,)`` float64."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A weighted sum of losses plus the model's l2 term.

    Attributes:
        model: Gives the loss and l2.
        inputs: All rows, shape ``(R, ...)``.
        labels: Their labels, shape ``(R,)``.
        weights: What each row counts, shape ``(R,)`` float64, >= 0; rows with weight 0
            are left out.
    """

    model: FlatModel
    inputs: Tensor
    labels: Tensor
    weights: NDArray[np.float64]

    @cached_property
    def rows(self) -> int:
        """Number of rows that count."""
        return int((self.weights > 0).sum())

    def value(self, theta: Tensor) -> float:
        """Return F(theta)."""
        theta = theta.double()
        total = 0.5 * self.model.l2 * float(theta @ theta)
        for x, y, w in self._chunks:
            total += float(self.model.sample_losses(theta, (x, y)) @ w)
        return total

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient of F, shape ``(P,)``, float64."""
        theta = theta.double()
        layer = self._linear
        if layer is not None:
            return self._glm(theta, layer).gradient(theta) + self.model.l2 * theta
        total = torch.zeros_like(theta)
        for x, y, w in self._chunks:
            leaf = theta.detach().requires_grad_()
            loss = self.model.sample_losses(leaf, (x, y)) @ w
            total += torch.autograd.grad(loss, leaf)[0]
        return total + self.model.l2 * theta

    def batch(self, generator: np.random.Generator, rows: int) -> "Objective":
        """Return the objective of rows drawn at random; its mean is this one.

        Args:
            generator: Draws with replacement, each row as often as its weight says.
            rows: How many.

        Returns:
            Every drawn row weighs the same, and together as much as all rows here.
        """
        total = float(self.weights.sum())
        drawn = generator.choice(len(self.weights), rows, p=self.weights / total)
        at = torch.from_numpy(drawn)
        return Objective(
            model=self.model,
            inputs=self.inputs[at],
            labels=self.labels[at],
            weights=np.full(rows, total / rows),
        )

    def hessian(self, theta: Tensor, *, damping: float = 0.0) -> "HessianOperator":
        """Return the Hessian at theta plus ``damping`` times the identity."""
        return HessianOperator(objective=self, theta=theta.double(), damping=damping)

    @cached_property
    def _linear(self) -> LinearLayer | None:
        """The model's only layer, where it is a linear model."""
        structure = self.model.structure
        if structure is None or len(structure.layers) != 1:
            return None
        return structure.layers[0]

    @cached_property
    def _chunks(self) -> "list[tuple[Tensor, Tensor, Tensor]] | _Chunks":
        kept = np.flatnonzero(self.weights > 0)
        chunks = _Chunks(self.inputs, self.labels, self.weights, kept)
        width = self.inputs[0].numel() if len(self.inputs) else 0
        return list(chunks) if len(kept) * width * 8 <= _CACHE_BYTES else chunks

    def _glm(self, theta: Tensor, layer: LinearLayer) -> "_Glm":
        return _Glm(self, layer, theta)


@dataclass(frozen=True)
class _Chunks:
    """Rows that count, converted to float64 piece by piece."""

    inputs: Tensor
    labels: Tensor
    weights: NDArray[np.float64]
    kept: NDArray[np.intp]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for begin in range(0, len(self.kept), _CHUNK_ROWS):
            rows = self.kept[begin : begin + _CHUNK_ROWS]
            at = torch.from_numpy(rows)
            labels = self.labels[at]
            yield (
                as_features(self.inputs[at], torch.float64),
                labels.double() if labels.is_floating_point() else labels,
                torch.from_numpy(self.weights[rows]),
            )


class _Glm:
    """A linear model at one point: everything that its curvature reuses."""

    def __init__(self, objective: Objective, layer: LinearLayer, theta: Tensor) -> None:
        self._chunks = objective._chunks
        self._layer = layer
        structure = objective.model.structure
        assert structure is not None
        self._loss = structure.loss
        # Class probabilities (or the logistic's), one array per chunk.
        self._probabilities = [self._probability(x, theta) for x, _, _ in self._chunks]

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        w = self._layer.weight.view(vector)
        return w, None if self._layer.bias is None else self._layer.bias.view(vector)

    def _outputs(self, x: Tensor, vector: Tensor) -> Tensor:
        w, b = self._split(vector)
        # NumPy's products are about twice as fast as torch's here on some CPUs.
        z = torch.from_numpy(x.reshape(len(x), -1).numpy() @ w.numpy().T)
        return z if b is None else z.add_(b)

    def _collect(self, target: Tensor, outer: Tensor, x: Tensor) -> None:
        """Add outer' x (and its column sums for the bias) to ``target``."""
        w, b = self._split(target)
        w.add_(torch.from_numpy((x.reshape(len(x), -1).numpy().T @ outer.numpy()).T))
        if b is not None:
            b.add_(outer.sum(0))

    def _probability(self, x: Tensor, theta: Tensor) -> Tensor:
        z = self._outputs(x, theta)
        if self._loss == "cross-entropy":
            return z.softmax(dim=1)
        if self._loss == "binary-logistic":
            return z.sigmoid()
        return z  # squared error: the prediction itself

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the data term's gradient, ``(P,)``."""
        total = torch.zeros_like(theta)
        for (x, y, w), p in zip(self._chunks, self._probabilities, strict=True):
            self._collect(total, self._slope(p, y).mul_(w[:, None]), x)
        return total

    def _slope(self, p: Tensor, y: Tensor) -> Tensor:
        """Return the losses' derivatives in the outputs, ``(B, out)``."""
        slope = p.clone()
        if self._loss == "cross-entropy":
            slope[torch.arange(len(y)), y] -= 1
        else:
            slope -= y.double()[:, None]
        return slope

    def product(self, vector: Tensor) -> Tensor:
        """Return the data term's Hessian times a vector, ``(P,)``."""
        total = torch.zeros_like(vector)
        for (x, _, w), p in zip(self._chunks, self._probabilities, strict=True):
            u = self._outputs(x, vector)
            if self._loss == "cross-entropy":
                u = p * (u - (p * u).sum(dim=1, keepdim=True))
            elif self._loss == "binary-logistic":
                u = p * (1 - p) * u
            self._collect(total, u.mul_(w[:, None]), x)
        return total

    def diagonal(self, like: Tensor) -> Tensor:
        """Return the diagonal of the data term's Hessian, ``(P,)``.

        For these models it is that of the true Fisher information as well.
        """
        total = torch.zeros_like(like)
        for (x, _, w), p in zip(self._chunks, self._probabilities, strict=True):
            u = torch.ones_like(p) if self._loss == "squared-error" else p * (1 - p)
            self._collect(total, u.mul_(w[:, None]), x.square())
        return total

    def squares(self, like: Tensor) -> Tensor:
        """Return the weighted sum of squared per-sample gradients, ``(P,)``."""
        total = torch.zeros_like(like)
        for (x, y, w), p in zip(self._chunks, self._probabilities, strict=True):
            u = self._slope(p, y).square_()
            self._collect(total, u.mul_(w[:, None]), x.square())
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class HessianOperator:
    """The Hessian of an objective at a point, plus damping on the diagonal.

    Attributes:
        objective: What is differentiated.
        theta: Where, shape ``(P,)`` float64.
        damping: Added to the diagonal, >= 0.
    """

    objective: Objective
    theta: Tensor
    damping: float = 0.0

    @property
    def rows(self) -> int:
        """Per-sample Hessian-vector products of one multiplication."""
        return self.objective.rows

    @cached_property
    def _glm(self) -> _Glm | None:
        layer = self.objective._linear
        return None if layer is None else self.objective._glm(self.theta, layer)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return (H + damping I) v, shape ``(P,)`` float64."""
        shift = self.objective.model.l2 + self.damping
        if self._glm is not None:
            return self._glm.product(vector) + shift * vector
        total = torch.zeros_like(vector)
        for x, y, w in self.objective._chunks:
            leaf = self.theta.detach().requires_grad_()
            loss = self.objective.model.sample_losses(leaf, (x, y)) @ w
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            total += torch.autograd.grad(gradient @ vector, leaf)[0]
        return total + shift * vector

    def diagonal(self) -> Tensor:
        """Return the exact diagonal, shape ``(P,)``.

        Returns:
            The diagonal; linear models have a closed form.

        Raises:
            InvalidArgumentError: If another model has over 4096 parameters.
        """
        shift = self.objective.model.l2 + self.damping
        if self._glm is not None:
            return self._glm.diagonal(self.theta) + shift
        size = len(self.theta)
        if size > _LARGEST_DIAGONAL:
            raise InvalidArgumentError(
                f"model: must have <= {_LARGEST_DIAGONAL} parameters for an exact "
                f"diagonal, got {size}; use DiagonalFisher"
            )
        basis = torch.eye(size, dtype=torch.float64)
        return torch.stack([(self @ e)[i] for i, e in enumerate(basis)])


@dataclass(frozen=True, kw_only=True, eq=False)
class EmpiricalFisher:
    r"""The empirical Fisher information of an objective, plus l2 and damping.

    :math:`\sum_r w_r g_r g_r^\top + (\lambda + \gamma) I`, multiplied without holding
    single gradients: the rows' products :math:`g_r^\top v` by a forward derivative,
    their weighted sum by a backward one.

    Attributes:
        objective: Its rows and weights; labels are those of the data.
        theta: Where, shape ``(P,)`` float64.
        damping: Added to the diagonal, >= 0.
    """

    objective: Objective
    theta: Tensor
    damping: float = 0.0

    @property
    def rows(self) -> int:
        """Per-sample products of one multiplication."""
        return self.objective.rows

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector, shape ``(P,)`` float64."""
        model = self.objective.model
        total = (model.l2 + self.damping) * vector
        for x, y, w in self.objective._chunks:

            def losses(p: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                return model.sample_losses(p, (x, y))

            along = torch.func.jvp(losses, (self.theta,), (vector,))[1]
            leaf = self.theta.detach().requires_grad_()
            total += torch.autograd.grad(losses(leaf) @ (w * along), leaf)[0]
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalFisher:
    r"""Diagonal of the Fisher information, plus l2 and damping.

    The entries are :math:`\sum_r w_r E_{y \sim p_\theta}[g_r(y)^2] + \lambda + \gamma`
    with labels drawn from the **model**; linear models take the expectation exactly,
    others draw one label per row. The labels of the **data** give the empirical Fisher.

    Attributes:
        values: The diagonal, shape ``(P,)`` float64.
        rows: Per-sample gradients that it took.
    """

    values: Tensor
    rows: int

    @classmethod
    def at(
        cls,
        objective: Objective,
        theta: Tensor,
        *,
        damping: float,
        rng: RngTree,
        request: str,
        sparsify: float | None = None,
        labels: Labels = "model",
    ) -> "DiagonalFisher":
        """Compute the diagonal at a point.

        Args:
            objective: Whose rows and weights to use.
            theta: The point, shape ``(P,)``.
            damping: Added to every entry, >= 0.
            rng: Draws the labels, purpose ``method``.
            request: Request id that names the draw.
            sparsify: Share in (0, 1] of the entries that are kept, the largest ones;
                the others become ``damping``. None keeps all.
            labels: ``model`` for the true Fisher information, ``data`` for the
                empirical one.

        Returns:
            The operator.

        Raises:
            NonPositiveCurvatureError: If an entry is not positive.
        """
        theta = theta.double()
        layer = objective._linear
        if layer is not None:
            glm = objective._glm(theta, layer)
            values = glm.diagonal(theta) if labels == "model" else glm.squares(theta)
        elif labels == "data":
            values = torch.zeros_like(theta)
            per_sample = PerSample(objective.model, theta)
            for x, y, w in row_parts(objective):
                values += per_sample.squares(x, y, w)
        else:
            values = _sampled_diagonal(objective, theta, rng, request)
        values = values + (objective.model.l2 + damping)
        if sparsify is not None:
            dropped = len(values) - max(1, round(sparsify * len(values)))
            order = values.argsort(stable=True)
            values[order[:dropped]] = damping
        smallest = float(values.min())
        if not smallest > 0:
            raise NonPositiveCurvatureError(
                f"damping: must make every Fisher entry positive, got {damping} and a "
                f"smallest entry of {smallest:g}; set damping > 0 or use a model with "
                "l2 > 0"
            )
        return cls(values=values, rows=objective.rows)

    def solve(self, vector: Tensor) -> Tensor:
        """Return the inverse diagonal times a vector, shape ``(P,)``."""
        return vector / self.values


def _sampled_diagonal(
    objective: Objective, theta: Tensor, rng: RngTree, request: str
) -> Tensor:
    """Return the sum of weighted squared gradients at labels drawn from the model."""
    generator = rng.numpy("method", request=request)
    model = objective.model

    per_sample = PerSample(model, theta)
    total = torch.zeros_like(theta)
    for x, y, w in objective._chunks:
        out = model.predict(theta, x)
        if y.is_floating_point():
            noise = torch.from_numpy(generator.standard_normal(len(y)))
            drawn = out.reshape(len(y)) + noise
        else:
            cumulative = out.softmax(dim=1).cumsum(dim=1)
            uniform = torch.from_numpy(generator.random(len(y)))[:, None]
            drawn = (cumulative < uniform).sum(dim=1).clamp_max(out.shape[1] - 1)
        for part in torch.arange(len(x)).split(PART_ROWS):
            total += per_sample.squares(x[part], drawn[part], w[part])
    return total
