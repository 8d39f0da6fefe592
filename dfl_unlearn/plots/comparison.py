"""Methods over forget sets: how far from retraining, at what share of its cost.

Not a registered plot: those draw one run, this draws an ``evaluation.comparison``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.comparison import CONTROLS, Comparison, Row
from dfl_unlearn.plots._style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    WIDTH,
    label,
    percent,
    spread_out,
)

DUAL = " + dual"
"""Ends the name of a method whose base, without the ending, is in the table too."""

_MARKS = {
    "exact": {"marker": "s", "color": INK},
    "certified": {"marker": "D", "color": BLUE},
    "certified_conditional": {"marker": "D", "color": SKY},
    "heuristic": {"marker": "x", "color": GREY},
    "none": {"marker": "o", "color": "white"},
}
_WORDS = {
    "certified_conditional": "certified, conditional",
    "none": "no claim",
}
_LOWEST = 0.1  # points; a smaller gap is drawn there
_MARGIN = 0.30  # of a panel's width, for the names
_ENDS = (0.03, 0.97)  # of its height: middles of the lowest and the highest name


def gap_against_cost(
    comparison: Comparison,
    figure: Figure,
    *,
    settings: Sequence[str] = (),
    titles: Mapping[str, str] | None = None,
) -> None:
    """Draw a panel per setting: each method's gap against its cost.

    Both axes are logarithmic. A thin line goes up to the paired gap, in which errors
    of opposite signs do not cancel. The shaded band is what two retrainings differ by,
    the dashed line is the gap of doing nothing; a setting in which it is too small to
    rank methods says so. Arrows lead from a method to the same one with DualOptim.
    Filled marks have a claim; crosses and circles have none that holds.

    Args:
        comparison: The table.
        figure: The figure to fill.
        settings: Which settings; () is all of them.
        titles: Shorter names of settings.

    Raises:
        MissingInputError: If there is nothing to draw.
    """
    chosen = settings or tuple(dict.fromkeys(row.setting for row in comparison.rows))
    if not comparison.rows or not chosen:
        raise MissingInputError(
            "comparison: must have at least one setting to be drawn, got none; measure "
            "some methods first"
        )
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure.set_size_inches(WIDTH if columns == 2 else WIDTH / 1.6, 0.5 + 3.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, setting in zip(panels, chosen, strict=False):
        mute = any(
            text.startswith(f"{setting}: cannot rank") for text in comparison.warnings
        )
        title = label((titles or {}).get(setting, setting))
        axes.set_title(f"{title}: cannot rank methods" if mute else title)
        if mute:
            axes.title.set_color(GREY)
        _panel(axes, [row for row in comparison.rows if row.setting == setting])
    for axes in list(panels)[len(chosen) :]:
        axes.set_axis_off()
    shown = {str(row.certificate) for row in comparison.rows if row.setting in chosen}
    figure.legend(
        handles=[_key(status) for status in _MARKS if status in shown],
        loc="outside lower left",
        ncols=len(_MARKS),
        handletextpad=0.2,
    )


def _panel(axes: Axes, rows: list[Row]) -> None:
    by_name = {row.method: row for row in rows}
    nothing, again = by_name[CONTROLS[0]], by_name[CONTROLS[2]]
    methods = [row for row in rows if row.method not in CONTROLS]
    axes.axhspan(
        _LOWEST / 10,
        _points(again.gap),
        xmax=1 - _MARGIN,
        color=PALE,
        zorder=0,
    )
    axes.axhline(
        _points(nothing.gap),
        xmax=1 - _MARGIN,
        color=INK,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
    )
    for row in methods:
        name = row.method.removesuffix(DUAL)
        if name != row.method and name in by_name:
            axes.annotate(
                "",
                xy=(_cost(row), _points(row.gap)),
                xytext=(_cost(by_name[name]), _points(by_name[name].gap)),
                arrowprops={
                    "arrowstyle": "->",
                    "color": ORANGE,
                    "shrinkA": 3,
                    "shrinkB": 3,
                },
            )
        axes.vlines(
            _cost(row),
            _points(row.gap),
            _points(row.paired_gap),
            color=GREY,
            linewidth=0.8,
        )
        mark = _MARKS[row.certificate]
        axes.scatter(
            _cost(row),
            _points(row.gap),
            s=24,
            marker=mark["marker"],
            facecolor=mark["color"],
            edgecolor=None if mark["marker"] == "x" else INK,
            linewidth=0.9,
            zorder=3,
        )
    _axes(axes, rows)
    _names(axes, methods)
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.annotate(
        "doing nothing",
        (left, _points(nothing.gap)),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=7,
        color=INK,
    )
    axes.annotate(
        "two retrainings",
        (left, bottom),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=7,
        color=GREY,
    )


def _axes(axes: Axes, rows: list[Row]) -> None:
    """Set both logarithmic axes, with room for the names at the right."""
    costs = [
        _cost(row) for row in rows if row.to_retrain >= 0 and row.method != CONTROLS[0]
    ]
    low, high = np.log10(min(costs)) - 0.25, np.log10(max(costs)) + 0.15
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10 ** (low + (high - low) / (1 - _MARGIN)))
    axes.set_yscale("log")
    top = max(_points(row.paired_gap) for row in rows)
    low_gap = min(_points(row.gap) for row in rows if row.method != CONTROLS[1])
    axes.set_ylim(0.6 * low_gap, 2 * top)
    for axis, unit in ((axes.xaxis, percent), (axes.yaxis, _plain)):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if unit is _plain else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: unit(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 10**high * 1.01])
    axes.set_xlim(10**low, 10 ** (low + (high - low) / (1 - _MARGIN)))
    axes.set_xlabel("sample gradients, of retraining's", loc="left", fontsize=8)
    axes.set_ylabel("gap to retraining, points", fontsize=8)


def _names(axes: Axes, rows: list[Row]) -> None:
    """Write the names in a column at the right, each with a line to its mark."""
    low, high = np.log10(axes.get_ylim())
    wanted = np.array([np.log10(_points(row.gap)) for row in rows])
    at = (wanted - low) / (high - low)
    bottom, top = _ENDS  # all names fit between, whatever their number
    gap = min(0.052, (top - bottom) / max(1, len(rows) - 1))
    for row, place in zip(rows, spread_out(at, gap, bottom, top), strict=True):
        axes.annotate(
            label(row.method, 26),
            xy=(_cost(row), _points(row.gap)),
            xytext=(1.02 - _MARGIN, place),
            textcoords="axes fraction",
            fontsize=6.6,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#c3c8d0",
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            zorder=1,
        )


def _key(status: str) -> Line2D:
    mark = _MARKS[status]
    return Line2D(
        [],
        [],
        linestyle="",
        marker=mark["marker"],
        markersize=5,
        markerfacecolor=mark["color"],
        markeredgecolor=GREY if mark["marker"] == "x" else INK,
        label=_WORDS.get(status, status),
    )


def _points(gap: float) -> float:
    """Return a gap in points, on the axis."""
    return max(100 * gap, _LOWEST)


def _cost(row: Row) -> float:
    """Return a method's cost in retrainings; one without any is put at the left end."""
    return max(row.to_retrain, 1e-4)


def _plain(value: float) -> str:
    return f"{value:g}"
