"""The log of a run folder: one JSON object per line, in the order of events.

Loggers below ``dfl_unlearn`` only, at the level that the program has set for them. A
log is for reading: it has no checksums, a line that was cut short is skipped, and a
message that cannot be written ends nothing.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dfl_unlearn import _validate
from dfl_unlearn.errors import StoreWriteError
from dfl_unlearn.store.files import from_json, to_json
from dfl_unlearn.store.lines import append_line

LOG = "log.jsonl"
_LONGEST = 2000
_FIELDS = {"time", "level", "logger", "message"}


class FolderLog(logging.Handler):
    """Writes records into one file, each with one write."""

    def __init__(self, place: Path) -> None:
        """Write to a file, which is made with the first record.

        Args:
            place: ``log.jsonl`` of a run folder.
        """
        super().__init__()
        self._place = place
        self._process = os.getpid()
        self._clean = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a process that was forked writes nothing here."""
        if os.getpid() != self._process:
            return
        message = _validate.clean(record.getMessage())
        line = to_json(
            LOG,
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
                "level": record.levelname,
                "logger": record.name,
                "message": message[:_LONGEST],
            },
        )
        with suppress(StoreWriteError, OSError, UnicodeError):
            start = b"" if self._clean else self._line_end()
            append_line(self._place, start + line.encode() + b"\n", durable=False)
            self._clean = True

    def detach(self) -> None:
        """Stop writing."""
        logging.getLogger("dfl_unlearn").removeHandler(self)
        self.close()

    def _line_end(self) -> bytes:
        """Return what ends a line that a crash cut short."""
        if not self._place.exists() or not self._place.stat().st_size:
            return b""
        with self._place.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return b"" if file.read(1) == b"\n" else b"\n"


def attach(place: Path) -> FolderLog:
    """Write what the package logs into a file, until ``detach``."""
    handler = FolderLog(place)
    logging.getLogger("dfl_unlearn").addHandler(handler)
    return handler


def log_records(place: Path) -> Iterator[dict[str, str]]:
    """Iterate over the intact records of a log.

    Args:
        place: The file; nothing where it is not there.

    Yields:
        ``time``, ``level``, ``logger`` and ``message`` of each.
    """
    if not place.exists():
        return
    with place.open("rb") as file:
        for line in file:
            with suppress(ValueError):
                record = from_json(line.decode())
                if isinstance(record, dict) and record.keys() == _FIELDS:
                    yield record
