"""Cases that failed, as lines of ``failures.jsonl`` in the sweep's folder."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.errors import ResourceError, RunLockedError
from dfl_unlearn.results.sweep import CASE, CASES, FAILURES
from dfl_unlearn.results.sweep_cases import UNREADABLE
from dfl_unlearn.store.lines import LineFile
from dfl_unlearn.store.understood import understood


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended a case.

    Attributes:
        case: Its name.
        point: Axis -> value.
        seed: Its seed.
        error: Class of the error, or the signal that ended the worker.
        message: Why.
        exit_code: What the command line would have ended with.
        seconds: Time until then.
    """

    case: str
    point: Mapping[str, Any]
    seed: int
    error: str
    message: str
    exit_code: int
    seconds: float

    def __str__(self) -> str:
        """Return case and reason in one line."""
        first = self.message.split("\n")[0]
        return _validate.clean(f"{self.case}: {self.error}: {first}")


def write_failure(lines: LineFile, failure: Failure) -> None:
    """Add a line, durably."""
    lines.append(asdict(failure), durable=True)


def failed_cases(folder: str | Path) -> dict[str, Failure]:
    """Return the cases of a sweep folder that failed and were not completed since.

    Args:
        folder: E.g. ``runs/topology``.

    Returns:
        Case -> its last failure.
    """
    root = Path(folder)
    lines = LineFile(root / FAILURES, _reading, remedy=UNREADABLE)
    with understood(lines.place):
        found = {record["case"]: Failure(**record) for record in lines.records()}
    return {
        name: failure
        for name, failure in found.items()
        if not (root / CASES / name / CASE).is_file()
    }


def _reading() -> AbstractContextManager[None]:
    """Leave a line that is cut short to the program that may be writing it.

    Raises:
        RunLockedError: Always.
    """
    raise RunLockedError("failures are read only")


def described(error: BaseException) -> tuple[str, str, int]:
    """Return class, message and exit code of an error, as the command line has them."""
    code = getattr(error, "exit_code", 1)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ResourceError.__name__, f"out of memory ({error})", 5
    return type(error).__name__, str(error), code
