"""A sweep that is killed as a whole, or told to stop, and then completed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

FILE = """
name = "a"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 300
evaluate_every = 0
[execution]
checkpoint_every = 50
[[forget]]
kind = "samples"
peer = 1
fraction = 0.25
[[unlearning]]
use = "newton-fisher"
[sweep]
seeds = [0, 1, 2]
[sweep.axes]
"training.local.steps" = [1, 2, 3, 4]
"""
CASES = 12


def start(tmp_path, name, *words):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "dfl_unlearn", "sweep", "a.toml", "--name", name),
            *("--runs", "runs", "--jobs", "2", *words),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def completed(tmp_path, name):
    out, err = (process := start(tmp_path, name, "--json")).communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def complete(folder):
    return {
        p.parent.name: p.stat().st_mtime_ns for p in folder.glob("cases/*/case.json")
    }


def stopped(tmp_path, name, signum, number):
    """Send a signal when some more cases are complete.

    Returns:
        The exit code, what it said, and the cases that were complete afterwards.
    """
    folder = tmp_path / "runs" / name
    process = start(tmp_path, name)
    try:
        before = len(complete(folder))
        while len(complete(folder)) < before + number and process.poll() is None:
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signum)
        _, err = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        return process.returncode, err, complete(folder)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def at_work(folder):
    """The processes that hold a case that is not complete."""
    found = set()
    for lock in folder.glob("cases/*/lock"):
        note = lock.read_text().split()
        if note and not (lock.parent / "case.json").is_file():
            pid = int(note[0])
            if psutil.pid_exists(pid):
                found.add(pid)
    return sorted(found)


def rows(folder):
    """The metric rows of the cases without measured seconds."""
    found = []
    for path in sorted(folder.glob("cases/*/results.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line[9:])
            if record["type"] == "metric" and record["metric"] != "cost-wall-seconds":
                found.append((path.parent.name, json.dumps(record, sort_keys=True)))
    assert len(set(found)) == len(found)
    return sorted(found)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("clean")
    (tmp_path / "a.toml").write_text(FILE)
    told = completed(tmp_path, "clean")
    return told, rows(tmp_path / "runs/clean")


def digests(told):
    assert [case["status"] for case in told["cases"]] == ["done"] * CASES
    assert told["failed"] == []
    return {case["case"]: case["digest"] for case in told["cases"]}


@pytest.mark.chaos
@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_killed_sweep_completes_and_repeats_no_finished_case(tmp_path, clean, number):
    (tmp_path / "a.toml").write_text(FILE)
    code, _, kept = stopped(tmp_path, "a", signal.SIGKILL, number)
    assert code == -signal.SIGKILL
    assert number <= len(kept) < CASES
    told = completed(tmp_path, "a")
    assert digests(told) == digests(clean[0])
    folder = tmp_path / "runs/a"
    assert rows(folder) == clean[1]
    assert kept.items() <= complete(folder).items()
    assert not (folder / "failures.jsonl").exists()


@pytest.mark.chaos
def test_a_sweep_killed_at_random_times_ends_as_one_that_was_not(tmp_path, clean):
    (tmp_path / "a.toml").write_text(FILE)
    rng = np.random.default_rng(3)
    folder, kills = tmp_path / "runs/a", 0
    while len(complete(folder)) < CASES and kills < 15:
        before = complete(folder)
        process = start(tmp_path, "a")
        try:
            process.communicate(timeout=float(rng.uniform(4, 14)))
            break  # it ended before
        except subprocess.TimeoutExpired:
            pass
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        assert not psutil.wait_procs(workers, timeout=10)[1]
        kills += 1
        assert before.items() <= complete(folder).items()
    assert kills >= 2
    assert digests(completed(tmp_path, "a")) == digests(clean[0])
    assert rows(folder) == clean[1]


@pytest.mark.chaos
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_and_the_same_command_goes_on(
    tmp_path, clean, signum
):
    (tmp_path / "a.toml").write_text(FILE)
    code, err, kept = stopped(tmp_path, "a", signum, 2)
    assert code == 128 + signum, err
    assert "the same command goes on" in err
    assert (tmp_path / "runs/a/table.csv").is_file()
    told = completed(tmp_path, "a")
    assert digests(told) == digests(clean[0])
    assert kept.items() <= complete(tmp_path / "runs/a").items()


@pytest.mark.chaos
def test_ctrl_c_of_a_terminal_reaches_the_program_alone(tmp_path, clean):
    """The signal goes to a whole process group, as a terminal sends it."""
    (tmp_path / "a.toml").write_text(FILE)
    process = subprocess.Popen(
        [sys.executable, "-m", "dfl_unlearn", "sweep", "a.toml", "--runs", "runs"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not complete(tmp_path / "runs/a"):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert digests(completed(tmp_path, "a")) == digests(clean[0])


@pytest.mark.chaos
def test_killed_workers_are_failures_with_their_signal_and_no_more(tmp_path, clean):
    (tmp_path / "a.toml").write_text(FILE)
    process = start(tmp_path, "a", "--json")
    rng = np.random.default_rng(4)
    kills = 0
    while process.poll() is None and kills < 3:
        time.sleep(float(rng.uniform(0.1, 0.5)))
        pids = at_work(tmp_path / "runs/a")
        if pids:
            with suppress(ProcessLookupError):
                os.kill(pids[int(rng.integers(len(pids)))], signal.SIGKILL)
                kills += 1
    out, err = process.communicate()
    told = json.loads(out)
    assert process.returncode in (0, 5), err
    assert {failure["error"] for failure in told["failed"]} <= {"SIGKILL"}
    assert 1 <= len(told["failed"]) <= kills
    done = [case for case in told["cases"] if case["status"] == "done"]
    assert len(done) == CASES - len(told["failed"])
    again = start(tmp_path, "a", "--json", "--retry-failed")
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert digests(json.loads(out)) == digests(clean[0])
    assert rows(tmp_path / "runs/a") == clean[1]
