"""Accuracy and consensus over the rounds, and after each protocol."""

from typing import Any

import numpy as np

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.engine.run import History
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.pages import wording
from dfl_unlearn.pages.document import Chart, chart, log_axis, numbers, plot_text
from dfl_unlearn.plots.training import history_of, worlds
from dfl_unlearn.results.view import ResultsView

_MOST_POINTS = 600
_YARDSTICK = {"color": "var(--ink)", "symbol": "line-ns-open", "size": 14}


def training(view: ResultsView) -> Html:
    """Return the section about training; nothing without a history."""
    try:
        history = history_of(view, "accuracy")
    except MissingInputError:
        return Html()
    charts = [_accuracy(view, history)]
    if view.outcomes:
        charts.append(_in_the_end(view, history))
    charts.append(_consensus(view, history))
    return h.section("Accuracy and consensus", *map(chart, charts))


def _accuracy(view: ResultsView, history: History) -> Chart:
    regression = view.run.data.num_classes == 0
    rows = _some_rows(history)
    rounds, values = history.rounds[rows].tolist(), history.accuracy[rows]
    shown = ":.4g" if regression else ":.2%"
    band = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": rounds,
            "y": numbers(edge),
            "line": {"width": 0, "color": "var(--link)"},
            "fill": fill,
            "fillcolor": "rgba(64, 140, 200, 0.22)",
            "showlegend": legend,
            "legendgroup": "band",
            "hovertemplate": f"{who}, round %{{x}}: %{{y{shown}}}<extra></extra>",
        }
        for name, edge, fill, legend, who in (
            ("worst", values.min(axis=1), "none", False, "worst peer"),
            ("worst to best peer", values.max(axis=1), "tonexty", True, "best peer"),
        )
    ]
    mean = values.mean(axis=1)
    last = [mean[-1], values[-1].min(), values[-1].max()]
    end, low, high = (f"{v:.4g}" if regression else f"{100 * v:.1f} %" for v in last)
    what = "minus mean squared error" if regression else "test accuracy"
    return Chart(
        name="accuracy",
        title=f"{what.capitalize()} in training",
        alt=(
            f"{what.capitalize()} over {history.rounds[-1]} rounds: it ends at {end} "
            f"on average, from {low} at the worst peer to {high} at the best."
        ),
        data=[
            *band,
            {
                "type": "scatter",
                "mode": "lines+markers" if len(rows) < 3 else "lines",
                "name": "mean over peers",
                "x": rounds,
                "y": numbers(mean),
                "line": {"color": "var(--link)", "width": 2},
                "hovertemplate": f"mean, round %{{x}}: %{{y{shown}}}<extra></extra>",
            },
        ],
        layout={
            "xaxis": {"title": {"text": "round"}},
            "yaxis": {
                "title": {"text": what},
                "tickformat": "" if regression else ".0%",
            },
            "hovermode": "closest",
        },
        height=360,
    )


def _in_the_end(view: ResultsView, history: History) -> Chart:
    regression = view.run.data.num_classes == 0
    claims = dict(zip(view.labels, map(wording.status, view.certificates), strict=True))
    data: list[dict[str, Any]] = []
    told = []
    compared = worlds(view, history)
    for k, (name, values, _) in enumerate(compared):
        mark = wording.mark(claims[name], k - 1) if name in claims else _YARDSTICK
        low, mean, high = values.min(), values.mean(), values.max()
        texts = [
            f"{v:.4g}" if regression else f"{100 * v:.2f} %" for v in (mean, low, high)
        ]
        told.append(f"{name} {texts[0]}")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers([mean]),
                "y": [k],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": numbers([high - mean]),
                    "arrayminus": numbers([mean - low]),
                    "color": mark["color"],
                    "thickness": 2,
                },
                "marker": mark,
                "hovertemplate": f"{plot_text(name)}<br>mean {texts[0]}<br>"
                f"worst {texts[1]}, best {texts[2]}<extra></extra>",
            }
        )
    return Chart(
        name="final-accuracy",
        title="Before, after and retrained",
        alt="Mean test score over peers: " + "; ".join(told) + ".",
        data=data,
        layout={
            "xaxis": {
                "title": {
                    "text": "minus mean squared error"
                    if regression
                    else "test accuracy"
                },
                "tickformat": "" if regression else ".1%",
                "nticks": 6,
            },
            "yaxis": wording.rows([name for name, _, _ in compared]),
            "showlegend": False,
        },
        height=110 + 38 * len(compared),
        caption="Dots are means over peers, lines reach from the worst to the best "
        "peer. An open mark is no certificate, or a conditional one.",
    )


def _consensus(view: ResultsView, history: History) -> Chart:
    distances = [outcome.state.consensus_distance() for outcome in view.outcomes]
    values = np.append(history.consensus, distances)
    finite = values[np.isfinite(values) & (values > 0)]
    logarithmic = finite.size > 0 and finite.max() > 20 * finite.min()
    rows = _some_rows(history)
    curve = history.consensus[rows]
    if logarithmic:
        curve = np.where(curve > 0, curve, np.nan)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(rows) < 3 else "lines",
            "name": "training",
            "x": history.rounds[rows].tolist(),
            "y": numbers(curve),
            "line": {"color": "var(--link)", "width": 2},
            "hovertemplate": "training, round %{x}: %{y:.3g}<extra></extra>",
        }
    ]
    tried = zip(view.labels, distances, view.certificates, strict=True)
    for k, (name, distance, certificate) in enumerate(tried):
        nothing = distance == 0
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plot_text(name) + (": 0" if nothing else ""),
                "x": [int(history.rounds[-1])],
                "y": numbers([np.nan if nothing and logarithmic else distance]),
                "marker": wording.mark(wording.status(certificate), k),
                "hovertemplate": f"after {plot_text(name)}: %{{y:.3g}}<extra></extra>",
            }
        )
    after = "".join(
        f"; after {name} {d:.3g}"
        for name, d in zip(view.labels, distances, strict=True)
    )
    return Chart(
        name="consensus",
        title="Distance of the peers to their average",
        alt=(
            f"Mean squared distance of the peers to their average: "
            f"{history.consensus[0]:.3g} after round {history.rounds[0]}, "
            f"{history.consensus[-1]:.3g} after round {history.rounds[-1]}{after}."
        ),
        data=data,
        layout={
            "xaxis": {"title": {"text": "round"}},
            "yaxis": {
                "title": {"text": "mean squared distance"},
                **(
                    log_axis(finite.min() / 1.6, finite.max() * 1.6)
                    if logarithmic
                    else {"rangemode": "tozero", "nticks": 6}
                ),
            },
        },
        height=360,
    )


def _some_rows(history: History) -> Any:
    """Return evenly spaced rows, the last among them: a page has to stay small."""
    count = len(history.rounds)
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).astype(int))
