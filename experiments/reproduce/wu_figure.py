"""The picture of the Newton/Fisher experiments: slopes, what is left, and noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SHOWN = (
    "original",
    "published",
    "published, hardly any noise",
    "diagonal, all gradients",
    "certified, cap 0.001",
)


def draw(table: pd.DataFrame, measured: pd.DataFrame, path: Path) -> None:
    """Draw error against shift, distance left per method, and accuracy under noise.

    Args:
        table: One row per case, request and method.
        measured: Rows of ``wu_slopes.errors``.
        path: The PNG.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(12.4, 4.2), layout="constrained", dpi=150)
        left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
        draw_slopes(measured, left)
        draw_left(table, middle)
        draw_noise(table, right)
        figure.savefig(path)


def draw_slopes(measured: pd.DataFrame, axes: Any) -> None:
    """Draw the error of one step against the distance of the two minimizers."""
    from dfl_unlearn.plots._style import BLUE, GREY, ORANGE, RED, log_axis

    colours = {"diagonal": RED, "full Hessian": ORANGE, "exact": BLUE}
    markers = dict(zip(dict.fromkeys(measured.problem), "os^Dv", strict=False))
    for (problem, curvature), part in measured.groupby(["problem", "curvature"]):
        axes.plot(
            part["shift"],
            part.error,
            ls="",
            marker=markers[problem],
            ms=4,
            mfc="none",
            color=colours[curvature],
        )
    ends = np.array([measured["shift"].min(), measured["shift"].max()])
    for slope, at in ((1, "diagonal"), (2, "exact")):
        part = measured[measured.curvature == at]
        level = np.exp(np.mean(np.log(part.error) - slope * np.log(part["shift"])))
        axes.plot(ends, level * ends**slope, color=GREY, lw=0.9, ls=":", zorder=0)
        axes.annotate(
            f"slope {slope}",
            (ends[1], level * ends[1] ** slope),
            xytext=(-34, 10),
            textcoords="offset points",
            color=GREY,
        )
    log_axis(axes)
    log_axis(axes, "y")
    axes.set(
        xlabel="distance of the two minimizers",
        ylabel="error after one step",
        title="How far one correction misses",
    )
    handles = [axes.plot([], [], "s", color=c, label=k)[0] for k, c in colours.items()]
    handles += [
        axes.plot([], [], m, mfc="none", color=GREY, label=k)[0]
        for k, m in markers.items()
    ]
    axes.legend(handles=handles, fontsize=7.5, loc="lower right")


def draw_left(table: pd.DataFrame, axes: Any) -> None:
    """Draw every method's distance to the retrained models, by kind of request."""
    from dfl_unlearn.plots._style import BLUE, GREEN, INK, ORANGE, RED, log_axis

    colours = dict(zip(SHOWN, (INK, RED, ORANGE, GREEN, BLUE), strict=True))
    keys = ["model", "request"]
    places = {key: k for k, key in enumerate(table.groupby(keys, sort=False).groups)}
    for step, (method, colour) in enumerate(colours.items()):
        rows = table[(table.method == method) & table.distance.notna()]
        for key, part in rows.groupby(keys, sort=False):
            y = places[key] + 0.13 * (step - 2)
            axes.hlines(y, part.distance.min(), part.distance.max(), color=colour)
            mean = np.exp(np.log(part.distance).mean())
            axes.plot(mean, y, "o", ms=4.5, color=colour)
        axes.plot([], [], "o", color=colour, label=method)
    axes.set_yticks(list(places.values()), [", ".join(key) for key in places])
    axes.invert_yaxis()
    log_axis(axes)
    axes.set(
        xlabel="relative distance to the retrained models",
        title="Nearer than doing nothing?",
    )
    axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)


def draw_noise(table: pd.DataFrame, axes: Any) -> None:
    """Draw accuracy under certified noise against the public cap."""
    from dfl_unlearn.plots._style import CURVES, GREY, log_axis, percent_axis

    rows = table[table.method.str.startswith("certified, cap")]
    rows = rows[(rows.request == "samples") & rows.accuracy.notna()]
    caps = rows.method.str.rsplit(n=1).str[1].astype(float)
    looks = zip(CURVES, ("o-", "s--", "^:"), strict=False)
    for (colour, look), (network, part) in zip(
        looks, rows.assign(cap=caps).groupby("network", sort=False), strict=False
    ):
        means = part.groupby("cap").accuracy.agg(["mean", "min", "max"])
        axes.plot(means.index, means["mean"], look, ms=4, color=colour, label=network)
        axes.fill_between(means.index, means["min"], means["max"], alpha=0.15)
    yard = rows.retrained_accuracy.mean()
    axes.axhline(yard, color=GREY, lw=1, ls="--", label="retrain")
    log_axis(axes, unit=lambda value: f"{value:g}")
    percent_axis(axes)
    axes.set(
        xlabel="public cap that the noise is calibrated to",
        ylabel="test accuracy at ε = 1, δ = 1e-5",
        title="What certified noise costs",
    )
    axes.legend(fontsize=7.5)
