"""Figures of a sweep: what changes along its axes, over the seeds.

Not registered plots: those draw one run, these draw a ``SweepView``. Each fills an
empty figure as wide as one or two columns of a journal. Points are means over seeds,
bands reach one sample standard deviation to both sides, and the number of seeds is
written in the figure. Filled marks have a guarantee that rests on nothing assumed,
hollow coloured ones a conditional guarantee; grey crosses (heuristic) and grey circles
(no claim) have none.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.plots import FORMATS, Format, render
from dfl_unlearn.plots._style import (
    COLUMN,
    INFLUENCE,
    INK,
    SMALLEST,
    STYLE,
    TWO_COLUMNS,
    label,
)
from dfl_unlearn.plots._sweep_parts import (
    BASELINES,
    UTILITY,
    Scale,
    draw_lines,
    lines_of,
    rows_of,
    scale_of,
    seeds_in,
    turn_names,
    value_axis,
    world_of,
)
from dfl_unlearn.plots.sweep_networks import front_against_gap
from dfl_unlearn.plots.sweep_privacy import privacy_utility
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.files import make_folder, write_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "axis_lines",
    "draw_sweep",
    "front_against_gap",
    "heat",
    "privacy_utility",
    "save_sweep_figures",
]

_LOG = logging.getLogger(__name__)
MOST_LINES = 12


def axis_lines(
    view: SweepView,
    figure: Figure,
    metric: str,
    axis: str,
    where: Mapping[str, Any] | None = None,
) -> None:
    """Draw a metric along an axis, a line per protocol.

    A line is split by the other axes where they tell its points apart. Values with
    even ratios stand on a logarithmic scale, names side by side.

    Args:
        view: The sweep.
        figure: The figure to fill.
        metric: The metric.
        axis: The axis.
        where: Other axis -> the only value to be drawn, as tables show it.

    Raises:
        InvalidArgumentError: If the sweep has no such axis.
        MissingInputError: If it has no value of the metric.
    """
    _known_axes(view, axis)
    rows = _measured(rows_of(view, metric, where), metric)
    world = world_of(rows)
    here = rows[(rows["world"] == world) & rows["mean"].notna()]
    scale = scale_of(here[axis].tolist())
    lines = lines_of(view, here.assign(x=scale.of(here[axis].tolist())), [axis])
    if len(lines) > MOST_LINES:
        raise InvalidArgumentError(
            f"axis: must give at most {MOST_LINES} lines, got {len(lines)}, because "
            "other axes vary too; fix one with where={axis: value}, or draw a heat map"
        )
    split = len(lines) > here["protocol"].nunique()
    figure.set_size_inches(COLUMN, 2.6)
    axes = figure.subplots()
    handles = draw_lines(axes, lines, scale.kind)
    if world == "after" and not split:
        handles += _retrained(axes, rows, axis, scale)
    scale.apply(axes, axis)
    value_axis(axes, rows, metric)
    words = "" if world == "after" else f", {world}"
    axes.set_title(f"{seeds_in(here)}{words}", fontsize=SMALLEST, fontweight="normal")
    if len(handles) > 1:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = 1 if longest > 20 else 2
        down = -(-len(handles) // columns)
        tall = 0.5 if scale.kind == "names" else 0.0
        figure.set_size_inches(COLUMN, 2.4 + tall + 0.17 * down)
        figure.legend(
            handles=handles,
            loc="outside lower left",
            fontsize=SMALLEST,
            ncols=columns,
            columnspacing=1,
        )


def _retrained(
    axes: Axes, rows: "pd.DataFrame", axis: str, scale: Scale
) -> list[Line2D]:
    """Draw the retrained networks' values along an axis, those of one protocol."""
    rows = rows[(rows["world"] == "reference") & rows["mean"].notna()]
    rows = rows[~rows["protocol"].str.startswith(BASELINES)]
    rows = rows[rows["protocol"] == rows["protocol"].min()].drop_duplicates(axis)
    if rows.empty:
        return []
    x = scale.of(rows[axis].tolist())
    order = np.argsort(x, kind="stable")
    look: Any = {"color": INK, "linewidth": 1, "linestyle": (0, (5, 2))}
    if scale.kind == "names":
        axes.hlines(rows["mean"], x - 0.4, x + 0.4, zorder=1, **look)
    else:
        axes.plot(x[order], rows["mean"].to_numpy()[order], zorder=1, **look)
    return [Line2D([], [], label="retrained", **look)]


