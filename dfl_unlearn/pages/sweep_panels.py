"""What may be compared in a sweep: accuracy against epsilon, setting by setting.

What else varies must not run along a curve: an axis that changes a protocol's result
while epsilon stays makes a panel per value. An axis that only moves epsilon, or does
not touch a protocol, makes none.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dfl_unlearn.pages.sweep_lines import (
    Claim,
    Line,
    SweepLines,
    Value,
    axis_words,
)
from dfl_unlearn.pages.sweep_marks import holds

MOST_PANELS = 60
"""More settings than this are shown as one cloud of points."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One protocol in one panel.

    Attributes:
        protocol: Its name.
        points: By epsilon; those that have none last.
    """

    protocol: str
    points: tuple[tuple[Claim, Line], ...]

    @property
    def claimed(self) -> tuple[tuple[float, Claim, Value], ...]:
        """Epsilon, claim and accuracy where a guarantee above epsilon 0 is claimed."""
        return tuple(
            (claim.epsilon, claim, line.worlds["after"])
            for claim, line in self.points
            if holds(claim) and claim.epsilon
        )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The curves that may be compared with each other.

    Attributes:
        name: The setting in words, "" if there is one alone.
        curves: One per protocol and request.
    """

    name: str
    curves: tuple[Curve, ...]


def panels_of(sweep: SweepLines) -> tuple[Panel, ...]:
    """Return accuracy against epsilon, by setting.

    Args:
        sweep: The sweep.

    Returns:
        The panels, empty without test accuracy.
    """
    series: dict[tuple[str, str], list[Line]] = {}
    for line in sweep.accuracy:
        if line.after is not None:
            series.setdefault(line.group[1:], []).append(line)
    if not series:
        return ()
    # Curves decide; what has no epsilon stands beside those of its setting.
    splits = {
        key: _splits(sweep, key[0], lines)
        for key, lines in series.items()
        if any(sweep.claim(line.group).position is not None for line in lines)
    }
    chosen = sorted(set(itertools.chain(*splits.values())))
    settings = dict.fromkeys(
        tuple(line.group[0][axis] for axis in chosen)
        for (key, lines) in series.items()
        for line in lines
        if set(chosen) == splits.get(key)
    ) or dict.fromkeys(
        tuple(line.group[0][axis] for axis in chosen)
        for lines in series.values()
        for line in lines
    )
    if len(settings) > MOST_PANELS:
        chosen, settings = [], {(): None}
    panels = []
    several = len({request for _, request in series}) > 1
    for setting in settings:
        curves = []
        for (protocol, request), lines in series.items():
            mine = _in_panel(lines, chosen, setting, settings)
            if mine:
                name = f"{protocol} {request}" if several else protocol
                curves.append(Curve(protocol=name, points=_points(sweep, mine)))
        name = axis_words((sweep.axis_names[axis] for axis in chosen), setting)
        if curves:
            panels.append(Panel(name=name, curves=tuple(curves)))
    return tuple(panels)


def _splits(sweep: SweepLines, protocol: str, lines: Sequence[Line]) -> set[int]:
    """Return the axes that change a protocol's accuracy while its epsilon stays."""
    found = set()
    for axis, name in enumerate(sweep.axes):
        if _foreign(sweep, name, protocol):
            continue
        results: dict[tuple[Any, ...], set[Any]] = {}
        for line in lines:
            place = line.group[0]
            others = place[:axis] + place[axis + 1 :]
            key = (others, sweep.claim(line.group).position)
            value = line.worlds["after"]
            results.setdefault(key, set()).add((value.mean, value.spread))
        if any(len(values) > 1 for values in results.values()):
            found.add(axis)
    return found


def _foreign(sweep: SweepLines, axis: str, protocol: str) -> bool:
    """Return whether an axis is a field of other protocols alone."""
    fields = [field.strip().split(".") for field in axis.split(",")]
    names = set()
    for keys in fields:
        if len(keys) < 3 or keys[0] != "unlearning" or not keys[1].isdecimal():
            return False
        for plan in sweep.view.plans:
            tables = plan.get("base", {}).get("unlearning", ())
            if int(keys[1]) < len(tables):
                names.add(str(tables[int(keys[1])].get("use")))
    return bool(names) and not any(
        protocol == name or protocol.startswith((f"{name} ", f"{name}."))
        for name in names
    )


def _in_panel(
    lines: Sequence[Line],
    chosen: Sequence[int],
    setting: Sequence[Any],
    settings: Iterable[Sequence[Any]],
) -> list[Line]:
    """Return the lines of a protocol that belong to a setting.

    A protocol that was tried at one value alone, which no setting has, is in all.
    """
    known = [{other[k] for other in settings} for k in range(len(chosen))]
    mine = list(lines)
    for k, axis in enumerate(chosen):
        values = {line.group[0][axis] for line in lines}
        if values & known[k]:
            mine = [line for line in mine if line.group[0][axis] == setting[k]]
    return mine


def _points(sweep: SweepLines, lines: Sequence[Line]) -> tuple[tuple[Claim, Line], ...]:
    """Return lines with their claims by epsilon, equal results once."""
    found: dict[tuple[Any, ...], tuple[Claim, Line]] = {}
    for line in lines:
        claim, value = sweep.claim(line.group), line.worlds["after"]
        found.setdefault((claim.status, claim.position, value.mean), (claim, line))
    return tuple(
        sorted(
            found.values(),
            key=lambda point: (point[0].position is None, point[0].position or 0.0),
        )
    )
