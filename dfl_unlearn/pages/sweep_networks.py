"""How fast influence crosses the networks of a sweep, against their spectral gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfl_unlearn.pages.document import Chart, plot_text
from dfl_unlearn.pages.sweep_lines import Place, SweepLines, Value
from dfl_unlearn.pages.sweep_marks import COLOURS, hover, rounded

GAP, FRONT, SPREAD = "spectral-gap", "front-time", "effective-spread"
FEWEST = 4
"""A rank correlation of fewer networks says nothing."""
_FORMS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon")


@dataclass(frozen=True, kw_only=True)
class Network:
    """One point of the sweep as a network.

    Attributes:
        place: The point.
        family: Registered name of the topology, or the graph's.
        peers: Number of peers.
        gap: Spectral gap, mean over seeds.
        front: Rounds until the farthest peer holds half its even share, or None where
            some seed never got there.
        spread: Peers over which the influence is spread when training ends, or None.
    """

    place: Place
    family: str
    peers: int
    gap: float
    front: Value | None
    spread: Value | None


def networks_of(sweep: SweepLines) -> tuple[Network, ...]:
    """Return the networks of a sweep that measured spectral gaps.

    Args:
        sweep: The sweep.

    Returns:
        One per network: points that differ in what does not touch it count once.
    """
    found: dict[str, dict[Place, Value]] = {}
    for metric in (GAP, FRONT, SPREAD):
        for line in sweep.of(metric):
            value = line.after or next(iter(line.worlds.values()), None)
            if value is not None:
                found.setdefault(metric, {}).setdefault(line.group[0], value)
    if GAP not in found:
        return ()
    networks: dict[Any, Network] = {}
    for place, gap in found[GAP].items():
        family, peers = sweep.networks[place]
        network = Network(
            place=place,
            family=str(family),
            peers=peers,
            gap=gap.mean,
            front=_whole(found.get(FRONT, {}).get(place), gap),
            spread=_whole(found.get(SPREAD, {}).get(place), gap),
        )
        key = (
            network.family,
            peers,
            gap.mean,
            _mean(network.front),
            _mean(network.spread),
        )
        networks.setdefault(key, network)
    return tuple(networks.values())


def rank_words(networks: Sequence[Network]) -> str:
    """Return the rank correlations with the spectral gap in a sentence, or ""."""
    words = []
    for name, text in (("front", "front time"), ("spread", "effective spread")):
        pairs = _pairs(networks, name)
        rank = _rank(pairs)
        if rank is None:
            continue
        said = (
            f"{text} and spectral gap have a rank correlation of {_signed(rank)} over "
        )
        said += f"{len(pairs)} networks"
        left = len(networks) - len(pairs)
        if left:
            said += f" (left out: {left} without a value in every seed)"
        within = [
            found
            for size in dict.fromkeys(network.peers for network in networks)
            if (found := _rank(_pairs([n for n in networks if n.peers == size], name)))
            is not None
        ]
        if len(within) > 1:
            said += f", and of {_signed(min(within))} to {_signed(max(within))} among "
            said += "those of one size"
        words.append(said)
    if not words:
        return ""
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def front_chart(networks: Sequence[Network]) -> Chart | None:
    """Return front time and effective spread against the spectral gap.

    Args:
        networks: As ``networks_of`` gives them.

    Returns:
        The figure, or None where neither was measured.
    """
    shown = [
        (name, title)
        for name, title in (
            ("front", "front time, rounds"),
            ("spread", "effective spread, peers"),
        )
        if _pairs(networks, name)
    ]
    if not shown:
        return None
    families = list(dict.fromkeys(network.family for network in networks))
    largest = max(network.peers for network in networks)
    data: list[dict[str, Any]] = []
    for k, (name, _) in enumerate(shown):
        for number, family in enumerate(families):
            mine = [
                network
                for network in networks
                if network.family == family and getattr(network, name) is not None
            ]
            if mine:
                data.append(_family(mine, name, k, number, largest))
    logs = {name: _wide([y for _, y in _pairs(networks, name)]) for name, _ in shown}
    layout: dict[str, Any] = {
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"},
        "hovermode": "closest",
        "margin": {"l": 60, "r": 15, "t": 15, "b": 45},
    }
    for k, (name, title) in enumerate(shown):
        mark = "" if k == 0 else str(k + 1)
        left = k * 0.54 if len(shown) > 1 else 0
        layout[f"xaxis{mark}"] = {
            "type": "log" if _wide([n.gap for n in networks]) else "linear",
            "title": {"text": "spectral gap"},
            "domain": [left, left + 0.46] if len(shown) > 1 else [0, 1],
            "anchor": f"y{mark}",
            "dtick": "D2" if _wide([n.gap for n in networks]) else None,
        }
        layout[f"yaxis{mark}"] = {
            "type": "log" if logs[name] else "linear",
            "title": {"text": title},
            "anchor": f"x{mark}",
            "dtick": "D2" if logs[name] else None,
        }
    caption = (
        "One mark per network, larger with more peers. A larger gap mixes faster. The "
        "front time is the round in which the farthest peer holds half its even share "
        "of the requester's influence."
    )
    words = rank_words(networks) or "Too few networks for a rank correlation."
    return Chart(
        name="front-against-gap",
        title="How fast influence spreads, against the spectral gap",
        alt=f"{words} {_range_words(networks)}",
        data=data,
        layout=layout,
        height=440,
        caption=f"{caption} {words}",
    )


def _family(
    networks: Sequence[Network], name: str, panel: int, number: int, largest: int
) -> dict[str, Any]:
    mark = "" if panel == 0 else str(panel + 1)
    values = [getattr(network, name) for network in networks]
    colour = COLOURS[number % len(COLOURS)]
    family = plot_text(networks[0].family)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": family,
        "legendgroup": family,
        "showlegend": panel == 0,
        "x": [rounded(network.gap) for network in networks],
        "y": [rounded(value.mean) for value in values],
        "xaxis": f"x{mark}",
        "yaxis": f"y{mark}",
        "error_y": {
            "array": [rounded(value.spread) for value in values],
            "thickness": 1,
            "width": 3,
            "color": colour,
        },
        "marker": {
            "symbol": _FORMS[number % len(_FORMS)],
            "color": colour,
            "size": [
                round(7 + 11 * (network.peers / largest) ** 0.5, 1)
                for network in networks
            ],
            "opacity": 0.85,
            "line": {"width": 1, "color": "var(--paper)"},
        },
        "text": [
            hover(
                f"{network.family}, {network.peers} peers",
                f"spectral gap {network.gap:.4g}",
                f"{'front time' if name == 'front' else 'effective spread'} "
                f"{value.mean:.4g}"
                + ("" if value.spread is None else f" ± {value.spread:.2g}"),
                f"{value.count} seed{'' if value.count == 1 else 's'}",
            )
            for network, value in zip(networks, values, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _pairs(networks: Sequence[Network], name: str) -> list[tuple[float, float]]:
    return [
        (network.gap, value.mean)
        for network in networks
        if (value := getattr(network, name)) is not None
    ]


def _rank(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation; None where it says nothing.

    That is: of few networks, or where one side is constant.
    """
    from scipy.stats import spearmanr

    if len(pairs) < FEWEST:
        return None
    if min(len({x for x, _ in pairs}), len({y for _, y in pairs})) < 2:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _range_words(networks: Sequence[Network]) -> str:
    ordered = sorted(networks, key=lambda network: network.gap)
    ends = [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered
    words = []
    for network in ends:
        text = f"{network.family} of {network.peers} peers has gap {network.gap:.3g}"
        if network.front is not None:
            text += f" and front time {network.front.mean:.3g} rounds"
        words.append(text)
    return f"{'; '.join(words)}."


def _whole(value: Value | None, gap: Value) -> Value | None:
    """Return a value that every seed with a gap has, else None."""
    return value if value is not None and value.count >= gap.count else None


def _wide(values: Sequence[float]) -> bool:
    """Return whether values are positive and span magnitudes."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 20


def _mean(value: Value | None) -> float | None:
    return None if value is None else value.mean
