"""The door to training: checks what was given, then runs the loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.callbacks import Callback, notify
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.fault_rounds import check_network
from dfl_unlearn.engine.figures import peer_scores, versions
from dfl_unlearn.engine.loop import (
    continue_training,
    initial_state,
    kept_open,
    samples_per_round,
    train,
)
from dfl_unlearn.engine.memory import retraining_memory, training_memory
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidArgumentError, TopologyError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology

__all__ = [
    "continue_training",
    "initial_state",
    "kept_open",
    "peer_scores",
    "resume",
    "retrain",
    "samples_per_round",
    "simulate",
    "versions",
]


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
        folder: An empty run folder to keep the run in, or None. From before the first
            round on it can be gone on with by ``resume``.

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
    check_start(topology, data, model, config, execution, stored=folder is not None)
    if folder is None:
        rng = RngTree(config.seed)
        run = train(
            topology, data, model, config, execution, callbacks, rng, label="training"
        )
    else:
        from dfl_unlearn.engine.resuming import begin, go_on
        from dfl_unlearn.engine.stored import check_storable, open_folder

        check_storable(config, folder)
        kept = open_folder(folder)
        with kept.locked():
            begun = begin(kept, topology, data, model, config)
            run = go_on(begun, execution, callbacks, fresh=True)
    notify(callbacks, "on_end", run)
    return run


def resume(
    folder: str | Path,
    *,
    rounds: int | None = None,
    config: SimulationConfig | None = None,
    data: PeerData | None = None,
    model: FlatModel | None = None,
    execution: ExecutionConfig | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainedRun:
    """Go on with a run that was interrupted, or train a finished one further.

    The result has the digest of a run that was never interrupted, however often it was
    and with whatever engine each part ran: states come from the newest checkpoint that
    verifies, draws from their keys. A run with more rounds has the digest of one that
    had them from the start where no privacy was charged (its ledger has one charge for
    each part) and no request was committed in between.

    Args:
        folder: The run folder.
        rounds: Rounds in all; not below what was planned. None finishes what was.
        config: Compared with the run's own settings; only ``rounds`` may be larger.
        data: The peers' data where the run was made from arrays of your own.
        model: The model where it is not one of the zoo's.
        execution: What changes speed and display only.
        callbacks: Hooks after a round; see ``engine.callbacks``.
        **options: Fields of ``ExecutionConfig``, instead of ``execution``.

    Returns:
        The finished run; unchanged where there was nothing to do.

    Raises:
        InvalidArgumentError: If ``execution`` is given and fields of it as well.

    Example:
        >>> import tempfile
        >>> from dfl_unlearn import PeerData, SimulationConfig, resume, simulate
        >>> data = PeerData.load("gaussian-classes", peers=4, seed=0)
        >>> place = tempfile.mkdtemp() + "/run"
        >>> run = simulate("ring", data, config=SimulationConfig(rounds=5),
        ...                model="logistic", folder=place)
        >>> resume(place, rounds=8).state.round
        8
    """
    from dfl_unlearn.engine.resuming import go_on, reopen

    if execution is not None and options:
        raise InvalidArgumentError(
            f"execution: must not be given beside {', '.join(sorted(options))}; put "
            "them into it"
        )
    execution = execution if execution is not None else ExecutionConfig(**options)
    if rounds is not None:
        _validate.integer(rounds=rounds, at_least=1, at_most=10_000_000)
    kept = RunFolder(folder)
    with kept.locked():
        run = reopen(kept, rounds=rounds, config=config, data=data, model=model)
        if isinstance(run, TrainedRun):
            return run
        training_memory(
            run.data,
            run.model,
            run.config,
            execution,
            stored=True,
            topology=run.topology,
        ).check(allow_large=execution.allow_large)
        finished = go_on(run, execution, callbacks)
    notify(callbacks, "on_end", finished)
    return finished


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
    execution = execution if execution is not None else ExecutionConfig()
    retraining_memory(run, execution).check(allow_large=execution.allow_large)
    config = replace(
        run.config,
        seed=run.config.seed + seed_offset,
        record=RecordPlan(parts=frozenset()),
    )
    rng = run.rng if seed_offset == 0 else RngTree(config.seed)
    return train(
        run.topology,
        data,
        run.model,
        config,
        execution,
        (),
        rng,
        label="retraining",
    )


def check_start(
    topology: Topology,
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
    execution: ExecutionConfig,
    *,
    stored: bool = True,
) -> None:
    """Refuse what cannot be trained, before anything is computed or written.

    Args:
        topology: The network.
        data: What each peer holds.
        model: The model.
        config: Everything that changes results.
        execution: What changes speed and display only.
        stored: Whether the run is kept in a folder, which takes memory too.

    Raises:
        TopologyError: If the network and the data have different numbers of peers.
        InvalidArgumentError: If a schedule has another number of peers.
    """
    if topology.n != data.n:
        raise TopologyError(
            f"topology: must have one peer per part of the data, got {topology.n} "
            f"peers and data for {data.n}; use load_topology(..., n={data.n})"
        )
    if config.schedule is not None and config.schedule.n != data.n:
        raise InvalidArgumentError(
            f"config.schedule: must have {data.n} peers, got {config.schedule.n}"
        )
    check_network(config, topology)
    model.check_inputs(data.store.inputs)
    training_memory(
        data, model, config, execution, stored=stored, topology=topology
    ).check(allow_large=execution.allow_large)
