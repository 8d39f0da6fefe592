"""The command ``sweep`` as a user types it."""

import json

import pytest

from dfl_unlearn import cli
from dfl_unlearn.errors import InvalidArgumentError

FILE = """
name = "rings"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 3
evaluate_every = 0
[sweep.axes]
training.local.steps = [1, 2]
"""


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "a.toml"
    place.write_text(FILE)
    return place


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    return stop.value.code


def test_a_dry_run_lists_the_cases_and_writes_nothing(file, tmp_path, capsys):
    words = ("sweep", file, "--dry-run", "--seeds", "0,1", "topology.n=4,5")
    assert call(*words, "--runs", tmp_path / "runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1] == "8 cases"
    assert lines[0].split()[1:] == ["training.local.steps=1", "topology.n=4", "seed=0"]
    assert not (tmp_path / "runs").exists()
    assert call(*words, "--json", "--runs", tmp_path / "runs") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "rings"
    point = {"training.local.steps": 1, "topology.n": 4}
    assert told["cases"][0]["point"] == point


def test_a_sweep_tells_what_it_did_and_goes_on(file, tmp_path, capsys):
    words = ("sweep", file, "--runs", tmp_path, "--jobs", 1)
    assert call(*words) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 cases are complete, 0 failed" in out
    assert "rings/table.csv" in out
    assert "Next: dfl-unlearn report rings" in out
    assert err.splitlines()[-1] == "sweep: 2 of 2 cases"
    before = (tmp_path / "rings/sweep.json").read_bytes()
    assert call(*words, "--json", "training.local.steps=1,2,3") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err == ""
    assert [case["status"] for case in told["cases"]] == ["done"] * 3
    assert told["failed"] == []
    assert (tmp_path / "rings/sweep.json").read_bytes() != before
    assert call(*words, "--quiet", "training.rounds=2") == 2
    err = capsys.readouterr().err
    assert "got another sweep" in err
    assert "base differs in training.rounds" in err


def test_the_first_failure_decides_the_exit_code(file, tmp_path, capsys):
    words = ("sweep", file, "--runs", tmp_path, "--jobs", 1, "topology.n=7,4")
    words = (*words, "training.local.steps=1", "topology.use=torus,ring")
    assert call(*words, "--mode", "zip", "--name", "b", "--json") == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [f["error"] for f in told["failed"]] == ["InvalidArgumentError"]
    assert [case["status"] == "done" for case in told["cases"]] == [False, True]
    assert "failed: " in err
    assert "topology.n: must be rows x columns" in err
    assert "--retry-failed" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "0,x"), r"--seeds: must be integers with commas.*got '0,x'"),
        (("--mode", "latin"), "--mode: must be one of grid, zip, random"),
        (("--engine", "dask"), "--engine: must be one of processes, ray"),
        (("--jobs", "0"), "jobs: must be an integer >= 1"),
    ],
)
def test_wrong_options_are_named(file, tmp_path, words, message):
    with pytest.raises(InvalidArgumentError, match=message):
        cli.app(
            ["sweep", str(file), "--runs", str(tmp_path / "r"), "--quiet", *words],
            standalone_mode=False,
        )
    assert not (tmp_path / "r").exists()


def test_a_random_sweep_from_the_command_line(file, tmp_path, capsys):
    words = ("sweep", file, "--mode", "random", "--samples", 3, "--dry-run", "--json")
    assert call(*words, "training.rounds={low=2, high=9}") == 0
    first = json.loads(capsys.readouterr().out)["cases"]
    assert len(first) == 3
    assert all(2 <= case["point"]["training.rounds"] <= 9 for case in first)


def test_a_file_never_lets_other_machines_in(file):
    from dfl_unlearn.cli_sweeps import sweep_of

    file.write_text(FILE + "[execution]\nray_allow_remote = true\n")
    options = dict.fromkeys(("name", "mode", "samples", "seeds"))
    found = sweep_of(
        file, ["execution.ray_allow_remote=true"], allow_large=True, **options
    )
    assert [c.experiment.execution.ray_allow_remote for c in found.cases()] == [
        False
    ] * 2
    assert all(c.experiment.execution.allow_large for c in found.cases())
