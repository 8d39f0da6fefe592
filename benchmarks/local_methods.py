"""One step of a method for one model against the same step in plain torch.

A method's step works on one flat vector; plain torch has one tensor per parameter of
the module. Prints the microseconds of both, medians of the same run in turn, and their
ratio, for two optimizers and batch sizes.

    python benchmarks/local_methods.py
"""

import argparse
import itertools
import statistics
import time

import numpy as np
import torch
from torch import nn

from dfl_unlearn import ForgetRequest
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalTask
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=1e-3, momentum=0.9, weight_decay=5e-4)
ADAMW = LocalOptimizer(kind="adamw", learning_rate=1e-4, weight_decay=0.05)


def flat_step(module: nn.Module, spec: LocalOptimizer, batch: TensorBatch):
    model = FlatModel.from_module(module, "cross-entropy")
    task = LocalTask(
        model=model,
        params=model.init(RngTree(0)),
        forget=batch,
        retain=batch,
        forget_rows=np.arange(1),
        retain_rows=np.arange(1),
        request=ForgetRequest.samples(peer=0, indices=[0]),
        num_classes=10,
    )
    work = LocalWork(task, RngTree(0))
    optimizer = work.optimizer(spec)

    def step() -> None:
        loss = work.losses(batch).mean()
        work.step(optimizer, work.gradient(loss, len(batch)), "retain")

    return step


def plain_step(module: nn.Module, spec: LocalOptimizer, batch: TensorBatch):
    kind = torch.optim.SGD if spec.kind == "sgd" else torch.optim.AdamW
    fields = {"momentum": spec.momentum} if spec.kind == "sgd" else {}
    optimizer = kind(
        module.parameters(),
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        **fields,
    )

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(batch.inputs), batch.labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    for rows in (16, 128):
        batch = TensorBatch(
            torch.rand(rows, 64, generator=draws),
            torch.randint(10, (rows,), generator=draws),
        )
        for spec in (SGD, ADAMW):
            layers = [64, 128, 64, 10]
            parts: list[nn.Module] = []
            for a, b in itertools.pairwise(layers):
                parts += [nn.Linear(a, b), nn.ReLU()]
            module = nn.Sequential(*parts[:-1])
            steps = flat_step(module, spec, batch), plain_step(module, spec, batch)
            took: tuple[list[float], list[float]] = ([], [])
            for k in range(args.steps + 20):
                for step, times in zip(steps, took, strict=True):
                    began = time.perf_counter()
                    step()
                    if k >= 20:
                        times.append(1e6 * (time.perf_counter() - began))
            flat, plain = (statistics.median(times) for times in took)
            print(
                f"{rows:>4} rows, {spec.kind:<5} flat {flat:6.0f} us, plain "
                f"{plain:6.0f} us, ratio {flat / plain:.2f}"
            )


if __name__ == "__main__":
    main()
