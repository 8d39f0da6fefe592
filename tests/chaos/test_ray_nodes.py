"""A machine of a cluster is lost, in a round and between rounds: the same bits.

The cluster is Ray's own test helper: two machines' processes on this one, all on
loopback, with short health checks so that a loss is seen in seconds.
"""

import logging
import os
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from ray_jobs import After, clean, hooked, on_ray

from dfl_unlearn.engine.backends import ray_crew, ray_runtime
from dfl_unlearn.engine.backends.ray import RaySharded
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.backends.ray_sockets import check_loopback, ray_sockets
from dfl_unlearn.errors import InsecureRayError

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

CHECKS = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
STORE = 100 * 2**20


class Machines:
    """A head with one processor and a second machine with two."""

    def __init__(self, home):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": STORE,
                "temp_dir": home,
                "_system_config": CHECKS,
            },
        )
        self.hands = ThreadPoolExecutor(1)
        self.add()

    def add(self):
        self.second = self.cluster.add_node(num_cpus=2, object_store_memory=STORE)

    def replace(self):
        """Kill every process of the second machine and bring in another one.

        In one thread that stays: a machine's processes end with the thread that
        started them.
        """
        self.hands.submit(self._replace).result(timeout=300)

    def _replace(self):
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.add()

    def join(self, **fields):
        return {
            "ray_address": self.cluster.address,
            "ray_allow_remote": True,
            **fields,
        }


@pytest.fixture(scope="module")
def machines():
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_TOKEN", "c" * 64)
    for name, value in ray_runtime._ENVIRONMENT.items():
        patch.setenv(name, value)
    import ray

    # Machines are also added from a thread, which may not set handlers.
    patch.setattr(ray._private.utils, "set_sigterm_handler", lambda handler: None)
    home = tempfile.mkdtemp(prefix="dfl-cl-")
    found = Machines(home)
    yield found
    found.cluster.shutdown()
    found.hands.shutdown()
    shutil.rmtree(home, ignore_errors=True)
    patch.undo()


@pytest.fixture(scope="module")
def session(machines):
    address = machines.cluster.address
    with ray_session(3, address=address, allow_remote=True) as running:
        yield running


def where(session):
    """Machine of each worker's process, by the processes' parents."""
    raylets = [
        p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"
    ]
    return {
        child.pid: raylet.pid
        for raylet in raylets
        for child in raylet.children()
        if "".join(child.cmdline()[:1]).startswith("ray::Worker")
    }


def test_workers_lie_on_both_machines_and_give_the_same_bits(machines, session):
    there = on_ray(**machines.join())
    pids = [w["pid"] for w in there.info["execution"]["workers"]]
    assert len({where(session)[pid] for pid in pids}) == 2
    assert there.digest == clean().digest


@pytest.mark.parametrize("round_", [5, 15, 25])
def test_a_machine_lost_in_a_round(machines, session, monkeypatch, round_):
    blow = After(round_ - 1, machines.replace, wait=0.15)
    there = hooked(
        monkeypatch, f"delay:300:{round_}", callbacks=[blow], **machines.join()
    )
    blow.thread.join()
    assert there.info["execution"]["rebuilt"] >= 1
    assert there.digest == clean().digest


def test_a_machine_lost_between_rounds(machines, session):
    there = on_ray(callbacks=[After(15, machines.replace)], **machines.join())
    assert there.info["execution"]["rebuilt"] >= 1
    assert there.digest == clean().digest


def test_a_worker_that_ray_restarted_in_silence_is_found_by_its_epoch(
    machines, session, monkeypatch, caplog
):
    """The idle case: no call is under way when the machine dies, so none fails."""
    monkeypatch.setattr(ray_crew, "_RESTARTS", -1)
    for _, actor in session.idle:
        session.ray.kill(actor)
    session.idle.clear()
    engines = []
    bring = RaySharded._bring_back

    def seen(engine):
        engines[:] = [engine]
        bring(engine)

    monkeypatch.setattr(RaySharded, "_bring_back", seen)

    def lose():
        machines.replace()
        deadline = time.monotonic() + 300
        for actor in engines[0]._crew.actors:  # until Ray has restarted all of them
            while True:
                try:
                    session.ray.get(actor.ready.remote(), timeout=60)
                    break
                except session.ray.exceptions.RayActorError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)

    with caplog.at_level(logging.WARNING, logger="dfl_unlearn"):
        there = on_ray(callbacks=[After(15, lose)], **machines.join())
    assert there.info["execution"]["rebuilt"] == 1
    assert "StaleStateError" in caplog.text
    assert there.digest == clean().digest
    for _, actor in session.idle:
        session.ray.kill(actor)
    session.idle.clear()


def test_everything_listens_on_loopback_and_nothing_serves_a_dashboard(
    machines, session
):
    sockets = ray_sockets(set())
    assert len(sockets) >= 6
    check_loopback(sockets)
    for host, port in sockets:
        answer = ask_by_http(host, port)
        assert b"dashboard" not in answer.lower(), (host, port)
        assert not answer.startswith(b"HTTP/1.1 200"), (host, port)


def ask_by_http(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(3)
        try:
            client.connect((host, port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return client.recv(65536)
        except OSError:
            return b""


def test_a_cluster_without_tokens_is_refused(machines, session, monkeypatch):
    """A second cluster, whose head answers whoever asks."""
    import subprocess
    import sys

    code = (
        "from ray.cluster_utils import Cluster; import sys, tempfile\n"
        "c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, "
        "include_dashboard=False, object_store_memory=100*2**20, "
        "temp_dir=sys.argv[1]))\n"
        "print('at', c.address, flush=True)\n"
        "sys.stdin.read()\n"
        "c.shutdown()\n"
    )
    home = tempfile.mkdtemp(prefix="dfl-op-")
    open_cluster = subprocess.Popen(
        [sys.executable, "-c", code, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    try:
        line = next(x for x in open_cluster.stdout if x.startswith("at "))
        with pytest.raises(InsecureRayError, match="answers without a token"):
            ray_runtime._check_asks_for_token(line.split()[1])
    finally:
        open_cluster.communicate("")
        shutil.rmtree(home, ignore_errors=True)
    ray_runtime._check_asks_for_token(machines.cluster.address)
