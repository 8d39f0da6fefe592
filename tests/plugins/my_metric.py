"""How sure the peers still are about the forgotten rows."""

from torch import Tensor

from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("forget-confidence")
@measures(unit="fraction", set="forget")
def forget_confidence(view: EvaluationView) -> Tensor:
    """Mean probability that a peer gives to the true class of the forgotten rows."""
    view.check_task("forget-confidence", classes=True)
    return view.average("forget", _probability_of_label)


def _probability_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    probabilities = logits.double().softmax(dim=-1)
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return probabilities.gather(-1, index).squeeze(-1)
