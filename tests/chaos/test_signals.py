"""SIGINT and SIGTERM at random times: code, no process left, the same digest later."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

FILE = """
name = "a"
[topology]
use = "ring"
n = 12
[data]
use = "gaussian-classes"
[training]
rounds = {rounds}
block_peers = 4
[execution]
checkpoint_every = 50
"""


def command(tmp_path, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "dfl_unlearn", *map(str, words), "--runs", "runs"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(tmp_path, *words):
    out, err = (process := command(tmp_path, *words, "--json")).communicate()
    assert process.returncode == 0, err
    return json.loads(out)["digest"]


def stop_once(tmp_path, signum, delay, words):
    """Send one signal; whatever had been started is gone within 10 seconds.

    Returns:
        Whether it came in time.
    """
    process = command(tmp_path, "run", "a.toml", "--no-report", *words)
    try:
        return ended(tmp_path / "runs" / words[1], process, signum, delay)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ended(folder, process, signum, delay):
    """Send the signal some time after the run began, or after its start if < 0."""
    while delay >= 0 and not (folder / "manifest.json").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(abs(delay))
    if process.poll() is not None:
        process.communicate()
        return False
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    done = (folder / "done.json").is_file()  # and only Python itself had to end
    assert process.returncode == 128 + signum or done, err
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    if "after round" in err:
        assert "resume with: dfl-unlearn resume" in err
    return process.returncode == 128 + signum


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("words", "number", "rounds"),
    [((), 10, 12_000), (("--engine", "ray", "--workers", "3"), 3, 1500)],
    ids=["inline", "ray"],
)
def test_signals_at_random_times(tmp_path, words, number, rounds):
    (tmp_path / "a.toml").write_text(FILE.format(rounds=rounds))
    began = time.monotonic()
    clean = digest(tmp_path, "run", "a.toml", "--name", "clean", "--no-report")
    seconds = time.monotonic() - began
    rng = np.random.default_rng(5)
    stopped = 0
    for k in range(number):
        name = f"k{k}"
        signum = (signal.SIGINT, signal.SIGTERM)[k % 2]
        # The first while Python, torch or Ray are still being loaded.
        delay = -0.9 * seconds if k == 0 else float(rng.uniform(0, 0.5 * seconds))
        stopped += stop_once(tmp_path, signum, delay, ("--name", name, *words))
        if (tmp_path / "runs" / name / "manifest.json").is_file():
            assert digest(tmp_path, "resume", name) == clean
        else:
            assert digest(tmp_path, "run", "a.toml", "--name", name) == clean
    assert stopped >= number // 2
