"""The page of a sweep: what came out, how sure it is, and how to get it again.

One file with everything inside, for a colleague who has nothing else. The order: the
result, what was asked, how far it has come, figures, tables, limits. Every number is
the sweep's summary over seeds (``SweepView.summary``); what a certificate claims stands
beside it, and what claims nothing never looks as if it did.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import dfl_unlearn
from dfl_unlearn import _html as h
from dfl_unlearn._configfile import to_toml, toml_value
from dfl_unlearn._html import Html
from dfl_unlearn.accounting.certificate import not_covered
from dfl_unlearn.accounting.entries import NoiseMode
from dfl_unlearn.pages.document import Chart, chart, document
from dfl_unlearn.pages.sweep_explorer import Explorer, explorer_of
from dfl_unlearn.pages.sweep_lines import SweepLines, cell_text
from dfl_unlearn.pages.sweep_marks import STATUS_WORDS
from dfl_unlearn.pages.sweep_methods import methods_chart
from dfl_unlearn.pages.sweep_networks import front_chart, networks_of
from dfl_unlearn.pages.sweep_panels import panels_of
from dfl_unlearn.pages.sweep_privacy import privacy_chart
from dfl_unlearn.pages.sweep_tables import (
    cases_table,
    failures,
    refusals,
    summary_table,
)
from dfl_unlearn.pages.sweep_words import progress_words, result_words
from dfl_unlearn.results.sweep import SweepView, shown
from dfl_unlearn.results.sweep_join import unique_names

MOST_BYTES = 3_000_000
"""Of a page beside plotly's script, which is 4.8 MB: together below 8 MB."""
_MOST_VALUES = 40  # of an axis, in words
_LIMITS = (
    "the best of many: whoever picks a setting by its test accuracy has looked at the "
    "test data, and the accuracy of what was picked is too high",
    "spreads are over the seeds of this program's draws (data split, training, "
    "request, noise), not over other data sets",
    "a heuristic result is no guarantee, however small its nominal epsilon",
)


def sweep_page(view: SweepView, *, folder: Path | None = None) -> str:
    """Return the page of a sweep as text.

    Args:
        view: The sweep; complete or not.
        folder: Where the page will lie, so that it can link to cases below; None
            links none.

    Returns:
        A whole HTML document. Equal sweep folders give equal text.
    """
    sweep = SweepLines(view)
    panels, networks = panels_of(sweep), networks_of(sweep)
    figures = [privacy_chart(panels), front_chart(networks), methods_chart(sweep)]
    before = h.join(
        _result(sweep, result_words(sweep, panels, networks)),
        _question(sweep),
        _progress(sweep),
        _figures([figure for figure in figures if figure], explorer_of(sweep)),
        between="\n",
    )
    cases = h.section("Cases", cases_table(sweep, folder))
    room = MOST_BYTES - len(before) - len(cases)
    numbers = h.section("All numbers", summary_table(sweep, room=room))
    body = h.join(before, numbers, cases, _limits(sweep), between="\n")
    script = files("dfl_unlearn.pages").joinpath("sweep.js").read_text("utf-8")
    return document(f"dfl_unlearn: sweep {view.name}", body, scripts=(script,))


def _result(sweep: SweepLines, words: Sequence[str]) -> Html:
    asked = Counter(sweep.place_of.values()).values()
    fewest, seeds = min(asked, default=0), max(asked, default=0)
    several = f"{seeds} seeds" if fewest == seeds else f"{fewest} to {seeds} seeds"
    counted = "a single seed" if seeds == 1 else several
    progress = progress_words(sweep)
    return h.join(
        h.tag("h1", f"Sweep {sweep.view.name}"),
        *(h.tag("p", text, class_="lead") for text in words[:1]),
        h.tag("p", " ".join(words[1:])) if words[1:] else Html(),
        h.tag(
            "p",
            f"{progress} Each point was asked for with {counted}"
            + (
                ", which says nothing on how results vary."
                if seeds == 1
                else "; every figure says how many are behind it."
            ),
        ),
    )


def _question(sweep: SweepLines) -> Html:
    parts: list[Html] = []
    plans = sweep.view.plans
    for name, plan in zip(unique_names([p["name"] for p in plans]), plans, strict=True):
        facts: list[tuple[str, object]] = [
            ("Varied", _varied(plan["axes"])),
            ("Seeds", ", ".join(map(str, plan["seeds"]))),
            ("Combined", _mode(plan)),
            ("Protocols", _protocols(sweep, name)),
        ]
        if len(plans) > 1:
            parts.append(h.tag("h3", name))
        parts += [h.facts(facts), _again(plan)]
    return h.section("What was asked", *parts)


