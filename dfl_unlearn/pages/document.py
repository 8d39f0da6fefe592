"""One HTML document: style, script, sortable tables and interactive figures inside."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dfl_unlearn import _html as h
from dfl_unlearn import _validate
from dfl_unlearn._html import Html

_CHART = '<div class="chart"'


@dataclass(frozen=True, kw_only=True)
class Chart:
    """An interactive figure.

    A string ``"var(--name)"`` anywhere in ``data`` or ``layout`` stands for a colour of
    the style sheet (``ink``, ``soft``, ``line``, ``paper``, ``certified``,
    ``conditional``, ``exact``, ``heuristic``, ``bad``, ``good``, ``orange``, ``plum``),
    so that it follows the theme. Texts of users go through ``plot_text``.

    Attributes:
        name: Identifier on the page, unique there, ``[a-z][a-z0-9-]*``.
        title: One line above.
        alt: What the figure says, in a sentence or two, for who does not see it. It
            stands in the figure's place where no script runs.
        data: plotly traces, as JSON values.
        layout: plotly layout; colours of paper, ink and grid are left to the page,
            which has a light and a dark theme.
        height: In pixels.
        caption: Text below, or "".
        hook: Name of a function of the page's script, ``page.hooks[name]``, that is
            called once with the drawn place, this figure's data and layout, and a
            function that draws them again: for interactions beyond plotly's own. A hook
            changes the data and the layout, never the drawing. "" is none.
        extra: Further JSON values for the hook, beside ``data`` and ``layout``.
        controls: Markup between title and figure, for the hook.
        below: Markup between figure and caption, for the hook.
    """

    name: str
    title: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    caption: str = ""
    hook: str = ""
    extra: Mapping[str, Any] | None = None
    controls: Html = field(default_factory=Html)
    below: Html = field(default_factory=Html)


def chart(figure: Chart) -> Html:
    """Return a figure's place on the page, with its data.

    Args:
        figure: What to draw.

    Returns:
        The markup; ``document`` adds what draws it.

    Raises:
        ValueError: If a number is not finite.
    """
    body = {"data": figure.data, "layout": figure.layout, "extra": figure.extra}
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    # Only ASCII comes from json.dumps; a "<" could end the element.
    text = text.replace("<", "\\u003c")
    place = h.tag(
        "div",
        h.tag("p", figure.alt),
        class_="chart",
        id=figure.name,
        role="img",
        aria_label=figure.alt,
        data_hook=figure.hook,
        style=f"--height:{figure.height}px",
    )
    return h.tag(
        "figure",
        h.tag("figcaption", figure.title, class_="title"),
        figure.controls,
        place,
        Html(f'<script type="application/json">{text}</script>'),
        figure.below,
        h.tag("figcaption", figure.caption) if figure.caption else Html(),
    )


def plot_text(text: object) -> str:
    """Return a text for a figure as it is: plotly would read ``<b>`` as markup."""
    return html.escape(_validate.clean(str(text)), quote=False)


def numbers(values: ArrayLike, digits: int = 5) -> list[float | None]:
    """Return numbers for a figure's data, short ones; None where one is not finite.

    Args:
        values: One-dimensional.
        digits: How many significant digits to keep.

    Returns:
        As many values.
    """
    flat = np.asarray(values, dtype=np.float64).tolist()
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in flat]


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis with readable ticks: 1, 2, 5, or powers of ten.

    Args:
        low: Lower end, > 0.
        high: Upper end, > ``low``.

    Returns:
        Settings of a plotly axis.
    """
    steps = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return {
        "type": "log",
        "tickvals": [tick for tick in ticks if low <= tick <= high],
        "tickformat": "~s" if low >= 1 else "~g",
        "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
    }


def document(title: str, body: Html, *, scripts: Sequence[str] = ()) -> str:
    """Return a whole page that asks nothing of the network.

    Its policy lets only its own scripts run, each named by its hash. Equal arguments
    give equal text.

    Args:
        title: Of the window; escaped.
        body: Sections, figures, tables.
        scripts: Further scripts, e.g. with hooks, that run before figures are drawn.

    Returns:
        The document; plotly's script is in it once if a figure is.
    """
    drawn = _CHART in body
    sources = [*([_plotly()] if drawn else []), _part("page.js"), *scripts]
    sources = [source.replace("\r\n", "\n") for source in sources]
    if drawn:
        body = h.join(h.tag("noscript", h.tag("p", _NO_SCRIPT, class_="soft")), body)
    return Template(_part("page.html")).substitute(
        title=h.as_html(title),
        style=_part("page.css"),
        hashes=" ".join(f"'sha256-{_hash(source)}'" for source in sources),
        body=body,
        scripts="\n".join(f"<script>{source}</script>" for source in sources),
    )


_NO_SCRIPT = (
    "This browser runs no scripts: what each figure says stands in its place, and "
    "tables keep their order."
)


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


@cache
def _part(name: str) -> str:
    return files("dfl_unlearn.pages").joinpath(name).read_text("utf-8")


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
