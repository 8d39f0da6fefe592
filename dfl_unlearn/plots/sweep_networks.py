"""Fronts of influence against the spectral gap of the networks of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.plots._style import (
    COLUMN,
    GREY,
    SMALLEST,
    TWO_COLUMNS,
    label,
    log_axis,
)
from dfl_unlearn.plots._sweep_parts import (
    PALETTE,
    SHAPES,
    rows_of,
    value_axis,
    world_of,
)
from dfl_unlearn.results.sweep import SweepView

if TYPE_CHECKING:
    import pandas as pd


def front_against_gap(view: SweepView, figure: Figure) -> None:
    """Draw front time and effective spread against the spectral gap of the network.

    A mark is a network: its family has a colour and a shape, its number of peers a
    size. Spearman's rank correlation over all of them stands above. Points of the
    sweep that differ in what does not touch the network count once, and one without a
    value in every seed, as of a front that did not cross in time, is left out.

    Args:
        view: Has ``spectral-gap``, and ``front-time`` or ``effective-spread``.
        figure: The figure to fill.

    Raises:
        MissingInputError: If these metrics, or different gaps, are absent.
    """
    gaps, found = _networks(view)
    panels = [
        (metric, gaps.join(values.add_suffix(" y"), how="inner"))
        for metric, values in found.items()
        if values.index.isin(gaps.index).any()
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
        value_axis(axes, rows.assign(unit=rows["unit y"]), metric)
        axes.set_title(
            _correlations(rows, len(gaps)), fontsize=SMALLEST, fontweight="normal"
        )
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


def _networks(view: SweepView) -> tuple["pd.DataFrame", dict[str, "pd.DataFrame"]]:
    """Return the gaps of the networks, each network once, and what was measured there.

    Args:
        view: The sweep.

    Returns:
        The gaps, and by metric the values that every seed with a gap has; rows as of
        ``_per_network``.
    """
    import pandas as pd

    gaps = _per_network(view, "spectral-gap")
    found = {}
    for metric in ("front-time", "effective-spread"):
        values = _per_network(view, metric)
        asked = gaps["count"].reindex(values.index)
        found[metric] = values[values["count"] >= asked]
    means = {name: rows["mean"].reindex(gaps.index) for name, rows in found.items()}
    what = pd.DataFrame({**gaps[["family", "peers", "mean"]], **means})
    return gaps[~what.duplicated()], found


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
    return 4 + 5 * float(np.sqrt(peers / max(1, *sizes)))


def _correlations(rows: "pd.DataFrame", known: int) -> str:
    """Return Spearman's rank correlation over the networks, and over each size's.

    Args:
        rows: The networks in a panel.
        known: How many have a gap.
    """
    words = [f"rank correlation {_rank(rows)} ({len(rows)} networks)"]
    if len(rows) < known:
        words.append(f"left out: {known - len(rows)} without a value in every seed")
    by_size = [(n, own) for n, own in rows.groupby("peers") if len(own) > 2]
    if len(by_size) > 1:
        parts = ", ".join(f"{_rank(own)} (N={n})" for n, own in by_size)
        words.append(f"at one size: {parts}")
    return "\n".join(words)


def _rank(rows: "pd.DataFrame") -> str:
    """Return a rank correlation with two digits; "?" where nothing can be ranked."""
    one, other = rows["mean"], rows["mean y"]
    if len(rows) < 3 or one.nunique() < 2 or other.nunique() < 2:
        return "?"
    return f"{spearmanr(one, other).statistic:.2f}"
