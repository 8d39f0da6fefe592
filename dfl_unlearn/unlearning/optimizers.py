"""Optimizers of local methods, on one flat vector; torch does the arithmetic."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidHyperparameterError

OptimizerKind = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True, kw_only=True)
class LocalOptimizer:
    """What optimizer takes a method's steps.

    Attributes:
        kind: ``sgd``, ``adam`` (decay added to the gradient) or ``adamw`` (decay of
            the parameters).
        learning_rate: Step size > 0.
        momentum: Of ``sgd``, without dampening, in [0, 1).
        weight_decay: >= 0.
        betas: Of the other two.
        eps: Of the other two.
    """

    kind: OptimizerKind = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.one_of(("sgd", "adam", "adamw"), kind=self.kind)
        _validate.number(learning_rate=self.learning_rate, above=0, error=wrong)
        _validate.number(momentum=self.momentum, at_least=0, below=1, error=wrong)
        _validate.number(weight_decay=self.weight_decay, at_least=0, error=wrong)
        _validate.of_type(tuple, betas=self.betas)
        for beta in self.betas:
            _validate.number(betas=beta, at_least=0, below=1, error=wrong)
        _validate.number(eps=self.eps, above=0, error=wrong)

    def build(self, flat: Tensor) -> torch.optim.Optimizer:
        """Return torch's optimizer of one flat leaf, shape ``(P,)``."""
        if self.kind == "sgd":
            return torch.optim.SGD(
                [flat],
                lr=self.learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
            )
        build = torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW
        return build(
            [flat],
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )

    def state_floats(self, size: int) -> int:
        """Return the numbers it keeps for ``size`` parameters."""
        if self.kind == "sgd":
            return size if self.momentum else 0
        return 2 * size


def check_passes(*, epochs: object, batch_size: object, optimizer: object) -> None:
    """Check the fields of a method that goes through rows in passes.

    Args:
        epochs: An integer >= 1.
        batch_size: An integer >= 1, or None for all rows.
        optimizer: A ``LocalOptimizer``.
    """
    wrong = InvalidHyperparameterError
    _validate.integer(epochs=epochs, at_least=1, error=wrong)
    if batch_size is not None:
        _validate.integer(batch_size=batch_size, at_least=1, error=wrong)
    _validate.of_type(LocalOptimizer, optimizer=optimizer)
