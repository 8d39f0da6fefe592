"""MNIST at 16 unlike peers: how good gossip gets, and what forgetting costs.

    DFL_UNLEARN_DATA=... python experiments/mnist_forgetting.py     # about 9 minutes
    python experiments/mnist_forgetting.py --preset quick           # digits, seconds

Three questions, each over several seeds (Dirichlet 0.3 partitions, Metropolis weights,
batches of 64, cosine learning rate):

1. How far is every peer's softmax regression from the pooled model (same lambda, solved
   to a gradient norm of 1e-4), on a random 4-regular graph and on a ring?
2. How good does a multilayer perceptron get on the 4-regular graph?
3. A peer forgets 20 % of its rows by Newton's method: how far is every peer from its
   retrained self and from the exact minimizer of the retained objective, and how many
   gradient evaluations does it take, against full-batch descent to the same gradient
   norm (same start, step 1 / largest curvature at the minimizer) and against the
   retraining that was run?

Prints one line per result and writes them to ``runs/mnist_forgetting/table.csv``.
"""

import time
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch
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
from dfl_unlearn.curvature.constants import largest_eigenvalue
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained and what is forgotten; rates are those of the first round."""

    dataset: str = "mnist"
    peers: int = 16
    alpha: float = 0.3
    rounds: int = 1500
    batch_size: int = 64
    rate: float = 0.3
    hidden: int = 128
    l2_training: float = 1e-3
    l2_forgetting: float = 1e-2
    peer: int = 3
    fraction: float = 0.2
    descent_limit: int = 50_000
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Settings()
QUICK = Settings(
    dataset="digits", peers=8, rounds=100, hidden=16, descent_limit=500, seeds=(0,)
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    rows = []
    for seed in settings.seeds:
        data = PeerData.load(
            settings.dataset,
            peers=settings.peers,
            partition="dirichlet",
            alpha=settings.alpha,
            seed=seed,
        )
        results = chain(gossip(settings, data, seed), forgetting(settings, data, seed))
        for row in results:
            rows.append({"seed": seed, **row})
            values = "  ".join(
                f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}"
                for k, v in row.items()
            )
            print(f"seed {seed}  {values}", flush=True)
    table = folder_of(__file__) / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    print(f"table: {table}")


def train(
    settings: Settings, data: PeerData, seed: int, family: str, model: str, l2: float
) -> TrainedRun:
    """Return a trained network."""
    fields = {"hidden": (settings.hidden,)} if model == "mlp" else {}
    options = {"degree": 4, "seed": seed} if family == "random-regular" else {}
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=seed,
        peer_weighting="size",
        evaluate_every=0,
        local=LocalSteps(
            batch_size=settings.batch_size,
            learning_rate=settings.rate,
            lr_schedule="cosine",
        ),
    )
    shape = tuple(data.store.inputs.shape[1:])
    return simulate(
        load_topology(family, n=settings.peers, **options),
        data,
        models.build(
            model, input_shape=shape, num_classes=data.num_classes, l2=l2, **fields
        ),
        config,
    )


def gossip(settings: Settings, data: PeerData, seed: int):
    """Yield the results of questions 1 and 2."""
    pooled = None
    for family in ("random-regular", "ring"):
        began = time.perf_counter()
        run = train(settings, data, seed, family, "logistic", settings.l2_training)
        seconds = time.perf_counter() - began
        if pooled is None:
            solved = exact_minimizer(run, gradient_norm=1e-4)
            pooled = score(run, solved.theta)
        scores = peer_scores(run.model, run.state.params, data)
        yield {
            "result": "softmax",
            "network": family,
            "pooled": pooled,
            "mean": float(scores.mean()),
            "worst": float(scores.min()),
            "mean_gap_points": 100 * (pooled - float(scores.mean())),
            "worst_gap_points": 100 * (pooled - float(scores.min())),
            "seconds": seconds,
        }
    began = time.perf_counter()
    run = train(settings, data, seed, "random-regular", "mlp", 0.0)
    scores = peer_scores(run.model, run.state.params, data)
    yield {
        "result": "mlp",
        "network": "random-regular",
        "mean": float(scores.mean()),
        "worst": float(scores.min()),
        "seconds": time.perf_counter() - began,
    }


def forgetting(settings: Settings, data: PeerData, seed: int):
    """Yield the result of question 3."""
    run = train(
        settings, data, seed, "random-regular", "logistic", settings.l2_forgetting
    )
    request = ForgetRequest.samples(
        peer=settings.peer, fraction=settings.fraction, seed=seed
    )
    outcome = unlearn(run, request, NewtonFisher(), reference=True)
    retained = data.without(outcome.request)
    exact = exact_minimizer(run, retained, gradient_norm=1e-8)
    objective = network_objective(run, retained)
    reached = float(outcome.trace["gradient_norm"][-1])
    with limited_threads(1):
        descent = descend(
            objective, run.state.mean(), exact.theta, reached, settings.descent_limit
        )
    ours = peer_scores(run.model, outcome.state.params, data)
    retrained = peer_scores(run.model, outcome.reference.state.params, data)
    minimum = score(run, exact.theta)
    passes = outcome.cost.gradient_evaluations / objective.rows
    yield {
        "result": "forgetting",
        "status": outcome.certificate.status,
        "epsilon": outcome.certificate.epsilon,
        "before": float(peer_scores(run.model, run.state.params, data).mean()),
        "after_mean": float(ours.mean()),
        "after_worst": float(ours.min()),
        "retrained_mean": float(retrained.mean()),
        "exact": minimum,
        "worst_below_retrained_points": 100 * float((retrained - ours).max()),
        "farthest_from_exact_points": 100 * float(np.abs(ours - minimum).max()),
        "newton_passes": passes,
        "descent_passes": float(descent),
        "share_of_descent": passes / descent,
        "share_of_retraining": outcome.cost.gradient_evaluations
        / outcome.reference.info["sample_gradients"],
        "newton_seconds": outcome.cost.wall_seconds,
    }


def descend(
    objective: Objective,
    start: torch.Tensor,
    minimizer: torch.Tensor,
    target: float,
    limit: int,
) -> int:
    """Return the gradients that full-batch descent takes to a gradient norm.

    The step is one over the largest eigenvalue at the minimizer plus 2 %, which descent
    would not know: the comparison favours it.
    """
    largest = largest_eigenvalue(
        objective.hessian(minimizer), len(start), rng=RngTree(0)
    )
    theta = start.clone()
    for k in range(1, limit + 1):
        gradient = objective.gradient(theta)
        if float(gradient.norm()) <= target:
            return k
        theta -= gradient / (1.02 * largest)
    return limit


def score(run: TrainedRun, theta: torch.Tensor) -> float:
    """Return the test accuracy of one parameter vector."""
    return float(peer_scores(run.model, theta[None], run.data)[0])


if __name__ == "__main__":
    main()
