"""One input tried: what counts as a failure, and the report of many.

A reader must return a value or raise a ``DflUnlearnError`` whose exit code says that
the input is to blame. A failure is any other exception, more than 2 s of processor
time, memory beyond the limit (also one that a broad ``except`` turned into an error),
a file written outside the scratch folder, a process, a connection, or an unpickled
class. Warnings are fine.
"""

import logging
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

from dfl_unlearn.errors import DflUnlearnError

SECONDS = 2.0
MEMORY = 512 * 2**20
_LONGEST = 20_000  # letters of a message


@dataclass(frozen=True)
class Bench:
    """A target, set up in a scratch folder.

    Attributes:
        seeds: Valid and hand-made inputs.
        draw: Makes an input.
        tried: Hands an input to the readers of the package; what is returned when an
            accepted value does not mean what was given is raised as ``Misread``.
    """

    seeds: list[bytes]
    draw: Callable[[Random], bytes]
    tried: Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: For ``--target``.
        share: Its part of a run over all targets, relative to the others'.
        build: Makes the bench below a folder.
    """

    name: str
    share: float
    build: Callable[[Path], Bench]


class Misread(Exception):
    """A reader accepted an input and made something else of it."""


class TooSlow(BaseException):
    """An input took more processor time than it may."""


class Forbidden(BaseException):
    """An input made the package do what no input may."""


@dataclass
class Failure:
    """An input that broke the rule.

    Attributes:
        target: Its target.
        index: Its number, -1 for a file.
        signature: Where it broke; equal ones are kept once.
        detail: The exception, and the way to it.
        data: The input.
        times: How often the signature was met.
    """

    target: str
    index: int
    signature: str
    detail: str
    data: bytes
    times: int = 1


@dataclass
class Report:
    """What many inputs of one target did."""

    target: str
    inputs: int = 0
    values: int = 0
    errors: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        """Count a failure, kept where its signature is new."""
        known = self.failures.setdefault(failure.signature, failure)
        if known is not failure:
            known.times += 1

    def line(self) -> str:
        """Return the report as one line."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return (
            f"{self.target:<14} {self.inputs:>9,} inputs  {self.values:>8,} values  "
            f"{self.errors:>9,} errors  {rate:>7,.0f}/s  slowest "
            f"{1000 * self.slowest:>5.0f} ms  {len(self.failures)} failures"
        )


def input_of(bench: Bench, target: str, seed: int, index: int) -> bytes:
    """Return input number ``index``: the seeds themselves first, then damaged ones."""
    if index < len(bench.seeds):
        return bench.seeds[index]
    return bench.draw(Random(f"{seed}/{target}/{index}"))


def attempt(
    bench: Bench, data: bytes, *, timed: bool = True
) -> tuple[str, str, str, float]:
    """Try one input; ``timed`` only where ``guarded`` handles the signal.

    Returns:
        ``value``, ``error`` or ``failure``; of a failure its signature and detail;
        and the seconds of processor time.
    """
    begin = time.process_time()
    found = ("value", "", "")
    _watch.touched = False
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS if timed else 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bench.tried(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except DflUnlearnError as error:
        found = _judged(error)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        found = ("failure", *_described(error))
    spent = time.process_time() - begin
    if found[0] != "failure" and spent > SECONDS:
        found = ("failure", "too slow", f"{spent:.1f} s of processor time")
    return *found, spent


def _judged(error: DflUnlearnError) -> tuple[str, str, str]:
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "failure", *_described(cause)
        cause = cause.__cause__ or cause.__context__
    bad = ""
    if error.exit_code == 1:
        bad = f"{type(error).__name__} ends with code 1, which is a bug's"
    elif not text.strip():
        bad = f"{type(error).__name__} says nothing"
    elif len(text) > _LONGEST:
        bad = f"{type(error).__name__} has a message of {len(text)} letters"
    if bad:
        return (
            "failure",
            f"{bad.split(' of ')[0]} {_place(error)}",
            bad + ": " + text[:300],
        )
    return "error", "", ""


def _described(error: BaseException) -> tuple[str, str]:
    detail = "".join(traceback.format_exception(error, limit=-12))
    name = type(error).__name__
    if isinstance(error, Misread):
        name = f"Misread: {str(error).partition(':')[0]}"
    return f"{name} {_place(error)}", detail[-4000:]


def _place(error: BaseException) -> str:
    """Return the package's innermost line that the error went through."""
    place = "outside the package"
    for frame in traceback.extract_tb(error.__traceback__):
        if "dfl_unlearn" in frame.filename and "/tests/" not in frame.filename:
            name = frame.filename.rpartition("dfl_unlearn/")[2]
            place = f"in {name}:{frame.lineno} {frame.name}"
    return place


# --- what an input must not do ------------------------------------------------


class _Watch:
    root: str | None = None
    touched = False

    def seen(self, event: str, given: tuple[object, ...]) -> None:
        if self.root is None:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(flags, int) and flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            ):
                self._inside(path)
        elif event in _WRITES:
            folders = [one for one in given[1:] if isinstance(one, int) and one >= 0]
            if not (folders and event in _BESIDE):  # named beside an open folder
                self._inside(given[0])
                if event == "os.rename":
                    self._inside(given[1])
        elif event in _NEVER:
            raise Forbidden(f"{event} {given!r:.200}")

    def _inside(self, path: object) -> None:
        if isinstance(path, int):
            return
        place = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if place == os.devnull:
            return
        self.touched = True
        if not place.startswith(str(self.root) + os.sep):
            raise Forbidden(f"wrote outside the folder: {place}")


