"""Any metric of a sweep against anything that varies: drawn in the browser.

The summary goes into the page once, as JSON; ``sweep.js`` draws what is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.pages.document import Chart, chart
from dfl_unlearn.pages.sweep_lines import Group, Line, Place, SweepLines, cell_text
from dfl_unlearn.pages.sweep_marks import (
    COLOURS,
    GREY,
    INK,
    SYMBOLS,
    claim_words,
    data_script,
    holds,
    number_text,
    rounded,
    select,
)
from dfl_unlearn.store.table import WORLDS

MOST_VALUES = 30_000
"""Values in the explorer: about 1 MB of the page."""
_WORLD_WORDS = ("before", "after", "retrained")


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Two figures with choices, and their data.

    Attributes:
        explorer: The one of points.
        heat: The one over two axes, or nothing.
        left_out: How many metrics did not fit.
    """

    explorer: Html
    heat: Html
    left_out: int


def explorer_of(sweep: SweepLines) -> Explorer | None:
    """Return the figures in which a reader chooses what is drawn.

    Args:
        sweep: The sweep.

    Returns:
        The figures, or None without any value.
    """
    kinds = _kinds(sweep.lines)
    if not kinds:
        return None
    kept: list[tuple[str, str, str]] = []
    used = 0
    for kind, lines in kinds.items():
        used += sum(len(line.worlds) for line in lines)
        if kept and used > MOST_VALUES:
            break
        kept.append(kind)
    names = [f"{metric} on {over}" if over else metric for metric, over, _ in kept]
    data = _data(sweep, {kind: kinds[kind] for kind in kept}, names)
    start = _start(kept)
    figure = Chart(
        name="explorer",
        title="Explore: any metric against anything that varies",
        alt=_alt(kinds[kept[start]], names[start]),
        data=[],
        layout={},
        height=460,
        hook="sweepExplorer",
        caption="One mark per point, protocol and request: the mean over the seeds, "
        "bars are their standard deviation. The form of a mark says what is claimed, "
        "and grey that no guarantee is.",
        controls=_controls(sweep, names, start),
        below=h.tag("figcaption", "", id="explorer-words", aria_live="polite"),
    )
    heat = _heat(sweep, names, start, kinds[kept[start]])
    return Explorer(
        explorer=h.join(data_script("sweep-data", data), chart(figure)),
        heat=heat,
        left_out=len(kinds) - len(kept),
    )


def order_of(metric: str) -> tuple[int, str]:
    """Return what sorts metrics: what readers ask for first comes first."""
    for rank, start in enumerate(_FIRST):
        if metric.startswith(start):
            return rank, metric
    return len(_FIRST) - 1, metric


_FIRST = (
    "test-accuracy",
    "retain-accuracy",
    "forget-accuracy",
    "spectral-gap",
    "front-time",
    "effective-spread",
    "epsilon-spent",
    "consensus-distance",
    "mia-",
    "cost-",
    "",
)


def _kinds(lines: Sequence[Line]) -> dict[tuple[str, str, str], list[Line]]:
    """Return the lines by metric, set and unit, in the order that readers want."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if line.worlds:
            found.setdefault((line.metric, line.set, line.unit), []).append(line)
    return {kind: found[kind] for kind in sorted(found, key=lambda k: order_of(k[0]))}


def _start(kinds: Sequence[tuple[str, str, str]]) -> int:
    return next((k for k, kind in enumerate(kinds) if kind[0] == "test-accuracy"), 0)


def _data(
    sweep: SweepLines,
    kinds: dict[tuple[str, str, str], list[Line]],
    names: Sequence[str],
) -> dict[str, Any]:
    groups: dict[Group, int] = {}
    places: dict[Place, int] = {}
    values = []
    for number, lines in enumerate(kinds.values()):
        for line in lines:
            places.setdefault(line.group[0], len(places))
            group = groups.setdefault(line.group, len(groups))
            values += [
                [
                    number,
                    WORLDS.index(world),
                    group,
                    rounded(value.mean),
                    rounded(value.spread),
                    value.count,
                ]
                for world, value in line.worlds.items()
            ]
    protocols = list(dict.fromkeys(group[1] for group in groups))
    claims = [sweep.claim(group) for group in groups]
    return {
        "axes": list(sweep.axis_names),
        "metrics": [[name, kind[2]] for name, kind in zip(names, kinds, strict=True)],
        "worlds": list(_WORLD_WORDS),
        "places": [[_plain(value) for value in place] for place in places],
        "groups": [
            [
                places[place],
                protocol,
                request,
                claim.status,
                claim_words(claim),
                rounded(claim.position),
                int(holds(claim)),
            ]
            for (place, protocol, request), claim in zip(groups, claims, strict=True)
        ],
        "protocols": protocols,
        "values": values,
        "symbols": dict(SYMBOLS),
        "colours": list(COLOURS),
        "grey": GREY,
        "ink": INK,
    }


def _plain(value: Any) -> Any:
    """Return an axis value as the figures take it: a number, or a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return cell_text(value)
    return value


def _controls(sweep: SweepLines, names: Sequence[str], start: int) -> Html:
    across = ["protocol", "epsilon", *sweep.axis_names, *names]
    colours = ["protocol", "claim", *sweep.axis_names]
    return h.tag(
        "div",
        h.tag("span", select("explorer-metric", "Metric", names, start)),
        h.tag("span", select("explorer-world", "when", _WORLD_WORDS, 1)),
        h.tag(
            "span",
            select("explorer-x", "against", across, 2 if sweep.axes else 0),
        ),
        h.tag("span", select("explorer-colour", "coloured by", colours)),
        class_="controls",
    )


def _heat(
    sweep: SweepLines, names: Sequence[str], start: int, lines: Sequence[Line]
) -> Html:
    """Return a map over two axes, where two have several values."""
    varied = [
        k
        for k in range(len(sweep.axes))
        if len({place[k] for place in sweep.places}) > 1
    ]
    if len(varied) < 2:
        return Html()
    protocols = list(dict.fromkeys(line.group[1] for line in lines))
    figure = Chart(
        name="heat",
        title="Over two axes",
        alt=_alt(lines, names[start]),
        data=[],
        layout={},
        height=420,
        hook="sweepHeat",
        caption="Means over the seeds; where other axes vary too, or a protocol has "
        "several requests, a cell is the mean of its points and says how many.",
        controls=h.tag(
            "div",
            h.tag("span", select("heat-metric", "Metric", names, start)),
            h.tag("span", select("heat-world", "when", _WORLD_WORDS, 1)),
            h.tag("span", select("heat-protocol", "of", protocols)),
            h.tag("span", select("heat-x", "across", sweep.axis_names, varied[0])),
            h.tag("span", select("heat-y", "down", sweep.axis_names, varied[1])),
            class_="controls",
        ),
        below=h.tag("figcaption", "", id="heat-words", aria_live="polite"),
    )
    return chart(figure)


def _alt(lines: Sequence[Line], name: str) -> str:
    """Return the range of a metric per protocol, in words."""
    ranges: dict[str, list[float]] = {}
    for line in lines:
        value = line.after or next(iter(line.worlds.values()))
        ranges.setdefault(line.group[1], []).append(value.mean)
    unit = lines[0].unit
    said = [
        f"{protocol} {number_text(min(values), unit)} to "
        f"{number_text(max(values), unit)} over {len(values)} points"
        for protocol, values in ranges.items()
    ]
    return f"{name} after the request: {'; '.join(said)}."
