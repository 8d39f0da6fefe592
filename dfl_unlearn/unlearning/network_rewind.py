"""All peers go back some rounds and train again without the data.

Back at the start of training that is retraining, ``exact``; from a later recorded round
it is r2d for a network, and ``unlearning.network_claim`` says what noise on all final
models is worth. Batches and rates are those that training drew; momentum and trackers
begin afresh, as they hold what was learned from the forgotten rows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.influence import best_influence
from dfl_unlearn.engine.personal import Personal
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training, initial_state
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import Cost, Outcome
from dfl_unlearn.unlearning.local import methods
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.network_claim import (
    exact_certificate,
    network_bound,
    released,
)

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

START, ROUND = "network-start", "network-round"
"""Names of personal tensors: the state that later requests begin at, ``(P,)``, and its
round, ``(1,)`` int64."""

_NOTICE = 16  # bytes: the request's number and the round to go back to


def check_rewind(
    protocol: "AtPeer",
    run: TrainedRun | None = None,
    request: ForgetRequest | None = None,
) -> None:
    """Refuse what cannot be rewound; by the fields alone, or on a run.

    Args:
        protocol: Its fields.
        run: The network, or None.
        request: The resolved request, or None.

    Raises:
        InvalidHyperparameterError: If fields contradict each other.
        UnsupportedRequestError: If this training cannot be replayed without the data.
    """
    method = protocol.method
    if not isinstance(method, Original | R2d):
        raise InvalidHyperparameterError(
            "method: must be r2d, or original for no noise, with "
            f"reentry='rewind_network', got {methods.name_of(method)}, which would not "
            "run; use another reentry"
        )
    if isinstance(method, R2d) and (method.start, method.bound) != (
        "checkpoint",
        "tight",
    ):
        raise InvalidHyperparameterError(
            "method: must have start='checkpoint' and bound='tight' with "
            f"reentry='rewind_network', got {method.start!r} and {method.bound!r}; a "
            "network has recorded states only, and no published bound"
        )
    if protocol.gossip_rounds:
        raise InvalidHyperparameterError(
            "gossip_rounds: must be 0 with reentry='rewind_network', got "
            f"{protocol.gossip_rounds}; the replayed rounds are gossip already"
        )
    if protocol.influence_threshold and _noised(protocol) is not None:
        raise InvalidHyperparameterError(
            "influence_threshold: must be 0 with an epsilon or noise_std, got "
            f"{protocol.influence_threshold}; no bound is known where some peers do "
            "not go back: use epsilon=None"
        )
    if run is None or request is None:
        return
    if request.normalization != "local_mean":
        raise UnsupportedRequestError(
            "normalization: must be 'local_mean' for reentry='rewind_network', got "
            f"{request.normalization!r}; the bound is about the mean over what is left"
        )
    if run.config.private is not None:
        raise UnsupportedRequestError(
            "reentry: must not be 'rewind_network' for a run that was trained "
            "privately, got it; the same noise twice hides nothing from whoever sees "
            "both: use retrain with coupled=False"
        )
    start, _ = _start(protocol, run)
    asked = _noised(protocol)
    if start and asked is not None:
        network_bound(asked, run, request, run.config.rounds - start)


def rewound(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest, rng: RngTree
) -> Outcome:
    """Return the outcome of going back and training again without the data.

    Args:
        protocol: Its fields.
        run: The network, with this attempt's ledger.
        request: The resolved request.
        rng: The run's draws.

    Returns:
        Exact where all peers went back to the start; with noise and a claim where r2d
        has them; else without one.
    """
    rounds = run.config.rounds
    start, params = _start(protocol, run)
    stays = _stays(protocol, run, request)
    transport = run.transport()
    transport.notify(request.requester, "notice", _NOTICE)
    state, gradients = _replayed(run, request, start, params, stays, transport)
    certificate = None
    method = _noised(protocol)
    if start == 0 and not stays.any():
        certificate = exact_certificate(run, request)
    elif method is not None:
        state, certificate = released(method, run, request, rng, state, rounds - start)
    if stays.any():
        notes = [
            f"{int((~stays).sum())} of {run.topology.n} peers went back to round "
            f"{start} of {rounds}; the others kept their models, which neighbours "
            "averaged with in the replayed rounds"
        ]
    else:
        notes = [f"all peers went back to round {start} of {rounds}"]
    if rounds - start > (wanted := _wanted(protocol, run)):
        notes.append(
            f"{wanted} rounds were asked for; the nearest recorded state before that "
            "was used"
        )
    if state.slots and start:
        notes.append("momentum and trackers began afresh at the recorded state")
    return Outcome(
        run=run,
        request=request,
        protocol=protocol,
        state=state,
        certificate=certificate,
        cost=Cost(
            rounds=rounds - start,
            sample_gradients=gradients,
            record_bytes=params.nbytes if start else 0,
            trainable_parameters=run.model.size,
        ),
        ledger=run.ledger,
        messages=transport.log,
        info={"rewind_rounds": float(rounds - start)},
        notes=tuple(notes),
        personal=_for_later(params, start),
    )


def _for_later(params: Tensor, start: int) -> Personal:
    """Return what every peer keeps, so that later requests begin at the same state."""
    if start == 0:  # drawn again from its key
        return {}
    place = torch.tensor([start])
    return {peer: {START: row, ROUND: place} for peer, row in enumerate(params)}


def _wanted(protocol: "AtPeer", run: TrainedRun) -> int:
    """Return K, the rounds to go back.

    Raises:
        InvalidHyperparameterError: If there are not so many.
    """
    rounds = run.config.rounds
    if protocol.rewind_rounds is not None:
        if protocol.rewind_rounds > rounds:
            raise InvalidHyperparameterError(
                f"rewind_rounds: must be at most the {rounds} rounds of training, got "
                f"{protocol.rewind_rounds}; leave it out to go back to the start"
            )
        return protocol.rewind_rounds
    if not isinstance(protocol.method, R2d):
        return rounds
    each = int(run.config.local.per_round(run.data.sizes).max())
    return -(-protocol.method.rewind_steps(rounds * each) // each)


def _start(protocol: "AtPeer", run: TrainedRun) -> tuple[int, Tensor]:
    """Return the newest recorded round that is early enough, and its models.

    Raises:
        MissingRecordError: If training kept none; the start is drawn again.
    """
    last = run.config.rounds - _wanted(protocol, run)
    known = {} if run.record is None else dict(run.record.checkpoints)
    if run.record is None and all(START in own for own in _each(run)):
        rounds = {int(own[ROUND]) for own in _each(run)}
        if len(rounds) == 1:
            known[rounds.pop()] = torch.stack([own[START] for own in _each(run)])
    elif last > 0 and run.record is None:
        raise MissingRecordError(
            "record: must hold checkpoints for reentry='rewind_network' with fewer "
            f"than all {run.config.rounds} rounds, got nothing; "
            + (
                "the record stayed behind with an earlier request: "
                if run.requests
                else "train here with record=RecordPlan(), or "
            )
            + f"use rewind_rounds={run.config.rounds}, which needs none"
        )
    early = [t for t in known if 0 < t <= last]
    if early:
        return max(early), known[max(early)].to(run.state.params)
    return 0, initial_state(run.model, run.topology.n, run.config, run.rng).params


def _each(run: TrainedRun) -> list[Mapping[str, Tensor]]:
    return [run.personal.get(peer, {}) for peer in range(run.topology.n)]


def _stays(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest
) -> NDArray[np.bool_]:
    """Return the peers that the owners' data hardly reached, shape ``(N,)``."""
    if protocol.influence_threshold == 0:
        return np.zeros(run.topology.n, dtype=np.bool_)
    shares = [best_influence(run, owner).shares()[-1] for owner in request.peers]
    stays: NDArray[np.bool_] = np.max(shares, axis=0) <= protocol.influence_threshold
    stays[list(request.peers)] = False
    return stays


