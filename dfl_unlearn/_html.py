"""Markup from parts: whatever is not markup already is escaped."""

import html
from collections.abc import Iterable, Sequence

from dfl_unlearn import _validate


class Html(str):
    """Text that is markup already; any other text is escaped when it joins."""

    __slots__ = ()


def as_html(value: object) -> Html:
    """Return a value as markup: markup as it is, anything else as escaped text."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_validate.clean(str(value))))


def join(*parts: object, between: str = "") -> Html:
    """Return parts one after the other as markup."""
    return Html(between.join(as_html(part) for part in parts))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """Return an element.

    Args:
        name: E.g. ``"p"``.
        *content: Markup, or values to be escaped.
        **attributes: Values are escaped; ``class_`` stands for ``class`` and
            ``aria_label`` for ``aria-label``.

    Returns:
        The element with its end tag.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{as_html(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{words}>{join(*content)}</{name}>")


def image(data: str, *, alt: str, width: int) -> Html:
    """Return an embedded picture.

    Args:
        data: A ``data:`` address.
        alt: What the picture says, for those who do not see it.
        width: Width on the page, in pixels.

    Returns:
        The element.
    """
    return Html(f'<img src="{as_html(data)}" alt="{as_html(alt)}" width="{width}">')


def section(title: str, *content: object) -> Html:
    """Return a section with its heading."""
    return tag("section", tag("h2", title), *content)


def text_block(text: str) -> Html:
    """Return text with its lines and spaces as they are."""
    return tag("pre", join(*text.splitlines(), between="\n"), tabindex="0")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Return names and values as a description list."""
    return tag("dl", *(join(tag("dt", k), tag("dd", v)) for k, v in pairs))


def items(lines: Iterable[object]) -> Html:
    """Return a list with one point per line."""
    return tag("ul", *(tag("li", line) for line in lines))


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Iterable[int] = (),
) -> Html:
    """Return a table that scrolls sideways where it does not fit.

    Args:
        caption: Text above, or "".
        head: Names of the columns.
        rows: Cells, as many as names.
        numbers: Columns to set flush right.

    Returns:
        The table in its frame.
    """
    right = set(numbers)

    def line(cells: Sequence[object], kind: str) -> Html:
        scope = {"scope": "col"} if kind == "th" else {}
        return tag(
            "tr",
            *(
                tag(kind, cell, **scope, **({"class_": "n"} if k in right else {}))
                for k, cell in enumerate(cells)
            ),
        )

    parts = [tag("caption", caption)] if caption else []
    parts += [tag("thead", line(head, "th"))]
    parts += [tag("tbody", *(line(row, "td") for row in rows))]
    return tag("div", tag("table", *parts), class_="scroll")
