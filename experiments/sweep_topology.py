"""What does a network's shape do to learning, to influence and to forgetting?

    python experiments/sweep_topology.py                     # minutes, see README.md
    python experiments/sweep_topology.py --preset quick      # a minute
    python experiments/sweep_topology.py name=mine seeds='[0, 1, 2, 3]'

A sweep over families of networks, three sizes and several seeds (of the graph where its
family is drawn, of the data's split and of training): softmax regression on digits, by
full-batch D-SGD of form ``cta``, where every peer keeps a model of its own. One peer
forgets half of its rows by Newton's correction, by a token's walk and by more rounds.

1. Is the order of the networks by spectral gap that of ``front-time`` (rounds until the
   peer reached last holds half its even share of the requester's influence) and of
   ``effective-spread`` (among how many peers it is spread at the end)? Spearman's rank
   correlation, per size over the families' means and over all cases, and the families
   that are out of order.
2. What do accuracy and consensus before, and accuracy after each protocol, depend on?
3. What does each protocol send and compute on each network?

The rate is small, so that the influence of the first rounds is not forgotten by
training itself before it has crossed the network, and rounds are few enough that the
influence is the exact derivative of training in every case.

Why networks are out of order. The gap is about the slowest way to average; the front is
about one requester and the last peer, the spread about how much stays where it was. In
a star a leaf keeps 1 - 1/N of itself in every round: all are two hops apart, so that
the front is not late, but most of the influence stays at the requester, and the spread
is below that of a ring with a smaller gap. A torus has a larger gap than a sparse
random graph and a larger diameter, too: its last peer waits longer. An ``inf`` is a
front that did not arrive within the rounds trained; it counts as the latest.

Cases that are complete are skipped when the script is started again, after a kill too.
Writes ``runs/sweep_topology/<name>``, which is a sweep folder: tables, ``families.csv``
(means over seeds), ``correlations.csv``, ``figures/`` and ``report.html``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import spearmanr
from settings import choose, folder_of, told_missing

from dfl_unlearn.plots.sweeps import save_sweep_figures
from dfl_unlearn.report import write_report
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.sweeps import Sweep, run_sweep

SPREADING = ("spectral-gap", "front-time", "effective-spread")
COSTS = (
    "cost-messages",
    "cost-payload-bytes",
    "cost-rounds",
    "cost-gradient-evaluations",
)
METRICS = (
    "test-accuracy",
    "forget-accuracy",
    "consensus-distance",
    "epsilon-spent",
    *SPREADING,
    *COSTS,
)
PROTOCOLS = (
    {"use": "newton-fisher", "epsilon": 1.0},
    {"use": "rr-du", "epsilon": 1.0},
    {"use": "fine-tune", "rounds": 10},
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which networks, and what is trained and forgotten on them.

    ``name`` is that of the results' folder; change it with any other setting.
    """

    name: str
    families: tuple[str, ...] = (
        "ring",
        "star",
        "torus",
        "erdos-renyi",
        "barabasi-albert",
        "watts-strogatz",
        "random-regular",
        "complete",
    )
    peers: tuple[int, ...] = (9, 16, 36)  # squares, so that a torus is square
    seeds: tuple[int, ...] = (0, 1, 2)
    dataset: str = "digits"
    alpha: float = 1.0
    l2: float = 0.01
    rounds: int = 500
    rate: float = 0.02
    requester: int = 8
    fraction: float = 0.5
    jobs: int = 2


FULL = Settings(name="full")
QUICK = Settings(
    name="quick",
    families=(
        "ring",
        "torus",
        "erdos-renyi",
        "barabasi-albert",
        "random-regular",
        "complete",
    ),
    peers=(9, 16, 25),
    seeds=(0,),
    rounds=200,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__) / settings.name
    run_sweep(sweep_of(settings), folder, jobs=settings.jobs, progress=True)
    view = SweepView.open(folder)
    for line in told_missing(view):
        print(line)
    table = by_case(view)
    means = by_family(table)
    means.to_csv(folder / "families.csv", index=False, float_format="%.6g")
    for line in lines(means):
        print(line)
    ranks = correlations(table)
    ranks.to_csv(folder / "correlations.csv", index=False, float_format="%.4f")
    print(ranks.to_string(index=False, float_format="%+.2f"))
    for line in out_of_order(means):
        print(line)
    save_sweep_figures(view, folder / "figures", ("png", "pdf"))
    write_report(folder, folder / "report.html")
    print(f"table, figures and page: {folder}")


