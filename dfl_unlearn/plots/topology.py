"""The network, once per chosen round, every peer coloured by its share of influence."""

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dfl_unlearn.plots import plots
from dfl_unlearn.plots._style import GREY, INFLUENCE, INK, WIDTH, percent
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.topology.graph import Topology

_SMALL = 24  # as many fit side by side; larger networks get two rows of panels
_LABELLED = 64
_KAMADA = 100
_SPRING = 1500


@plots.register("topology")
def topology(view: ResultsView, figure: Figure) -> None:
    """The network in some rounds, each peer coloured by its share of the influence.

    The requester has a ring. White peers have not been reached by any message that
    could carry its data. The colour scale is logarithmic and ends at the share that
    the requester starts with.

    Args:
        view: Gives network and influence.
        figure: The figure to fill.
    """
    network, trace = view.topology, view.influence()
    small = network.n <= _SMALL
    shown = shown_rounds(trace, 5 if small else 6)
    shares, spread = trace.shares(), trace.effective_spread()
    columns = min(len(shown), 5 if small else 3)
    rows = -(-len(shown) // columns)
    figure.set_size_inches(WIDTH, 2.55 if small else 0.9 + 2.55 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    norm = influence_scale(network.n)
    places = layout(network, trace.source)
    for axes, k in zip(panels, shown, strict=False):
        draw_network(axes, network, places, shares[k], norm, trace.source)
        axes.set_title(f"round {trace.rounds[k]}", fontsize=9.5, loc="center", pad=4)
        axes.text(
            0.5,
            -0.04,
            f"on {spread[k]:.1f} of {network.n} peers",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=8,
            color=GREY,
        )
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=INFLUENCE),
        ax=list(panels),
        location="bottom",
        shrink=0.62,
        aspect=42,
        pad=0.1 if small else 0.04,
    )
    share_ticks(bar.ax, network.n, which="x")
    bar.outline.set_visible(False)
    bar.ax.set_xlabel(f"share of peer {trace.source}'s influence", fontsize=8.5)


def lowest_share(n: int) -> float:
    """Return where the scale of influence begins: a fiftieth of the even share."""
    return 0.02 / n


def influence_scale(n: int) -> LogNorm:
    """Return the logarithmic scale of shares among ``n`` peers."""
    return LogNorm(vmin=lowest_share(n), vmax=1.0)


def share_ticks(axes: Axes, n: int, which: str) -> None:
    """Mark round percentages and the even share 1/N on a colour bar.

    Args:
        axes: The bar's axes.
        n: Number of peers.
        which: ``x`` for a flat bar, ``y`` for an upright one.
    """
    low = lowest_share(n)
    ticks = [t for t in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5) if t >= low]
    # The even share is labelled; a round tick too near to it would overlap.
    near = 0.45 if which == "x" else 0.35
    ticks = [t for t in ticks if abs(np.log10(t * n)) > near]
    texts = [percent(t) for t in ticks] + [f"even: {percent(1 / n)}"]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([*ticks, 1 / n], texts)
    axis.set_ticks([], minor=True)
    axis.set_tick_params(labelsize=8)


def shown_rounds(trace: InfluenceTrace, count: int) -> list[int]:
    """Return the rows of a trace that tell the story of the spreading.

    Args:
        trace: The influence, round by round.
        count: How many rows at most.

    Returns:
        Ascending row numbers: the first round with any influence, those where it has
        spread over given parts of the network, and the last; filled up evenly on a
        logarithmic scale.
    """
    spread = trace.effective_spread()
    last = len(spread) - 1
    begin = int((spread > 0).argmax()) if (spread > 0).any() else 0
    parts = np.linspace(0.3, 0.9, count - 2)
    reach = spread[begin] + (spread.max() - spread[begin]) * parts
    rows = {begin, last, *(int((spread >= r).argmax()) for r in reach)}
    for step in np.geomspace(1, max(last - begin, 1) + 1, 4 * count):
        if len(rows) >= min(count, last - begin + 1):
            break
        rows.add(begin + min(round(step), last - begin))
    return sorted(rows)


def layout(topology: Topology, top: int) -> NDArray[np.float64]:
    """Place the peers on the plane, the same way every time.

    Args:
        topology: The network.
        top: Peer at the top of a circle.

    Returns:
        Positions in the unit square's scale, shape ``(N, 2)``.
    """
    graph, n = topology.graph, topology.n
    degrees = np.array([d for _, d in sorted(graph.degree())])
    dense = graph.number_of_edges() > 0.35 * n * (n - 1) / 2
    if n < 4 or (degrees == 2).all() or (dense and n <= _SPRING):
        angle = np.pi / 2 - 2 * np.pi * (np.arange(n) - top) / n
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    plain = nx.Graph(topology.edges.tolist())
    if n <= _KAMADA:
        found = nx.kamada_kawai_layout(plain, weight=None)
    elif n <= _SPRING:
        found = nx.spring_layout(plain, seed=0, iterations=60)
    else:
        found = nx.spectral_layout(plain, weight=None)
    places = np.array([found[i] for i in range(n)], dtype=np.float64)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    centred: NDArray[np.float64] = places / max(float(np.abs(places).max()), 1e-12)
    return centred


def draw_network(
    axes: Axes,
    network: Topology,
    places: NDArray[np.float64],
    shares: NDArray[np.float64],
    norm: LogNorm,
    source: int,
    *,
    zoom: float = 1.0,
) -> None:
    """Draw the network once, every peer coloured by its share.

    Args:
        axes: Empty; they get equal scales and no frame.
        network: The network.
        places: Of the peers, as ``layout`` gives them, shape ``(N, 2)``.
        shares: Of the influence, shape ``(N,)``; exactly 0 is drawn white.
        norm: The colour scale.
        source: The peer that gets a ring.
        zoom: How much larger than in one of several panels the peers are drawn.
    """
    n = network.n
    edges = network.edges
    thin = zoom * float(np.clip(60 / max(len(edges), 1), 0.15, 1.0))
    axes.add_collection(
        LineCollection(list(places[edges]), colors="#aab1bb", linewidths=thin, zorder=1)
    )
    scale = 1.0 if n <= _SMALL and zoom == 1 else 2.6  # area of a panel
    size = zoom**2 * float(np.clip(1500 * scale / n, 5, 190))
    # A share below the scale still was reached; 0 is outside the light cone.
    reached = np.where(shares > 0, np.maximum(shares, lowest_share(n)), 1e-300)
    levels = norm(reached)
    # The most influenced last, so that a crowd does not hide them.
    order = np.argsort(shares, kind="stable")
    axes.scatter(
        places[order, 0],
        places[order, 1],
        s=size,
        c=INFLUENCE(levels)[order],
        edgecolors="#7b828d",
        linewidths=0.25 if n > _LABELLED else 0.7,
        zorder=2,
    )
    axes.scatter(
        places[source, :1],
        places[source, 1:],
        s=size + (10 if n > _LABELLED else 75) * zoom,
        facecolors="none",
        edgecolors=INK,
        linewidths=1.4,
        zorder=4,
    )
    if n <= _LABELLED:
        for i, (x, y) in enumerate(places):
            dark = shares[i] > 0 and levels[i] > 0.55
            axes.text(
                x,
                y,
                str(i),
                ha="center",
                va="center_baseline",
                fontsize=zoom * (7 if n <= 16 else 6 if n <= 40 else 5),
                color="white" if dark else INK,
                zorder=3,
            )
    axes.set_xlim(-1.22, 1.22)
    axes.set_ylim(-1.22, 1.22)
    axes.set_aspect("equal")
    axes.axis("off")
