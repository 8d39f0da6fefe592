"""Where the influence of the data went: over the network, over hops, and how fast."""

from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.pages.document import Chart, chart, log_axis, numbers
from dfl_unlearn.pages.network import (
    MOST_FRAMES,
    MOST_SOURCES,
    heights,
    influence_bar,
    influence_colours,
    network_chart,
    spaced_rows,
)
from dfl_unlearn.plots._style import INFLUENCE, percent
from dfl_unlearn.plots.topology import lowest_share
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.results.view import ResultsView

_MOST_CURVES = 12
_FRONTS = ((0.1, "var(--orange)", "circle"), (0.5, "var(--link)", "square"))
_ROW_LABELS = 40


def influence(view: ResultsView) -> Html:
    """Return the section with the network, the heat map and the front."""
    trace = view.influence()
    if not np.isfinite(trace.norms).all():
        words = (
            "Training diverged: the influence is not a finite number, and not drawn."
        )
        return h.section("Where the influence went", h.tag("p", words))
    spread = trace.effective_spread()[-1]
    words = (
        f"When training ended, the influence of peer {trace.source}'s data was spread "
        f"over {spread:.1f} of {view.topology.n} peers; its distance to an even spread "
        f"was {trace.distance_to_uniform()[-1]:.3g} (0 is even, 1 is one place). "
    )
    words += {
        "exact": "Shares are norms of the exact derivative of each model in the weight "
        "of that data: what a small change does, not what leaving all of it out does.",
        "norm_bound": "Shares are norm bounds on the sensitivity of each model to that "
        "data.",
        "mixing_power": "Shares follow the mixing matrix alone: for this training no "
        "bound on the sensitivity itself is at hand.",
    }[trace.mode]
    return h.section(
        "Where the influence went",
        h.tag("p", words),
        chart(network_chart(view)),
        h.tag("h3", "Over hops and rounds"),
        chart(_heat_map(trace)),
        chart(_by_hop(trace)),
        chart(_front(view, trace)),
    )


def hops_apart(hops: int) -> str:
    """Return a distance in words."""
    return f"{hops} hop{'' if hops == 1 else 's'}"


def hop_colours(count: int) -> list[str]:
    """Return colours of curves by hop, near to far, visible on light and dark paper."""
    return [to_hex(INFLUENCE(float(x))) for x in np.linspace(0.76, 0.42, count)]


def _heat_map(trace: InfluenceTrace) -> Chart:
    n = trace.norms.shape[1]
    rows = spaced_rows(trace, MOST_FRAMES)
    edges = [*trace.rounds[rows].tolist(), int(trace.rounds[-1]) + 1]
    farthest = int(trace.hops.max())
    if n <= MOST_SOURCES:
        order = np.lexsort((np.arange(n), trace.hops))
        shares = trace.shares()[rows][:, order].T
        names = [f"peer {i}, {hops_apart(int(trace.hops[i]))}" for i in order]
        short = [str(i) for i in order]
        title, axis = "Share of every peer, nearest first", "peer, nearest first"
        if n > _ROW_LABELS:
            short = [str(hop) for hop in trace.hops[order]]
            axis = "hops from the source"
    else:
        shares = trace.by_hop()[rows].T
        short = [str(hop) for hop in range(farthest + 1)]
        names = [f"mean at {hops_apart(hop)}" for hop in range(farthest + 1)]
        title, axis = "Mean share at each hop distance", "hops from the source"
    # Where labels repeat or are many, only the first of each is written.
    step = max(1, len(set(short)) // _ROW_LABELS + (len(set(short)) > _ROW_LABELS))
    firsts = [short.index(text) for text in dict.fromkeys(short)][::step]
    end = trace.shares()[-1]
    return Chart(
        name="influence-heatmap",
        title=title,
        alt=(
            f"Heat map of peer {trace.source}'s influence over {trace.rounds[-1]} "
            f"rounds and up to {hops_apart(farthest)}. At the end shares lie between "
            f"{percent(float(end.min()))} and {percent(float(end.max()))}; even is "
            f"{percent(1 / n)}."
        ),
        data=[
            {
                "type": "heatmap",
                "x": edges,
                "y": names,
                "z": heights(shares, n).tolist(),
                "customdata": [numbers(line, 3) for line in shares],
                "zmin": influence_bar_floor(n),
                "zmax": 0,
                "colorscale": influence_colours(n),
                "colorbar": influence_bar(n, y=0.5, len=1.0),
                "hovertemplate": "%{y}<br>round %{x:d}: %{customdata:.2p}"
                "<extra></extra>",
            }
        ],
        layout={
            "xaxis": {"title": {"text": "round"}, **log_axis(edges[0], edges[-1])},
            "yaxis": {
                "autorange": "reversed",
                "title": {"text": axis},
                "tickvals": [names[k] for k in firsts],
                "ticktext": [short[k] for k in firsts],
                "ticks": "",
            },
        },
        height=int(np.clip(130 + 9 * len(names), 280, 520)),
        caption="Empty cells are outside the light cone: no message can have carried "
        "the data there. The scale is logarithmic.",
    )


def influence_bar_floor(n: int) -> float:
    """Return the lowest value of the colours, which stands for a share of 0."""
    return float(heights(np.zeros(1), n)[0])


def _by_hop(trace: InfluenceTrace) -> Chart:
    n = trace.norms.shape[1]
    profile, low = trace.by_hop(), lowest_share(n)
    rows = spaced_rows(trace, 2 * MOST_FRAMES)
    hops = np.unique(np.linspace(0, profile.shape[1] - 1, _MOST_CURVES).astype(int))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(rows) < 3 else "lines",
            "name": hops_apart(int(hop)),
            "x": trace.rounds[rows].tolist(),
            "y": numbers(
                np.where(profile[rows, hop] >= low / 10, profile[rows, hop], np.nan)
            ),
            "line": {"color": colour, "width": 2},
            "hovertemplate": f"{hops_apart(int(hop))}, round %{{x}}: %{{y:.2p}}"
            "<extra></extra>",
        }
        for hop, colour in zip(hops, hop_colours(len(hops)), strict=True)
    ]
    ends = [int(trace.rounds[0]), max(int(trace.rounds[-1]), int(trace.rounds[0]) + 1)]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"even {percent(1 / n)}",
            "x": ends,
            "y": [1 / n, 1 / n],
            "line": {"color": "var(--soft)", "width": 1, "dash": "dash"},
            "hoverinfo": "skip",
        }
    )
    return Chart(
        name="influence-hops",
        title="Mean share at each hop distance",
        alt=(
            f"Curves of the mean share per peer over the rounds. At the end the source "
            f"holds {percent(float(profile[-1, 0]))} and a peer at "
            f"{hops_apart(int(trace.hops.max()))} holds "
            f"{percent(float(profile[-1, -1]))} on average; even is {percent(1 / n)}."
        ),
        data=data,
        layout={
            "xaxis": {"title": {"text": "round"}, **log_axis(ends[0], ends[1])},
            "yaxis": {
                "type": "log",
                "title": {"text": "mean share per peer"},
                "tickformat": "~p",
                "dtick": 1,
                "range": np.log10([low, 1.3]).round(3).tolist(),
            },
        },
        caption="Every curve ends at 1/N when gossip has mixed completely, and starts "
        "in the first round in which a message can have come that far.",
    )


