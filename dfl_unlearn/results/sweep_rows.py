"""The metric rows of many cases as columns: read fast, and checked all the same.

A sweep has millions of rows where a run has thousands. They are columns here, and
become mappings only where a ``ResultsTable`` is asked for.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import StoreCorruptError
from dfl_unlearn.results.sweep_cases import Case
from dfl_unlearn.results.sweep_protocols import Attempt, row_names
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.table import COLUMNS, INTEGER_COLUMNS, TEXT_COLUMNS, WORLDS
from dfl_unlearn.store.understood import understood

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.jsonl"
KEY = ("case", "protocol", "request", "world", "set", "metric", "peer")
"""Columns that name a row: no two rows have the same values in all of them."""


def read_rows(cases: Iterable[tuple[Case, Sequence[Attempt]]]) -> "pd.DataFrame":
    """Read the metric rows of complete cases.

    Args:
        cases: Complete cases, with the attempts in each.

    Returns:
        The columns ``COLUMNS``, texts as categories. ``case`` and ``seed`` are the
        sweep's; ``protocol`` is an attempt's name. A value that is not finite is NaN,
        ``inf`` or ``-inf``.

    Raises:
        StoreCorruptError: If a line is damaged, or a row lacks a value.
    """
    import pandas as pd

    codes: dict[str, dict[str, int]] = {column: {} for column in TEXT_COLUMNS}
    parts: dict[str, list[NDArray[Any]]] = {column: [] for column in COLUMNS}
    for case, attempts in cases:
        for column, values in _columns(case, attempts).items():
            known = codes.get(column)
            if known is not None:
                values = [known.setdefault(v, len(known)) for v in values]
            kind = np.float64 if column == "value" else np.int64
            parts[column].append(np.array(values, dtype=kind))
    joined = {
        column: np.concatenate(part) if part else np.empty(0, np.int64)
        for column, part in parts.items()
    }
    frame = pd.DataFrame(
        {
            column: pd.Categorical.from_codes(
                values, pd.Index(list(codes[column]), dtype="str")
            )
            if column in codes
            else values.astype("float64" if column == "value" else "int64")
            for column, values in joined.items()
        }
    )
    _refuse_repeated(frame)
    return frame


def _columns(case: Case, attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
    """Return a case's metric rows by column, each value of its kind."""
    root = RunFolder(case.folder).root  # refuses links
    with understood(root / RESULTS):
        rows = [row for row in _lines(root / RESULTS) if row["type"] == "metric"]
        columns = {c: [row[c] for row in rows] for c in COLUMNS}
        columns["value"] = [_value(row) for row in rows]
        for names, kind in ((TEXT_COLUMNS, str), (INTEGER_COLUMNS, int)):
            for name in names:
                _all_of(kind, name, columns[name])
        if not set(columns["world"]) <= set(WORLDS):
            raise ValueError(f"the worlds {sorted(set(columns['world']))}")
        columns["protocol"] = row_names(rows, attempts)
    columns["case"] = [case.name] * len(rows)
    columns["seed"] = [case.seed] * len(rows)
    return columns


def _lines(place: Path) -> list[dict[str, Any]]:
    """Return the records of a file of checked lines that nobody writes any more.

    As ``LineFile.records``, but the lines are parsed together, which is three times as
    fast, and a line cut short is damage: the case was complete.

    Raises:
        StoreCorruptError: If the file is gone, or a line does not match its checksum.
    """
    try:
        content = place.read_bytes()
    except FileNotFoundError as error:
        raise StoreCorruptError(
            f"{place}: must be there, since the case is complete, got no such file; "
            f"remove the folder {place.parent.name} and run the sweep again, which "
            "runs that case alone"
        ) from error
    bodies = []
    for number, line in enumerate(content.splitlines(), start=1):
        body = line[9:]
        if line[:9] != b"%08x " % zlib.crc32(body):
            raise StoreCorruptError(
                f"{place}: line {number} must match its checksum, got "
                f"{_validate.show(line[:40])}; the file was changed or damaged: remove "
                f"the folder {place.parent.name} and run the sweep again, which runs "
                "that case alone"
            )
        bodies.append(body)
    records: list[dict[str, Any]] = json.loads(b"[" + b",".join(bodies) + b"]")
    return records


def _value(row: Mapping[str, Any]) -> float:
    """Return a row's value; what JSON has no number for stands in its note.

    Raises:
        TypeError: If it is no number.
    """
    value = row["value"]
    if value is None:
        note = row.get("note")
        return float(note) if note in ("inf", "-inf") else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value is {_validate.show(value)}, not a number")
    return float(value)


def _all_of(kind: type, name: str, values: Sequence[object]) -> None:
    """Check a column's kind.

    Raises:
        TypeError: If a value is of another kind.
    """
    wrong = (
        [v for v in values if type(v) is not kind]
        if set(map(type, values)) - {kind}
        else []
    )
    if wrong:
        raise TypeError(f"{name} is {_validate.show(wrong[0])}, not a {kind.__name__}")


def _refuse_repeated(frame: "pd.DataFrame") -> None:
    """Check that no two rows say the same of a case.

    Raises:
        StoreCorruptError: If two do.
    """
    repeated = frame.duplicated(list(KEY))
    if repeated.any():
        row = frame[repeated].iloc[0]
        words = ", ".join(f"{c} {row[c]!r}" for c in KEY)
        raise StoreCorruptError(
            f"{RESULTS}: must have one row per {', '.join(KEY)}, got two with {words}; "
            "remove the case's folder and run the sweep again, which runs it alone"
        )
