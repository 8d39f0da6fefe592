"""An append-only file whose lines are on disk before the caller goes on."""

import contextlib
import errno
import os
from pathlib import Path

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InputFileError,
    InvalidArgumentError,
    LedgerCorruptError,
    StoreWriteError,
    UnsafeFormatError,
)

_FLAGS = os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """A file that grows by whole lines, each durable when ``append`` returns.

    The file is opened for each line, so nothing has to be closed; its size is compared
    each time with what was last read or written, so a second writer is noticed.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, *, size: int, torn: int = 0) -> None:
        """Continue a file that was just read.

        Args:
            path: The file.
            size: Bytes of its whole lines.
            torn: Bytes of a last line that was cut short; the next append removes it.
        """
        self.path = path
        self._size = size
        self._torn = torn

    @classmethod
    def create(cls, path: Path, content: bytes) -> "Journal":
        """Make a new file, readable by its owner only, with some first lines.

        Args:
            path: Must not exist; a link is refused too.
            content: Whole lines, or nothing.

        Returns:
            The journal, its file and folder entry durable.

        Raises:
            InvalidArgumentError: If something is there already.
            StoreWriteError: If it cannot be written.
        """
        try:
            handle = os.open(path, _FLAGS | os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise InvalidArgumentError(
                f"path: must not exist yet, got {_validate.show(str(path))}; continue "
                "it with PrivacyLedger.load, or choose another name"
            ) from error
        except OSError as error:
            raise StoreWriteError(_not_written(path, error)) from error
        journal = cls(path, size=0)
        journal._write(handle, content)
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreWriteError(_not_written(path, error)) from error
        return journal

    def append(self, content: bytes) -> None:
        """Write whole lines and return when they are on disk.

        Args:
            content: Lines with their newlines; on failure none of them stays.

        Raises:
            StoreWriteError: If the file cannot be written.
            LedgerCorruptError: If somebody else changed the file's size.
        """
        try:
            handle = os.open(self.path, _FLAGS | os.O_WRONLY)
        except OSError as error:
            raise StoreWriteError(_not_written(self.path, error)) from error
        found, known = os.fstat(handle).st_size, self._size + self._torn
        if found != known:
            os.close(handle)
            raise LedgerCorruptError(
                f"{self.path.name}: must be {known} bytes as last read, got {found}; "
                "another process wrote to it, load it again"
            )
        self._write(handle, content)

    def _write(self, handle: int, content: bytes) -> None:
        try:
            if self._torn:
                os.ftruncate(handle, self._size)
                self._torn = 0
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._size)
            if isinstance(error, OSError):
                raise StoreWriteError(_not_written(self.path, error)) from error
            raise
        finally:
            os.close(handle)
        self._size += len(content)


def read_journal(path: Path) -> bytes:
    """Return a journal's bytes.

    Args:
        path: A file, not a link.

    Returns:
        Everything in it.

    Raises:
        UnsafeFormatError: If the path is a symbolic link.
        InputFileError: If it is missing or unreadable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            return file.read()
    except OSError as error:
        shown = _validate.show(str(path))
        if error.errno == errno.ELOOP:
            raise UnsafeFormatError(
                f"{shown}: must be a file, got a symbolic link; name the file itself"
            ) from error
        raise InputFileError(
            f"{shown}: must be a readable file, got: {error.strerror}; check the path"
        ) from error


def _not_written(path: Path, error: OSError) -> str:
    return (
        f"{path.name}: must be writable, got: {error.strerror} in "
        f"{_validate.show(str(path.parent))}; nothing was released, free space or "
        "rights and run again"
    )
