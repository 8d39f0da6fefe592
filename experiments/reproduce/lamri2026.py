"""Backdoor removal on MNIST: the table of the paper on RR-DU, at our scale.

    DFL_UNLEARN_DATA=... python experiments/reproduce/lamri2026.py   # see the README
    python experiments/reproduce/lamri2026.py --preset quick         # digits, seconds

After Lamri and Maniatakos, *Fully Decentralized Certified Unlearning* (arXiv
2512.08443), whose experiments are known from public summaries only. A complete graph of
10 peers with rows of the same kind; one peer holds images with a patch in a corner that
are all labelled 0 (BadNets), a sixth of its rows as in the paper. Then it asks the
network to forget them. Per method: what it claims, the share of other test images with
the patch that are taken for 0 (attack success, to fall), clean accuracy (to stay), and
the cost.

What must hold, and whether it does, is printed at the end; ``README.md`` has the
paper's numbers, our deviations, and what the FULL run showed.

Every arm and seed is a case of its own in ``runs/lamri2026/cases``, done once.
``table.csv`` has a row per case and method, ``summary.csv`` and ``summary.md`` mean and
spread over seeds, ``lamri2026.png`` the picture.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from backdoor_table import draw, markdown, shape, summary
from cases import run_cases
from fewer_rows import fewer_rows

sys.path.append(str(Path(__file__).parents[1]))  # what all scripts share

from settings import check_names, choose, folder_of

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
from dfl_unlearn.accounting.calibrate import noise_multiplier_for
from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.network import lamri_noise_std
from dfl_unlearn.baselines.dp_gossip import DpGossipBaseline
from dfl_unlearn.data.poison import Trigger, backdoored
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    GroupPrivacyError,
    NonPositiveCurvatureError,
    RefusedError,
)
from dfl_unlearn.evaluation.view import World, evaluate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model, and what makes the attack work on it before anything is forgotten.

    Attributes:
        model: Registered name.
        hidden: Width of an MLP's hidden layer.
        l2: lambda; above 0 a logistic model carries certificates.
        rate: Learning rate.
        patch: Side of the patch on images of 28 pixels.
        start_cap: ``RrDu.residual_cap``; None is the public worst case, which a
            network does not have.
    """

    model: str
    hidden: int | None = None
    l2: float = 0.0
    rate: float = 0.1
    patch: int = 3
    start_cap: float | None = 1.0

    @property
    def convex(self) -> bool:
        """Whether certificates are possible."""
        return self.model == "logistic"


