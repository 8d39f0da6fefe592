r"""What gossip makes of a correction that one peer took.

With mixing only, the change :math:`\delta` at peer u is :math:`[W^r]_{ju}\,\delta` at
peer j after r rounds, on top of what peer j would have had anyway. On a connected
network with doubly stochastic weights that tends to :math:`\delta / N`: a correct local
unlearning is undone by the neighbours up to a factor 1/N [derived].
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.topology.graph import Topology

After = Literal["mix", "train"]


def dilution_weights(
    topology: Topology, source: int, rounds: int
) -> NDArray[np.float64]:
    """Return what is left of a change at every peer after each round of mixing.

    Args:
        topology: The network.
        source: Peer u that changed.
        rounds: R >= 0.

    Returns:
        Row r is ``[W^r]_ju`` over the peers j, shape ``(R + 1, N)``, float64.

    Raises:
        UnknownPeerError: If ``source`` is not a peer.

    Example:
        >>> from dfl_unlearn import load_topology
        >>> left = dilution_weights(load_topology("ring", n=8), 0, 3)
        >>> [round(x, 8) for x in left[:, 0].tolist()]
        [1.0, 0.33333333, 0.33333333, 0.25925926]
    """
    _validate.integer(rounds=rounds, at_least=0, at_most=MAX_ROUNDS)
    topology.hops(source)  # refuses a peer that is not there
    left = np.zeros((rounds + 1, topology.n))
    left[0, source] = 1.0
    for r in range(rounds):
        left[r + 1] = topology.weights @ left[r]
    return left


def gossip_once(
    run: TrainedRun, data: PeerData, state: PeerState, after: After
) -> tuple[PeerState, int]:
    """Return every peer's state after one further round of gossip.

    Args:
        run: Gives network and training.
        data: What is kept.
        state: Where to start; not written to.
        after: ``mix``: peers only average; ``train``: a round of the run's training.

    Returns:
        The state, and the per-sample gradients that the round took.
    """
    if after == "train":
        return continue_training(run, data, state, 1)
    weights = as_csr(run.topology.weights, state.params.dtype)
    return PeerState(params=mix(state.params, weights), round=state.round), 0


def carry_round(
    run: TrainedRun, data: PeerData, transport: Transport, after: After
) -> None:
    """Carry the messages of one further round of gossip.

    Args:
        run: Gives the sizes.
        data: What is kept.
        transport: Carries them.
        after: As in ``gossip_once``.
    """
    payload = run.model.size * run.state.params.element_size()
    if after == "mix":
        transport.exchange("model", payload)
    else:
        transport.work(samples_each(data, run.config))
        transport.exchange("training", payload * len(run.config.trainer.mixed))


@torch.no_grad()
def mean_losses(
    model: FlatModel, params: Tensor, batch: TensorBatch
) -> NDArray[np.float64]:
    """Return the mean loss of every peer's model on the same rows, without l2.

    Args:
        model: The model.
        params: Shape ``(N, P)``.
        batch: At least one row.

    Returns:
        Shape ``(N,)``.
    """
    features = as_features(batch.inputs, params.dtype)
    pair = (features, batch.labels)
    return np.array([float(model.sample_losses(x, pair).mean()) for x in params])


def right_share(
    model: FlatModel, params: Tensor, batch: TensorBatch
) -> NDArray[np.float64]:
    """Return the share of rows that every peer's model classifies right, ``(N,)``."""
    logits = model.predict_all(params, batch.inputs)
    guess = logits > 0 if logits.ndim == 2 else logits.argmax(-1)
    share: NDArray[np.float64] = (guess == batch.labels).double().mean(1).numpy()
    return share


@dataclass(frozen=True, kw_only=True, eq=False)
class Dilution:
    """A correction at the owners, followed over rounds of gossip.

    Attributes:
        change: Norm of the change that the owners took, all together.
        left: Norm of the difference that it makes at every peer to the same rounds
            without it, as a share of ``change``, shape ``(R + 1, N)``.
        predicted: What mixing alone leaves, ``|sum_u [W^r]_ju delta_u|`` over
            ``change``, shape ``(R + 1, N)``.
        error: Largest distance between difference and prediction (as vectors) over
            rounds and peers, over ``change``; small with ``mix`` only.
        forget_loss: Mean loss on the forgotten rows at every peer, ``(R + 1, N)``.
        forget_loss_before: The same before the correction, shape ``(N,)``.
        hops: Distance of every peer to the requester, shape ``(N,)``.
    """

    change: float
    left: NDArray[np.float64]
    predicted: NDArray[np.float64]
    error: float
    forget_loss: NDArray[np.float64]
    forget_loss_before: NDArray[np.float64]
    hops: NDArray[np.int64]


def follow_correction(
    run: TrainedRun,
    request: ForgetRequest,
    corrected: Tensor,
    rounds: int,
    after: After = "mix",
) -> Dilution:
    """Follow a correction and, beside it, the same rounds without it.

    A measurement by the simulator, which sees all models and the forgotten rows; no
    peer does. Private training is drawn again with the same noise on both sides.

    Args:
        run: The network before the correction.
        request: What went.
        corrected: Every peer's model after the correction, shape ``(N, P)``.
        rounds: How many rounds of gossip.
        after: What they are; see ``gossip_once``.

    Returns:
        What is left of it.
    """
    run = run.replaced(ledger=run.ledger.fork(), record=None, folder=None)
    request = request.resolve(run.data)
    data, forgotten = run.data.without(request), forgotten_rows(run, request)
    before = run.state.params
    changes = (corrected - before).double()
    owners = [int(i) for i in torch.nonzero(changes.any(dim=1)).flatten()]
    size = float(changes.norm())
    scale = size or 1.0
    weights = [dilution_weights(run.topology, u, rounds) for u in owners]
    left = np.zeros((rounds + 1, run.topology.n))
    predicted = np.zeros_like(left)
    losses = [mean_losses(run.model, corrected, forgotten)]
    error = 0.0
    with_it = PeerState(params=corrected, round=run.state.round)
    without = PeerState(params=before, round=run.state.round)
    for r in range(rounds + 1):
        if r:
            with_it, _ = gossip_once(run, data, with_it, after)
            without, _ = gossip_once(run, data, without, after)
            losses.append(mean_losses(run.model, with_it.params, forgotten))
        difference = (with_it.params - without.params).double()
        expected = torch.zeros_like(difference)
        for owner, power in zip(owners, weights, strict=True):
            expected += torch.from_numpy(power[r])[:, None] * changes[owner]
        left[r] = difference.norm(dim=1).numpy() / scale
        predicted[r] = expected.norm(dim=1).numpy() / scale
        error = max(error, float((difference - expected).norm(dim=1).max()) / scale)
    return Dilution(
        change=size,
        left=left,
        predicted=predicted,
        error=error,
        forget_loss=np.array(losses),
        forget_loss_before=mean_losses(run.model, before, forgotten),
        hops=run.topology.hops(request.requester),
    )


def forgotten_rows(run: TrainedRun, request: ForgetRequest) -> TensorBatch:
    """Return the rows that go, of all owners together."""
    index = torch.from_numpy(np.flatnonzero(request.mask(run.data)))
    store = run.data.store
    return TensorBatch(store.inputs[index], store.labels[index])
