"""Imports point down, and the base import is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dfl_unlearn

ROOT = Path(dfl_unlearn.__file__).parent

# Parts of the package by layer; a part may import from lower layers only. Parts of one
# layer do not import each other, and every part may import the base.
LAYERS = (
    ("topology", "data", "models"),
    ("record", "curvature", "accounting", "store"),
    ("engine",),
    ("unlearning", "baselines"),
    ("evaluation",),
    ("results",),
    ("plots",),
    ("pages",),
    ("report", "story", "sections"),
    ("conduct",),
    ("experiment",),
    ("sweeps",),
    ("cli_output",),
    ("cli_work", "cli_sweeps"),
    ("cli",),
    ("__main__",),
)
# What a part may take from another one of its own layer.
SIDEWAYS = {"baselines": "dfl_unlearn.unlearning.contracts"}
BASE = {"errors", "rng", "registry"}  # and every module whose name starts with _
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Libraries that a plain simulation has no use for.
HEAVY = {
    "ray",
    "flwr",
    "opacus",
    "torchvision",
    "matplotlib",
    "plotly",
    "pandas",
    "sklearn",
    "transformers",
    "torch_geometric",
}


def files():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(module):
    """The part of the package that a module belongs to: ``engine`` of dfl_unlearn.…"""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in dfl_unlearn._HOMES:
        return part_of(dfl_unlearn._HOMES[parts[1]])
    return parts[1] if len(parts) > 1 else ""


def imported(tree):
    """Every module of the package that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [node.module]
            if node.module == "dfl_unlearn":
                names = [f"dfl_unlearn.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "dfl_unlearn")


def is_base(part):
    return part in BASE or (part.startswith("_") and part != "__main__")


def mistake(part, target):
    """What is wrong with ``part`` importing from ``target``, or nothing."""
    if part == target or is_base(target) or target in ("", "__version__"):
        return ""
    if is_base(part):
        return "the base imports nothing of the layers"
    if LEVEL[part] == LEVEL[target]:
        return "sideways"
    return "upwards" if LEVEL[part] < LEVEL[target] else ""


def test_every_part_has_its_layer():
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files()}
    assert {part for part in parts if not is_base(part)} <= set(LEVEL)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    wrong = [
        f"{part} imports {name}: {mistake(part, part_of(name))}"
        for name in imported(ast.parse(path.read_text()))
        if mistake(part, part_of(name)) and SIDEWAYS.get(part) != name
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("part", "line", "expected"),
    [
        ("record", "from dfl_unlearn.engine.run import TrainedRun", "upwards"),
        ("record", "from dfl_unlearn import simulate", "upwards"),
        ("record", "import dfl_unlearn.accounting.rdp", "sideways"),
        (
            "rng",
            "from dfl_unlearn.data.peers import PeerData",
            "the base imports nothin",
        ),
        ("engine", "from dfl_unlearn.record.plan import RecordPlan", ""),
        ("engine", "from dfl_unlearn import _validate, __version__", ""),
        ("engine", "import dfl_unlearn", ""),
    ],
)
def test_a_wrong_import_is_found(part, line, expected):
    found = [mistake(part, part_of(name)) for name in imported(ast.parse(line))]
    assert found
    assert any(found) == bool(expected)
    assert "".join(found).startswith(expected)


def loaded_after(code):
    """Names of the top-level packages in a fresh interpreter after ``code``."""
    code += "\nimport sys\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-I", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_the_base_import_loads_no_other_library():
    before = loaded_after("")
    new = loaded_after("import dfl_unlearn") - before - set(sys.stdlib_module_names)
    assert new == {"dfl_unlearn"}


def test_simulating_loads_no_heavy_library():
    loaded = loaded_after("import dfl_unlearn\ndfl_unlearn.simulate")
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)
