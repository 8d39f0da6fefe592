"""The command line ``dfl-unlearn``: one function per command.

Heavy libraries are imported inside the commands, so that help is fast. Errors are
printed without a traceback and end with the exit code of their class.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dfl_unlearn import __version__
from dfl_unlearn._stopping import StoppedError, stopped_by_signals
from dfl_unlearn._validate import clean, show
from dfl_unlearn.cli_output import (
    clean_lines,
    common,
    complain,
    json_text,
    outcome_json,
    put,
    quiet_libraries,
    say,
    tell_block,
    tell_outcome,
)
from dfl_unlearn.cli_sweeps import conduct_sweep, list_cases, sweep_of
from dfl_unlearn.cli_work import (
    Remote,
    audits_of,
    conduct,
    entries_of,
    executed,
    execution_of,
    folder_of,
    registry_of,
    requests_of,
)
from dfl_unlearn.errors import (
    DflUnlearnError,
    InvalidArgumentError,
    ResourceError,
)

if TYPE_CHECKING:
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
    "methods",
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
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Running Ray cluster to join  [default: start Ray here, on loopback]",
    ),
]
RayAllowRemote = Annotated[
    bool,
    typer.Option(
        "--ray-allow-remote",
        help="Let other machines take part: they can run code as you.",
    ),
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
    ray_address: RayAddress = None,
    ray_allow_remote: RayAllowRemote = False,
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
    remote = Remote(ray_address, ray_allow_remote)
    experiment = executed(experiment, engine, workers, remote, allow_large=allow_large)
    conduct(experiment, page=True)


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
    ray_address: RayAddress = None,
    ray_allow_remote: RayAllowRemote = False,
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
    from dfl_unlearn.experiment import (
        build_parts,
        check_requests,
        load_experiment,
        to_config,
    )

    experiment = load_experiment(file, overrides or ())
    if name is not None:
        experiment = replace(experiment, name=name)
    remote = Remote(ray_address, ray_allow_remote)
    experiment = executed(experiment, engine, workers, remote, allow_large=allow_large)
    if dry_run:
        _, data, model = build_parts(experiment, max_graph_mb=max_graph_mb)
        check_requests(experiment, data, model)
        config = to_config(experiment)
        put(json_text(config) if common.as_json else to_toml(config).rstrip())
        return
    conduct(experiment, page=not no_report, max_graph_mb=max_graph_mb)


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
    ray_address: RayAddress = None,
    ray_allow_remote: RayAllowRemote = False,
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

    folder = folder_of(run_name)
    if drop_line is not None:
        kept = RunFolder(folder).drop_line(drop_line)
        say(f"line {drop_line} is left out; what it was is in {kept.name}")
    remote = Remote(ray_address, ray_allow_remote)
    execution = execution_of(
        ExecutionConfig(progress=not common.quiet),
        engine,
        workers,
        remote,
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
            conduct(
                executed(experiment, engine, workers, remote, allow_large=allow_large),
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
    if common.as_json:
        put(
            json_text(
                {
                    "folder": str(trained.folder),
                    "round": trained.state.round,
                    "digest": trained.digest,
                }
            )
        )
        return
    if trained.history is not None:
        tell_block(training_lines(trained))
    say("")
    say(f"Digest: {trained.digest}")
    say(f"Next: dfl-unlearn unlearn {clean(run_name)} --peer 0 --fraction 0.1")


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
        int | None,
        typer.Option("--class", help="All rows of a class, of all peers or of --peer."),
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
            help="Keep states from before the request on disk, with --commit.",
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
    from dfl_unlearn.experiment import override
    from dfl_unlearn.unlearning.apply import unlearn as carry_out
    from dfl_unlearn.unlearning.contracts import unlearners
    from dfl_unlearn.unlearning.forms import REGISTRIES
    from dfl_unlearn.unlearning.screening import Screening
    from dfl_unlearn.unlearning.store import commit_outcome, kept_certificate

    given: dict[str, Any] = {}
    for text in fields or ():
        override(given, *parse_override(text))
    how: UnlearningProtocol = read_strict(
        unlearners.get(protocol),  # type: ignore[arg-type]
        given,
        protocol,
        registries=REGISTRIES,
    )
    requests = requests_of(peer, indices, fraction, whole, class_id, request_file)
    trained = load_run(folder_of(run_name))
    folder = trained.folder
    done: list[dict[str, Any]] = []
    last: Outcome | None = None
    try:
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
                    keep_checkpoints=keep_checkpoints,
                    folder=folder,
                )
            table = evaluate(outcome)
            if outcome.status != "complete" and commit:
                tell_outcome(outcome, table)  # what is refused next
            if commit:
                trained = commit_outcome(outcome)
                outcome = replace(outcome, certificate=kept_certificate(outcome))
            tell_outcome(outcome, table)
            last = outcome
            done.append(outcome_json(outcome, table) | {"committed": commit})
    finally:
        if common.as_json and 0 < len(done) < (1 if coalesce else len(requests)):
            put(json_text({"outcomes": done}))  # those before the one that failed
    if common.as_json:
        put(json_text(done[0] if len(done) == 1 else {"outcomes": done}))
        return
    say("")
    if commit:
        say(f"Committed: {folder} now holds the new state.")
    else:
        say(
            "A trial: the run is as it was. Page with all trials: "
            f"dfl-unlearn report {clean(run_name)}"
        )


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A TOML or JSON experiment; may have [sweep]."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=a,b,c]...",
            help="What varies, e.g. topology.use=ring,torus; one value changes all "
            "cases.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the sweep and its folder  [default: the file's]"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Cases side by side  [default: one per core]")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="grid|zip|random",
            help="All combinations, the k-th values together, or draws  [default: "
            "grid]",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Replicates, e.g. 0,1,2  [default: 0]")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of draws, for random.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed cases again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the cases, do nothing.")
    ] = False,
    engine: Annotated[
        str, typer.Option(metavar="processes|ray", help="Who runs cases side by side.")
    ] = "processes",
    allow_large: Large = False,
    max_graph_mb: MaxGraph = None,
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run an experiment for many values and seeds, side by side, into one table.

    Example: [bold]dfl-unlearn sweep ring.toml unlearning.0.epsilon=0.5,1,2
    --seeds 0,1,2[/bold]. The same command goes on where it was stopped, and more
    values or seeds may be added. A failed case stops no other; the command then ends
    with the code of the first one that failed. A protocol that refuses has no rows.
    """
    _set(runs, as_json, quiet, debug)
    found = sweep_of(
        file,
        overrides or (),
        name=name,
        mode=mode,
        samples=samples,
        seeds=seeds,
        allow_large=allow_large,
    )
    if dry_run:
        list_cases(found)
        return
    conduct_sweep(
        found,
        jobs=jobs,
        retry_failed=retry_failed,
        engine=engine,
        max_graph_mb=max_graph_mb,
    )


