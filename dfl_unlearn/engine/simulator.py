"""The training loop, and carrying on from a state."""

import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import dfl_unlearn
from dfl_unlearn import _validate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.contract import Backend, EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.callbacks import Callback, ProgressLog, notify
from dfl_unlearn.engine.clock import TrainingClock
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.local import resolve_chunk, resolve_kernel
from dfl_unlearn.engine.memory import available_memory
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.private import charge_rounds, record_plan
from dfl_unlearn.engine.run import History, TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.threads import blas_report, limited_threads
from dfl_unlearn.errors import InvalidArgumentError, ResourceError, TopologyError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree, noise_self_check
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology, TopologySchedule

# round, loss, accuracy, consensus, seconds, simulated seconds
_Evaluated = tuple[int, NDArray[np.float64], NDArray[np.float64], float, float, float]

_SCORE_BYTES = 2**26  # logits held at once while scoring


def simulate(
    topology: Topology | str,
    data: PeerData,
    model: FlatModel | str,
    config: SimulationConfig | None = None,
    *,
    execution: ExecutionConfig | None = None,
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
) -> TrainedRun:
    """Train every peer of a network by gossip.

    Args:
        topology: The network, or a registered name, built with one peer per part of
            ``data``.
        data: What each peer holds.
        model: The model, or a registered name, built for the data's shape.
        config: Everything that changes results; default ``SimulationConfig()``.
        execution: What changes speed and display only.
        callbacks: Hooks after a round; see ``engine.callbacks``.
        folder: An empty run folder to keep the run in, or None.

    Returns:
        The trained run. Equal arguments give equal bits.

    Raises:
        TopologyError: If the network and the data have different numbers of peers.
        InvalidArgumentError: If a schedule has another number of peers.
        NumericalError: If training diverges; names peer and round.
        ResourceError: If the run would not fit into memory.

    Example:
        >>> from dfl_unlearn import PeerData, SimulationConfig, simulate
        >>> data = PeerData.load("gaussian-classes", peers=4, seed=0)
        >>> run = simulate("ring", data, "logistic", SimulationConfig(rounds=5))
        >>> tuple(run.state.params.shape)
        (4, 33)
    """
    config = config if config is not None else SimulationConfig()
    execution = execution if execution is not None else ExecutionConfig()
    _validate.of_type(PeerData, why="e.g. PeerData.load('digits', peers=8)", data=data)
    _validate.of_type(SimulationConfig, config=config)
    _validate.of_type(ExecutionConfig, execution=execution)
    if isinstance(topology, str):
        topology = load_topology(topology, n=data.n)
    _validate.of_type(
        Topology, why="e.g. load_topology('ring', n=8)", topology=topology
    )
    if isinstance(model, str):
        model = models.build(
            model,
            input_shape=tuple(data.store.inputs.shape[1:]),
            num_classes=data.num_classes,
        )
    _validate.of_type(FlatModel, why="e.g. model='logistic'", model=model)
    if topology.n != data.n:
        raise TopologyError(
            f"topology: must have one peer per part of the data, got {topology.n} "
            f"peers and data for {data.n}; use load_topology(..., n={data.n})"
        )
    if config.schedule is not None and config.schedule.n != data.n:
        raise InvalidArgumentError(
            f"config.schedule: must have {data.n} peers, got {config.schedule.n}"
        )
    _check_memory(data, model, config, execution)
    if folder is not None:
        from dfl_unlearn.engine.stored import check_storable

        check_storable(config, folder)
    rng = RngTree(config.seed)
    run = _train(
        topology, data, model, config, execution, callbacks, rng, label="training"
    )
    if folder is not None:
        run = run.save(folder)
    notify(callbacks, "on_end", run)
    return run