def sweep_of(settings: Settings) -> Sweep:
    """Return the sweep that the settings ask for."""
    return Sweep(
        base={
            "data": {
                "use": settings.dataset,
                "partition": {"use": "dirichlet", "alpha": settings.alpha},
            },
            "model": {"use": "logistic", "l2": settings.l2},
            "training": {
                "rounds": settings.rounds,
                "evaluate_every": 0,
                "trainer": {"use": "d-sgd", "form": "cta"},
                "local": {"batch_size": None, "learning_rate": settings.rate},
            },
            "forget": [
                {
                    "kind": "samples",
                    "peer": settings.requester,
                    "fraction": settings.fraction,
                }
            ],
            "unlearning": [dict(protocol) for protocol in PROTOCOLS],
            "evaluation": {"metrics": list(METRICS)},
        },
        axes={
            "topology": [
                {"use": family, "n": n}
                for n in settings.peers
                for family in settings.families
            ]
        },
        seeds=settings.seeds,
        name=f"topology-{settings.name}",
    )


def by_case(view: SweepView) -> pd.DataFrame:
    """Return a row per finished case: its network and what was measured on it.

    Costs and what holds after a protocol have its name in front.
    """
    networks = {case.name: case.point["topology"] for case in view.cases}
    rows: dict[str, dict[str, Any]] = {}
    for row in view.table.rows:
        if row["peer"] >= 0:
            continue
        network = networks[row["case"]]
        found = rows.setdefault(
            row["case"],
            {"peers": network["n"], "family": network["use"], "seed": row["seed"]},
        )
        name = row["metric"].replace("-", "_")
        if row["metric"] in SPREADING:
            found[name] = row["value"]
        elif row["world"] == "after":
            found[f"{row['protocol']}_{name}"] = row["value"]
        elif row["world"] == "before":
            found[f"before_{name}"] = row["value"]
        else:
            found[f"retrain_{name}"] = row["value"]
    return pd.DataFrame(list(rows.values())).astype({"front_time": float})


def by_family(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over seeds, smallest networks and smallest gaps first."""
    groups = table.drop(columns="seed").groupby(["peers", "family"], sort=False)
    means = groups.mean()
    means.insert(0, "seeds", groups.size())
    return means.reset_index().sort_values(["peers", "spectral_gap"])


def lines(means: pd.DataFrame) -> Iterator[str]:
    """Yield what is worth reading of every network."""
    columns = {
        "peers": "peers",
        "family": "family",
        "seeds": "seeds",
        "spectral_gap": "gap",
        "front_time": "front",
        "effective_spread": "spread",
        "before_consensus_distance": "consensus",
        "before_test_accuracy": "before",
        "retrain_test_accuracy": "retrained",
        **{f"{p['use']}_test_accuracy": str(p["use"]) for p in PROTOCOLS},
    }
    present = {old: new for old, new in columns.items() if old in means}
    shown = means[list(present)].rename(columns=present)
    yield shown.to_string(index=False, float_format="%.4g")


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return how fronts and spreads rank with the gap, per size and over all.

    ``families`` is over the means of the families, ``cases`` over single cases. Over
    all sizes together the spread is taken as a share of the peers.
    """
    rows = []
    for n in [*sorted(table["peers"].unique()), "all"]:
        part = table if n == "all" else table[table["peers"] == n]
        part = part.assign(share=part["effective_spread"] / part["peers"])
        means = part.groupby(["peers", "family"])[
            ["spectral_gap", "front_time", "share"]
        ].mean()
        rows.append(
            {
                "peers": n,
                "networks": len(means),
                "gap~front, families": rank(means["spectral_gap"], means["front_time"]),
                "gap~spread, families": rank(means["spectral_gap"], means["share"]),
                "cases": len(part),
                "gap~front, cases": rank(part["spectral_gap"], part["front_time"]),
                "gap~spread, cases": rank(part["spectral_gap"], part["share"]),
            }
        )
    return pd.DataFrame(rows)


def rank(first: pd.Series, second: pd.Series) -> float:
    """Return Spearman's rank correlation; equal gaps tie in spite of rounding."""
    return float(spearmanr(first.round(9), second).statistic)


def out_of_order(means: pd.DataFrame) -> Iterator[str]:
    """Yield the families that are two places or more from where the gap says."""
    for n, part in means.groupby("peers"):
        expected = part["spectral_gap"].round(9).rank(ascending=False)
        for label, column, early in (
            ("front", "front_time", True),
            ("spread", "effective_spread", False),
        ):
            measured = part[column].rank(ascending=early)
            moved = measured - expected
            for index in moved[moved.abs() >= 2].index:
                row = part.loc[index]
                shown = row[column]
                yield (
                    f"{n} peers, {row['family']}: {label} {shown:.4g} is number "
                    f"{measured[index]:g} of {len(part)}, its gap "
                    f"{row['spectral_gap']:.3g} number {expected[index]:g}"
                )


if __name__ == "__main__":
    main()
