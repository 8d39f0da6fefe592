"""What a guarantee costs: accuracy against epsilon, and which term is to blame.

    DFL_UNLEARN_DATA=... python experiments/privacy_utility.py
    python experiments/privacy_utility.py --preset quick           # digits, seconds

Softmax regression at 16 unlike peers (Dirichlet 0.5), on a ring and a random 4-regular
graph. One peer forgets ``forgotten`` rows, under every epsilon at delta 1e-5, by

- Newton's correction, released once with noise (``newton-fisher``);
- a token's walk from a noised start (``rr-du``);
- descent to delete: more rounds from the same models, then noise at every peer
  (``fine-tune``; with full batches and a constant rate, as the proof asks);
- noise in all of training, and nothing afterwards (``dp-gossip``);
- retraining, which needs no epsilon.

Every row has the mean and the worst peer's test accuracy and the points lost against
the retrained network. Where a certified method loses more than a point at epsilon 1,
the factors of its noise are printed: sensitivity times ``s(epsilon, delta)`` times the
square root of the dimension, beside the length of the model, and the accuracy of the
same release without noise.

Writes ``table.csv`` and ``privacy_utility.png`` to ``runs/privacy_utility``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.baselines.dp_gossip import DpGossipBaseline
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import RefusedError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune

TERMS = {
    "newton-fisher": "the public cap on the distance to the exact minimizer",
    "rr-du": "the distance of the start, (residual + removed gradient) / l2",
    "fine-tune": "the residual over rate x l2: descent is slow where curvature is "
    "small, and the bound takes it to be small everywhere",
    "dp-gossip": "clipping norm x forgotten rows, in every step of training",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, what is forgotten, and at which guarantees."""

    dataset: str = "mnist"
    peers: int = 16
    alpha: float = 0.5
    l2: float = 0.01
    peer: int = 3
    forgotten: int = 20
    epsilons: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
    delta: float = 1e-5
    rounds: int = 600
    batch_size: int = 64
    rate: float = 0.3
    newton_cap: float = 1e-3
    walk_cap: float = 3.0
    descent_rounds: int = 50
    descent_rate: float = 0.002
    descent_cap: float = 10.0
    dp_rounds: int = 300
    dp_share: float = 0.02
    dp_clip: float = 1.0
    dp_rate: float = 0.3
    seed: int = 0


