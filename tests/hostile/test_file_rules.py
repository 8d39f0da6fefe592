"""Files: outputs stay below the runs folder, links are refused, secrets are private."""

import os
import stat
import subprocess
import sys

import pytest

from dfl_unlearn.cli import main
from dfl_unlearn.errors import ConfigError, InvalidArgumentError, UnsafeFormatError
from dfl_unlearn.store.folder import RunFolder

EXPERIMENT = """
name = "x"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
per_class = 20
[model]
l2 = 0.1
[training]
rounds = 60
[training.local]
batch_size = "none"
learning_rate = 0.5
[[forget]]
kind = "samples"
peer = 1
fraction = 0.2
[[unlearning]]
use = "rr-du"
hops = 20
[report]
figures = ["png"]
"""
PRIVATE = ("ledger.jsonl", ".safetensors")


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A runs folder, written under the widest umask, with a finished run ``x``."""
    root = tmp_path_factory.mktemp("finished")
    (root / "exp.toml").write_text(EXPERIMENT)
    before = os.umask(0)
    try:
        assert command("run", root / "exp.toml", "--runs", root / "runs") == 0
    finally:
        os.umask(before)
    return root


def test_a_run_writes_below_its_own_folder_only(finished):
    assert sorted(os.listdir(finished)) == ["exp.toml", "runs"]
    assert os.listdir(finished / "runs") == ["x"]


def test_ledgers_and_states_are_for_the_owner_only(finished):
    seen = set()
    for path in (finished / "runs").rglob("*"):
        if path.is_dir():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        private = path.name.endswith(PRIVATE) and path.name != "weights.safetensors"
        if private:
            assert mode == 0o600, path
            seen.add(path.name)
        else:
            assert mode in (0o644, 0o600), path
        assert not mode & 0o022, path
    assert {"ledger.jsonl", "final.safetensors", "state.safetensors"} <= seen


def test_no_file_of_a_run_is_a_link_or_runs(finished):
    for path in (finished / "runs").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or not path.stat().st_mode & 0o111


@pytest.mark.parametrize(
    "rel",
    ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a/./b", "a\0b", "a\nb"],
)
def test_no_name_leads_out_of_a_run_folder(finished, rel, tmp_path):
    folder = RunFolder.create(tmp_path, "y")
    with pytest.raises(InvalidArgumentError, match="inside the run folder"):
        folder.write_text(rel, "x")
    with pytest.raises(InvalidArgumentError, match="inside the run folder"):
        folder.read_bytes(rel)
    assert os.listdir(tmp_path) == ["y"]


def test_request_and_protocol_names_cannot_be_paths(finished, tmp_path, capsys):
    before = sorted(finished.rglob("*"))
    (tmp_path / "r.toml").write_text(
        'kind = "samples"\npeer = 1\nfraction = 0.1\nrequest_id = "../../evil"\n'
    )
    code = command("unlearn", finished / "runs/x", "--request", tmp_path / "r.toml")
    assert code == 2
    assert "request_id: must match [A-Za-z0-9]" in capsys.readouterr().err
    assert sorted(finished.rglob("*")) == before
    assert os.listdir(tmp_path) == ["r.toml"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "a/b", "con", "", "x" * 300, "a\n", "a\0", "-x", ".x"]
)
def test_a_run_folder_of_a_bad_name_is_never_made(tmp_path, name):
    with pytest.raises(ConfigError, match="name: must match"):
        RunFolder.create(tmp_path / "runs", name)
    assert os.listdir(tmp_path) == []


# --- links --------------------------------------------------------------------------


@pytest.fixture
def own(finished, tmp_path):
    """A copy of the finished run that a test may spoil, and a place to protect."""
    import shutil

    shutil.copytree(finished / "runs", tmp_path / "runs")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/marker").write_text("mine")
    return tmp_path


def untouched(root):
    assert os.listdir(root / "outside") == ["marker"]
    assert (root / "outside/marker").read_text() == "mine"


def test_a_link_in_place_of_a_run_is_refused(own, capsys):
    (own / "runs/x").rename(own / "outside/x")
    (own / "runs/x").symlink_to(own / "outside/x")
    words = ["--runs", own / "runs"]
    before = sorted((own / "outside").rglob("*"))
    for command_words in (
        ["report", "x"],
        ["ledger", "x"],
        ["unlearn", "x", "--peer=1", "--all", "--protocol=retrain"],
        ["audit", "x"],
    ):
        assert command(*command_words, *words) == 2
        told = capsys.readouterr().err
        assert "UnsafeFormatError" in told
        assert "symbolic link" in told
    assert sorted((own / "outside").rglob("*")) == before


def test_a_link_where_a_run_would_go_is_refused(own, capsys):
    (own / "exp.toml").write_text(EXPERIMENT.replace('"x"', '"new"'))
    (own / "runs/new").symlink_to(own / "outside")
    assert command("run", own / "exp.toml", "--runs", own / "runs") == 2
    assert "UnsafeFormatError" in capsys.readouterr().err
    untouched(own)


@pytest.mark.parametrize(
    "place",
    ["figures", "tables", "state", "record", "influence", "outcomes", "reference"],
)
def test_a_folder_inside_a_run_that_is_a_link_is_refused(own, capsys, place):
    inside = own / "runs/x" / place
    if not inside.exists():
        pytest.skip(f"this run has no {place}")
    inside.rename(own / "outside/moved")
    inside.symlink_to(own / "outside/moved")
    before = {p: p.stat().st_mtime_ns for p in (own / "outside").rglob("*")}
    codes = [
        command("report", "x", "--runs", own / "runs"),
        command(
            *("unlearn", "x", "--peer=1", "--all", "--protocol=retrain", "--commit"),
            *("--no-reference", "--runs", own / "runs"),
        ),
    ]
    told = capsys.readouterr().err
    assert 2 in codes, told
    assert "symbolic link" in told
    assert {p: p.stat().st_mtime_ns for p in (own / "outside").rglob("*")} == before


@pytest.mark.parametrize(
    "place",
    [
        "report.html",
        "tables/metrics.csv",
        "tables/metrics.parquet",
        "results.jsonl",
        "config.json",
        "manifest.json",
        "ledger.jsonl",
        "lock",
    ],
)
def test_a_file_inside_a_run_that_is_a_link_is_never_written_through(own, place):
    (own / "runs/x" / place).unlink()
    (own / "runs/x" / place).symlink_to(own / "outside/marker")
    if place.startswith(("report", "tables")):
        assert command("report", "x", "--runs", own / "runs") == 2
    command(
        *("unlearn", "x", "--peer=1", "--all", "--protocol=retrain", "--commit"),
        *("--no-reference", "--runs", own / "runs"),
    )
    untouched(own)


def test_a_link_as_page_or_figure_is_replaced_and_not_followed(own):
    figure = own / "runs/x/figures/topology.png"
    figure.unlink()
    figure.symlink_to(own / "outside/marker")
    (own / "page.html").symlink_to(own / "outside/marker")
    page = ["--out", own / "page.html", "--runs", own / "runs"]
    assert command("report", "x", *page) == 0
    untouched(own)
    assert not (own / "page.html").is_symlink()
    assert not figure.is_symlink()


def test_a_planted_temporary_file_is_not_followed(own):
    folder = RunFolder(own / "runs/x")
    planted = folder.root / f".config.json.tmp-{os.getpid()}"
    planted.symlink_to(own / "outside/marker")
    folder.write_text("config.json", "{}")
    untouched(own)
    assert (folder.root / "config.json").read_text() == "{}"


def test_a_link_is_refused_by_class(own):
    folder = RunFolder(own / "runs/x")
    (folder.root / "link").symlink_to(own / "outside")
    for rel in ("link", "link/marker", "link/new"):
        with pytest.raises(UnsafeFormatError, match=r"link: must be a plain file"):
            folder.write_text(rel, "x")
        with pytest.raises(UnsafeFormatError, match=r"link: must be a plain file"):
            folder.read_bytes(rel)
    untouched(own)


# --- files that would run code --------------------------------------------------------


def test_a_pickle_given_as_anything_is_never_opened(tmp_path):
    """A .pt that would touch a marker when loaded, given wherever a file is taken."""
    plant = (
        "import os, pickle, sys\n"
        "class Bomb:\n"
        "    def __reduce__(self): return os.system, ('touch marker',)\n"
        "for name in sys.argv[1:]: pickle.dump(Bomb(), open(name, 'wb'))\n"
    )
    names = ["m.pt", "m.pth", "m.pkl", "m.joblib", "m.npz", "m.npy", "m.safetensors"]
    names += ["m.toml", "m.json", "m.graphml", "m.gml", "m.edges", "m.gpickle"]
    subprocess.run([sys.executable, "-c", plant, *names], cwd=tmp_path, check=True)
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for name in names:
            (tmp_path / "exp.toml").write_text(
                f'[topology]\nuse = "{name}"\n[training]\nrounds = 1\n'
            )
            assert command("run", "exp.toml") == 2
            (tmp_path / "exp.toml").write_text(
                f'[data]\nuse = "arrays"\nfile = "{name}"\n[training]\nrounds = 1\n'
            )
            assert command("run", "exp.toml") == 2
            assert command("run", name) == 2
    finally:
        os.chdir(here)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "exp.toml"])