def heat(
    view: SweepView,
    figure: Figure,
    metric: str,
    axes: tuple[str, str],
    where: Mapping[str, Any] | None = None,
) -> None:
    """Draw a metric over two axes, a panel per protocol.

    Args:
        view: The sweep.
        figure: The figure to fill.
        metric: The metric.
        axes: The axes to the right and upwards.
        where: Other axis -> the only value to be drawn, as tables show it.

    Raises:
        InvalidArgumentError: If an axis is unknown, or a cell has several values.
        MissingInputError: If the sweep has no value of the metric.
    """
    across, up = axes
    _known_axes(view, across, up)
    rows = _measured(rows_of(view, metric, where), metric)
    rows = rows[rows["world"] == world_of(rows)]
    lines = lines_of(view, rows.assign(x=0.0), view.axes)
    cells = [line.rows for line in lines]
    several = [one for one in cells if one.duplicated([across, up]).any()]
    if several:
        twice = several[0][several[0].duplicated([across, up], keep=False)]
        others = [a for a in ("sweep", "request", *view.axes) if a not in axes]
        varied = [a for a in others if twice[a].nunique(dropna=False) > 1]
        raise InvalidArgumentError(
            f"axes: must leave one value per cell, got several, which differ in "
            f"{', '.join(varied)}; fix them with where={{{varied[0]!r}: ...}}"
        )
    scales = [scale_of(rows[axis].tolist()) for axis in axes]
    columns = min(3, len(cells))
    down = -(-len(cells) // columns)
    width = COLUMN if columns == 1 else TWO_COLUMNS
    figure.set_size_inches(width, 1.0 + 1.9 * down)
    panels = figure.subplots(down, columns, squeeze=False, sharex=True, sharey=True)
    low, high = rows["mean"].min(), rows["mean"].max()
    image = None
    for panel, line in zip(panels.flat, lines, strict=False):
        grid = line.rows.pivot(index=up, columns=across, values="mean")
        grid = grid.reindex(index=scales[1].values, columns=scales[0].values)
        image = panel.imshow(
            grid.to_numpy(dtype=np.float64),
            origin="lower",
            aspect="auto",
            cmap=INFLUENCE,
            vmin=low,
            vmax=high if high > low else low + 1,
        )
        _in_cells(panel, grid.to_numpy(dtype=np.float64), low, high, rows)
        panel.set_title(label(line.name or "network", 26), fontsize=SMALLEST + 0.5)
        for axis, scale in zip((panel.xaxis, panel.yaxis), scales, strict=True):
            axis.set_ticks(range(len(scale.values)), scale.texts)
        turn_names(panel, scales[0].texts, 40 // columns)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    for panel in list(panels.flat)[len(lines) :]:
        panel.set_axis_off()
    for panel in panels[-1]:
        panel.set_xlabel(label(across, 30))
    for panel in panels[:, 0]:
        panel.set_ylabel(label(up, 30))
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.9)
        value_axis(bar.ax, rows, metric)
        bar.outline.set_visible(False)


def _in_cells(panel: Axes, grid: Any, low: float, high: float, rows: Any) -> None:
    """Write each value into its cell, light on dark."""
    if grid.size > 36:
        return
    fraction = rows["unit"].iloc[0] == "fraction"
    for (j, i), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = high > low and (value - low) / (high - low) > 0.55
            panel.text(
                i,
                j,
                f"{100 * value:.1f}" if fraction else f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=SMALLEST,
                color="white" if dark else INK,
            )


def _known_axes(view: SweepView, *axes: str) -> None:
    """Refuse names that are no axes.

    Raises:
        InvalidArgumentError: If there is one.
    """
    for axis in axes:
        if axis not in view.axes:
            raise InvalidArgumentError(
                f"axis: must be one of {', '.join(view.axes)}, got "
                f"{_validate.show(axis)}"
            )


def _measured(rows: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    """Return lines as they are, at least one of which has a value.

    Raises:
        MissingInputError: If none has.
    """
    if not rows["mean"].notna().any():
        raise MissingInputError(
            f"{metric}: must be measured in a complete case, got no value; name it "
            "under evaluation.metrics and run the sweep"
        )
    return rows


def save_sweep_figures(
    view: SweepView, folder: str | Path, formats: Sequence[Format] = ("png",)
) -> tuple[Path, ...]:
    """Draw what the sweep's data can feed into a folder, ``<name>.<format>`` each.

    ``privacy-utility``, ``front-against-gap``; of test accuracy (or error)
    ``<metric>-by-<axis>`` along each axis, and ``<metric>-heat-<axis>-<axis>`` over
    each two with one value per cell.

    Args:
        view: The sweep.
        folder: Where they go; made if it does not exist.
        formats: Any of ``png`` (150 dpi), ``svg`` and ``pdf``.

    Returns:
        The files. None where nothing is complete.
    """
    for format in formats:
        _validate.one_of(FORMATS, format=format)
    folder = Path(folder)
    make_folder(folder)
    written = []
    for name, entry in _drawable(view):
        try:
            figure = draw_sweep(partial(entry, view))
        except (MissingInputError, InvalidArgumentError) as error:
            _LOG.info("%s: left out, %s", name, error)
            continue
        for format in formats:
            path = folder / f"{name}.{format}"
            write_file(path, render(figure, format))
            written.append(path)
    return tuple(written)


def draw_sweep(entry: Callable[[Figure], None]) -> Figure:
    """Fill a new figure in the package's style.

    Args:
        entry: E.g. ``partial(privacy_utility, view)``.

    Returns:
        The figure, not tied to any window; ``plots.render`` makes a file of it.
    """
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        entry(figure)
    return figure


def _drawable(view: SweepView) -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield name and function of everything that may be drawn of a sweep."""
    yield "privacy-utility", privacy_utility
    yield "front-against-gap", front_against_gap
    summary = view.summary()
    varied = [a for a in view.axes if summary[a].nunique(dropna=False) > 1]
    for metric in UTILITY:
        if not summary.loc[summary["metric"] == metric, "mean"].notna().any():
            continue
        for axis in varied:
            name = f"{metric}-by-{_file(axis)}"
            yield name, partial(axis_lines, metric=metric, axis=axis)
        for one, two in combinations(varied, 2):
            name = f"{metric}-heat-{_file(one)}-{_file(two)}"
            yield name, partial(heat, metric=metric, axes=(one, two))


def _file(axis: str) -> str:
    """Return an axis as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in axis)[:60]
