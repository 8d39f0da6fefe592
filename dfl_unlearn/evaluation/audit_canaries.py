"""Canaries: forgotten rows made to be remembered, inside the bounds of the data.

A certificate holds for any forget set of its size, so an audit may choose the worst: no
input longer than the longest one there is, no label outside the range.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.replicas import train_replicas
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit_targets import kept_data

Canaries = Literal["none", "flipped", "aligned", "dirac"]
CANARIES: tuple[Canaries, ...] = get_args(Canaries)


def with_canaries(
    run: TrainedRun, request: ForgetRequest, canaries: Canaries
) -> TrainedRun:
    """Return the run trained with other rows in place of the forgotten ones.

    Args:
        run: Gives everything else.
        request: The resolved request, whose rows are replaced.
        canaries: ``none``: the rows stay. ``flipped``: their labels are wrong.
            ``aligned``: all pull the same way, along the direction that the kept rows
            cover least, as hard as the data's bounds allow. ``dirac``: each pulls along
            a direction of its own, the least covered ones first.

    Returns:
        The run, trained anew unless the rows stay.

    Raises:
        UnsupportedRequestError: If directions are asked for in images of bytes.
    """
    _validate.one_of(CANARIES, canaries=canaries)
    if canaries == "none":
        return run
    data = run.data
    goes = torch.from_numpy(data.keep & ~kept_data(run, request).keep)
    inputs, labels = data.store.inputs.clone(), data.store.labels.clone()
    if canaries == "flipped":
        labels[goes] = _flipped(labels[goes], data.num_classes)
    else:
        if not inputs.is_floating_point():
            raise UnsupportedRequestError(
                f"canaries: must be 'none' or 'flipped' for images of bytes, got "
                f"{canaries!r}; a direction needs floating-point features"
            )
        directions = _least_covered(inputs[~goes], int(goes.sum()))
        if canaries == "aligned":
            directions = directions[:1].expand_as(directions)
        inputs[goes] = directions.reshape(-1, *inputs.shape[1:]).to(inputs.dtype)
        labels[goes] = labels.max() if data.num_classes == 0 else data.num_classes - 1
    store = replace(data.store, inputs=inputs, labels=labels)
    other = run.replaced(data=replace(data, store=store, recipe=None))
    params = train_replicas(other, [run.rng]).params[0]
    state = PeerState(params=params, round=run.config.rounds)
    return replace(other, state=state, record=run.record)


def _flipped(labels: Tensor, classes: int) -> Tensor:
    return -labels if classes == 0 else (labels + 1) % classes


def _least_covered(inputs: Tensor, count: int) -> Tensor:
    """Return directions as long as the longest input, least covered first."""
    rows = inputs.reshape(len(inputs), -1).double()
    _, _, right = torch.linalg.svd(rows, full_matrices=True)
    basis = right.flip(0)
    index = torch.arange(count) % len(basis)
    found: Tensor = basis[index] * float(rows.norm(dim=1).max())
    return found
