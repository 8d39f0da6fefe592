"""What a sweep's protocols keep against what they guarantee."""

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.plots._style import GREY, INK, SMALLEST, TWO_COLUMNS, label
from dfl_unlearn.plots._sweep_parts import (
    BASELINES,
    SHAPES,
    UTILITY,
    draw_lines,
    lines_of,
    mark_of,
    rows_of,
    scale_of,
    seeds_in,
    value_axis,
)
from dfl_unlearn.results.sweep import SweepView

if TYPE_CHECKING:
    import pandas as pd

_CLAIM_WORDS = {
    "certified": "certified",
    "certified_conditional": "certified, conditional",
    "heuristic": "heuristic, nominal ε",
    "none": "no claim",
}


def privacy_utility(view: SweepView, figure: Figure) -> None:
    """Draw what is kept against the guarantee: accuracy over epsilon, per protocol.

    Epsilon is the certificates' (the largest of the seeds'). What is heuristic stands
    in grey at the epsilon that would follow if its assumptions held; a protocol
    without any epsilon is a grey line over the whole width. Shaded are the accuracies
    before forgetting and after retraining, over all settings of the sweep. Protocols
    that train privately (``dp-gossip``) have long dashes.

    Args:
        view: Has ``test-accuracy`` or ``test-mse``, and ``epsilon-spent``.
        figure: The figure to fill.

    Raises:
        MissingInputError: If the sweep has not two values of epsilon.
    """
    metric, rows = _utility(view)
    after = rows[rows["world"] == "after"].copy()
    after["x"] = _epsilons(view, after)
    known = after[(after["x"] > 0) & after["mean"].notna()]
    if known["x"].nunique() < 2:
        raise MissingInputError(
            "privacy-utility: needs outcomes with at least two values of epsilon, got "
            f"{known['x'].nunique()}; sweep over the epsilon of a protocol"
        )
    over = [a for a in view.axes if a.split(".")[-1] == "epsilon"]
    lines = lines_of(view, known, over)
    figure.set_size_inches(TWO_COLUMNS, max(2.9, 1.3 + 0.17 * len(lines)))
    axes = figure.subplots()
    scale = scale_of(known["x"].tolist())
    handles = draw_lines(axes, lines, scale.kind)
    flat = after[after["x"].isna() & after["mean"].notna()]
    for k, (name, own) in enumerate(flat.groupby("protocol", sort=False)):
        handles.append(_level(axes, own, str(name), SHAPES[k % len(SHAPES)]))
    handles += _references(axes, rows)
    scale.apply(axes, "epsilon of the certificate")
    value_axis(axes, rows, metric)
    axes.set_title(f"Utility against the guarantee ({seeds_in(after)})")
    figure.legend(handles=handles, loc="outside right upper", fontsize=SMALLEST)
    _claim_key(figure, after)


def _utility(view: SweepView) -> tuple[str, "pd.DataFrame"]:
    """Return what a sweep says of accuracy, or of the error of a regression.

    Raises:
        MissingInputError: If it says nothing.
    """
    for metric in UTILITY:
        rows = rows_of(view, metric)
        if rows["mean"].notna().any():
            return metric, rows
    raise MissingInputError(
        f"sweep: needs one of the metrics {' and '.join(UTILITY)}, got no value of a "
        "complete case; run the sweep, or measure it"
    )


def _epsilons(view: SweepView, after: "pd.DataFrame") -> "pd.Series[float]":
    """Return each line's epsilon: its certificates', else the metric's."""
    spent = rows_of(view, "epsilon-spent")
    key = ["sweep", *view.axes, "protocol", "request"]
    known = spent[[*key, "mean"]].rename(columns={"mean": "spent"})
    joined = after.merge(known, on=key, how="left")
    found = joined["nominal_epsilon"].fillna(joined["spent"])
    return found.set_axis(after.index)


def _level(axes: Axes, rows: "pd.DataFrame", name: str, shape: str) -> Line2D:
    """Draw a protocol without any epsilon as a line over the whole width."""
    low, high = rows["mean"].min(), rows["mean"].max()
    middle = rows["mean"].mean()
    axes.axhspan(low, high, color=GREY, alpha=0.13, linewidth=0)
    axes.axhline(middle, color=GREY, linewidth=1.1, linestyle=(0, (1, 2)))
    style = mark_of("none", GREY, shape)
    axes.plot(
        [0.985], [middle], transform=axes.get_yaxis_transform(), zorder=3, **style
    )
    words = label(f"{name}, no ε", 34)
    return Line2D([], [], color=GREY, linestyle=(0, (1, 2)), label=words, **style)


def _references(axes: Axes, rows: "pd.DataFrame") -> list[Line2D]:
    """Shade the values before forgetting and after retraining, over all settings."""
    handles = []
    rows = rows[~rows["protocol"].str.startswith(BASELINES)]
    looks = (("reference", "retrained", (0, (5, 2))), ("before", "before", ":"))
    for world, name, dashes in looks:
        means = rows.loc[rows["world"] == world, "mean"].dropna()
        if means.empty:
            continue
        look: Any = {"color": INK, "linewidth": 1, "linestyle": dashes}
        axes.axhspan(means.min(), means.max(), color=INK, alpha=0.07, linewidth=0)
        axes.axhline(means.median(), zorder=1, **look)
        handles.append(Line2D([], [], label=name, **look))
    return handles


def _claim_key(figure: Figure, rows: "pd.DataFrame") -> None:
    """Explain the marks below a figure, those that are in it."""
    shown = [claim for claim in _CLAIM_WORDS if (rows["claim"] == claim).any()]
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            label=_CLAIM_WORDS[claim],
            **mark_of(claim, INK, "o"),
        )
        for claim in shown
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=4,
            fontsize=SMALLEST,
            handletextpad=0.1,
            columnspacing=1.2,
        )
