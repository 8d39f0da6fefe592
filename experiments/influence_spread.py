"""How does one peer's influence cross different networks?

    python experiments/influence_spread.py                     # about 5 minutes
    python experiments/influence_spread.py --preset quick      # seconds

Softmax regression on digits, split unevenly over the peers (Dirichlet), is trained by
full-batch D-SGD on six networks of several sizes. For a few source peers the influence
of half of a peer's rows is followed exactly (the derivative of training in their
weight, ``track_influence``), and compared with leaving the rows out (``leave_out``):

1. When does a tenth, and half, of the even share arrive at the farthest peer and on
   average (``front``), and among how many peers is the influence spread?
2. Do the exact norms rank the peers as the counterfactual does (Spearman)? Per source
   over the peers (worst and mean), and over all (source, peer) pairs, which also
   compares the sizes of different sources' influence. Half of a peer's rows is a large
   change for a first-order quantity. The form is
   ``cta``, where every peer keeps a model of its own: under ``atc`` the complete graph
   leaves all peers with one model, and there is no ranking of peers to compare.
3. Do fronts come later where 1 - spectral gap is larger? Rank correlation over the six
   networks of a size.

An ``inf`` is a front that did not arrive within the rounds trained. Prints one line per
network and writes ``runs/influence_spread/``: ``table.csv``,
``heatmaps.png`` (round by peer, nearest first), ``fronts.png`` (front against gap) and
a moving picture of each network, ``<network>.gif``.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter
from scipy.stats import spearmanr
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    PeerData,
    SimulationConfig,
    load_topology,
    simulate,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.influence import leave_out, track_influence
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.plots import render
from dfl_unlearn.plots._style import INFLUENCE, STYLE
from dfl_unlearn.plots.animation import write_influence_gif
from dfl_unlearn.record.influence import InfluenceTrace, first_contact
from dfl_unlearn.topology.graph import Topology

NETWORKS = {
    "ring": {},
    "torus": {},
    "erdos-renyi": {"seed": 0},
    "barabasi-albert": {"seed": 0},
    "exponential": {},
    "complete": {},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and whose influence is followed."""

    dataset: str = "digits"
    peers: tuple[int, ...] = (9, 16, 64)  # a torus of 8 would have a row of 2
    alpha: float = 0.5
    rounds: int = 600
    rate: float = 0.1
    fraction: float = 0.5
    sources: int = 4
    shown: int = 16
    seed: int = 0


FULL = Settings()
QUICK = Settings(peers=(9, 16), rounds=40, sources=2)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    rows, traces = [], {}
    for n in settings.peers:
        data = PeerData.load(
            settings.dataset,
            peers=n,
            partition="dirichlet",
            alpha=settings.alpha,
            seed=settings.seed,
        )
        for name, fields in NETWORKS.items():
            topology = load_topology(name, n=n, **fields)
            began = time.perf_counter()
            row, trace = spread(settings, name, topology, data)
            row["seconds"] = time.perf_counter() - began
            rows.append(row)
            if n == settings.shown:
                traces[name] = trace
                write_influence_gif(topology, trace, folder / f"{name}.gif")
            print(line(row), flush=True)
        print(correlation([row for row in rows if row["peers"] == n]), flush=True)
    table = folder / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False, float_format="%.6g")
    if traces:
        save(heatmaps(traces), folder / "heatmaps.png")
    save(fronts(rows), folder / "fronts.png")
    print(f"table and figures: {folder}")


