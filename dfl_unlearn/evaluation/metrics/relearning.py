"""How soon forgotten rows are learned again: what is gone takes as long as new rows."""

import torch
from torch import Tensor

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView

MOST_BATCHES = 500
"""Steps after which relearning is given up; a value of it means "at least"."""

_SLACK = 1.05
_BATCH = 32


@metrics.register("relearn-steps")
@measures(unit="batches", set="forget", default=False)
def relearn_steps(view: EvaluationView) -> Tensor:
    """Minibatches of forgotten rows until their loss is within 5 % of the original.

    Plain stochastic gradient descent at the run's first learning rate, batches of the
    run's size (32 where that is the full batch), in a drawn order that is equal for
    all worlds and peers; the loss on all forgotten rows is looked at after every step
    [recalled]. The target is Retrain's value. ``MOST_BATCHES`` where it was not
    reached by then.

    Args:
        view: The network in one world.

    Returns:
        A whole number per peer, shape ``(N,)``.
    """
    forgotten = view.rows("forget")
    local = view.outcome.run.config.local
    original = view.at("before").losses(forgotten).mean(dim=1)
    steps = [
        _steps(
            view,
            row,
            forgotten,
            _SLACK * float(goal),
            local.learning_rate,
            local.batch_size or _BATCH,
        )
        for row, goal in zip(view.state.params, original, strict=True)
    ]
    return torch.tensor(steps, dtype=torch.float64)


def _steps(
    view: EvaluationView,
    start: Tensor,
    rows: TensorBatch,
    goal: float,
    learning_rate: float,
    size: int,
) -> int:
    """Return the steps that one model takes to a mean loss of at most ``goal``."""
    params, taken, epoch = start.detach().clone(), 0, 0
    rng = view.outcome.run.rng
    while True:
        generator = rng.torch(
            "attack", who="relearn", request=view.request.request_id, round=epoch
        )
        order = torch.randperm(len(rows), generator=generator)
        for index in order.split(size):
            with torch.no_grad():
                loss = float(view.model.sample_losses(params, rows).double().mean())
            # Not `loss > goal`: a loss that is no number is never within reach.
            if loss <= goal or taken == MOST_BATCHES:
                return taken
            params.requires_grad_()
            batch = TensorBatch(rows.inputs[index], rows.labels[index])
            (gradient,) = torch.autograd.grad(view.model.loss(params, batch), params)
            params = (params - learning_rate * gradient).detach()
            taken += 1
        epoch += 1
