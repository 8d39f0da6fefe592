"""The curves of a sweep between privacy and utility: accuracy against epsilon.

What else varies must not run along a curve: an axis that changes a protocol's result
while epsilon stays makes a panel per value. An axis that only moves epsilon, or does
not touch a protocol, makes none.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn.pages.document import Chart, plot_text
from dfl_unlearn.pages.sweep_lines import (
    Claim,
    Line,
    SweepLines,
    Value,
    cell_text,
)
from dfl_unlearn.pages.sweep_marks import (
    DASHES,
    GREY,
    INK,
    LEGEND,
    claim_words,
    holds,
    hover,
    legend_name,
    marker,
    palette,
    percent,
    points_words,
    rounded,
    select,
)
from dfl_unlearn.store.table import World

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
    splits = {key: _splits(sweep, key[0], lines) for key, lines in series.items()}
    chosen = sorted(set(itertools.chain(*splits.values())))
    settings = dict.fromkeys(
        tuple(line.group[0][axis] for axis in chosen)
        for (key, lines) in series.items()
        for line in lines
        if set(chosen) == splits[key]
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
        name = ", ".join(
            f"{sweep.axis_names[axis]} = {cell_text(value)}"
            for axis, value in zip(chosen, setting, strict=True)
        )
        if curves:
            panels.append(Panel(name=name, curves=tuple(curves)))
    return tuple(panels)


def privacy_chart(panels: Sequence[Panel]) -> Chart | None:
    """Return the figure, with a choice of the setting where there are several.

    Args:
        panels: As ``panels_of`` gives them.

    Returns:
        The figure, or None if no setting has two epsilons to compare.
    """
    shown = [panel for panel in panels if len(_positions(panel)) > 1]
    if not shown:
        return None
    colours = palette([curve.protocol for panel in shown for curve in panel.curves])
    variants = [_drawn(panel, colours) for panel in shown]
    return Chart(
        name="privacy-utility",
        title="Accuracy against epsilon",
        alt=variants[0]["alt"],
        data=variants[0]["data"],
        layout=variants[0]["layout"],
        height=460,
        caption="Mean over the seeds; bars are one standard deviation over them, and "
        f"absent with a single seed. {LEGEND} Their epsilon is nominal. Protocols "
        "without any stand at the right. A click on a name hides it, and the axis then "
        "fits what is left.",
        hook="variants" if len(shown) > 1 else "",
        extra={"variants": variants} if len(shown) > 1 else None,
        controls=h.tag(
            "div",
            select("privacy-utility-choice", "Setting", [p.name for p in shown]),
            class_="controls",
        )
        if len(shown) > 1
        else h.Html(),
    )


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


def _positions(panel: Panel) -> list[float]:
    """Return the epsilons in a panel, in order, claimed and nominal ones."""
    return sorted(
        {
            claim.position
            for curve in panel.curves
            for claim, _ in curve.points
            if claim.position is not None
        }
    )


def _drawn(panel: Panel, colours: Mapping[str, str]) -> dict[str, Any]:
    placed = _positions(panel)
    ends = (placed[0] / 1.3, placed[-1] * 1.3)
    data: list[dict[str, Any]] = [*_yardsticks(panel, ends)]
    apart = False
    for curve in panel.curves:
        for status in dict.fromkeys(claim.status for claim, _ in curve.points):
            points = [point for point in curve.points if point[0].status == status]
            with_epsilon = [p for p in points if p[0].position is not None]
            without = [p for p in points if p[0].position is None]
            colour = colours[curve.protocol]
            if with_epsilon:
                data.append(_trace(curve.protocol, status, with_epsilon, colour))
            if without:
                apart = True
                data.append(_trace(curve.protocol, status, without, colour))
    layout: dict[str, Any] = {
        "xaxis": {
            "type": "log",
            "title": {"text": "epsilon (smaller guarantees more)"},
            "domain": [0, 0.84] if apart else [0, 1],
            **_ticks(placed),
        },
        "yaxis": {"title": {"text": "test accuracy"}, "tickformat": ".0%"},
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top"},
        "margin": {"l": 60, "r": 15, "t": 30 if panel.name else 15, "b": 45},
        "hovermode": "closest",
    }
    if panel.name:  # on paper, where no choice is shown
        layout["title"] = {
            "text": plot_text(panel.name),
            "font": {"size": 12},
            "x": 0.02,
            "y": 0.99,
            "yanchor": "top",
        }
    if apart:
        layout["xaxis2"] = {
            "type": "category",
            "domain": [0.88, 1],
            "title": {"text": "no ε"},
            "showticklabels": False,
            "showgrid": False,
        }
    return {
        "name": panel.name,
        "data": data,
        "layout": layout,
        "alt": panel_words(panel),
    }


def _ticks(placed: Sequence[float]) -> dict[str, Any]:
    """Return ticks at the epsilons themselves, where they are few."""
    values = sorted({float(f"{value:.3g}") for value in placed})
    if not 1 < len(values) <= _MOST_TICKS:
        return {"dtick": "D2"}
    return {"tickvals": values, "ticktext": [f"{value:g}" for value in values]}


_MOST_TICKS = 10


def _trace(
    protocol: str, status: str, points: Sequence[tuple[Claim, Line]], colour: str
) -> dict[str, Any]:
    """Return one protocol's points of one status; a line joins points of a curve."""
    values = [line.worlds["after"] for _, line in points]
    at = [claim.position for claim, _ in points]
    is_curve = None not in at and len(set(at)) == len(at)
    look = marker(status, colour)
    words = {"exact": "", "certified": ""}.get(status, f" ({_short(status)})")
    return {
        "type": "scatter",
        "mode": "lines+markers" if is_curve else "markers",
        "name": legend_name(f"{protocol}{words}"),
        "x": [rounded(x) for x in at]
        if None not in at
        else [plot_text(protocol)] * len(at),
        "xaxis": "x" if None not in at else "x2",
        "y": [rounded(value.mean) for value in values],
        "error_y": {
            "array": [rounded(value.spread) for value in values],
            "thickness": 1.2,
            "width": 4,
            "color": look["color"],
        },
        "marker": look,
        "line": {
            "color": look["color"],
            "dash": DASHES.get(status, "dot"),
            "width": 1.8,
        },
        "text": [
            hover(
                protocol,
                points_words(line.worlds["after"]),
                claim_words(claim),
                _seeds(line.worlds["after"]),
            )
            for claim, line in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _short(status: str) -> str:
    return {
        "certified_conditional": "conditional",
        "heuristic": "heuristic, nominal ε",
        "pending": "pending",
        "none": "no claim",
    }.get(status, status)


def _seeds(value: Value) -> str:
    if value.count == value.asked:
        return ""
    return f"only {value.count} of {value.asked} seeds"


def _yardsticks(panel: Panel, ends: tuple[float, float]) -> list[dict[str, Any]]:
    """Return lines for the retrained network, and for the one before the request.

    One level goes across; where every epsilon has a training of its own, a line
    follows them.
    """
    found = []
    for world, words, colour, dash in _YARDSTICKS:
        paths = 0
        level: dict[float | None, list[str]] = {}
        for curve in panel.curves:
            points = [
                (claim.position, rounded(line.worlds[world].mean))
                for claim, line in curve.points
                if world in line.worlds
            ]
            means = {mean for _, mean in points}
            at = [x for x, _ in points if x is not None]
            if len(means) == 1:
                level.setdefault(means.pop(), []).append(curve.protocol)
            elif len(set(at)) == len(points):
                name = f"{words} ({curve.protocol}, by epsilon)"
                path = ([rounded(x) for x in at], [mean for _, mean in points])
                found.append(_yardstick(world, name, colour, dash, *path))
                paths += 1
        for mean, protocols in level.items():
            of = list(dict.fromkeys(protocols))
            more = f" and {len(of) - 1} more" if len(of) > 2 else ""
            names = f"{of[0]}{more}" if more else " and ".join(of)
            name = words if len(level) + paths == 1 else f"{words} ({names})"
            across = [rounded(end) for end in ends]
            found.append(_yardstick(world, name, colour, dash, across, [mean, mean]))
    return found


_YARDSTICKS: tuple[tuple[World, str, str, str], ...] = (
    ("reference", "retrained", INK, "dash"),
    ("before", "before", GREY, "dot"),
)


def _yardstick(
    world: World,
    name: str,
    colour: str,
    dash: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": legend_name(name),
        "x": x,
        "y": y,
        "line": {"color": colour, "dash": dash, "width": 1.3},
        "visible": True if world == "reference" else "legendonly",
        "hovertemplate": f"{plot_text(name)}: %{{y:.1%}}<extra></extra>",
    }


def panel_words(panel: Panel) -> str:
    """Return what a panel shows, in numbers."""
    words = []
    for curve in panel.curves:
        placed = [(c, v) for c, v in curve.points if c.position is not None]
        if not placed:
            first = curve.points[0]
            words.append(
                f"{curve.protocol}, {claim_words(first[0])}: "
                f"{percent(first[1].worlds['after'].mean)}"
            )
            continue
        (low, at_low), (high, at_high) = placed[0], placed[-1]
        text = (
            f"{curve.protocol}: {percent(at_low.worlds['after'].mean)} "
            f"({claim_words(low)})"
        )
        if len(placed) > 1:
            text += f" to {percent(at_high.worlds['after'].mean)} ({claim_words(high)})"
        words.append(text)
    retrained = {
        percent(line.worlds["reference"].mean)
        for curve in panel.curves
        for _, line in curve.points
        if "reference" in line.worlds
    }
    if retrained:
        words.append(f"retrained: {' and '.join(sorted(retrained)[:4])}")
    setting = f"With {panel.name}: " if panel.name else ""
    return f"{setting}{'; '.join(words)}."
