"""The small run that every kill of the Ray engine is tried on."""

import os
import re
import signal
import threading
import time
from dataclasses import replace

import psutil
from networks import blobs

from dfl_unlearn.engine.backends.fault_hook import FAULT
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import (
    Delay,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    Straggler,
)
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.topology.files import load_topology

RING = load_topology("ring", n=12)
ROWS = blobs([20 + 3 * i for i in range(12)], features=19, classes=10)  # P = 200
JOB = SimulationConfig(
    rounds=30, local=LocalSteps(batch_size=8), evaluate_every=5, block_peers=2
)
# The same where peers leave, messages are lost and late, and some peers are slow.
ROUGH = replace(
    JOB,
    faults=FaultPlan(
        models=(
            MarkovChurn(p_leave=0.1, p_return=0.4),
            MessageLoss(p=0.1),
            Delay(probabilities=(0.6, 0.3, 0.1), max_staleness=3),
            Straggler(share=0.2, slowdown=3),
        )
    ),
)


_CLEAN = {}


def clean(config=JOB):
    """The run in one process that every other one must repeat bit by bit."""
    if repr(config) not in _CLEAN:
        _CLEAN[repr(config)] = simulate(RING, ROWS, "logistic", config)
    return _CLEAN[repr(config)]


def on_ray(*, config=JOB, workers=3, callbacks=(), **fields):
    execution = ExecutionConfig(
        engine="ray", workers=workers, **{"checkpoint_every": 10, **fields}
    )
    return simulate(
        RING, ROWS, "logistic", config, execution=execution, callbacks=callbacks
    )


def hooked(monkeypatch, *entries, **fields):
    monkeypatch.setenv(FAULT, ",".join(entries))
    return on_ray(**fields)


def worker_processes():
    """Processes below this one in which a worker of ours lives, oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if re.match(r"ray::Worker", "".join(process.cmdline()[:1])):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return sorted(found, key=lambda p: (p.create_time(), p.pid))


def daemon(name):
    """Ray's own process of this name below this one."""
    (found,) = [
        p for p in psutil.Process().children(recursive=True) if p.name() == name
    ]
    return found


class After:
    """Does something once, when a round is over (in this thread or beside it)."""

    def __init__(self, round_, action, *, wait=None):
        self.round, self.action, self.wait = round_, action, wait
        self.thread = None

    def on_round(self, info):
        if info.round != self.round:
            return
        if self.wait is None:
            self.action()
        else:
            self.thread = threading.Thread(target=self._later)
            self.thread.start()

    def _later(self):
        time.sleep(self.wait)
        self.action()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
