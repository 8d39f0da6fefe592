"""A tiny task, and plain loops in which methods with two objectives are written again.

The loops take full batches, so that nothing depends on orders; models are the second
implementations of ``small_models``.
"""

import numpy as np
import torch
from networks import blobs
from small_models import mlp

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import Budget, LocalTask, only, uses_of

FORGOTTEN = np.array([1, 4, 5, 11])
MODEL = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(5,))


def task_of(method, *, dtype=torch.float64, budget=None, scale=1.0):
    """24 rows of three classes, four of them to be forgotten, and untrained weights."""
    data = blobs([24], dtype=np.float64)
    batch = data.local(0)
    kept = np.setdiff1d(np.arange(24), FORGOTTEN)

    def taken(rows):
        return TensorBatch(batch.inputs[rows].to(dtype), batch.labels[rows])

    task = LocalTask(
        model=MODEL,
        params=scale * MODEL.init(RngTree(3)).to(dtype),
        forget=taken(FORGOTTEN),
        retain=taken(kept),
        forget_rows=FORGOTTEN,
        retain_rows=kept,
        request=ForgetRequest.samples(peer=0, indices=FORGOTTEN, request_id="r0"),
        num_classes=3,
        budget=Budget() if budget is None else budget,
    )
    return only(task, uses_of(method))


def losses(p, batch):
    """Cross-entropy of every row, written out once more."""
    return mlp(p, batch.inputs, batch.labels)


def outputs(p, inputs):
    """Logits of the same model."""
    hidden = torch.relu(inputs @ p[:30].view(5, 6).T + p[30:35])
    return hidden @ p[35:50].view(3, 5).T + p[50:]


def gradient(loss, p):
    """Gradient of a function of the parameters, at ``p``."""
    at = p.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def loop(p, steps, forget, retain):
    """End of steps ``(who, loss, learning rate, change of the gradient)``.

    ``forget`` and ``retain`` make an optimizer of a list of parameters; where they are
    one, both kinds of steps share it.
    """
    at = p.detach().clone().requires_grad_()
    first = forget([at])
    second = first if retain is forget else retain([at])
    for who, loss, rate, change in steps:
        optimizer = first if who == "forget" else second
        optimizer.param_groups[0]["lr"] = rate
        at.grad = change(torch.autograd.grad(loss(at), at)[0])
        optimizer.step()
    return at.detach()


def same(gradient):
    return gradient
