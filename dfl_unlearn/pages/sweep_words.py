"""The result of a sweep in a sentence or two, no more than its seeds carry."""

import math
from collections import Counter
from collections.abc import Sequence

from dfl_unlearn._stats import round_up
from dfl_unlearn.pages.sweep_lines import Claim, SweepLines, Value
from dfl_unlearn.pages.sweep_marks import percent, points_words
from dfl_unlearn.pages.sweep_networks import Network, rank_words
from dfl_unlearn.pages.sweep_panels import Panel


def progress_words(sweep: SweepLines) -> str:
    """Return how many cases are complete, and what became of the others."""
    cases = sweep.view.cases
    counts: Counter[str] = Counter(case.status for case in cases)
    if counts["done"] == len(cases):
        return f"All {len(cases)} cases are complete."
    others = [
        f"{counts[status]} {words}"
        for status, words in (
            ("failed", "failed"),
            ("partial", "begun"),
            ("missing", "not begun"),
        )
        if counts[status]
    ]
    return f"{counts['done']} of {len(cases)} cases are complete, {', '.join(others)}."


def result_words(
    sweep: SweepLines, panels: Sequence[Panel], networks: Sequence[Network]
) -> tuple[str, ...]:
    """Return the result, computed from the data.

    A protocol is called better only where it is so in every setting, by more than the
    standard deviations over seeds of both together.

    Args:
        sweep: The sweep.
        panels: Accuracy against epsilon.
        networks: Spectral gaps and fronts.

    Returns:
        Sentences, the most important one first.
    """
    said = (*_privacy_words(panels), rank_words(networks))
    if not any(said):
        said = (_plain_words(sweep),)
    return tuple(text for text in said if text)


def _privacy_words(panels: Sequence[Panel]) -> tuple[str, ...]:
    shared = _compared(panels)
    if shared:
        return _ranking(*shared)
    claimed = [
        (panel, curve.protocol, point)
        for panel in panels
        for curve in panel.curves
        for point in curve.claimed
    ]
    if not claimed:
        return ()
    panel, protocol, (epsilon, claim, value) = min(claimed, key=lambda c: c[2][0])
    setting = f"with {panel.name}, " if panel.name else ""
    return (
        f"At the smallest epsilon that is claimed, ε = {round_up(epsilon):g}, "
        f"{setting}{protocol} {_verb(claim)} {points_words(value)} test accuracy"
        f"{_retrained(panel, protocol)}.",
    )


def _compared(
    panels: Sequence[Panel],
) -> tuple[float, list[tuple[Panel, dict[str, tuple[Claim, Value]]]]] | None:
    """Return the epsilon at which most protocols claim, the smallest of such."""
    found: dict[float, list[tuple[Panel, dict[str, tuple[Claim, Value]]]]] = {}
    for panel in panels:
        at: dict[float, dict[str, tuple[Claim, Value]]] = {}
        for curve in panel.curves:
            for epsilon, claim, value in curve.claimed:
                if claim.status != "exact":
                    at.setdefault(_key(epsilon), {})[curve.protocol] = (claim, value)
        for epsilon, protocols in at.items():
            if len(protocols) > 1:
                found.setdefault(epsilon, []).append((panel, protocols))
    if not found:
        return None
    most = max(sum(len(p) for _, p in compared) for compared in found.values())
    epsilon = min(
        e for e, compared in found.items() if sum(len(p) for _, p in compared) == most
    )
    return epsilon, found[epsilon]


def _key(epsilon: float) -> float:
    """Return an epsilon as it is compared: two that print alike are one."""
    return round_up(epsilon, 3)


def _ranking(
    epsilon: float, compared: Sequence[tuple[Panel, dict[str, tuple[Claim, Value]]]]
) -> tuple[str, ...]:
    best = [
        max(protocols, key=lambda p, of=protocols: of[p][1].mean)  # type: ignore[misc]
        for _, protocols in compared
    ]
    clear = [
        all(
            _apart(protocols[name][1], value)
            for other, (_, value) in protocols.items()
            if other != name
        )
        for name, (_, protocols) in zip(best, compared, strict=True)
    ]
    panel, protocols = compared[0]
    winner = best[0]
    claim, value = protocols[winner]
    everywhere = len(set(best)) == 1
    others = ", ".join(
        f"{name} {percent(v.mean)}"
        for name, (_, v) in protocols.items()
        if name != winner
    )
    where = f" with {panel.name}" if panel.name else ""
    text = (
        f"At ε = {epsilon:g}{where}, {winner} {_verb(claim)} {points_words(value)} "
        f"test accuracy; {others}{_retrained(panel, winner)}."
    )
    settings = len(compared)
    if any(v.spread is None for _, of in compared for _, v in of.values()):
        verdict = (
            "Some values rest on a single seed, which says nothing on how they vary, "
            "so no protocol is called better."
        )
    elif everywhere and all(clear):
        among = "" if settings == 1 else f" in each of {settings} settings"
        verdict = (
            f"{winner} keeps the most of the protocols with a claim{among}, by more "
            "than the standard deviations over seeds of both."
        )
    elif everywhere:
        here = "" if settings == 1 else f" in each of {settings} settings"
        close = "" if settings == 1 else f" in {clear.count(False)} of them"
        verdict = (
            f"{winner} is ahead{here}, but{close} not by more than the standard "
            "deviations over seeds, so no protocol is called better."
        )
    else:
        counts = ", ".join(
            f"{name} in {count}" for name, count in Counter(best).items()
        )
        verdict = f"Which is ahead depends on the setting: {counts} of {settings}."
    return text, verdict, _observers(compared)


def _observers(
    compared: Sequence[tuple[Panel, dict[str, tuple[Claim, Value]]]],
) -> str:
    """Return a warning where the claims guard against different observers."""
    scopes = {
        name: claim.scopes for _, of in compared for name, (claim, _) in of.items()
    }
    if len(set(scopes.values())) < 2:
        return ""
    words = ", ".join(f"{name} {'/'.join(scope)}" for name, scope in scopes.items())
    return f"Their claims guard against different observers ({words})."


def _apart(one: Value, other: Value) -> bool:
    if one.spread is None or other.spread is None:
        return False
    return abs(one.mean - other.mean) > one.spread + other.spread


def _verb(claim: Claim) -> str:
    words = {"certified_conditional": " (certified under assumptions)"}
    return f"keeps{words.get(claim.status, '')}"


def _retrained(panel: Panel, protocol: str) -> str:
    for curve in panel.curves:
        if curve.protocol == protocol:
            for _, line in curve.points:
                if "reference" in line.worlds:
                    return f" (retrained: {percent(line.worlds['reference'].mean)})"
    return ""


def _plain_words(sweep: SweepLines) -> str:
    """Return what can be said where no protocol claims anything."""
    lines = [line for line in sweep.accuracy if line.after is not None]
    if not lines:
        return "There is no result to report yet." if not sweep.lines else ""
    values = [line.after.mean for line in lines if line.after is not None]
    low, high = min(values), max(values)
    if math.isclose(low, high):
        span = percent(low)
    else:
        span = f"between {percent(low)} and {percent(high)}"
    return f"No protocol makes a claim that holds; test accuracy afterwards is {span}."
