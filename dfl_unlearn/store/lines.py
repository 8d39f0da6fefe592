"""Files of lines with a checksum each, so that a torn or changed one is noticed.

A record is one line, written by one call and cut off again if that fails. What a crash
may leave is a last line that was cut short; it is set aside when the file is opened. A
damaged line anywhere else is an error that names it, and nothing is skipped unasked.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, RunLockedError, StoreCorruptError
from dfl_unlearn.store.files import (
    from_json,
    sync_folder,
    to_json,
    write_all,
    write_file,
    writing,
)

_LOG = logging.getLogger(__name__)


def encode_line(where: str, record: Mapping[str, Any]) -> bytes:
    """Return ``<crc32 of the JSON, 8 hex digits> <canonical JSON>`` and a newline."""
    body = to_json(where, record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Return the record of one line, or None if it is damaged."""
    if line[8:9] != b" " or not line.endswith(b"\n"):
        return None
    body = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(body):
        return None
    try:
        record = from_json(body.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append_line(
    place: Path, line: bytes, *, durable: bool, private: bool = False
) -> None:
    """Add a line with one write; where that fails the file is as it was.

    Args:
        place: The file; made where it is not there.
        line: The line with its newline, or nothing, to make earlier lines durable.
        durable: Whether it is on disk when this returns.
        private: Whether only the owner may read a new file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with writing(place, len(line)):
        handle = os.open(place, flags, 0o600 if private else 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                write_all(handle, line)
                if durable:
                    os.fsync(handle)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        if before == 0 and durable:
            sync_folder(place.parent)


class LineFile:
    """One file of checked lines.

    Attributes:
        place: The file; it need not exist yet.
    """

    def __init__(
        self,
        place: Path,
        held: Callable[[], AbstractContextManager[None]],
        *,
        private: bool = False,
        remedy: str = "",
    ) -> None:
        """Open a file of lines.

        Args:
            place: The file.
            held: Holds whatever keeps others from writing, or raises
                ``RunLockedError``.
            private: Whether only the owner may read it.
            remedy: What to do if a line is damaged; "" is a run's.
        """
        self.place = place
        self._remedy = remedy
        self._private = private
        self._held = held
        self._checked = False

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        """Add one record; the first time a torn last line is set aside before.

        Args:
            record: JSON values.
            durable: Whether it, and all before it, are on disk when this returns.
        """
        if not self._checked:
            with self._held():
                for _ in self.records():
                    pass
            self._checked = True
        line = encode_line(self.place.name, record)
        append_line(self.place, line, durable=durable, private=self._private)

    def sync(self) -> None:
        """Make all records durable."""
        if self.place.exists():
            append_line(self.place, b"", durable=True)

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the records, each checked.

        A damaged last line, as a crash leaves it, is moved to ``<name>.torn-<n>``,
        unless another process may still be writing it.

        Yields:
            One record after the other.

        Raises:
            StoreCorruptError: If a line before the last is damaged.
        """
        if not self.place.exists():
            return
        offset = 0
        with self.place.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = decode_line(line)
                if record is None:
                    if file.read(1):
                        raise StoreCorruptError(
                            f"{self.place}: line {number} (byte offset {offset}) must "
                            f"match its checksum, got {_validate.show(line[:40])}; the "
                            f"file was changed or damaged; {self._told(number)}"
                        )
                    self._set_aside(offset, line)
                    return
                yield record
                offset += len(line)

    def _told(self, number: int) -> str:
        """Return what to do about a damaged line."""
        return self._remedy or (
            "to go on without that line: dfl-unlearn resume "
            f"{self.place.parent.name} --drop-line {number}"
        )

    def drop(self, number: int) -> Path:
        """Take a damaged line out: a repaired copy takes the file's place.

        Args:
            number: Which line, from 1; an intact one is never dropped.

        Returns:
            ``<name>.dropped-<n>``, where the line is kept.

        Raises:
            InvalidArgumentError: If there is no such line, or it is intact.
        """
        _validate.integer(at_least=1, line=number)
        with self._held():
            lines = []
            if self.place.exists():
                with self.place.open("rb") as file:
                    lines = list(file)
            if number > len(lines):
                raise InvalidArgumentError(
                    f"line: must be one of the {len(lines)} lines of {self.place}, got "
                    f"{number}; take the number from the error that named it"
                )
            bad = lines.pop(number - 1)
            if decode_line(bad) is not None:
                raise InvalidArgumentError(
                    f"line: must be a damaged one, got {number} of {self.place}, which "
                    "matches its checksum; only damaged lines are dropped"
                )
            kept = self._free("dropped")
            write_file(kept, bad, private=self._private)
            write_file(self.place, b"".join(lines), private=self._private)
        return kept

    def _set_aside(self, offset: int, line: bytes) -> None:
        """Move a damaged last line out of the file, if nobody else is writing."""
        try:
            with self._held():
                if self.place.stat().st_size != offset + len(line):
                    return  # somebody went on writing it before we held it
                torn = self._free("torn")
                write_file(torn, line, private=self._private)
                with writing(self.place):
                    handle = os.open(self.place, os.O_WRONLY | os.O_CLOEXEC)
                    try:
                        os.ftruncate(handle, offset)
                        os.fsync(handle)
                    finally:
                        os.close(handle)
        except RunLockedError:
            return
        _LOG.warning(
            "%s: the last line was cut off (%d bytes) and is now in %s",
            self.place,
            len(line),
            torn.name,
        )

    def _free(self, what: str) -> Path:
        number = 1
        while True:
            path = self.place.with_name(f"{self.place.stem}.{what}-{number}")
            if not path.exists() and not path.is_symlink():
                return path
            number += 1
