"""What the protocols of a sweep leave of the gap to retraining, and what they cost."""

import math
from collections.abc import Sequence
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn.pages.document import Chart
from dfl_unlearn.pages.sweep_lines import Group, SweepLines
from dfl_unlearn.pages.sweep_marks import (
    LEGEND,
    STATUS_WORDS,
    claim_words,
    hover,
    legend_name,
    marker,
    palette,
    percent,
    rounded,
    select,
)

COSTS = (
    ("cost-gradient-evaluations", "gradient evaluations"),
    ("cost-payload-bytes", "bytes sent"),
    ("cost-wall-seconds", "seconds, measured"),
)
MOST_TOLD = 600
"""With more marks, those have no hover text but their place."""
LEAST_GAP = 1e-3
"""A smaller gap is drawn there: the axis is logarithmic."""


def methods_chart(sweep: SweepLines) -> Chart | None:
    """Return the distance to retraining against the cost, with a choice of the cost.

    Args:
        sweep: The sweep.

    Returns:
        The figure, or None without test accuracy, a reference or a cost.
    """
    variants = [_variant(sweep, metric, words) for metric, words in COSTS]
    variants = [variant for variant in variants if variant is not None]
    if not variants:
        return None
    first = variants[0]
    assert first is not None
    several = len(variants) > 1
    return Chart(
        name="methods",
        title="Distance to retraining, and what it took",
        alt=first["alt"],
        data=first["data"],
        layout=first["layout"],
        height=440,
        caption="One mark per point of the sweep. The gap is the absolute difference "
        "of test accuracy to the network that was retrained without the data, taken "
        "seed by seed and then averaged; bars are the standard deviation over seeds. A "
        "cost of 0 stands at the left edge, a gap below 0.1 points at 0.1. "
        f"{LEGEND}",
        hook="variants" if several else "",
        extra={"variants": variants} if several else None,
        controls=h.tag(
            "div",
            select("methods-choice", "Cost", [v["name"] for v in variants if v]),
            class_="controls",
        )
        if several
        else h.Html(),
    )


def _variant(sweep: SweepLines, metric: str, words: str) -> dict[str, Any] | None:
    costs = {
        line.group: line.after.mean
        for line in sweep.of(metric)
        if line.after is not None and line.group in sweep.gaps
    }
    if not costs:
        return None
    by_trace: dict[tuple[str, str], list[Group]] = {}
    for group in costs:
        by_trace.setdefault((group[1], sweep.claim(group).status), []).append(group)
    colours = palette([protocol for protocol, _ in by_trace])
    positive = [cost for cost in costs.values() if cost > 0]
    least = min(positive, default=1.0) / 3
    data = []

    def told(groups: Sequence[Group], marks: int) -> dict[str, Any]:
        if marks > MOST_TOLD:
            return {"hovertemplate": f"gap %{{y}}<br>%{{x}} {words}"}
        text = [_told(sweep, group, costs[group], words) for group in groups]
        return {"text": text, "hovertemplate": "%{text}<extra></extra>"}

    for (protocol, status), groups in by_trace.items():
        look = marker(status, colours[protocol])
        name = (
            protocol
            if status in ("exact", "certified")
            else (f"{protocol} ({STATUS_WORDS[status]})")
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": legend_name(name),
                "x": [rounded(costs[group] or least) for group in groups],
                "y": [
                    rounded(max(sweep.gaps[group][0], LEAST_GAP)) for group in groups
                ],
                "error_y": {
                    "array": [rounded(sweep.gaps[group][1]) for group in groups],
                    "thickness": 1,
                    "width": 3,
                    "color": look["color"],
                },
                "marker": look,
                **told(groups, len(costs)),
            }
        )
    tops = (gap + (spread or 0.0) for gap, spread, _ in sweep.gaps.values())
    highest = max(LEAST_GAP, *tops)
    layout = {
        "xaxis": {
            "type": "log",
            "title": {"text": words},
            "exponentformat": "SI",
            "dtick": 1,
        },
        "yaxis": {
            "title": {"text": "gap to retraining"},
            "type": "log",
            "tickformat": "~%",
            "dtick": "D2" if highest / LEAST_GAP < 100 else 1,
            "range": [math.log10(LEAST_GAP / 1.5), math.log10(highest * 1.5)],
        },
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"},
        "hovermode": "closest",
        "margin": {"l": 60, "r": 15, "t": 15, "b": 45},
    }
    alt = _words(sweep, list(costs), costs, words)
    return {"name": words, "data": data, "layout": layout, "alt": alt}


def _told(sweep: SweepLines, group: Group, cost: float, words: str) -> str:
    gap, spread, seeds = sweep.gaps[group]
    return hover(
        group[1],
        sweep.point_words(group[0]),
        f"gap {percent(gap)}"
        + ("" if spread is None else f" ± {100 * spread:.1f} points")
        + f", {seeds} seed{'' if seeds == 1 else 's'}",
        f"{cost:,.4g} {words}",
        claim_words(sweep.claim(group)),
    )


def _words(
    sweep: SweepLines, groups: Sequence[Group], costs: dict[Group, float], words: str
) -> str:
    said = []
    for protocol in dict.fromkeys(group[1] for group in groups):
        mine = [group for group in groups if group[1] == protocol]
        gaps = [sweep.gaps[group][0] for group in mine]
        cost = [costs[group] for group in mine]
        said.append(
            f"{protocol}: gap {_span(min(gaps), max(gaps), percent)}, "
            f"{_span(min(cost), max(cost), lambda v: f'{v:,.3g}')} {words}"
        )
    return f"{'; '.join(said)}."


def _span(low: float, high: float, text: Any) -> str:
    return text(low) if text(low) == text(high) else f"{text(low)} to {text(high)}"
