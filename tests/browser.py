"""Pages in a real Chromium without a window, cut off from every network.

Needs the extra ``browser`` (playwright) and a Chromium: one named by the variable
``DFL_UNLEARN_CHROMIUM``, or found under its usual names. A test without them is
skipped and says what is missing.
"""

import importlib.util
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium():
    """Path of a Chromium, or None."""
    named = os.environ.get("DFL_UNLEARN_CHROMIUM")
    if named:
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing():
    """Why no page can be opened here, or ""."""
    if importlib.util.find_spec("playwright") is None:
        return "needs playwright: pip install 'dfl-unlearn[browser]'"
    if chromium() is None:
        return f"needs one of {', '.join(NAMES)}, or DFL_UNLEARN_CHROMIUM=/path"
    return ""


@contextmanager
def launched():
    """A running browser; skips the test where there is none."""
    why = missing()
    if why:
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page with everything it said and asked for.

    Attributes:
        tab: playwright's page.
        said: Console messages and uncaught errors.
        asked: Addresses it asked for, besides itself and ``data:``.
    """

    tab: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def js(self, expression):
        """The value of an expression of the page's own script."""
        return self.tab.evaluate(expression)

    def until(self, expression):
        """Wait until an expression is true; the page's policy refuses playwright's."""
        for _ in range(600):
            if self.js(expression):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"never came true: {expression}")


@contextmanager
def opened(browser, file, *, width=1280, theme="light", scripts=True):
    """A file opened and drawn; it must say nothing and ask for nothing.

    Args:
        browser: From ``launched``.
        file: The page.
        width: Of the window, pixels.
        theme: What the system prefers, ``light`` or ``dark``.
        scripts: Whether scripts run.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=theme,
        java_script_enabled=scripts,
        offline=True,
    )
    page = Opened(context.new_page())
    address = Path(file).resolve().as_uri()
    page.tab.on("console", lambda m: page.said.append(f"{m.type}: {m.text}"))
    page.tab.on("pageerror", lambda error: page.said.append(str(error)))
    page.tab.on(
        "request",
        lambda r: (
            page.asked.append(r.url)
            if r.url != address and not r.url.startswith("data:")
            else None
        ),
    )
    page.tab.set_default_timeout(60_000)
    page.tab.goto(address)
    if scripts:
        page.tab.wait_for_selector("html[data-drawn]")
    try:
        yield page
    finally:
        context.close()
    assert not page.said, page.said
    assert not page.asked, page.asked
