"""Rows of metric values: filtered, pivoted, printed, written as CSV and Parquet.

One row is one value of one metric, for one peer or the whole network, before a
request, after it, or in the retrained reference. A table knows rows only; pandas is
imported when a frame is asked for.
"""

import csv
import html
import io
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError
from dfl_unlearn.store.files import write_file

if TYPE_CHECKING:
    import pandas as pd

World = Literal["before", "after", "reference"]
WORLDS: tuple[World, ...] = ("before", "after", "reference")

TEXT_COLUMNS = ("case", "world", "protocol", "request", "set", "metric", "unit")
INTEGER_COLUMNS = ("round", "peer", "hop", "seed")
COLUMNS = (
    "case",
    "world",
    "protocol",
    "request",
    "round",
    "peer",
    "hop",
    "set",
    "metric",
    "value",
    "unit",
    "seed",
)
NETWORK = -1
"""Value of ``peer`` and ``hop`` in a row about the whole network."""

# A membership attack's registered name starts so; its value says nothing without the
# value that a retrained network has under the same attack.
ATTACKS = ("mia-", "lira", "u-lira")
_FORMULA = ("=", "+", "-", "@")
_COUNTED = ("bytes", "messages", "gradients", "rounds")
_GROUP = ("case", "protocol", "request", "seed")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric on one set, over all peers; None where there is no value.

    Attributes:
        case: Run or case the values come from, or "".
        protocol: Registered name of the protocol.
        request: Id of the request.
        seed: Seed of the run.
        metric: Registered name of the metric.
        set: ``test``, ``retain``, ``forget`` or "".
        unit: Unit of all values.
        before: Value of the network before the request; the mean over peers where the
            metric has a value per peer.
        after: The same after the request.
        reference: The same in the retrained network.
        worst: Value of the worst peer after the request. On the forget set it is the
            peer farthest from its retrained self (without a reference, the one that
            remembers most); otherwise the lowest fraction, or the highest value in any
            other unit.
        worst_peer: Index of that peer.
        spread: Standard deviation over the peers after the request.
        note: Why values are withheld, or "".
    """

    case: str
    protocol: str
    request: str
    seed: int
    metric: str
    set: str
    unit: str
    before: float | None
    after: float | None
    reference: float | None
    worst: float | None
    worst_peer: int | None
    spread: float | None
    note: str

    def texts(self) -> tuple[str, ...]:
        """Return the line's cells as text: name, set, five values, unit and note."""
        worst = _text(self.worst, self.unit)
        if self.worst is not None:
            worst += f" (peer {self.worst_peer})"
        return (
            _validate.clean(self.metric),
            _validate.clean(self.set),
            _text(self.before, self.unit),
            _text(self.after, self.unit),
            _text(self.reference, self.unit),
            worst,
            _text(self.spread, self.unit),
            _validate.clean(f"{self.unit}; {self.note}" if self.note else self.unit),
        )


_HEADER = ("metric", "set", "before", "after", "retrained", "worst peer", "spread", "")
_LEFT = (0, 1, 7)


@dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """Metric values, one per row.

    Attributes:
        rows: One mapping per value with the keys ``COLUMNS``. ``peer`` is -1 for the
            whole network (so is its ``hop``); ``hop`` counts from the requester;
            ``value`` is float64, NaN (or None when given) where there is none.
    """

    rows: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Check every row and bring its values to plain Python types."""
        object.__setattr__(self, "rows", tuple(_checked(row) for row in self.rows))

    @classmethod
    def concat(cls, tables: Iterable["ResultsTable"]) -> "ResultsTable":
        """Return the rows of several tables, in order."""
        return cls(rows=tuple(row for table in tables for row in table.rows))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def frame(self) -> "pd.DataFrame":
        """A new pandas frame with one row per value and the columns ``COLUMNS``."""
        import pandas as pd

        columns = {c: [row[c] for row in self.rows] for c in COLUMNS}
        types = dict.fromkeys(INTEGER_COLUMNS, "int64") | {"value": "float64"}
        frame = pd.DataFrame(columns, columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(TEXT_COLUMNS, "str") | types)

    def filter(self, **columns: Any) -> "ResultsTable":
        """Return the rows whose columns have the given values.

        Args:
            **columns: A value, or a list, tuple or set of allowed values, per column.

        Returns:
            A table, possibly empty.
        """
        _known(tuple(columns))
        wanted = {
            c: set(v) if isinstance(v, list | tuple | set | frozenset) else {v}
            for c, v in columns.items()
        }
        return ResultsTable(
            rows=tuple(
                r for r in self.rows if all(r[c] in v for c, v in wanted.items())
            )
        )

    def pivot(
        self, index: str | Sequence[str], columns: str | Sequence[str]
    ) -> "pd.DataFrame":
        """Return the values spread over two axes; several in one cell are averaged.

        Args:
            index: Column or columns whose values name the rows.
            columns: Column or columns whose values name the columns.

        Returns:
            A frame of means. A pivot by ``peer`` or ``hop`` uses the rows of peers, any
            other one the rows of the whole network, so that no value counts twice.
        """
        down, across = _names(index), _names(columns)
        _known(down + across)
        by_peer = {"peer", "hop"} & {*down, *across}
        chosen = (row for row in self.rows if (row["peer"] == NETWORK) != bool(by_peer))
        frame = ResultsTable(rows=tuple(chosen)).frame
        return frame.pivot_table(
            index=list(down), columns=list(across), values="value", aggfunc="mean"
        )

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV, whole or not at all.

        Texts that a spreadsheet would run as a formula get a leading apostrophe, and
        control characters are left out; a value that is not finite is written as
        ``nan``, ``inf`` or ``-inf``.

        Args:
            path: The file; its folder exists.

        Returns:
            The path.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(
                harmless(row[c]) if c in TEXT_COLUMNS else row[c] for c in COLUMNS
            )
        path = Path(path)
        write_file(path, buffer.getvalue().encode())
        return path

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows as Parquet, whole or not at all.

        Args:
            path: The file; its folder exists.

        Returns:
            The path.
        """
        buffer = io.BytesIO()
        self.frame.to_parquet(buffer, index=False)
        path = Path(path)
        write_file(path, buffer.getvalue())
        return path

    def summary(self) -> tuple[Summary, ...]:
        """Return one line per metric and set of every case, protocol and request.

        A membership attack's values are withheld where the reference's is absent.

        Returns:
            The lines, in the order in which the rows name them.
        """
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in self.rows:
            key = tuple(row[c] for c in (*_GROUP, "metric", "set", "unit"))
            groups.setdefault(key, []).append(row)
        return tuple(_summarized(key, rows) for key, rows in groups.items())

    def __str__(self) -> str:
        """Return the summary as aligned text."""
        blocks = []
        for title, lines in self._blocks():
            cells = [_HEADER, *(line.texts() for line in lines)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            text = [
                "  ".join(
                    c.ljust(w) if k in _LEFT else c.rjust(w)
                    for k, (c, w) in enumerate(zip(line, widths, strict=True))
                ).rstrip()
                for line in cells
            ]
            blocks.append("\n".join([title, *text]))
        return "\n\n".join(blocks) or "no results"

    def _repr_html_(self) -> str:
        """Return the summary as HTML tables, every text escaped."""
        parts = []
        for title, lines in self._blocks():
            head = "".join(f"<th>{c}</th>" for c in _HEADER)
            body = "".join(
                "<tr>"
                + "".join(f"<td>{html.escape(c)}</td>" for c in line.texts())
                + "</tr>"
                for line in lines
            )
            parts.append(
                f"<table><caption>{html.escape(title)}</caption>"
                f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            )
        return "".join(parts) or "<p>no results</p>"

    def _blocks(self) -> list[tuple[str, list[Summary]]]:
        blocks: dict[str, list[Summary]] = {}
        for line in self.summary():
            named = f"request {line.request}" if line.request else ""
            parts = (line.case, line.protocol, named, f"seed {line.seed}")
            title = _validate.clean(", ".join(part for part in parts if part))
            blocks.setdefault(title, []).append(line)
        return list(blocks.items())


def _summarized(key: tuple[Any, ...], rows: list[Mapping[str, Any]]) -> Summary:
    case, protocol, request, seed, metric, over, unit = key
    network = {
        r["world"]: _known_value(r["value"]) for r in rows if r["peer"] == NETWORK
    }
    peers: dict[str, dict[int, float]] = {world: {} for world in WORLDS}
    for row in rows:
        if row["peer"] != NETWORK and math.isfinite(row["value"]):
            peers[row["world"]][row["peer"]] = row["value"]
    reference = network.get("reference")
    withheld = metric.startswith(ATTACKS) and reference is None
    worst = None if withheld else _worst(peers, over, unit)
    after = list(peers["after"].values())
    return Summary(
        case=case,
        protocol=protocol,
        request=request,
        seed=seed,
        metric=metric,
        set=over,
        unit=unit,
        before=None if withheld else network.get("before"),
        after=None if withheld else network.get("after"),
        reference=reference,
        worst=None if worst is None else peers["after"][worst],
        worst_peer=worst,
        spread=float(np.std(after)) if after and not withheld else None,
        note="no reference" if withheld else "",
    )


def _worst(peers: dict[str, dict[int, float]], over: str, unit: str) -> int | None:
    """Return the worst peer after the request, the first of equals."""
    after, reference = peers["after"], peers["reference"]
    if not after:
        return None
    if over == "forget" and after.keys() <= reference.keys():
        return max(sorted(after), key=lambda i: abs(after[i] - reference[i]))
    lowest = unit == "fraction" and over != "forget"
    return (min if lowest else max)(sorted(after), key=after.__getitem__)


def _known_value(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{value:.4f}"
    if unit in _COUNTED:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def harmless(text: str) -> str:
    """Return text that no spreadsheet runs as a formula, without control letters."""
    text = _validate.clean(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _known(columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise InvalidArgumentError(
                f"column: must be one of {', '.join(COLUMNS)}, "
                f"got {_validate.show(column)}"
            )


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    if set(row) != set(COLUMNS):
        wrong = sorted(set(row) ^ set(COLUMNS))
        raise InvalidArgumentError(
            f"rows: every row must have exactly the columns {', '.join(COLUMNS)}, got "
            f"a difference in {_validate.show(wrong)}"
        )
    _validate.of_type(str, **{c: row[c] for c in TEXT_COLUMNS})
    _validate.integer(**{c: row[c] for c in INTEGER_COLUMNS})
    _validate.one_of(WORLDS, world=row["world"])
    value = math.nan if row["value"] is None else row["value"]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(
            f"value: must be a number or None, got {_validate.show(value)}"
        )
    integers = {c: int(row[c]) for c in INTEGER_COLUMNS}
    return {c: row[c] for c in COLUMNS} | integers | {"value": float(value)}
