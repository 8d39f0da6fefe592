"""Ray workers: the same bits as in one process, whatever dies; loopback only."""

import os
import signal
import socket
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from networks import blobs

from dfl_unlearn.engine import figures
from dfl_unlearn.engine.backends import auto
from dfl_unlearn.engine.backends.ray_runtime import check_version, ray_session
from dfl_unlearn.engine.backends.ray_sockets import (
    check_loopback,
    listening,
    ray_sockets,
)
from dfl_unlearn.engine.backends.ray_split import split_blocks
from dfl_unlearn.engine.backends.ray_worker import Key, Worker
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import (
    InsecureRayError,
    InvalidArgumentError,
    NumericalError,
    RayVersionError,
    ResourceError,
    StaleStateError,
)
from dfl_unlearn.topology.files import load_topology

DATA = blobs([int(s) for s in np.random.default_rng(1).integers(5, 70, 64)])
TOPOLOGY = load_topology("random-regular", n=64, degree=4, seed=0)
MOMENTUM = SimulationConfig(
    rounds=10,
    local=LocalSteps(epochs=1.0, batch_size=16, momentum=0.8, learning_rate=0.05),
    evaluate_every=4,
)


@pytest.fixture(scope="module")
def session():
    before = {
        (c.laddr.ip, c.laddr.port)
        for c in psutil.Process().net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    }
    with ray_session(3) as running:
        yield running, before


def on_ray(config, workers, model="logistic", **fields):
    execution = ExecutionConfig(engine="ray", workers=workers, **fields)
    return simulate(TOPOLOGY, DATA, model, config, execution=execution)


@pytest.mark.ray
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_one_digest_for_inline_and_any_number_of_workers(session, model):
    here = simulate(TOPOLOGY, DATA, model, MOMENTUM)
    for workers in (1, 2, 3):
        there = on_ray(MOMENTUM, workers, model)
        assert there.digest == here.digest
        np.testing.assert_array_equal(
            there.record.gradient_norms, here.record.gradient_norms
        )
        assert there.record.checkpoints.keys() == here.record.checkpoints.keys()
        for t, state in here.record.checkpoints.items():
            assert torch.equal(there.record.checkpoints[t], state)
        owned = [w["blocks"] for w in there.info["execution"]["workers"]]
        assert sorted(block for blocks in owned for block in blocks) == [0, 1, 2, 3]
        assert len(owned) == workers
        assert all(owned)
        pids = {w["pid"] for w in there.info["execution"]["workers"]}
        assert len(pids - {os.getpid()}) == workers


def test_one_bit_of_one_parameter_changes_the_digest():
    run = simulate(TOPOLOGY, DATA, "logistic", MOMENTUM)
    arithmetic = run.info["arithmetic"]
    assert run.digest == figures.run_digest(run.state.params, run.history, arithmetic)
    flipped = run.state.params.clone()
    flipped.view(torch.int32)[17, 3] ^= 1
    assert float((flipped - run.state.params).abs().max()) < 1e-6
    assert run.digest != figures.run_digest(flipped, run.history, arithmetic)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", ["atc", "cta"])
def test_private_rounds_give_the_same_bits_and_charge_alike(session, form, workers):
    trainer = DpGossip(rate=0.3, form=form)
    config = SimulationConfig(rounds=6, trainer=trainer, evaluate_every=0)
    here = simulate(TOPOLOGY, DATA, "mlp", config)
    there = on_ray(config, workers, "mlp")
    assert there.digest == here.digest
    assert there.ledger.entries == here.ledger.entries


@pytest.mark.ray
@pytest.mark.parametrize("trainer", [DSgd(form="cta"), GradientTracking()])
def test_other_trainers_give_the_same_bits_too(session, trainer):
    config = SimulationConfig(
        rounds=6, trainer=trainer, local=LocalSteps(batch_size=8), evaluate_every=0
    )
    here, there = simulate(TOPOLOGY, DATA, "logistic", config), on_ray(config, 2)
    assert there.digest == here.digest
    assert there.state.slots.keys() == here.state.slots.keys()
    for name, rows in here.state.slots.items():
        assert torch.equal(there.state.slots[name], rows)


class Alternating:
    """A ring in even rounds, a denser network in odd ones."""

    n, connected_within, stochastic = 64, 1, TOPOLOGY.stochastic

    def __init__(self):
        self.networks = load_topology("ring", n=64), TOPOLOGY

    def at(self, t):
        return self.networks[t % 2]


@pytest.mark.ray
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_changing_network_is_followed_whenever_the_state_is_looked_at(session, every):
    """A look between rounds once hid from the workers that the network had changed."""
    config = replace(MOMENTUM, schedule=Alternating(), evaluate_every=every)
    here = simulate(TOPOLOGY, DATA, "logistic", config)
    assert on_ray(config, 2).digest == here.digest


