"""1,000 peers on a ring, softmax regression on MNIST, 60 rows each: seconds and memory.

Prints the engine's seconds, the peak memory of its run, and then the seconds of the
same local steps done peer by peer with torch modules in the same process.

    DFL_UNLEARN_DATA=... python benchmarks/thousand_peers.py
"""

import argparse
import resource
import time

from dfl_unlearn import PeerData, SimulationConfig, load_topology, simulate
from dfl_unlearn.engine.config import LocalSteps


def peak() -> float:
    """Return the process's peak resident memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Clock:
    """Adds up the seconds of the rounds alone."""

    seconds = 0.0

    def on_round(self, info) -> None:
        self.seconds += info.seconds


def plain_round(modules, optimizers, inputs, labels, batch: int) -> float:
    """Return the seconds of one step of every module, in a Python loop."""
    import torch

    draws = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for i, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
        rows = torch.randperm(60, generator=draws)[:batch]
        optimizer.zero_grad()
        logits = module(inputs[i, rows].float().div_(255))
        torch.nn.functional.cross_entropy(logits, labels[i, rows]).backward()
        optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    data = PeerData.load("mnist", peers=args.peers, partition="iid", seed=0)
    print(f"loaded {data.n} peers x {data.sizes[0]} rows, peak {peak():.2f} GB")
    clock = Clock()
    began = time.perf_counter()
    run = simulate(
        load_topology("ring", n=args.peers),
        data,
        model="logistic",
        config=SimulationConfig(
            rounds=args.rounds, local=LocalSteps(learning_rate=0.1, batch_size=32)
        ),
        callbacks=[clock],
    )
    seconds = time.perf_counter() - began
    print(f"{args.rounds} rounds in {clock.seconds:.1f} s, peak {peak():.2f} GB")
    print(
        f"with {len(run.history.rounds)} evaluations of all peers on 10,000 images "
        f"{seconds:.1f} s; mean accuracy {run.history.accuracy[-1].mean():.4f}"
    )
    import torch

    torch.set_num_threads(1)
    modules = [
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        for _ in range(args.peers)
    ]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in modules]
    inputs = data.store.inputs.view(args.peers, 60, 28, 28)
    labels = data.store.labels.view(args.peers, 60)
    plain = min(plain_round(modules, optimizers, inputs, labels, 32) for _ in range(3))
    print(
        f"plain loop over modules, without mixing: {plain * args.rounds:.1f} s, "
        f"{plain * args.rounds / clock.seconds:.1f} times the engine's"
    )


if __name__ == "__main__":
    main()
