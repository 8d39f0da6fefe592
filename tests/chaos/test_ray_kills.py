"""Workers killed in every round and phase, together, in a row and at random times."""

import pytest
from ray_jobs import JOB, ROUGH, After, clean, hooked, kill, on_ray, worker_processes

from dfl_unlearn.engine.backends.fault_hook import PHASES
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.errors import ResourceError
from dfl_unlearn.rng import RngTree

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@pytest.fixture(scope="module", autouse=True)
def session():
    with ray_session(3) as running:
        yield running


def some(purpose, key, n):
    return int(RngTree(0).numpy("audit", request=purpose, round=key).integers(n))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("round_", range(1, JOB.rounds + 1))
def test_a_worker_killed_in_a_round(monkeypatch, round_, phase):
    which = some(phase, round_, 3)
    there = hooked(monkeypatch, f"worker:{round_}:{phase}:{which}")
    assert there.info["execution"]["rebuilt"] == 1
    assert there.digest == clean().digest


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("round_", [1, 8, 11, 19, 30])
def test_a_worker_killed_while_the_network_fails_itself(monkeypatch, round_, phase):
    there = hooked(monkeypatch, f"worker:{round_}:{phase}:1", config=ROUGH)
    assert there.info["execution"]["rebuilt"] == 1
    assert there.digest == clean(ROUGH).digest


@pytest.mark.parametrize("phase", PHASES)
def test_all_workers_killed_at_once(monkeypatch, phase):
    there = hooked(monkeypatch, f"worker:13:{phase}")
    assert there.info["execution"]["rebuilt"] >= 1
    assert there.digest == clean().digest


@pytest.mark.parametrize("phase", PHASES)
def test_two_workers_killed_in_consecutive_rounds(monkeypatch, phase):
    there = hooked(monkeypatch, f"worker:14:{phase}:0", f"worker:15:{phase}:2")
    assert there.info["execution"]["rebuilt"] == 2
    assert there.digest == clean().digest


def test_a_worker_killed_five_times_in_one_round(monkeypatch):
    there = hooked(monkeypatch, "worker:12:before-compute:1:5")
    assert there.info["execution"]["rebuilt"] == 5
    assert there.digest == clean().digest


def test_a_worker_killed_six_times_in_one_round_ends_the_run(monkeypatch):
    with pytest.raises(
        ResourceError, match=r"^round 12: the workers of blocks 2, 3 died 6 times"
    ):
        hooked(monkeypatch, "worker:12:before-compute:1:6")


@pytest.mark.parametrize("case", range(20))
def test_a_worker_killed_from_outside_at_a_random_time(monkeypatch, case):
    # Rounds of about 20 ms; the blow falls somewhere in the 30 or while rows are sent.
    def strike():
        found = worker_processes()
        kill(found[some("victim", case, 3) % len(found)])

    blow = After(
        1 + some("round", case, 28),
        strike,
        wait=some("wait", case, 1000) / 1000 * 0.06,
    )
    on_ray()  # all three are there
    there = hooked(monkeypatch, f"delay:25:{case}", callbacks=[blow])
    blow.thread.join()
    assert there.digest == clean().digest