class Killer:
    """Kills one worker, as the system would, after some rounds."""

    def __init__(self, rounds):
        self.rounds = set(rounds)
        self.killed = []

    def on_round(self, info):
        if info.round in self.rounds:
            workers = [
                p
                for p in psutil.Process().children(recursive=True)
                if "".join(p.cmdline()[:1]).startswith("ray::Worker")
            ]
            victim = workers[info.round % len(workers)]
            os.kill(victim.pid, signal.SIGKILL)
            self.killed.append(victim.pid)


@pytest.mark.ray
def test_a_killed_worker_changes_no_bit(session):
    here = simulate(TOPOLOGY, DATA, "logistic", MOMENTUM)
    killer = Killer([3])
    there = simulate(
        TOPOLOGY,
        DATA,
        "logistic",
        MOMENTUM,
        execution=ExecutionConfig(engine="ray", workers=2, checkpoint_every=2),
        callbacks=(killer,),
    )
    assert len(killer.killed) == 1
    assert there.info["execution"]["rebuilt"] == 1
    assert there.digest == here.digest


@pytest.mark.ray
def test_every_socket_is_on_loopback(session):
    _, before = session
    sockets = ray_sockets(before)
    assert len(sockets) >= 4
    check_loopback(sockets)


@pytest.mark.ray
def test_errors_of_training_come_through_as_they_are(session):
    config = replace(MOMENTUM, local=LocalSteps(learning_rate=1e30, momentum=0.9))
    with pytest.raises(NumericalError, match="became non-finite in round"):
        on_ray(config, 2)


@pytest.mark.ray
def test_a_session_says_how_many_workers_fit(session):
    with pytest.raises(ResourceError, match="workers: must be <= 3"):
        on_ray(MOMENTUM, 4)


@pytest.mark.ray
def test_auto_moves_to_ray_in_the_middle_without_changing_a_bit(session, monkeypatch):
    monkeypatch.setattr(auto, "START_SECONDS", -1.0)
    monkeypatch.setattr(auto.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    moved = simulate(
        TOPOLOGY, DATA, "logistic", MOMENTUM, execution=ExecutionConfig(engine="auto")
    )
    assert moved.info["execution"]["engine"] == "ray"
    assert len(moved.info["execution"]["workers"]) == 2
    here = simulate(TOPOLOGY, DATA, "logistic", MOMENTUM)
    assert moved.digest == here.digest
    np.testing.assert_array_equal(
        moved.record.gradient_norms, here.record.gradient_norms
    )
    assert torch.equal(moved.record.initial, here.record.initial)


def test_auto_stays_inline_for_a_short_run():
    run = simulate(
        TOPOLOGY, DATA, "logistic", MOMENTUM, execution=ExecutionConfig(engine="auto")
    )
    assert run.info["execution"] == {"engine": "inline"}


def test_a_worker_without_the_asked_rows_refuses():
    worker = Worker(1)
    with pytest.raises(StaleStateError, match=r"holds None, asked for \('a', 2, 7"):
        worker.begin(Key("a", 2, 7), None)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 9])
def test_every_worker_gets_blocks_and_about_equal_work(workers):
    config = SimulationConfig(local=LocalSteps(epochs=1.0), block_peers=8)
    cut = split_blocks(DATA.sizes, config, workers)
    np.testing.assert_array_equal(np.concatenate(cut), np.arange(8))
    assert len(cut) == min(workers, 8)
    assert min(map(len, cut)) >= 1
    skewed = np.array([1000, *[1] * 63])
    cut = split_blocks(skewed, config, workers)
    assert min(map(len, cut)) >= 1
    assert len(cut[0]) == (8 if workers == 1 else 1)


@pytest.mark.parametrize("version", ["2.51.9", "1.13.0"])
def test_an_old_ray_is_refused(version):
    with pytest.raises(RayVersionError, match=f"2.52 or later, got {version}"):
        check_version(version)
    check_version("2.52.0")
    check_version("3.0.0.dev0")


def test_a_socket_beyond_loopback_is_named():
    check_loopback({("127.0.0.1", 1), ("::1", 2), ("::ffff:127.0.0.9", 3)})
    for host in ("0.0.0.0", "10.1.2.3", "::", "::ffff:10.1.2.3"):
        with pytest.raises(InsecureRayError, match=f"listens on {host}:33279"):
            check_loopback({("127.0.0.1", 1), (host, 33279)})


def test_sockets_of_this_process_are_seen():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert server.getsockname() in listening(psutil.Process())
        assert server.getsockname() not in ray_sockets({server.getsockname()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "spark"}, "engine: must be one of inline, ray, auto"),
        ({"workers": 2}, "workers: must be 1 with engine='inline', got 2"),
        ({"engine": "ray", "workers": 0}, "workers: must be .* got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: must be .* got 0"),
        ({"max_block_retries": -1}, "max_block_retries: must be .* got -1"),
        ({"block_timeout_s": 0}, "block_timeout_s: must be .* got 0"),
    ],
)
def test_execution_settings_are_checked(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ExecutionConfig(**fields)
