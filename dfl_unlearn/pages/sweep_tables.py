"""The tables of a sweep's page, and the words around what is not complete."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dfl_unlearn import _html as h
from dfl_unlearn import _validate
from dfl_unlearn._html import Html
from dfl_unlearn.pages.sweep_explorer import order_of
from dfl_unlearn.pages.sweep_lines import Line, SweepLines, Value, cell_text
from dfl_unlearn.pages.sweep_marks import STATUS_WORDS, number_text
from dfl_unlearn.results.sweep import Case
from dfl_unlearn.store.table import WORLDS

MOST_LINES = 5000
MOST_CASES = 1000
OPEN = 60
"""A table with more rows is folded away until it is asked for."""
_MESSAGE = 600  # letters of an error


def summary_table(sweep: SweepLines, *, room: int) -> Html:
    """Return the summary: a row per point, protocol, request, metric and set.

    Args:
        sweep: The sweep.
        room: Most bytes; whole metrics are left out where it is exceeded.

    Returns:
        The table, with a sentence on what did not fit.
    """
    lines, left_out = _fitting(sweep.lines, MOST_LINES)
    table = _summary(sweep, lines, left_out)
    if len(table) > room:
        most = max(1, int(len(lines) * room / len(table)))
        table = _summary(sweep, *_fitting(sweep.lines, most))
    return table


def _summary(sweep: SweepLines, lines: Sequence[Line], left_out: str) -> Html:
    if not lines:
        return h.tag("p", "No case has results yet.")
    requests = len({line.group[2] for line in lines}) > 1
    head = [
        *sweep.axis_names,
        "protocol",
        "claim",
        *(["request"] if requests else []),
        "metric",
        "on",
        "before",
        "after",
        "retrained",
        "± over seeds",
        "worst seed",
        "worst peer",
        "unit",
        "seeds",
    ]
    first = len(head) - 8
    rows = [_summary_row(sweep, line, requests) for line in lines]
    where = ", ".join(f"{folder.name}/table.csv" for folder in sweep.view.folders)
    more = (
        f" Left out of this table: {left_out}. All of it is in {where}."
        if left_out
        else f" Also in {where}."
    )
    words = h.tag(
        "p",
        "Means over the seeds after the request, beside the networks before it and "
        "retrained without the data; of epsilon the largest, since it is a bound. ± is "
        "the sample standard deviation over the seeds of the value after." + more,
    )
    numbers = [*range(first, first + 6), len(head) - 1]
    table = _framed("summary-table", h.table("", head, rows, numbers))
    return h.join(words, _folded(f"{len(rows):,} rows", table, len(rows)))


def cases_table(sweep: SweepLines, page_folder: Path | None) -> Html:
    """Return the cases.

    Args:
        sweep: The sweep.
        page_folder: Where the page will lie; cases below it are linked. None is
            nowhere.

    Returns:
        The table.
    """
    cases = sweep.view.cases[:MOST_CASES]
    head = [*sweep.axis_names, "seed", "case", "status", "seconds", "digest"]
    rows = [
        [
            *sweep.case_texts(case),
            case.seed,
            _link(case, page_folder),
            case.status,
            "-" if case.seconds is None else f"{case.seconds:.2f}",
            h.tag("code", case.digest[:16] or "-", class_="whole"),
        ]
        for case in cases
    ]
    left = len(sweep.view.cases) - len(cases)
    words = (
        h.tag("p", f"Left out of this table: {left:,} cases. All are in cases.csv.")
        if left
        else Html()
    )
    at = len(sweep.axes)
    table = _framed("cases-table", h.table("", head, rows, [at, at + 3]))
    return h.join(words, _folded(f"{len(rows):,} cases", table, len(rows)))


def failures(sweep: SweepLines) -> Html:
    """Return what failed and how to try it again; nothing if nothing did."""
    failed = [case for case in sweep.view.cases if case.status == "failed"]
    if not failed:
        return Html()
    rows = [
        [
            *sweep.case_texts(case),
            case.seed,
            h.tag("code", case.name, class_="whole"),
            _cut(case.error),
            "-" if case.seconds is None else f"{case.seconds:.2f}",
        ]
        for case in failed[:MOST_CASES]
    ]
    head = [*sweep.axis_names, "seed", "case", "error", "seconds until then"]
    again = [
        h.tag(
            "p",
            "Try them again with ",
            h.tag("code", f"dfl-unlearn sweep FILE.toml --name {name} --retry-failed"),
            ", or ",
            h.tag("code", "run_sweep(sweep, folder, retry_failed=True)"),
            ".",
        )
        for name in dict.fromkeys(case.sweep for case in failed)
    ]
    numbers = [len(sweep.axes), len(head) - 1]
    table = _framed("failures-table", h.table("", head, rows, numbers))
    return h.join(h.tag("h3", "Failed cases"), *again, table)


def refusals(sweep: SweepLines) -> Html:
    """Return which protocols refused, with the reasons; nothing if none did."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for case in sweep.view.cases:
        for refused in case.refused:
            counts[refused.protocol, refused.error, _cut(refused.message)] += 1
    if not counts:
        return Html()
    grouped: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for (protocol, error, message), count in counts.items():
        grouped.setdefault((protocol, error), []).append((message, count))
    rows = []
    for (protocol, error), messages in grouped.items():
        total = sum(count for _, count in messages)
        messages.sort(key=lambda entry: -entry[1])
        shown = [f"{message} ({count})" for message, count in messages[:_REASONS]]
        more = len(messages) - len(shown)
        if more:
            shown.append(f"and {more} more like it")
        rows.append([protocol, error, total, h.items(shown)])
    words = (
        "A protocol that refuses says that its assumptions do not hold there. That is "
        "no failure of the case: the protocol has no row at that point."
    )
    return h.join(
        h.tag("h3", "Refused by protocols"),
        h.tag("p", words),
        h.table("", ("protocol", "refusal", "times", "reasons"), rows, [2]),
    )


