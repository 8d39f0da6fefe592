"""How a sweep's figures tell claims apart, and numbers and choices in their words."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.certificate import CLAIMED
from dfl_unlearn.pages.document import plot_text
from dfl_unlearn.pages.sweep_lines import Claim, Value

COLOURS = tuple(
    f"var(--{name})"
    for name in (
        "certified",
        "orange",
        "good",
        "plum",
        "bad",
        "violet",
        "brown",
        "olive",
    )
)
"""Of protocols whose claims hold; all others are grey, exact ones as the text."""
GREY = "var(--heuristic)"
INK = "var(--ink)"

STATUS_WORDS: Mapping[str, str] = {
    "exact": "exact",
    "certified": "certified",
    "certified_conditional": "certified, conditional",
    "heuristic": "heuristic",
    "pending": "pending",
    "none": "no claim",
    "": "not known",
}
SYMBOLS: Mapping[str, str] = {
    "exact": "square",
    "certified": "diamond",
    "certified_conditional": "diamond-open",
    "heuristic": "x-thin",
    "pending": "x-thin",
    "none": "circle-open",
    "": "circle-open",
}
DASHES: Mapping[str, str] = {"exact": "solid", "certified": "solid"} | {
    "certified_conditional": "dash"
}
LEGEND = (
    "Filled diamonds are certified, open ones certified under assumptions that this "
    "program could not prove, squares exact. Grey crosses are heuristic and grey "
    "circles make no claim: neither is a guarantee."
)


def holds(claim: Claim) -> bool:
    """Return whether a guarantee is claimed."""
    return claim.status in CLAIMED


def marker(status: str, colour: str, size: int = 10) -> dict[str, Any]:
    """Return a plotly marker: its form says what is claimed, and so does grey."""
    if status == "exact":
        colour = INK
    elif status not in CLAIMED:
        colour = GREY
    return {
        "symbol": SYMBOLS[status],
        "size": size,
        "color": colour,
        "line": {"width": 2 if "thin" in SYMBOLS[status] else 1.5, "color": colour},
    }


def palette(protocols: Sequence[str]) -> dict[str, str]:
    """Return a colour per protocol."""
    names = dict.fromkeys(protocols)
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def percent(value: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def points_words(value: Value) -> str:
    """Return an accuracy with its spread and the number of seeds behind it."""
    if value.spread is None:
        return f"{percent(value.mean)} (a single seed)"
    return (
        f"{percent(value.mean)} ± {100 * value.spread:.1f} points (mean and standard "
        f"deviation over {value.count} seeds)"
    )


def claim_words(claim: Claim) -> str:
    """Return a claim's status with its epsilon, never rounded down."""
    words = STATUS_WORDS[claim.status]
    if claim.status == "exact":
        return words
    if claim.epsilon is not None:
        return f"{words} at ε = {round_up(claim.epsilon):g} ({', '.join(claim.scopes)})"
    if claim.nominal is not None:
        return f"{words}: ε = {round_up(claim.nominal):g} is nominal, not a guarantee"
    return words


def hover(*lines: str) -> str:
    """Return lines of user text for a hover label."""
    return "<br>".join(plot_text(line) for line in lines if line)


def legend_name(name: str) -> str:
    """Return a name for a legend, on several lines where it is long."""
    return "<br>".join(map(plot_text, textwrap.wrap(name, _LEGEND_LETTERS) or [""]))


_LEGEND_LETTERS = 36  # of a line: what a small screen shows


def number_text(value: float | None, unit: str) -> str:
    """Return a value as tables show it; "-" without one."""
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{value:.4f}"
    if unit in ("messages", "bytes", "gradients", "hops", "rounds", "steps"):
        return f"{value:,.10g}" if abs(value) < 1 or value % 1 == 0 else f"{value:,.1f}"
    return f"{value:.4g}"


def rounded(value: float | None) -> float | None:
    """Return a number for a figure: six digits are more than a screen shows."""
    return None if value is None else float(f"{value:.6g}")


def select(name: str, text: str, options: Sequence[str], chosen: int = 0) -> Html:
    """Return a labelled choice; the value of an option is its place in the list."""
    inner = (
        h.tag(
            "option", option, value=str(k), **({"selected": ""} if k == chosen else {})
        )
        for k, option in enumerate(options)
    )
    return h.join(
        h.tag("label", text, for_=name), h.tag("select", *inner, id=name), between=" "
    )


def data_script(name: str, value: object) -> Html:
    """Return JSON values for a script of the page to read; nothing in it runs."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')
