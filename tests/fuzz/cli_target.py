"""The command line, in this process: every command with every kind of word.

Whatever is typed must end with an exit code that is not 1, the code of a bug. What
would compute for long (training, audits, figures) is left out after its arguments were
read; readers, checks and the requests on a tiny run are real.
"""

import contextlib
import io
import json
import os
from pathlib import Path
from random import Random
from unittest import mock

from fuzz.folder_targets import Folders, finished_runs
from fuzz.harness import Bench, Target, touched, unwatched
from fuzz.mutate import LETTERS, NUMBERS

from dfl_unlearn import cli, conduct, experiment
from dfl_unlearn.cli_output import common
from dfl_unlearn.errors import RefusedError
from dfl_unlearn.evaluation import audit_session

_ODD = (
    *(text for text in LETTERS if "\x00" not in text),
    *NUMBERS,
    "\udcff",
    "[/bold]",
    "[red",
    "-",
    "--",
    "=",
    "a=b",
    "a=",
    "=b",
    "0,1",
    "0,,1",
    "1,1",
    "-1,0",
    "peer:0",
    "peer:-1",
    "{peer:0,peer:1}",
    "{peer:1,peer:0}",
    "public",
    "*",
    ".",
    "~",
    "con",
    "x.toml",
    "x.json",
    "x.yaml",
    "good.toml",
    "tiny",
    "committed",
    "./work/tiny",
    "svg",
    "png,svg",
    "epsilon=0.5",
    "epsilon=nan",
    "steps=1",
    "rounds=2",
    "training.rounds=2",
    "topology.n=3",
    "topology.use=torus",
    "name=x",
    "unlearning.0.epsilon=1",
    "unlearning.9.epsilon=1",
)
_COMMON = ("--json", "--quiet", "--debug", "--help")
_OPTIONS = {
    "demo": ("--name", "--engine", "--workers", *_COMMON),
    "run": ("--name", "--engine", "--workers", "--dry-run", "--no-report", *_COMMON),
    "unlearn": (
        "--peer",
        "--indices",
        "--fraction",
        "--all",
        "--class",
        "--request",
        "--coalesce",
        "--protocol",
        "--screen",
        "--no-reference",
        "--commit",
        "--keep-checkpoints",
        *_COMMON,
    ),
    "resume": (
        "--rounds",
        "--drop-line",
        "--engine",
        "--workers",
        "--allow-large",
        *_COMMON,
    ),
    "report": ("--out", "--figures", *_COMMON),
    "audit": (
        "--replicas",
        "--gamma",
        "--statistic",
        "--one-run",
        "--request",
        *_COMMON,
    ),
    "list": ("--verbose", "--json", "--debug"),
    "ledger": ("--owner", "--observer", "--delta", "--verify", "--json", "--debug"),
}
_FLAGS = frozenset(
    (
        *_COMMON,
        "--allow-large",
        "--dry-run",
        "--no-report",
        "--all",
        "--coalesce",
        "--screen",
        "--no-reference",
        "--commit",
        "--keep-checkpoints",
        "--one-run",
        "--verbose",
        "--verify",
    )
)
_FIRST = {
    "run": ("good.toml", "good.json", "bad.toml", "nowhere.toml"),
    "unlearn": ("tiny", "committed", "./work/tiny"),
    "report": ("tiny", "committed"),
    "resume": ("tiny", "committed"),
    "audit": ("tiny", "good.toml"),
    "ledger": ("tiny", "committed"),
    "list": ("protocols", "topologies", "plots"),
    "demo": (),
}
_LIKELY = {
    "--rounds": ("0", "3", "4"),
    "--drop-line": ("0", "1", "2"),
    "--peer": ("0", "1", "2", "3", "4"),
    "--indices": ("0", "0,1", "0,4,17"),
    "--fraction": ("0.1", "0.5", "1", "1.0"),
    "--class": ("0", "1", "2"),
    "--request": ("request.toml", "r0", "r1"),
    "--protocol": ("newton-fisher", "rr-du", "fine-tune", "retrain", "dp-gossip"),
    "--observer": ("peer:0", "public", "{peer:0,peer:3}"),
    "--owner": ("peer:1", "*"),
    "--delta": ("1e-5", "0.5", "0", "1"),
    "--figures": ("png", "svg", "png,svg", "gif", "pdf"),
    "--replicas": ("2", "4", "0"),
    "--gamma": ("0.05", "0", "1"),
    "--statistic": ("auto", "loss", "x"),
    "--engine": ("inline", "auto", "x"),
    "--workers": ("0", "1", "2"),
    "--name": ("demo", "a" * 64),
    "--out": ("page.html", "../page.html", "work/tiny/x.html", "nowhere/page.html"),
}


