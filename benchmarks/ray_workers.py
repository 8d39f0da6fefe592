"""Ray workers against one, and the automatic choice against both engines.

First table: seconds per round on a ring, softmax regression and an MLP, 1,000 peers
with 200 samples of 784 floats, one reshuffled epoch in batches of 32 per round. The
inline engine, one Ray worker and two take their rounds in turn, in one program.

Second table: whole runs, the start of Ray included, on a grid of sizes, each the better
of two; ``auto`` must not fall below 0.95 times the better of ``inline`` and ``ray``.

    python benchmarks/ray_workers.py              # the tables of docs/benchmarks.md
    python benchmarks/ray_workers.py --skip-grid --jobs softmax --rounds 5
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
PRESET = os.environ.pop("OPENBLAS_CORETYPE", None)  # see benchmarks/engine.py

from engine import BATCH, RATE, make_data, model_of

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.auto import Auto
from dfl_unlearn.engine.backends.contract import Backend, EngineSetup
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.backends.ray import RaySharded
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import initial_state
from dfl_unlearn.engine.threads import blas_report, limited_threads
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology

AIMS = {"softmax": 1.6, "mlp": 1.6}
# peers, rounds, epochs per round
GRID = (
    (64, 200, 1.0),
    (400, 100, 1.0),
    (400, 300, 1.0),
    (1000, 40, 1.0),
    (1000, 160, 1.0),
)


def started(backend: Backend, job: str, data: PeerData, rounds: int, epochs: float):
    """Return a backend that is ready for its first round."""
    config = SimulationConfig(
        rounds=rounds,
        local=LocalSteps(epochs=epochs, batch_size=BATCH, learning_rate=RATE),
        record=RecordPlan(parts=frozenset({"gradient_norms"})),
    )
    model, rng = model_of(job), RngTree(0)
    setup = EngineSetup(
        schedule=load_topology("ring", n=data.n),
        data=data,
        model=model,
        config=config,
        rng=rng,
    )
    backend.start(setup, initial_state(model, data.n, config, rng))
    return backend


def on_ray(workers: int) -> RaySharded:
    # Copies for recovery are taken rarely here, as in a long run.
    return RaySharded(
        ExecutionConfig(engine="ray", workers=workers, checkpoint_every=25)
    )


def per_round(jobs: list[str], peers: int, rounds: int) -> None:
    print(f"{'job':8} {'peers':>5} {'inline':>10} {'1 worker':>10} {'2 workers':>10}")
    with ray_session(3):
        for job in jobs:
            data = make_data(peers)
            sides = [
                started(b, job, data, 10_000, 1.0)
                for b in (Inline(), on_ray(1), on_ray(2))
            ]
            for t in range(2):
                for side in sides:
                    side.advance(t)
            times = []
            for t in range(2, 2 + rounds):
                times.append([])
                for side in sides:
                    began = time.perf_counter()
                    side.advance(t)
                    times[-1].append(time.perf_counter() - began)
            inline, one, two = (statistics.median(c) for c in zip(*times, strict=True))
            ratio = statistics.median(b / c for _, b, c in times)
            met = "met" if ratio >= AIMS[job] else "MISSED"
            print(
                f"{job:8} {peers:5d} {inline * 1e3:7.1f} ms {one * 1e3:7.1f} ms "
                f"{two * 1e3:7.1f} ms  one / two {ratio:.2f} "
                f"(inline / two {statistics.median(a / c for a, _, c in times):.2f})  "
                f"aim {AIMS[job]:g}: {met}",
                flush=True,
            )
            for side in sides:
                side.close()


def whole_run(name: str, data: PeerData, rounds: int, epochs: float) -> float:
    """Return the seconds of a run, from nothing to the gathered state."""
    execution = ExecutionConfig(engine="ray", workers=2)
    backend: Backend = Inline()
    if name == "ray":
        backend = RaySharded(execution)
    elif name == "auto":
        backend = Auto(replace(execution, engine="auto"))
    began = time.perf_counter()
    try:
        started(backend, "softmax", data, rounds, epochs)
        for t in range(rounds):
            backend.advance(t)
        backend.gather()
    finally:
        backend.close()
    return time.perf_counter() - began


def grid(sizes: tuple[tuple[int, int, float], ...]) -> None:
    names = ("inline", "ray", "auto")
    heads = "".join(f"{name:>10}" for name in names)
    print(f"{'peers':>5} {'rounds':>6}{heads}  better/auto")
    for peers, rounds, epochs in sizes:
        data = make_data(peers)
        runs = [
            [whole_run(name, data, rounds, epochs) for name in names] for _ in range(2)
        ]
        inline, ray, auto = (min(taken) for taken in zip(*runs, strict=True))
        ratio = min(inline, ray) / auto
        met = "met" if ratio >= 0.95 else "MISSED"
        print(
            f"{peers:5d} {rounds:6d}{inline:8.1f} s{ray:8.1f} s{auto:8.1f} s"
            f"  {ratio:.2f}  aim 0.95: {met}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default="softmax,mlp")
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-grid", action="store_true")
    args = parser.parse_args()
    if PRESET:
        print(f"OPENBLAS_CORETYPE={PRESET} was set and is ignored here")
    with limited_threads(1):
        per_round(args.jobs.split(","), args.peers, args.rounds)
        if not args.skip_grid:
            grid(GRID)
        print("BLAS:", blas_report())


if __name__ == "__main__":
    main()
