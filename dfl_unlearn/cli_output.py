"""What the command line says, and how: stories, JSON documents, logs and complaints."""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfl_unlearn._validate import clean

if TYPE_CHECKING:
    from dfl_unlearn.store.table import ResultsTable
    from dfl_unlearn.unlearning.contracts import Outcome


@dataclass
class Common:
    """Options of every command."""

    runs: Path | None = None
    as_json: bool = False
    quiet: bool = False
    debug: bool = False


common = Common()


class CleanFormatter(logging.Formatter):
    """Log lines without control characters, whatever a name in them holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return clean_lines(super().format(record))


def clean_lines(text: str) -> str:
    """Return text without control characters except line ends."""
    return "\n".join(clean(line) for line in text.split("\n"))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Send logs and warnings to stderr, one line each."""
    level = os.environ.get("DFL_UNLEARN_LOG", "WARNING").upper()
    logger = logging.getLogger("dfl_unlearn")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter("%(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    level_before = logger.level
    logger.setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        complain(f"warning: {clean(str(message))}")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
        logger.removeHandler(handler)
        logger.setLevel(level_before)


def tell_outcome(outcome: "Outcome", table: "ResultsTable") -> None:
    """Print an outcome beside its run, its notes and its certificate."""
    from dfl_unlearn.story import comparison_lines

    if common.as_json:
        return
    tell_block(comparison_lines([outcome], [table]))
    for note in outcome.notes:
        say(f"  {note}")
    say("")
    if outcome.certificate is None:
        put(f"{outcome.label} makes no claim: no certificate")
    else:
        put(str(outcome.certificate))


def outcome_json(outcome: "Outcome", table: "ResultsTable") -> dict[str, Any]:
    """Return what a JSON document says of an outcome."""
    from dataclasses import asdict

    certificate = outcome.certificate
    return {
        "request": outcome.request.request_id,
        "protocol": outcome.label,
        "certificate": None
        if certificate is None
        else json.loads(certificate.to_json()),
        "status": outcome.status,
        "pending": {str(i): outcome.residual_influence[i][0] for i in outcome.pending},
        "notes": list(outcome.notes),
        "cost": asdict(outcome.cost),
        "metrics": [row for row in table.rows if row["peer"] == -1],
    }


def shown(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def json_text(value: Mapping[str, Any] | dict[str, Any]) -> str:
    """Return a JSON document."""
    from dfl_unlearn.results.view import plain

    return json.dumps(_finite(plain(value)), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return JSON values with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def tell_block(lines: Sequence[str]) -> None:
    """Print a block of the story below an empty line."""
    for line in ("", *lines) if lines else ():
        say(line)


def say(line: str) -> None:
    """Print a line of the story, unless it was asked to be quiet."""
    if not common.quiet:
        put(line)


def put(text: str) -> None:
    """Print text, whatever was asked for."""
    sys.stdout.write(clean_lines(text) + "\n")


def complain(text: str) -> None:
    """Print text to standard error."""
    sys.stderr.write(clean_lines(text) + "\n")
