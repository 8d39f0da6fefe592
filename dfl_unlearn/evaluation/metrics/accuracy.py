"""How well every peer predicts, on rows that nobody, everybody or one peer trained on.

Accuracies are for classes, mean squared errors for regression. The accuracy on the
forget set is to be judged against the retrained network's: a row that others resemble
stays predictable after perfect forgetting.
"""

import torch
from torch import Tensor

from dfl_unlearn.evaluation.metrics import SetName, measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("test-accuracy")
@measures(set="test")
def test_accuracy(view: EvaluationView) -> Tensor:
    """Share of test rows that a peer classifies correctly."""
    return _accuracy(view, "test", "test-accuracy")


@metrics.register("retain-accuracy")
@measures(set="retain")
def retain_accuracy(view: EvaluationView) -> Tensor:
    """Share of the network's retained rows that a peer classifies correctly."""
    return _accuracy(view, "retain", "retain-accuracy")


@metrics.register("forget-accuracy")
@measures(set="forget")
def forget_accuracy(view: EvaluationView) -> Tensor:
    """Share of the forgotten rows that a peer classifies correctly."""
    return _accuracy(view, "forget", "forget-accuracy")


@metrics.register("test-accuracy-kept")
@measures(set="test", default=False)
def test_accuracy_kept(view: EvaluationView) -> Tensor:
    """Share of test rows of the classes that stay that a peer classifies correctly.

    The test accuracy of comparisons: equal to ``test-accuracy`` unless a class is
    forgotten whole.

    Args:
        view: The network in one world.

    Returns:
        One share per peer, shape ``(N,)``.
    """
    return _share(view, "test-accuracy-kept", forgotten=False)


@metrics.register("test-accuracy-gone")
@measures(set="test")
def test_accuracy_gone(view: EvaluationView) -> Tensor:
    """Share of test rows of classes forgotten whole that are classified correctly."""
    return _share(view, "test-accuracy-gone", forgotten=True)


@metrics.register("relative-gap")
@measures(set="test", worlds=("before", "after"))
def relative_gap(view: EvaluationView) -> Tensor:
    """Test accuracy minus the same peer's in the retrained network, signed."""
    return _accuracy(view, "test", "relative-gap") - _accuracy(
        view.at("reference"), "test", "relative-gap"
    )


@metrics.register("test-mse")
@measures(unit="", set="test")
def test_mse(view: EvaluationView) -> Tensor:
    """Mean squared error of a peer on the test rows, for regression."""
    return _mse(view, "test", "test-mse")


@metrics.register("retain-mse")
@measures(unit="", set="retain")
def retain_mse(view: EvaluationView) -> Tensor:
    """Mean squared error of a peer on the network's retained rows, for regression."""
    return _mse(view, "retain", "retain-mse")


@metrics.register("forget-mse")
@measures(unit="", set="forget")
def forget_mse(view: EvaluationView) -> Tensor:
    """Mean squared error of a peer on the forgotten rows, for regression."""
    return _mse(view, "forget", "forget-mse")


def _share(view: EvaluationView, metric: str, *, forgotten: bool) -> Tensor:
    view.check_task(metric, classes=True)
    gone = torch.tensor(view.classes_gone, dtype=torch.int64)

    def right(logits: Tensor, labels: Tensor) -> Tensor:
        chosen = torch.isin(labels, gone) == forgotten
        return (logits.argmax(-1) == labels) & chosen

    share = len(view.test_rows(forgotten=forgotten)) / len(view.rows("test"))
    return view.average("test", right) / share


def _accuracy(view: EvaluationView, rows: SetName, metric: str) -> Tensor:
    view.check_task(metric, classes=True)
    return view.average(rows, lambda logits, labels: logits.argmax(-1) == labels)


def _mse(view: EvaluationView, rows: SetName, metric: str) -> Tensor:
    view.check_task(metric, classes=False)
    return view.average(
        rows, lambda outputs, labels: (outputs.double() - labels.double()).square()
    )
