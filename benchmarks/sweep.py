"""Small cases side by side against one process: cases per second, and their ratio.

Both are measured in this run, in turn, on the same cases in fresh folders, start of the
workers and tables included; and it is checked that digests and rows are the same.

    python benchmarks/sweep.py --cases 200 --jobs 2
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.sweeps import Sweep, run_sweep

BASE = {
    "topology": {"use": "ring", "n": 8},
    "model": {"use": "logistic"},
    "training": {"rounds": 20},
    "forget": [{"kind": "samples", "peer": 3, "fraction": 0.1}],
    "unlearning": [{"use": "newton-fisher"}, {"use": "fine-tune"}],
}
RATES = [0.05, 0.1]


def sweep_of(cases: int) -> Sweep:
    return Sweep(
        base=BASE,
        axes={"training.local.learning_rate": RATES},
        seeds=range(cases // len(RATES)),
    )


def measured(cases: int, folder: Path, jobs: int):
    began = time.perf_counter()
    table = run_sweep(sweep_of(cases), folder, jobs)
    seconds = time.perf_counter() - began
    print(f"jobs={jobs}: {seconds:6.1f} s, {cases / seconds:5.2f} cases/s", flush=True)
    rows = [row for row in table.rows if row["metric"] != "cost-wall-seconds"]
    digests = [case.digest for case in SweepView.open(folder).cases]
    return seconds, digests, sorted(repr(dict(row)) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    seconds, same = {1: 0.0, args.jobs: 0.0}, True
    with tempfile.TemporaryDirectory() as place:
        run_sweep(sweep_of(2), Path(place) / "warm")  # libraries are loaded
        for turn in range(args.turns):
            found = {
                jobs: measured(args.cases, Path(place) / f"{jobs}-{turn}", jobs)
                for jobs in seconds
            }
            for jobs, (spent, *_) in found.items():
                seconds[jobs] += spent
            same &= found[1][1:] == found[args.jobs][1:]
            print(f"ratio {found[1][0] / found[args.jobs][0]:.2f}", flush=True)
    print(
        f"ratio of all {args.turns} turns {seconds[1] / seconds[args.jobs]:.2f}, "
        f"results are {'the same' if same else 'NOT the same'}"
    )
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
