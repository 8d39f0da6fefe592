"""Single files: written whole or not at all, read strictly.

A file is written beside its place, made durable and then moved there, so neither a
reader nor a crash ever sees half of it. Rules: robustness.md §4, §5 and §7.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, StoreWriteError

_MAX_HEADER = 16 * 2**20
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


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
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


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
                f"{path}: no space left (needed {max(1, round(size / 1000))} kB); free "
                "some and repeat, what was written before is intact"
            ) from error
        raise StoreWriteError(
            f"{path}: must be writable, got {cause(error)}; check the folder's rights "
            "or choose another one"
        ) from error


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


def from_json(text: str) -> Any:
    """Return the value of strict JSON.

    Args:
        text: One JSON document.

    Returns:
        The value.

    Raises:
        ValueError: If it is not JSON, repeats a key or has a number that is not
            finite.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("nesting that is too deep") from error


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


def from_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        path: The file.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        ValueError: If it is damaged, its header is over 16 MiB, or it has a type that
            is never written here.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = from_json(file.read(length).decode())
        kinds = {v["dtype"] for k, v in header.items() if k != "__metadata__"}
        if not kinds <= _DTYPES.keys():
            raise ValueError(f"the types {', '.join(sorted(map(str, kinds)))}")
        return dict(safetensors.torch.load_file(path))
    except (TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a repeated key")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name}")
