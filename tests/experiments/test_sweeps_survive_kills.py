"""A sweep script that is killed goes on when started again, and repeats nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments"
SMALL = {
    "sweep_topology": (
        'families=["ring","complete"]',
        "peers=[9]",
        "seeds=[0,1,2]",
        "rounds=30",
    ),
    "sweep_privacy": (
        "epsilons=[1.0,8.0]",
        "shown_epsilon=8.0",
        "peers=4",
        "degree=2",
        "rounds=60",
        "descent_rounds=20",
        "dp_rounds=10",
        "caps=[0.001]",
        "clips=[1.0]",
    ),
}


def command(name):
    script = str(SCRIPTS / f"{name}.py")
    return [sys.executable, script, "--preset", "quick", "name=small", *SMALL[name]]


def complete(folder):
    """Path and time of everything that says that a case is done, or its results."""
    return {
        path: path.stat().st_mtime_ns
        for marker in folder.glob("runs/**/cases/*/case.json")
        for path in (marker, marker.parent / "results.jsonl")
    }


def wait_for(count, process, folder):
    """Wait until so many cases are complete."""
    until = time.monotonic() + 300
    while len(complete(folder)) < 2 * count:
        assert process.poll() is None, "the script ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.chaos
@pytest.mark.parametrize("name", sorted(SMALL))
def test_killed_twice_it_completes_without_repeating_a_finished_case(name, tmp_path):
    kept = {}
    for more in (1, 2):  # one more case, then two more
        log = (tmp_path / "log").open("w")
        with log, subprocess.Popen(command(name), cwd=tmp_path, stderr=log) as process:
            wait_for(len(kept) // 2 + more, process, tmp_path)
            os.kill(process.pid, signal.SIGKILL)
        kept |= complete(tmp_path)
        assert not list(tmp_path.glob("runs/*/small/report.html"))

    done = subprocess.run(
        command(name), cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    end = complete(tmp_path)
    assert kept.items() <= end.items()  # not a finished case was touched again
    cases = list(tmp_path.glob("runs/**/cases/*"))
    assert len(end) == 2 * len(cases) > len(kept) >= 6
    assert not list(tmp_path.glob("runs/**/failures.jsonl"))
    root = tmp_path / "runs" / name / "small"
    assert (root / "report.html").stat().st_size > 10_000
    assert list((root / "figures").glob("*.png"))

    # Once more: nothing is left to do, and the same tables come out.
    tables = {path: path.read_bytes() for path in root.rglob("*.csv")}
    again = subprocess.run(
        command(name), cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert complete(tmp_path) == end
    assert {path: path.read_bytes() for path in root.rglob("*.csv")} == tables
