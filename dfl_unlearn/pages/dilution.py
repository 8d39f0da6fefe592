"""What gossip left of a local correction, where rounds of it followed one."""

from typing import Any

import numpy as np

from dfl_unlearn import _html as h
from dfl_unlearn._html import Html
from dfl_unlearn.pages.document import Chart, chart, numbers
from dfl_unlearn.pages.influence import hop_colours, hops_apart
from dfl_unlearn.plots._style import percent
from dfl_unlearn.plots.dilution import by_hop, left_of_change, some_hops
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.dilution import forgotten_rows, mean_losses


def dilution(view: ResultsView) -> Html:
    """Return the section; nothing where no gossip followed a local correction."""
    followed = [o for o in view.outcomes if "peers_forget_loss" in o.trace]
    if not followed:
        return Html()
    return h.section(
        "What gossip left of a local correction",
        chart(_left(view, followed[-1])),
        chart(_forgetting(view, followed[-1])),
    )


def _left(view: ResultsView, outcome: Outcome) -> Chart:
    source, weights, measured = left_of_change(view, outcome)
    hops, n = view.topology.hops(source), view.topology.n
    data: list[dict[str, Any]] = []
    shown = some_hops(hops)
    for hop, colour in zip(shown, hop_colours(len(shown)), strict=True):
        kinds = [(weights, "lines", "power of W")]
        kinds += [] if measured is None else [(measured, "markers", "measured")]
        for values, mode, what in kinds:
            line = by_hop(values, hops, hop)
            data.append(
                {
                    "type": "scatter",
                    "mode": mode,
                    "name": hops_apart(hop),
                    "showlegend": mode == "lines",
                    "y": numbers(np.where(line > 0, line, np.nan)),
                    "line": {"color": colour, "width": 2},
                    "marker": {"color": colour, "size": 6},
                    "hovertemplate": f"{hops_apart(hop)}, {what}, round %{{x}}: "
                    "%{y:.2p}<extra></extra>",
                }
            )
    kept = weights if measured is None else measured
    return Chart(
        name="dilution",
        title=f"What is left of peer {source}'s change",
        alt=(
            f"Of the change at peer {source}, {percent(float(kept[-1, source]))} is "
            f"left there after {len(kept) - 1} rounds of mixing; even is "
            f"{percent(1 / n)}."
        ),
        data=data,
        layout={
            "xaxis": {"title": {"text": "round of mixing after the correction"}},
            "yaxis": {
                "type": "log",
                "title": {"text": "share of the change"},
                "tickformat": "~p",
                "dtick": 1,
            },
        },
        caption="Lines are the powers of the mixing matrix, which fall to 1/N of the "
        "change at every peer; dots are what was really left.",
    )


def _forgetting(view: ResultsView, outcome: Outcome) -> Chart:
    losses = outcome.trace["peers_forget_loss"]
    source = outcome.request.requester
    hops = view.topology.hops(source)
    shown = some_hops(hops)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": hops_apart(hop),
            "y": numbers(by_hop(losses, hops, hop)),
            "line": {"color": colour, "width": 2},
            "hovertemplate": f"{hops_apart(hop)}, round %{{x}}: %{{y:.4g}}"
            "<extra></extra>",
        }
        for hop, colour in zip(shown, hop_colours(len(shown)), strict=True)
    ]
    rows = forgotten_rows(view.run, outcome.request)
    states = {"before": view.run.state}
    if outcome.reference is not None:
        states["retrained"] = outcome.reference.state
    told = [f"{losses[0, source]:.3g} right after", f"{losses[-1, source]:.3g} at last"]
    for (name, state), dash in zip(states.items(), ("dot", "dash"), strict=False):
        value = float(mean_losses(view.run.model, state.params[[source]], rows)[0])
        told.append(f"{value:.3g} {name}")
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name}, peer {source}",
                "x": [0, max(len(losses) - 1, 1)],
                "y": numbers([value, value]),
                "line": {"color": "var(--ink)", "width": 1.4, "dash": dash},
                "hovertemplate": f"{name}: %{{y:.4g}}<extra></extra>",
            }
        )
    after = getattr(outcome.protocol, "gossip_after", "mix")
    return Chart(
        name="forgetting",
        title=f"Loss on the forgotten rows: {outcome.label}, then {after}",
        alt=f"Loss on the forgotten rows at peer {source}: {', '.join(told)}.",
        data=data,
        layout={
            "xaxis": {"title": {"text": "round of gossip after the correction"}},
            "yaxis": {"title": {"text": "loss on forgotten rows"}},
        },
        height=380,
    )
