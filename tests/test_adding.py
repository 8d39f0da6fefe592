"""A newcomer's test: docs/adding.md, followed to the letter."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from test_docs import ROOT, blocks

ADDING = ROOT / "docs" / "adding.md"
PLUGINS = ROOT / "tests" / "plugins"
MODULES = sorted(path.stem for path in PLUGINS.glob("*.py"))
TOML = [tomllib.loads(text) for text in blocks(ADDING, "toml").values()]
GROUPS = next(table for table in TOML if "project" in table)["project"]["entry-points"]
NAMES = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def in_a_new_process(*arguments, path, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_page_shows_the_whole_file(module):
    shown = blocks(ADDING, "python").values()
    assert (PLUGINS / f"{module}.py").read_text() in shown


def test_the_page_shows_how_to_install_every_file():
    assert sorted({entry.split(":")[0] for entry in NAMES.values()}) == MODULES


def test_the_contract_tests_pick_every_entry_up():
    found = in_a_new_process(
        *("-m", "pytest", "tests/contracts", "-q", "-rA", "-p", "no:cacheprovider"),
        *(argument for module in MODULES for argument in ("-p", module)),
        *("-k", " or ".join(NAMES)),
        path=[PLUGINS],
    )
    assert found.returncode == 0, found.stdout
    for name in NAMES:
        assert re.search(rf"^PASSED .*\[.*{name}.*\]", found.stdout, re.MULTILINE), name


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that looks like an installed project with the page's entry points."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "my_project-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-project\nVersion: 1.0\n"
    )
    lines = []
    for group, entries in GROUPS.items():
        lines += [f"[{group}]", *(f"{name} = {entries[name]}" for name in entries)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("group", GROUPS)
def test_the_command_line_lists_what_is_installed(group, installed):
    kind = group.removeprefix("dfl_unlearn.")
    command = ("-m", "dfl_unlearn", "list", kind)
    answer = in_a_new_process(*command, path=[installed, PLUGINS])
    assert answer.returncode == 0, answer.stderr
    assert next(iter(GROUPS[group])) in answer.stdout


def test_a_configuration_file_uses_what_is_installed(installed, tmp_path):
    file = tmp_path / "mine.toml"
    texts = blocks(ADDING, "toml").values()
    file.write_text(next(text for text in texts if "[[forget]]" in text))
    answer = in_a_new_process(
        *("-m", "dfl_unlearn", "run", file, "--runs", tmp_path / "runs", "--no-report"),
        path=[installed, PLUGINS],
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    results = list((tmp_path / "runs").rglob("results.jsonl"))
    assert "forget-confidence" in results[0].read_text()
