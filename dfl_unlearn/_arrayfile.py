"""Arrays from files of others: ``.npy``, ``.npz`` and ``.safetensors``, nothing else.

Nothing in such a file is believed. Sizes come from the zip directory and the headers
and are compared with the file before any memory is taken for an array, object arrays
and everything that carries pickle are refused, so no file runs code and none takes more
memory than the limit. Formats: the NumPy enhancement proposal on ``.npy`` (versions 1
and 2), PKZIP, and safetensors.
"""

import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._jsontext import from_json
from dfl_unlearn._limits import LOAD_BYTES
from dfl_unlearn.errors import (
    InputFileError,
    InputTooLargeError,
    ResourceError,
    UnsafeFormatError,
    UnsupportedFormatError,
)

Arrays = dict[str, NDArray[Any]]

MAX_HEADER = 16 * 2**20
MAX_MEMBERS = 4096
DTYPES = ("float32", "float64", "int64", "uint8", "bool")

# Endings of files that run code when they are opened.
_CODE = {".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
_SAFETENSORS = dict(zip(("F32", "F64", "I64", "U8", "BOOL"), DTYPES, strict=True))
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_MOST_RATIO = 1032  # deflate cannot shrink further
_BLOCK = 2**20
# What the parsers of headers and zip files raise on bytes that are not theirs.
_DAMAGED = (
    ValueError,  # JSON and Unicode errors too
    SyntaxError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,  # NumPy reads odd headers token by token
    zipfile.BadZipFile,
    zlib.error,
    OSError,
)


def read_arrays(
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    max_load_bytes: int = LOAD_BYTES.most,
) -> Arrays:
    """Read the arrays of a file without trusting it.

    Args:
        path: A file that ends in ``.npz``, ``.npy`` or ``.safetensors``. The one array
            of a ``.npy`` has the name in ``names``, or ``array``.
        names: The names that the file must hold, all and no others; None takes any.
        max_load_bytes: Limit of all arrays together, in bytes.

    Returns:
        Name -> array, float32, float64, int64, uint8 or bool, little-endian, of the
        shape in the file; they may be written to.

    Raises:
        UnsafeFormatError: If the file can carry code: its ending is that of a pickle,
            or an array holds objects.
        UnsupportedFormatError: If it is of another type, or an array has another dtype.
        InputTooLargeError: If its arrays are larger than the limit.
        InputFileError: If it is missing or damaged, says different things in different
            places, or holds other names.
    """
    path = Path(path)
    where = _validate.clean(str(path))
    _validate.integer(max_load_bytes=max_load_bytes, at_least=1)
    kind = path.suffix.lower()
    if kind in _CODE:
        raise UnsafeFormatError(
            f"{where}: {kind} files may contain executable pickle data; this program "
            "never loads them. Convert it in a place you trust, e.g.: python -c "
            '"import torch, safetensors.torch as s; s.save_file(torch.load('
            "'model.pt', weights_only=True), 'model.safetensors')\", then pass the "
            ".safetensors or an .npz"
        )
    if kind not in _READERS:
        raise UnsupportedFormatError(
            f"{where}: must end in {', '.join(_READERS)}, got {_validate.show(kind)}; "
            "save the arrays with numpy.savez"
        )
    with _opened(path, where) as file:
        reader = _Reader(where, max_load_bytes, os.fstat(file.fileno()).st_size)
        try:
            found = _READERS[kind](reader, file)
        except (InputFileError, UnsafeFormatError):
            raise
        except _DAMAGED as error:
            reason = _validate.clean(str(error) or type(error).__name__)[:200]
            raise InputFileError(
                f"{where}: cannot be read as {kind} ({reason}); the file is damaged, "
                "save it again"
            ) from error
    if kind == ".npy":
        found = {(names or ("array",))[0]: found["array"]}
    _check_names(where, found, names)
    return found


def _opened(path: Path, where: str) -> IO[bytes]:
    """Open a regular file; a pipe or device would never end.

    Returns:
        The file, to be closed.

    Raises:
        InputFileError: If it is missing, unreadable or no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputFileError(f"{where}: no such file") from error
    except PermissionError as error:
        raise InputFileError(f"{where}: no permission to read it") from error
    except (OSError, ValueError) as error:
        raise InputFileError(f"{where}: cannot be read ({error})") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        what = "is a directory" if stat.S_ISDIR(mode) else "is no regular file"
        raise InputFileError(f"{where}: {what}; give a file with arrays")
    return os.fdopen(handle, "rb")


def _check_names(where: str, found: Arrays, names: Sequence[str] | None) -> None:
    if names is None or set(names) == set(found):
        return
    wanted, got = (", ".join(map(_word, sorted(part))) for part in (names, found))
    raise InputFileError(
        f"{where}: must hold exactly the arrays {wanted}, got {got or 'none'}; save "
        "them under these names"
    )


def _word(name: str) -> str:
    return _validate.clean(name)[:80]


class _Reader:
    """Reads one file, all sizes checked against the limit and the file itself."""

    def __init__(self, where: str, limit: int, size: int) -> None:
        self.where = where
        self.limit = limit
        self.size = size

    def npy(self, file: IO[bytes]) -> Arrays:
        return {"array": self._npy_array(file, self.size, "array")}

    def npz(self, file: IO[bytes]) -> Arrays:
        self._check_directory(file)
        found: Arrays = {}
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            self._check_members(members)
            for member in members:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as content:
                    found[name] = self._npy_array(content, member.file_size, name)
                    if content.read(1):
                        raise ValueError(f"{name}: more bytes than the directory says")
        return found

    def safetensors(self, file: IO[bytes]) -> Arrays:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, self.size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = from_json(file.read(length).decode())
        header.pop("__metadata__", None)
        self._check_total(self.size - 8 - length)
        parts = []
        for name, entry in header.items():
            if set(entry) != {"dtype", "shape", "data_offsets"}:
                raise ValueError(f"{_word(name)}: an entry with other keys")
            dtype = np.dtype(self._known(_SAFETENSORS.get(entry["dtype"]), name, entry))
            begin, end = (_count(offset) for offset in entry["data_offsets"])
            shape = tuple(_count(side) for side in entry["shape"])
            if math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError(f"{_word(name)}: a shape that its offsets contradict")
            parts.append((begin, end, name, dtype, shape))
        found: Arrays = {}
        place = 0
        for begin, end, name, dtype, shape in sorted(parts, key=lambda part: part[:2]):
            if begin != place:
                raise ValueError(f"{_word(name)}: data that does not follow the last")
            found[name] = _filled(file, dtype, shape)
            place = end
        if rest := self.size - 8 - length - place:
            raise ValueError(f"{rest} bytes that belong to none")
        return {name: found[name] for name in header}

    # --- checks, all before memory is taken -----------------------------------------

    def _check_total(self, nbytes: int) -> None:
        if nbytes > self.limit:
            raise InputTooLargeError(
                f"{self.where}: holds {nbytes / 2**20:.4g} MB of arrays; limit "
                f"{self.limit / 2**20:.4g} MB (raise it with max_load_bytes)"
            )

    def _check_directory(self, file: IO[bytes]) -> None:
        """Refuse a zip directory that would itself take much memory."""
        file.seek(max(0, self.size - 2**16 - 22))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise ValueError("no zip directory at its end")
        (length,) = struct.unpack_from("<L", tail, at + 12)
        locator = at - 20
        if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
            (place,) = struct.unpack_from("<Q", tail, locator + 8)
            file.seek(min(place, self.size))
            record = file.read(56)
            (length,) = struct.unpack_from("<Q", record, 40)
        if length > MAX_HEADER:
            raise InputTooLargeError(
                f"{self.where}: its zip directory has {length} bytes; limit "
                f"{MAX_HEADER}"
            )
        file.seek(0)

    def _check_members(self, members: list[zipfile.ZipInfo]) -> None:
        names = [member.filename for member in members]
        if len(members) > MAX_MEMBERS:
            raise InputTooLargeError(
                f"{self.where}: holds {len(members)} arrays; limit {MAX_MEMBERS}"
            )
        if len(set(names)) < len(names):
            raise ValueError("two arrays of one name")
        for member in members:
            if not member.filename.endswith(".npy") or "/" in member.filename:
                raise ValueError(f"{_word(member.filename)!r}, which is no array")
            if member.flag_bits & 1:
                raise ValueError("encrypted parts")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("a compression that NumPy does not write")
        self._check_total(sum(member.file_size for member in members))
        if sum(member.compress_size for member in members) > self.size:
            raise ValueError("parts that lie over each other")
        for member in members:
            packed = member.compress_type == zipfile.ZIP_DEFLATED
            most = member.compress_size * (_MOST_RATIO if packed else 1)
            if member.file_size > most:
                raise ValueError(f"{_word(member.filename)}: more than is stored of it")

    def _npy_array(self, file: IO[bytes], size: int, name: str) -> NDArray[Any]:
        """Read one array of ``size`` bytes, header included."""
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, column_order, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise UnsafeFormatError(
                f"{self.where}: {_word(name)} holds Python objects, which are stored "
                "as executable pickle data and never loaded; save plain numbers"
            )
        kind = dtype.name if dtype.isnative or dtype.itemsize == 1 else None
        self._known(kind if kind in DTYPES else None, name, {"dtype": str(dtype)})
        sides = tuple(_count(side) for side in shape)
        nbytes = math.prod(sides) * dtype.itemsize
        header = file.tell()
        if nbytes != size - header:
            raise ValueError(
                f"{_word(name)}: shape {_validate.show(shape)} of {dtype} needs "
                f"{nbytes} bytes, there are {size - header}"
            )
        self._check_total(nbytes)
        order = sides[::-1] if column_order else sides
        array: NDArray[Any] = _filled(file, dtype, order)
        return array.T if column_order else array

    def _known(self, dtype: str | None, name: str, entry: Mapping[str, Any]) -> str:
        if dtype is None:
            raise UnsupportedFormatError(
                f"{self.where}: {_word(name)} must be one of {', '.join(DTYPES)} in "
                f"little-endian order, got {_validate.show(entry['dtype'])}; convert it"
            )
        return dtype


_READERS = {
    ".npz": _Reader.npz,
    ".npy": _Reader.npy,
    ".safetensors": _Reader.safetensors,
}


def _filled(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return an array read in pieces; memory is touched only as far as bytes come."""
    try:
        array: NDArray[Any] = np.empty(shape, dtype)
    except MemoryError as error:
        raise ResourceError(f"array: {error}; load fewer or smaller arrays") from error
    view = array.reshape(-1).view(np.uint8)
    for begin in range(0, len(view), _BLOCK):
        piece = file.read(min(_BLOCK, len(view) - begin))
        if len(piece) != min(_BLOCK, len(view) - begin):
            raise EOFError("fewer bytes than it says")
        view[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
    if dtype == np.bool_ and len(view) and view.max() > 1:
        raise ValueError("truth values that are neither 0 nor 1")
    return array


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"a size of {_validate.show(value)}")
    return value