def _varied(axes: Mapping[str, Any]) -> Html:
    """Return the axes with their values."""
    return h.items(
        h.join(h.tag("code", axis.replace(",", ", ")), ": ", _values(values))
        for axis, values in axes.items()
    )


def _values(values: Any) -> str:
    """Return an axis's values, or its range."""
    if isinstance(values, Mapping):
        scale = " on a logarithmic scale" if values.get("log") else ""
        return f"from {values['low']} to {values['high']}{scale}"
    texts = [cell_text(shown(value)) for value in values]
    more = len(texts) - _MOST_VALUES
    return "; ".join(texts[:_MOST_VALUES]) + (f"; and {more} more" if more > 0 else "")


def _mode(plan: Mapping[str, Any]) -> str:
    if plan["mode"] == "random":
        return f"{plan.get('samples')} random draws, each with every seed"
    if plan["mode"] == "zip":
        return "the k-th values of all axes together, each with every seed"
    return "every combination, each with every seed"


def _protocols(sweep: SweepLines, name: str) -> str:
    """Return the protocols with what their certificates say, over all points."""
    found: dict[str, list[str]] = {}
    for case in sweep.view.cases:
        if case.sweep == name:
            for attempt in sweep.view.attempts.get(case.name, ()):
                statuses = found.setdefault(attempt.name, [])
                if attempt.claim not in statuses:
                    statuses.append(attempt.claim)
    if not found:
        return "none has a result yet"
    return "; ".join(
        f"{name} ({' or '.join(STATUS_WORDS[status] for status in statuses)})"
        for name, statuses in found.items()
    )


def _again(plan: Mapping[str, Any]) -> Html:
    """Return the file and the command that make the sweep again."""
    if "base" not in plan:
        return Html()
    asked = {
        key: plan[key]
        for key in ("mode", "samples", "seeds")
        if plan.get(key) is not None
    }
    name = plan["name"]
    lines = [
        *to_toml({**plan["base"], "name": name, "sweep": asked}).splitlines(),
        "",
        "[sweep.axes]",  # in their order, which tables of a table would not keep
        *(f"{toml_value(axis)} = {toml_value(v)}" for axis, v in plan["axes"].items()),
    ]
    command = f"dfl-unlearn sweep {name}.toml --name {name}"
    return h.tag(
        "details",
        h.tag("summary", "The whole configuration, and how to run it again"),
        h.tag("p", f"Save this as {name}.toml, then: ", h.tag("code", command)),
        h.text_block("\n".join(lines)),
    )


def _progress(sweep: SweepLines) -> Html:
    parts = [failures(sweep), refusals(sweep)]
    unfinished = [c for c in sweep.view.cases if c.status in ("partial", "missing")]
    if unfinished:
        words = (
            "The same command goes on where it stopped, and repeats no complete case."
        )
        parts.insert(0, h.tag("p", words))
    known = [c.seconds for c in sweep.view.cases if c.status == "done" and c.seconds]
    if known:
        took = (
            f"A complete case took {sum(known) / len(known):.2f} s on average, "
            f"{max(known):.2f} s at most, {sum(known):,.0f} s all together."
        )
        parts.insert(0, h.tag("p", took))
    return h.section("How far it has come", h.tag("p", progress_words(sweep)), *parts)


def _figures(charts: Sequence[Chart], explorer: Explorer | None) -> Html:
    if explorer is None:
        return Html()
    left = (
        h.tag(
            "p",
            f"Left out of these two: {explorer.left_out} metrics that would make the "
            "page too large. table.csv has them.",
        )
        if explorer.left_out
        else Html()
    )
    return h.section(
        "Figures", *map(chart, charts), explorer.explorer, explorer.heat, left
    )


def _limits(sweep: SweepLines) -> Html:
    modes: set[NoiseMode] = {
        attempt.certificate.noise_mode
        for attempts in sweep.view.attempts.values()
        for attempt in attempts
        if attempt.certificate is not None
    } or {"simulated"}
    return h.section(
        "What this does not prove",
        h.items((*not_covered(*sorted(modes)), *_LIMITS)),
        h.tag(
            "footer",
            f"Written by dfl_unlearn {dfl_unlearn.__version__}. Equal sweep folders "
            "give equal pages.",
        ),
    )
