"""The network drawn, with a slider over the rounds and every peer to be asked."""

import base64
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from dfl_unlearn import _html as h
from dfl_unlearn import _validate
from dfl_unlearn._html import Html
from dfl_unlearn.pages.document import Chart
from dfl_unlearn.pages.sources import FRONT, pairwise_influence
from dfl_unlearn.plots._style import INFLUENCE, percent
from dfl_unlearn.plots.topology import layout, lowest_share
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.results.view import ResultsView

MOST_FRAMES = 120
MOST_SOURCES = 200
_MOST_BYTES = 2_500_000  # of shares between all peers, one byte each
_MOST_LINKS = 5_000  # all are drawn again in every round
_LEVELS = 254  # of a share in a byte; 0 is exactly nothing
_BAND = 0.06  # of the colour scale, for peers that were not reached
_MEASURED = {
    "exact": "the exact derivative of each model",
    "norm_bound": "norm bounds on the sensitivity of each model",
    "mixing_power": "the mixing matrix alone",
}


def network_chart(view: ResultsView) -> Chart:
    """Return the network with influence as colour; the page's script moves it.

    Shares are kept as a byte on a logarithmic scale, in error by at most 2.3 % of
    themselves for a thousand peers; arrival rounds come from all rounds, exactly.

    Args:
        view: Gives the network and the influence.

    Returns:
        The figure. For more than 200 peers it holds the influence of one source only.
    """
    network, trace = view.topology, view.influence()
    n, source = network.n, trace.source
    most = min(MOST_FRAMES, max(2, _MOST_BYTES // n**2)) if n <= MOST_SOURCES else None
    rows = spaced_rows(trace, most or MOST_FRAMES)
    low = lowest_share(n)
    spread = trace.effective_spread()
    half = int((spread[rows] >= 0.5 * spread.max()).argmax())
    extra: dict[str, Any] = {
        "n": n,
        "source": source,
        "rounds": trace.rounds[rows].tolist(),
        "start": half,
        "low": low,
        "levels": _LEVELS,
        "band": _floor(n),
        "own": _packed(trace.shares()[rows], low),
        "ownArrival": _arrivals(trace.front(FRONT)),
        "ownMeasured": _MEASURED[trace.mode],
        "labels": [_validate.clean(text) for text in network.labels],
    }
    if n <= MOST_SOURCES:
        pairs = pairwise_influence(view.run, trace.rounds[rows])
        extra |= {
            "pairs": _packed(pairs.shares, low),
            "pairsArrival": [_arrivals(row) for row in pairs.arrival],
            "pairsMeasured": _MEASURED[pairs.mode],
        }
    return Chart(
        name="network",
        title="Whom the data reached",
        alt=_finding(view, trace),
        data=_traces(view, trace, int(rows[half])),
        layout={
            "xaxis": {"visible": False, "range": [-1.15, 1.15]},
            "yaxis": {
                "visible": False,
                "range": [-1.15, 1.15],
                "scaleanchor": "x",
            },
            "showlegend": False,
            "margin": {"l": 5, "r": 5, "t": 5, "b": 5},
            "hovermode": "closest",
        },
        height=560,
        caption=_caption(n, len(network.edges)),
        hook="network",
        extra=extra,
        controls=_controls(trace, len(rows)),
        below=h.tag("div", class_="peers"),
    )


def spaced_rows(trace: InfluenceTrace, most: int) -> NDArray[np.int64]:
    """Return rows of a trace, closer together where influence moves fast.

    Args:
        trace: The influence, T' rows.
        most: How many at most.

    Returns:
        Ascending row numbers, logarithmically spaced, the first and the last among
        them.
    """
    count = len(trace.rounds)
    if count <= most:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, most).round().astype(np.int64)) - 1


def influence_colours(n: int) -> list[list[Any]]:
    """Return the scale of influence for plotly, from ``_floor`` to 0 = log10(1).

    Args:
        n: Number of peers.

    Returns:
        Stops; the first band is for peers that nothing has reached.
    """
    stops = np.linspace(0, 1, 11)
    first: list[list[Any]] = [[0, "var(--unreached)"], [_BAND, "var(--unreached)"]]
    return first + [
        [round(_BAND + (1 - _BAND) * float(x), 4), to_hex(INFLUENCE(float(x)))]
        for x in stops
    ]


def influence_bar(n: int, **more: Any) -> dict[str, Any]:
    """Return the colour bar of ``influence_colours``.

    Args:
        n: Number of peers.
        **more: Further settings of plotly's bar.

    Returns:
        Its settings, with the even share 1/N marked.
    """
    ticks = [t for t in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5) if t > 2 * lowest_share(n)]
    ticks = [t for t in ticks if abs(np.log10(t * n)) > 0.4]
    nothing = _floor(n) * (1 - _BAND / 2)
    return {
        "tickvals": [nothing, *np.log10([*ticks, 1 / n]).round(4).tolist()],
        "ticktext": ["none", *map(percent, ticks), f"even {percent(1 / n)}"],
        "outlinewidth": 0.5,
        "outlinecolor": "var(--soft)",
        "thickness": 12,
        **more,
    }


def _floor(n: int) -> float:
    """Return the lowest value on the scale: what is drawn for a share of exactly 0."""
    return round(float(np.log10(lowest_share(n))) / (1 - _BAND), 4)


