"""Peers take the corrected models, and train on, also where some are not there.

In a network with faults whoever has not taken its corrected model keeps its old one and
is out of mixing until it has: no model from before the request is averaged in after it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.fault_exclusion import WithoutPeers
from dfl_unlearn.engine.faulty_transport import FaultyTransport
from dfl_unlearn.engine.private import charge_rounds
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training, samples_per_round
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.record.plan import RecordPlan


def recover(
    run: TrainedRun,
    data: PeerData,
    rows: Tensor,
    rounds: int,
    transport: Transport,
) -> tuple[PeerState, int]:
    """Let every peer that was handed its row take it, and train on for some rounds.

    Under faults a peer that lacks the corrected model is handed it in these rounds too,
    and takes part from the round after; one that crashes lacks it again.

    Args:
        run: The trained network.
        data: What is kept.
        rows: The corrected models, shape ``(N, P)``; cast to the run's dtype.
        rounds: How many rounds.
        transport: Knows who was handed one, and carries the rounds' messages.

    Returns:
        The new state and the number of per-sample gradients taken.
    """
    rows = rows.to(run.state.params.dtype).clone()
    payload = run.model.size * rows.element_size() * len(run.config.trainer.mixed)
    each = samples_each(data, run.config)
    released = PeerState(params=rows, round=run.state.round)
    if not isinstance(transport, FaultyTransport):
        state, gradients = continue_training(run, data, released, rounds)
        for _ in range(rounds):
            transport.work(each)
            transport.exchange("recovery", payload)
        return state, gradients
    old, gradients = run.state.params, 0
    state = with_old_rows(run, released, transport)
    for _ in range(rounds):
        had = transport.current.copy()
        transport.hand_on(copy=1)
        fresh = transport.current & (transport.applied == transport.clock)
        lost = had & (~transport.current | fresh)
        params = state.params.clone()
        for peers, models in ((lost, old), (fresh, rows)):
            params[torch.from_numpy(peers)] = models[torch.from_numpy(peers)]
        now = transport.clock
        away = ~transport.current | fresh
        state = _one_round(
            run,
            data,
            PeerState(params=params, slots=state.slots, round=state.round),
            WithoutPeers(transport.draws, away, now),
        )
        transport.work(each)
        transport.exchange("recovery", payload)
        gradients += samples_per_round(data, run.config)
    return state, gradients


def with_old_rows(run: TrainedRun, state: PeerState, transport: Transport) -> PeerState:
    """Return a state in which peers that were not handed their row keep the old one.

    Args:
        run: Gives the old rows.
        state: The new ones.
        transport: Knows who was handed one.

    Returns:
        The state itself in a network without faults.
    """
    if not isinstance(transport, FaultyTransport) or transport.current.all():
        return state
    held = torch.from_numpy(transport.current)[:, None]
    params = torch.where(held, state.params, run.state.params)
    return PeerState(params=params, slots=state.slots, round=state.round)


def _one_round(
    run: TrainedRun, data: PeerData, state: PeerState, draws: WithoutPeers
) -> PeerState:
    """Train for one round under given faults."""
    config = replace(run.config, record=RecordPlan(parts=frozenset()))
    charge_rounds(run.ledger, config.private, 1, first=state.round)
    backend = Inline()
    with limited_threads(config.threads):
        backend.start(
            EngineSetup(
                schedule=run.schedule,
                data=data,
                model=run.model,
                config=config,
                rng=run.rng,
                ahead=draws.since - state.round,
                draws=draws,
            ),
            state,
        )
        backend.advance(state.round)
        return backend.gather()