_REASONS = 3


def _summary_row(sweep: SweepLines, line: Line, requests: bool) -> list[object]:
    place, protocol, request = line.group
    after = line.after
    shown = after or next(iter(line.worlds.values()), None)
    return [
        *map(cell_text, place),
        protocol,
        STATUS_WORDS[sweep.claim(line.group).status],
        *([request] if requests else []),
        line.metric,
        line.set,
        *(_mean(line, line.worlds.get(world)) for world in WORLDS),
        "-" if after is None else number_text(after.spread, line.unit),
        "-" if after is None else number_text(after.worst, line.unit),
        "-" if after is None else number_text(after.peer_worst, line.unit),
        line.unit,
        "0" if shown is None else _seeds(shown),
    ]


def _mean(line: Line, value: Value | None) -> str:
    if value is None:
        return line.note or "-"
    return number_text(value.mean, line.unit)


def _seeds(value: Value) -> str:
    if value.count >= value.asked:
        return str(value.count)
    return f"{value.count} of {value.asked}"


def _fitting(lines: Sequence[Line], most: int) -> tuple[list[Line], str]:
    """Return lines that fit on a page, whole metrics, and words for the others."""
    counts = Counter(line.metric for line in lines)
    kept: set[str] = set()
    used = 0
    for metric in sorted(counts, key=order_of):
        if used + counts[metric] <= most:
            used += counts[metric]
            kept.add(metric)
    if kept:
        found = [line for line in lines if line.metric in kept]
    else:
        found = list(lines[:most])
    dropped = sorted(counts.keys() - kept)
    if len(found) == len(lines):
        return found, ""
    return found, f"{len(lines) - len(found):,} rows ({', '.join(dropped)})"


def _link(case: Case, page_folder: Path | None) -> Html:
    name = h.tag("code", case.name, class_="whole")
    if page_folder is None or not case.folder.is_dir():
        return name
    at = os.path.relpath(case.folder, page_folder).replace(os.sep, "/")
    if at.startswith(".."):
        return name
    page = "report.html" if (case.folder / "report.html").is_file() else ""
    return h.tag("a", name, href=quote(f"{at}/{page}"))


def _framed(name: str, table: Html) -> Html:
    return h.tag("div", table, class_="filtered", id=name)


def _folded(words: str, table: Html, rows: int) -> Html:
    if rows <= OPEN:
        return table
    return h.tag("details", h.tag("summary", f"Show {words}"), table)


def _cut(text: str) -> str:
    text = _validate.clean(text.replace("\n", " "))
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 1]}…"
