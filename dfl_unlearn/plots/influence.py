"""How the requester's influence travels: by hop, by peer, and how fast its front is."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dfl_unlearn.plots import plots
from dfl_unlearn.plots._style import (
    BLUE,
    GREY,
    INFLUENCE,
    INK,
    ORANGE,
    WIDTH,
    log_axis,
    percent,
    spread_out,
)
from dfl_unlearn.plots.topology import influence_scale, lowest_share, share_ticks
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.results.view import ResultsView

_MOST_CURVES = 12
_MOST_COLUMNS = 600
_ROW_LABELS = 40
_FRONTS = ((0.1, ORANGE, "o"), (0.5, BLUE, "s"))


@plots.register("influence-hops")
def influence_hops(view: ResultsView, figure: Figure) -> None:
    """Mean share of the influence at each hop distance, over the rounds.

    All curves end at 1/N when gossip has mixed completely. A curve starts in the first
    round in which a message can have come that far.

    Args:
        view: Gives the influence.
        figure: The figure to fill.
    """
    trace = view.influence()
    profile, n = trace.by_hop(), view.topology.n
    hops = np.unique(np.linspace(0, profile.shape[1] - 1, _MOST_CURVES).astype(int))
    figure.set_size_inches(WIDTH, 3.4)
    axes = figure.subplots()
    low = lowest_share(n)
    colours = INFLUENCE(np.linspace(0.98, 0.38, len(hops)))
    for hop, colour in zip(hops, colours, strict=True):
        share = np.where(profile[:, hop] >= low / 10, profile[:, hop], np.nan)
        axes.plot(trace.rounds, share, color=colour, zorder=3)
    axes.axhline(1 / n, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    axes.set_ylim(low, 1.3)
    axes.set_xlim(trace.rounds[0], max(trace.rounds[-1], trace.rounds[0] + 1))
    log_axis(axes, "x")
    log_axis(axes, "y", percent)
    axes.grid(axis="y")
    axes.set_xlabel("round")
    axes.set_ylabel("mean share per peer")
    axes.set_title(trace_title(trace, "share of peer {}'s influence by hop distance"))
    _name_curves(axes, trace, hops, colours, low)


@plots.register("influence-heatmap")
def influence_heatmap(view: ResultsView, figure: Figure) -> None:
    """Share of the influence at every peer over the rounds, peers sorted by hop.

    White is outside the light cone: no message can have carried the data there.

    Args:
        view: Gives the influence.
        figure: The figure to fill.
    """
    trace, n = view.influence(), view.topology.n
    order = np.lexsort((np.arange(n), trace.hops))
    edges = np.unique(
        np.geomspace(1, len(trace.rounds) + 1, _MOST_COLUMNS + 1).astype(int)
    )
    shares = trace.shares()[edges[:-1] - 1][:, order].T
    # The palest colour is the scale's lowest; white is left to what is exactly 0.
    shares = np.where(shares > 0, np.maximum(shares, lowest_share(n)), np.nan)
    figure.set_size_inches(WIDTH, float(np.clip(1.5 + 0.14 * n, 2.6, 4.6)))
    axes = figure.subplots()
    image = axes.pcolormesh(
        np.append(trace.rounds[edges[:-1] - 1], trace.rounds[-1] + 1),
        np.arange(n + 1),
        np.ma.masked_invalid(shares),
        cmap=INFLUENCE,
        norm=influence_scale(n),
        rasterized=True,
    )
    axes.invert_yaxis()
    log_axis(axes, "x")
    axes.set_xlabel("round")
    borders = np.flatnonzero(np.diff(trace.hops[order])) + 1
    for border in borders if len(borders) <= _ROW_LABELS else ():
        axes.axhline(float(border), color="white", linewidth=1.2)
    _name_rows(axes, trace, order)
    axes.set_title(trace_title(trace, "share of peer {}'s influence at every peer"))
    bar = figure.colorbar(image, ax=axes, aspect=28, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    share_ticks(bar.ax, n, which="y")


@plots.register("influence-front")
def influence_front(view: ResultsView, figure: Figure) -> None:
    """Rounds until a peer holds a tenth, and half, of its even share, by hop distance.

    Nothing can lie below the light cone: it takes at least one round per hop. Where
    the network changed with the round there is none, and hops are those of the
    topology that the run names.

    Args:
        view: Gives the influence.
        figure: The figure to fill.
    """
    trace = view.influence()
    figure.set_size_inches(WIDTH * 0.72, 3.3)
    axes = figure.subplots()
    far = int(trace.hops.max())
    latest = 1.0
    for offset, (x, colour, marker) in zip((-0.08, 0.08), _FRONTS, strict=True):
        front = trace.front(x)
        reached = np.isfinite(front)
        latest = max(latest, front[reached].max(initial=1.0))
        axes.scatter(
            trace.hops[reached] + offset,
            front[reached],
            s=26,
            color=colour,
            marker=marker,
            edgecolors="white",
            linewidths=0.5,
            alpha=0.9,
            label=f"{percent(x)} of the even share",
            zorder=3,
        )
    if view.run.config.schedule is None:
        cone = np.arange(far + 1)
        axes.plot(
            cone,
            np.maximum(cone, 1),
            color=INK,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            label="light cone",
            zorder=2,
        )
    axes.set_ylim(0.8, 1.6 * max(latest, far))
    log_axis(axes, "y")
    axes.set_xticks(np.unique(np.linspace(0, far, min(far + 1, 11)).astype(int)))
    axes.set_xlim(-0.4, far + 0.4)
    axes.grid(axis="y")
    axes.set_xlabel(f"hops from peer {trace.source}")
    axes.set_ylabel("first round")
    axes.set_title(trace_title(trace, "when peer {}'s influence arrives"))
    axes.legend(loc="lower right")


def trace_title(trace: InfluenceTrace, words: str) -> str:
    """Return a title that names the source and how its influence was measured.

    Args:
        trace: Whose influence.
        words: Words with ``{}`` for the source.
    """
    text = words.format(trace.source)
    how = {
        "exact": "exact",
        "norm_bound": "norm bound",
        "mixing_power": "mixing matrix",
    }[trace.mode]
    return f"{text[0].upper()}{text[1:]} ({how})"


def _name_curves(
    axes: Axes,
    trace: InfluenceTrace,
    hops: NDArray[np.int64],
    colours: NDArray[np.float64],
    low: float,
) -> None:
    """Write the hop beside the end of each curve and the even share at its line."""
    ends = np.maximum(trace.by_hop()[-1, hops], low)
    even = 1 / trace.norms.shape[1]
    wanted = np.log10(np.append(ends, even))
    gap = 0.055 * np.log10(1.3 / low)
    placed = 10 ** spread_out(wanted, gap, np.log10(low), 0.1)
    texts = [f"{h} hop{'' if h == 1 else 's'}" for h in hops] + [
        f"even {percent(even)}"
    ]
    inks = [*colours, GREY]
    for y, text, ink in zip(placed, texts, inks, strict=True):
        axes.annotate(
            text,
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=ink,
            annotation_clip=False,
        )


def _name_rows(
    axes: Axes,
    trace: InfluenceTrace,
    order: NDArray[np.int64],
) -> None:
    """Label peers where they fit, else the hop distances."""
    if len(order) <= _ROW_LABELS:
        axes.set_yticks(np.arange(len(order)) + 0.5, [str(i) for i in order])
        axes.tick_params(axis="y", length=0, labelsize=8 if len(order) <= 20 else 6)
        axes.set_ylabel("peer, nearest first")
        return
    hops = trace.hops[order]
    middles = {int(h): float(np.flatnonzero(hops == h).mean()) for h in np.unique(hops)}
    shown: list[int] = []
    for hop, middle in middles.items():
        if not shown or middle - middles[shown[-1]] > 0.04 * len(order):
            shown.append(hop)
    axes.set_yticks([middles[h] + 0.5 for h in shown], [str(h) for h in shown])
    axes.set_ylabel("hops from the requester")
