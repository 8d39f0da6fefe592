"""What figures of sweeps share: lines over an axis, marks by claim, scales."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.plots._style import CURVES, GREY, INK, label, percent_axis
from dfl_unlearn.results.sweep import SweepView

if TYPE_CHECKING:
    import pandas as pd

CERTIFIED = ("exact", "certified", "certified_conditional")
BASELINES = ("dp-gossip",)
"""Train privately instead of forgetting; drawn with long dashes."""

UTILITY = ("test-accuracy", "test-mse")
"""What says how good the networks are, of classes and of numbers."""
PALETTE = (*CURVES, "#8c6d31", "#7f3c8d", INK)
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
_MOST_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """Where the values of an axis stand.

    Attributes:
        values: The values, in their order.
        kind: ``log``, ``linear`` or ``names``.
    """

    values: tuple[Any, ...]
    kind: str

    def of(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """Return the places of values on the axis."""
        if self.kind != "names":
            return np.array(values, dtype=np.float64)
        known = [None if v != v else v for v in values]  # an axis of another sweep
        found = [self.values.index(v) for v in known]
        return np.array(found, dtype=np.float64)

    @property
    def texts(self) -> list[str]:
        """The values as they are written."""
        return [
            "-" if v is None else label(v if isinstance(v, str) else f"{v:g}", 22)
            for v in self.values
        ]

    def apply(self, axes: Axes, name: str) -> None:
        """Set scale, ticks and name of a panel's horizontal axis."""
        places, texts = self.of(self.values), self.texts
        if self.kind == "log":
            axes.set_xscale("log")
        step = -(-len(texts) // _MOST_TICKS) if self.kind != "names" else 1
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places[::step], texts[::step])
        if self.kind == "names":
            turn_names(axes, texts, 36)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        axes.set_xlabel(label(name, 48))


def turn_names(axes: Axes, texts: Sequence[str], room: int) -> None:
    """Turn the names below a panel where they are longer than its room, in letters."""
    if sum(map(len, texts)) > room:
        axes.tick_params(axis="x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def scale_of(values: Sequence[Any]) -> Scale:
    """Return the scale that suits values: logarithmic where ratios are more even.

    Args:
        values: In the order of the axis; numbers are sorted.

    Returns:
        The scale.
    """
    known = [None if v != v else v for v in dict.fromkeys(values)]
    numeric = all(
        isinstance(v, int | float | np.number) and not isinstance(v, bool)
        for v in known
    )
    if not numeric:
        return Scale(tuple(known), "names")
    known.sort()
    numbers = np.array(known, dtype=np.float64)
    ratios = len(known) > 2 and numbers[0] > 0
    if ratios and _evenness(np.log(numbers)) < _evenness(numbers):
        return Scale(tuple(known), "log")
    return Scale(tuple(known), "linear")


def _evenness(numbers: NDArray[np.float64]) -> float:
    steps = np.diff(numbers)
    return float(steps.std() / steps.mean())


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel.

    Attributes:
        name: What the legend calls it.
        protocol: Its protocol, or "" in a world that is the same for all.
        rows: Lines of the summary in the order of ``x``, with the column ``x``.
        own: Whether it has a colour: something in it is certified, or it is no
            protocol's.
    """

    name: str
    protocol: str
    rows: "pd.DataFrame"

    @property
    def own(self) -> bool:
        """Whether it has a colour: something is certified, or it is no protocol's."""
        return not self.protocol or bool(self.rows["claim"].isin(CERTIFIED).any())


def rows_of(
    view: SweepView, metric: str, where: Mapping[str, Any] | None = None
) -> "pd.DataFrame":
    """Return the summary's lines of a metric.

    Args:
        view: The sweep.
        metric: A metric's name.
        where: Axis -> the only value to be drawn, as tables show it.

    Returns:
        The lines; empty where the sweep has none.

    Raises:
        InvalidArgumentError: If ``where`` names no axis, or a value that it has not.
    """
    summary = view.summary()
    rows = summary[summary["metric"] == metric]
    for axis, value in (where or {}).items():
        if axis not in ("sweep", "protocol", "request", *view.axes):
            raise InvalidArgumentError(
                f"where: must name axes, got {axis!r}; this sweep has "
                f"{', '.join(view.axes)}, and sweep, protocol and request"
            )
        if rows.size and not (rows[axis] == value).any():
            known = ", ".join(map(str, rows[axis].unique()[:8]))
            raise InvalidArgumentError(
                f"where: must be a value of {axis}, got {value!r}; it has {known}"
            )
        rows = rows[rows[axis] == value]
    return rows


def world_of(rows: "pd.DataFrame") -> str:
    """Return the world to draw: after the request where it is measured there."""
    worlds = set(rows["world"])
    return next(w for w in ("after", "before", "reference") if w in worlds)


def lines_of(
    view: SweepView, rows: "pd.DataFrame", over: Sequence[str] = ()
) -> list[Line]:
    """Return the lines to draw through rows that have a column ``x``.

    A line is a protocol's, also where several have equal values: their claims may
    differ. Before a request and after retraining all share one. Where a line has
    several rows with one ``x``, it is split by the axes (and the sweep, the request)
    that tell them apart.

    Args:
        view: The sweep.
        rows: Lines of the summary of one metric and world.
        over: Axes that ``x`` stands for.

    Returns:
        The lines.
    """
    if rows["world"].iloc[0] != "after":
        first = rows["protocol"].iloc[0]
        rows = rows[rows["protocol"] == first].assign(protocol="")
    found = []
    for protocol, own in rows.groupby("protocol", sort=False):
        split: list[str] = []
        for column in ("sweep", "request", *view.axes):
            if not own.duplicated([*split, "x"]).any():
                break
            if column not in over and own[column].nunique(dropna=False) > 1:
                split.append(column)
        groups = own.groupby(split, sort=False, dropna=False) if split else [((), own)]
        for values, part in groups:
            name = " ".join([str(protocol), *_words(split, values)]).strip()
            part = part.sort_values("x", kind="stable")
            found.append(Line(name=name, protocol=str(protocol), rows=part))
    return found


def _words(columns: Sequence[str], values: Sequence[Any]) -> Iterator[str]:
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, str):
            yield value
        else:
            yield f"{column.split('.')[-1]}={value:g}"


