"""One HTML document: style, script, sortable tables and interactive figures inside."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html


@dataclass(frozen=True, kw_only=True)
class Chart:
    """An interactive figure.

    Attributes:
        name: Identifier on the page, unique there, ``[a-z][a-z0-9-]*``.
        title: One line above.
        alt: What the figure says, in a sentence or two, for who does not see it.
        data: plotly traces, as JSON values.
        layout: plotly layout; colours of paper, ink and grid are left to the page,
            which has a light and a dark theme.
        height: In pixels.
        caption: Text below, or "".
        hook: Name of a function of the page's script that is called with the drawn
            figure, for interactions beyond plotly's own; "" is none.
    """

    name: str
    title: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    caption: str = ""
    hook: str = ""


def chart(figure: Chart) -> Html:
    """Return a figure's place on the page, with its data."""
    body = {
        "data": figure.data,
        "layout": figure.layout,
        "hook": figure.hook,
    }
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    script = Html(
        f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}'
        "</script>"
    )
    place = h.tag(
        "div",
        class_="chart",
        id=figure.name,
        role="img",
        aria_label=figure.alt,
        style=f"height:{figure.height}px",
    )
    return h.tag(
        "figure",
        h.tag("figcaption", h.tag("strong", figure.title)),
        place,
        script,
        h.tag("figcaption", figure.caption) if figure.caption else Html(),
    )


def document(title: str, body: Html) -> str:
    """Return a whole page; plotly's script is in it once if a chart is."""
    raise NotImplementedError
