"""What the page of a sweep is about: a line per point, protocol, request and metric.

The figures come from ``SweepView.summary``; here the three worlds of one quantity stand
beside each other, and the claims of a point's replicates become one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dfl_unlearn.results.sweep import Attempt, Case, SweepView
from dfl_unlearn.results.sweep_protocols import CLAIMS, NO_CLAIM
from dfl_unlearn.store.table import NETWORK, WORLDS, World

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[Any, ...]
"""A point of the sweep: one value per axis shown, texts or numbers."""
Group = tuple[Place, str, str]
"""Point, protocol, request."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A quantity over the seeds of a point.

    Attributes:
        mean: Over the seeds; the largest where the summary says so.
        spread: Sample standard deviation over the seeds, or None below two.
        worst: The worst seed's, or None.
        count: Seeds with a finite value.
        asked: Seeds that were asked for.
        peer_spread: Standard deviation over the peers, mean over the seeds, or None.
        peer_worst: The worst peer's of all seeds, or None.
    """

    mean: float
    spread: float | None
    worst: float | None
    count: int
    asked: int
    peer_spread: float | None
    peer_worst: float | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of one protocol at one point, in the worlds where it has a value.

    Attributes:
        group: Point, protocol and request.
        metric: Registered name.
        set: Rows it is measured on, or "".
        unit: Of the values.
        worlds: ``before``, ``after``, ``reference`` -> the value there.
        note: Why values are withheld, or "".
    """

    group: Group
    metric: str
    set: str
    unit: str
    worlds: Mapping[World, Value]
    note: str

    @property
    def after(self) -> Value | None:
        """The value after the request."""
        return self.worlds.get("after")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the certificates of a point's replicates say together.

    Attributes:
        status: The least of the seeds'.
        epsilon: The largest, where every seed claims one; else None.
        nominal: The largest that would hold if the reasons against it did not; None
            for a claim and without a certificate.
        scopes: Who is guarded against, all that occur.
        reasons: Why the status is not higher, each once.
    """

    status: str
    epsilon: float | None
    nominal: float | None
    scopes: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def position(self) -> float | None:
        """Where it stands on an axis of epsilon; None without any or at 0."""
        found = self.epsilon if self.epsilon is not None else self.nominal
        return found if found is not None and 0 < found < math.inf else None


@dataclass(frozen=True, eq=False)
class SweepLines:
    """A sweep as its page shows it.

    Attributes:
        view: The sweep.
    """

    view: SweepView

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """What varies: the axes, behind ``sweep`` where several were joined."""
        several = len({case.sweep for case in self.view.cases}) > 1
        return (*(("sweep",) if several else ()), *self.view.axes)

    @cached_property
    def axis_names(self) -> tuple[str, ...]:
        """The axes as figures and tables head them; of several fields the first."""
        names = []
        for axis in self.axes:
            first, *others = axis.split(",")
            names.append(f"{first.strip()} +{len(others)}" if others else first)
        return tuple(names)

    @cached_property
    def place_of(self) -> Mapping[str, Place]:
        """Case -> the point that it belongs to."""
        frame = self.view.case_frame.assign(sweep=self.view.sweeps)
        return dict(zip(frame["case"].tolist(), self._places(frame), strict=True))

    def case_texts(self, case: Case) -> list[str]:
        """Return a case's cells: the sweep it lies in, if joined, and its point."""
        place = self.place_of[case.name]
        if self.axes[:1] == ("sweep",):
            place = (case.sweep, *place[1:])
        return [cell_text(value) for value in place]

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The points with a complete case, in the order of the cases."""
        done = (case.name for case in self.view.cases if case.status == "done")
        return tuple(dict.fromkeys(self.place_of[name] for name in done))

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """All lines, in the order of the summary."""
        frame = self.view.summary()
        columns = {name: frame[name].tolist() for name in frame.columns}
        found: dict[tuple[Any, ...], dict[World, Value]] = {}
        notes: dict[tuple[Any, ...], str] = {}
        for k, place in enumerate(self._places(frame)):
            group = (place, columns["protocol"][k], columns["request"][k])
            names = (columns["metric"][k], columns["set"][k], columns["unit"][k])
            worlds = found.setdefault((group, *names), {})
            if columns["note"][k]:
                notes[group, *names] = columns["note"][k]
            value = _value({name: column[k] for name, column in columns.items()})
            if value is not None:
                worlds[columns["world"][k]] = value
        return tuple(
            Line(
                group=key[0],
                metric=key[1],
                set=key[2],
                unit=key[3],
                worlds={world: worlds[world] for world in WORLDS if world in worlds},
                note=notes.get(key, ""),
            )
            for key, worlds in found.items()
        )

    def of(self, metric: str) -> tuple[Line, ...]:
        """Return the lines of one metric."""
        return tuple(line for line in self.lines if line.metric == metric)

    @cached_property
    def accuracy(self) -> tuple[Line, ...]:
        """The lines of test accuracy; empty for a regression."""
        return self.of("test-accuracy")

    @cached_property
    def claims(self) -> Mapping[Group, Claim]:
        """Point, protocol and request -> what is claimed there."""
        groups: dict[Group, list[Attempt]] = {}
        for name, attempts in self.view.attempts.items():
            for attempt in attempts:
                group = (self.place_of[name], attempt.name, attempt.request)
                groups.setdefault(group, []).append(attempt)
        return {group: _together(attempts) for group, attempts in groups.items()}

    def claim(self, group: Group) -> Claim:
        """Return what is claimed for a point, protocol and request."""
        return self.claims.get(group, _NOTHING)

    def _places(self, frame: "pd.DataFrame") -> list[Place]:
        """Return the point of every row of a frame with the axes as columns."""
        columns = [map(_cell, frame[axis].tolist()) for axis in self.axes]
        return list(zip(*columns, strict=True)) if columns else [()] * len(frame)

    @cached_property
    def networks(self) -> Mapping[Place, tuple[str, int]]:
        """Point -> family of its network, and number of peers."""
        frame = self.view.networks
        families = zip(frame["family"], frame["peers"].tolist(), strict=True)
        return dict(zip(self._places(frame), families, strict=True))

    @cached_property
    def gaps(self) -> Mapping[Group, tuple[float, float | None, int]]:
        """Distance of test accuracy to the retrained network, in fractions.

        Mean over the seeds of the absolute difference on each, its sample standard
        deviation (None below two seeds), and the number of seeds.
        """
        import numpy as np

        frame = self.view.frame
        frame = frame[(frame["metric"] == "test-accuracy") & (frame["peer"] == NETWORK)]
        spread = frame.pivot_table(
            index=["case", "protocol", "request"],
            columns="world",
            values="value",
            aggfunc="first",
            sort=False,
        )
        if not {"after", "reference"} <= set(spread.columns):
            return {}
        away = (spread["after"] - spread["reference"]).abs().dropna()
        groups: dict[Group, list[float]] = {}
        for (case, protocol, request), value in away.items():
            group = (self.place_of[case], protocol, request)
            groups.setdefault(group, []).append(float(value))
        return {
            group: (
                float(np.mean(values)),
                float(np.std(values, ddof=1)) if len(values) > 1 else None,
                len(values),
            )
            for group, values in groups.items()
        }

    def point_words(self, place: Place) -> str:
        """Return a point in words: ``axis = value`` of every axis that it has."""
        return axis_words(self.axis_names, place)


_NOTHING = Claim(status=NO_CLAIM, epsilon=None, nominal=None, scopes=(), reasons=())


def axis_words(names: Iterable[str], values: Iterable[object]) -> str:
    """Return ``axis = value`` of the axes that have one; joined sweeps may not."""
    return ", ".join(
        f"{name} = {cell_text(value)}"
        for name, value in zip(names, values, strict=True)
        if value != ""
    )


def cell_text(value: object) -> str:
    """Return an axis value as text."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _together(attempts: Sequence[Attempt]) -> Claim:
    certificates = [a.certificate for a in attempts if a.certificate is not None]
    status = min((attempt.claim for attempt in attempts), key=CLAIMS.index)
    epsilons = [c.epsilon for c in certificates if c.epsilon is not None]
    claimed = status != NO_CLAIM and len(epsilons) == len(attempts)
    nominal = [
        value
        for c in certificates
        for value in (c.epsilon, c.nominal_epsilon)
        if value is not None
    ]
    return Claim(
        status=status,
        epsilon=max(epsilons) if claimed else None,
        nominal=max(nominal) if nominal and not claimed else None,
        scopes=tuple(dict.fromkeys(c.scope for c in certificates)),
        reasons=tuple(dict.fromkeys(r for c in certificates for r in c.reasons)),
    )


def _value(row: Mapping[str, Any]) -> Value | None:
    mean = _number(row["mean"])
    if mean is None:
        return None
    return Value(
        mean=mean,
        spread=_number(row["spread"]),
        worst=_number(row["worst"]),
        count=int(row["count"]),
        asked=int(row["asked"]),
        peer_spread=_number(row["peer_spread"]),
        peer_worst=_number(row["peer_worst"]),
    )


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _cell(value: Any) -> Any:
    """Return an axis value of a frame as a text, a number or a truth; none is ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.item() if hasattr(value, "item") else value
