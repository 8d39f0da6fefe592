"""Can an observer of a peer's model tell that the forgotten rows were trained on?

The target of a membership attack is the value it has on the retrained network, not
one half: rows may be easier or harder than test rows without ever being trained on.
"""

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn._stats import auc
from dfl_unlearn.data.peers import TensorBatch
from dfl_unlearn.evaluation.attacks import tpr_at_fpr
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.nonmembers import matched_rows
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("mia-loss-auc")
@measures(set="forget")
def mia_loss_auc(view: EvaluationView) -> Tensor:
    """How well a low loss tells forgotten rows from test rows.

    Members are the forgotten rows, the others equally many test rows (all of them if
    there are fewer), drawn once per request and equal for all peers and worlds. The
    score is minus the loss; the area under the ROC curve is the tie-averaged
    Mann-Whitney statistic: 0.5 means indistinguishable.

    Args:
        view: The network in one world.

    Returns:
        One area per peer, shape ``(N,)``.

    References:
        Yeom et al. (2018), Privacy risk in machine learning: analyzing the connection
        to overfitting (the loss as score).
    """
    members, tests = view.rows("forget"), view.rows("test")
    rng = view.outcome.run.rng.numpy("attack", request=view.request.request_id)
    count = min(len(members), len(tests))
    index = torch.from_numpy(np.sort(rng.choice(len(tests), count, replace=False)))
    others = TensorBatch(tests.inputs[index], tests.labels[index])
    inside, outside = (-view.losses(batch).numpy() for batch in (members, others))
    return torch.from_numpy(auc(inside, outside))


@metrics.register("mia-tpr-at-1")
@measures(set="forget")
def mia_tpr_at_1(view: EvaluationView) -> Tensor:
    """Share of forgotten rows found by a low loss at 1 % false alarms.

    False alarms are counted on test rows with the same mix of classes, as many times
    the forgotten rows as there are; fewer than 100 of them allow none. An average such
    as an area hides rows that are certain to be found.

    Args:
        view: The network in one world.

    Returns:
        One share per peer, shape ``(N,)``; 0.01 means indistinguishable.

    References:
        Carlini et al. (2022), Membership inference attacks from first principles
        [recalled].
    """
    rows = matched_rows(view)
    inside, outside = (
        -view.losses(batch).numpy() for batch in (rows.members, rows.others)
    )
    return torch.from_numpy(tpr_at_fpr(inside, outside, 0.01))
