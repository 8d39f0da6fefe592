"""Training over the rounds: accuracy of the peers and how far apart they are."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dfl_unlearn.engine.run import History
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.plots import plots
from dfl_unlearn.plots._style import (
    BLUE,
    CURVES,
    GREY,
    INK,
    WIDTH,
    label,
    log_axis,
    percent_axis,
    two_lines,
)
from dfl_unlearn.results.view import ResultsView

_ROW = 0.36  # inches: two lines of a name, and the space below them
_ENTRY = 0.185  # inches: a line of a legend


@plots.register("accuracy")
def accuracy(view: ResultsView, figure: Figure) -> None:
    """Test accuracy over the rounds, and after each protocol beside retraining.

    The line is the mean over peers, the band reaches from the worst to the best peer.

    Args:
        view: Gives the history, the outcomes and their metrics.
        figure: The figure to fill.
    """
    history = history_of(view, "accuracy")
    compared = worlds(view, history)
    regression = view.run.data.num_classes == 0
    figure.set_size_inches(WIDTH, max(3.2, 1.0 + _ROW * len(compared)))
    if compared:
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
        _draw_worlds(right, compared)
        if not regression:
            percent_axis(right, "x")
    else:
        left = figure.subplots()
    mean = history.accuracy.mean(axis=1)
    left.fill_between(
        history.rounds,
        history.accuracy.min(axis=1),
        history.accuracy.max(axis=1),
        color=BLUE,
        alpha=0.18,
        linewidth=0,
        label="worst to best peer",
    )
    left.plot(
        history.rounds, mean, color=BLUE, label="mean over peers", marker=_dot(mean)
    )
    left.set_xlabel("round")
    left.grid(axis="y")
    left.set_ylabel("minus mean squared error" if regression else "test accuracy")
    if not regression:
        percent_axis(left)
    left.set_title("Training")
    left.legend(loc="lower right")


@plots.register("consensus")
def consensus(view: ResultsView, figure: Figure) -> None:
    """Mean squared distance of the peers to their average, over the rounds.

    Args:
        view: Gives the history and the outcomes' states.
        figure: The figure to fill.
    """
    history = history_of(view, "consensus")
    distances = [outcome.state.consensus_distance() for outcome in view.outcomes]
    values = np.append(history.consensus, distances)
    low, high = values[values > 0].min(initial=np.inf), values.max()
    logarithmic = high > 20 * low
    figure.set_size_inches(WIDTH, max(2.9, 0.6 + _ENTRY * (1 + len(distances))))
    axes = figure.subplots()
    axes.plot(
        history.rounds,
        history.consensus,
        color=BLUE,
        marker=_dot(history.consensus),
        label="training",
    )
    names = zip(view.labels, distances, strict=True)
    for k, (name, distance) in enumerate(names):
        # A log axis has no place for 0; the legend says it.
        shown = distance if distance > 0 or not logarithmic else np.nan
        text = label(name, 44) + (": 0" if distance == 0 else "")
        axes.plot(
            [history.rounds[-1]],
            [shown],
            linestyle="none",
            marker="Dsv^"[k % 4],
            markersize=6.5,
            color=CURVES[(k + 1) % len(CURVES)],
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=text,
            clip_on=False,
            zorder=4,
        )
    if logarithmic:
        axes.set_ylim(low / 1.6, high * 1.6)
        log_axis(axes, "y", lambda value: f"{value:.3g}")
    else:
        axes.set_ylim(0, 1.08 * high if high > 0 else 1.0)
    axes.grid(axis="y")
    axes.set_xlabel("round")
    axes.set_ylabel("mean squared distance")
    axes.set_title("Distance of the peers to their average")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02))


def history_of(view: ResultsView, what: str) -> History:
    """Return the run's history.

    Args:
        view: Gives the run.
        what: Which figure needs it.

    Returns:
        At least one round.

    Raises:
        MissingInputError: If there is none.
    """
    history = view.run.history
    if history is None or not len(history.rounds):
        raise MissingInputError(
            f"{what}: needs the run's history over the rounds, got none; train with "
            "simulate(...)"
        )
    return history


def worlds(
    view: ResultsView, history: History
) -> list[tuple[str, NDArray[np.float64], str]]:
    """Return name, test score per peer and colour of each world to be compared.

    Args:
        view: Gives the outcomes and their metrics.
        history: Of the run.

    Returns:
        ``before``, one per outcome, ``retrained`` where a reference is known; nothing
        for a run alone.
    """
    if not view.outcomes:
        return []
    metric = "test-accuracy" if view.run.data.num_classes else "test-mse"
    sign = 1.0 if view.run.data.num_classes else -1.0
    found = [("before", history.accuracy[-1], GREY)]
    for k, (name, table) in enumerate(zip(view.labels, view.tables, strict=True)):
        rows = table.filter(metric=metric, world="after").rows
        values = sign * np.array([r["value"] for r in rows if r["peer"] >= 0])
        if values.size:
            found.append((name, values, CURVES[(k + 1) % len(CURVES)]))
    names = {outcome.protocol_name for outcome in view.outcomes}
    reference = next((o.reference for o in view.outcomes if o.reference), None)
    if reference is not None and reference.history and "retrain" not in names:
        found.append(("retrained", reference.history.accuracy[-1], INK))
    return found


def _draw_worlds(axes: Axes, shown: list[tuple[str, NDArray[np.float64], str]]) -> None:
    """Draw the mean and the range over peers of each world, side by side."""
    for k, (_, values, colour) in enumerate(shown):
        low, high = values.min(), values.max()
        axes.hlines(k, low, high, color=colour, linewidth=6, alpha=0.28)
        axes.plot(
            values.mean(), k, "o", color=colour, markersize=7, markeredgecolor="white"
        )
    axes.set_yticks(range(len(shown)), [two_lines(name) for name, _, _ in shown])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_title("In the end (own scale)")


def _dot(values: NDArray[np.float64]) -> str:
    """Mark single points, which a line alone would not show."""
    return "o" if len(values) < 3 else ""
