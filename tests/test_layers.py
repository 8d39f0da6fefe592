"""Imports point down, the base import is light, and nothing unsafe is called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dfl_unlearn

ROOT = Path(dfl_unlearn.__file__).parent
REPOSITORY = ROOT.parent

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
    ("report", "story", "sections"),
    ("conduct",),
    ("experiment",),
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


# --- what must not be called ------------------------------------------------------

UNSAFE_MODULES = {"pickle", "dill", "shelve", "marshal", "joblib", "yaml", "random"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "numpy.load",
    "pandas.read_pickle",
}
STARTS_RAY = ROOT / "engine" / "backends" / "ray_runtime.py"
GLOBAL_STATE = {"manual_seed", "seed", "set_rng_state", "fork_rng"}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
KEYED = {"numpy.random.Generator", "numpy.random.Philox"}
SEEDING_ALLOWED = ROOT / "models" / "initial.py"
ALIASES = {"np": "numpy", "pd": "pandas"}


def dotted(node):
    """``numpy.random.rand`` for the syntax tree of ``np.random.rand``, or ''."""
    if isinstance(node, ast.Name):
        return ALIASES.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def unsafe(tree, *, seeding=False, starting=False):
    """Yield the unsafe modules and calls of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module] if isinstance(node, ast.ImportFrom) else names
            yield from {name.split(".")[0] for name in names} & UNSAFE_MODULES
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        last = name.rpartition(".")[2]
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        shell = given.get("shell")
        refuses_pickle = ast.unparse(given.get("allow_pickle", ast.Constant(True)))
        if name in UNSAFE_CALLS and (name, refuses_pickle) != ("numpy.load", "False"):
            yield name
        elif shell is not None and ast.unparse(shell) != "False":
            yield f"{name}(shell=...)"
        elif name == "ray.init" and not starting:
            yield name
        elif ast.unparse(given.get("max_task_retries", ast.Constant(0))) != "0":
            yield f"{name}(max_task_retries=...)"
        elif name.startswith("numpy.random."):
            yield from {name} - KEYED
        elif name.startswith("torch.") and last in GLOBAL_STATE and not seeding:
            yield name
        elif name.startswith("torch.") and last in DRAWS and "generator" not in given:
            yield f"{name} without a generator"


def scanned():
    folders = (ROOT, REPOSITORY / "experiments")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@pytest.mark.parametrize(
    "path", scanned(), ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_nothing_unsafe_or_unrepeatable_is_called(path):
    tree = ast.parse(path.read_text())
    allowed = {"seeding": path == SEEDING_ALLOWED, "starting": path == STARTS_RAY}
    assert list(unsafe(tree, **allowed)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from random import shuffle",
        "import yaml.reader",
        "eval(text)",
        "torch.load(path)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.random.rand(3)",
        "np.random.default_rng()",
        "torch.manual_seed(0)",
        "torch.random.fork_rng()",
        "torch.cuda.manual_seed(0)",
        "torch.randn(3)",
        "ray.init(num_cpus=2)",
        "Worker.options(max_restarts=0, max_task_retries=-1)",
        "ray.remote(max_task_retries=n)",
    ],
)
def test_an_unsafe_line_is_found(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=False)",
        "np.random.Generator(np.random.Philox(key=0))",
        "torch.randn(3, generator=generator)",
        "generator.manual_seed(0)",
        "subprocess.run(['ls'])",
        "re.compile(pattern)",
        "model.eval()",
        "Worker.options(max_task_retries=0)",
    ],
)
def test_a_safe_line_passes(line):
    assert not list(unsafe(ast.parse(line)))
