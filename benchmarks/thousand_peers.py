"""1,000 peers on a ring, softmax regression on MNIST, 60 rows each: seconds and memory.

Prints the engine's seconds beside those of the same arithmetic done peer by peer with
torch modules, in the same process, and the peak memory of the engine's run alone.

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


def plain_round(modules, optimizers, inputs, labels, batch: int) -> float:
    """Return the seconds of one step of every module, in a Python loop."""
    import torch

    began = time.perf_counter()
    for i, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
        rows = torch.randperm(60)[:batch]
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
    began = time.perf_counter()
    run = simulate(
        load_topology("ring", n=args.peers),
        data,
        model="logistic",
        config=SimulationConfig(
            rounds=args.rounds, local=LocalSteps(learning_rate=0.1, batch_size=32)
        ),
    )
    seconds = time.perf_counter() - began
    evaluations = len(run.history.rounds)
    print(
        f"{args.rounds} rounds and {evaluations} evaluations of all peers on 10,000 "
        f"images: {seconds:.1f} s, peak {peak():.2f} GB, mean accuracy "
        f"{run.history.accuracy[-1].mean():.4f}"
    )
    began = time.perf_counter()
    simulate(
        run.topology,
        data,
        run.model,
        SimulationConfig(
            rounds=args.rounds,
            evaluate_every=0,
            local=LocalSteps(learning_rate=0.1, batch_size=32),
        ),
    )
    alone = time.perf_counter() - began
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
        f"engine with one evaluation {alone:.1f} s; plain loop without mixing and "
        f"evaluation {plain * args.rounds:.1f} s: ratio {plain * args.rounds / alone:.2f}"
    )


if __name__ == "__main__":
    main()
