"""A whole experiment as one dataclass, from TOML or JSON to a run folder.

``load_experiment`` reads a file and overrides, ``to_config`` gives the same experiment
back with every default filled in, ``run_experiment`` carries it out. Everything that
can be refused without training is refused before anything is written.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn._configfile import parse_override, read_config_file, to_toml
from dfl_unlearn._strict import read_strict, settings_of
from dfl_unlearn.conduct import Refusal, try_all, write_results
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.partition import partitions
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.callbacks import Callback
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig, trainers
from dfl_unlearn.engine.fault_rounds import check_network
from dfl_unlearn.engine.faults import FaultModel, fault_models
from dfl_unlearn.engine.memory import large_allowed
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import check_start, kept_open, resume, simulate
from dfl_unlearn.engine.stored import read_manifest
from dfl_unlearn.engine.tracking import TensorBoard, check_installed
from dfl_unlearn.engine.trainers.contract import Trainer
from dfl_unlearn.errors import (
    ConfigError,
    InputFileError,
    InvalidArgumentError,
    InvalidTypeError,
    RefusedError,
)
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.registry import Registry
from dfl_unlearn.sections import (
    DataSection,
    EvaluationSection,
    GraphForm,
    ModelSection,
    PartitionSection,
    ReportSection,
    RequestForm,
    Section,
    TopologySection,
)
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.table import ResultsTable
from dfl_unlearn.topology.files import graph_names, load_topology
from dfl_unlearn.topology.generators import topologies
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.checks import check_before_training
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol, label_of
from dfl_unlearn.unlearning.forms import REGISTRIES


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that one run needs, from the network to the report.

    Attributes:
        name: Name of the run folder.
        seed: Used by every section of a file that has none of its own.
        topology: The network.
        data: The data and their split.
        model: The model.
        training: How it is trained.
        execution: What changes speed and display only.
        forget: The requests, each carried out on the trained run by itself.
        unlearning: The protocols and baselines, each tried on every request.
        evaluation: What is measured.
        report: What is drawn.
    """

    name: str = "run"
    seed: int = 0
    topology: TopologySection = field(
        default_factory=lambda: TopologySection(fields={"n": 8})
    )
    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    training: SimulationConfig = field(default_factory=SimulationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    forget: tuple[ForgetRequest, ...] = ()
    unlearning: tuple[UnlearningProtocol, ...] = ()
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    report: ReportSection = field(default_factory=ReportSection)

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.identifier(error=ConfigError, **{"run name": self.name})
        _validate.integer(seed=self.seed, at_least=0, at_most=2**63 - 1)
        if bool(self.forget) != bool(self.unlearning):
            missing = "unlearning" if self.forget else "forget"
            raise ConfigError(
                f"{missing}: must not be empty when the other of forget and unlearning "
                "is given; add one, or leave out both to train only"
            )


DEMO: Mapping[str, Any] = {
    "name": "demo",
    "topology": {"use": "ring", "n": 8},
    "data": {"use": "digits", "partition": {"use": "dirichlet", "alpha": 0.5}},
    "model": {"use": "logistic"},
    "training": {
        "rounds": 200,
        "local": {"steps": 10, "learning_rate": 0.15, "lr_schedule": "cosine"},
    },
    "forget": [{"kind": "samples", "peer": 3, "fraction": 0.2}],
    "unlearning": [
        {"use": "newton-fisher"},
        {"use": "rr-du"},
        {"use": "fine-tune"},
        {"use": "retrain"},
    ],
}
"""The experiment of ``dfl-unlearn demo``, as a file would give it."""

_REGISTRIES: dict[Any, Registry[Any]] = {
    TopologySection: topologies,
    PartitionSection: partitions,
    DataSection: datasets,
    ModelSection: models,
    Trainer: trainers,
    FaultModel: fault_models,
    **REGISTRIES,
}
_FORMS = {ForgetRequest: RequestForm}
_INDEX = re.compile(r"[0-9]{1,9}")
# What a file cannot give: objects, and fields that the experiment itself fills in.
_NOT_IN_FILES = {SimulationConfig: ("schedule",)}


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a TOML or JSON file.

    Args:
        path: The file.
        overrides: ``a.b.0=value``, dotted keys and values in TOML syntax; they win
            over the file.

    Returns:
        The experiment with every default filled in.

    Raises:
        ConfigError: With all errors of the file, at most 20.
    """
    table = read_config_file(path)
    if "sweep" in table:
        where = _validate.clean(Path(path).name)
        raise ConfigError(
            f"{where}: must be one experiment, got a sweep; run it with: "
            f"dfl-unlearn sweep {where}, or take its table [sweep] out"
        )
    for text in overrides:
        keys, value = parse_override(text)
        override(table, keys, value)
    return read_experiment(table, Path(path).name)


def read_experiment(table: Mapping[str, Any], where: str = "") -> Experiment:
    """Build an experiment from plain tables; see ``load_experiment``."""
    # Sections that are left out are read as well, so that all defaults are filled in.
    table = {
        "topology": {"use": "ring", "n": 8},
        "data": {},
        "model": {},
        "training": {},
        **table,
    }
    seed = table.get("seed", 0)
    data, training = table["data"], table["training"]
    if isinstance(data, dict):
        table["data"] = {"partition": {}, **data}
    if isinstance(training, dict):
        trainer = training.get("trainer", {})
        if isinstance(trainer, dict):
            training = {**training, "trainer": {"use": "d-sgd", **trainer}}
        table["training"] = {"seed": seed, **training}
    topology, graph = table["topology"], None
    if isinstance(topology, dict) and isinstance(topology.get("use"), str):
        name = topology["use"]
        if name in topologies:
            if "seed" in settings_of(topologies.get(name)):
                table["topology"] = {"seed": seed, **topology}
        elif Path(name).suffix.lower() == ".toml":  # a preset: its family has the keys
            mixing = topology.get("mixing")
            fields = {k: v for k, v in topology.items() if k not in ("use", "mixing")}
            del table["topology"]
            graph = TopologySection(use=name, mixing=mixing, fields=fields)
        elif name in graph_names() or Path(name).suffix:
            form = read_strict(GraphForm, table.pop("topology"), where, path="topology")
            graph = form.build()
    requests = table.get("forget")
    if isinstance(requests, list):
        table["forget"] = [
            {"seed": seed, **r} if isinstance(r, dict) and "fraction" in r else r
            for r in requests
        ]
    experiment = read_strict(
        Experiment, table, where, registries=_REGISTRIES, forms=_FORMS
    )
    return experiment if graph is None else replace(experiment, topology=graph)


def to_config(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as plain tables that ``read_experiment`` takes again."""
    tables: dict[str, Any] = _plain(experiment)
    return tables


def run_experiment(
    experiment: Experiment,
    runs: str | Path | None = None,
    *,
    tell: Callable[[str], None] | None = None,
    refusals: list[Refusal] | None = None,
    max_graph_mb: int | None = None,
) -> tuple[TrainedRun, list[Outcome], list[ResultsTable]]:
    """Train, forget, evaluate and report; everything lands in one run folder.

    Network, data, model and requests are built and checked first; only then is the
    folder made. Every protocol is a trial on the trained run and shares one retrained
    reference per request. A protocol that refuses does not end the others; where it
    was killed, ``resume_experiment`` goes on.

    Args:
        experiment: What to do.
        runs: The folder that holds run folders; None is ``DFL_UNLEARN_RUNS`` or
            ``runs``.
        tell: Called with one line before each part of the work.
        refusals: Takes what was refused; with None the first refusal is raised when
            all else is done and written.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Returns:
        The run, the outcomes, and one table of metrics per outcome.
    """
    parts = build_parts(experiment, max_graph_mb=max_graph_mb)
    check_start(*parts, experiment.training, experiment.execution)
    check_requests(experiment, *parts)
    if experiment.report.tensorboard:
        check_installed()
    folder = RunFolder.create(runs, experiment.name)
    config = to_config(experiment)
    folder.write_text("config.toml", to_toml(config))
    folder.write_json("config.json", config)
    return _carried_out(experiment, folder, parts, tell, refusals)


def resume_experiment(
    folder: str | Path,
    *,
    execution: ExecutionConfig | None = None,
    tell: Callable[[str], None] | None = None,
    refusals: list[Refusal] | None = None,
    max_graph_mb: int | None = None,
) -> tuple[TrainedRun, list[Outcome], list[ResultsTable]]:
    """Go on with an experiment that was interrupted, wherever that was.

    Training goes on from its newest checkpoint, an attempt where it was charged or
    released; what is complete is read. The results are those of an experiment that was
    never interrupted, and no row is written twice.

    Args:
        folder: The run folder of ``run_experiment``.
        execution: What changes speed and display only; None is what the folder says.
        tell: As in ``run_experiment``.
        refusals: As in ``run_experiment``.
        max_graph_mb: As in ``run_experiment``.

    Returns:
        As ``run_experiment``.

    Raises:
        InputFileError: If the folder has no experiment.
        RefusedError: If a request was committed since: the trained run is gone.
    """
    run_folder = RunFolder(folder)
    if not run_folder.path("config.json").is_file():
        raise InputFileError(
            f"{run_folder.root}: must be the folder of an experiment, got none of its "
            "config.json; a run of simulate(folder=...) goes on with resume, one that "
            "was killed before it began is run again"
        )
    experiment = read_experiment(run_folder.read_json("config.json"), "config.json")
    if execution is not None:
        experiment = replace(experiment, execution=execution)
    parts = build_parts(experiment, max_graph_mb=max_graph_mb)
    with run_folder.locked():
        run_folder.remove_leftovers()
    return _carried_out(experiment, run_folder, parts, tell, refusals)


def unfinished_experiment(folder: str | Path) -> Experiment | None:
    """Return the experiment of a run folder, as far as it can be gone on with.

    Args:
        folder: The run folder.

    Returns:
        What its ``config.json`` says; None where it asks for training only, or where
        a request was committed since, so that the trained run is gone.
    """
    run_folder = RunFolder(folder)
    experiment = read_experiment(run_folder.read_json("config.json"), "config.json")
    if not experiment.forget:
        return None
    if run_folder.path("manifest.json").is_file():
        manifest = read_manifest(run_folder)
        if manifest["forgotten"] or manifest.get("goes_on"):
            return None
    return experiment


def _carried_out(
    experiment: Experiment,
    folder: RunFolder,
    parts: tuple[Topology, PeerData, FlatModel],
    tell: Callable[[str], None] | None,
    refusals: list[Refusal] | None,
) -> tuple[TrainedRun, list[Outcome], list[ResultsTable]]:
    """Do what is missing of an experiment in its folder.

    Returns:
        As ``run_experiment``.

    Raises:
        RefusedError: If a request was committed, or a protocol refused and nobody
            takes note of it.
    """
    tell = tell if tell is not None else _silent
    execution = experiment.execution
    with kept_open(execution), large_allowed(execution.allow_large):
        run = _trained(experiment, folder, parts, tell)
        if run.requests:
            raise RefusedError(
                f"{folder.root}: must hold the trained run, got one that carries "
                f"{run.requests} committed requests; unlearn on it, or run the "
                "experiment again from its config.toml"
            )
        outcomes, refused = try_all(
            run,
            resolved_requests(experiment, parts[1]),
            experiment.unlearning,
            reference=experiment.evaluation.reference,
            execution=experiment.execution,
            tell=tell,
        )
    tables = [evaluate(outcome, experiment.evaluation.metrics) for outcome in outcomes]
    tell("drawing figures and the page")
    write_results(folder, run, outcomes, tables, experiment.report, refusals=refused)
    if refusals is not None:
        refusals.extend(refused)
    elif refused:
        raise refused[0].error
    return run, outcomes, tables


def _trained(
    experiment: Experiment,
    folder: RunFolder,
    parts: tuple[Topology, PeerData, FlatModel],
    tell: Callable[[str], None],
) -> TrainedRun:
    """Train, go on training, or read the trained run."""
    topology, data, model = parts
    callbacks = _observers(experiment, folder)
    if folder.path("manifest.json").is_file():
        tell("going on with what is in the folder")
        return resume(folder.root, execution=experiment.execution, callbacks=callbacks)
    tell(
        f"training {topology.n} peers on {topology.name} with {data.name}, "
        f"{experiment.training.rounds} rounds"
    )
    return simulate(
        topology,
        data,
        model,
        experiment.training,
        execution=experiment.execution,
        callbacks=callbacks,
        folder=folder.root,
    )


def observers_of(folder: str | Path) -> list[Callback]:
    """Return the observers that the experiment of a run folder asks for.

    Args:
        folder: The run folder.

    Returns:
        Callbacks for ``simulate`` and ``resume``; none without a ``config.json``.
    """
    run_folder = RunFolder(folder)
    if not run_folder.path("config.json").is_file():
        return []
    config = run_folder.read_json("config.json")
    return _observers(read_experiment(config, "config.json"), run_folder)


def _observers(experiment: Experiment, folder: RunFolder) -> list[Callback]:
    if not experiment.report.tensorboard:
        return []
    return [TensorBoard(folder.path("tensorboard"))]


def check_requests(
    experiment: Experiment, topology: Topology, data: PeerData, model: FlatModel
) -> None:
    """Refuse requests and protocols that cannot work, whatever training gives.

    Args:
        experiment: What is asked for.
        topology: Its network.
        data: Its data.
        model: Its model.
    """
    for request in resolved_requests(experiment, data):
        for protocol in experiment.unlearning:
            check_before_training(
                experiment.training,
                request,
                protocol,
                label_of(protocol),
                topology,
                model,
                data.num_classes,
            )


def resolved_requests(experiment: Experiment, data: PeerData) -> list[ForgetRequest]:
    """Return the requests of an experiment with ids and rows."""
    return [
        replace(r, request_id=r.request_id or f"r{k}").resolve(data)
        for k, r in enumerate(experiment.forget)
    ]


def build_parts(
    experiment: Experiment, *, max_graph_mb: int | None = None
) -> tuple[Topology, PeerData, FlatModel]:
    """Build network, data and model of an experiment; writes nothing.

    Args:
        experiment: What to build.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Returns:
        The three.
    """
    section = experiment.topology
    options = dict(section.fields)
    if max_graph_mb is not None and section.use not in topologies:
        options["max_bytes"] = max_graph_mb * 2**20
    with _naming(topology=(*section.fields, "mixing")):
        topology = load_topology(section.use, mixing=section.mixing, **options)
    check_network(experiment.training, topology)
    source = experiment.data
    split = source.partition
    places = {"data": (*source.fields, "seed"), "data.partition": tuple(split.fields)}
    with _naming(**places):
        data = PeerData.load(
            source.use,
            peers=topology.n,
            partition=split.use,
            seed=experiment.seed if source.seed is None else source.seed,
            dataset_options=source.fields,
            **split.fields,
        )
    with _naming(model=tuple(experiment.model.fields)):
        model = models.build(
            experiment.model.use,
            input_shape=tuple(data.store.inputs.shape[1:]),
            num_classes=data.num_classes,
            **experiment.model.fields,
        )
    return topology, data, model


@contextmanager
def _naming(**sections: tuple[str, ...]) -> Iterator[None]:
    """Put the key path before the message about an argument that a section gave.

    Args:
        **sections: Names of the arguments by section.

    Yields:
        Nothing.
    """
    try:
        yield
    except (InvalidArgumentError, InvalidTypeError) as error:
        name = str(error).partition(":")[0].partition("[")[0]
        found = [section for section, names in sections.items() if name in names]
        place = f"{found[0]}." if found else f"{next(iter(sections))}: "
        raise type(error)(f"{place}{error}") from error


def _silent(line: str) -> None:
    """Say nothing."""


def override(table: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one entry of nested tables; lists are indexed from 0.

    Args:
        table: Is written to.
        keys: The way to the entry; tables on it are made.
        value: The entry.

    Raises:
        ConfigError: If a key leads into a value, or an index is out of range.
    """
    at: Any = table
    path = _validate.clean(".".join(keys))[:200]
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(at, dict) and _INDEX.fullmatch(key) and key not in at:
            raise ConfigError(
                f"{path}: must lead to an entry of a list at {key!r}, got no list "
                "there; add the entry to the file first"
            )
        if isinstance(at, list):
            if not _INDEX.fullmatch(key) or int(key) >= len(at):
                remedy = "add the entry to the file first"
                if not _INDEX.fullmatch(key):
                    first = ".".join((*keys[:depth], "0", *keys[depth:]))
                    remedy = (
                        f"entries have numbers, as in {_validate.clean(first)[:200]}"
                    )
                raise ConfigError(
                    f"{path}: must be an index below {len(at)} at "
                    f"{_validate.show(key)}; {remedy}"
                )
            index: Any = int(key)
        elif isinstance(at, dict):
            index = key
        else:
            raise ConfigError(
                f"{path}: must lead to a table before {_validate.show(key)}, got "
                f"{_validate.show(at)}"
            )
        if not last:
            at = at.setdefault(index, {}) if isinstance(at, dict) else at[index]
        elif index == "use" and at.get("use") not in (None, value):
            # Fields of the former entry would be unknown keys of the new one.
            sized = isinstance(value, str) and value in topologies
            shared = {"seed", "partition"} | ({"n"} if sized else set())
            kept = {k: v for k, v in at.items() if k in shared}
            at.clear()
            at.update({"use": value, **kept})
        else:
            at[index] = value


def _plain(value: Any) -> Any:
    """Return dataclasses, paths and containers as plain tables, lists and scalars."""
    if isinstance(value, ForgetRequest):
        form = dataclasses.asdict(RequestForm.of(value))
        kept = {k: _plain(v) for k, v in form.items() if v is not None}
        if value.fraction is None:
            kept.pop("seed")
        return kept
    registered = _REGISTRIES.items() if dataclasses.is_dataclass(value) else ()
    for kind, registry in registered:
        if isinstance(value, Section) and isinstance(value, kind):
            own = {
                f.name: _plain(getattr(value, f.name))
                for f in dataclasses.fields(value)
                if f.name not in ("use", "fields")
            }
            given = {k: _plain(v) for k, v in value.fields.items()}
            return {"use": value.use, **_without_none(given), **_without_none(own)}
        if not isinstance(value, Section) and type(value) in _entries(registry):
            return {"use": registry.name_of(value), **_fields(value)}
    if isinstance(value, RecordPlan):
        return {**_fields(value), "parts": sorted(value.parts)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _fields(value: Any) -> dict[str, Any]:
    left_out = _NOT_IN_FILES.get(type(value), ())
    return {
        f.name: _plain(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if f.name not in left_out
    }


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if v is not None}


def _entries(registry: Registry[Any]) -> tuple[Any, ...]:
    return tuple(registry.get(name) for name in registry.names())
