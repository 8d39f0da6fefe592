"""One peer's task, made from a trained run: what that peer may see, no more."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.local_history import history_of
from dfl_unlearn.engine.personal import PINNED, used_params
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import extractor_of
from dfl_unlearn.unlearning.local import Budget, LocalTask


def local_task(
    run: TrainedRun,
    request: ForgetRequest,
    peer: int | None = None,
    *,
    budget: Budget | None = None,
    ledger: PrivacyLedger | None = None,
) -> LocalTask[TensorBatch]:
    """Return what one peer brings to a method: its model, its rows, its own past.

    Never a neighbour's rows. Of a network of one peer this is the centralized task.

    Args:
        run: The trained network.
        request: What goes; it is resolved first.
        peer: Whose task; None is the requester's. Another peer than an owner has
            nothing to forget.
        budget: Limits for the method.
        ledger: Where noise is written down first; None is a fork of the run's.

    Returns:
        The task; ``history`` is None where the run has no record.
    """
    request = request.resolve(run.data)
    peer = request.requester if peer is None else peer
    run.data.check_peer(peer)
    rows = run.data.rows(peer)
    gone = request.mask(run.data)[rows]
    kept = run.data.keep[rows] & ~gone
    model = run.model

    def fresh(rng: RngTree) -> Tensor:
        return model.init(rng).to(run.config.torch_dtype)

    def taken(mask: NDArray[np.bool_]) -> TensorBatch:
        index = torch.from_numpy(np.flatnonzero(mask) + rows.start)
        store = run.data.store
        return TensorBatch(store.inputs[index], store.labels[index])

    return LocalTask(
        model=model,
        params=used_params(run.state.params, run.personal)[peer],
        forget=taken(gone),
        retain=taken(kept),
        forget_rows=np.flatnonzero(gone),
        retain_rows=np.flatnonzero(kept),
        request=request,
        peer=peer,
        num_classes=run.data.num_classes,
        history=history_of(run, peer),
        fresh=fresh,
        budget=Budget() if budget is None else budget,
        ledger=run.ledger.fork() if ledger is None else ledger,
        conditions=tuple(extractor_of(run)),
        companions={
            name: value
            for name, value in run.personal.get(peer, {}).items()
            if name != PINNED
        },
    )
