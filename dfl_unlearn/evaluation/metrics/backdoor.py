"""Whether a planted trigger still works."""

import torch
from torch import Tensor

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.nonmembers import thinned
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("attack-success")
@measures(set="test")
def attack_success(view: EvaluationView) -> Tensor:
    """Share of test images with the trigger that are taken for the planted class.

    Test rows of the planted class itself are left out; more than 2,000 others are
    thinned evenly. The target is Retrain's value, which need not be 0.

    Args:
        view: The network in one world, of data with a ``backdoor``.

    Returns:
        One share per peer, shape ``(N,)``.

    Raises:
        MissingInputError: If the data have no backdoor, or no test rows to try it on.
    """
    backdoor = view.data.backdoor
    if backdoor is None:
        raise MissingInputError(
            "data: must have a backdoor for attack-success, got none; plant one with "
            "data.poison.backdoored"
        )
    tests = view.rows("test")
    index = torch.nonzero(tests.labels != backdoor.target)[:, 0]
    if len(index) == 0:
        raise MissingInputError(
            "test: must have rows of other classes than the backdoor's target "
            f"{backdoor.target}, got none; give the data such test rows"
        )
    batch = thinned(TensorBatch(tests.inputs[index], tests.labels[index]))
    tried = TensorBatch(backdoor.trigger.apply(batch.inputs), batch.labels)
    shares = [
        float((view.logits(tried, peer).argmax(-1) == backdoor.target).mean())
        for peer in range(view.n)
    ]
    return torch.tensor(shares, dtype=torch.float64)