def _replayed(
    run: TrainedRun,
    request: ForgetRequest,
    start: int,
    params: Tensor,
    stays: NDArray[np.bool_],
    transport: Transport,
) -> tuple[PeerState, int]:
    """Train again from a recorded round; some peers' models stay what they were.

    Returns:
        The state, and the per-sample gradients of those that trained.
    """
    data, rounds = run.data.without(request), run.config.rounds - start
    payload = run.model.size * params.element_size() * len(run.config.trainer.mixed)
    everyone = samples_each(data, run.config)
    each = everyone * ~stays
    for _ in range(rounds):
        transport.work(each)
        transport.exchange("training", payload)
    if not stays.any():
        begun = PeerState(params=params, round=start)
        return continue_training(run, data, begun, rounds)
    held = torch.from_numpy(stays)[:, None]

    def fixed(state: PeerState) -> PeerState:
        rows = torch.where(held, run.state.params, state.params)
        return PeerState(params=rows, slots=state.slots, round=state.round)

    state, gradients = fixed(PeerState(params=params, round=start)), 0
    for _ in range(rounds):
        state, taken = continue_training(run, data, state, 1)
        state = fixed(state)
        gradients += taken
    return state, int(np.rint(gradients * each.sum() / max(everyone.sum(), 1.0)))


def _noised(protocol: "AtPeer") -> R2d | None:
    """Return the method where it asks for noise."""
    method = protocol.method
    return method if isinstance(method, R2d) and method.claims else None
