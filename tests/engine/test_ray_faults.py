"""What the Ray engine does when something dies, is silent or has no memory."""

import os
import signal

import psutil
import pytest
from ray_jobs import ROUGH, After, clean, hooked, kill, on_ray, worker_processes

from dfl_unlearn.engine.backends import ray as backend
from dfl_unlearn.engine.backends import ray_crew
from dfl_unlearn.engine.backends.fault_hook import FAULT, Death, Faults, read_faults
from dfl_unlearn.engine.backends.ray_life import Session
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.backends.ray_split import memory_kills
from dfl_unlearn.errors import (
    ConfigError,
    ResourceError,
    StalledError,
)


@pytest.fixture(scope="module")
def session():
    with ray_session(4) as running:
        yield running


@pytest.mark.ray
@pytest.mark.parametrize(
    ("entries", "rebuilt"),
    [
        (["worker:17:after-compute:0"], 1),
        (["worker:1:before-compute:2", "worker:30:during-return:1"], 2),
    ],
    ids=["middle", "first and last"],
)
def test_a_death_in_a_round_changes_no_bit(session, monkeypatch, entries, rebuilt):
    there = hooked(monkeypatch, *entries)
    assert there.info["execution"]["rebuilt"] == rebuilt
    assert there.digest == clean().digest


@pytest.mark.ray
def test_a_death_in_a_network_that_fails_itself_changes_no_bit(session, monkeypatch):
    there = hooked(monkeypatch, "worker:16:after-compute:1", config=ROUGH)
    assert there.info["execution"]["rebuilt"] == 1
    assert there.digest == clean(ROUGH).digest != clean().digest


@pytest.mark.ray
@pytest.mark.slow
def test_a_block_may_lose_its_worker_so_often_and_not_once_more(session, monkeypatch):
    there = hooked(monkeypatch, "worker:7:before-compute:1:2", max_block_retries=2)
    assert there.info["execution"]["rebuilt"] == 2
    assert there.digest == clean().digest
    with pytest.raises(
        ResourceError, match=r"^round 7: the workers of blocks 2, 3 died 3 times"
    ) as caught:
        hooked(monkeypatch, "worker:7:before-compute:1:3", max_block_retries=2)
    assert caught.value.exit_code == 5
    assert "ActorDiedError" in type(caught.value.__cause__).__name__


@pytest.mark.ray
def test_a_run_takes_over_the_workers_of_the_one_before(session):
    def pids(run):
        return {worker["pid"] for worker in run.info["execution"]["workers"]}

    first, second = on_ray(), on_ray()
    assert pids(second) == pids(first)
    assert second.digest == first.digest == clean().digest
    assert len(session.idle) >= 3
    for process in worker_processes():  # dead ones are not taken over
        kill(process)
    third = on_ray()
    assert not pids(third) & pids(first)
    assert third.info["execution"]["rebuilt"] == 0
    assert third.digest == clean().digest


@pytest.mark.ray
def test_no_finished_block_for_too_long_ends_the_run(session):
    stopped = []

    def stop():
        stopped.extend(worker_processes())
        for process in stopped:
            process.suspend()

    try:
        with pytest.raises(
            StalledError,
            match=r"^no block finished for 2 s \(round 5, waiting for blocks "
            r"0, 1, 2, 3, 4, 5; workers alive: 3\)",
        ) as caught:
            on_ray(callbacks=[After(4, stop)], stall_timeout_s=2.0)
        assert caught.value.exit_code == 7
    finally:
        for process in stopped:
            if process.is_running():
                process.resume()


@pytest.mark.ray
@pytest.mark.slow
def test_a_late_worker_is_replaced(session):
    def stop():
        os.kill(worker_processes()[-1].pid, signal.SIGSTOP)

    on_ray()  # all workers are there
    there = on_ray(callbacks=[After(4, stop)], block_timeout_s=3.0)
    assert there.digest == clean().digest


class Scarce:
    """Lets workers die of too little memory in some tries of a round."""

    def __init__(self, monkeypatch, session, times):
        self.left, self.session = times, session
        self.counts = []
        step = backend.RaySharded._one

        def one(engine, t):
            found = step(engine, t)
            if t == 5 and self.left:
                self.left -= 1
                self.counts.append(len(engine._cut))
                raise session.ray.exceptions.OutOfMemoryError("node is 97 % full")
            return found

        monkeypatch.setattr(backend.RaySharded, "_one", one)


