"""One look for all figures: colours that colour-blind readers tell apart, quiet axes.

Categorical colours are Okabe and Ito's (2008, Color universal design); the scale of
influence darkens steadily, so it also reads in grey.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from dfl_unlearn import _validate

WIDTH = 7.6  # inches: 1140 pixels, the width of a page
COLUMN, TWO_COLUMNS = 3.3, 6.9  # inches: what a figure fills in most journals
SMALLEST = 8  # points; less is not readable in print

BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
)
INK, GREY, PALE = "#22272e", "#6b7280", "#e4e7ec"

# Distinct in hue and in lightness, for curves next to each other.
CURVES = (BLUE, ORANGE, GREEN, RED, PINK, SKY)

INFLUENCE = LinearSegmentedColormap.from_list(
    "influence", ["#fbf3df", "#fbd691", "#f4a259", "#d8594b", "#8f2d56", "#3a1742"]
).with_extremes(bad="white", under="white")

# How much a result claims; a heuristic one is grey and hatched, never like certified.
STATUS: Mapping[str, Mapping[str, Any]] = {
    "exact": {"facecolor": INK, "edgecolor": INK},
    "certified": {"facecolor": BLUE, "edgecolor": BLUE},
    "certified_conditional": {"facecolor": SKY, "edgecolor": BLUE},
    "heuristic": {"facecolor": "#e5e7eb", "edgecolor": GREY, "hatch": "////"},
    "no claim": {"facecolor": "white", "edgecolor": GREY},
}

# Any: matplotlib types the keys as one long literal.
STYLE: Any = {
    "text.usetex": False,  # names come from users, TeX would run them
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "dfl-unlearn",
    "pdf.fonttype": 42,  # TrueType: Type 3, the default, is refused by publishers
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}


def label(text: str, limit: int = 40) -> str:
    """Return a user's text fit for a figure: plain letters, no formulas, not long.

    A formula needs an unescaped dollar sign, so ``_`` and ``^`` stay as they are: a
    backslash before them would be drawn.

    Args:
        text: What a user typed.
        limit: Most letters; a longer text ends in an ellipsis.

    Returns:
        The text for matplotlib.
    """
    text = _validate.clean(text)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("$", r"\$")


def two_lines(name: str) -> str:
    """Return an outcome's name with its settings, if any, on a second line.

    A long name goes on there, from its last dot.
    """
    first, _, rest = name.partition(" ")
    if len(first) > 30 and "." in first:
        first, _, more = first.rpartition(".")
        rest = f"{more} {rest}".strip()
    return label(first, 30) + (f"\n{label(rest, 34)}" if rest else "")


def short(value: float) -> str:
    """Return a count with three digits and k, M or G, e.g. ``"1.2 M"``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Return a number of bytes with three digits and its unit, e.g. ``"1.2 MB"``."""
    number, _, prefix = short(count).partition(" ")
    return f"{number} {prefix}B"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with as many digits as it needs."""
    value = 100 * fraction
    return f"{value:,.0f} %" if abs(value) >= 999.5 else f"{value:.3g} %"


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Show fractions on an axis as percentages."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))


def log_axis(axes: Axes, which: str = "x", unit: Any = short) -> None:
    """Make an axis logarithmic with readable numbers in place of powers."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = sorted(axis.get_view_interval())
    few = np.log10(max(high, 1e-300) / max(low, 1e-300)) < 1.5
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: unit(value)))
    axis.set_minor_formatter(NullFormatter())


def spread_out(
    values: NDArray[np.float64], gap: float, low: float, high: float
) -> NDArray[np.float64]:
    """Move labels' positions apart so that none covers another, as little as possible.

    Where they do not fit between the two ends, they pass the upper one.

    Args:
        values: Wanted positions, shape ``(K,)``.
        gap: Smallest distance between two.
        low: Lowest position.
        high: Highest position.

    Returns:
        Positions in the same order, shape ``(K,)``.
    """
    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(values))
    # Least squares under the gap is isotonic regression of what the steps leave.
    moved = isotonic_regression(values[order] - steps).x
    room = high - (steps[-1] if len(steps) else 0.0)
    placed: NDArray[np.float64] = np.clip(moved, low, max(low, room)) + steps
    result = np.empty_like(placed)
    result[order] = placed
    return result