FULL = Settings()
QUICK = Settings(
    dataset="digits",
    peers=8,
    forgotten=5,
    epsilons=(1.0, 4.0),
    rounds=100,
    walk_cap=30.0,
    descent_rate=0.02,
    descent_cap=200.0,
    dp_rounds=50,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    data = PeerData.load(
        settings.dataset,
        peers=settings.peers,
        partition="dirichlet",
        alpha=settings.alpha,
        seed=settings.seed,
    )
    rows: list[dict[str, Any]] = []
    for name in ("ring", "random-regular"):
        for row in tried(settings, data, name):
            rows.append({"topology": name, **row})
            told = (
                f"{name:15} {row['protocol']:14} epsilon {row['epsilon']:<5g} "
                f"{row['status']:12}"
            )
            if "mean" in row:
                told += (
                    f" accuracy {row['mean']:.4f} (worst peer {row['worst']:.4f}), "
                    f"{row['lost_points']:+.2f} points lost"
                )
            print(told, flush=True)
    table = pd.DataFrame(rows)
    folder = folder_of(__file__)
    table.to_csv(folder / "table.csv", index=False, float_format="%.6g")
    draw(table, folder / "privacy_utility.png")
    for line in blamed(table):
        print(line)
    print(f"table and figure: {folder}")


def tried(settings: Settings, data: PeerData, name: str) -> Iterator[dict[str, Any]]:
    """Yield one row per protocol and epsilon on one network."""
    run = train(settings, data, name, gossip(settings))
    size = int(data.sizes[settings.peer])
    request = ForgetRequest.samples(
        peer=settings.peer, fraction=settings.forgotten / size, seed=settings.seed
    )
    retrained = unlearn(run, request, "retrain")
    yard = accuracies(run, retrained.state.params)

    def row(
        outcome: Outcome, plain: Outcome, protocol: str, epsilon: float
    ) -> dict[str, Any]:
        found = accuracies(outcome.run, outcome.state.params)
        quiet = accuracies(plain.run, plain.state.params)
        certificate = outcome.certificate
        assert certificate is not None
        noise, p = certificate.noise_std, outcome.run.model.size
        scale = noise / certificate.sensitivity if certificate.sensitivity else 0.0
        return {
            "protocol": protocol,
            "epsilon": epsilon,
            "status": certificate.status,
            "scope": certificate.scope,
            "mean": float(found.mean()),
            "worst": float(found.min()),
            "lost_points": 100 * float(yard.mean() - found.mean()),
            "without_noise": float(quiet.mean()),
            "sensitivity": certificate.sensitivity,
            "scale": scale,
            "noise_length": noise * math.sqrt(p),
            "model_length": float(plain.state.params.norm(dim=1).mean()),
            "forgotten": outcome.request.size(data),
        }

    yield row(retrained, retrained, "retrain", 0.0)
    newton = NewtonFisher(delta=settings.delta, residual_cap=settings.newton_cap)
    walk = RrDu(delta=settings.delta, residual_cap=settings.walk_cap)
    descending = TrainedRun.from_states(
        run.topology, data, run.model, run.state.params, descent(settings)
    )
    more = FineTune(
        rounds=settings.descent_rounds,
        delta=settings.delta,
        residual_cap=settings.descent_cap,
    )
    quiet = {
        "newton-fisher": unlearn(run, request, replace(newton, epsilon=1e3)),
        "rr-du": unlearn(run, request, replace(walk, release_noise_std=0.0)),
        "fine-tune": unlearn(descending, request, more),
    }
    for epsilon in settings.epsilons:
        for protocol, start, how in (
            ("newton-fisher", run, replace(newton, epsilon=epsilon)),
            ("rr-du", run, replace(walk, epsilon=epsilon)),
            ("fine-tune", descending, replace(more, epsilon=epsilon)),
        ):
            try:
                outcome = unlearn(start, request, how)
            except RefusedError as error:
                print(f"{name}: {protocol} at epsilon {epsilon:g} refused: {error}")
                yield {"protocol": protocol, "epsilon": epsilon, "status": "refused"}
                continue
            yield row(outcome, quiet[protocol], protocol, epsilon)
    yield from noisy_training(settings, data, name, request, row)


def noisy_training(
    settings: Settings, data: PeerData, name: str, request: ForgetRequest, row: Any
) -> Iterator[dict[str, Any]]:
    """Yield the rows of training with noise, one network per epsilon."""
    size = request.resolve(data).size(data)

    def trained(noise_multiplier: float) -> TrainedRun:
        config = SimulationConfig(
            rounds=settings.dp_rounds,
            seed=settings.seed,
            evaluate_every=0,
            trainer=DpGossip(
                clip_norm=settings.dp_clip,
                noise_multiplier=noise_multiplier,
                rate=settings.dp_share,
            ),
            local=LocalSteps(learning_rate=settings.dp_rate, lr_schedule="cosine"),
        )
        return train(settings, data, name, config)

    protocol = DpGossipBaseline(delta=settings.delta)
    quiet = unlearn(trained(1e-9), request, protocol)
    for epsilon in settings.epsilons:
        noise = group_noise(settings, size, epsilon)
        outcome = unlearn(trained(noise), request, protocol)
        found = row(outcome, quiet, "dp-gossip", epsilon)
        expected = settings.dp_share * float(data.sizes.mean())
        found["noise_length"] = (
            noise * settings.dp_clip / expected * math.sqrt(quiet.run.model.size)
        )
        yield found


def group_noise(settings: Settings, size: int, epsilon: float) -> float:
    """Return the noise multiplier under which all forgotten rows cost epsilon."""

    def spent(log_noise: float) -> float:
        steps = SampledGaussianMechanism(
            rate=settings.dp_share,
            noise_multiplier=math.exp(log_noise),
            steps=settings.dp_rounds,
        )
        return group_curve(steps, size).to_epsilon(settings.delta).epsilon

    low, high = -3.0, 12.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return math.exp(high)


def train(
    settings: Settings, data: PeerData, name: str, config: SimulationConfig
) -> TrainedRun:
    """Return a trained network."""
    options = {"degree": 4, "seed": settings.seed} if name == "random-regular" else {}
    model = models.build(
        "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=settings.l2,
    )
    topology = load_topology(name, n=settings.peers, **options)
    return simulate(topology, data, model, config)


def gossip(settings: Settings) -> SimulationConfig:
    """Return the training that newton-fisher, rr-du and retrain start from."""
    return SimulationConfig(
        rounds=settings.rounds,
        seed=settings.seed,
        peer_weighting="size",
        evaluate_every=0,
        record=RecordPlan.for_protocols(RrDu),
        local=LocalSteps(
            batch_size=settings.batch_size,
            learning_rate=settings.rate,
            lr_schedule="cosine",
        ),
    )


def descent(settings: Settings) -> SimulationConfig:
    """Return the training whose contraction descent to delete rests on."""
    return SimulationConfig(
        seed=settings.seed,
        peer_weighting="size",
        trainer=DSgd(form="cta"),
        local=LocalSteps(batch_size=None, learning_rate=settings.descent_rate),
    )


def accuracies(run: TrainedRun, params: Any) -> np.ndarray:
    """Return every peer's test accuracy."""
    return peer_scores(run.model, params, run.data)


def blamed(table: pd.DataFrame) -> Iterator[str]:
    """Yield what cost a certified method more than a point at epsilon 1."""
    if "mean" not in table:
        return
    at_one = table[(table.epsilon == 1) & table["mean"].notna()]
    yard = table[table.protocol == "retrain"].set_index("topology")["mean"]
    for row in at_one.itertuples():
        if row.lost_points <= 1:
            continue
        plain = 100 * (yard[row.topology] - row.without_noise)
        noise = row.lost_points - plain
        size = f"noise of length {row.noise_length:.3g} beside a model of "
        size += f"{row.model_length:.3g}"
        if row.protocol == "dp-gossip":
            size += ", in every round, at a rate that falls"
        else:
            root = row.noise_length / row.scale / row.sensitivity
            size += f": sensitivity {row.sensitivity:.3g} x s(1, delta) "
            size += f"{row.scale:.3g} x sqrt(P) {root:.3g}"
        yield (
            f"{row.topology}, {row.protocol} at epsilon 1 loses {row.lost_points:.2f} "
            f"points: {plain:.2f} without any noise, {noise:.2f} by it ({size}); "
            f"the sensitivity is {TERMS[row.protocol]}"
        )


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against epsilon, one panel per network."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import CURVES, GREY, STYLE, WIDTH, percent_axis

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained", dpi=150)
        names = list(dict.fromkeys(table.topology))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            part = table[table.topology == name]
            yard = float(part[part.protocol == "retrain"]["mean"].iloc[0])
            axes.axhline(yard, color=GREY, lw=1, ls="--", label="retrain")
            rest = part[(part.protocol != "retrain") & part["mean"].notna()]
            groups = rest.groupby("protocol", sort=False)
            for colour, (protocol, rows) in zip(CURVES, groups, strict=False):
                axes.plot(
                    rows.epsilon,
                    rows["mean"],
                    marker="o",
                    ms=4,
                    color=colour,
                    label=protocol,
                )
            values = sorted(rest.epsilon.unique())
            axes.set(xscale="log", xlabel="ε at δ = 1e-5", title=name)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
            percent_axis(axes)
        panels[0].set_ylabel("test accuracy, mean of peers")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path)


if __name__ == "__main__":
    main()
