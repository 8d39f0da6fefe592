"""Cases side by side on worker processes that are kept from case to case.

A worker is a fresh interpreter with one thread. It is told a folder and a
configuration as JSON and answers with what came of it. One that dies takes only its own
case with it; one whose program dies ends by itself. Workers leave the terminal's
process group, so that Ctrl-C reaches the program alone, which then stops them.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from dfl_unlearn import _stopping
from dfl_unlearn.errors import ResourceError
from dfl_unlearn.sweeps.cases import run_case
from dfl_unlearn.sweeps.failures import Failure, described
from dfl_unlearn.sweeps.plan import PlannedCase

LOOK_S = 0.5
"""Seconds between two looks at the clock while workers work."""

_STILLBORN = 3  # workers in a row that end before they can take a case
_PATIENCE_S = _stopping.GRACE_S + 5.0
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


TaskOf = Callable[[PlannedCase], dict[str, Any]]


class Ended(NamedTuple):
    """A case that ended.

    Attributes:
        case: The case.
        seconds: What it took.
        failure: What ended it; None if it is complete.
    """

    case: PlannedCase
    seconds: float
    failure: Failure | None = None


@dataclass
class _Worker:
    """A process and what it works on."""

    process: Any
    pipe: Connection
    ready: bool = False
    dead: bool = False
    case: PlannedCase | None = None
    began: float = 0.0


def side_by_side(
    cases: Sequence[PlannedCase], jobs: int, task_of: TaskOf
) -> Iterator[Ended | None]:
    """Run cases on ``jobs`` processes.

    Args:
        cases: What to run; begun in this order.
        jobs: Number of processes, at least 1.
        task_of: Gives the arguments of ``run_case``.

    Yields:
        Every case as it ends, and None now and then while all work.

    Raises:
        ResourceError: If no worker can begin at all.
    """
    left = deque(cases)
    workers: list[_Worker] = []
    stillborn = 0
    try:
        while left or any(worker.case for worker in workers):
            busy = sum(worker.case is not None for worker in workers)
            while len(workers) < min(jobs, busy + len(left)):
                workers.append(_start())
            for worker in workers:
                if left and worker.ready and worker.case is None:
                    _give(worker, left.popleft(), task_of)
            heard = wait([worker.pipe for worker in workers], timeout=LOOK_S)
            for worker in [worker for worker in workers if worker.pipe in heard]:
                ended = _hear(worker)
                stillborn = 0 if worker.ready else stillborn + 1
                if worker.dead:
                    workers.remove(worker)
                    worker.pipe.close()
                if stillborn == _STILLBORN:
                    raise ResourceError(
                        "jobs: must start worker processes, got "
                        f"{worker.process.exitcode} from the last {stillborn} before "
                        "they took a case; a program that runs a sweep with jobs > 1 "
                        "must be a file and do so under if __name__ == '__main__':, "
                        "or use jobs=1"
                    )
                if ended is not None:
                    yield ended
            if not heard:
                yield None
    finally:
        _stop(workers)


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with _one_thread(), _without_interrupts():
        process = context.Process(target=_work, args=(there,), daemon=True)
        process.start()
    there.close()
    return _Worker(process, here)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started meanwhile load their BLAS with one thread.

    Yields:
        Nothing.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back here, and in a new process until it is in its own group.

    Yields:
        Nothing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _give(worker: _Worker, case: PlannedCase, task_of: TaskOf) -> None:
    worker.case, worker.began = case, time.monotonic()
    with suppress(OSError):  # one that has died is noticed where it is heard
        worker.pipe.send_bytes(json.dumps(task_of(case)).encode())


def _hear(worker: _Worker) -> Ended | None:
    """Take what a worker says, or note that it died.

    Args:
        worker: Has said something, or has died.

    Returns:
        Its case, if that has ended.
    """
    case, seconds = worker.case, time.monotonic() - worker.began
    try:
        answer = json.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError):
        worker.process.join()
        worker.dead = True
        code = worker.process.exitcode
        return None if case is None else _death(case, code, seconds)
    worker.ready, worker.case = True, None
    if case is None:
        return None
    return Ended(case, seconds) if answer is None else failed(case, seconds, *answer)


def failed(
    case: PlannedCase, seconds: float, error: str, message: str, exit_code: int
) -> Ended:
    """Return the end of a case that failed."""
    failure = Failure(
        case=case.name,
        point=case.point,
        seed=case.seed,
        error=error,
        message=message,
        exit_code=exit_code,
        seconds=seconds,
    )
    return Ended(case, seconds, failure)


def _death(case: PlannedCase, code: int, seconds: float) -> Ended:
    try:
        how = signal.Signals(-code).name
    except ValueError:
        how = f"exit code {code}"
    message = (
        f"the worker process was ended by {how}; if the machine was short of memory, "
        "use fewer jobs, and try again with retry_failed"
    )
    return failed(case, seconds, how, message, ResourceError.exit_code)


def _stop(workers: Sequence[_Worker]) -> None:
    """End all workers; one in a case may write a checkpoint before."""
    for worker in workers:
        if not worker.ready or worker.case is not None:
            worker.process.terminate()
        worker.pipe.close()  # one that waits for a case takes this as the end
    until = time.monotonic() + _PATIENCE_S
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection) -> None:
    """Be a worker: take cases until the pipe is closed."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_program, daemon=True).start()
    logging.getLogger("dfl_unlearn").addHandler(logging.NullHandler())
    try:
        with _stopping.stopped_by_signals(), suppress(EOFError, OSError):
            pipe.send_bytes(b"null")
            while True:
                task = json.loads(pipe.recv_bytes())
                answer: Any = None
                try:
                    run_case(**task)
                except Exception as error:
                    answer = described(error)
                pipe.send_bytes(json.dumps(answer).encode())
    except _stopping.StoppedError as stop:
        sys.exit(stop.exit_code)


def _end_with_program() -> None:
    """End this process when the one that started it does, however that ended."""
    program = multiprocessing.parent_process()
    assert program is not None
    wait([program.sentinel])
    os._exit(1)
