"""Single files: written whole or not at all, read strictly.

A file is written beside its place, made durable and then moved there, so neither a
reader nor a crash ever sees half of it. Rules: robustness.md §4, §5 and §7.
"""

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._jsontext import from_json as from_json
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, StoreWriteError

_CHECKPOINT = re.compile(r"round-([0-9]{6,9})")
_MAX_HEADER = 16 * 2**20
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


TensorForm: TypeAlias = tuple[torch.dtype | str, tuple[int, ...]]
"""Type and shape that a stored tensor must have."""


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all, and durably.

    Args:
        path: Where it goes; its folder exists. A link there is replaced, not followed.
        data: The content.
        private: Whether only the owner may read it.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with writing(path, len(data)):
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, flags, 0o600 if private else 0o644)
        try:
            try:
                write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably; one that is there stays."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with writing(folder):
            folder.mkdir(exist_ok=True)  # another program may have been faster
            sync_folder(folder.parent)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte; the system may take them in several parts."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn the system's refusals while writing into ``StoreWriteError``.

    Args:
        path: What is being written.
        size: Bytes needed.

    Yields:
        Nothing.

    Raises:
        StoreWriteError: If the disk is full or the place is not writable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreWriteError(
                f"{path.name}: no space left in {path.parent}/ (needed "
                f"{max(1, math.ceil(size / 1000))} kB); {_safe(path)}; free some and "
                "repeat"
            ) from error
        raise StoreWriteError(
            f"{path}: must be writable, got {cause(error)}; {_safe(path)}; check the "
            "folder's rights or choose another one"
        ) from error


def _safe(path: Path) -> str:
    """Return what of the run that a file belongs to is on disk already."""
    for folder in path.parents:
        if not (folder / "lock").is_file():
            continue
        if (folder / "done.json").is_file():
            return "the finished run is safe"
        found = [_CHECKPOINT.fullmatch(p.name) for p in (folder / "ckpt").glob("*")]
        rounds = [int(name[1]) for name in found if name]
        if rounds:
            return f"state up to round {max(rounds)} is safe"
        break
    return "what was written before is intact"


def sync_folder(path: Path) -> None:
    """Make new and renamed entries of a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cause(error: OSError) -> str:
    """Return the system's reason in words."""
    return (error.strerror or type(error).__name__).lower()


def to_json(where: str, value: object, *, indent: int | None = None) -> str:
    """Return canonical JSON: sorted keys, finite numbers, equal text for equal values.

    Args:
        where: The file's name, for the message.
        value: Dictionaries with string keys, lists, strings, finite numbers, booleans
            and None.
        indent: Spaces per level, or None for one line without spaces.

    Returns:
        The text, without a newline at the end.

    Raises:
        InvalidArgumentError: If the value holds anything else.
    """
    try:
        return json.dumps(
            value,
            sort_keys=True,
            allow_nan=False,
            ensure_ascii=False,
            indent=indent,
            separators=(",", ": " if indent else ":"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{where}: must hold finite numbers, strings, lists and dictionaries, got "
            f"{_validate.show(value)} ({error}); write null for what is not finite"
        ) from error


def to_safetensors(where: str, tensors: Mapping[str, Tensor | NDArray[Any]]) -> bytes:
    """Return tensors in the safetensors format.

    Args:
        where: The file's name, for the message.
        tensors: Name -> float32, float64, int64, uint8 or bool, any shape.

    Returns:
        The file's content.

    Raises:
        InvalidTypeError: If a tensor has another type.
    """
    arrays = {}
    for name, value in tensors.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _DTYPES.values():
            raise InvalidTypeError(
                f"{where}: {name} must be one of {', '.join(_DTYPES.values())}, got "
                f"{dtype}; convert it first"
            )
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        # ascontiguousarray alone would turn a scalar into a row of one.
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    return safetensors.numpy.save(arrays)


def from_safetensors(
    path: Path, expected: Mapping[str, TensorForm] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, checked before any is allocated.

    Args:
        path: The file.
        expected: Name -> (dtype, shape) of exactly the tensors it must hold; None
            accepts what the header says.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        ValueError: If it is damaged, its header is over 16 MiB, the tensors are not
            one after the other and all of the file, it has a type that is never
            written here, or other tensors than expected.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = from_json(file.read(length).decode())
    found = _forms(header, size - 8 - length)
    if expected is not None:
        wanted = {name: (_named(d), tuple(s)) for name, (d, s) in expected.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{_form(found.get(name))} for {_validate.show(name)} instead of "
                    f"{_form(wanted.get(name))}"
                )
    try:
        return dict(safetensors.torch.load_file(path))
    except (TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def _forms(header: Any, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor after checking where its bytes lie.

    Args:
        header: The file's header.
        size: Bytes after it.

    Returns:
        Name -> (dtype, shape).

    Raises:
        ValueError: If the header lies about the file.
    """
    if not isinstance(header, dict):
        raise ValueError("a header that is no dictionary")
    forms, parts = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        keys = entry.keys() if isinstance(entry, dict) else None
        if keys != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"a damaged entry for {_validate.show(name)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"the type {_validate.show(dtype)}")
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"a damaged shape or place of {_validate.show(name)}")
        kind = np.dtype(_DTYPES[dtype])
        # One length may be 0 beside others that no array can have.
        if math.prod(length or 1 for length in shape) >= 2**60:
            raise ValueError(f"the shape {_validate.show(tuple(shape))}")
        begin, end = offsets
        if end - begin != math.prod(shape) * kind.itemsize:
            raise ValueError(
                f"{end - begin} bytes for {_validate.show(name)} of shape "
                f"{_validate.show(tuple(shape))}"
            )
        forms[name] = kind.name, tuple(shape)
        parts.append((begin, end))
    at = 0
    for begin, end in sorted(parts):
        if begin != at:
            raise ValueError(f"tensors with a gap or an overlap at byte {at}")
        at = end
    if at != size:
        raise ValueError(f"{size} bytes of tensors where the header says {at}")
    return forms


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _named(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _form(form: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if form is None else f"{form[0]} of shape {form[1]}"
