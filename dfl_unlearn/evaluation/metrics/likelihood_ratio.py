"""Likelihood-ratio attacks on one network; ``evaluation.lira`` attacks methods."""

import torch
from torch import Tensor

from dfl_unlearn.evaluation.lira import attack_network
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("lira")
@measures(set="forget", default=False)
def lira(view: EvaluationView) -> Tensor:
    """How well shadow networks trained with and without a row tell forgotten rows.

    Trains 16 networks of the run's setting, once for all worlds.

    Args:
        view: The network in one world.

    Returns:
        One area per peer, shape ``(N,)``; the target is Retrain's.
    """
    return torch.from_numpy(attack_network(view, unlearned=False).auc)


@metrics.register("u-lira")
@measures(set="forget", default=False)
def u_lira(view: EvaluationView) -> Tensor:
    """The same with shadow networks that unlearned the row by the same protocol.

    Trains 16 networks of the run's setting and unlearns in each, once for all worlds.

    Args:
        view: The network in one world.

    Returns:
        One area per peer, shape ``(N,)``; the target is Retrain's.
    """
    return torch.from_numpy(attack_network(view, unlearned=True).auc)
