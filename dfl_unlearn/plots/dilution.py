"""What gossip leaves of a correction that one peer took, and of its forgetting."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dfl_unlearn.plots import plots
from dfl_unlearn.plots._style import (
    GREY,
    INFLUENCE,
    INK,
    WIDTH,
    label,
    log_axis,
    percent,
    spread_out,
)
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.dilution import (
    dilution_weights,
    forgotten_rows,
    mean_losses,
)

_ROUNDS = 30
_LOWEST = 1e-4
_MOST_CURVES = 7
_MOST_DOTS = 40


@plots.register("dilution")
def dilution(view: ResultsView, figure: Figure) -> None:
    """What mixing leaves of one peer's change, by hop distance, over the rounds.

    Lines are the powers of the mixing matrix, which fall to 1/N of the change at every
    peer; dots are what a local correction really left, where one was followed by
    rounds of mixing. Beside them the loss on the forgotten rows at each distance, if
    rounds of gossip followed a local correction.

    Args:
        view: Gives the network, and the outcomes.
        figure: The figure to fill.
    """
    followed = [o for o in view.outcomes if "peers_forget_loss" in o.trace]
    figure.set_size_inches(WIDTH, 3.4)
    if followed:
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        outcome = followed[-1]
        _forgetting(right, view, outcome)
    else:
        left = figure.subplots()
    _shares(left, view, followed[-1] if followed else None)


def left_of_change(
    view: ResultsView, outcome: Outcome | None
) -> tuple[int, NDArray[np.float64], NDArray[np.float64] | None]:
    """Return what mixing leaves of one peer's change, foretold and measured.

    Args:
        view: Gives the network.
        outcome: Of a local correction that rounds of gossip followed, or None.

    Returns:
        The peer that changed; the powers of the mixing matrix, shape ``(T'+1, N)``; and
        in the same shape what was really left, or None where it is not known.
    """
    source, measured = view.source_peer, None
    if outcome is not None:
        source = outcome.request.requester
        change = outcome.trace.get("peers_change")
        # Where several peers changed, no single power of W is the answer.
        if change is not None and np.count_nonzero(change[0]) == 1:
            source = int(change[0].argmax())
            measured = change / change[0].max()
    rounds = _ROUNDS if measured is None else len(measured) - 1
    return source, dilution_weights(view.topology, source, rounds), measured


def _shares(axes: Axes, view: ResultsView, outcome: Outcome | None) -> None:
    """Draw the powers of W by hop, and what was measured on top."""
    source, weights, measured = left_of_change(view, outcome)
    rounds = len(weights) - 1
    hops, n = view.topology.hops(source), view.topology.n
    shown = some_hops(hops)
    colours = INFLUENCE(np.linspace(0.98, 0.38, len(shown)))
    marks = np.unique(np.linspace(0, rounds, _MOST_DOTS).astype(int))
    for hop, colour in zip(shown, colours, strict=True):
        line = by_hop(weights, hops, hop)
        axes.plot(np.where(line > 0, line, np.nan), color=colour, zorder=2)
        if measured is not None:
            dots = by_hop(measured, hops, hop)[marks]
            axes.plot(
                marks[dots > 0],
                dots[dots > 0],
                "o",
                color=colour,
                markersize=4,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3,
            )
    axes.axhline(1 / n, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    low = max(_LOWEST, float(weights[weights > 0].min()) / 2)
    axes.set_ylim(min(low, 0.5 / n), 1.4)
    axes.set_xlim(0, max(rounds, 1))
    log_axis(axes, "y", percent)
    axes.grid(axis="y")
    axes.set_xlabel("round of mixing after the correction")
    axes.set_ylabel("share of the change")
    axes.set_title(f"What is left of peer {source}'s change")
    ends = [by_hop(weights, hops, hop)[-1] for hop in shown]
    texts = [f"{h} hop{'' if h == 1 else 's'}" for h in shown]
    _name(axes, [*ends, 1 / n], [*texts, f"1/N = {percent(1 / n)}"], [*colours, GREY])


def _forgetting(axes: Axes, view: ResultsView, outcome: Outcome) -> None:
    """Draw the loss on the forgotten rows by hop over the rounds."""
    losses = outcome.trace["peers_forget_loss"]
    source = outcome.request.requester
    hops = view.topology.hops(source)
    shown = some_hops(hops)
    colours = INFLUENCE(np.linspace(0.98, 0.38, len(shown)))
    for hop, colour in zip(shown, colours, strict=True):
        axes.plot(by_hop(losses, hops, hop), color=colour)
    rows = forgotten_rows(view.run, outcome.request)
    states = {"before": view.run.state}
    if outcome.reference is not None:
        states["retrained"] = outcome.reference.state
    marks = []
    for (name, state), style in zip(states.items(), (":", "--"), strict=False):
        value = mean_losses(view.run.model, state.params[[source]], rows)[0]
        axes.axhline(value, color=INK, linewidth=1, linestyle=style)
        marks.append((value, f"{name}, peer {source}"))
    axes.set_xlim(0, max(len(losses) - 1, 1))
    axes.grid(axis="y")
    axes.set_xlabel("round of gossip after the correction")
    axes.set_ylabel("loss on forgotten rows")
    after = getattr(outcome.protocol, "gossip_after", "mix")
    axes.set_title(label(f"{outcome.label}, then {after}", 34))
    ends = [by_hop(losses, hops, hop)[-1] for hop in shown]
    texts = [f"{h} hop{'' if h == 1 else 's'}" for h in shown]
    low, high = axes.get_ylim()
    _name(
        axes,
        [*ends, *(value for value, _ in marks)],
        [*texts, *(text for _, text in marks)],
        [*colours, *[INK] * len(marks)],
        span=(low, high),
    )


def some_hops(hops: NDArray[np.int64]) -> list[int]:
    """Return the hop distances to draw, nearest and farthest among them.

    Args:
        hops: Of every peer, shape ``(N,)``.
    """
    every = np.arange(int(hops.max()) + 1)
    chosen = np.linspace(0, len(every) - 1, min(len(every), _MOST_CURVES)).astype(int)
    return [int(h) for h in every[np.unique(chosen)]]


def by_hop(
    values: NDArray[np.float64], hops: NDArray[np.int64], hop: int
) -> NDArray[np.float64]:
    """Return the mean over the peers at a distance, one value per round.

    Args:
        values: Shape ``(T', N)``.
        hops: Of every peer, shape ``(N,)``.
        hop: The distance.

    Returns:
        Shape ``(T',)``.
    """
    mean: NDArray[np.float64] = values[:, hops == hop].mean(axis=1)
    return mean


def _name(
    axes: Axes,
    values: list[float],
    texts: list[str],
    inks: list[object],
    span: tuple[float, float] | None = None,
) -> None:
    """Write names at the right end of curves, none over another."""
    low, high = axes.get_ylim() if span is None else span
    wanted = np.array(values, dtype=np.float64)
    if span is None:
        low, high = np.log10(low), np.log10(high)
        wanted = np.log10(np.maximum(wanted, 10**low))
    placed = spread_out(wanted, 0.07 * (high - low), low, high)
    for y, text, ink in zip(placed, texts, inks, strict=True):
        axes.annotate(
            text,
            (1.0, 10**y if span is None else y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=ink,
            annotation_clip=False,
        )
