"""The training loop: rounds on a backend, figures between them, a run at the end."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.contract import Backend, EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.backends.recorder import Recorder
from dfl_unlearn.engine.callbacks import Callback, ProgressLog, notify
from dfl_unlearn.engine.clock import TrainingClock
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.fault_rounds import FaultsSeen
from dfl_unlearn.engine.figures import (
    arithmetic_of,
    history_of,
    is_evaluated,
    peer_scores,
    run_digest,
    versions,
)
from dfl_unlearn.engine.keeping import Keeper
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.private import charge_rounds, record_plan
from dfl_unlearn.engine.progress import Progress
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree, noise_self_check
from dfl_unlearn.topology.graph import Topology, TopologySchedule


def train(
    topology: Topology,
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
    execution: ExecutionConfig,
    callbacks: Sequence[Callback],
    rng: RngTree,
    *,
    label: str,
    ledger: PrivacyLedger | None = None,
    keeper: Keeper | None = None,
    start: Progress | None = None,
    arithmetic: dict[str, Any] | None = None,
    keeps_record: bool = True,
    requests: Sequence[str] = (),
    ahead: int = 0,
) -> TrainedRun:
    """Train to the last round, from the first or from where a run was left.

    Args:
        topology: The network.
        data: What each peer holds.
        model: The model.
        config: Everything that changes results.
        execution: What changes speed and display only.
        callbacks: Hooks after a round.
        rng: The run's draws.
        label: What is going on, for the progress display.
        ledger: Holds the charge of all rounds already; None makes one.
        keeper: Keeps what comes in a run folder.
        start: Where to go on; None is before the first round.
        arithmetic: Kernel and chunks to use, as an earlier part of the run did; None
            chooses them.
        keeps_record: Whether the record covers all rounds and so is worth keeping.
        requests: Ids of the forget requests that ``start`` carries.
        ahead: Rounds by which the network's clock is ahead of training.

    Returns:
        The run, in memory.
    """
    began = time.perf_counter() - (0.0 if start is None else start.seconds)
    config = replace(config, record=record_plan(config))
    if ledger is None:
        ledger = PrivacyLedger(config.privacy_budget)
        charge_rounds(ledger, config.private, config.rounds)
    keeper = Keeper(execution) if keeper is None else keeper
    initial = initial_state(model, data.n, config, rng)
    first = initial if start is None else start.state
    rows = [] if start is None else list(start.rows)
    seen = FaultsSeen() if start is None else FaultsSeen.of(start.faults)
    backend = backend_for(execution)
    progress = ProgressLog(config.rounds, label=label) if execution.progress else None
    hooks = [*callbacks, *([progress] if progress else [])]
    try:
        with keeper.telling_how(), limited_threads(config.threads):
            used = arithmetic_of(model, config) | (arithmetic or {})
            setup = EngineSetup(
                schedule=schedule_of(topology, config),
                data=data,
                model=model,
                config=_recorded_kernel(config, used, keeps_record),
                rng=rng,
                ahead=ahead,
            )
            clock = TrainingClock(setup)
            recorder = Recorder(setup, initial, start.recorded if start else None)
            backend.start(setup, first, recorder)

            def so_far() -> Progress:
                return Progress(
                    state=backend.gather(),
                    recorded=recorder.so_far() if keeps_record else None,
                    rows=tuple(rows),
                    faults=seen.info(),
                    seconds=time.perf_counter() - began,
                )

            with keeper.between_rounds():
                for t in range(first.round, config.rounds):
                    info = backend.advance(t)
                    info = replace(info, simulated_seconds=clock.after(t))
                    seen.add(info.round, info.faults)
                    if is_evaluated(t + 1, config):
                        state = backend.gather()
                        rows.append(
                            (
                                t + 1,
                                info.loss,
                                peer_scores(model, state.params, data),
                                state.consensus_distance(),
                                time.perf_counter() - began,
                                info.simulated_seconds,
                            )
                        )
                        keeper.evaluated(rows[-1])
                        notify(hooks, "on_evaluate", history_of(rows))
                    notify(hooks, "on_round", info)
                    keeper.after(t + 1, config.rounds, info.seconds, so_far)
            state = backend.gather()
            done_by = backend.report()
            record = backend.stop() if keeps_record else None
            if record is not None and "training_residual" in config.record.parts:
                objective = network_objective(model, data, config.peer_weighting)
                residual = float(objective.gradient(state.mean()).norm())
                record = replace(record, training_residual={state.round: residual})
    finally:
        backend.close()
        if progress is not None:
            progress.close()
    history = history_of(rows)
    return TrainedRun(
        topology=topology,
        data=data,
        model=model,
        config=config,
        state=state,
        record=record,
        history=history,
        ledger=ledger,
        rng=rng,
        ahead=ahead,
        digest=run_digest(
            state.params, history, used, ledger=ledger.head, requests=requests
        ),
        info={
            "arithmetic": used,
            "execution": done_by,
            "versions": versions(),
            "noise_self_check": list(noise_self_check()),
            "seconds": time.perf_counter() - began,
            "sample_gradients": config.rounds * samples_per_round(data, config),
            **seen.info(),
        },
    )


def _recorded_kernel(
    config: SimulationConfig, arithmetic: Mapping[str, Any], keeps_record: bool
) -> SimulationConfig:
    """Return the configuration with the kernel and chunks that were resolved."""
    record = config.record if keeps_record else RecordPlan(parts=frozenset())
    return replace(
        config,
        kernel=arithmetic["kernel"],
        chunk_peers=arithmetic["chunk_peers"],
        record=record,
    )


def continue_training(
    run: TrainedRun, data: PeerData, state: PeerState, rounds: int
) -> tuple[PeerState, int]:
    """Run more rounds of the same training from a state.

    The learning rate stays what it was in the last planned round. Rounds of a private
    trainer are charged to the run's ledger before they begin.

    Args:
        run: Gives network, model and configuration.
        data: What is kept.
        state: Where to start; not written to.
        rounds: How many rounds, >= 0.

    Returns:
        The new state and the number of per-sample gradients taken.
    """
    if rounds == 0:
        return state, 0
    config = replace(run.config, record=RecordPlan(parts=frozenset()))
    charge_rounds(run.ledger, config.private, rounds, first=state.round)
    backend = Inline()
    with limited_threads(config.threads):
        backend.start(
            EngineSetup(
                schedule=schedule_of(run.topology, config),
                data=data,
                model=run.model,
                config=config,
                rng=run.rng,
                ahead=run.ahead,
            ),
            state,
        )
        for t in range(state.round, state.round + rounds):
            backend.advance(t)
        return backend.gather(), rounds * samples_per_round(data, config)


def samples_per_round(data: PeerData, config: SimulationConfig) -> int:
    """Return the per-sample gradients of one round, averaged over an epoch."""
    if config.private is not None:
        return int(np.rint(config.private.rate * data.retained.sum()))
    steps = config.local.per_round(data.sizes)
    per_step = data.sizes / config.local.batches(data.sizes)
    active = data.retained > 0
    return int(np.rint((steps * per_step * active).sum()))


@contextmanager
def kept_open(execution: ExecutionConfig) -> Iterator[None]:
    """Keep what the engine starts for all runs in a block: Ray starts only once.

    Args:
        execution: Engine and workers of these runs.
    """
    if execution.engine != "ray":
        yield
        return
    from dfl_unlearn.engine.backends.ray_runtime import ray_session

    with ray_session(
        execution.workers,
        address=execution.ray_address,
        allow_remote=execution.ray_allow_remote,
    ):
        yield


def backend_for(execution: ExecutionConfig) -> Backend:
    """Return the backend that was asked for; Ray is imported only for its own."""
    if execution.engine == "inline":
        return Inline()
    if execution.engine == "ray":
        from dfl_unlearn.engine.backends.ray import RaySharded

        return RaySharded(execution)
    from dfl_unlearn.engine.backends.auto import Auto

    return Auto(execution)


def initial_state(
    model: FlatModel, n: int, config: SimulationConfig, rng: RngTree
) -> PeerState:
    """Return the state before the first round.

    Args:
        model: Gives the initialization.
        n: Number of peers.
        config: ``common_init`` and dtype.
        rng: The run's draws.

    Returns:
        The state; with a common start its rows share memory.
    """
    if config.common_init:
        return PeerState(params=initial_params(model, 0, config, rng).expand(n, -1))
    rows = [initial_params(model, i, config, rng) for i in range(n)]
    return PeerState(params=torch.stack(rows))


def initial_params(
    model: FlatModel, peer: int, config: SimulationConfig, rng: RngTree
) -> Tensor:
    """Return what one peer begins with, ``(P,)``; arguments as ``initial_state``."""
    own = rng if config.common_init else rng.child(f"peer:{peer}")
    return model.init(own).to(config.torch_dtype)


def schedule_of(topology: Topology, config: SimulationConfig) -> TopologySchedule:
    """Return the networks of the rounds."""
    return topology if config.schedule is None else config.schedule
