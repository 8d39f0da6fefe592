"""Forgetting by privacy: what training with noise costs, and how many records it hides.

    python experiments/private_training.py                    # half a minute
    python experiments/private_training.py --preset quick     # one noise, seconds
    python experiments/private_training.py rate=0.05

Digits at unlike peers (Dirichlet 0.5), softmax regression. Every run is trained with
``dp-gossip`` at another noise; then the baseline ``dp-gossip`` says, doing nothing, at
which epsilon (delta 1e-5) it has forgotten m records of a peer. Beside it stands what
``newton-fisher`` leaves of ordinary training when it forgets as many records: its
epsilon is chosen, its price is the noise on one release.

Writes ``runs/private_training/table.csv`` and ``runs/private_training/epsilon.png``.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from settings import choose, folder_of

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    PeerData,
    SimulationConfig,
    load_topology,
    simulate,
    unlearn,
)
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import GroupPrivacyError, ResidualExceedsCapError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, hidden and forgotten."""

    topology: str = "ring"
    peers: int = 8
    rounds: int = 100
    rate: float = 0.1
    clip_norm: float = 1.0
    learning_rate: float = 0.5
    noises: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    peer: int = 3
    epsilon: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Settings()
QUICK = Settings(rounds=20, noises=(4.0,), sizes=(1, 4), seeds=(0,))


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    table = pd.DataFrame(
        [row for seed in settings.seeds for row in rows_of(settings, seed)]
    )
    folder = folder_of(__file__)
    table.to_csv(folder / "table.csv", index=False)
    mean = table.groupby(["method", "noise", "records"], dropna=False, sort=False)
    shown = mean[["epsilon", "accuracy", "worst_peer"]].mean().reset_index()
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    draw(shown[shown.method == "dp-gossip"], folder / "epsilon.png")
    print(f"table and figure: {folder}")


def rows_of(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Return one row per noise and number of records, and those of newton-fisher."""
    topology = load_topology(settings.topology, n=settings.peers)
    data = PeerData.load(
        "digits", peers=settings.peers, partition="dirichlet", alpha=0.5, seed=seed
    )
    local = LocalSteps(learning_rate=settings.learning_rate)
    common = {"rounds": settings.rounds, "seed": seed, "evaluate_every": 0}
    rows = []
    for noise in settings.noises:
        trainer = DpGossip(
            clip_norm=settings.clip_norm, noise_multiplier=noise, rate=settings.rate
        )
        config = SimulationConfig(trainer=trainer, local=local, **common)
        run = simulate(topology, data, "logistic", config)
        for size in settings.sizes:
            try:
                outcome = unlearn(run, request(settings, size), "dp-gossip")
                assert outcome.certificate is not None
                epsilon = outcome.certificate.epsilon
            except GroupPrivacyError:
                epsilon = float("inf")
            rows.append(row("dp-gossip", seed, noise, size, epsilon, run))
    config = SimulationConfig(local=local, **common)
    plain = simulate(topology, data, "logistic", config)
    rows.append(row("no forgetting", seed, 0.0, 0, None, plain))
    for size in settings.sizes:
        newton = NewtonFisher(epsilon=settings.epsilon)
        try:
            after = unlearn(plain, request(settings, size), newton).as_run()
        except ResidualExceedsCapError:
            continue
        rows.append(
            row("newton-fisher", seed, float("nan"), size, settings.epsilon, after)
        )
    return rows


def request(settings: Settings, size: int) -> ForgetRequest:
    """Return the request for the first rows of the peer."""
    return ForgetRequest.samples(peer=settings.peer, indices=range(size))


def row(
    method: str, seed: int, noise: float, size: int, epsilon: float | None, run: Any
) -> dict[str, Any]:
    """Return one line of the table."""
    scores = peer_scores(run.model, run.state.params, run.data)
    return {
        "method": method,
        "seed": seed,
        "noise": noise,
        "records": size,
        "epsilon": epsilon,
        "accuracy": scores.mean(),
        "worst_peer": scores.min(),
    }


def draw(shown: pd.DataFrame, path: Any) -> None:
    """Draw accuracy against epsilon, one line per number of records."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import CURVES, GREY, STYLE, log_axis, percent_axis

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=150)
        axes = figure.subplots()
        groups = shown.groupby("records")
        for colour, (size, part) in zip(CURVES, groups, strict=False):
            finite = part[part.epsilon < 1e3].sort_values("epsilon")
            axes.plot(
                finite.epsilon,
                finite.accuracy,
                marker="o",
                ms=4,
                color=colour,
                label=f"{size}",
            )
        axes.axvline(10, color=GREY, lw=0.8, ls=":")
        log_axis(axes)
        percent_axis(axes)
        axes.set(
            xlabel="ε at δ = 1e-5 (weak to the right of the line)",
            ylabel="mean test accuracy",
            title="What training in private costs and hides",
        )
        axes.legend(title="records forgotten")
        figure.savefig(path)


if __name__ == "__main__":
    main()