class Bug(Exception):
    """The command line ended with code 1."""


def _stopped(*given: object, **named: object) -> None:
    raise RefusedError("the fuzzer stops here")


def _built(found: experiment.Experiment, *rest: object, **named: object) -> None:
    experiment.build_parts(found)
    _stopped()


def _cli(scratch: Path) -> Bench:
    folders = Folders(scratch, finished_runs)
    for place in (folders.kept, folders.work):
        (place / "good.toml").write_text(
            '[topology]\nuse = "ring"\nn = 4\n[data]\nuse = "gaussian-classes"\n'
            '[[forget]]\nkind = "peer"\npeer = 1\n[[unlearning]]\nuse = "retrain"\n'
        )
        (place / "good.json").write_text('{"topology": {"use": "ring", "n": 4}}')
        (place / "bad.toml").write_text("[[")
        (place / "request.toml").write_text('kind = "peer"\npeer = 1\n')

    def draw(rng: Random) -> bytes:
        command = rng.choice((*_OPTIONS, *_OPTIONS, "", "x", "--version"))
        words = [command] if command else []
        if rng.random() < 0.9 and _FIRST.get(command):
            words.append(rng.choice(_FIRST[command]))
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
            option = rng.choice((*_OPTIONS.get(command, _COMMON), "", "", "--nope"))
            if option and option != "--debug":
                words.append(option)
            if option not in _FLAGS:
                likely = _LIKELY.get(option, ("epsilon=0.5",))
                words.append(rng.choice(likely if rng.random() < 0.6 else _ODD))
        return json.dumps(words).encode()

    def tried(data: bytes) -> object:
        words = [str(word) for word in json.loads(data)]
        if "--runs" not in words and words[:1] not in ([], ["list"]):
            words += ["--runs", "work"] if "--" not in words else []
        try:
            return _typed(words, folders.work.parent, folders.work)
        finally:
            with unwatched():
                if touched():
                    folders.fresh()

    seeds = [
        json.dumps(words).encode()
        for words in (
            [],
            ["--help"],
            ["list"],
            ["run", "work/good.toml", "--dry-run"],
            ["unlearn", "tiny", "--peer", "2", "--all", "--protocol", "retrain"],
            ["unlearn", "tiny", "--peer", "2", "--fraction", "0.5", "--commit"],
            ["ledger", "tiny"],
            ["ledger", "committed", "--verify"],
            ["report", "tiny"],
            ["audit", "tiny"],
        )
    ]
    return Bench(seeds, draw, tried)


def _typed(words: list[str], base: Path, runs: Path) -> int:
    # As a terminal: UTF-8, strict on one stream, escaping on the other.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(
        io.BytesIO(), "utf-8", "backslashreplace", write_through=True
    )
    before = os.getcwd()
    os.chdir(runs)
    code: object = 0
    try:
        with (
            mock.patch.object(experiment, "run_experiment", _built),
            mock.patch.object(conduct, "write_results", _stopped),
            mock.patch.object(audit_session, "audited", _stopped),
            mock.patch.dict(os.environ, {"DFL_UNLEARN_RUNS": str(runs)}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main([w for w in words if w not in ("--runs", "work")])
            except SystemExit as stop:
                code = stop.code
    finally:
        os.chdir(before)
        common.debug = False
    if code not in (0, None, 2, 3, 4, 5, 6, 7):
        text = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
        raise Bug(f"code {code}: {text[-600:]}")
    if code and isinstance(code, int) and code != 0:
        raise RefusedError(f"code {code}")
    return 0


TARGETS = (Target("cli", 0.5, _cli),)
