r"""Fisher information as dense blocks: one per layer, or one for the whole model.

:math:`\hat H_l = \sum_r w_r E[g_{rl} g_{rl}^\top] + (\lambda + \gamma) I`, with
:math:`g_{rl}` the part of a row's gradient that belongs to layer l and labels of the
model or of the data (``curvature.samples``). What lies between layers is left out; one
block over all of a linear model, with the model's labels, is its Hessian.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.curvature.samples import Labels, check_labels, sample_gradients
from dfl_unlearn.errors import NonPositiveCurvatureError, UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel

MAX_DENSE = 4096
"""Largest side of a dense block: 128 MB, and as much for its factor."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A run of parameters that share a dense block.

    Attributes:
        name: Of the layer; empty for the module itself or the whole model.
        begin: First of its entries in the flat vector.
        end: One after its last entry.
    """

    name: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.end - self.begin


def layer_blocks(model: FlatModel) -> tuple[Block, ...]:
    """Return the parameters of every layer: weight and bias of one module together.

    Args:
        model: The model.

    Returns:
        Blocks in the order of the flat vector; they cover it.
    """
    found = []
    for name, group in groupby(model.segments, key=lambda key: key.rpartition(".")[0]):
        segments = [model.segments[key] for key in group]
        last = segments[-1]
        found.append(
            Block(name=name, begin=segments[0].offset, end=last.offset + last.size)
        )
    return tuple(found)


def whole_block(model: FlatModel) -> tuple[Block, ...]:
    """Return one block over all parameters."""
    return (Block(name="", begin=0, end=model.size),)


def check_blocks(blocks: tuple[Block, ...], max_dense: int = MAX_DENSE) -> None:
    """Refuse blocks that are too large to be dense.

    Args:
        blocks: The blocks.
        max_dense: Largest side.

    Raises:
        UnsupportedModelError: Naming the first block that is larger.
    """
    for block in blocks:
        if block.size > max_dense:
            where = f"layer {block.name!r}" if block.name else "a dense block"
            raise UnsupportedModelError(
                f"model: {where} must have <= {max_dense} parameters for a dense "
                f"curvature block, got {block.size}; use curvature='kfac' or "
                "'diag_fisher'"
            )


def positive_factor(matrix: Tensor, what: str, damping: float) -> Tensor:
    """Return the Cholesky factor of a matrix that must be positive definite.

    Args:
        matrix: Symmetric, shape ``(n, n)`` float64.
        what: Its name in the error.
        damping: As the caller set it, for the error.

    Returns:
        The lower factor.

    Raises:
        NonPositiveCurvatureError: If it is singular up to rounding.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    # Rounding may turn the last pivots of a singular matrix into tiny positive ones.
    pivots = factor.diagonal().square()
    rounding = len(matrix) * torch.finfo(torch.float64).eps
    if int(info) or not float(pivots.min()) > rounding * float(pivots.max()):
        raise NonPositiveCurvatureError(
            f"damping: must make {what} positive definite, got {damping:g} and a "
            "singular matrix; set damping > 0 or use a model with l2 > 0"
        )
    return factor


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockFisher:
    """Dense blocks of the Fisher information, plus l2 and damping.

    Attributes:
        blocks: Where they lie.
        matrices: One per block, damped, shape ``(n, n)`` float64.
        factors: Their Cholesky factors.
        rows: Per-sample gradients that it took.
    """

    blocks: tuple[Block, ...]
    matrices: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    rows: int

    @classmethod
    def at(
        cls,
        objective: Objective,
        theta: Tensor,
        *,
        damping: float,
        labels: Labels = "model",
        blocks: tuple[Block, ...] | None = None,
        max_dense: int = MAX_DENSE,
    ) -> "BlockFisher":
        """Compute the blocks at a point.

        Args:
            objective: Whose rows and weights to use.
            theta: The point, shape ``(P,)``.
            damping: Added to the diagonal, >= 0.
            labels: ``model`` for the true Fisher information, ``data`` for the
                empirical one.
            blocks: Which parameters share a block; None is one block per layer.
            max_dense: Largest side of a block.

        Returns:
            The operator.
        """
        check_labels(objective.model, labels)
        blocks = layer_blocks(objective.model) if blocks is None else blocks
        check_blocks(blocks, max_dense)
        theta = theta.double()
        shift = objective.model.l2 + damping
        matrices = [
            shift * torch.eye(block.size, dtype=torch.float64) for block in blocks
        ]
        rows = 0
        for gradients, weights in sample_gradients(objective, theta, labels):
            rows += len(weights)
            for matrix, block in zip(matrices, blocks, strict=True):
                part = gradients[:, block.begin : block.end]
                matrix.addmm_(part.T, part * weights[:, None])
        matrices = [(matrix + matrix.T) / 2 for matrix in matrices]
        factors = tuple(
            positive_factor(
                matrix,
                f"the Fisher block of layer {block.name!r}"
                if block.name
                else "the Fisher information",
                damping,
            )
            for matrix, block in zip(matrices, blocks, strict=True)
        )
        return cls(blocks=blocks, matrices=tuple(matrices), factors=factors, rows=rows)

    @property
    def floats(self) -> int:
        """Numbers that peers must add up to have it: the sum of squared sides."""
        return sum(block.size**2 for block in self.blocks)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the damped blocks times a vector, shape ``(P,)`` float64."""
        return torch.cat(
            [
                matrix @ vector[block.begin : block.end]
                for matrix, block in zip(self.matrices, self.blocks, strict=True)
            ]
        )

    def solve(self, vector: Tensor) -> Tensor:
        """Return the inverse blocks times a vector, shape ``(P,)``."""
        parts = [
            torch.cholesky_solve(vector[block.begin : block.end, None], factor)[:, 0]
            for factor, block in zip(self.factors, self.blocks, strict=True)
        ]
        return torch.cat(parts)
