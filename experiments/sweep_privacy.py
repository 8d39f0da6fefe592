"""What does a guarantee cost in accuracy, and which term of its bound is to blame?

    python experiments/sweep_privacy.py                     # minutes, see README.md
    python experiments/sweep_privacy.py --preset quick      # a minute
    python experiments/sweep_privacy.py name=mine forgotten=5

Softmax regression with l2 on digits of norm 1 (so that every constant is proven), 16
unlike peers (Dirichlet) on one random 4-regular network. One peer forgets one row, the
kindest case to bounds that grow with the number of rows, under every epsilon at delta
1e-5. Each protocol starts from the training that its proof needs, a sweep each:

``rewinding``  full-batch D-SGD of form ``atc``: Newton's correction
               (``newton-fisher``) for one final model (scope release), for all of them
               (joint) and for all that one observer sees (view), a token's walk from a
               noised start (``rr-du``, certificate R), and going back and training
               again (``at-peer`` with ``r2d``, reentry ``rewind_network``)
``descent``    form ``cta``: more rounds, then noise at every peer (``fine-tune``)
``private``    noise in all of training and nothing afterwards (``dp-gossip``), trained
               once per epsilon
``caps``       Newton's public cap, which its noise is proportional to, up and down
``clips``      the clipping norm of ``dp-gossip``, up and down

A row of ``table.csv`` is one protocol, scope and epsilon: status, how many seeds were
released and how many refused, accuracy of the mean and the worst peer, points lost
against retraining of the same training (``lost``: by the guarantee) and against that of
``rewinding`` (``lost_to_best``: by the training that the guarantee needs, too). Printed
beside: where a protocol is as good as retraining, worse, or leaves nothing of the model
(accuracy within ``NOTHING`` of guessing), why it refused, and for what loses, the
factors of its noise: sensitivity times ``s(epsilon, delta)`` times the square root of
the dimension, beside the length of the model.

Retraining needs no epsilon; its world is ``reference`` in every case. That an accuracy
equals retraining's says nothing about the guarantee, and the caps, rates and rounds
were chosen here so that most protocols pass: in a deployment they must be fixed before
looking at the data.

Complete cases are skipped when the script is started again, after a kill too. Writes
``runs/sweep_privacy/<name>``: a sweep folder per sweep, ``table.csv``, ``figures/`` and
``report.html`` of the curves.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from privacy_table import SHOWN, blamed, refusals, released, summary, verdicts
from scipy.optimize import brentq
from settings import choose, folder_of, told_missing

from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.plots import render
from dfl_unlearn.plots.sweeps import draw_sweep, privacy_utility, save_sweep_figures
from dfl_unlearn.report import write_report
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.sweeps import Sweep, run_sweep

CURVES = ("rewinding", "descent", "private")
"""Sweeps whose cases make the curves; the others vary what the noise is made of."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, what is forgotten, and at which guarantees.

    ``name`` is that of the results' folder; change it with any other setting. Caps and
    clipping norms are varied at ``shown_epsilon``.
    """

    name: str
    epsilons: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
    delta: float = 1e-5
    seeds: tuple[int, ...] = (0, 1, 2)
    dataset: str = "digits-unit"
    peers: int = 16
    degree: int = 4
    alpha: float = 1.0
    l2: float = 0.02
    rounds: int = 600
    rate: float = 0.5
    peer: int = 3
    forgotten: int = 1
    newton_cap: float = 1e-3
    view_cap: float = 0.1
    rewind: float = 0.9
    descent_rounds: int = 300
    descent_cap: float = 0.01
    dp_rounds: int = 100
    dp_clip: float = 1.0
    caps: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    clips: tuple[float, ...] = (0.3, 1.0, 3.0)
    shown_epsilon: float = 4.0
    jobs: int = 2


FULL = Settings(name="full")
QUICK = Settings(
    name="quick",
    epsilons=(0.1, 1.0, 8.0),
    seeds=(0,),
    caps=(1e-3, 1e-1),
    clips=(0.3, 3.0),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__) / settings.name
    views = {}
    for name, sweep in sweeps_of(settings).items():
        print(f"{name}: {len(sweep.cases())} cases", flush=True)
        run_sweep(sweep, folder / name, jobs=settings.jobs, progress=True)
        views[name] = SweepView.open(folder / name)
        for line in told_missing(views[name]):
            print(line)
    epsilon_of = {noise: e for e, noise in noise_multipliers(settings).items()}
    rows = pd.DataFrame(
        [row for n, v in views.items() for row in released(n, v, epsilon_of)]
    )
    table = summary(rows)
    table.to_csv(folder / "table.csv", index=False, float_format="%.6g")
    print(table[SHOWN].to_string(index=False, float_format="%.4g"))
    for line in (*verdicts(table), *refusals(rows), *blamed(table)):
        print(line)
    joined = SweepView.join([folder / name for name in CURVES])
    (folder / "figures").mkdir(exist_ok=True)
    figure = draw_sweep(partial(privacy_utility, joined))
    for kind in ("png", "pdf"):
        place = folder / "figures" / f"privacy-utility.{kind}"
        place.write_bytes(render(figure, kind))
    for name in ("caps", "clips"):
        save_sweep_figures(views[name], folder / name / "figures", ("png", "pdf"))
    write_report(joined, folder / "report.html")
    print(f"table, figures and page: {folder}")


def sweeps_of(settings: Settings) -> dict[str, Sweep]:
    """Return every sweep by its name."""
    delta = settings.delta
    newton = {"use": "newton-fisher", "delta": delta}
    private = {"use": "newton-fisher", "delta": delta, "scope": "view"}
    private |= {"curvature": "local"}
    rewind = {
        "use": "at-peer",
        "reentry": "rewind_network",
        "method": {"use": "r2d", "rewind": settings.rewind, "delta": delta},
    }
    descent = {
        "use": "fine-tune",
        "delta": delta,
        "rounds": settings.descent_rounds,
        "residual_cap": settings.descent_cap,
    }
    capped = {**newton, "residual_cap": settings.newton_cap}
    epsilons, noises = list(settings.epsilons), noise_multipliers(settings)
    shown = settings.shown_epsilon
    found = {
        "rewinding": (
            training(settings, "atc"),
            [
                {**capped, "scope": "release"},
                {**capped, "scope": "joint"},
                {**private, "residual_cap": settings.view_cap},
                {"use": "rr-du", "delta": delta},
                rewind,
            ],
            {
                "unlearning.0.epsilon,unlearning.1.epsilon,unlearning.2.epsilon,"
                "unlearning.3.epsilon,unlearning.4.method.epsilon": epsilons
            },
        ),
        "descent": (
            training(settings, "cta"),
            [descent],
            {"unlearning.0.epsilon": epsilons},
        ),
        "private": (
            noisy_training(settings),
            [{"use": "dp-gossip", "delta": delta}],
            {"training.trainer.noise_multiplier": [noises[e] for e in epsilons]},
        ),
        "caps": (
            training(settings, "atc"),
            [{**capped, "epsilon": shown}, {**private, "epsilon": shown}],
            {
                "unlearning.0.residual_cap,unlearning.1.residual_cap": list(
                    settings.caps
                )
            },
        ),
        "clips": (
            noisy_training(settings, noises[shown]),
            [{"use": "dp-gossip", "delta": delta}],
            {"training.trainer.clip_norm": list(settings.clips)},
        ),
    }
    return {
        name: Sweep(
            base={
                "topology": {
                    "use": "random-regular",
                    "n": settings.peers,
                    "degree": settings.degree,
                },
                "data": {
                    "use": settings.dataset,
                    "partition": {"use": "dirichlet", "alpha": settings.alpha},
                },
                "model": {
                    "use": "logistic",
                    "l2": settings.l2,
                    "bias": False,
                    "zero_start": True,
                },
                "training": how,
                "forget": [
                    {
                        "kind": "samples",
                        "peer": settings.peer,
                        "indices": list(range(settings.forgotten)),
                    }
                ],
                "unlearning": protocols,
                "evaluation": {
                    "metrics": ["test-accuracy", "consensus-distance", "epsilon-spent"]
                },
            },
            axes=axes,
            seeds=settings.seeds,
            name=f"privacy-{settings.name}-{name}",
        )
        for name, (how, protocols, axes) in found.items()
    }


def training(settings: Settings, form: str) -> dict[str, Any]:
    """Return the full-batch training that the proofs are about."""
    return {
        "rounds": settings.rounds,
        "dtype": "float64",
        "evaluate_every": 0,
        "trainer": {"use": "d-sgd", "form": form},
        "local": {"batch_size": None, "learning_rate": settings.rate},
        "record": {"every": max(1, settings.rounds // 20)},
    }


def noisy_training(settings: Settings, noise: float = 1.0) -> dict[str, Any]:
    """Return the training that hides every row."""
    return {
        "rounds": settings.dp_rounds,
        "dtype": "float64",
        "evaluate_every": 0,
        "trainer": {
            "use": "dp-gossip",
            "rate": 1.0,
            "clip_norm": settings.dp_clip,
            "noise_multiplier": noise,
        },
        "local": {"learning_rate": settings.rate, "lr_schedule": "cosine"},
    }


def noise_multipliers(settings: Settings) -> dict[float, float]:
    """Return the noise under which all forgotten rows together cost each epsilon."""

    def spent(log_noise: float) -> float:
        steps = SampledGaussianMechanism(
            rate=1.0, noise_multiplier=math.exp(log_noise), steps=settings.dp_rounds
        )
        curve = group_curve(steps, settings.forgotten)
        return curve.to_epsilon(settings.delta).epsilon

    found = {}
    for epsilon in {*settings.epsilons, settings.shown_epsilon}:
        log_noise = brentq(lambda noise, e=epsilon: spent(noise) - e, -3.0, 12.0)
        found[epsilon] = math.exp(log_noise + 1e-9)  # not above epsilon
    return found


if __name__ == "__main__":
    main()
