"""What the documents show, runs; what they name, exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dfl_unlearn.unlearning.contracts import methods, unlearners

ROOT = Path(__file__).parent.parent
PLUGINS = ROOT / "tests" / "plugins"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "topologies/README.md"]
)
RUN_BLOCKS = """
import json, os, sys, traceback
answers = {}
for line, code in json.load(sys.stdin).items():
    try:
        exec(compile(code, f"block in line {line}", "exec"), {"__name__": "__main__"})
        answers[line] = ""
    except BaseException:
        answers[line] = traceback.format_exc()
json.dump(answers, open("answers.json", "w"))
"""


def blocks(path, language):
    """First line number and text of every fenced block of a language."""
    found, start, lines = {}, None, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if start is None and line.startswith("```"):
            start, wanted, lines = number + 1, line == f"```{language}", []
        elif line == "```":
            if wanted:
                found[start] = "\n".join(lines) + "\n"
            start = None
        else:
            lines.append(line)
    assert start is None, f"{path.name}: the block before line {start} has no end"
    return found


def runnable():
    """Blocks to run; whole plugin files are run by test_adding.py instead."""
    files = {path.read_text() for path in PLUGINS.glob("*.py")}
    for path in DOCUMENTS:
        for line, code in blocks(path, "python").items():
            if code not in files:
                yield path, line, code


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Runs all blocks of a document in a fresh process; '' or a traceback each."""
    known = {}

    def ask(path):
        if path not in known:
            folder = tmp_path_factory.mktemp("document")
            code = {line: code for where, line, code in runnable() if where == path}
            subprocess.run(
                [sys.executable, "-W", "error", "-c", RUN_BLOCKS],
                input=json.dumps(code),
                text=True,
                cwd=folder,
                env={"PYTHONPATH": str(PLUGINS), "PATH": "", "HOME": str(folder)},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            known[path] = json.loads((folder / "answers.json").read_text())
        return known[path]

    return ask


@pytest.mark.parametrize(
    ("path", "line"),
    [
        pytest.param(path, line, id=f"{path.relative_to(ROOT)}:{line}")
        for path, line, _ in runnable()
        if path != ROOT / "topologies/README.md"  # loads a file that the reader has
    ],
)
def test_a_python_block_runs_as_it_stands(path, line, answers):
    assert answers(path)[str(line)] == ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(path):
    pattern = (
        r"`((?:dfl_unlearn|tests|benchmarks|experiments|topologies|docs)/[\w./-]+)`"
    )
    named = re.findall(pattern, path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_has_two_shell_commands_one_line_each():
    first, second = blocks(ROOT / "README.md", "sh").values()
    assert first.count("\n") == second.count("\n") == 1
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in command
    assert first.endswith(".venv/bin/dfl-unlearn demo\n")
    assert second.endswith(".venv/bin/python -m pytest\n")


@pytest.mark.parametrize("registry", [unlearners, methods], ids=lambda r: r.kind)
def test_the_readme_lists_exactly_the_methods_there_are(registry):
    network, local = (ROOT / "README.md").read_text().split("### Methods for one model")
    text = local if registry is methods else network
    table = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    assert sorted(table) == sorted(
        name
        for name in registry.names()
        if registry.get(name).__module__.startswith("dfl_unlearn.")
    )


def test_constraints_are_pins_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert len(pins) > 20


def test_every_dependency_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    needed = {name.lower() for name in re.findall(r'^    "([\w-]+)>=', project, re.M)}
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert len(needed) > 15
    assert {name for name in needed if f"\n{name}==" not in pins} == set()
