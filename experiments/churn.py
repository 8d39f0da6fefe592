"""Forgetting while peers come and go: how long it takes, what it sends, who is missed.

    python experiments/churn.py                    # a minute
    python experiments/churn.py --preset quick     # one seed, seconds
    python experiments/churn.py loss=0.3

Digits at 16 unlike peers (Dirichlet 0.5) on a random 4-regular graph, softmax
regression. In every round a peer leaves for a while with probability ``p_leave`` and
comes back with ``p_return``; a share ``loss`` of the messages is lost; shortly before
the request one peer leaves for good. All protocols meet the same faults.

``rounds`` are those from the request to the last peer that took the corrected model,
and those of training that a protocol adds. Sums over all peers wait for those that are
down; a token goes around them. ``missed`` counts peers that still hold influence.

Writes ``runs/churn/table.csv`` and ``runs/churn/rounds.png``.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    PeerData,
    RrDu,
    SimulationConfig,
    load_topology,
    simulate,
    unlearn,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.faults import (
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    ScheduledChurn,
)
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol
from dfl_unlearn.unlearning.protocols.retrain import Retrain


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The network, its faults and the request."""

    topology: str = "random-regular"
    peers: int = 16
    rounds: int = 200
    leaving: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1)
    p_return: float = 0.3
    loss: float = 0.1
    peer: int = 3
    goes: int = 9
    fraction: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Settings()
QUICK = Settings(peers=8, rounds=30, leaving=(0.0, 0.05), goes=6, seeds=(0,))
PROTOCOLS: tuple[UnlearningProtocol, ...] = (NewtonFisher(), RrDu(), Retrain())


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    table = pd.DataFrame(
        [
            row
            for seed in settings.seeds
            for p_leave in settings.leaving
            for row in rows_of(settings, seed, p_leave)
        ]
    )
    folder = folder_of(__file__)
    table.to_csv(folder / "table.csv", index=False)
    mean = table.groupby(["protocol", "p_leave"], sort=False)
    shown = mean.mean(numeric_only=True).drop(columns="seed").reset_index()
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    draw(shown, folder / "rounds.png")
    print(f"table and figure: {folder}")


def rows_of(settings: Settings, seed: int, p_leave: float) -> list[dict[str, Any]]:
    """Return one row per protocol at one rate of leaving."""
    topology = load_topology(settings.topology, n=settings.peers, degree=4, seed=seed)
    data = PeerData.load(
        "digits", peers=settings.peers, partition="dirichlet", alpha=0.5, seed=seed
    )
    gone = ScheduledChurn(events=((settings.rounds - 5, settings.goes, "leave"),))
    churn = MarkovChurn(p_leave=p_leave, p_return=settings.p_return)
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=seed,
        local=LocalSteps(steps=5, learning_rate=0.15, lr_schedule="cosine"),
        faults=FaultPlan(models=(churn, gone, MessageLoss(p=settings.loss))),
        record=RecordPlan.for_protocols(*PROTOCOLS),
        evaluate_every=0,
    )
    run = simulate(topology, data, "logistic", config)
    request = ForgetRequest.samples(
        peer=settings.peer, fraction=settings.fraction, seed=seed
    )
    return [
        row(seed, p_leave, unlearn(run, request, protocol)) for protocol in PROTOCOLS
    ]


def row(seed: int, p_leave: float, outcome: Outcome) -> dict[str, Any]:
    """Return one line of the table."""
    run, progress = outcome.run, outcome.progress
    assert progress is not None
    scores = peer_scores(run.model, outcome.state.params, run.data)
    return {
        "protocol": outcome.protocol_name,
        "p_leave": p_leave,
        "seed": seed,
        "rounds": max(progress.applied) - run.network_round + 1 + outcome.cost.rounds,
        "messages": outcome.cost.messages,
        "tokens": progress.generations,
        "simulated_s": outcome.cost.simulated_seconds,
        "missed": len(outcome.pending),
        "stale": progress.stale,
        "accuracy": scores.mean(),
        "worst_peer": scores.min(),
    }


def draw(shown: pd.DataFrame, path: Any) -> None:
    """Draw rounds and messages against the rate of leaving, one line per protocol."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import CURVES, STYLE, log_axis

    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained", dpi=150)
        panels = figure.subplots(1, 2)
        for axes, column, label in zip(
            panels,
            ("rounds", "messages"),
            ("rounds of the network", "messages"),
            strict=True,
        ):
            for colour, (name, part) in zip(
                CURVES, shown.groupby("protocol", sort=False), strict=False
            ):
                axes.plot(
                    part.p_leave,
                    part[column],
                    marker="o",
                    ms=4,
                    color=colour,
                    label=name,
                )
            log_axis(axes, "y")
            axes.set(xlabel="chance to leave for a while, per round", ylabel=label)
        panels[0].legend()
        figure.suptitle("Forgetting while peers come and go")
        figure.savefig(path)


if __name__ == "__main__":
    main()
