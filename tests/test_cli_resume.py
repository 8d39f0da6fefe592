"""``dfl-unlearn resume`` as a user types it, after a signal and after damage."""

import json
import signal
import subprocess
import sys
import time

import pytest

from dfl_unlearn import cli

FILE = """
name = "long"
[topology]
use = "ring"
n = 6
[data]
use = "gaussian-classes"
[training]
rounds = {rounds}
[execution]
checkpoint_every = 20
"""


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    return stop.value.code


@pytest.fixture
def file(tmp_path):
    (tmp_path / "long.toml").write_text(FILE.format(rounds=60))
    return tmp_path / "long.toml"


def run(file, tmp_path, *words):
    return call("run", file, *words, "--runs", tmp_path, "--no-report", "--json")


def test_a_finished_run_is_trained_further(file, tmp_path, capsys):
    assert run(file, tmp_path) == 0
    first = json.loads(capsys.readouterr().out)
    assert call("resume", "long", "--runs", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == first["digest"]
    assert call("resume", "long", "--runs", tmp_path, "--rounds", 90) == 0
    out = capsys.readouterr().out
    assert "TRAINED  6 peers, 90 rounds" in out
    assert run(file, tmp_path, "training.rounds=90", "--name", "straight") == 0
    straight = json.loads(capsys.readouterr().out)["digest"]
    assert f"Digest: {straight}" in out
    assert call("resume", "long", "--runs", tmp_path, "--rounds", 10) == 2
    assert "ConfigMismatchError: training.rounds is 10" in capsys.readouterr().err
    assert call("report", "long", "--runs", tmp_path) == 0


def test_a_signal_ends_with_its_code_and_says_how_to_go_on(tmp_path, capsys):
    (tmp_path / "long.toml").write_text(FILE.format(rounds=2_000_000))
    words = ["run", "long.toml", "--runs", "runs", "--no-report"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dfl_unlearn", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(tmp_path.glob("runs/long/ckpt/round-*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert "resume with: dfl-unlearn resume" in err
    done = int(err.split("after round ")[1].split()[0])
    newest = max(p.name for p in tmp_path.glob("runs/long/ckpt/round-*"))
    assert newest == f"round-{done:06d}"
    assert call("resume", "long", "--runs", tmp_path / "runs", "--drop-line", 1) == 2
    assert "must" in capsys.readouterr().err


def test_a_damaged_line_is_dropped_on_request(file, tmp_path, capsys):
    assert run(file, tmp_path) == 0
    results = tmp_path / "long/results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join([lines[0][:9] + b"X" + lines[0][10:], *lines[1:]]))
    capsys.readouterr()
    assert call("resume", "long", "--runs", tmp_path) == 6
    assert "--drop-line 1" in capsys.readouterr().err
    assert call("resume", "long", "--runs", tmp_path, "--drop-line", 1) == 0
    assert "line 1 is left out" in capsys.readouterr().out


def test_memory_that_runs_out_is_no_bug(monkeypatch, capsys):
    def hungry(*args):
        raise MemoryError

    monkeypatch.setattr(cli, "registry_of", hungry)
    assert call("list") == 5
    assert "out of memory" in capsys.readouterr().err
