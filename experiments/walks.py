"""RR-DU: what restarts, hops, network and alignment do to a token's model.

    python experiments/walks.py                     # 8 peers, 3 seeds, about a minute
    python experiments/walks.py --preset quick      # one seed, seconds
    python experiments/walks.py epsilon=4.0

Digits at unlike peers (Dirichlet 0.5), softmax regression; one peer forgets a fifth of
its rows. Every row of the table is one walk: what it claims, the mean test accuracy
after it and of the retrained network, hops, visits and messages, each of the last two
beside its expectation. ``p_holders``, for the default, tests a long walk's holders
(thinned until they are nearly fresh) against the stationary law.

Writes ``runs/walks/table.csv`` and ``runs/walks/walks.png``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chisquare, combine_pvalues
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    PeerData,
    RrDu,
    SimulationConfig,
    load_topology,
    simulate,
    unlearn,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.errors import ResidualExceedsCapError
from dfl_unlearn.topology.walks import expected_messages

LONG, THIN = 40_000, 50  # hops of the walk whose holders are tested


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, forgotten and tried."""

    topologies: tuple[str, ...] = ("ring", "star", "watts-strogatz", "complete")
    peers: int = 8
    rounds: int = 200
    peer: int = 3
    fraction: float = 0.2
    epsilon: float = 1.0
    hops: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    restarts: tuple[float, ...] = (0.03, 0.125, 0.5)
    caps: tuple[float, ...] = (5.0, 10.0)
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Settings()
QUICK = Settings(
    topologies=("ring", "complete"),
    rounds=100,
    hops=(100, 500),
    restarts=(0.125,),
    caps=(),
    seeds=(0,),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    rows = []
    for seed in settings.seeds:
        for name in settings.topologies:
            for row in walks(settings, name, seed):
                rows.append({"seed": seed, "topology": name, **row})
                if row["status"] == "refused":
                    print(f"seed {seed}  {name:15} {row['setting']:28} refused")
                    continue
                print(
                    f"seed {seed}  {name:15} {row['setting']:28} {row['status']:11} "
                    f"accuracy {row['accuracy']:.4f} = {row['ratio']:.3f} x retrained, "
                    f"{row['hops']} hops, {row['visits']} visits, "
                    f"{row['messages']} messages",
                    flush=True,
                )
    table = pd.DataFrame(rows)
    folder = folder_of(__file__)
    table.to_csv(folder / "table.csv", index=False)
    draw(table, folder / "walks.png")
    base = table[table.setting == "default"]
    print(
        f"default, worst of {len(base)}: {base.ratio.min():.3f} x the retrained mean "
        f"accuracy, {', '.join(sorted(set(base.status)))} at epsilon "
        f"{settings.epsilon:g}; holders against their law, all walks together: p = "
        f"{combine_pvalues(base.p_holders).pvalue:.3f}"
    )
    print(f"table and figure: {folder}")


def walks(settings: Settings, name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row per walk on one network."""
    data = PeerData.load(
        "digits",
        peers=settings.peers,
        partition="dirichlet",
        alpha=0.5,
        seed=seed,
    )
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=seed,
        evaluate_every=0,
        local=LocalSteps(steps=10, learning_rate=0.15, lr_schedule="cosine"),
    )
    run = simulate(load_topology(name, n=settings.peers), data, "logistic", config)
    request = ForgetRequest.samples(peer=settings.peer, fraction=settings.fraction)
    base = RrDu(epsilon=settings.epsilon)
    tried = {"default": base}
    tried |= {f"{h} hops": replace(base, hops=h) for h in settings.hops}
    tried |= {
        f"restart {p:g}": replace(base, restart_probability=p)
        for p in settings.restarts
    }
    tried |= {f"cap {c:g}": replace(base, residual_cap=c) for c in settings.caps}
    tried |= {
        "corrected": replace(base, alignment="corrected"),
        "lightweight": replace(base, alignment="lightweight", clip_norm=1.0),
        "relay": replace(base, natural_visit="relay"),
        "noisy": replace(base, natural_visit="noisy"),
        "no importance": replace(base, visit_correction="none"),
        "published (lamri2026)": RrDu.preset("lamri2026"),
    }
    retrained = unlearn(run, request, "retrain")
    reference = peer_scores(run.model, retrained.state.params, data).mean()
    for setting, protocol in tried.items():
        row = one(run, request, protocol, float(reference))
        if setting == "default":
            row |= {"p_holders": p_holders(run, request, protocol)}
        yield {"setting": setting, **row}


def one(
    run: TrainedRun, request: ForgetRequest, protocol: RrDu, reference: float
) -> dict[str, Any]:
    """Return the row of one walk."""
    try:
        outcome = unlearn(run, request, protocol)
    except ResidualExceedsCapError:
        return {"status": "refused"}
    accuracy = float(peer_scores(run.model, outcome.state.params[:1], run.data)[0])
    n, u = run.topology.n, outcome.request.requester
    restart = protocol.restart_probability or 1 / n
    route = protocol.route(run, outcome.request)
    hops = len(route.holders)
    certificate = outcome.certificate
    assert certificate is not None
    expected = expected_messages(run.topology, route.law, u, restart)
    return {
        "status": certificate.status,
        "epsilon": certificate.epsilon,
        "accuracy": accuracy,
        "retrained": reference,
        "ratio": accuracy / reference,
        "hops": hops,
        "visits": int(outcome.info["visits"]),
        "expected_visits": 1 + (hops - 1) * restart,
        "messages": int(outcome.trace["messages"].sum()),
        "most_messages": round((hops - 1) * expected, 1),
        "seconds": round(outcome.cost.wall_seconds, 3),
    }


def p_holders(run: TrainedRun, request: ForgetRequest, protocol: RrDu) -> float:
    """Return the p-value of a long walk's holders under their stationary law."""
    long = replace(protocol, hops=LONG).route(run, request.resolve(run.data))
    seen = np.bincount(long.holders[::THIN], minlength=run.topology.n)
    return float(chisquare(seen, long.law * seen.sum()).pvalue)


def draw(table: pd.DataFrame, path: Any) -> None:
    """Draw accuracy against hops, and what the other settings give."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    hops = table[table.setting.str.endswith(" hops")]
    for name, rows in hops.groupby("topology", sort=False):
        means = rows.groupby("hops").ratio.agg(["mean", "min", "max"])
        left.plot(means.index, means["mean"], marker="o", ms=4, label=name)
        left.fill_between(means.index, means["min"], means["max"], alpha=0.15)
    left.axhline(1, color="0.4", lw=0.8, ls=":")
    left.set(
        xscale="log",
        xlabel="hops of the token",
        ylabel="accuracy / retrained accuracy",
        title="A noised start learns again on its walk",
    )
    left.legend(frameon=False)
    rest = table[~table.setting.str.endswith(" hops")].dropna(subset="ratio")
    means = rest.groupby("setting", sort=False).ratio.agg(["mean", "min", "max"])[::-1]
    places = np.arange(len(means))
    right.barh(places, means["mean"], color="#56B4E9", height=0.65)
    right.hlines(places, means["min"], means["max"], color="0.25", lw=1)
    right.set_yticks(places, list(means.index))
    right.set(xlabel="accuracy / retrained", title="Other settings", xlim=(0, 1.1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
