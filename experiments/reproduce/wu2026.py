"""Newton/Fisher correction with noise broadcast: what is known of its experiments.

    DFL_UNLEARN_DATA=... python experiments/reproduce/wu2026.py      # see the README
    python experiments/reproduce/wu2026.py --preset quick            # digits, seconds

After Wu, Tao, Zhou, Chen, Dressler and Yu, *Certified Unlearning in Decentralized
Federated Learning* (arXiv 2601.06436), of which only the abstract and short summaries
were available: ring and Erdos-Renyi graphs; samples, a class or a whole peer are
removed; accuracy within 1 to 3 points of retraining, membership attacks at chance,
about 97 % less time than retraining. So this is no table beside a table.

1. *Removal*: MNIST at 10 peers, softmax regression and a perceptron. Per network, kind
   of request and method: status, accuracy, accuracy on what was forgotten and the
   loss attack (each to be that of the retrained network), the distance to it beside
   that of doing nothing, and the cost as a share of retraining's.
2. *Noise*: the certified correction under public caps of several sizes; the noise is
   calibrated to the cap.
3. *Slopes* (``wu_slopes.py``): how the error of one correction grows with what goes.

What must hold, and whether it does, is printed at the end; ``README.md`` says more.
Cases are kept in ``runs/wu2026/cases``, each done once. ``removal.csv``, ``slopes.csv``
and ``wu2026.png`` are written beside them.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from cases import run_cases
from fewer_rows import fewer_rows
from torch import Tensor
from wu_figure import draw
from wu_slopes import PROBLEMS, SlopeCase, errors, slope_shape, slopes

sys.path.append(str(Path(__file__).parents[1]))  # what all scripts share

from settings import check_names, choose, folder_of

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
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import RefusedError
from dfl_unlearn.evaluation.view import World, evaluate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.retained import exact_minimizer

NETWORKS: dict[str, dict[str, Any]] = {
    "ring": {},
    "erdos-renyi": {"p": 0.4, "seed": 0},
}
MODELS = ("logistic", "mlp")
METRICS = {
    "test-accuracy-kept": "accuracy",
    "forget-accuracy": "forget_accuracy",
    "mia-loss-auc": "attack_auc",
    "parameter-distance": "distance",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, forgotten and measured."""

    models: tuple[str, ...] = MODELS
    networks: tuple[str, ...] = tuple(NETWORKS)
    dataset: str = "mnist"
    rows: int = 6000
    test_rows: int = 1000
    peers: int = 10
    peer: int = 3
    fraction: float = 0.2
    class_id: int = 5
    hidden: int = 64
    l2: float = 0.01
    rounds: int = 1000
    batch_size: int = 32
    rates: tuple[float, float] = (0.3, 0.1)  # in the order of MODELS
    epsilon: float = 1.0
    delta: float = 1e-5
    caps: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 1e-1)
    problems: tuple[str, ...] = tuple(PROBLEMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse names that are not there."""
        check_names(MODELS, models=self.models)
        check_names(NETWORKS, networks=self.networks)
        check_names(PROBLEMS, problems=self.problems)


FULL = Settings()
QUICK = Settings(
    networks=("ring",),
    dataset="digits",
    rows=1400,
    test_rows=300,
    rounds=150,
    caps=(1e-3, 1e-2),
    problems=("gaussian",),
    seeds=(0,),
    workers=1,
)


@dataclass(frozen=True, kw_only=True)
class RemovalCase:
    """One model on one network with one seed."""

    model: str
    network: str
    seed: int
    settings: Settings


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    # What does not change a case's rows is not part of its name.
    bare = replace(settings, models=(), networks=(), problems=(), seeds=(), workers=0)
    removals = [
        RemovalCase(model=model, network=network, seed=seed, settings=bare)
        for model in settings.models
        for network in settings.networks
        for seed in settings.seeds
    ]
    problems = [
        replace(PROBLEMS[name], seed=seed)
        for name in settings.problems
        for seed in settings.seeds
    ]
    found: dict[Any, list[dict[str, Any]]] = {}
    for case, rows in run_cases(
        [*removals, *problems], rows_of, folder, settings.workers
    ):
        found[case] = rows
        what = case.name if isinstance(case, SlopeCase) else case.network
        print(f"{what}, seed {case.seed}: {len(rows)} rows", flush=True)
    table = pd.DataFrame([row for case in removals for row in found[case]])
    table.to_csv(folder / "removal.csv", index=False, float_format="%.6g")
    shown = summary(table)
    for model, part in shown.groupby("model", sort=False):
        print(f"\n{model}, mean of {len(settings.seeds)} seeds, in per cent:")
        print(part.drop(columns="model").to_string(index=False, na_rep="-"))
    lines = list(shape(table))
    measured = pd.DataFrame([row for case in problems for row in found[case]])
    measured.to_csv(folder / "slopes.csv", index=False, float_format="%.6g")
    print(f"\n{slopes(measured).round(2).to_string(index=False)}")
    lines += slope_shape(measured)
    print("\nwhat must hold:", *lines, sep="\n")
    draw(table, measured, folder / "wu2026.png")
    print(f"tables and figure: {folder}")


def rows_of(case: RemovalCase | SlopeCase) -> Iterator[dict[str, Any]]:
    """Yield the rows of a case of either kind."""
    if isinstance(case, SlopeCase):
        yield from errors(case)
        return
    named = {"model": case.model, "network": case.network, "seed": case.seed}
    for row in removed(case):
        yield {**named, **row}


def removed(case: RemovalCase) -> Iterator[dict[str, Any]]:
    """Yield one row per kind of request and method."""
    settings, run = case.settings, train(case)
    requests = {
        "samples": ForgetRequest.samples(
            peer=settings.peer, fraction=settings.fraction, seed=case.seed
        ),
        "class": ForgetRequest.class_(settings.class_id),
        "peer": ForgetRequest.whole_peer(settings.peer),
    }
    for kind, request in requests.items():
        retrained = unlearn(run, request, Retrain(), reference=True)
        target = None
        if run.model.convex:
            kept = run.data.without(retrained.request)
            target = exact_minimizer(run, kept, gradient_norm=1e-8).theta
        yield {
            "request": kind,
            **row("original", retrained, retrained, target, "before"),
        }
        yield {"request": kind, **row("retrain", retrained, retrained, target)}
        for name, protocol in tried(case, kind).items():
            try:
                outcome = unlearn(run, request, protocol, reference=retrained.reference)
            except RefusedError as error:
                yield {
                    "request": kind,
                    "method": name,
                    "status": "refused",
                    "reason": str(error),
                }
                continue
            yield {"request": kind, **row(name, outcome, retrained, target)}


def tried(case: RemovalCase, kind: str) -> dict[str, UnlearningProtocol]:
    """Return the methods, none of them tuned; noise under all caps for samples only."""
    settings = case.settings
    guarantee = {"epsilon": settings.epsilon, "delta": settings.delta}
    published = replace(NewtonFisher.preset("wu2026"), **guarantee)
    found: dict[str, UnlearningProtocol] = {
        "published": published,
        "published, hardly any noise": replace(published, epsilon=1e3),
        "published, no round after": replace(published, recovery_rounds=0),
        "one round alone": FineTune(rounds=1),
        "diagonal, all gradients": NewtonFisher(
            **guarantee, curvature="diag_fisher", damping=0.1
        ),
    }
    if case.model == "logistic":
        # The source's noise on one correction, made provable: exact curvature, models
        # brought together first, no round after. It covers each peer by itself.
        found["certified per peer"] = NewtonFisher(
            **guarantee,
            scope="release",
            noise_placement="broadcast_correction",
            influence_weights="uniform",
            dissemination="flood",
            recovery_rounds=0,
            align_to=1e-4,
        )
        caps = settings.caps if kind == "samples" else settings.caps[:1]
        for cap in caps:
            found[f"certified, cap {cap:g}"] = NewtonFisher(
                **guarantee, residual_cap=cap, recovery_rounds=0
            )
    return found


def row(
    name: str,
    outcome: Outcome,
    retrained: Outcome,
    target: Tensor | None,
    world: World = "after",
) -> dict[str, Any]:
    """Return what a method leaves and costs; ``before`` is what it started from.

    ``distance`` is to the retrained models, ``to_minimizer`` to the exact minimizer of
    what is kept, where there is one; both are relative and means over peers.
    """
    certificate, cost, yard = outcome.certificate, outcome.cost, retrained.cost
    before = world == "before"
    frame = evaluate(outcome, tuple(METRICS), (world, "reference")).frame
    peers = frame[frame.peer >= 0]
    means = peers.groupby(["world", "metric"]).value.mean()
    worst = peers[(peers.world == world) & (peers.metric == "test-accuracy-kept")]
    params = (outcome.run if before else outcome).state.params.double()
    left = None
    if target is not None:
        left = float((params - target).norm(dim=1).mean() / target.norm())
    return {
        "method": name,
        "status": "none" if before or certificate is None else certificate.status,
        "epsilon": None if before or certificate is None else certificate.epsilon,
        "noise_std": 0.0 if before or certificate is None else certificate.noise_std,
        **{column: float(means[world, key]) for key, column in METRICS.items()},
        "to_minimizer": left,
        "accuracy_worst": float(worst.value.min()),
        **{
            f"retrained_{column}": float(means["reference", key])
            for key, column in METRICS.items()
            if column != "distance"
        },
        "gradients_share": 0.0
        if before
        else cost.gradient_evaluations / yard.gradient_evaluations,
        "bytes_share": 0.0 if before else cost.payload_bytes / yard.payload_bytes,
        "seconds_share": 0.0 if before else cost.wall_seconds / yard.wall_seconds,
        "seconds": 0.0 if before else cost.wall_seconds,
        "reason": "",
    }


def train(case: RemovalCase) -> TrainedRun:
    """Return a trained network; its rate stays, so a round after goes on with it."""
    settings = case.settings
    dataset = fewer_rows(settings.dataset, settings.rows, settings.test_rows, case.seed)
    data = PeerData.load(dataset, peers=settings.peers, seed=case.seed)
    convex = case.model == "logistic"
    rate = settings.rates[MODELS.index(case.model)]
    model = models.build(
        case.model,
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=settings.l2 if convex else 0.0,
        **({} if convex else {"hidden": (settings.hidden,)}),
    )
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=case.seed,
        evaluate_every=0,
        local=LocalSteps(batch_size=settings.batch_size, learning_rate=rate),
    )
    topology = load_topology(case.network, n=settings.peers, **NETWORKS[case.network])
    return simulate(topology, data, model, config)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds, in per cent; gaps are to the retrained network."""
    keys = ["model", "network", "request", "method"]
    part = table.assign(
        accuracy=100 * table.accuracy,
        lost=100 * (table.retrained_accuracy - table.accuracy),
        forget_gap=100 * (table.forget_accuracy - table.retrained_forget_accuracy),
        attack_gap=100 * (table.attack_auc - table.retrained_attack_auc),
        gradients=100 * table.gradients_share,
        bytes=100 * table.bytes_share,
        time=100 * table.seconds_share,
    )
    columns = ["accuracy", "lost", "forget_gap", "attack_gap", "distance"]
    columns += ["to_minimizer"]
    columns += ["gradients", "bytes", "time"]
    groups = part.groupby(keys, sort=False)
    found = groups[columns].mean()
    found.insert(0, "status", groups.status.agg(lambda s: " / ".join(dict.fromkeys(s))))
    return found.round(3).reset_index()


def shape(table: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each claim of the source: whether the published form keeps it.

    Args:
        table: One row per case, request and method.

    Yields:
        ``holds`` or ``DOES NOT HOLD``, where, what was expected, and the figure.
    """
    shown = summary(table)
    by_key = shown.set_index(["model", "network", "request"])
    nothing = by_key[by_key.method == "original"]
    quiet = by_key[by_key.method == "published, hardly any noise"]
    for one in shown[shown.method == "published"].to_dict("records"):
        key = one["model"], one["network"], one["request"]
        expected = (
            ("accuracy within 3 points of retraining", one["lost"], 3),
            (
                "accuracy on what is forgotten within 3 points of retraining's",
                abs(one["forget_gap"]),
                3,
            ),
            ("loss attack within 2 points of retraining's", abs(one["attack_gap"]), 2),
            (
                "at most as far from the retrained models as doing nothing (ratio)",
                one["distance"] / nothing.distance[key],
                1,
            ),
            (
                "the same without its noise (ratio)",
                quiet.distance[key] / nothing.distance[key],
                1,
            ),
            ("at most 3 % of retraining's time", one["time"], 3),
            ("at most 3 % of its bytes", one["bytes"], 3),
        )
        for what, figure, most in expected:
            said = "holds" if figure <= most else "DOES NOT HOLD"
            yield f"{said:13}  {', '.join(key)}: {what} ({figure:.2f})"


if __name__ == "__main__":
    main()
