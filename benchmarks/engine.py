"""Seconds per round: the engine against a plain Python loop over nn.Module peers.

Both sides train the same job in the same process, round by round in turn: N peers on a
random 4-regular graph, 200 samples of 784 floats each, one reshuffled epoch of plain
SGD in batches of 32 per round, then Metropolis mixing; one thread. The plain loop is
what one writes first: a list of modules, a list of torch optimizers.

    python benchmarks/engine.py                 # the table of docs/benchmarks.md
    python benchmarks/engine.py --jobs cnn --peers 16 --rounds 3
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A preset such as Haswell makes NumPy's products up to twice as slow on newer CPUs;
# without it OpenBLAS chooses its kernels by the CPU. Both sides run without it.
PRESET = os.environ.pop("OPENBLAS_CORETYPE", None)

import numpy as np
import torch
from torch import nn

from dfl_unlearn.data.peers import PeerData, TensorBatch
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.simulator import initial_state
from dfl_unlearn.engine.threads import blas_report, limited_threads
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology

SAMPLES, BATCH, RATE = 200, 32, 0.05
JOBS = {"softmax": (16, 100, 1000), "mlp": (16, 100, 1000), "cnn": (16,)}
AIMS = {"softmax": 4.0, "mlp": 2.0, "cnn": 1.0}


def make_data(n: int) -> PeerData:
    """Return n peers with 200 rows of class-dependent Gaussians each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, size=n * SAMPLES)
    inputs = rng.standard_normal((n * SAMPLES, 784), dtype=np.float32)
    inputs += 0.3 * rng.standard_normal((10, 784), dtype=np.float32)[labels]
    store = TensorBatch(torch.from_numpy(inputs), torch.from_numpy(labels))
    return PeerData(
        store=store,
        offsets=np.arange(0, n * SAMPLES + 1, SAMPLES, dtype=np.int64),
        origin=np.arange(n * SAMPLES, dtype=np.int64),
        test=TensorBatch(store.inputs[:1], store.labels[:1]),
        num_classes=10,
        name="gaussian",
    )


def module_of(job: str) -> nn.Module:
    """Return the module of a job, of torch's own layers."""
    if job == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if job == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 10),
    )


def model_of(job: str) -> FlatModel:
    """Return the same model for the engine; the CNN is the zoo's ``small-cnn``."""
    if job == "cnn":
        return models.build("small-cnn", input_shape=(784,), num_classes=10)
    return FlatModel.from_module(module_of(job), "cross-entropy")


class PlainLoop:
    """A list of modules and a list of optimizers."""

    def __init__(self, job: str, data: PeerData, topology: Topology) -> None:
        self.draws = torch.Generator().manual_seed(0)
        self.modules = [module_of(job) for _ in range(data.n)]
        self.optimizers = [
            torch.optim.SGD(m.parameters(), lr=RATE) for m in self.modules
        ]
        self.inputs = data.store.inputs.view(data.n, SAMPLES, 784)
        self.labels = data.store.labels.view(data.n, SAMPLES)
        size = sum(p.numel() for p in self.modules[0].parameters())
        self.theta = torch.zeros(data.n, size)
        self.buffer = torch.zeros(data.n, size)
        self.weights = as_csr(topology.weights, torch.float32)

    def round(self) -> None:
        for i, module in enumerate(self.modules):
            order = torch.randperm(SAMPLES, generator=self.draws)
            for begin in range(0, SAMPLES, BATCH):
                rows = order[begin : begin + BATCH]
                self.optimizers[i].zero_grad()
                logits = module(self.inputs[i, rows])
                nn.functional.cross_entropy(logits, self.labels[i, rows]).backward()
                self.optimizers[i].step()
            with torch.no_grad():
                parts = [p.reshape(-1) for p in module.parameters()]
                torch.cat(parts, out=self.theta[i])
        mix(self.theta, self.weights, out=self.buffer)
        for i, module in enumerate(self.modules):
            nn.utils.vector_to_parameters(self.buffer[i], module.parameters())


class Engine:
    """The inline backend on the same job."""

    def __init__(self, job: str, data: PeerData, topology: Topology) -> None:
        config = SimulationConfig(
            rounds=10_000,
            local=LocalSteps(epochs=1.0, batch_size=BATCH, learning_rate=RATE),
            record=RecordPlan(parts=frozenset({"gradient_norms"})),
        )
        model, rng = model_of(job), RngTree(0)
        self.backend = Inline()
        self.backend.start(
            EngineSetup(
                schedule=topology, data=data, model=model, config=config, rng=rng
            ),
            initial_state(model, data.n, config, rng),
        )
        self.t = 0

    def round(self) -> None:
        self.backend.advance(self.t)
        self.t += 1


def seconds(work: PlainLoop | Engine) -> float:
    began = time.perf_counter()
    work.round()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--peers", type=lambda s: [int(p) for p in s.split(",")])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"{'job':8} {'peers':>5} {'plain loop':>11} {'engine':>10}  ratio (min..max)")
    if PRESET:
        print(f"OPENBLAS_CORETYPE={PRESET} was set and is ignored here")
    with limited_threads(1):
        for job in args.jobs.split(","):
            for n in args.peers or JOBS[job]:
                data = make_data(n)
                topology = load_topology("random-regular", n=n, degree=4)
                sides = PlainLoop(job, data, topology), Engine(job, data, topology)
                for side in sides:
                    side.round()  # buffers are made here
                rounds = args.rounds if n < 1000 else min(args.rounds, 3)
                pairs = [tuple(map(seconds, sides)) for _ in range(rounds)]
                ratios = [plain / ours for plain, ours in pairs]
                plain, ours = (statistics.median(p) for p in zip(*pairs, strict=True))
                ratio = statistics.median(ratios)
                met = "met" if ratio >= AIMS[job] else "MISSED"
                print(
                    f"{job:8} {n:5d} {plain * 1e3:8.1f} ms {ours * 1e3:7.1f} ms  "
                    f"{ratio:5.2f} ({min(ratios):.2f}..{max(ratios):.2f})  "
                    f"aim {AIMS[job]:g}: {met}",
                    flush=True,
                )
        print("BLAS:", blas_report())


if __name__ == "__main__":
    main()
