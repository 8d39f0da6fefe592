"""The command line ``dfl-unlearn``: one function per command.

Heavy libraries are imported inside the commands, so that help is fast. Errors are
printed without a traceback and end with the exit code of their class.
"""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dfl_unlearn import __version__
from dfl_unlearn._stopping import StoppedError, stopped_by_signals
from dfl_unlearn._validate import clean, show
from dfl_unlearn.errors import (
    DflUnlearnError,
    InvalidArgumentError,
    MissingInputError,
    ResourceError,
)

if TYPE_CHECKING:
    from dfl_unlearn.conduct import Refusal
    from dfl_unlearn.data.forget import ForgetRequest
    from dfl_unlearn.engine.config import ExecutionConfig
    from dfl_unlearn.experiment import Experiment
    from dfl_unlearn.registry import Registry
    from dfl_unlearn.store.table import ResultsTable
    from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol

KINDS = (
    "topologies",
    "mixing",
    "schedules",
    "datasets",
    "partitions",
    "models",
    "trainers",
    "protocols",
    "baselines",
    "metrics",
    "plots",
)

app = typer.Typer(
    name="dfl-unlearn",
    help="Simulate decentralized learning, forget a peer's data, and see what it "
    "proves and costs. Start with: dfl-unlearn demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@dataclass
class _Common:
    """Options of every command."""

    runs: Path | None = None
    as_json: bool = False
    quiet: bool = False
    debug: bool = False


_common = _Common()

Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        metavar="DIR",
        help="Folder that holds run folders  [default: DFL_UNLEARN_RUNS, else ./runs]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Large = Annotated[
    bool,
    typer.Option("--allow-large", help="Start although memory may not suffice."),
]
MaxGraph = Annotated[
    int | None,
    typer.Option(
        "--max-graph-mb",
        metavar="N",
        min=1,
        max=16384,
        help="Largest graph file that is read  [default: 256]",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="inline|ray|auto",
        help="Where training runs; the results are the same  [default: inline]",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Ray workers  [default: one per core with auto]")
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, or the path of its folder.")
]


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="Name of the run folder.")] = "demo",
    engine: Engine = None,
    workers: Workers = None,
    allow_large: Large = False,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train 8 peers, forget 20 % of peer 3's rows by every protocol, compare.

    Needs no file and no download and takes a few seconds. Writes [bold]runs/demo[/bold]
    with all figures and [bold]report.html[/bold].
    """
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn.experiment import DEMO, read_experiment

    experiment = read_experiment({**DEMO, "name": name})
    experiment = _executed(experiment, engine, workers, allow_large=allow_large)
    _conduct(experiment, page=True)


@app.command()
def run(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A TOML or JSON experiment.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...",
            help="Changes, e.g. training.rounds=50 unlearning.0.epsilon=0.5",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder  [default: the file's]")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check, print the resolved TOML, do nothing."),
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Draw no figures and no page.")
    ] = False,
    engine: Engine = None,
    workers: Workers = None,
    allow_large: Large = False,
    max_graph_mb: MaxGraph = None,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train and forget as a file says.

    Example: [bold]dfl-unlearn run ring.toml topology.use=torus topology.n=16[/bold].
    Every run folder has a [bold]config.toml[/bold] that this command takes again.
    """
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn._configfile import to_toml
    from dfl_unlearn.experiment import build_parts, load_experiment, to_config

    experiment = load_experiment(file, overrides or ())
    if name is not None:
        experiment = replace(experiment, name=name)
    experiment = _executed(experiment, engine, workers, allow_large=allow_large)
    if dry_run:
        build_parts(experiment, max_graph_mb=max_graph_mb)
        config = to_config(experiment)
        _print(_json(config) if _common.as_json else to_toml(config).rstrip())
        return
    _conduct(experiment, page=not no_report, max_graph_mb=max_graph_mb)


