r"""Fuzzers for every file that the package reads, and for its command line.

From the root of the repository::

    python -m tests.fuzz --n 1000000                 # all targets, some minutes
    python -m tests.fuzz --target graphml --n 50000 --seed 3
    python -m tests.fuzz --seconds 60 --out failures
    python -m tests.fuzz --target graphml --replay failures/graphml-1f0c.bin

An input is a valid or hand-made one, damaged: bytes flipped, cut, repeated, tokens and
numbers put in the place of others, lines swapped, two inputs spliced, JSON edited by
key path, checksums made right again. Input k of a target under a seed is always the
same one. ``targets.py`` lists the targets and what they reach, ``harness.py`` says what
a failure is.

Every target runs in a process of its own with a limit of memory. One that hangs or
crashes is ended, its input counts as a failure, and a new process goes on behind it.
With ``--out`` a failing input is saved there, shrunk, with a line that repeats it. A
failure that was repaired moves into ``regressions/<target>/``, where
``test_fuzzed_inputs.py`` tries it for good.

Set ``TMPDIR`` to a folder in memory for speed: every input becomes a file.
"""

import argparse
import contextlib
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

_BOARD = 2**21  # bytes shared with a worker: number, length, input
_HANG = 15.0  # seconds of processor time, or ten times that on the clock, per input


def main() -> int:
    """Run the fuzzers; 1 if something failed."""
    given = _arguments()
    if given.worker:
        return _work(json.loads(given.worker))
    from fuzz.targets import TARGETS, shares

    names = given.target or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
        return 2
    if given.replay:
        return _replay(names[0], given.replay)
    counts = shares(given.n, names)
    per_second = given.seconds / sum(TARGETS[name].share for name in names) or None
    bad, total, began = 0, 0, time.monotonic()
    for name in names:
        seconds = per_second and per_second * TARGETS[name].share
        reports = _conducted(name, counts[name], given.seed, seconds)
        merged = _merged(name, reports)
        print(_line(merged), flush=True)
        for failure in merged["failures"].values():
            bad += 1
            _tell(name, failure, given.seed, given.out)
        total += merged["inputs"]
    print(f"{total:,} inputs in {time.monotonic() - began:.0f} s, {bad} failures")
    return 1 if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--n", type=int, default=20_000, help="inputs over all targets")
    parser.add_argument("--target", action="append", help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--out", type=Path, help="folder for failing inputs")
    parser.add_argument("--replay", type=Path, help="try one saved input")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the process that waits ---------------------------------------------------


def _conducted(name: str, count: int, seed: int, seconds: float | None) -> list[dict]:
    """Run one target to its end, with a new worker behind every crash."""
    reports: list[dict] = []
    start, stop_at = 0, time.time() + seconds if seconds else float("inf")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        board = Path(place) / "board"
        board.write_bytes(bytes(_BOARD))
        with board.open("r+b") as file, mmap.mmap(file.fileno(), _BOARD) as shared:
            while start < count and time.time() < stop_at:
                result = Path(place) / "result.json"
                result.unlink(missing_ok=True)
                task = {
                    "target": name,
                    "seed": seed,
                    "start": start,
                    "stop": count,
                    "stop_at": stop_at if seconds else 1e12,
                    "board": str(board),
                    "result": str(result),
                    "scratch": tempfile.mkdtemp(dir=place),
                }
                shared[:8] = struct.pack("<q", -1)
                why = _watched(task, shared)
                if result.exists() and not why:
                    reports.append(json.loads(result.read_text()))
                    break
                index, size = struct.unpack("<qq", shared[:16])
                data = bytes(shared[16 : 16 + size])
                reports.append(_crash(index, index - start, why or "no report", data))
                if index < 0:  # before the first input: nothing to go on behind
                    break
                start = index + 1
    return reports


def _watched(task: dict, shared: mmap.mmap) -> str:
    """Start a worker and wait; return why it did not end well, or an empty text."""
    log = Path(task["scratch"]) / "stderr"
    command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(task)]
    with log.open("wb") as err:
        worker = subprocess.Popen(command, stdout=err, stderr=err, cwd=ROOT)
    process = psutil.Process(worker.pid)
    index, cpu, clock = -2, 0.0, time.monotonic()
    while worker.poll() is None:
        time.sleep(0.2)
        (now,) = struct.unpack("<q", shared[:8])
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent = times.user + times.system
            if now != index:
                index, cpu, clock = now, spent, time.monotonic()
            elif now >= 0 and (
                spent - cpu > _HANG or time.monotonic() - clock > 10 * _HANG
            ):
                worker.kill()
                worker.wait()
                return f"hangs: {spent - cpu:.0f} s of processor time"
    if worker.returncode:
        said = log.read_text("utf-8", "replace")[-1500:]
        return f"ends with {worker.returncode}: {said}"
    return ""


