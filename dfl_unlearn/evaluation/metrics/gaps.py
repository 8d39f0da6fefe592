"""Gaps to retraining: the mean over the four figures that papers compare.

The four are the accuracies on forgotten, retained and test rows (without classes that
are forgotten whole) and attack (a). The published gap averages before it takes the
difference, so that errors of opposite signs cancel; the paired one does not. Over
several forget sets see ``evaluation.comparison``.
"""

import torch
from torch import Tensor

from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.metrics.accuracy import (
    forget_accuracy,
    retain_accuracy,
    test_accuracy_kept,
)
from dfl_unlearn.evaluation.metrics.fitted_attacks import mia_entropy
from dfl_unlearn.evaluation.view import EvaluationView

_FOUR = (forget_accuracy, retain_accuracy, test_accuracy_kept, mia_entropy)


@metrics.register("gap")
@measures(worlds=("before", "after"), default=False)
def gap(view: EvaluationView) -> Tensor:
    """Mean over four figures of the difference of the network's means [paper].

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value for the network, shape ``()``.
    """
    return _differences(view).mean(dim=1).abs().mean()


@metrics.register("paired-gap")
@measures(worlds=("before", "after"), default=False)
def paired_gap(view: EvaluationView) -> Tensor:
    """Mean over four figures of a peer's difference to its retrained self.

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value per peer, shape ``(N,)``; its mean is never below ``gap``.
    """
    return _differences(view).abs().mean(dim=0)


def _differences(view: EvaluationView) -> Tensor:
    """Return each peer's figures minus its retrained self's, shape ``(4, N)``."""
    reference = view.at("reference")
    return torch.stack([figure(view) - figure(reference) for figure in _FOUR])
