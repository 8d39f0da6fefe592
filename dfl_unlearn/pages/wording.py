"""The words and marks that every section of a page uses."""

from collections.abc import Sequence
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.pages.document import plot_text
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.contracts import Outcome

CLAIMS = {
    "exact": "exact",
    "certified": "certified",
    "certified_conditional": "certified, conditional",
    "heuristic": "heuristic",
    "pending": "pending",
    "none": "no claim",
}


def badge(status: str) -> Html:
    """Return the mark of a claim; heuristic never looks like certified."""
    return h.tag("span", CLAIMS[status], class_=f"badge {status}")


def status(certificate: Certificate | None) -> str:
    """Return a certificate's status, ``none`` where no claim is made."""
    return "none" if certificate is None else certificate.status


def number(value: float | None, unit: str) -> str:
    """Return a value as the page shows it: fractions in percent, counts in full."""
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def difference(value: float, unit: str) -> str:
    """Return a signed difference, of fractions in percentage points."""
    if unit == "fraction":
        return f"{100 * value:+.2f} points"
    return f"{value:+.4g}"


def owners(outcome: Outcome) -> str:
    """Return whose data go: one peer by its number, else how many."""
    peers = outcome.request.peers
    if not peers:
        return "no peer"
    if len(peers) == 1:
        return f"peer {peers[0]}"
    return f"{len(peers)} peers"


def what_goes(outcome: Outcome) -> str:
    """Return what was to be forgotten, in a few words."""
    request = outcome.request
    if request.kind == "class":
        return f"class {request.class_id} at {owners(outcome)}"
    return (
        f"everything of {owners(outcome)}"
        if request.kind == "peer"
        else (f"chosen records of {owners(outcome)}")
    )


def several(names: Sequence[str]) -> str:
    """Return names in a row; of more than three the first, the last, the count."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def heading(text: str) -> Html:
    """Return a heading inside a claim, below the page's own."""
    return h.tag("p", h.tag("strong", text))


def run_name(view: ResultsView) -> str:
    """Return the name of a run's folder, or the start of its digest."""
    folder = view.run.folder
    return folder.name if folder is not None else f"run {view.run.digest[:12]}"


def rows(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis with a row per name from above, at 0, 1, ...

    Args:
        names: Of outcomes; settings go on a second line, and long lines are cut.

    Returns:
        Settings of a plotly axis.
    """
    texts = []
    for name in names:
        lines = [line for line in name.partition(" ")[::2] if line]
        cut = [f"{x[: _LETTERS - 1]}…" if len(x) > _LETTERS else x for x in lines]
        texts.append("<br>".join(map(plot_text, cut)))
    return {
        "tickvals": list(range(len(names))),
        "ticktext": texts,
        "range": [len(names) - 0.5, -0.5],
        "tickfont": {"size": 11},
        "zeroline": False,
    }


_LETTERS = 28  # more would leave no room for the figure on a telephone
_SHAPES = ("circle", "square", "diamond", "triangle-up", "star", "hexagon")


def mark(status: str, place: int = 0) -> dict[str, Any]:
    """Return how a figure marks a claim: only what is certified is full and blue.

    Args:
        status: Of the certificate, or ``none``.
        place: Among the outcomes; neighbours get different shapes.

    Returns:
        plotly's colour, symbol, size and line of a marker.
    """
    colour = {
        "exact": "var(--exact)",
        "certified": "var(--certified)",
        "certified_conditional": "var(--conditional)",
    }.get(status, "var(--heuristic)")
    full = status in ("exact", "certified")
    return {
        "color": colour,
        "symbol": _SHAPES[place % len(_SHAPES)] + ("" if full else "-open"),
        "size": 11,
        "line": {"width": 0 if full else 2.2, "color": colour},
    }
