"""One run folder: plain files that one run owns.

Every file is written whole or not at all; ``results.jsonl`` grows by whole lines with a
checksum each. The folder knows arrays, JSON and text, nothing of runs or protocols.
Rules: robustness.md §4, §5 and §7; what lies where: contracts.md §14.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    ConfigError,
    InputFileError,
    InvalidArgumentError,
    RunLockedError,
    StoreCorruptError,
    UnsafeFormatError,
)
from dfl_unlearn.store.files import (
    TensorForm,
    cause,
    from_json,
    from_safetensors,
    make_folder,
    sync_folder,
    to_json,
    to_safetensors,
    write_file,
    writing,
)
from dfl_unlearn.store.lines import LineFile
from dfl_unlearn.store.log import LOG, attach

_RESULTS = "results.jsonl"
_DONE = "done.json"
_LOCK = "lock"
_MAX_NAME = 64
# Rows that training makes by the hundred reach the disk together; the rest at once.
_FREQUENT = frozenset({"round", "metric"})
_SYNC_EVERY = 100


def runs_root(argument: str | Path | None = None) -> Path:
    """Return the folder that holds run folders.

    Args:
        argument: A folder given by the user, or None.

    Returns:
        The argument, else the variable ``DFL_UNLEARN_RUNS``, else ``runs``.
    """
    return Path(argument or os.environ.get("DFL_UNLEARN_RUNS") or "runs")


class RunFolder:
    """A folder that one run owns; every write stays inside it.

    Attributes:
        root: The folder, an absolute path without links.
    """

    def __init__(self, path: str | Path) -> None:
        """Open an existing run folder.

        Args:
            path: The folder, e.g. ``runs/demo``.

        Raises:
            UnsafeFormatError: If the folder is a symbolic link.
            InputFileError: If it does not exist or is not a run folder.
        """
        path = Path(path)
        if path.is_symlink():
            raise UnsafeFormatError(
                f"{path}: must be a real folder, got a symbolic link; give the folder "
                "that it points to"
            )
        if not path.is_dir():
            got = "a file" if path.exists() else "nothing there"
            raise InputFileError(
                f"{path}: must be a run folder, got {got}; make one with "
                "'dfl-unlearn run' or list those under the runs folder"
            )
        if not ((path / _LOCK).is_file() or (path / "manifest.json").is_file()):
            raise InputFileError(
                f"{path}: must be a run folder, got a folder without {_LOCK} and "
                "manifest.json; give the run's own folder, e.g. runs/demo"
            )
        self.root = path.resolve()
        self._lock: int | None = None
        self._depth = 0
        self._results = LineFile(self.path(_RESULTS), self.locked)
        self._unsynced = 0

    @classmethod
    def create(cls, root: str | Path | None, name: str) -> "RunFolder":
        """Make a new run folder; an existing one is never touched.

        Args:
            root: The folder that holds run folders, or None for ``runs_root()``.
            name: Its name, ``[A-Za-z0-9][A-Za-z0-9._-]{0,63}``; if it is taken,
                ``-2``, ``-3`` and so on are appended.

        Returns:
            The new folder, with nothing in it but its lock file.

        Raises:
            ConfigError: If the name is not allowed.
            UnsafeFormatError: If a symbolic link stands where the folder would go.
        """
        _validate.identifier(error=ConfigError, name=name)
        base = runs_root(root)
        number = 1
        while True:
            suffix = "" if number == 1 else f"-{number}"
            path = base / (name[: _MAX_NAME - len(suffix)] + suffix)
            if path.is_symlink():
                raise UnsafeFormatError(
                    f"{path}: must be free or a real folder, got a symbolic link; "
                    "remove the link or choose another name"
                )
            with writing(path):
                base.mkdir(parents=True, exist_ok=True)
                try:
                    path.mkdir()
                except FileExistsError:
                    number += 1
                    continue
                write_file(path / _LOCK, b"")
                sync_folder(base)
            return cls(path)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.name

    def path(self, rel: str) -> Path:
        """Return the place of a file inside the folder.

        Args:
            rel: Path with ``/`` between parts, below the folder.

        Returns:
            The absolute path; the file need not exist.

        Raises:
            InvalidArgumentError: If it is absolute or leads out of the folder.
            UnsafeFormatError: If a part of it is a symbolic link.
        """
        parts = rel.split("/")
        if any(p in ("", ".", "..") or p != _validate.clean(p) for p in parts):
            raise InvalidArgumentError(
                f"path: must lead to a place inside the run folder, got "
                f"{_validate.show(rel)}; use plain names with / between them"
            )
        place = self.root
        for part in parts:
            place = place / part
            if place.is_symlink():
                raise UnsafeFormatError(
                    f"{place}: must be a plain file or folder, got a symbolic link; "
                    "links inside a run folder are refused, copy the file instead"
                )
        return place

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; the same object may hold it twice.

        Meanwhile what the package logs is also written to ``log.jsonl``.

        Yields:
            Nothing; the lock is released at the end, or by the system with the process.

        Raises:
            RunLockedError: If another process, or another object, holds it.
        """
        if self._depth == 0:
            self._lock = self._acquire()
            if self._lock is None:
                raise RunLockedError(
                    f"{self.root} is in use by {self._holder()}; if that process is "
                    "gone, the lock is released by itself"
                )
            self._log = attach(self.path(LOG))
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._lock is not None:
                self._log.detach()
                os.close(self._lock)
                self._lock = None

    # --- whole files -----------------------------------------------------------

    def write_bytes(self, rel: str, data: bytes, *, private: bool = False) -> Path:
        """Write a file whole or not at all.

        Args:
            rel: Place inside the folder; missing folders are made.
            data: The content.
            private: Whether only the owner may read it.

        Returns:
            Where it was written.
        """
        place = self.path(rel)
        make_folder(place.parent)
        write_file(place, data, private=private)
        return place

    def read_bytes(self, rel: str) -> bytes:
        """Return a file's content.

        Args:
            rel: Place inside the folder.

        Returns:
            The bytes.

        Raises:
            InputFileError: If it is missing or unreadable.
        """
        place = self.path(rel)
        try:
            return place.read_bytes()
        except OSError as error:
            raise InputFileError(
                f"{place}: must be a readable file, got {cause(error)}; the run "
                "folder is incomplete, make the run again"
            ) from error

    def write_text(self, rel: str, text: str, *, private: bool = False) -> Path:
        """Write UTF-8 text; as ``write_bytes``."""
        return self.write_bytes(rel, text.encode(), private=private)

    def read_text(self, rel: str) -> str:
        """Return a file's text.

        Args:
            rel: Place inside the folder.

        Returns:
            The text.

        Raises:
            StoreCorruptError: If it is not UTF-8.
        """
        try:
            return self.read_bytes(rel).decode()
        except UnicodeDecodeError as error:
            raise StoreCorruptError(
                f"{self.path(rel)}: must be UTF-8, got byte {error.object[error.start]}"
                f" at offset {error.start}; the file is damaged, make the run again"
            ) from error

    def write_json(self, rel: str, value: object, *, private: bool = False) -> Path:
        """Write JSON with sorted keys, so that equal values give equal files.

        Args:
            rel: Place inside the folder.
            value: Dictionaries with string keys, lists, strings, finite numbers,
                booleans and None.
            private: Whether only the owner may read it.

        Returns:
            Where it was written.
        """
        text = to_json(rel, value, indent=2) + "\n"
        return self.write_text(rel, text, private=private)

    def read_json(self, rel: str) -> Any:
        """Return the value of a JSON file.

        Args:
            rel: Place inside the folder.

        Returns:
            The value.

        Raises:
            StoreCorruptError: If it is not JSON, has a repeated key or a number that
                is not finite.
        """
        text = self.read_text(rel)
        try:
            return from_json(text)
        except ValueError as error:
            raise StoreCorruptError(
                f"{self.path(rel)}: must be JSON, got {_validate.clean(str(error))}; "
                "the file is damaged, make the run again"
            ) from error

    def write_tensors(
        self, rel: str, tensors: Mapping[str, Tensor | NDArray[Any]]
    ) -> Path:
        """Write tensors as safetensors, readable by the owner only.

        Args:
            rel: Place inside the folder, ending in ``.safetensors``.
            tensors: Name -> float32, float64, int64, uint8 or bool.

        Returns:
            Where they were written.
        """
        return self.write_bytes(rel, to_safetensors(rel, tensors), private=True)

    def read_tensors(
        self, rel: str, *, expected: Mapping[str, TensorForm] | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file.

        Args:
            rel: Place inside the folder.
            expected: Name -> (dtype, shape) of exactly the tensors it must hold,
                checked before any is allocated; None accepts what the file says.

        Returns:
            Name -> tensor on the CPU.

        Raises:
            InputFileError: If the file is missing or unreadable.
            StoreCorruptError: If it is damaged, its header is over 16 MiB, or it has
                a type that is never written here, or other tensors than expected.
        """
        place = self.path(rel)
        if not place.is_file():
            raise InputFileError(
                f"{place}: must be a readable file, got nothing there; the run folder "
                "is incomplete, make the run again"
            )
        try:
            return from_safetensors(place, expected)
        except OSError as error:
            raise InputFileError(
                f"{place}: must be a readable file, got {cause(error)}; check its "
                "rights"
            ) from error
        except ValueError as error:
            raise StoreCorruptError(
                f"{place}: must be an intact safetensors file, got "
                f"{_validate.clean(str(error))}; it is damaged, make the run again"
            ) from error

    def remove_leftovers(self, rel: str = "") -> None:
        """Remove what killed writes left half-written; the folder must be held.

        Args:
            rel: A folder inside; "" is all of it.
        """
        place = self.path(rel) if rel else self.root
        for file in place.rglob(".*.tmp-*"):
            with writing(file):
                file.unlink(missing_ok=True)

    # --- results, one checked line each -------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record to ``results.jsonl`` with one write.

        Rounds and metrics are made durable a hundred at a time and by ``finish``, all
        other records at once.

        Args:
            record: JSON values; ``type`` says what it is.
        """
        self._unsynced += 1
        durable = record.get("type") not in _FREQUENT or self._unsynced >= _SYNC_EVERY
        self._results.append(record, durable=durable)
        if durable:
            self._unsynced = 0

    def sync(self) -> None:
        """Make all records of ``results.jsonl`` durable."""
        self._results.sync()
        self._unsynced = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the records of ``results.jsonl``, each checked.

        A damaged last line, as a crash leaves it, is moved to ``results.torn-<n>``,
        unless another process holds the folder and may still be writing it. A damaged
        line before it is a ``StoreCorruptError`` that names line and byte offset.

        Returns:
            One record after the other.
        """
        self.path(_RESULTS)  # not a link
        return self._results.records()

    def drop_line(self, number: int) -> Path:
        """Take a damaged line out of ``results.jsonl``, so that the rest can be read.

        The file itself is not edited: a repaired copy takes its place.

        Args:
            number: Which line, from 1, as the error named it.

        Returns:
            ``results.dropped-<n>``, where the line is kept.
        """
        return self._results.drop(number)

    def finish(self, digest: str) -> None:
        """Declare the run complete; call it last.

        Args:
            digest: The run's digest.
        """
        self.sync()
        self.write_json(_DONE, {"digest": digest, "format": 1})

    @property
    def is_done(self) -> bool:
        """Whether the run was completed."""
        return self.path(_DONE).is_file()

    def __repr__(self) -> str:
        """Return the folder's place."""
        return f"RunFolder({str(self.root)!r})"

    def _acquire(self) -> int | None:
        """Return a handle that holds the lock, or None if someone else does."""
        place = self.path(_LOCK)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(place):
            handle = os.open(place, flags, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        note = f"{os.getpid()} {now}\n".encode()
        try:
            with writing(place, len(note)):
                os.ftruncate(handle, 0)
                os.pwrite(handle, note, 0)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _holder(self) -> str:
        text = self.path(_LOCK).read_bytes()[:80].decode(errors="replace").strip()
        known = re.fullmatch(r"(\d+) (\S+)", _validate.clean(text))
        return f"pid {known[1]} since {known[2]}" if known else "another process"