def heights(shares: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return shares as places on the scale of colours, log10; 0 at its lowest end."""
    logs = np.log10(np.maximum(shares, lowest_share(n)))
    return np.where(shares > 0, logs, _floor(n)).round(3)


def _packed(shares: NDArray[np.float64], low: float) -> str:
    """Return shares as base64 of a byte each: 0 is 0, else log from ``low`` to 1."""
    logs = 1 - np.log(np.maximum(shares, low)) / np.log(low)
    levels = np.where(shares > 0, 1 + np.rint(_LEVELS * logs), 0).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode()


def _arrivals(rounds: NDArray[np.float64]) -> list[int | None]:
    return [int(r) if np.isfinite(r) else None for r in rounds]


def _traces(view: ResultsView, trace: InfluenceTrace, row: int) -> list[dict[str, Any]]:
    network, n = view.topology, view.topology.n
    places = layout(network, trace.source).round(4)
    shares = trace.shares()[row]
    traces: list[dict[str, Any]] = []
    if len(network.edges) <= _MOST_LINKS:
        lines = np.full((len(network.edges), 3, 2), np.nan)
        lines[:, :2] = places[network.edges]
        flat = lines.reshape(-1, 2).astype(object)
        flat[2::3] = None
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": flat[:, 0].tolist(),
                "y": flat[:, 1].tolist(),
                "line": {
                    "color": "var(--soft)",
                    "width": float(np.clip(60 / max(len(lines), 1), 0.25, 1.2)),
                },
                "opacity": float(np.clip(400 / max(len(lines), 1), 0.15, 1)),
                "hoverinfo": "skip",
            }
        )
    size = float(np.clip(170 / np.sqrt(n), 5, 34))
    dots = {
        "type": "scatter",
        "name": "peers",
        "mode": "markers+text" if n <= 64 else "markers",
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "marker": {
            "size": size,
            "color": heights(shares, n).tolist(),
            "cmin": _floor(n),
            "cmax": 0,
            "colorscale": influence_colours(n),
            "line": {"color": "var(--rim)", "width": 0.7},
            "colorbar": influence_bar(
                n, orientation="h", y=0, yanchor="top", len=0.9, ticks="outside"
            ),
        },
        "text": [str(i) for i in range(n)] if n <= 64 else None,
        "textfont": {"size": 9 if n > 24 else 12},
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    ring = {
        "type": "scatter",
        "name": "chosen",
        "mode": "markers",
        "x": [places[trace.source, 0]],
        "y": [places[trace.source, 1]],
        "marker": {
            "size": size + 9,
            "color": "rgba(0,0,0,0)",
            "line": {"color": "var(--ink)", "width": 2.2},
        },
        "hoverinfo": "skip",
    }
    return [*traces, dots, ring]


def _controls(trace: InfluenceTrace, frames: int) -> Html:
    """Return buttons, slider and choices; the script shows them."""
    n = trace.norms.shape[1]
    options = [
        h.tag("option", f"peer {i}", value=str(i))
        for i in (range(n) if n <= MOST_SOURCES else [trace.source])
    ]
    ways = [("out", "where its influence went"), ("in", "whose influence it holds")]
    if n > MOST_SOURCES:
        ways = ways[:1]
    top = h.tag(
        "div",
        h.tag("label", "Peer ", h.tag("select", *options, class_="peer")),
        h.tag(
            "label",
            "Colours ",
            h.tag(
                "select",
                *(h.tag("option", text, value=way) for way, text in ways),
                class_="way",
            ),
        ),
        class_="controls",
        hidden="hidden",
    )
    slider = Html(
        '<input type="range" class="round" min="0" step="1" '
        f'max="{frames - 1}" value="0" aria-label="round">'
    )
    bottom = h.tag(
        "div",
        h.tag("button", "Play", class_="button play", type="button"),
        slider,
        h.tag("span", "", class_="now"),
        class_="controls",
        hidden="hidden",
    )
    return h.join(top, bottom)


def _finding(view: ResultsView, trace: InfluenceTrace) -> str:
    """Return what the network shows, in numbers."""
    network, n = view.topology, view.topology.n
    spread, front = trace.effective_spread(), trace.front(FRONT)
    first = int((spread > 0).argmax())
    reached = np.isfinite(front)
    words = (
        f"A network of {n} peers and {len(network.edges):,} links. The influence of "
        f"peer {trace.source} was spread over {spread[first]:.1f} peers after round "
        f"{trace.rounds[first]} and over {spread[-1]:.1f} after round "
        f"{trace.rounds[-1]}. "
    )
    if reached.all():
        last = int(front.argmax())
        return words + (
            f"The last to hold a tenth of its even share was peer {last}, "
            f"{trace.hops[last]} hops away, in round {front[last]:.0f}."
        )
    return words + (
        f"{int(reached.sum())} of {n} peers came to hold a tenth of their even share."
    )


def _caption(n: int, links: int) -> str:
    words = (
        "The ring is the chosen peer. Empty peers have not been reached by any message "
        "that could carry its data; the scale is logarithmic. A peer counts as reached "
        "from the round in which it holds a tenth of its even share, 1/N. "
    )
    if links > _MOST_LINKS:
        words += f"The {links:,} links are too many to be drawn. "
    if n <= MOST_SOURCES:
        return words + (
            "Click a peer, or choose it above, to see whom it reached and who reached "
            "it. Arrival rounds are exact; shares are rounded to a few percent of "
            "themselves."
        )
    return words + (
        f"Of more than {MOST_SOURCES} peers this page keeps the influence of one only; "
        "click a peer to see what reached it."
    )