_WRITES = frozenset(
    ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
)
_BESIDE = frozenset(("os.remove", "os.rmdir", "os.rename"))
_NEVER = frozenset(
    (
        "os.symlink",
        "os.link",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "subprocess.Popen",
        "socket.connect",
        "socket.bind",
        "pickle.find_class",
    )
)
_watch = _Watch()
_hooked = False


@contextmanager
def unwatched():
    """Let a target prepare its own files."""
    root, _watch.root = _watch.root, None
    try:
        yield
    finally:
        _watch.root = root


def touched() -> bool:
    """Tell whether the last input wrote, removed or renamed a file."""
    return _watch.touched


@contextmanager
def guarded(root: Path, *, memory: bool = True):
    """Watch this process: files below ``root`` only, and the limit of memory."""
    global _hooked
    if not _hooked:
        sys.addaudithook(lambda event, given: _watch.seen(event, given))
        _hooked = True
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, _too_slow)
    _watch.root = os.path.realpath(root)
    quiet = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        # What is written is read at once: no need to wait for the disk.
        with mock.patch.object(os, "fsync", return_value=None):
            yield
    finally:
        _watch.root = None
        logging.disable(quiet)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def _too_slow(*_: object) -> None:
    raise TooSlow(f"more than {SECONDS:g} s of processor time")


# --- many inputs --------------------------------------------------------------


def tried_many(
    target: Target,
    bench: Bench,
    scratch: Path,
    *,
    seed: int,
    indices: range,
    stop_at: float = float("inf"),
    began: Callable[[int, bytes], None] = lambda index, data: None,
    memory: bool = True,
) -> Report:
    """Try the inputs of some numbers; the seeds are tried before them."""
    report = Report(target.name)
    for data in bench.seeds:  # libraries are loaded before memory is limited
        attempt(bench, data, timed=False)
    start = time.perf_counter()
    with guarded(scratch, memory=memory), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in indices:
            if time.time() > stop_at:
                break
            data = input_of(bench, target.name, seed, index)
            began(index, data)
            kind, signature, detail, spent = attempt(bench, data)
            report.inputs += 1
            report.slowest = max(report.slowest, spent)
            if kind == "failure":
                report.add(Failure(target.name, index, signature, detail, data))
            elif kind == "value":
                report.values += 1
            else:
                report.errors += 1
    report.seconds = time.perf_counter() - start
    return report


def shrunk(bench: Bench, data: bytes, signature: str, tries: int = 400) -> bytes:
    """Return a shorter input with the same signature, found by leaving parts out."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at, smaller = 0, False
        while at < len(data) and tries > 0:
            tries -= 1
            part = data[:at] + data[at + size :]
            if attempt(bench, part)[1] == signature:
                data, smaller = part, True
            else:
                at += size
        if not smaller:
            size //= 2
    return data