def draw_lines(axes: Axes, lines: Sequence[Line], kind: str) -> list[Line2D]:
    """Draw lines with a band of one spread to both sides.

    Args:
        axes: The panel.
        lines: What to draw.
        kind: Of the scale: between names there is nothing, so marks stand alone there,
            side by side.

    Returns:
        The handles of a legend.
    """
    handles, colour, grey = [], 0, 0
    for k, line in enumerate(lines):
        if line.own:
            ink, shape = PALETTE[colour % len(PALETTE)], SHAPES[colour % len(SHAPES)]
            colour += 1
        else:
            ink, shape = GREY, SHAPES[grey % len(SHAPES)]
            grey += 1
        base = line.protocol.startswith(BASELINES)
        dashes: Any = (0, (6, 2)) if base else "-" if line.own else (0, (2, 2))
        look: Any = {"color": ink, "linewidth": 1.3, "linestyle": dashes}
        x, mean = line.rows["x"].to_numpy(), line.rows["mean"].to_numpy()
        spread = line.rows["spread"].fillna(0).to_numpy()
        if kind == "names":
            x = x + 0.7 * ((k + 0.5) / len(lines) - 0.5)
            look["linestyle"] = ""
        if kind == "names" or len(x) == 1:
            axes.errorbar(x, mean, spread, color=ink, linestyle="", elinewidth=0.9)
        else:
            axes.plot(x, mean, zorder=2, **look)
            band: Any = {"color": ink, "alpha": 0.13, "linewidth": 0}
            axes.fill_between(x, mean - spread, mean + spread, **band)
        claims = (
            line.rows["claim"].tolist() if line.protocol else ["certified"] * len(x)
        )
        for claim in dict.fromkeys(claims):
            at = np.array([other == claim for other in claims])
            style = mark_of(claim, ink, shape)
            axes.plot(x[at], mean[at], linestyle="", zorder=3, **style)
        most = next((c for c in CERTIFIED if c in claims), claims[-1])
        style = mark_of(most, ink, shape)
        handles.append(Line2D([], [], label=label(line.name, 34), **look, **style))
    return handles


def mark_of(claim: str, ink: str, shape: str) -> dict[str, Any]:
    """Return the marker of a claim: filled, half empty, a cross, or empty and grey."""
    size = {"marker": shape, "markersize": 4.6, "markeredgewidth": 1.1}
    if claim in ("exact", "certified"):
        return {**size, "markerfacecolor": ink, "markeredgecolor": ink}
    if claim == "certified_conditional":
        return {**size, "markerfacecolor": "white", "markeredgecolor": ink}
    cross = claim in ("heuristic", "pending")
    marker = {"marker": "x"} if cross else {}
    return {**size, **marker, "markerfacecolor": "white", "markeredgecolor": GREY}


def seeds_in(rows: "pd.DataFrame") -> str:
    """Return in words how many seeds are behind some lines."""
    low, high = int(rows["count"].min()), int(rows["count"].max())
    if low == high:
        return f"{low} seed{'' if low == 1 else 's'}"
    return f"{low} to {high} seeds"


def value_axis(axes: Axes, rows: "pd.DataFrame", metric: str) -> None:
    """Name a panel's vertical axis and show fractions as percentages."""
    unit = str(rows["unit"].iloc[0])
    words = metric.replace("-", " ")
    if unit == "fraction":
        percent_axis(axes)
    elif unit and unit not in words:
        words = f"{words}, {unit}"
    axes.set_ylabel(words)
    axes.grid(axis="y")
