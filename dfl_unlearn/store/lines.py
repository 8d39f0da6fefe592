"""Lines with a checksum each, so that a torn or changed one is noticed."""

import errno
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfl_unlearn.store.files import from_json, to_json, writing


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


def append_line(place: Path, line: bytes, *, durable: bool) -> None:
    """Add a line with one write; a full disk leaves the file as it was."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with writing(place, len(line)):
        handle = os.open(place, flags, 0o644)
        try:
            before = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
