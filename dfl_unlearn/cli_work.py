"""What several commands of the command line do: carry out, audit, look up."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dfl_unlearn._validate import clean, show
from dfl_unlearn.cli_output import (
    common,
    complain,
    json_text,
    outcome_json,
    put,
    say,
    shown,
    tell_block,
)
from dfl_unlearn.errors import (
    InputFileError,
    InvalidArgumentError,
    MissingInputError,
)

if TYPE_CHECKING:
    from inspect import Parameter

    from dfl_unlearn.conduct import Refusal
    from dfl_unlearn.data.forget import ForgetRequest
    from dfl_unlearn.engine.config import ExecutionConfig
    from dfl_unlearn.experiment import Experiment
    from dfl_unlearn.registry import Registry
    from dfl_unlearn.unlearning.contracts import Outcome


class Remote(NamedTuple):
    """What the options say about other machines; a file never gives permission."""

    address: str | None
    allowed: bool


def executed(
    experiment: "Experiment",
    engine: str | None,
    workers: int | None,
    remote: Remote,
    *,
    allow_large: bool = False,
) -> "Experiment":
    """Return an experiment with what the options say about its execution."""
    execution = execution_of(
        experiment.execution, engine, workers, remote, allow_large=allow_large
    )
    return replace(experiment, execution=execution)


def execution_of(
    execution: "ExecutionConfig",
    engine: str | None,
    workers: int | None,
    remote: Remote,
    *,
    allow_large: bool = False,
) -> "ExecutionConfig":
    """Return an execution with what the options say."""
    changes: dict[str, Any] = {"allow_large": True} if allow_large else {}
    changes |= {"ray_allow_remote": remote.allowed}
    if remote.address is not None:
        changes |= {"ray_address": remote.address}
    if engine is not None:
        changes |= {"engine": engine}
    if workers is not None:
        changes |= {"workers": workers}
    return replace(execution, **changes)


def conduct(
    experiment: "Experiment",
    *,
    page: bool,
    how: Callable[..., Any] | None = None,
    max_graph_mb: int | None = None,
) -> None:
    """Carry out an experiment and tell what came of it; ends with 4 after a refusal."""
    from dfl_unlearn.experiment import run_experiment
    from dfl_unlearn.story import comparison_lines, influence_lines, training_lines

    if not page:
        section = replace(experiment.report, figures=(), html=False)
        experiment = replace(experiment, report=section)
    execution = replace(experiment.execution, progress=not common.quiet)
    experiment = replace(experiment, execution=execution)
    tell: Callable[[str], None] | None = None
    if not common.quiet:
        tell = lambda line: complain(f"... {clean(line)}")  # noqa: E731
    refusals: list[Refusal] = []
    if how is None:
        how = lambda one, **more: run_experiment(one, common.runs, **more)  # noqa: E731
    trained, outcomes, tables = how(
        experiment, tell=tell, refusals=refusals, max_graph_mb=max_graph_mb
    )
    assert trained.folder is not None
    if common.as_json:
        put(
            json_text(
                {
                    "folder": str(trained.folder),
                    "digest": trained.digest,
                    "outcomes": [
                        outcome_json(o, t)
                        for o, t in zip(outcomes, tables, strict=True)
                    ],
                    "refused": [
                        {
                            "request": r.request_id,
                            "protocol": r.protocol,
                            "error": type(r.error).__name__,
                            "message": str(r.error),
                        }
                        for r in refusals
                    ],
                }
            )
        )
        end_refused(refusals)
        return
    blocks = [training_lines(trained)]
    if outcomes:
        blocks.append(influence_lines(trained, outcomes[0].request.requester))
    for request_id in dict.fromkeys(o.request.request_id for o in outcomes):
        pairs = [
            (o, t)
            for o, t in zip(outcomes, tables, strict=True)
            if o.request.request_id == request_id
        ]
        blocks.append(comparison_lines(*zip(*pairs, strict=True)))
    for block in blocks:
        tell_block(block)
    for outcome in outcomes:
        if outcome.certificate is not None and outcome.certificate.noise_std > 0:
            say("")
            put(str(outcome.certificate))
    say("")
    folder = shown(trained.folder)
    say(f"Digest: {trained.digest}")
    say(f"Everything is in {folder}" + (", the page is report.html." if page else "."))
    other = min(5, trained.topology.n - 1)
    say(f"Next: dfl-unlearn unlearn {trained.folder.name} --peer {other} --all")
    if not trained.config.faults.models:
        say(f"      dfl-unlearn audit {trained.folder.name} --replicas 100")
    say(f"      dfl-unlearn run {folder}/config.toml topology.use=complete")
    say("      dfl-unlearn list")
    end_refused(refusals)


def end_refused(refusals: "Sequence[Refusal]") -> None:
    """End with the code of a refusal, if there was one; the rest was done."""
    for refused in refusals:
        complain(f"refused: {refused}")
    if refusals:
        sys.exit(refusals[0].error.exit_code)


def audits_of(outcomes: "Sequence[Outcome]", **options: Any) -> list[dict[str, Any]]:
    """Audit outcomes one after the other and say what was found.

    Returns:
        One record per audit.

    Raises:
        UnsupportedRequestError: If none of them can be audited.
    """
    from dfl_unlearn.errors import UnsupportedRequestError
    from dfl_unlearn.evaluation.audit_session import audited

    found: list[dict[str, Any]] = []
    skipped: list[UnsupportedRequestError] = []
    for outcome in outcomes:
        name = outcome.label
        try:
            result = audited(outcome, **options)
        except UnsupportedRequestError as error:
            skipped.append(error)
            complain(f"{name} is not audited: {error}")
            continue
        found.append({"use": name, **json.loads(result.to_json())})
        if not common.as_json:
            put(f"{name}:\n{result}\n")
    if skipped and not found:
        raise skipped[0]
    return found


def requests_of(
    peer: int | None,
    indices: str | None,
    fraction: float | None,
    whole: bool,
    class_id: int | None,
    file: Path | None,
) -> "list[ForgetRequest]":
    """Return the one request that the options describe, or all those of a file.

    Raises:
        MissingInputError: If they describe none.
        InvalidArgumentError: If they contradict each other.
    """
    from dfl_unlearn.data.forget import ForgetRequest

    ways = {
        "--request": file is not None,
        "--class": class_id is not None,
        "--indices": indices is not None,
        "--fraction": fraction is not None,
        "--all": whole,
    }
    chosen = [name for name, given in ways.items() if given]
    if not chosen:
        raise MissingInputError(
            "request: say what to forget: --peer I with --indices, --fraction or "
            "--all; --class C, of all peers or of --peer I; or --request FILE.toml"
        )
    if len(chosen) > 1:
        raise InvalidArgumentError(
            f"request: {' and '.join(chosen)} cannot be combined; give one"
        )
    if peer is None and chosen[0] in ("--indices", "--fraction", "--all"):
        raise InvalidArgumentError(f"request: {chosen[0]} needs --peer; say whose rows")
    if peer is not None and chosen[0] == "--request":
        raise InvalidArgumentError(
            f"request: --request takes no --peer, got {peer}; say whose rows in the "
            "file, by peer or peers"
        )
    if file is not None:
        from dfl_unlearn._configfile import read_config_file
        from dfl_unlearn._strict import read_strict
        from dfl_unlearn.sections import RequestForm, RequestList

        content = read_config_file(file)
        if "forget" not in content:
            return [read_strict(RequestForm, content, file.name).build()]
        forms = {ForgetRequest: RequestForm}
        return list(read_strict(RequestList, content, file.name, forms=forms).forget)
    if class_id is not None:
        return [ForgetRequest.class_(class_id, None if peer is None else [peer])]
    assert peer is not None
    if whole:
        return [ForgetRequest.whole_peer(peer)]
    if fraction is not None:
        return [ForgetRequest.samples(peer, fraction=fraction)]
    assert indices is not None
    try:
        rows = [int(part) for part in indices.split(",")]
    except ValueError:
        raise InvalidArgumentError(
            f"--indices: must be integers with commas between, got {show(indices)}"
        ) from None
    return [ForgetRequest.samples(peer, indices=rows)]


def folder_of(name: str) -> Path:
    """Return a run's folder: a name below the runs folder, or a path.

    Args:
        name: What was typed.

    Returns:
        Its place, whether or not there is a run.

    Raises:
        InputFileError: If the system takes no such name.
    """
    from dfl_unlearn.store.files import cause
    from dfl_unlearn.store.folder import runs_root

    inside = runs_root(common.runs) / name
    try:
        return inside if inside.is_dir() or not Path(name).is_dir() else Path(name)
    except OSError as error:
        raise InputFileError(
            f"{show(name)}: must be a run's name or folder, got {cause(error)}; list "
            "those under the runs folder"
        ) from error


def registry_of(kind: str) -> "Registry[Any]":
    """Return the registry of a kind, its home imported."""
    import importlib

    homes = {
        "topologies": ("dfl_unlearn.topology.generators", "topologies"),
        "mixing": ("dfl_unlearn.topology.mixing", "mixing_rules"),
        "schedules": ("dfl_unlearn.topology.schedules", "schedules"),
        "datasets": ("dfl_unlearn.data.sources", "datasets"),
        "partitions": ("dfl_unlearn.data.partition", "partitions"),
        "models": ("dfl_unlearn.models.zoo", "models"),
        "trainers": ("dfl_unlearn.engine.config", "trainers"),
        "protocols": ("dfl_unlearn.unlearning.contracts", "protocols"),
        "methods": ("dfl_unlearn.unlearning.contracts", "methods"),
        "baselines": ("dfl_unlearn.unlearning.contracts", "baselines"),
        "metrics": ("dfl_unlearn.evaluation.metrics", "metrics"),
        "plots": ("dfl_unlearn.plots", "plots"),
    }
    module, name = homes[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def entries_of(registry: "Registry[Any]") -> list[dict[str, Any]]:
    """Return name, help, fields and source of every entry."""
    import inspect

    rows = []
    for name in registry.names():
        entry = registry.get(name)
        try:
            parameters = inspect.signature(entry).parameters.values()
        except (TypeError, ValueError):
            parameters = []  # type: ignore[assignment]
        rows.append(
            {
                "name": name,
                "help": registry.help(name),
                "fields": [_with_default(entry, p) for p in parameters],
                "source": f"{entry.__module__}.{entry.__qualname__}",
                **_said_of(registry, name),
            }
        )
    return rows


def _with_default(entry: Any, parameter: "Parameter") -> str:
    """Return a field as it is written, with what a factory makes of its default."""
    from dataclasses import MISSING, fields, is_dataclass

    for field in fields(entry) if is_dataclass(entry) else ():
        if field.name == parameter.name and field.default_factory is not MISSING:
            parameter = parameter.replace(default=field.default_factory())
    return str(parameter)


def _said_of(registry: "Registry[Any]", name: str) -> dict[str, Any]:
    """Return what a method for one model serves, reads and claims; else nothing."""
    from dfl_unlearn.unlearning.local import kinds_of, methods, uses_of

    if registry is not methods:
        return {}
    method = methods.build(name)  # with its defaults: fields may decide
    uses = uses_of(method)
    return {
        "kinds": sorted(kinds_of(method)),
        "uses": sorted(uses),
        "needs": sorted(getattr(method, "needs", ())),
        "retained_data": any(part.startswith("retain") for part in uses),
        "claim": getattr(method, "claim", None),
    }
