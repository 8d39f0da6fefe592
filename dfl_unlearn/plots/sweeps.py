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
from scipy.stats import spearmanr

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.plots import FORMATS, Format, render
from dfl_unlearn.plots._style import (
    COLUMN,
    GREY,
    INFLUENCE,
    INK,
    SMALLEST,
    STYLE,
    TWO_COLUMNS,
    label,
    log_axis,
    percent,
)
from dfl_unlearn.plots._sweep_parts import (
    BASELINES,
    PALETTE,
    SHAPES,
    draw_lines,
    lines_of,
    mark_of,
    rows_of,
    scale_of,
    seeds_in,
    value_axis,
    world_of,
)
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.files import make_folder, write_file

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger(__name__)
UTILITY = ("test-accuracy", "test-mse")
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
    handles = draw_lines(axes, lines)
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


def front_against_gap(view: SweepView, figure: Figure) -> None:
    """Draw front time and effective spread against the spectral gap of the network.

    A mark is a network: its family has a colour and a shape, its number of peers a
    size. Spearman's rank correlation over all of them stands above.

    Args:
        view: Has ``spectral-gap``, and ``front-time`` or ``effective-spread``.
        figure: The figure to fill.

    Raises:
        MissingInputError: If these metrics, or different gaps, are absent.
    """
    gaps = _per_network(view, "spectral-gap")
    panels = [
        (metric, gaps.join(found, rsuffix=" y", how="inner"))
        for metric in ("front-time", "effective-spread")
        if len(found := _per_network(view, metric))
    ]
    if len(gaps) < 2 or not panels:
        raise MissingInputError(
            "front-against-gap: needs spectral-gap and one of front-time and "
            f"effective-spread of at least two networks, got {len(gaps)} with a gap; "
            "name these metrics under evaluation.metrics"
        )
    figure.set_size_inches(TWO_COLUMNS if len(panels) > 1 else COLUMN, 3.4)
    families = list(dict.fromkeys(gaps["family"]))
    sizes = sorted(gaps["peers"].unique())
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (metric, rows) in zip(all_axes, panels, strict=True):
        for (family, peers), own in rows.groupby(["family", "peers"], sort=False):
            k = families.index(family)
            axes.errorbar(
                own["mean"],
                own["mean y"],
                own["spread y"].fillna(0),
                own["spread"].fillna(0),
                linestyle="",
                color=PALETTE[k % len(PALETTE)],
                elinewidth=0.7,
                marker=SHAPES[k % len(SHAPES)],
                markersize=_size(peers, sizes),
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
        axes.set_xlabel("spectral gap")
        for which, column in (("x", "mean"), ("y", "mean y")):
            if (rows[column] > 0).all() and rows[column].nunique() > 1:
                log_axis(axes, which, lambda value: f"{value:g}")
        value_axis(axes, rows.rename(columns={"unit y": "unit"}), metric)
        axes.set_title(_correlation(rows["mean"], rows["mean y"]))
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            color=PALETTE[k % len(PALETTE)],
            marker=SHAPES[k % len(SHAPES)],
            markersize=5,
            label=label(family, 22),
        )
        for k, family in enumerate(families)
    ] + [
        Line2D(
            [],
            [],
            linestyle="",
            color=GREY,
            marker="o",
            markersize=_size(peers, sizes),
            label=f"N = {peers}",
        )
        for peers in sizes
    ]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=5 if len(panels) > 1 else 2,
        fontsize=SMALLEST,
        handletextpad=0.2,
        columnspacing=1,
    )


def _per_network(view: SweepView, metric: str) -> "pd.DataFrame":
    """Return a metric's mean and spread per network, with its family and size.

    All protocols of a case measure one network, so the first one's lines count.

    Args:
        view: The sweep.
        metric: The metric.

    Returns:
        Columns ``mean``, ``spread``, ``count``, ``unit``, ``family``, ``peers``, a row
        per point of the sweep; lines without a finite mean are left out.
    """
    rows = rows_of(view, metric)
    if rows.size:
        rows = rows[rows["world"] == world_of(rows)]
    key = ["sweep", *view.axes]
    rows = rows.drop_duplicates(key).set_index(key)
    networks = view.networks.drop_duplicates(key).set_index(key)
    kept = rows.loc[rows["mean"].notna(), ["mean", "spread", "count", "unit"]]
    return kept.join(networks[["family", "peers"]], how="inner")


def _size(peers: int, sizes: Sequence[int]) -> float:
    """Return a mark's size in points: its area grows with the number of peers."""
    return 4 + 5 * float(np.sqrt(peers / max(sizes)))


def _correlation(one: "pd.Series[float]", other: "pd.Series[float]") -> str:
    """Return Spearman's rank correlation in words."""
    if len(one) < 3 or one.nunique() < 2 or other.nunique() < 2:
        return "too few networks to rank"
    rho = spearmanr(one, other).statistic
    return f"rank correlation {rho:.2f} (Spearman, {len(one)} networks)"


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
    figure.set_size_inches(COLUMN, 2.6 + 0.17 * len(lines))
    axes = figure.subplots()
    handles = draw_lines(axes, lines)
    if world == "after" and len(lines) > 1:
        handles += _references(axes, rows)
    scale.apply(axes, axis)
    value_axis(axes, rows, metric)
    words = "" if world == "after" else f", {world}"
    axes.set_title(f"{metric.replace('-', ' ')}{words} ({seeds_in(here)})")
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower left", fontsize=SMALLEST)


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
    figure.set_size_inches(width, 0.7 + 2.1 * down)
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
            texts = [
                label(f"{v:g}" if not isinstance(v, str) else v, 14)
                for v in scale.values
            ]
            axis.set_ticks(range(len(texts)), texts)
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
                percent(value).removesuffix(" %") if fraction else f"{value:.3g}",
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