@pytest.mark.ray
@pytest.mark.slow
def test_too_little_memory_halves_the_workers_twice_and_changes_no_bit(
    session, monkeypatch
):
    scarce = Scarce(monkeypatch, session, 2)
    there = on_ray(workers=4)
    assert scarce.counts == [4, 2]
    assert [w["blocks"] for w in there.info["execution"]["workers"]] == [[*range(6)]]
    assert there.digest == clean().digest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 2])
def test_too_little_memory_for_one_worker_ends_the_run_with_advice(
    session, monkeypatch, workers
):
    scarce = Scarce(monkeypatch, session, 9)
    # 2 copies of 2 rows of 200 float32, and a sixth of 438 rows of 19 float32 + int64.
    with pytest.raises(
        ResourceError,
        match=r"^round 6: memory ran out with 1 workers, after . halvings; a block "
        r"of 2 peers needs 0.00933 MB besides its process: lower block_peers",
    ) as caught:
        on_ray(workers=workers)
    assert scarce.counts == {4: [4, 2, 1], 2: [2, 1]}[workers]
    assert isinstance(caught.value.__cause__, session.ray.exceptions.OutOfMemoryError)


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_the_kernel_ended_counts_as_too_little_memory(
    session, monkeypatch
):
    kills = [7]
    monkeypatch.setattr(backend, "memory_kills", lambda: kills[0])

    def strike():
        kills[0] += 1
        kill(worker_processes()[-1])

    on_ray(workers=4)
    there = on_ray(workers=4, callbacks=[After(3, strike)])
    assert len(there.info["execution"]["workers"]) == 2
    assert there.digest == clean().digest


def test_kills_of_the_kernel_are_counted():
    assert memory_kills() >= 0


@pytest.mark.ray
def test_another_order_of_completion_changes_no_bit(session, monkeypatch):
    for seed in range(2):
        there = hooked(monkeypatch, f"delay:30:{seed}")
        assert there.digest == clean().digest


# --- the hook ------------------------------------------------------------------------


def test_the_hook_is_read(monkeypatch):
    monkeypatch.setenv(
        FAULT,
        "driver:3:x,worker:1:before-compute,worker:2:during-return:*:3,"
        "worker:4:after-compute:7,delay:20:abc",
    )
    assert read_faults() == Faults(
        deaths=(
            Death(round=1, phase="before-compute"),
            Death(round=2, phase="during-return", times=3),
            Death(round=4, phase="after-compute", which=7),
        ),
        delay_ms=20.0,
        seed="abc",
    )
    monkeypatch.delenv(FAULT)
    assert read_faults() == Faults()


@pytest.mark.parametrize(
    "entry",
    [
        "worker:3",
        "worker:x:before-compute",
        "worker:0:before-compute",
        "worker:3:sometime",
        "worker:3:before-compute:-1",
        "worker:3:before-compute:1:0",
        "worker:3:before-compute:1:2:3",
        "delay:soon",
    ],
)
def test_a_wrong_entry_of_the_hook_is_refused(monkeypatch, entry):
    monkeypatch.setenv(FAULT, entry)
    with pytest.raises(ConfigError, match=FAULT):
        read_faults()


@pytest.mark.parametrize("phase", ["before-compute", "after-compute", "during-return"])
def test_a_death_strikes_where_it_should_only(phase):
    faults = Faults(deaths=(Death(round=3, phase=phase, which=1, times=2),))
    struck = [
        (worker, t, attempt)
        for worker in range(3)
        for t in range(5)
        for attempt in range(4)
        if faults.strikes(worker, t, attempt, phase)
    ]
    assert struck == [(1, 2, 0), (1, 2, 1)]
    assert not faults.strikes(1, 2, 0, "another")


# --- Ray itself ---------------------------------------------------------------------


def test_ray_itself_restarts_nothing():
    assert ray_crew._RESTARTS == 0


def test_a_session_without_its_daemon_says_so():
    sleeper = psutil.Popen(["sleep", "60"])
    session = object.__new__(Session)
    process = psutil.Process(sleeper.pid)
    process.info = {"name": "raylet"}
    session._daemons, session._far, session._cause = [process], False, ""
    session._looked = 0.0
    assert session.lives()
    sleeper.kill()
    sleeper.wait()
    session._looked = 0.0
    with pytest.raises(ResourceError, match=r"Ray's raylet .* has ended") as caught:
        session.check()
    assert caught.value.exit_code == 5
    assert not session.lives()
