"""Protocols side by side: gap to retraining, work, and what gossip left."""

import math
from dataclasses import dataclass
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.pages import wording
from dfl_unlearn.pages.document import Chart, chart, log_axis, numbers, plot_text
from dfl_unlearn.plots.methods import peer_values
from dfl_unlearn.results.view import ResultsView


def methods(view: ResultsView) -> Html:
    """Return the protocols compared by gap to retraining and by cost."""
    if not view.outcomes:
        return Html()
    rows = []
    for label, outcome, table in zip(
        view.labels, view.outcomes, view.tables, strict=True
    ):
        gap = "-"
        for line in table.summary():
            if line.metric in ("test-accuracy", "test-mse") and line.after is not None:
                if line.reference is not None:
                    gap = wording.difference(line.after - line.reference, line.unit)
                break
        cost = outcome.cost
        rows.append(
            (
                label,
                wording.badge(wording.status(outcome.certificate)),
                gap,
                f"{cost.gradient_evaluations:,}",
                f"{cost.messages:,}",
                f"{cost.payload_bytes:,}",
                f"{cost.rounds:,}",
                f"{cost.wall_seconds:.2f}",
                f"{cost.simulated_seconds:.2f}",
            )
        )
    head = (
        "protocol",
        "claim",
        "test gap to retrained",
        "gradient evaluations",
        "messages",
        "bytes sent",
        "rounds",
        "seconds",
        "simulated seconds",
    )
    return h.section(
        "Protocols compared",
        *map(chart, _charts(view)),
        h.table("", head, rows, frozenset(range(2, 9))),
    )


def _charts(view: ResultsView) -> list[Chart]:
    """Return gap against cost, and how much was forgotten."""
    suffix = "accuracy" if view.run.data.num_classes else "mse"
    return [
        _gap_and_cost(view, f"test-{suffix}"),
        _differences(view, f"forget-{suffix}"),
    ]


def _gap_and_cost(view: ResultsView, metric: str) -> Chart:
    """Return the gap to retraining (without one: the score) against gradients."""
    points = _points(view, metric)
    data: list[dict[str, Any]] = []
    told = []
    tried = zip(view.labels, view.outcomes, points, strict=True)
    for k, (label, outcome, point) in enumerate(tried):
        cost, claim = outcome.cost, wording.status(outcome.certificate)
        told.append(f"{label} {point.text} for {cost.gradient_evaluations:,} gradients")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plot_text(label),
                # A logarithmic axis has no place for 0.
                "x": [max(cost.gradient_evaluations, 1)],
                "y": numbers([point.mean]),
                "error_y": _whiskers(point, claim),
                "marker": wording.mark(claim, k),
                "hovertemplate": f"<b>{plot_text(label)}</b> ({wording.CLAIMS[claim]})"
                f"<br>{metric}: {point.text}"
                f"<br>{cost.gradient_evaluations:,} gradient evaluations"
                f"<br>{cost.messages:,} messages, {cost.payload_bytes:,} bytes"
                f"<br>{cost.rounds:,} rounds<extra></extra>",
            }
        )
    evaluations = [outcome.cost.gradient_evaluations for outcome in view.outcomes]
    costs, zero = [max(count, 1) for count in evaluations], 0 in evaluations
    return Chart(
        name="methods",
        title="Gap to retraining against work",
        alt=f"{metric}: " + "; ".join(told) + ".",
        data=data,
        layout={
            "xaxis": {
                "title": {"text": "gradient evaluations" + (" (0 drawn at 1)" * zero)},
                **log_axis(min(costs) / 1.6, max(costs) * 1.6),
            },
            "yaxis": {"title": {"text": _unit(view, metric)}, "zeroline": True},
            "hovermode": "closest",
        },
        caption="Whiskers reach from the lowest to the highest peer. A full blue mark "
        "is certified; open marks are conditional, heuristic or without a claim.",
    )


def _differences(view: ResultsView, metric: str) -> Chart:
    points = _points(view, metric)
    data: list[dict[str, Any]] = []
    told = []
    tried = zip(view.labels, view.outcomes, points, strict=True)
    for k, (label, outcome, point) in enumerate(tried):
        claim = wording.status(outcome.certificate)
        told.append(f"{label} {point.text}")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers([point.mean]),
                "y": [k],
                "error_x": _whiskers(point, claim),
                "marker": wording.mark(claim, k),
                "hovertemplate": f"<b>{plot_text(label)}</b> ({wording.CLAIMS[claim]})"
                f"<br>{metric}: {point.text}<extra></extra>",
            }
        )
    return Chart(
        name="forgotten",
        title="What is still known of the forgotten data",
        alt=f"{metric}: " + "; ".join(told) + ".",
        data=data,
        layout={
            "xaxis": {"title": {"text": _unit(view, metric)}, "zeroline": True},
            "yaxis": wording.rows(view.labels),
            "showlegend": False,
        },
        height=110 + 38 * len(points),
        caption="Zero is what a network knows that was retrained without the data.",
    )


@dataclass(frozen=True)
class _Point:
    """Mean, lowest and highest peer of a difference, and the mean in words."""

    mean: float
    low: float
    high: float
    text: str


def _points(view: ResultsView, metric: str) -> list[_Point]:
    scale = 100.0 if metric.endswith("accuracy") else 1.0
    points = []
    for table in view.tables:
        after = scale * peer_values(table, metric, "after")
        base = scale * peer_values(table, metric, "reference")
        if _compared(view, metric):
            after = after - base if after.size == base.size else after[:0]
        if not after.size:
            points.append(_Point(math.nan, math.nan, math.nan, "not measured"))
            continue
        mean = float(after.mean())
        sign = "+" if _compared(view, metric) else ""
        unit = " points" if sign and scale > 1 else " %" if scale > 1 else ""
        text = f"{mean:{sign}.3g}{unit}"
        points.append(_Point(mean, float(after.min()), float(after.max()), text))
    return points


def _compared(view: ResultsView, metric: str) -> bool:
    """Return whether any outcome has a retrained network to be compared with."""
    return any(peer_values(t, metric, "reference").size for t in view.tables)


def _unit(view: ResultsView, metric: str) -> str:
    fraction = metric.endswith("accuracy")
    if _compared(view, metric):
        return f"{metric}, {'points' if fraction else 'error'} above retrained"
    return f"{metric}, percent" if fraction else metric


def _whiskers(point: _Point, claim: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers([point.high - point.mean]),
        "arrayminus": numbers([point.mean - point.low]),
        "color": wording.mark(claim)["color"],
        "thickness": 1.5,
    }
