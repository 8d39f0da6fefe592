r"""The exact influence of a peer's data on every peer: training, differentiated.

With the weight :math:`\omega` on what may be forgotten (1 present, 0 absent),
:math:`S_i = \partial x_i / \partial\omega` at :math:`\omega = 1` is carried through a
replay of the run (``engine.tangents`` has the recursion): from the recorded initial
state, with the same batches, through every local step, momentum and mixing.

What :math:`\omega` means:

* ``fixed`` requests: a batch keeps its divisor, so :math:`\omega` multiplies the rows'
  losses and :math:`\dot\nabla` is their part of the batch gradient;
* ``local_mean`` requests: the batch loss is :math:`\sum \omega_r \ell_r / \sum
  \omega_r`, so what is left gains what the rows lose;
* a whole peer (an index, or a request of kind ``peer``): its data term is multiplied,
  its divisor, its l2 term and its share in the network stay. ``leave_out`` of a whole
  peer is the retraining of ``ForgetRequest.whole_peer``, which also drops the l2 term
  and gives the share to the others: a larger change than :math:`\omega = 0`.

:math:`S` is a derivative: the state without the data is :math:`X - S` to first order
only. ``leave_out`` trains without them.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.fault_rounds import RoundsOfFaults
from dfl_unlearn.engine.memory import influence_memory
from dfl_unlearn.engine.replay import Chosen, Replay, refuse_undifferentiable
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import retrain, samples_per_round
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.stored_influence import kept_influence
from dfl_unlearn.engine.tangents import Change, round_of
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingRecordError,
    ReplayDivergedError,
    ResourceError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.influence import (
    InfluenceMode,
    InfluenceTrace,
    best_trace,
    influence_trace,
    mixing_power,
)
from dfl_unlearn.record.round_weights import Mixing, RoundWeights

_LOG = logging.getLogger(__name__)

# Per-sample gradients of the run times parameters up to which a replay is made unasked.
_AFFORDABLE = 5e8
_AUTOGRAD = 10  # a model without closed forms takes about so many times longer


def track_influence(
    run: TrainedRun,
    what: ForgetRequest | int,
    mode: InfluenceMode = "exact",
    *,
    every: int = 1,
    vectors: bool = False,
) -> InfluenceTrace:
    """Return how the influence of some data spread while the network was trained.

    Costs about two to three gradients per peer and step, for the peers that the data
    have reached.

    Args:
        run: The trained run; its record must hold ``initial_state``.
        what: A forget request, or a peer for all of its data.
        mode: ``exact`` replays training; the others are those of ``influence_trace``
            (``norm_bound`` for a peer only).
        every: Rounds between the rows of an exact trace; the last round is always one.
        vectors: Whether an exact trace keeps the derivatives and not only their norms.

    Returns:
        The trace; exactly 0 where no message can have carried the data.

    Raises:
        MissingRecordError: If training kept no initial state.
        UnsupportedRequestError: If training clipped per sample, or is no iteration
            whose derivative is known.
        ReplayDivergedError: If the replay does not end in the run's state.
        ResourceError: If it would not fit into memory.

    Example:
        >>> from dfl_unlearn import PeerData, SimulationConfig, simulate
        >>> data = PeerData.load("gaussian-classes", peers=4, seed=0)
        >>> run = simulate("ring", data, "logistic", SimulationConfig(rounds=5))
        >>> trace = track_influence(run, 0)
        >>> (trace.norms > 0).all(axis=1).tolist()  # the far peer is two hops away
        [False, True, True, True, True]
    """
    _validate.of_type(TrainedRun, run=run)
    _validate.one_of(("exact", "norm_bound", "mixing_power"), mode=mode)
    _validate.integer(every=every, at_least=1)
    _validate.of_type(bool, vectors=vectors)
    chosen = Chosen(run, what)
    if mode != "exact":
        return _cheap(run, what, chosen, mode)
    refuse_undifferentiable(run)
    replay = Replay(run)
    kept = -(-replay.rounds // every) if vectors else 0
    influence_memory(run, kept=kept).check()
    with limited_threads(run.config.threads):
        return _exact(replay, chosen, every, vectors)


def _cheap(
    run: TrainedRun,
    what: ForgetRequest | int,
    chosen: Chosen,
    mode: Literal["norm_bound", "mixing_power"],
) -> InfluenceTrace:
    if run.record is None:
        raise MissingRecordError(
            f"run: must hold a record for mode={mode!r}, got none; use the run that "
            "training gave"
        )
    if mode == "norm_bound" and isinstance(what, ForgetRequest) and what.kind != "peer":
        raise UnsupportedRequestError(
            f"mode: must be 'exact' or 'mixing_power' for a request of kind "
            f"{what.kind!r}, got 'norm_bound'; training recorded the norms of whole "
            "peers' gradients only: give the peer, or influence_trace gradient_norms"
        )
    return influence_trace(
        run.record, run.topology, chosen.source, mode, mixing=mixing_of(run, mode)
    )


def mixing_of(
    run: TrainedRun, mode: Literal["norm_bound", "mixing_power"] = "norm_bound"
) -> Mixing | None:
    """Return what mixed in each round of training, None where that is always W.

    Args:
        run: The trained run.
        mode: What it is for.

    Returns:
        For ``influence_trace``.

    Raises:
        UnsupportedRequestError: If peers restarted from their own checkpoints, whose
            influence no bound follows.
    """
    draws = run.faults()
    if draws is None:
        if run.config.schedule is None:
            return None
        schedule, works = run.schedule, np.ones(run.topology.n, dtype=np.bool_)
        return lambda t: RoundWeights(by_age=(schedule.at(t).weights,), works=works)
    if mode == "norm_bound" and run.config.faults.own_checkpoints is not None:
        raise UnsupportedRequestError(
            "mode: must be 'mixing_power' for a run in which peers restarted from "
            "their own checkpoints, got 'norm_bound'; no bound follows what was in them"
        )
    return RoundsOfFaults(draws, 0).weights


def _exact(replay: Replay, chosen: Chosen, every: int, vectors: bool) -> InfluenceTrace:
    topology, rounds = replay.run.topology, replay.rounds
    recursion = round_of(replay, chosen)
    change = recursion.start(replay.initial)
    kept, norms, rows = [], [], []
    states = _from(replay, replay.initial, rounds)
    for t, (before, after) in enumerate(pairwise(states)):
        change = recursion.forward(t, before, after, change)
        if (t + 1) % every == 0 or t + 1 == rounds:
            kept.append(t + 1)
            norms.append(torch.linalg.vector_norm(change.params, dim=1).numpy())
            if vectors:
                rows.append(change.params.numpy())
    replay.check_end(after)
    return InfluenceTrace(
        source=chosen.source,
        mode="exact",
        rounds=np.array(kept, dtype=np.int64),
        norms=np.array(norms),
        hops=np.min([topology.hops(owner) for owner in chosen.owners], axis=0),
        vacuous=np.zeros(topology.n, dtype=bool),
        vectors=np.array(rows) if vectors else None,
    )


def _from(replay: Replay, start: PeerState, rounds: int) -> Iterator[PeerState]:
    yield start
    yield from replay.states(start, rounds)


def best_influence(run: TrainedRun, source: int) -> InfluenceTrace:
    """Return the most exact trace of a peer's influence that is worth its time.

    What the run's folder keeps; else the derivative where a replay takes a second or
    two at most (counted in multiplications, never by a clock) and can be made; else
    what was recorded: the norm bound where it says something, else the mixing power.

    Args:
        run: The trained run.
        source: The peer.

    Returns:
        The trace of all rounds; its ``mode`` says which it is.
    """
    kept = kept_influence(run, source)
    if kept is not None:
        return kept
    if run.record is None:
        return mixing_power(
            run.topology,
            source,
            run.config.rounds,
            mixing=mixing_of(run, "mixing_power"),
        )
    if influence_is_cheap(run):
        try:
            return track_influence(run, source)
        except (MissingRecordError, UnsupportedRequestError, ResourceError) as error:
            _LOG.debug("no exact influence: %s", error)
        except ReplayDivergedError as error:
            _LOG.warning("no exact influence: %s", error)
    try:
        mixing = mixing_of(run)
    except UnsupportedRequestError:
        mixing = mixing_of(run, "mixing_power")
        return mixing_power(run.topology, source, run.record.rounds, mixing=mixing)
    return best_trace(run.record, run.topology, source, mixing=mixing)


def influence_is_cheap(run: TrainedRun, sources: int = 1) -> bool:
    """Return whether exact traces of so many peers take a second or two at most.

    Args:
        run: The trained run.
        sources: How many traces.

    Returns:
        By multiplications, never by a clock; False without a record.
    """
    if run.record is None:
        return False
    work = run.record.rounds * samples_per_round(run.data, run.config) * run.model.size
    return sources * work * (1 if run.model.convex else _AUTOGRAD) <= _AFFORDABLE


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceInfluence:
    r"""What every peer's data contributed to one number about one peer's model.

    Attributes:
        peer: Whose model.
        direction: v, shape ``(P,)`` float64.
        values: :math:`\langle v, \partial x_{peer} / \partial \omega_u \rangle` for
            every peer u, shape ``(N,)`` float64.
        functional: What v is: ``movement``, ``test_loss`` or ``given``.
    """

    peer: int
    direction: NDArray[np.float64]
    values: NDArray[np.float64]
    functional: str


def who_influenced(
    run: TrainedRun,
    peer: int,
    direction: Tensor | Literal["movement", "test_loss"] = "movement",
) -> SourceInfluence:
    r"""Return whose data made one peer's model what it is: all sources at once.

    The adjoint of ``track_influence``: one replay, then one pass backwards, whatever
    the number of peers. The value of source u is the derivative in the weight of all
    of u's data of the number :math:`\langle v, x_{peer} \rangle`.

    Args:
        run: The trained run; its record must hold ``initial_state``.
        peer: Whose model.
        direction: v. ``movement``: the unit vector from the peer's initial to its final
            parameters, so that a value is the part of the distance covered which u's
            data are due, to first order. ``test_loss``: the gradient of the mean test
            loss (data term) at the peer's model, so that a **negative** value is help.
            Or any vector of shape ``(P,)``.

    Returns:
        One value per source.

    Raises:
        MissingRecordError: If training kept no initial state.
        UnsupportedRequestError: If the iteration has no known derivative.
        ReplayDivergedError: If the replay does not end in the run's state.

    Example:
        >>> from dfl_unlearn import PeerData, SimulationConfig, simulate
        >>> data = PeerData.load("gaussian-classes", peers=4, seed=0)
        >>> run = simulate("path", data, "logistic", SimulationConfig(rounds=2))
        >>> who_influenced(run, 0).values[3].item()  # three hops away: too far
        0.0
    """
    _validate.of_type(TrainedRun, run=run)
    run.data.check_peer(peer)
    refuse_undifferentiable(run)
    replay = Replay(run)
    with limited_threads(run.config.threads):
        # States every so often, and between two of them once more: memory of two
        # times the square root of the rounds.
        span = max(1, math.isqrt(replay.rounds))
        marks = [replay.initial]
        for state in replay.states(replay.initial, replay.rounds):
            if state.round % span == 0 or state.round == replay.rounds:
                marks.append(state)
        replay.check_end(marks[-1])
        v, functional = _functional(run, peer, direction, marks[-1])
        recursion = round_of(replay, None)
        start = recursion.start(replay.initial)
        start.params[peer] = v
        change = Change(params=start.params, slots=start.slots)
        credit = np.zeros(run.data.n)
        for begin, end in reversed(list(pairwise(marks))):
            states = list(_from(replay, begin, end.round - begin.round))
            for before, after in reversed(list(pairwise(states))):
                change = recursion.backward(before.round, before, after, change, credit)
        recursion.finish(replay.initial, change, credit)
    return SourceInfluence(
        peer=peer, direction=v.numpy(), values=credit, functional=functional
    )


def _functional(
    run: TrainedRun,
    peer: int,
    direction: Tensor | Literal["movement", "test_loss"],
    final: PeerState,
) -> tuple[Tensor, str]:
    """Return v as float64 and its name."""
    if isinstance(direction, Tensor):
        if tuple(direction.shape) != (run.model.size,):
            raise InvalidArgumentError(
                f"direction: must have shape ({run.model.size},), got "
                f"{tuple(direction.shape)}; give one number per parameter"
            )
        return direction.detach().double().clone(), "given"
    _validate.one_of(("movement", "test_loss"), direction=direction)
    row = final.params[peer].double()
    if direction == "movement":
        assert run.record is not None
        assert run.record.initial is not None
        moved = row - run.record.initial[peer].double()
        return moved / moved.norm().clamp_min(1e-300), "movement"
    if len(run.data.test) == 0:
        raise InvalidArgumentError(
            "direction: must be 'movement' or a vector for data without test rows, "
            "got 'test_loss'; give test rows to PeerData"
        )
    leaf = row.requires_grad_()
    loss = run.model.sample_losses(leaf, run.data.test).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, "test_loss"


def leave_out(run: TrainedRun, request: ForgetRequest) -> TrainedRun:
    """Train the network again without what a request names, all seeds the same.

    What ``track_influence`` gives to first order, in full: the counterfactual.

    Args:
        run: The trained run.
        request: What was never there; its ``normalization`` says what a mean over the
            rest is.

    Returns:
        The counterfactual run, without a folder.
    """
    _validate.of_type(TrainedRun, run=run)
    _validate.of_type(ForgetRequest, request=request)
    return retrain(run, run.data.without(request.resolve(run.data)))