@app.command()
def report(
    run_name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SWEEP", help="A run's or a sweep's name, or its folder."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page  [default: report.html in the folder]")
    ] = None,
    figures: Annotated[
        str,
        typer.Option(
            help="Formats of the figures: png, svg, pdf, or several as png,pdf; gif "
            "adds the influence moving through the network."
        ),
    ] = "png",
    runs: Runs = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the figures and the page of a run or a sweep again, all trials included."""
    _set(runs, as_json, quiet, debug)
    from dfl_unlearn.cli_sweeps import report_sweep
    from dfl_unlearn.conduct import write_results
    from dfl_unlearn.engine.run import load_run
    from dfl_unlearn.evaluation.view import evaluate
    from dfl_unlearn.results.sweep import PLAN
    from dfl_unlearn.sections import ReportSection
    from dfl_unlearn.store.folder import RunFolder
    from dfl_unlearn.unlearning.store import load_outcomes

    formats = tuple(part.strip() for part in figures.split(","))
    for kind in formats:
        if kind not in ("png", "svg", "pdf", "gif"):
            raise InvalidArgumentError(
                "--figures: must be png, svg, pdf, gif or several with commas, got "
                f"{show(kind)}"
            )
    folder = folder_of(run_name)
    if (folder / PLAN).is_file():
        report_sweep(folder, formats, out)
        return
    trained = load_run(folder)
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
    if common.as_json:
        put(json_text({"report": str(page), "outcomes": len(outcomes)}))
    else:
        put(str(page))


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
        here = Remote(None, allowed=False)
        experiment = executed(experiment, None, None, here, allow_large=allow_large)
        trained, *_ = run_experiment(experiment, common.runs, max_graph_mb=max_graph_mb)
    else:
        trained = load_run(folder_of(source))
    assert trained.folder is not None
    found = audits_of(
        chosen(load_run(trained.folder), request),
        replicas=replicas,
        gamma=gamma,
        statistic=statistic,
        one_run=one_run,
        show=not common.quiet,
    )
    if common.as_json:
        put(json_text({"folder": str(trained.folder), "audits": found}))
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
    found = {k: entries_of(registry_of(k)) for k in ([kind] if kind else KINDS)}
    if common.as_json:
        put(json_text(found))
        return
    for title, entries in found.items():
        put(f"{title}:" if kind is None else f"{title} ({len(entries)})")
        width = max((len(e["name"]) for e in entries), default=0)
        for entry in entries:
            put(f"  {entry['name']:<{width}}  {entry['help']}")
            if verbose:
                for text in entry["fields"]:
                    put(f"  {'':<{width}}    {text}")
                if "uses" in entry:
                    put(f"  {'':<{width}}    {_said(entry)}")
                put(f"  {'':<{width}}    in {entry['source']}")
        if title == "topologies":
            from dfl_unlearn.topology.files import graph_names

            put(f"  or a pinned graph: {', '.join(graph_names())}; or a graph file")


def _said(entry: dict[str, Any]) -> str:
    """Return a line on what a method for one model serves, reads and claims."""
    uses = ", ".join(entry["uses"]) or "nothing of the data"
    words = "" if entry["retained_data"] else " (runs without retained data)"
    record = ", ".join(entry["needs"]) or "nothing"
    return (
        f"serves {', '.join(entry['kinds'])}; uses {uses}{words}; "
        f"needs {record} of the record; claims {entry['claim'] or 'nothing'}"
    )


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

    books = RunLedgers.of(folder_of(run_name))
    if verify:
        heads = books.verify()
        if common.as_json:
            put(json_text(heads))
        for title, head in heads.items() if not common.as_json else ():
            put(f"{books.what(title)}: {head['entries']} entries, chain intact")
        return
    found = books.rows(owner=owner, observer=observer, delta=delta)
    if common.as_json:
        put(json_text({k: [asdict(row) for row in rows] for k, rows in found.items()}))
        return
    for title, rows in found.items():
        if not rows:
            put(f"{books.what(title)}: no noised release")
            continue
        put(f"{books.what(title)}:")
        for line in format_rows(rows, rows[0].delta).split("\n"):
            put(f"  {line}")
    if any(found.values()):
        say("")
        private = any(row.owner == "*" for rows in found.values() for row in rows)
        say(
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
        with quiet_libraries(), stopped_by_signals():
            app(args=arguments, standalone_mode=True)
    except DflUnlearnError as error:
        if common.debug:
            raise
        complain(f"{type(error).__name__}: {clean_lines(str(error))}")
        sys.exit(error.exit_code)
    except StoppedError as stop:
        complain(clean_lines(str(stop)))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        complain("interrupted; nothing that was finished is lost")
        sys.exit(130)
    except Exception as error:
        if common.debug:
            raise
        if _out_of_memory(error):
            complain(
                "ResourceError: out of memory "
                f"({clean_lines(str(error)) or 'no more could be had'}); use fewer "
                "peers, a smaller model or smaller block_peers"
            )
            sys.exit(ResourceError.exit_code)
        import platform

        complain(
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


def _set(runs: Path | None, as_json: bool, quiet: bool, debug: bool) -> None:
    common.runs, common.as_json = runs, as_json
    common.quiet, common.debug = quiet or as_json, debug