def spread(
    settings: Settings, name: str, topology: Topology, data: PeerData
) -> tuple[dict[str, object], InfluenceTrace]:
    """Return one row of the table, and the first source's trace."""
    n = topology.n
    run = simulate(
        topology,
        data,
        "logistic",
        SimulationConfig(
            rounds=settings.rounds,
            seed=settings.seed,
            trainer=DSgd(form="cta"),
            local=LocalSteps(batch_size=None, learning_rate=settings.rate),
            dtype="float64",
            evaluate_every=0,
        ),
    )
    traces, exact, moved = [], [], []
    sources = np.linspace(0, n, settings.sources, endpoint=False).astype(int)
    for source in sources:
        request = ForgetRequest.samples(
            int(source), fraction=settings.fraction, normalization="fixed"
        )
        trace = track_influence(run, request)
        left = leave_out(run, request).state.params
        traces.append(trace)
        exact.append(trace.norms[-1])
        moved.append((run.state.params - left).norm(dim=1).numpy())
    ranks = [spearmanr(s, m).statistic for s, m in zip(exact, moved, strict=True)]
    row: dict[str, object] = {
        "network": name,
        "peers": n,
        "edges": topology.graph.number_of_edges(),
        "diameter": topology.diameter,
        "spectral_gap": topology.spectral_gap,
        "light_cone": mean(
            first_contact(topology, t.source, "cta").max() for t in traces
        ),
    }
    for x in (0.1, 0.5):
        arrived = [trace.front(x) for trace in traces]
        row[f"front_{x:g}_farthest"] = mean(a.max() for a in arrived)
        row[f"front_{x:g}_mean"] = mean(a.mean() for a in arrived)
    early = min(10, settings.rounds)
    row[f"spread_round_{early}"] = mean(t.effective_spread()[early - 1] for t in traces)
    row["spread_end"] = mean(t.effective_spread()[-1] for t in traces)
    row["spearman_worst_source"] = min(ranks)
    row["spearman_mean"] = mean(ranks)
    row["spearman_pairs"] = spearmanr(np.ravel(exact), np.ravel(moved)).statistic
    return row, traces[0]


def mean(values) -> float:
    """Return the mean of some numbers; inf where one is."""
    return float(np.mean(list(values)))


def line(row: dict[str, object]) -> str:
    """Return a row as one line of text."""
    values = "  ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("network", "peers", "edges", "seconds")
    )
    return f"{row['peers']:>3} peers  {row['network']:<16} {values}"


def correlation(rows: list[dict[str, object]]) -> str:
    """Return how the fronts of one size's networks rank with 1 - spectral gap."""
    slow = [round(1 - row["spectral_gap"], 9) for row in rows]  # equal gaps tie
    words = []
    for key in ("front_0.1_farthest", "front_0.5_farthest", "front_0.5_mean"):
        found = spearmanr(slow, [row[key] for row in rows]).statistic
        words.append(f"{key} {found:+.2f}")
    return (
        f"{rows[0]['peers']:>3} peers  rank correlation with 1 - spectral gap over "
        f"{len(rows)} networks: {', '.join(words)}"
    )


def heatmaps(traces: dict[str, InfluenceTrace]) -> Figure:
    """Draw round by peer for every network, nearest peers first."""
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex=True).ravel()
    for ax, (name, trace) in zip(axes, traces.items(), strict=True):
        n = trace.norms.shape[1]
        order = np.lexsort((np.arange(n), trace.hops))
        shares = trace.shares()[:, order].T
        image = ax.pcolormesh(
            np.append(trace.rounds, trace.rounds[-1] + 1),
            np.arange(n + 1),
            np.ma.masked_equal(shares, 0.0),
            cmap=INFLUENCE,
            norm=LogNorm(1 / (50 * n), 1.0, clip=True),
            rasterized=True,
        )
        for border in np.flatnonzero(np.diff(trace.hops[order])) + 1:
            ax.axhline(float(border), color="white", linewidth=1.0)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_yticks([])
        ax.set_title(name)
    figure.supxlabel("round")
    figure.supylabel("peer, nearest first (lines between hop distances)")
    figure.colorbar(image, ax=axes, label="share of the influence", pad=0.01)
    return figure


def fronts(rows: list[dict[str, object]]) -> Figure:
    """Draw when half of the even share reaches the farthest peer against the gap."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    table = pd.DataFrame(rows)
    for n, some in table.groupby("peers"):
        some = some.sort_values("spectral_gap")
        axes.plot(
            some["spectral_gap"],
            some["front_0.5_farthest"],
            marker="o",
            label=f"{n} peers",
        )
        if n == table["peers"].max():
            for _, row in some.iterrows():
                axes.annotate(
                    row["network"],
                    (row["spectral_gap"], row["front_0.5_farthest"]),
                    xytext=(7, 7),
                    textcoords="offset points",
                    fontsize=8,
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, ticks in (
        (axes.xaxis, (0.05, 0.1, 0.2, 0.5, 1)),
        (axes.yaxis, (2, 5, 10, 20, 50, 100)),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("spectral gap")
    axes.set_ylabel("first round")
    axes.set_title("half of the even share at the farthest peer")
    axes.legend()
    return figure


def save(figure: Figure, path) -> None:
    """Write a figure."""
    path.write_bytes(render(figure))


if __name__ == "__main__":
    with rc_context(STYLE):
        main()
