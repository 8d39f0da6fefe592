"""The driver is killed anywhere and started again: each time the clean run's digest."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dfl_unlearn._kill_hook import FAULT
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.store.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
import program

STEPS = ("create", "write", "fsync", "rename", "parent", "purge")
KILLED = -signal.SIGKILL


def forked(folder, *, fault="", kill_after=None, pause=0.0):
    """Run the program in a child process.

    Returns:
        0, or minus the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        try:
            os.environ[FAULT] = fault
            program.work(folder, pause=pause)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(70)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), code
    return code


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Digest and seconds of a run that nobody disturbs."""
    began = time.monotonic()
    run = program.work(tmp_path_factory.mktemp("clean") / "a")
    return run, time.monotonic() - began


def check(folder, clean):
    """Finish the run; it is the clean one, its books are in order."""
    run = program.work(folder)
    assert run.digest == clean.digest
    assert [e.state for e in run.ledger.entries] == ["committed"]
    ledger = (folder / "ledger.jsonl").read_bytes()
    assert ledger == (clean.folder / "ledger.jsonl").read_bytes()
    rows = [r["round"] for r in RunFolder(folder).records() if r["type"] == "round"]
    assert sorted(rows) == [5, 10, 15, 20, 25, 30]
    assert not list((folder / "ckpt").glob("*.tmp-*"))
    return run


def repeated(folder):
    """How many rounds each start of the program computed again at its beginning."""
    lines = (folder.with_name("rounds.txt")).read_text().split("\n")[:-1]
    pids = [line.split()[0] for line in lines]
    rounds = [int(line.split()[1]) for line in lines]
    return [
        rounds[k - 1] - rounds[k] + 1
        for k in range(1, len(rounds))
        if pids[k] != pids[k - 1] and rounds[k] <= rounds[k - 1]
    ]


def check_books(folder):
    """Whatever was released is reserved or committed in a ledger that verifies."""
    for path in folder.rglob("ledger.jsonl"):
        PrivacyLedger.load(path).verify()
    for outcome in folder.glob("outcomes/*/outcome.json"):
        entries = PrivacyLedger.load(outcome.with_name("ledger.jsonl")).entries
        assert {e.state for e in entries} <= {"reserved", "committed"}
        assert entries


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "done",
    [
        16,  # what a committed run goes on from
        *(pytest.param(r, marks=pytest.mark.chaos) for r in (4, 8, 12, 20, 24, 28)),
    ],
)
def test_a_kill_inside_the_writing_of_a_checkpoint(tmp_path, clean, done, step):
    folder = tmp_path / "a"
    assert forked(folder, fault=f"checkpoint:{done}:{step}") == KILLED
    check(folder, clean[0])
    assert all(again <= program.EVERY for again in repeated(folder))


def one_kill(folder, clean, share):
    """Kill at a time that is log-uniform over the length of a run; go on."""
    run, seconds = clean
    pause = 0.01
    length = seconds + 30 * pause
    after = float(np.exp(np.log(0.002) + share * np.log(1.1 * length / 0.002)))
    code = forked(folder, kill_after=after, pause=pause)
    check_books(folder)
    check(folder, run)
    assert all(again <= program.EVERY for again in repeated(folder))
    return code


def test_kills_at_random_times(tmp_path, clean):
    shares = np.random.default_rng(1).uniform(0.6, 1, 3)
    codes = [one_kill(tmp_path / f"{k}/a", clean, x) for k, x in enumerate(shares)]
    assert KILLED in codes


@pytest.mark.chaos
def test_40_kills_at_random_times(tmp_path, clean):
    shares = np.random.default_rng(2).uniform(0, 1, 40)
    codes = []
    for k, share in enumerate(shares):
        codes.append(one_kill(tmp_path / f"{k}/a", clean, share))
        shutil.rmtree(tmp_path / f"{k}")
    assert codes.count(KILLED) >= 30


@pytest.mark.chaos
def test_a_run_that_is_killed_again_and_again(tmp_path, clean):
    rng = np.random.default_rng(3)
    kills = 0
    while forked(tmp_path / "a", kill_after=float(rng.uniform(0.02, 0.2)), pause=0.005):
        kills += 1
        check_books(tmp_path / "a")
    check(tmp_path / "a", clean[0])
    assert kills >= 3


@pytest.mark.chaos
@pytest.mark.ray
def test_a_driver_on_three_ray_workers_is_killed(tmp_path, clean):
    """Its workers and daemons end with it; the rest runs in one process."""
    script = [sys.executable, program.__file__, str(tmp_path / "a"), "ray", "0.2"]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    try:
        while not list(tmp_path.glob("a/ckpt/round-*")):
            assert process.poll() is None
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(started, timeout=240)
    assert not alive
    assert len(started) > 3
    check(tmp_path / "a", clean[0])
    assert all(again <= program.EVERY for again in repeated(tmp_path / "a"))
