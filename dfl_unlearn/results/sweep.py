"""The read-only face of a sweep: its cases, their values, and how far each has come.

A sweep folder holds ``sweep.json``, which says what was asked for, and a run folder per
case under ``cases``. Everything shown here comes from those; tables in the folder are
copies that can be deleted and written again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.results.summaries import summarize
from dfl_unlearn.results.sweep_cases import (
    CASE,
    CASES,
    FAILURES,
    FORMAT,
    PLAN,
    Case,
    Refused,
    Status,
    family_of,
    point_key,
    read_cases,
    read_plan,
    shown,
)
from dfl_unlearn.results.sweep_join import joined_cases, unique_names
from dfl_unlearn.results.sweep_protocols import Attempt, read_attempts
from dfl_unlearn.results.sweep_rows import read_rows
from dfl_unlearn.results.sweep_tables import write_tables
from dfl_unlearn.store.table import COLUMNS, TEXT_COLUMNS, ResultsTable

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CASE",
    "CASES",
    "FAILURES",
    "FORMAT",
    "PLAN",
    "Attempt",
    "Case",
    "Refused",
    "Status",
    "SweepView",
    "shown",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepView:
    """A sweep folder, or several as one, read.

    What takes time is read on first use and kept: a view shows the sweep as it stood
    then, open another one to see what was done since.

    Attributes:
        folders: The sweep folders.
        name: The sweep's name; of several joined with ``+``.
        axes: Dotted fields that vary, in their order.
        seeds: Seeds of the replicates.
        cases: All cases that were asked for.
        plans: ``sweep.json`` of each folder.

    Example:
        >>> view = SweepView.open("runs/topology")  # doctest: +SKIP
        >>> view.summary()[["topology", "metric", "mean", "count"]]  # doctest: +SKIP
    """

    folders: tuple[Path, ...]
    name: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    cases: tuple[Case, ...]
    plans: tuple[Mapping[str, Any], ...]

    @classmethod
    def open(cls, folder: str | Path) -> "SweepView":
        """Read a sweep folder.

        Args:
            folder: E.g. ``runs/topology``.

        Returns:
            The sweep as it stands now.

        Raises:
            InputFileError: If it has no readable ``sweep.json``.
            UnsupportedFormatError: If another version wrote it.
            StoreCorruptError: If a file lacks a value; the message names it.
        """
        root = Path(folder)
        plan = read_plan(root)
        return cls(
            folders=(root,),
            name=plan["name"],
            axes=tuple(plan["axes"]),
            seeds=tuple(plan["seeds"]),
            cases=read_cases(root, plan, plan["name"]),
            plans=(plan,),
        )

    @classmethod
    def join(cls, folders: Sequence[str | Path]) -> "SweepView":
        """Read several sweep folders as one sweep.

        It has the axes of all. What a sweep does not vary has the value of its base
        there, or is empty where the base does not say it. A case that lies in several
        folders counts once. Sweeps whose bases are equal but for the axes share their
        points, so more seeds of a point may come from another folder; the points of
        other sweeps are kept apart.

        Args:
            folders: The folders, at least one.

        Returns:
            The sweep; ``write_tables`` needs a folder to write to.

        Raises:
            InvalidArgumentError: If a case has other results in another folder, or two
                cases of one point have the same seed.
        """
        if isinstance(folders, str | Path) or not folders:
            raise InvalidArgumentError(
                f"folders: must be a list of sweep folders, got {folders!r}; give e.g. "
                "['runs/first', 'runs/second']"
            )
        views = [cls.open(folder) for folder in dict.fromkeys(map(Path, folders))]
        if len(views) == 1:
            return views[0]
        names = unique_names([view.name for view in views])
        plans = tuple(view.plan for view in views)
        axes = tuple(dict.fromkeys(axis for view in views for axis in view.axes))
        own = [
            tuple(replace(case, sweep=name) for case in view.cases)
            for name, view in zip(names, views, strict=True)
        ]
        return cls(
            folders=tuple(view.root for view in views),
            name=" + ".join(names),
            axes=axes,
            seeds=tuple(dict.fromkeys(seed for view in views for seed in view.seeds)),
            cases=joined_cases(list(zip(plans, own, strict=True)), axes),
            plans=plans,
        )

    @property
    def root(self) -> Path:
        """The sweep's folder.

        Raises:
            InvalidArgumentError: If several were joined.
        """
        if len(self.folders) > 1:
            raise InvalidArgumentError(
                f"root: must be one folder, got {len(self.folders)} that were joined; "
                "give the folder to write to"
            )
        return self.folders[0]

    @property
    def plan(self) -> Mapping[str, Any]:
        """``sweep.json`` of the folder, or of the first one."""
        return self.plans[0]

    @cached_property
    def attempts(self) -> Mapping[str, tuple[Attempt, ...]]:
        """Complete case -> the requests that were carried out there, with claims."""
        return {c.name: read_attempts(c) for c in self.cases if c.status == "done"}

    @cached_property
    def table(self) -> ResultsTable:
        """The metric rows of all complete cases; ``case`` names the case.

        ``protocol`` is its label, with the settings that differ where one case tries
        a protocol several times, e.g. ``newton-fisher scope=view``.
        """
        texts = self._rows.astype(dict.fromkeys(TEXT_COLUMNS, object))
        return ResultsTable(rows=tuple(texts.to_dict("records")))

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The rows of ``table`` with the sweep and a column per axis in front."""
        rows = self._rows.astype(dict.fromkeys(TEXT_COLUMNS, "str"))
        points = self._points.loc[rows["case"]].reset_index(drop=True)
        return points[["sweep", *self.axes]].join(rows)

    @property
    def case_frame(self) -> "pd.DataFrame":
        """One row per case.

        Columns: ``sweep``, ``case``, one per axis, ``seed``, ``status``, ``digest``,
        ``seconds`` (NaN where not known), ``refused`` (texts, joined with ``; ``),
        ``error``.
        """
        import pandas as pd

        told = pd.DataFrame(
            {
                "seed": [case.seed for case in self.cases],
                "status": [case.status for case in self.cases],
                "digest": [case.digest for case in self.cases],
                "seconds": pd.array([c.seconds for c in self.cases], dtype="float64"),
                "refused": ["; ".join(map(str, c.refused)) for c in self.cases],
                "error": [case.error for case in self.cases],
            }
        )
        points = self._points.rename_axis("case").reset_index()
        front = points[["sweep", "case", *self.axes]]
        return front.join(told)

    def summary(self) -> "pd.DataFrame":
        """Return one row per point, protocol, request, world, set and metric.

        Columns, all from the rows about the network (``peer`` -1) of one point's
        seeds, unless said otherwise:

        - ``sweep`` and a column per axis; ``protocol``, ``request``, ``world``,
          ``set``, ``metric``, ``unit``
        - ``claim``: what is claimed of the network after the request; the least of
          the seeds', ``"none"`` without a certificate, "" where it is not known and
          in the other worlds
        - ``nominal_epsilon``: the largest epsilon of the certificates, claimed or not:
          of a heuristic one it is what would follow if its assumptions held
        - ``mean``; of ``epsilon-spent``, which is a bound and no random quantity, the
          largest, and NaN unless every seed has one (``how`` is then ``max``)
        - ``spread``: sample standard deviation over the seeds, NaN below two
        - ``count``: seeds with a finite value; ``asked``: seeds that were asked for.
          It is lower where seeds failed, a protocol refused, or a value is not finite
        - ``worst``: the worst seed's value, also an infinite one
        - ``peer_spread``: standard deviation over the peers, mean over the seeds;
          ``peer_worst``: value of the worst peer of all seeds
        - ``how``: ``mean`` or ``max``; ``note``: why values are withheld, in how
          many seeds the value is infinite (no mean counts those), or ""

        Worst is what ``ResultsTable.summary`` calls so: on the forget set farthest
        from the same seed's (peer's) retrained value, without one the highest;
        otherwise the lowest fraction, or the highest value in another unit. A
        membership attack's values are withheld where the seed's reference is absent.

        Returns:
            A new frame, in the order in which the cases name their rows.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> "pd.DataFrame":
        points = self._points.assign(sweep=self.sweeps).groupby(
            self._points.index.map(self._point_of), sort=False
        )
        return summarize(self._rows, self._point_of, points.first(), self._claims)

    @cached_property
    def networks(self) -> "pd.DataFrame":
        """One row per complete case: ``sweep``, the axes, ``family`` and ``peers``.

        ``family`` is what ``topology.use`` names; ``peers`` is 0 where nothing is
        measured per peer.
        """
        done = [case for case in self.cases if case.status == "done"]
        largest = self._rows.groupby("case", observed=True)["peer"].max()
        points = self._points.assign(sweep=self.sweeps)
        frame = points.loc[[case.name for case in done]]
        frame["family"] = [family_of(case) for case in done]
        frame["peers"] = [int(largest.get(case.name, -1)) + 1 for case in done]
        return frame.reset_index(drop=True)

    def write_tables(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write the summary, all rows and the cases as CSV, and as Parquet.

        Args:
            folder: Where to; None is the sweep's folder. Made if it does not exist.

        Returns:
            ``table.csv``, ``table.parquet`` (the summary), ``rows.csv``,
            ``rows.parquet`` and ``cases.csv``. Equal sweeps give equal bytes. They
            are copies: delete them as you like.
        """
        place = self.root if folder is None else Path(folder)
        return write_tables(place, self.summary(), self.frame, self.case_frame)

    @cached_property
    def _rows(self) -> "pd.DataFrame":
        """All metric rows, texts as categories."""
        done = [case for case in self.cases if case.status == "done"]
        return read_rows((case, self.attempts[case.name]) for case in done)

    @cached_property
    def _points(self) -> "pd.DataFrame":
        """The sweep and a column per axis, by case."""
        import pandas as pd

        taken = sorted({"sweep", *COLUMNS} & set(self.axes))
        if taken:
            raise InvalidArgumentError(
                f"axes: must not have the name of a column, got {', '.join(taken)}; "
                "give several seeds in place of an axis 'seed'"
            )
        columns = {"sweep": [case.sweep for case in self.cases]} | {
            axis: [shown(case.point[axis]) for case in self.cases] for axis in self.axes
        }
        names = pd.Index([case.name for case in self.cases], dtype="str")
        return pd.DataFrame(columns, index=names)

    @cached_property
    def _point_of(self) -> dict[str, int]:
        """Case -> number of its point."""
        numbers: dict[str, int] = {}
        return {
            case.name: numbers.setdefault(point_key(case), len(numbers))
            for case in self.cases
        }

    @property
    def sweeps(self) -> list[str]:
        """What ``summary`` calls each case's sweep: all that have its point."""
        names: dict[int, dict[str, None]] = {}
        for case in self.cases:
            names.setdefault(self._point_of[case.name], {})[case.sweep] = None
        return [" + ".join(names[self._point_of[case.name]]) for case in self.cases]

    @property
    def _claims(self) -> "pd.DataFrame":
        """What each attempt claims."""
        import pandas as pd

        found = [
            (case, a.name, a.request, a.claim, a.epsilon)
            for case, attempts in self.attempts.items()
            for a in attempts
        ]
        texts = ["case", "protocol", "request", "claim"]
        frame = pd.DataFrame(found, columns=[*texts, "epsilon"])
        return frame.astype({**dict.fromkeys(texts, "str"), "epsilon": "float64"})
