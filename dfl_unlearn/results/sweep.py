"""The read-only face of a sweep: its cases, their values, and how far each has come.

A sweep folder holds ``sweep.json``, which says what was asked for, and a run folder per
case under ``cases``. Everything shown here comes from those; tables in the folder are
copies that can be deleted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfl_unlearn.errors import InputFileError
from dfl_unlearn.store.files import from_json
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.table import COLUMNS, ResultsTable

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
PLAN = "sweep.json"
CASES = "cases"
FAILURES = "failures.jsonl"
Status = Literal["done", "partial", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of a sweep.

    Attributes:
        name: First 12 hex digits of its configuration's hash, and its folder's name.
        point: Axis -> this case's value, in the order of the axes.
        seed: Its seed.
        folder: Its run folder; need not exist.
        status: How far it has come.
        digest: Of the finished run, or "".
        seconds: What it took, or None.
        error: Why it failed, or "".
    """

    name: str
    point: Mapping[str, Any]
    seed: int
    folder: Path
    status: Status
    digest: str = ""
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep folder, read.

    Attributes:
        root: The folder.
        name: The sweep's name.
        axes: Dotted fields that vary, in their order.
        seeds: Seeds of the replicates.
        cases: All cases that were asked for.
        plan: ``sweep.json`` as it is.
    """

    root: Path
    name: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    cases: tuple[Case, ...]
    plan: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "SweepView":
        """Read a sweep folder.

        Args:
            folder: E.g. ``runs/topology``.

        Returns:
            The sweep as it stands now.

        Raises:
            InputFileError: If it has no readable ``sweep.json``.
        """
        root = Path(folder)
        try:
            plan = from_json((root / "sweep.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputFileError(
                f"{root}: must be a sweep folder, got no readable sweep.json; make one "
                "with 'dfl-unlearn sweep'"
            ) from error
        cases = tuple(_case(root, entry) for entry in plan["cases"])
        return cls(
            root=root,
            name=plan["name"],
            axes=tuple(plan["axes"]),
            seeds=tuple(plan["seeds"]),
            cases=cases,
            plan=plan,
        )

    @cached_property
    def table(self) -> ResultsTable:
        """The metric rows of all finished cases; ``case`` names the case."""
        rows = []
        for case in self.cases:
            if case.status == "done":
                for row in RunFolder(case.folder).records():
                    if row["type"] == "metric":
                        kept = {c: row[c] for c in COLUMNS}
                        rows.append({**kept, "case": case.name, "seed": case.seed})
        return ResultsTable(rows=tuple(rows))

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The rows of ``table`` with a column per axis in front."""
        frame = self.table.frame
        points = {case.name: case.point for case in self.cases}
        for k, axis in enumerate(self.axes):
            values = [shown(points[name][axis]) for name in frame["case"]]
            frame.insert(k, axis, values)
        return frame

    def write_tables(self) -> None:
        """Write all rows with their axes as ``table.csv`` and ``table.parquet``."""
        frame = self.frame
        frame.to_csv(self.root / "table.csv", index=False)
        frame.to_parquet(self.root / "table.parquet", index=False)


def shown(value: Any) -> Any:
    """Return an axis value as one cell: a table as ``use key=value``, a list joined."""
    if isinstance(value, Mapping):
        name = [str(value["use"])] if "use" in value else []
        rest = [f"{k}={shown(v)}" for k, v in value.items() if k != "use"]
        return " ".join(name + rest)
    if isinstance(value, list | tuple):
        return ", ".join(str(shown(item)) for item in value)
    return value


def _case(root: Path, entry: Mapping[str, Any]) -> Case:
    folder = root / CASES / entry["case"]
    status: Status = "missing"
    digest = ""
    seconds = None
    if (folder / "case.json").is_file():
        status = "done"
        told = from_json((folder / "case.json").read_text("utf-8"))
        digest, seconds = told["digest"], told["seconds"]
    elif folder.is_dir():
        status = "partial"
    return Case(
        name=entry["case"],
        point=entry["point"],
        seed=entry["seed"],
        folder=folder,
        status=status,
        digest=digest,
        seconds=seconds,
    )
