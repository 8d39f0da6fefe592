"""Peak memory of training beside its estimate, each size in a fresh process.

Prints, per size, what the process held before, the estimate of what comes, the measured
peak and the ratio peak / estimate: of everything, and of what came alone. With Ray the
processes of the run are added up, shared pages counted in parts (PSS), every 50 ms.

    python benchmarks/memory.py            # all sizes, about two minutes
    python benchmarks/memory.py logistic-1000
"""

import argparse
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    """One run: synthetic rows of MNIST's shape, a ring."""

    peers: int
    model: str
    rows: int = 60
    rounds: int = 20
    test: int = 2000
    options: dict[str, Any]
    workers: int = 0
    folder: bool = False


MLP = {"hidden": (64,)}
SIZES = {
    "mlp-300": Size(peers=300, model="mlp", rows=20, rounds=6, test=200, options=MLP),
    "logistic-1000": Size(peers=1000, model="logistic", options={}),
    "mlp-1000": Size(peers=1000, model="mlp", options=MLP),
    "logistic-5000": Size(peers=5000, model="logistic", rows=20, options={}),
    "logistic-1000-stored": Size(peers=1000, model="logistic", options={}, folder=True),
    "mlp-1000-stored": Size(peers=1000, model="mlp", options=MLP, folder=True),
    "logistic-1000-ray": Size(peers=1000, model="logistic", options={}, workers=2),
    "mlp-1000-ray": Size(peers=1000, model="mlp", options=MLP, workers=2),
}


def data_for(size: Size):
    """Return uint8 images of random bytes, the same for every peer's share."""
    import torch

    from dfl_unlearn import PeerData
    from dfl_unlearn.rng import RngTree

    draw = RngTree(0).numpy("data-split")

    def part(rows: int):
        images = draw.integers(0, 256, (rows, 28, 28), dtype="uint8")
        return torch.from_numpy(images), torch.from_numpy(draw.integers(0, 10, rows))

    peers = [part(size.rows) for _ in range(size.peers)]
    return PeerData.from_tensors(peers, part(size.test), num_classes=10)


class Peak:
    """The largest sum of proportional set sizes of this process and its children."""

    def __init__(self, every: float = 0.05) -> None:
        self.bytes, self._done, self._every = 0, threading.Event(), every
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._done.wait(self._every):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.bytes = max(self.bytes, total)


def own_peak() -> int:
    """Return the peak resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs /proc: Linux only")


def one(name: str) -> dict[str, Any]:
    """Train one size in this process and return its figures."""
    from dfl_unlearn import SimulationConfig, load_topology, simulate
    from dfl_unlearn.engine.config import ExecutionConfig
    from dfl_unlearn.engine.memory import training_memory
    from dfl_unlearn.models.zoo import models

    size = SIZES[name]
    topology = load_topology("ring", n=size.peers)
    data = data_for(size)
    model = models.build(
        size.model, input_shape=(28, 28), num_classes=10, **size.options
    )
    config = SimulationConfig(rounds=size.rounds)
    execution = (
        ExecutionConfig(engine="ray", workers=size.workers)
        if size.workers
        else ExecutionConfig()
    )
    estimate = training_memory(
        data, model, config, execution, stored=size.folder, topology=topology
    )
    print(estimate, file=sys.stderr)
    with TemporaryDirectory() as place:
        options = {"folder": Path(place) / "run"} if size.folder else {}
        if size.workers:
            with Peak() as peak:
                simulate(topology, data, model, config, execution=execution, **options)
            measured = max(peak.bytes, own_peak())
        else:
            simulate(topology, data, model, config, execution=execution, **options)
            measured = own_peak()
    return {"held": estimate.held, "estimate": estimate.total, "peak": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SIZES, []], metavar="size")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(one(args.names[0])))
        return
    print(
        f"{'size':<22}{'held':>8}{'estimate':>10}{'peak':>8}{'ratio':>8}"
        f"{'of what came':>14}   (MB)"
    )
    for name in args.names or SIZES:
        done = subprocess.run(
            [sys.executable, __file__, "--inside", name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        held, estimate, peak = found["held"], found["estimate"], found["peak"]
        print(
            f"{name:<22}{held / 1e6:>8.0f}{estimate / 1e6:>10.0f}{peak / 1e6:>8.0f}"
            f"{peak / estimate:>8.2f}{(peak - held) / (estimate - held):>14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
