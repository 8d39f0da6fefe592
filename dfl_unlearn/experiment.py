"""A whole experiment as one dataclass, from TOML or JSON to a run folder.

``load_experiment`` reads a file and overrides, ``to_config`` gives the same experiment
back with every default filled in, ``run_experiment`` carries it out. Everything that
can be refused without training is refused before anything is written.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn._configfile import parse_override, read_config_file, to_toml
from dfl_unlearn._strict import read_strict, settings_of
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.partition import partitions
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig, trainers
from dfl_unlearn.engine.faults import FaultModel, fault_models
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import kept_open, retrain, simulate
from dfl_unlearn.engine.stored_influence import keep_influence
from dfl_unlearn.engine.trainers.contract import Trainer
from dfl_unlearn.errors import ConfigError, InvalidArgumentError, InvalidTypeError
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.plots import save_figures
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.registry import Registry
from dfl_unlearn.report import write_report
from dfl_unlearn.results.view import ResultsView
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
from dfl_unlearn.store.table import NETWORK, ResultsTable
from dfl_unlearn.store.understood import understood
from dfl_unlearn.topology.files import graph_names, load_topology
from dfl_unlearn.topology.generators import topologies
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol, unlearners


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
    UnlearningProtocol: unlearners,
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
    for text in overrides:
        keys, value = parse_override(text)
        _override(table, keys, value)
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
    max_graph_mb: int | None = None,
) -> tuple[TrainedRun, list[Outcome], list[ResultsTable]]:
    """Train, forget, evaluate and report; everything lands in one run folder.

    Network, data, model and requests are built and checked first; only then is the
    folder made. Every protocol is a trial on the trained run and shares one retrained
    reference per request.

    Args:
        experiment: What to do.
        runs: The folder that holds run folders; None is ``DFL_UNLEARN_RUNS`` or
            ``runs``.
        tell: Called with one line before each part of the work.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Returns:
        The run, the outcomes, and one table of metrics per outcome.
    """
    tell = tell if tell is not None else _silent
    topology, data, model = build_parts(experiment, max_graph_mb=max_graph_mb)
    requests = [
        replace(r, request_id=r.request_id or f"r{k}").resolve(data)
        for k, r in enumerate(experiment.forget)
    ]
    folder = RunFolder.create(runs, experiment.name)
    config = to_config(experiment)
    folder.write_json("config.json", config)
    folder.write_text("config.toml", to_toml(config))
    tell(
        f"training {topology.n} peers on {topology.name} with {data.name}, "
        f"{experiment.training.rounds} rounds"
    )
    with kept_open(experiment.execution):
        run = simulate(
            topology,
            data,
            model,
            experiment.training,
            execution=experiment.execution,
            folder=folder.root,
        )
        outcomes = [
            outcome
            for request in requests
            for outcome in _forgotten(experiment, run, request, tell)
        ]
    tables = [evaluate(outcome, experiment.evaluation.metrics) for outcome in outcomes]
    tell("drawing figures and the page")
    write_results(folder, run, outcomes, tables, experiment.report)
    return run, outcomes, tables


def _forgotten(
    experiment: Experiment,
    run: TrainedRun,
    request: ForgetRequest,
    tell: Callable[[str], None],
) -> list[Outcome]:
    """Carry out one request by every protocol, all beside the same yardstick."""
    reference: TrainedRun | bool = False
    if experiment.evaluation.reference:
        rows = request.size(run.data)
        tell(f"retraining without {rows} rows, as the yardstick")
        reference = retrain(
            run, run.data.without(request), execution=experiment.execution
        )
    outcomes = []
    for protocol in experiment.unlearning:
        tell(f"forgetting {request.request_id} by {unlearners.name_of(protocol)}")
        outcomes.append(
            unlearn(run, request, protocol, reference=reference, folder=run.folder)
        )
    return outcomes


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
        raise type(error)(f"{(found or [next(iter(sections))])[0]}.{error}") from error


def write_results(
    folder: RunFolder,
    run: TrainedRun,
    outcomes: Sequence[Outcome],
    tables: Sequence[ResultsTable],
    report: ReportSection,
    page: str | Path | None = None,
) -> Path | None:
    """Write metric rows, tables, figures and the page of a run.

    Args:
        folder: The run folder.
        run: The run.
        outcomes: Its outcomes.
        tables: One table of metrics per outcome.
        report: Which figures and whether the page.
        page: Where the page goes; None is ``report.html`` in the folder.

    Returns:
        Where the page was written, or None.
    """
    with folder.locked():
        known = _known_rows(folder)
        for table in tables:
            for row in table.rows:
                if (row["request"], row["protocol"]) not in known:
                    folder.append({"type": "metric", **_finite(row)})
    if tables:
        rows = ResultsTable.concat(tables)
        network = ResultsTable(rows=tuple(r for r in rows.rows if r["peer"] == NETWORK))
        peers = ResultsTable(rows=tuple(r for r in rows.rows if r["peer"] != NETWORK))
        for name, part in (("metrics", network), ("peers", peers)):
            for kind, write in (("csv", part.to_csv), ("parquet", part.to_parquet)):
                place = folder.path(f"tables/{name}.{kind}")
                place.parent.mkdir(exist_ok=True)
                write(place)
    source: Any = list(outcomes) if outcomes else run
    view = ResultsView.of(source, list(tables) if outcomes else None)
    if (report.figures or report.html) and view.influence().mode == "exact":
        keep_influence(run.replaced(folder=folder.root), view.influence())
    if report.figures:
        figures = folder.path("figures")
        figures.mkdir(exist_ok=True)
        still = [kind for kind in report.figures if kind != "gif"]
        save_figures(view, figures, formats=still)
        if "gif" in report.figures:
            from dfl_unlearn.plots.animation import write_influence_gif

            trace = view.influence()
            write_influence_gif(view.topology, trace, figures / "influence.gif")
    if not report.html:
        return None
    return write_report(view, page if page is not None else folder.path("report.html"))


def _known_rows(folder: RunFolder) -> set[tuple[str, str]]:
    """Return request and protocol of the metric rows that a folder has already."""
    with understood(f"{folder.root}/results.jsonl"):
        return {
            (r["request"], r["protocol"]) for r in folder.records() if _is_metric(r)
        }


def _is_metric(record: Mapping[str, Any]) -> bool:
    return bool(record["type"] == "metric")


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric row as JSON values; a number that is not finite is a note."""
    value = row["value"]
    if math.isfinite(value):
        return dict(row)
    return {**row, "value": None, "note": repr(float(value))}


def _silent(line: str) -> None:
    """Say nothing."""


def _override(table: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one entry of nested tables; lists are indexed from 0.

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
                raise ConfigError(
                    f"{path}: must be an index below {len(at)} at "
                    f"{_validate.show(key)}; add the entry to the file first"
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