@app.command()
def resume(
    run_name: RunName,
    rounds: Annotated[
        int | None,
        typer.Option(help="Rounds in all, not below what was planned."),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Where the state with the committed requests is lost, carry them out "
            "again, to the same bits.",
        ),
    ] = False,
    drop_line: Annotated[
        int | None,
        typer.Option(
            "--drop-line",
            metavar="N",
            help="First leave out a damaged line of results.jsonl, in a repaired copy.",
        ),
    ] = None,
    engine: Engine = None,
    workers: Workers = None,
    allow_large: Large = False,
    max_graph_mb: MaxGraph = None,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was interrupted, or train a finished one further.

    An experiment also gets its requests, metrics and page. The digest is that of a run
    that was never interrupted. Example: [bold]dfl-unlearn resume demo[/bold],
    [bold]dfl-unlearn resume ring --rounds 400 --engine ray[/bold].
    """
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn.engine.config import ExecutionConfig
    from dfl_unlearn.engine.simulator import resume as go_on
    from dfl_unlearn.store.folder import RunFolder
    from dfl_unlearn.story import training_lines

    folder = _folder(run_name)
    if drop_line is not None:
        kept = RunFolder(folder).drop_line(drop_line)
        _say(f"line {drop_line} is left out; what it was is in {kept.name}")
    execution = _execution(
        ExecutionConfig(progress=not _common.quiet),
        engine,
        workers,
        allow_large=allow_large,
    )
    if (
        rounds is None
        and not replay
        and RunFolder(folder).path("config.json").is_file()
    ):
        from dfl_unlearn.experiment import resume_experiment, unfinished_experiment

        experiment = unfinished_experiment(folder)
        if experiment is not None:
            _conduct(
                _executed(experiment, engine, workers, allow_large=allow_large),
                page=True,
                how=lambda one, **more: resume_experiment(
                    folder, execution=one.execution, **more
                ),
                max_graph_mb=max_graph_mb,
            )
            return
    if replay:
        from dfl_unlearn.unlearning.replaying import resume_replaying

        trained = resume_replaying(folder, rounds=rounds, execution=execution)
    else:
        trained = go_on(folder, rounds=rounds, execution=execution)
    if _common.as_json:
        _print(
            _json(
                {
                    "folder": str(trained.folder),
                    "round": trained.state.round,
                    "digest": trained.digest,
                }
            )
        )
        return
    if trained.history is not None:
        _tell(training_lines(trained))
    _say("")
    _say(f"Digest: {trained.digest}")
    _say(f"Next: dfl-unlearn unlearn {clean(run_name)} --peer 0 --fraction 0.1")


@app.command()
def unlearn(
    run_name: RunName,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[field=value]...", help="Fields of the protocol, e.g. epsilon=0.5"
        ),
    ] = None,
    peer: Annotated[int | None, typer.Option(help="Whose data.")] = None,
    indices: Annotated[
        str | None, typer.Option(help="Its rows, e.g. 0,4,17 (with --peer).")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="A share of its rows, in (0, 1].")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="All its rows; it goes on relaying.")
    ] = False,
    class_id: Annotated[
        int | None, typer.Option("--class", help="All rows of a class, at all peers.")
    ] = None,
    request_file: Annotated[
        Path | None,
        typer.Option(
            "--request",
            metavar="FILE",
            help="A request as a TOML file, or several under [[forget]], in order.",
        ),
    ] = None,
    coalesce: Annotated[
        bool,
        typer.Option(
            "--coalesce", help="Carry out several requests as one: one release."
        ),
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(help="How; see: dfl-unlearn list protocols, and list baselines"),
    ] = "newton-fisher",
    screen: Annotated[
        bool,
        typer.Option(
            "--screen",
            help="Refuse more than 10 % of an owner's rows per 100 rounds; hold an "
            "outcome for review that costs more than 5 points of accuracy.",
        ),
    ] = False,
    no_reference: Annotated[
        bool, typer.Option("--no-reference", help="Do not retrain to compare with.")
    ] = False,
    commit: Annotated[
        bool,
        typer.Option(
            "--commit", help="Make the outcome the run's state; else it is a trial."
        ),
    ] = False,
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints",
            help="With --commit: keep states from before the request on disk.",
        ),
    ] = False,
    allow_large: Large = False,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Forget data in a finished run.

    Examples: [bold]dfl-unlearn unlearn demo --peer 3 --fraction 0.1[/bold],
    [bold]dfl-unlearn unlearn demo --peer 5 --all --protocol retrain[/bold],
    [bold]dfl-unlearn unlearn demo --peer 3 --indices 0,4 epsilon=0.5 --commit[/bold].
    """
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn._configfile import parse_override
    from dfl_unlearn._strict import read_strict
    from dfl_unlearn.engine.memory import large_allowed
    from dfl_unlearn.engine.run import load_run
    from dfl_unlearn.evaluation.view import evaluate
    from dfl_unlearn.unlearning.apply import unlearn as carry_out
    from dfl_unlearn.unlearning.contracts import unlearners
    from dfl_unlearn.unlearning.screening import Screening
    from dfl_unlearn.unlearning.store import commit_outcome, kept_certificate

    given: dict[str, Any] = {}
    for text in fields or ():
        keys, value = parse_override(text)
        given[".".join(keys)] = value
    how: UnlearningProtocol = read_strict(
        unlearners.get(protocol),  # type: ignore[arg-type]
        given,
        protocol,
    )
    requests = _requests(peer, indices, fraction, whole, class_id, request_file)
    trained = load_run(_folder(run_name))
    folder = trained.folder
    done: list[dict[str, Any]] = []
    last: Outcome | None = None
    for given_request in [requests] if coalesce else [[one] for one in requests]:
        if last is not None and not commit:
            trained = last.as_run()
        with large_allowed(allow_large):
            outcome = carry_out(
                trained,
                given_request,
                how,
                reference=not no_reference,
                coalesce=coalesce,
                screening=Screening() if screen else None,
                folder=folder,
            )
        table = evaluate(outcome)
        if outcome.status != "complete" and commit:
            _tell_outcome(outcome, table)  # what is refused next
        if commit:
            trained = commit_outcome(outcome, keep_checkpoints=keep_checkpoints)
            outcome = replace(outcome, certificate=kept_certificate(outcome))
        _tell_outcome(outcome, table)
        last = outcome
        done.append(_outcome_json(outcome, table) | {"committed": commit})
    if _common.as_json:
        _print(_json(done[0] if len(done) == 1 else {"outcomes": done}))
        return
    _say("")
    if commit:
        _say(f"Committed: {folder} now holds the new state.")
    else:
        _say(
            "A trial: the run is as it was. Page with all trials: "
            f"dfl-unlearn report {clean(run_name)}"
        )


