"""The curves of a sweep between privacy and utility: accuracy against epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn.pages.document import Chart, plot_text
from dfl_unlearn.pages.sweep_lines import (
    Claim,
    Line,
    Value,
)
from dfl_unlearn.pages.sweep_marks import (
    DASHES,
    GREY,
    INK,
    LEGEND,
    claim_words,
    hover,
    legend_name,
    marker,
    palette,
    percent,
    points_words,
    rounded,
    select,
)
from dfl_unlearn.pages.sweep_panels import Panel
from dfl_unlearn.store.table import World


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
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top"},
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