def _front(view: ResultsView, trace: InfluenceTrace) -> Chart:
    far = int(trace.hops.max())
    data: list[dict[str, Any]] = []
    told = []
    for offset, (x, colour, symbol) in zip((-0.08, 0.08), _FRONTS, strict=True):
        front = trace.front(x)
        reached = np.flatnonzero(np.isfinite(front))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{percent(x)} of the even share",
                "x": (trace.hops[reached] + offset).round(2).tolist(),
                "y": front[reached].tolist(),
                "customdata": [[int(i), int(trace.hops[i])] for i in reached],
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": 8,
                    "opacity": 0.8,
                },
                "hovertemplate": "peer %{customdata[0]}, hops %{customdata[1]}: "
                f"{percent(x)} of the even share in round %{{y}}<extra></extra>",
            }
        )
        told.append(
            f"{len(reached)} of {len(front)} peers reach {percent(x)} of it"
            + (
                f", the last in round {front[reached].max():.0f}"
                if len(reached)
                else ""
            )
        )
    if view.run.config.schedule is None:
        cone = np.arange(far + 1)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "light cone",
                "x": cone.tolist(),
                "y": np.maximum(cone, 1).tolist(),
                "line": {"color": "var(--ink)", "width": 1.4, "dash": "dash"},
                "hoverinfo": "skip",
            }
        )
        caption = (
            "Nothing can lie below the light cone: at least one round per hop. The "
            f"spectral gap of this network is {view.topology.spectral_gap:.4g}; the "
            "larger, the faster gossip mixes."
        )
    else:
        caption = (
            "Every round had a network of its own. Hops are those of the network drawn "
            "above, which the data need not have followed."
        )
    latest = max([far, 1, *(max(line["y"], default=1) for line in data)])
    return Chart(
        name="influence-front",
        title="When the influence arrives",
        alt=(
            f"First rounds by hop distance from peer {trace.source}, in parts of the "
            f"even share: {'; '.join(told)}. The farthest peer is {hops_apart(far)} "
            "away."
        ),
        data=data,
        layout={
            "xaxis": {
                "title": {"text": f"hops from peer {trace.source}"},
                "range": [-0.4, far + 0.4],
                **({"dtick": 1} if far <= 12 else {}),
            },
            "yaxis": {"title": {"text": "first round"}, **log_axis(0.8, 1.6 * latest)},
        },
        caption=caption,
    )