@app.command()
def report(
    run_name: RunName,
    out: Annotated[
        Path | None, typer.Option(help="The page  [default: RUN/report.html]")
    ] = None,
    figures: Annotated[
        str,
        typer.Option(
            help="Formats of the figures, png, svg, or both as png,svg; gif adds the "
            "influence moving through the network."
        ),
    ] = "png",
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the figures and the page of a run again, all its trials included."""
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn.conduct import write_results
    from dfl_unlearn.engine.run import load_run
    from dfl_unlearn.evaluation.view import evaluate
    from dfl_unlearn.sections import ReportSection
    from dfl_unlearn.store.folder import RunFolder
    from dfl_unlearn.unlearning.store import load_outcomes

    formats = tuple(part.strip() for part in figures.split(","))
    for kind in formats:
        if kind not in ("png", "svg", "gif"):
            raise InvalidArgumentError(
                "--figures: must be png, svg, gif or several of them with commas, got "
                f"{show(kind)}"
            )
    trained = load_run(_folder(run_name))
    outcomes = load_outcomes(trained)
    assert trained.folder is not None
    page = write_results(
        RunFolder(trained.folder),
        trained,
        outcomes,
        [evaluate(outcome) for outcome in outcomes],
        ReportSection(figures=formats),  # type: ignore[arg-type]
        out,
    )
    if _common.as_json:
        _print(_json({"report": str(page), "outcomes": len(outcomes)}))
    else:
        _print(str(page))


@app.command()
def audit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE.toml",
            help="A run with outcomes, or an experiment that is run first.",
        ),
    ],
    replicas: Annotated[
        int, typer.Option(help="Networks to train in each of the two worlds.")
    ] = 2000,
    gamma: Annotated[
        float, typer.Option(help="Chance that the bound is above the true epsilon.")
    ] = 1e-3,
    statistic: Annotated[
        str,
        typer.Option(
            metavar="auto|projection|residual|distance|loss",
            help="The guesser's score; auto tries all of them.",
        ),
    ] = "auto",
    one_run: Annotated[
        bool,
        typer.Option(
            "--one-run", help="Guess in one run which forgotten rows were there."
        ),
    ] = False,
    request: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this request, e.g. r0.")
    ] = None,
    allow_large: Large = False,
    max_graph_mb: MaxGraph = None,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Try to refute certificates: train many networks, forget, guess which is which.

    Writes [bold]audit.json[/bold] beside each outcome. Ends with code 3 if a
    certificate was refuted. An audit that could not have refuted its claim says so.
    """
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn.engine.run import load_run
    from dfl_unlearn.evaluation.audit_session import chosen
    from dfl_unlearn.experiment import load_experiment, run_experiment

    if Path(source).suffix in (".toml", ".json"):
        experiment = load_experiment(source, [])
        experiment = _executed(experiment, None, None, allow_large=allow_large)
        trained, *_ = run_experiment(
            experiment, _common.runs, max_graph_mb=max_graph_mb
        )
    else:
        trained = load_run(_folder(source))
    assert trained.folder is not None
    found = _audits(
        chosen(load_run(trained.folder), request),
        replicas=replicas,
        gamma=gamma,
        statistic=statistic,
        one_run=one_run,
        show=not _common.quiet,
    )
    if _common.as_json:
        _print(_json({"folder": str(trained.folder), "audits": found}))
    if any(audit["verdict"] == "refuted" for audit in found):
        sys.exit(3)


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show fields and where it is defined.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Name everything that files and commands can build by name."""
    _set(None, as_json, False, debug)
    if kind is not None and kind not in KINDS:
        raise InvalidArgumentError(
            f"KIND: must be one of {', '.join(KINDS)}, got {show(kind)}"
        )
    found = {k: _entries(_registry(k)) for k in ([kind] if kind else KINDS)}
    if _common.as_json:
        _print(_json(found))
        return
    for title, entries in found.items():
        _print(f"{title}:" if kind is None else f"{title} ({len(entries)})")
        width = max((len(e["name"]) for e in entries), default=0)
        for entry in entries:
            _print(f"  {entry['name']:<{width}}  {entry['help']}")
            if verbose:
                for text in entry["fields"]:
                    _print(f"  {'':<{width}}    {text}")
                _print(f"  {'':<{width}}    in {entry['source']}")
        if title == "topologies":
            from dfl_unlearn.topology.files import graph_names

            _print(f"  or a pinned graph: {', '.join(graph_names())}; or a graph file")


@app.command()
def ledger(
    run_name: RunName,
    owner: Annotated[
        str | None, typer.Option(help="Only this owner, e.g. peer:3.")
    ] = None,
    observer: Annotated[
        str | None,
        typer.Option(
            help="Only this observer: peer:0, public, or several together as "
            "'{peer:0,peer:3}'."
        ),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Report epsilon at this delta.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of hashes and stop.")
    ] = False,
    runs: Runs = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what was spent: per owner of forgotten data and per observer.

    Example: [bold]dfl-unlearn ledger demo --observer '{peer:0,peer:3}'[/bold], two
    observers who put together what they saw.
    """
    _set(runs, as_json, False, debug)
    from dataclasses import asdict

    from dfl_unlearn.accounting.accounts import format_rows
    from dfl_unlearn.results.ledgers import RunLedgers

    books = RunLedgers.of(_folder(run_name))
    if verify:
        heads = books.verify()
        if _common.as_json:
            _print(_json(heads))
        for title, head in heads.items() if not _common.as_json else ():
            _print(f"{books.what(title)}: {head['entries']} entries, chain intact")
        return
    found = books.rows(owner=owner, observer=observer, delta=delta)
    if _common.as_json:
        _print(_json({k: [asdict(row) for row in rows] for k, rows in found.items()}))
        return
    for title, rows in found.items():
        if not rows:
            _print(f"{books.what(title)}: no noised release")
            continue
        _print(f"{books.what(title)}:")
        for line in format_rows(rows, rows[0].delta).split("\n"):
            _print(f"  {line}")
    if any(found.values()):
        _say("")
        private = any(row.owner == "*" for rows in found.values() for row in rows)
        _say(
            "Messages from before a request are not recalled; their ε, for any one "
            "record, is that of owner *."
            if private
            else "Messages from before a request carry no ε and are not recalled."
        )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; the console entry ``dfl-unlearn``.

    Args:
        arguments: Words after the program's name; None is the process's own.

    Raises:
        DflUnlearnError: With ``--debug``, as any other error, instead of a message.
    """
    try:
        _refuse_controls(sys.argv[1:] if arguments is None else arguments)
        with _quiet_libraries(), stopped_by_signals():
            app(args=arguments, standalone_mode=True)
    except DflUnlearnError as error:
        if _common.debug:
            raise
        _complain(f"{type(error).__name__}: {clean_lines(str(error))}")
        sys.exit(error.exit_code)
    except StoppedError as stop:
        _complain(clean_lines(str(stop)))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; nothing that was finished is lost")
        sys.exit(130)
    except Exception as error:
        if _common.debug:
            raise
        if _out_of_memory(error):
            _complain(
                "ResourceError: out of memory "
                f"({clean_lines(str(error)) or 'no more could be had'}); use fewer "
                "peers, a smaller model or smaller block_peers"
            )
            sys.exit(ResourceError.exit_code)
        import platform

        _complain(
            f"internal error: {type(error).__name__}: {clean_lines(str(error))}\n"
            f"Please report it with the command you typed (dfl-unlearn {__version__}, "
            f"Python {platform.python_version()}, {platform.platform()}); --debug "
            "shows the traceback."
        )
        sys.exit(1)
    sys.exit(0)


def _refuse_controls(arguments: Sequence[str]) -> None:
    """Refuse words that would write to the terminal when an error repeats them.

    Raises:
        InvalidArgumentError: If a word has control characters; a line end may be part
            of a value.
    """
    for word in arguments:
        if any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in word):
            raise InvalidArgumentError(
                f"argument: must have no control characters, got {ascii(word)[:200]}; "
                "type it again"
            )


def _out_of_memory(error: Exception) -> bool:
    """Tell whether NumPy or torch was refused memory by the system."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def clean_lines(text: str) -> str:
    """Return text without control characters except line ends."""
    return "\n".join(clean(line) for line in text.split("\n"))


def _set(runs: Path | None, as_json: bool, quiet: bool, debug: bool) -> None:
    _common.runs, _common.as_json = runs, as_json
    _common.quiet, _common.debug = quiet or as_json, debug


class _CleanFormatter(logging.Formatter):
    """Log lines without control characters, whatever a name in them holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return clean_lines(super().format(record))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Send logs and warnings to stderr, one line each."""
    level = os.environ.get("DFL_UNLEARN_LOG", "WARNING").upper()
    logger = logging.getLogger("dfl_unlearn")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_CleanFormatter("%(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    level_before = logger.level
    logger.setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        _complain(f"warning: {clean(str(message))}")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
        logger.removeHandler(handler)
        logger.setLevel(level_before)


def _executed(
    experiment: "Experiment",
    engine: str | None,
    workers: int | None,
    *,
    allow_large: bool = False,
) -> "Experiment":
    """Return an experiment with what the options say about its execution."""
    execution = _execution(
        experiment.execution, engine, workers, allow_large=allow_large
    )
    return replace(experiment, execution=execution)


def _execution(
    execution: "ExecutionConfig",
    engine: str | None,
    workers: int | None,
    *,
    allow_large: bool = False,
) -> "ExecutionConfig":
    """Return an execution with what the options say."""
    changes: dict[str, Any] = {"allow_large": True} if allow_large else {}
    if engine is not None:
        changes |= {"engine": engine}
    if workers is not None:
        changes |= {"workers": workers}
    return replace(execution, **changes)


def _conduct(
    experiment: "Experiment",
    *,
    page: bool,
    how: Callable[..., Any] | None = None,
    max_graph_mb: int | None = None,
) -> None:
    """Carry out an experiment and tell what came of it; ends with 4 after a refusal."""
    from dfl_unlearn.experiment import run_experiment
    from dfl_unlearn.sections import ReportSection
    from dfl_unlearn.story import comparison_lines, influence_lines, training_lines

    if not page:
        section = ReportSection(figures=(), html=False)
        experiment = replace(experiment, report=section)
    execution = replace(experiment.execution, progress=not _common.quiet)
    experiment = replace(experiment, execution=execution)
    tell: Callable[[str], None] | None = None
    if not _common.quiet:
        tell = lambda line: _complain(f"... {clean(line)}")  # noqa: E731
    refusals: list[Refusal] = []
    if how is None:
        how = lambda one, **more: run_experiment(one, _common.runs, **more)  # noqa: E731
    trained, outcomes, tables = how(
        experiment, tell=tell, refusals=refusals, max_graph_mb=max_graph_mb
    )
    assert trained.folder is not None
    if _common.as_json:
        _print(
            _json(
                {
                    "folder": str(trained.folder),
                    "digest": trained.digest,
                    "outcomes": [
                        _outcome_json(o, t)
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
        _end_refused(refusals)
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
        _tell(block)
    for outcome in outcomes:
        if outcome.certificate is not None and outcome.certificate.noise_std > 0:
            _say("")
            _print(str(outcome.certificate))
    _say("")
    folder = _shown(trained.folder)
    _say(f"Digest: {trained.digest}")
    _say(f"Everything is in {folder}" + (", the page is report.html." if page else "."))
    other = min(5, trained.topology.n - 1)
    _say(f"Next: dfl-unlearn unlearn {trained.folder.name} --peer {other} --all")
    _say(f"      dfl-unlearn audit {trained.folder.name} --replicas 100")
    _say(f"      dfl-unlearn run {folder}/config.toml topology.use=complete")
    _say("      dfl-unlearn list")
    _end_refused(refusals)


def _end_refused(refusals: "Sequence[Refusal]") -> None:
    """End with the code of a refusal, if there was one; the rest was done."""
    for refused in refusals:
        _complain(f"refused: {refused}")
    if refusals:
        sys.exit(refusals[0].error.exit_code)


def _audits(outcomes: "Sequence[Outcome]", **options: Any) -> list[dict[str, Any]]:
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
        name = outcome.protocol_name
        try:
            result = audited(outcome, **options)
        except UnsupportedRequestError as error:
            skipped.append(error)
            _complain(f"{name} is not audited: {error}")
            continue
        found.append({"use": name, **json.loads(result.to_json())})
        if not _common.as_json:
            _print(f"{name}:\n{result}\n")
    if skipped and not found:
        raise skipped[0]
    return found


def _tell_outcome(outcome: "Outcome", table: "ResultsTable") -> None:
    from dfl_unlearn.story import comparison_lines

    if _common.as_json:
        return
    _tell(comparison_lines([outcome], [table]))
    for note in outcome.notes:
        _say(f"  {note}")
    _say("")
    if outcome.certificate is None:
        _print(f"{outcome.protocol_name} makes no claim: no certificate")
    else:
        _print(str(outcome.certificate))


def _outcome_json(outcome: "Outcome", table: "ResultsTable") -> dict[str, Any]:
    from dataclasses import asdict

    certificate = outcome.certificate
    return {
        "request": outcome.request.request_id,
        "protocol": outcome.protocol_name,
        "certificate": None
        if certificate is None
        else json.loads(certificate.to_json()),
        "status": outcome.status,
        "pending": {str(i): outcome.residual_influence[i][0] for i in outcome.pending},
        "notes": list(outcome.notes),
        "cost": asdict(outcome.cost),
        "metrics": [row for row in table.rows if row["peer"] == -1],
    }


def _requests(
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
            "--all; --class C; or --request FILE.toml"
        )
    needs_peer = chosen[0] in ("--indices", "--fraction", "--all")
    if len(chosen) > 1 or needs_peer != (peer is not None):
        raise InvalidArgumentError(
            f"request: {' and '.join(chosen)} "
            + (
                "cannot be combined; give one"
                if len(chosen) > 1
                else ("needs --peer" if needs_peer else "takes no --peer")
            )
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
        return [ForgetRequest.class_(class_id)]
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


def _folder(name: str) -> Path:
    """Return a run's folder: a name below the runs folder, or a path."""
    from dfl_unlearn.store.folder import runs_root

    inside = runs_root(_common.runs) / name
    return inside if inside.is_dir() or not Path(name).is_dir() else Path(name)


def _registry(kind: str) -> "Registry[Any]":
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
        "baselines": ("dfl_unlearn.unlearning.contracts", "baselines"),
        "metrics": ("dfl_unlearn.evaluation.metrics", "metrics"),
        "plots": ("dfl_unlearn.plots", "plots"),
    }
    module, name = homes[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def _entries(registry: "Registry[Any]") -> list[dict[str, Any]]:
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
                "fields": [str(p) for p in parameters],
                "source": f"{entry.__module__}.{entry.__qualname__}",
            }
        )
    return rows


def _shown(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _json(value: Mapping[str, Any] | dict[str, Any]) -> str:
    from dfl_unlearn.results.view import plain

    return json.dumps(_finite(plain(value)), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return JSON values with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tell(lines: Sequence[str]) -> None:
    """Print a block of the story below an empty line."""
    for line in ("", *lines) if lines else ():
        _say(line)


def _say(line: str) -> None:
    """Print a line of the story, unless it was asked to be quiet."""
    if not _common.quiet:
        _print(line)


def _print(text: str) -> None:
    sys.stdout.write(clean_lines(text) + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(clean_lines(text) + "\n")
