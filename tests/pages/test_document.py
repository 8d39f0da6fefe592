import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from dfl_unlearn import _html as h
from dfl_unlearn.pages.document import (
    Chart,
    chart,
    document,
    log_axis,
    numbers,
    plot_text,
)

CSS = files("dfl_unlearn.pages").joinpath("page.css").read_text("utf-8")
WORDS = ("ink", "soft", "link", "heuristic", "conditional", "bad", "good")


def example(**changes):
    given = {
        "name": "example",
        "title": "Title",
        "alt": "It rises from 1 to 2.",
        "data": [{"type": "scatter", "y": [1, 2]}],
        "layout": {},
    }
    return Chart(**given | changes)


class Scripts(HTMLParser):
    """The scripts of a page, in their order, and its policy."""

    def __init__(self, text):
        super().__init__()
        self.found, self.policy, self.inside = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.inside = dict(attrs).get("type", "")
            self.found.append((self.inside, ""))
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]

    def handle_endtag(self, tag):
        if tag == "script":
            self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            kind, text = self.found[-1]
            self.found[-1] = (kind, text + data)


def test_a_page_lets_run_exactly_its_own_scripts():
    page = Scripts(document("T", chart(example()), scripts=["page.hooks.a = 1;"]))
    run = [text for kind, text in page.found if kind == ""]
    assert len(run) == 3
    for text in run:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    assert page.policy.count("sha256-") == 3
    assert page.policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in page.policy
    assert "unsafe-inline" not in page.policy.partition("script-src")[2]


def test_plotly_is_there_once_if_a_figure_is_and_else_not_at_all():
    two = h.join(chart(example()), chart(example(name="other")))
    assert document("T", two).count("plotly.js v") == 1
    plain = document("T", h.tag("p", "words"))
    assert "plotly.js v" not in plain
    assert len(plain) < 40_000


def test_no_text_in_the_data_of_a_figure_ends_its_element():
    text = "</script><script>alert(1)</script>\u2028&amp;"
    page = Scripts(document("T", chart(example(data=[{"name": text}]))))
    (data,) = [text for kind, text in page.found if kind == "application/json"]
    assert json.loads(data)["data"] == [{"name": text}]
    assert "\u2028" not in data


def test_a_number_that_is_not_finite_is_refused_or_left_out():
    with pytest.raises(ValueError, match="not JSON compliant"):
        chart(example(data=[{"y": [math.nan]}]))
    assert numbers([1 / 3, math.inf, math.nan]) == [0.33333, None, None]


def test_a_user_s_text_is_no_markup_for_plotly():
    assert plot_text("<b>a</b> & \x1b") == "&lt;b&gt;a&lt;/b&gt; &amp; "


def test_title_and_finding_are_escaped_and_the_finding_stands_in_the_figure_s_place():
    text = document("<T>", chart(example(alt='"<i>" is 2')))
    assert "<title>&lt;T&gt;</title>" in text
    assert "<p>&quot;&lt;i&gt;&quot; is 2</p></div>" in text
    assert 'aria-label="&quot;&lt;i&gt;&quot; is 2"' in text


def test_a_logarithmic_axis_has_readable_ticks_inside_its_range():
    assert log_axis(1, 30)["tickvals"] == [1, 2, 5, 10, 20]
    assert log_axis(3e-4, 1)["tickvals"] == [1e-3, 1e-2, 1e-1, 1]
    assert log_axis(0.8, 3)["range"] == [-0.0969, 0.4771]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_words_stand_out_from_their_paper(theme):
    """Contrast of 4.5 for every colour that words have, as WCAG 2.2 defines it."""
    part = {
        "light": CSS[: CSS.index("@media (prefers")],
        "dark": CSS[CSS.index('[data-theme="dark"]') : CSS.index("* { box")],
        "print": CSS[CSS.index("@media print") :],
    }[theme]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]+);", part))
    paper = luminance(colours["paper"])
    for name in WORDS:
        assert contrast(luminance(colours[name]), paper) >= 4.5, name
    assert contrast(1.0, luminance(colours["certified"])) >= 4.5
    assert contrast(luminance(colours["exact"]), paper) >= 4.5


def test_the_two_ways_to_a_dark_page_have_the_same_colours():
    by_system, by_button = (
        re.findall(r"--([a-z]+): (#[0-9a-f]+);", part)
        for part in (
            CSS[CSS.index("@media (prefers") : CSS.index(':root[data-theme="dark"]')],
            CSS[CSS.index(':root[data-theme="dark"]') : CSS.index("* { box")],
        )
    )
    assert by_system == by_button
    assert len(by_button) > 10


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)


def test_a_text_block_keeps_its_lines():
    assert h.text_block("a <b>\n  c") == '<pre tabindex="0">a &lt;b&gt;\n  c</pre>'
