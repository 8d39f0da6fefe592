"""Where data sets that come as files are looked for, and which rows a slice takes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.rng import RngTree


def cache_folder() -> Path:
    """Return the user's cache folder for data sets."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dfl_unlearn"


def search_folders(root: str | Path | None, below: str = "") -> list[Path]:
    """Return the folders that may hold a data set's files, first choice first.

    Args:
        root: Folder to look in first.
        below: Folder in each of them that is looked in too.

    Returns:
        ``root``, what ``DFL_UNLEARN_DATA`` names, and the user's cache, where they are
        given; each followed by its ``below``.
    """
    _validate.of_type((str, Path), root="" if root is None else root)
    roots = [Path(root).expanduser()] if root else []
    if os.environ.get("DFL_UNLEARN_DATA"):
        roots.append(Path(os.environ["DFL_UNLEARN_DATA"]).expanduser())
    roots.append(cache_folder())
    parts = ("", below) if below else ("",)
    return [folder / part for folder in roots for part in parts]


def slice_rows(
    total: int, count: int | None, *, argument: str, part: str
) -> NDArray[np.int64]:
    """Return which rows a slice of a table takes, the same ones every time.

    The rows are drawn, so that tables sorted by class give every class; a smaller
    slice of a table is a part of a larger one.

    Args:
        total: Rows of the table.
        count: How many to take; None takes all.
        argument: Name of ``count`` in messages.
        part: ``train`` or ``test``; the two draw apart.

    Returns:
        Ascending row numbers, shape ``(count,)``.

    Raises:
        InvalidArgumentError: If the table has fewer rows.
    """
    if count is None:
        return np.arange(total)
    named: dict[str, Any] = {argument: count}
    _validate.integer(at_least=1, **named)
    if count > total:
        raise InvalidArgumentError(
            f"{argument}: must be <= {total}, the rows of the {part} table, got "
            f"{count}; leave it out to take all"
        )
    drawn = RngTree("rows").child(part).numpy("data-split").permutation(total)
    return np.sort(drawn[:count])
