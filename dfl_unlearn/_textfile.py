"""Text files from others, read within a limit and refused with a reason."""

import stat
from pathlib import Path

from dfl_unlearn.errors import InputFileError, InputTooLargeError


def read_utf8(path: Path, where: str, *, max_bytes: int, remedy: str) -> bytes:
    """Return a file's bytes, which are UTF-8 text without NUL and byte order mark.

    Args:
        path: The file.
        where: How messages name it.
        max_bytes: Size above which nothing is read.
        remedy: Ends the message about a larger file.

    Returns:
        The content.

    Raises:
        InputFileError: If it is missing, unreadable, no regular file or not UTF-8.
        InputTooLargeError: If it is larger than ``max_bytes``.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputFileError(f"{where}: is a directory; give a file in it")
        if not stat.S_ISREG(mode):
            raise InputFileError(f"{where}: must be a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        size = max(len(data), path.stat().st_size)
    except InputFileError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputFileError(f"{where}: no such file") from error
    except PermissionError as error:
        raise InputFileError(f"{where}: no permission to read it") from error
    except (OSError, ValueError) as error:
        raise InputFileError(f"{where}: cannot be read ({error})") from error
    if len(data) > max_bytes:
        raise InputTooLargeError(
            f"{where} is {size / 2**20:.3g} MB; limit {max_bytes / 2**20:.3g} MB "
            f"{remedy}"
        )
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        data[start:].decode()
    except UnicodeDecodeError as error:
        raise InputFileError(
            f"{where}: not valid UTF-8 at byte {start + error.start}; "
            "save it as UTF-8 text"
        ) from error
    if (nul := data.find(0)) >= 0:
        raise InputFileError(f"{where}: NUL byte at byte {nul}; save it as UTF-8 text")
    return data[start:]
