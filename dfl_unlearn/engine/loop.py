"""The training loop: rounds on a backend, figures between them, a run at the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.contract import Backend, EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.callbacks import Callback, ProgressLog, notify
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.figures import (
    Evaluated,
    history_of,
    is_evaluated,
    peer_scores,
    run_digest,
    versions,
)
from dfl_unlearn.engine.local import resolve_chunk, resolve_kernel
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.private import charge_rounds, record_plan
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.threads import blas_report, limited_threads
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
) -> TrainedRun:
    """Train from the first round to the last.

    Args:
        topology: The network.
        data: What each peer holds.
        model: The model.
        config: Everything that changes results.
        execution: What changes speed and display only.
        callbacks: Hooks after a round.
        rng: The run's draws.
        label: What is going on, for the progress display.

    Returns:
        The run, in memory.
    """
    began = time.perf_counter()
    config = replace(config, record=record_plan(config))
    ledger = PrivacyLedger(config.privacy_budget)
    charge_rounds(ledger, config.private, config.rounds)
    initial = initial_state(model, data.n, config, rng)
    backend = backend_for(execution)
    progress = ProgressLog(config.rounds, label=label) if execution.progress else None
    hooks = [*callbacks, *([progress] if progress else [])]
    rows: list[Evaluated] = []
    try:
        with limited_threads(config.threads):
            backend.start(
                EngineSetup(
                    schedule=schedule_of(topology, config),
                    data=data,
                    model=model,
                    config=config,
                    rng=rng,
                ),
                initial,
            )
            for t in range(config.rounds):
                info = backend.advance(t)
                if is_evaluated(t + 1, config):
                    state = backend.gather()
                    rows.append(
                        (
                            t + 1,
                            info.loss,
                            peer_scores(model, state.params, data),
                            state.consensus_distance(),
                            time.perf_counter() - began,
                        )
                    )
                    notify(hooks, "on_evaluate", history_of(rows))
                notify(hooks, "on_round", info)
            state = backend.gather()
            blas = blas_report()
            done_by = backend.report()
            record = backend.stop()
            if "training_residual" in config.record.parts:
                objective = network_objective(model, data, config.peer_weighting)
                residual = float(objective.gradient(state.mean()).norm())
                record = replace(record, training_residual={state.round: residual})
    finally:
        backend.close()
        if progress is not None:
            progress.close()
    history = history_of(rows)
    arithmetic = {
        "kernel": resolve_kernel(model, config.kernel),
        "chunk_peers": resolve_chunk(config),
        "block_peers": config.block_peers,
        "threads": config.threads,
        "blas": blas,
        "device": "cpu",
    }
    seconds = time.perf_counter() - began
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
        digest=run_digest(state.params, history, arithmetic),
        info={
            "arithmetic": arithmetic,
            "execution": done_by,
            "versions": versions(),
            "noise_self_check": list(noise_self_check()),
            "seconds": seconds,
            "sample_gradients": config.rounds * samples_per_round(data, config),
        },
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

    with ray_session(execution.workers):
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
        row = model.init(rng).to(config.torch_dtype)
        return PeerState(params=row.expand(n, -1))
    rows = [model.init(rng.child(f"peer:{i}")) for i in range(n)]
    return PeerState(params=torch.stack(rows).to(config.torch_dtype))


def schedule_of(topology: Topology, config: SimulationConfig) -> TopologySchedule:
    """Return the networks of the rounds."""
    return topology if config.schedule is None else config.schedule
