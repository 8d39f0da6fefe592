"""Protocols side by side: accuracy kept, data forgotten, work done."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.plots import plots
from dfl_unlearn.plots._style import GREY, INK, STATUS, WIDTH, short, size, two_lines
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.table import ResultsTable

_HEIGHT = 0.58
_TEXT = 7.8


@plots.register("methods")
def methods(view: ResultsView, figure: Figure) -> None:
    """Protocols compared by what they keep, what they forget, and their work.

    The first two panels show the difference to retraining, the third gradient
    evaluations on a logarithmic scale. Whiskers reach from the lowest to the highest
    peer. Fill says what the certificate claims: a heuristic result is grey and
    hatched.

    Args:
        view: Gives the outcomes and their metrics.
        figure: The figure to fill.

    Raises:
        MissingInputError: If there is no outcome to compare.
    """
    if not view.outcomes:
        raise MissingInputError(
            "methods: needs at least one outcome, got none; call unlearn first"
        )
    count = len(view.outcomes)
    claims = [_claim(certificate) for certificate in view.certificates]
    figure.set_size_inches(WIDTH, 1.45 + 0.42 * count)
    kept, forgotten, work = figure.subplots(1, 3, sharey=True)
    suffix = "accuracy" if view.run.data.num_classes else "mse"
    _differences(kept, view.tables, claims, f"test-{suffix}")
    _differences(forgotten, view.tables, claims, f"forget-{suffix}")
    _work(work, view, claims)
    kept.set_title(f"Test {suffix}")
    forgotten.set_title(f"Forget {suffix}")
    kept.set_yticks(range(count), [two_lines(name) for name in view.labels])
    kept.set_ylim(count - 0.45, -0.55)
    for axes in (kept, forgotten, work):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.legend(
        handles=[
            Patch(**STATUS[name], label=name.replace("_", ", "))
            for name in STATUS
            if name in claims
        ],
        loc="outside lower left",
        ncols=len(STATUS),
        handlelength=1.6,
        handleheight=0.9,
    )


def _claim(certificate: Certificate | None) -> str:
    """Return a certificate's status as a key of ``STATUS``; unknown is heuristic."""
    found = "no claim" if certificate is None else certificate.status
    return found if found in STATUS else "heuristic"


def _differences(
    axes: Axes, tables: tuple[ResultsTable, ...], claims: list[str], metric: str
) -> None:
    """Draw a metric minus the reference's, or itself where there is no reference."""
    fraction = metric.endswith("accuracy")
    scale = 100.0 if fraction else 1.0
    after = [peer_values(table, metric, "after") for table in tables]
    reference = [peer_values(table, metric, "reference") for table in tables]
    compared = any(values.size for values in reference)
    reach = 0.5 if fraction and compared else 1e-9
    for k, (values, base) in enumerate(zip(after, reference, strict=True)):
        unknown = values.size == 0 or (compared and values.size != base.size)
        if unknown:
            _beside(axes, k, "not measured")
            continue
        bars = scale * (values - base if compared else values)
        axes.barh(k, bars.mean(), height=_HEIGHT, linewidth=1, **STATUS[claims[k]])
        axes.hlines(k, bars.min(), bars.max(), color=INK, linewidth=1.2, zorder=3)
        mean = scale * values.mean()
        text = f"{mean:.1f} %" if fraction else f"{mean:.3g}"
        _beside(axes, k, f"{bars.mean():+.1f}\n{text}" if compared else text)
        reach = max(reach, float(np.abs(bars).max()))
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlim(-1.1 * reach if compared else 0, 1.1 * reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")
    unit = "points" if fraction else "error"
    words = f"{unit} above retrained" if compared else "percent" if fraction else ""
    axes.set_xlabel(words, fontsize=8)


def peer_values(table: ResultsTable, metric: str, world: str) -> NDArray[np.float64]:
    """Return a metric's values at the peers; nothing where one is not finite.

    Args:
        table: Metric rows of one outcome.
        metric: E.g. ``test-accuracy``.
        world: ``before``, ``after`` or ``reference``.

    Returns:
        Shape ``(N,)`` or ``(0,)``.
    """
    rows = table.filter(metric=metric, world=world).rows
    values = np.array([r["value"] for r in rows if r["peer"] >= 0], dtype=np.float64)
    return values if np.isfinite(values).all() else values[:0]


def _work(axes: Axes, view: ResultsView, claims: list[str]) -> None:
    """Draw gradient evaluations on a log axis, with the bytes sent beside them."""
    counts = [outcome.cost.gradient_evaluations for outcome in view.outcomes]
    known = [count for count in counts if count > 0] or [1]
    floor = 10.0 ** np.floor(np.log10(min(known)) - 0.3)
    for k, (outcome, count) in enumerate(zip(view.outcomes, counts, strict=True)):
        if count:
            axes.barh(
                k,
                count - floor,
                left=floor,
                height=_HEIGHT,
                linewidth=1,
                **STATUS[claims[k]],
            )
        _beside(axes, k, f"{short(count)}\n{size(outcome.cost.payload_bytes)} sent")
    axes.set_xscale("log")
    axes.set_xlim(floor, 1.3 * max(max(known), 10 * floor))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="x")
    axes.set_title("Work")
    axes.set_xlabel("gradient evaluations", fontsize=8)


def _beside(axes: Axes, row: int, text: str) -> None:
    """Write at the right edge of a panel."""
    axes.annotate(
        text,
        (1.0, row),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=_TEXT,
        color=GREY if text == "not measured" else INK,
        linespacing=1.25,
        annotation_clip=False,
    )