ARMS = {
    "small-cnn": Arm(model="small-cnn"),
    "mlp": Arm(model="mlp", hidden=64, rate=0.2),
    "logistic": Arm(model="logistic", l2=0.01, rate=0.3, patch=6, start_cap=None),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, poisoned and forgotten."""

    arms: tuple[str, ...] = tuple(ARMS)
    dataset: str = "mnist"
    rows: int = 6000
    test_rows: int = 1000
    topology: str = "complete"
    peers: int = 10
    peer: int = 3
    poisoned: float = 1 / 6
    target: int = 0
    rounds: int = 600
    batch_size: int = 32
    fine_tune_rounds: int = 100
    epsilon: float = 1.0
    delta: float = 1e-5
    dp_rounds: int = 300
    dp_share: float = 0.1
    dp_clip: float = 1.0
    dp_rate: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse an arm that is not there."""
        check_names(ARMS, arms=self.arms)


FULL = Settings()
QUICK = Settings(
    arms=("mlp", "logistic"),
    dataset="digits",
    rows=1400,
    test_rows=300,
    rounds=400,
    fine_tune_rounds=20,
    dp_rounds=30,
    dp_share=0.2,
    seeds=(0,),
    workers=1,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One arm with one seed: of the rows, the split, the poison and all draws."""

    arm: Arm
    seed: int
    settings: Settings


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    # What does not change a case's rows is not part of its name.
    bare = replace(settings, arms=(), seeds=(), workers=0)
    cases = [
        Case(arm=ARMS[arm], seed=seed, settings=bare)
        for arm in settings.arms
        for seed in settings.seeds
    ]
    found = {}
    for case, rows in run_cases(cases, rows_of, folder, settings.workers):
        found[case] = [{"arm": case.arm.model, "seed": case.seed, **r} for r in rows]
        print(f"{case.arm.model}, seed {case.seed}: {len(rows)} methods", flush=True)
    table = pd.DataFrame([row for case in cases for row in found[case]])
    table.to_csv(folder / "table.csv", index=False, float_format="%.6g")
    shown = summary(table)
    shown.to_csv(folder / "summary.csv", index=False, float_format="%.4g")
    for arm, part in shown.groupby("arm", sort=False):
        print(f"\n{arm}, {len(settings.seeds)} seeds, in per cent:")
        print(part.drop(columns="arm").to_string(index=False, na_rep="-"))
    print("\nwhat must hold:")
    for line in shape(table):
        print(line)
    (folder / "summary.md").write_text(markdown(table))
    draw(table, folder / "lamri2026.png")
    print(f"tables and figure: {folder}")


def rows_of(case: Case) -> Iterator[dict[str, Any]]:
    """Yield one row per method."""
    settings = case.settings
    data, request = poisoned(case)
    run = train(case, data, gossip(case))
    retrained = unlearn(run, request, Retrain())
    yield row("original", retrained, "before")
    yield row("retrain", retrained)
    for name, protocol in tried(case).items():
        try:
            yield row(name, unlearn(run, request, protocol))
        except (RefusedError, NonPositiveCurvatureError) as error:
            yield {"method": name, "status": "refused", "reason": str(error)}
    one = noise_multiplier_for(
        settings.epsilon, settings.delta, settings.dp_share, settings.dp_rounds
    )
    every = group_noise(settings, request.size(data), settings.epsilon)
    for name, noise in (("one row", one), ("all rows", every)):
        private = train(case, data, noisy(case, noise))
        yield private_row(f"dp-gossip, {name}", private, request, settings.delta)


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


def tried(case: Case) -> dict[str, UnlearningProtocol]:
    """Return the methods, none of them tuned; the published ones as far as known."""
    settings, arm = case.settings, case.arm
    guarantee = {"epsilon": settings.epsilon, "delta": settings.delta}
    # Adam at 0.005 with L = 0.5 and a radius of 10.82 is the paper's choice for MNIST.
    published = replace(
        RrDu.preset("lamri2026"),
        **guarantee,
        optimizer="adam",
        learning_rate=0.005,
        clip_norm=0.5,
        radius=10.82,
        residual_cap=arm.start_cap,
    )
    assert published.clip_norm is not None
    assert published.hops is not None
    least = lamri_noise_std(
        published.clip_norm,
        settings.epsilon,
        settings.delta,
        restart=1 / settings.peers,
        hops=published.hops,
        peers=settings.peers,
        kappa=1.0,
    )
    diagonal = NewtonFisher(**guarantee, curvature="diag_fisher", damping=0.1)
    found: dict[str, UnlearningProtocol] = {
        "rr-du, published": published,
        "rr-du, published, kappa 1": replace(published, visit_noise_std=least),
        "rr-du, published, no noise": replace(published, visit_noise_std=0.0),
        "rr-du, noised start": RrDu(**guarantee, residual_cap=arm.start_cap),
        "newton-fisher, published": replace(NewtonFisher.preset("wu2026"), **guarantee),
        "newton-fisher, diagonal": diagonal,
        "newton-fisher, diagonal, damping 1": replace(diagonal, damping=1.0),
        "fine-tune": FineTune(rounds=settings.fine_tune_rounds),
    }
    if arm.convex:
        found["newton-fisher, exact"] = NewtonFisher(**guarantee)
    return found


def row(name: str, outcome: Outcome, world: World = "after") -> dict[str, Any]:
    """Return what a method leaves and costs; ``before`` is what it started from."""
    certificate, cost = outcome.certificate, outcome.cost
    before = world == "before"
    return {
        "method": name,
        "status": "none" if before or certificate is None else certificate.status,
        "epsilon": None if before or certificate is None else certificate.epsilon,
        **figures(outcome, world),
        "gradients": 0 if before else cost.gradient_evaluations,
        "bytes": 0 if before else cost.payload_bytes,
        "seconds": 0.0 if before else cost.wall_seconds,
        "reason": "",
    }


def figures(outcome: Outcome, world: World) -> dict[str, float]:
    """Return mean and worst peer of both measures; of the attack the worst is high."""
    frame = evaluate(outcome, ("attack-success", "test-accuracy"), world).frame
    peers = frame[frame.peer >= 0].groupby("metric").value
    mean, low, high = peers.mean(), peers.min(), peers.max()
    return {
        "attack": float(mean["attack-success"]),
        "attack_worst": float(high["attack-success"]),
        "accuracy": float(mean["test-accuracy"]),
        "accuracy_worst": float(low["test-accuracy"]),
    }


def private_row(
    name: str, run: TrainedRun, request: ForgetRequest, delta: float
) -> dict[str, Any]:
    """Return the row of a network trained with noise, which does nothing to forget."""
    try:
        return row(name, unlearn(run, request, DpGossipBaseline(delta=delta)))
    except GroupPrivacyError as error:
        # The models are there all the same: only the claim about all rows is not.
        same = unlearn(run, [], DpGossipBaseline(delta=delta))
        found = row(name, same)
        return {**found, "status": "refused", "epsilon": None, "reason": str(error)}


def poisoned(case: Case) -> tuple[PeerData, ForgetRequest]:
    """Return what the peers hold, and the request for the poisoned rows."""
    settings = case.settings
    dataset = fewer_rows(settings.dataset, settings.rows, settings.test_rows, case.seed)
    data = PeerData.load(dataset, peers=settings.peers, seed=case.seed)
    side = round(data.store.inputs[0].numel() ** 0.5)
    return backdoored(
        data,
        trigger=Trigger(size=max(2, round(case.arm.patch * side / 28))),
        target=settings.target,
        fraction=settings.poisoned,
        peer=settings.peer,
        seed=case.seed,
    )


def gossip(case: Case) -> SimulationConfig:
    """Return the training; its rate stays, so that fine-tuning goes on with it."""
    return SimulationConfig(
        rounds=case.settings.rounds,
        seed=case.seed,
        evaluate_every=0,
        record=RecordPlan.for_protocols(RrDu),
        local=LocalSteps(
            batch_size=case.settings.batch_size, learning_rate=case.arm.rate
        ),
    )


def noisy(case: Case, noise_multiplier: float) -> SimulationConfig:
    """Return training that hides single rows in every step."""
    settings = case.settings
    return SimulationConfig(
        rounds=settings.dp_rounds,
        seed=case.seed,
        evaluate_every=0,
        trainer=DpGossip(
            clip_norm=settings.dp_clip,
            noise_multiplier=noise_multiplier,
            rate=settings.dp_share,
        ),
        local=LocalSteps(learning_rate=settings.dp_rate),
    )


def train(case: Case, data: PeerData, config: SimulationConfig) -> TrainedRun:
    """Return a trained network."""
    arm = case.arm
    fields = {} if arm.hidden is None else {"hidden": (arm.hidden,)}
    model = models.build(
        arm.model,
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=arm.l2,
        **fields,
    )
    topology = load_topology(case.settings.topology, n=case.settings.peers)
    return simulate(topology, data, model, config)


if __name__ == "__main__":
    main()