def _crash(index: int, before: int, why: str, data: bytes) -> dict:
    signature = f"process {why[:60]}".strip()
    return {
        "inputs": max(0, before + 1),
        "values": 0,
        "errors": max(0, before),  # what a lost worker counted is not known
        "slowest": 0.0,
        "seconds": 0.0,
        "failures": {
            signature: {
                "index": index,
                "detail": why,
                "data": data.decode("latin-1"),
                "times": 1,
            }
        },
    }


def _merged(name: str, reports: list[dict]) -> dict:
    whole: dict = {"target": name, "failures": {}, "slowest": 0.0}
    for key in ("inputs", "values", "errors", "seconds"):
        whole[key] = sum(report[key] for report in reports)
    for report in reports:
        whole["slowest"] = max(whole["slowest"], report["slowest"])
        for signature, failure in report["failures"].items():
            known = whole["failures"].setdefault(signature, failure)
            if known is not failure:
                known["times"] += failure["times"]
    return whole


def _line(whole: dict) -> str:
    from fuzz.harness import Report

    fields = ("target", "inputs", "values", "errors", "slowest", "seconds")
    report = Report(**{key: whole[key] for key in fields})
    report.failures = whole["failures"]
    return report.line()


def _tell(name: str, failure: dict, seed: int, out: Path | None) -> None:
    lines = failure["detail"].strip().splitlines() or [""]
    print(f"  FAILED {failure['times']} x, input {failure['index']}: {lines[-1][:300]}")
    if out is None:
        print(
            f"    repeat: python -m tests.fuzz --target {name} --seed {seed} --out DIR"
        )
        return
    data = failure["data"].encode("latin-1")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}-{sha256(data).hexdigest()[:8]}.bin"
    file.write_bytes(data)
    file.with_suffix(".txt").write_text(failure["detail"])
    print(f"    repeat: python -m tests.fuzz --target {name} --replay {file}")


# --- the process that tries ---------------------------------------------------


def _work(task: dict) -> int:
    from fuzz.harness import attempt, guarded, shrunk, tried_many
    from fuzz.targets import TARGETS

    scratch = Path(task["scratch"])
    target = TARGETS[task["target"]]
    bench = target.build(scratch)
    with Path(task["board"]).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), _BOARD)

    def began(index: int, data: bytes) -> None:
        data = data[: _BOARD - 16]
        shared[: 16 + len(data)] = struct.pack("<qq", index, len(data)) + data

    report = tried_many(
        target,
        bench,
        scratch,
        seed=task["seed"],
        indices=range(task["start"], task["stop"]),
        stop_at=task["stop_at"],
        began=began,
    )
    began(-1, b"")
    failures = {}
    with guarded(scratch):  # what fails may take all memory or time again
        for signature, failure in report.failures.items():
            data = failure.data
            if attempt(bench, data)[1] == signature and "slow" not in signature:
                data = shrunk(bench, data, signature)
            failures[signature] = {
                "index": failure.index,
                "detail": failure.detail,
                "data": data.decode("latin-1"),
                "times": failure.times,
            }
    result = {
        "inputs": report.inputs,
        "values": report.values,
        "errors": report.errors,
        "slowest": report.slowest,
        "seconds": report.seconds,
        "failures": failures,
    }
    Path(task["result"]).write_text(json.dumps(result))
    return 0


def _replay(name: str, path: Path) -> int:
    from fuzz.harness import attempt, guarded
    from fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        bench = TARGETS[name].build(Path(place))
        for seed in bench.seeds:
            attempt(bench, seed, timed=False)
        with guarded(Path(place)):
            kind, signature, detail, spent = attempt(bench, path.read_bytes())
    print(f"{kind} after {spent:.2f} s {signature}\n{detail}")
    return int(kind == "failure")


if __name__ == "__main__":
    sys.exit(main())
