"""Trainings a second: many replicas of one run together against one after the other.

Both sides give the same bits, which is checked. The setting is that of the audit grid:
logistic regression of 4 numbers at 6 peers on a ring; and digits at 8 peers.

    python benchmarks/replicas.py
    python benchmarks/replicas.py --replicas 512
"""

import argparse
import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from dfl_unlearn import PeerData, SimulationConfig, load_topology, simulate
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.replicas import train_replicas
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.models.zoo import models

REPEATS = 3


def small() -> TrainedRun:
    """Return six peers with eight rows of four numbers each."""
    draw = np.random.default_rng(0)
    parts = [(draw.normal(size=(8, 4)), draw.integers(2, size=8)) for _ in range(6)]
    data = PeerData.from_tensors(parts, test=parts[0])
    return trained("ring", data, SimulationConfig(rounds=40, dtype="float64"))


def digits() -> TrainedRun:
    """Return eight peers with the digits."""
    data = PeerData.load("digits", peers=8, partition="dirichlet", alpha=0.5)
    return trained("ring", data, SimulationConfig(rounds=40))


def trained(name: str, data: PeerData, config: SimulationConfig) -> TrainedRun:
    """Return a trained logistic regression."""
    model = models.build(
        "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
    )
    config = replace(config, evaluate_every=0, local=LocalSteps(batch_size=8))
    return simulate(load_topology(name, n=data.n), data, model, config)


def main() -> None:
    """Print one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=128)
    count = parser.parse_args().replicas
    for title, run in (
        ("6 peers of 8 rows of 4 numbers", small()),
        ("digits, 8 peers", digits()),
    ):
        seeds = [run.config.seed + k for k in range(count)]
        trees = [type(run.rng)(seed) for seed in seeds]
        ratios = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            together = train_replicas(run, trees).params
            middle = time.perf_counter()
            alone = torch.stack(
                [
                    simulate(
                        run.topology,
                        run.data,
                        run.model,
                        replace(run.config, seed=seed),
                    ).state.params
                    for seed in seeds
                ]
            )
            end = time.perf_counter()
            assert torch.equal(together, alone), "not the same bits"
            ratios.append((end - middle) / (middle - began))
            rates = count / (middle - began), count / (end - middle)
        print(
            f"{title}: {rates[0]:.0f} trainings a second together, {rates[1]:.0f} one "
            f"by one, ratio {sorted(ratios)[1]:.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