def retrain(
    run: TrainedRun,
    data: PeerData,
    *,
    seed_offset: int = 0,
    execution: ExecutionConfig | None = None,
) -> TrainedRun:
    """Train a run's network again on other data of the same peers.

    Args:
        run: Gives network, model, configuration and seeds.
        data: What is kept; same stored rows, some of them dropped.
        seed_offset: 0 repeats every draw (initial parameters, batch order).
        execution: What changes speed and display only.

    Returns:
        The retrained run, without a folder.
    """
    config = replace(
        run.config,
        seed=run.config.seed + seed_offset,
        record=RecordPlan(parts=frozenset()),
    )
    rng = run.rng if seed_offset == 0 else RngTree(config.seed)
    return _train(
        run.topology,
        data,
        run.model,
        config,
        execution if execution is not None else ExecutionConfig(),
        (),
        rng,
        label="retraining",
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
                schedule=_schedule(run.topology, config),
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


def _train(
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
    began = time.perf_counter()
    config = replace(config, record=record_plan(config))
    ledger = PrivacyLedger(config.privacy_budget)
    charge_rounds(ledger, config.private, config.rounds)
    initial = initial_state(model, data.n, config, rng)
    backend = _backend(execution)
    clock = TrainingClock(_schedule(topology, config), data, model.size, config, rng)
    progress = ProgressLog(config.rounds, label=label) if execution.progress else None
    hooks = [*callbacks, *([progress] if progress else [])]
    rows: list[_Evaluated] = []
    try:
        with limited_threads(config.threads):
            backend.start(
                EngineSetup(
                    schedule=_schedule(topology, config),
                    data=data,
                    model=model,
                    config=config,
                    rng=rng,
                ),
                initial,
            )
            for t in range(config.rounds):
                info = replace(backend.advance(t), simulated_seconds=clock.after(t))
                if _evaluates(t + 1, config):
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
                    notify(hooks, "on_evaluate", _history(rows))
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
    history = _history(rows)
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
        digest=_digest(state.params, history, arithmetic),
        info={
            "arithmetic": arithmetic,
            "execution": done_by,
            "versions": versions(),
            "noise_self_check": list(noise_self_check()),
            "seconds": seconds,
            "sample_gradients": config.rounds * samples_per_round(data, config),
        },
    )


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


def _backend(execution: ExecutionConfig) -> Backend:
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


def peer_scores(
    model: FlatModel, params: Tensor, data: PeerData
) -> NDArray[np.float64]:
    """Return every peer's test accuracy, or minus its mean squared error.

    Args:
        model: The model; without classes it is a regression.
        params: State, shape ``(N, P)``.
        data: Holds the test set.

    Returns:
        One score per peer, shape ``(N,)``; NaN without a test set.
    """
    inputs, labels = data.test.inputs, data.test.labels
    scores = np.full(len(params), np.nan)
    if len(labels) == 0:
        return scores
    width = max(data.num_classes, 1) * params.element_size()
    peers = max(1, _SCORE_BYTES // (len(labels) * width))
    for begin in range(0, len(params), peers):
        rows = slice(begin, begin + peers)
        out = model.predict_all(params[rows], inputs)
        if data.num_classes > 0:
            right = out.argmax(dim=2) == labels
            scores[rows] = right.double().mean(dim=1).numpy()
        else:
            scores[rows] = -(out.double() - labels).square().mean(dim=1).numpy()
    return scores


def versions() -> dict[str, str]:
    """Return the versions that a repeated run needs to be equal."""
    return {
        "dfl_unlearn": dfl_unlearn.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _schedule(topology: Topology, config: SimulationConfig) -> TopologySchedule:
    return topology if config.schedule is None else config.schedule


def _evaluates(done: int, config: SimulationConfig) -> bool:
    every = config.evaluate_every
    return done == config.rounds or (every > 0 and done % every == 0)


def _history(rows: Sequence[_Evaluated]) -> History:
    """Return what was taken so far as arrays."""
    return History(
        rounds=np.array([r[0] for r in rows], dtype=np.int64),
        loss=np.array([r[1] for r in rows]),
        accuracy=np.array([r[2] for r in rows]),
        consensus=np.array([r[3] for r in rows]),
        seconds=np.array([r[4] for r in rows]),
        simulated_seconds=np.array([r[5] for r in rows]),
    )


def _digest(params: Tensor, history: History, arithmetic: dict[str, Any]) -> str:
    """Hash final parameters, metrics and the arithmetic's identity."""
    digest = hashlib.sha256()
    digest.update(
        params.contiguous()
        .numpy()
        .astype("<f8" if params.dtype == torch.float64 else "<f4")
        .tobytes()
    )
    for values in (history.rounds, history.loss, history.accuracy, history.consensus):
        digest.update(" ".join(float(v).hex() for v in values.ravel()).encode())
    digest.update(repr(sorted(arithmetic.items())).encode())
    return digest.hexdigest()


def _check_memory(
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
    execution: ExecutionConfig,
) -> None:
    """Refuse a run that would take over 80 % of the available memory."""
    item = 8 if config.dtype == "float64" else 4
    nbytes = data.n * model.size * item
    states = 3 + (config.local.momentum > 0) + 1
    states += len(config.record.checkpoint_rounds(config.rounds, nbytes))
    need = nbytes * states
    room = 0.8 * available_memory()
    if need > room and not execution.allow_large:
        raise ResourceError(
            f"{data.n} peers x {model.size} parameters need about {need / 1e9:.3g} GB "
            f"({room / 0.8 / 1e9:.3g} GB available); use fewer peers, a smaller model "
            "or allow_large"
        )
