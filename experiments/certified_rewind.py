"""What does a real certificate of rewinding (R2D) cost, and when does it say nothing?

    python experiments/certified_rewind.py                  # two minutes of one core
    python experiments/certified_rewind.py --preset quick
    python experiments/certified_rewind.py draws=1000

One model, trained by full batches; some rows are forgotten by going back K of T steps
and taking them again without them, plus noise for (epsilon, delta). Three cases have
proven constants (rows of norm 1, a model that is linear), so that their certificates
are real: ``cancer`` (breast cancer, logistic, l2 = 0.03) and ``digits`` (softmax, l2 =
0.01, and 0). Every row of the table has the true distance to retraining beside its
bound, the noise, and the mean accuracy over many draws of it.

``cancer`` scales its features by means and deviations of all rows, as is usual; they
count as public, and the script measures how far the forgotten rows move retraining
through them alone, which no certificate covers. ``cancer, public scaling`` takes them
from the test rows instead, so that nothing is left out.

A fourth case, ``network``, is a smooth MLP whose constants can only be estimated: no
certificate, and a bound that says nothing. The same is computed from the constants that
the paper gives for its own network (eICU): the noise that epsilon 1 needs, and the
epsilon that the published noise 0.01 stands for. ``tradeoff`` is the share of training
to repeat in order to divide the noise of a loss that is not convex.

The first case is audited: the certificate must stand, and must fall once the noise is
cut in half on purpose.

Writes ``table.csv``, ``vacuity.csv``, ``tradeoff.csv`` and ``certified_rewind.png`` to
``runs/certified_rewind``. After Mu and Klabjan (2025), Rewind-to-delete.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from settings import choose, folder_of

from dfl_unlearn import ForgetRequest, PeerData, SimulationConfig, simulate, unlearn
from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.accounting.trajectory import (
    rewind_fraction_for,
    trajectory_sensitivity,
)
from dfl_unlearn.curvature.constants import estimate_gradient_bound, estimate_smoothness
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.evaluation.audit import audit_epsilon
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

# What the paper reports for its network on eICU; delta and the forgotten rows are those
# of the authors' code.
EICU = {
    "smoothness": 0.2065,
    "gradient_bound": 0.5946,
    "learning_rate": 0.01,
    "steps": 78 * 47,
    "samples": 94449,
    "forget": 1079,
}
EICU_DELTA = 0.1
EICU_REWINDS = (0.10, 0.49, 0.74, 0.95, 0.999)
PUBLISHED_NOISE = 0.01


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long is trained, how far is rewound, how often noise is drawn.

    ``states`` are kept of every training; rewinds must be multiples of their distance,
    else an earlier one is taken.
    """

    rewinds: tuple[float, ...] = (
        *(0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5),
        *(0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    )
    epsilon: float = 1.0
    delta: float = 1e-5
    draws: int = 200
    cancer_rounds: int = 100
    digits_rounds: int = 300
    network_rounds: int = 200
    states: int = 20
    replicas: int = 200
    seed: int = 0


FULL = Settings()
QUICK = Settings(
    rewinds=(0.0, 0.25, 0.5, 0.75, 1.0),
    draws=50,
    cancer_rounds=40,
    digits_rounds=20,
    network_rounds=20,
    states=4,
    replicas=60,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    folder = folder_of(__file__)
    cancer, public = (
        trained(settings, "cancer", statistics=rows) for rows in ("all", "test")
    )
    digits, flat = trained(settings, "digits"), trained(settings, "digits", l2=0.0)
    cases = {
        "cancer": (cancer, 3),
        "cancer, public scaling": (public, 3),
        "digits, l2 = 0.01": (digits, 14),
        "digits, l2 = 0": (flat, 14),
    }
    rows = []
    for name, (run, forgotten) in cases.items():
        print(f"\n{name}: {forgotten} of {run.data.sizes[0]} rows go", flush=True)
        for row in rewound(settings, run, forgotten):
            rows.append({"case": name, **row})
            print(told(row), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(folder / "table.csv", index=False, float_format="%.10g")
    draw(settings, table, folder / "certified_rewind.png")

    tradeoff = pd.DataFrame(
        [
            {"eta L T": growth}
            | {f"/{by}": rewind_fraction_for(by, growth) for by in (2, 10, 100)}
            for growth in (0.1, 1.0, 5.0, 10.0)
        ]
    )
    tradeoff.to_csv(folder / "tradeoff.csv", index=False, float_format="%.6g")
    print("\nnot convex: share of training to repeat in order to divide the noise")
    print(tradeoff.to_string(index=False, float_format="%.3f"))

    vacuity = pd.DataFrame([*published(), *own_network(settings)])
    vacuity.to_csv(folder / "vacuity.csv", index=False, float_format="%.4g")
    print(
        "\nnetworks: what the bound says where constants are estimated (no certificate)"
    )
    print(vacuity.to_string(index=False, float_format="%.4g"))

    print()
    print(scaling_told(table, scaling_moves(cancer, 3)))
    audited(settings, cancer)
    print(f"tables and figure: {folder}")


def trained(
    settings: Settings, case: str, l2: float | None = None, **source: Any
) -> TrainedRun:
    """Return one model, trained by full batches, with the states to go back to."""
    options: dict[str, Any] = {"bias": False, "zero_start": True}
    dataset, name, rate = "digits-unit", "logistic", 1.0
    rounds, l2 = settings.digits_rounds, 0.01 if l2 is None else l2
    if case == "cancer":
        dataset, rate, l2 = "breast-cancer-unit", 2.0, 0.03
        rounds = settings.cancer_rounds
    elif case == "network":
        options = {"hidden": (64,), "smooth": True}
        dataset, name, rate = "digits", "mlp", 0.1
        rounds, l2 = settings.network_rounds, 0.0
    data = PeerData.load(dataset, peers=1, dataset_options=source)
    model = models.build(
        name,
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=l2,
        **options,
    )
    config = SimulationConfig(
        rounds=rounds,
        seed=settings.seed,
        dtype="float64",
        evaluate_every=0,
        local=LocalSteps(batch_size=None, learning_rate=rate),
        record=RecordPlan(
            parts=frozenset({"initial_state", "checkpoints"}),
            every=rounds // settings.states,
        ),
    )
    return simulate(Topology.single(), data, model, config)


def rewound(
    settings: Settings, run: TrainedRun, forgotten: int
) -> Iterator[dict[str, Any]]:
    """Yield one row for every share of training that is repeated."""
    request = first_rows(forgotten)
    target = unlearn(run, request, "retrain").state.params
    original, retrained = (accuracy(run, x) for x in (run.state.params, target))
    for rewind in settings.rewinds:
        method = R2d(rewind=rewind, epsilon=settings.epsilon, delta=settings.delta)
        outcome = unlearn(run, request, AtPeer(method=method))
        silent = replace(method, epsilon=None)
        plain = unlearn(run, request, AtPeer(method=silent)).state.params
        certificate = outcome.certificate
        assert certificate is not None
        noise = certificate.noise_std
        scores = noised(settings, run, plain, noise)
        yield {
            "rewind": rewind,
            "distance": float((plain - target).norm()),
            "bound": certificate.sensitivity,
            "noise_std": noise,
            "epsilon": certificate.epsilon,
            "delta": certificate.delta,
            "status": certificate.status,
            "accuracy": float(scores.mean()),
            "accuracy_std": float(scores.std()),
            "without_noise": accuracy(run, plain),
            "retrained": retrained,
            "original": original,
        }


def noised(
    settings: Settings, run: TrainedRun, params: torch.Tensor, noise_std: float
) -> np.ndarray:
    """Return the test accuracy of the release under many draws of its noise."""
    if noise_std == 0:
        return np.array([accuracy(run, params)])
    tree = RngTree(settings.seed).child("draws")
    return np.array(
        [
            accuracy(
                run,
                params + noise_std * tree.normal(params.shape, "audit", draw=index),
            )
            for index in range(settings.draws)
        ]
    )


def scaling_moves(run: TrainedRun, forgotten: int) -> float:
    """Return how far retraining moves if the forgotten rows never scaled anything."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer().data
    trains = np.arange(len(raw)) % 4 != 3
    gone = np.flatnonzero(trains)[:forgotten]
    known = np.delete(raw, gone, axis=0)
    inputs = (raw - known.mean(axis=0)) / known.std(axis=0)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    inputs = np.column_stack([inputs, np.ones(len(raw))])[trains] / np.sqrt(2)
    store = replace(run.data.store, inputs=torch.from_numpy(inputs))
    data = replace(run.data, store=store, norm_bound=None, recipe=None)
    again = simulate(run.topology, data, run.model, run.config)
    request = first_rows(forgotten)
    ends = [unlearn(one, request, "retrain").state.params for one in (run, again)]
    return float((ends[0] - ends[1]).norm())


def scaling_told(table: pd.DataFrame, moved: float) -> str:
    """Return what the moved scaling means beside the bounds."""
    rows = table[(table.case == "cancer") & (table.bound < moved)]
    least = f"from rewind {rows.rewind.min():g} on" if len(rows) else "nowhere"
    return (
        "cancer: means and deviations of all rows count as public. Without the "
        f"forgotten rows in them retraining would end {moved:.3g} away, more than the "
        f"noise covers {least}; 'cancer, public scaling' leaves nothing out"
    )


def published() -> Iterator[dict[str, Any]]:
    """Yield what the published formula says with the paper's own constants."""
    for rewind in EICU_REWINDS:
        shift = trajectory_sensitivity(
            rewind_steps=round(rewind * EICU["steps"]), bound="published", **EICU
        )
        yield bound_row("eICU, published constants", rewind, shift, EICU_DELTA)


def own_network(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the bound of a network of ours, by the paper's estimates and by better."""
    run = trained(settings, "network")
    record, data = run.record, run.data.local(0)
    assert record is not None
    path = [record.initial[0], *(state[0] for state in record.checkpoints.values())]
    states, end = torch.stack([*path, run.state.params[0]]), run.state.params[0]
    rng = RngTree(settings.seed).child("constants")
    rough = (
        estimate_smoothness(run.model, end, data, rng=rng, method="secant"),
        estimate_gradient_bound(run.model, states, data, per_sample=False),
    )
    better = (
        estimate_smoothness(run.model, states, data, rng=rng, iterations=15),
        estimate_gradient_bound(run.model, states, data),
    )
    request, forgotten = first_rows(14), 14
    target = unlearn(run, request, "retrain").state.params
    for how, (smoothness, gradient) in (("published", rough), ("largest seen", better)):
        print(
            f"network of ours, {how} estimates: L = {float(smoothness.value):.4g}, "
            f"G = {float(gradient.value):.4g}"
        )
        for rewind in (0.1, 0.5, 0.95):
            method = R2d(rewind=rewind, epsilon=None)
            plain = unlearn(run, request, AtPeer(method=method)).state.params
            steps = settings.network_rounds
            shift = trajectory_sensitivity(
                rewind_steps=method.rewind_steps(steps),
                steps=steps,
                learning_rate=run.config.local.learning_rate,
                smoothness=float(smoothness.value),
                gradient_bound=float(gradient.value),
                forget=forgotten,
                samples=int(run.data.sizes[0]),
            )
            yield bound_row(
                f"digits MLP, {how}",
                rewind,
                shift,
                settings.delta,
                distance=float((plain - target).norm()),
            )
    estimated = R2d(rewind=0.5, epsilon=settings.epsilon, safety=1.0)
    certificate = unlearn(run, request, AtPeer(method=estimated)).certificate
    assert certificate is not None
    print(
        f"the method itself, constants estimated: {certificate.status}, noise "
        f"{certificate.noise_std:.3g}; epsilon {certificate.nominal_epsilon} would "
        "hold if the estimates were bounds, but they are not"
    )


def bound_row(
    case: str, rewind: float, shift: float, delta: float, **more: Any
) -> dict[str, Any]:
    """Return a bound, the noise it asks for and what a fixed noise is worth."""
    return {
        "case": case,
        "rewind": rewind,
        "delta": delta,
        "bound": shift,
        "noise for epsilon 1": gaussian_noise_std(1.0, delta, shift),
        "epsilon of noise 0.01": gaussian_epsilon(shift / PUBLISHED_NOISE, delta),
        **more,
    }


def audited(settings: Settings, run: TrainedRun) -> None:
    """Audit the half-rewound certificate, as it is and with half of its noise."""
    method = R2d(rewind=0.5, epsilon=settings.epsilon, delta=settings.delta)
    release = GaussianRelease.__call__

    def halved(self: GaussianRelease, value: torch.Tensor, **rest: Any) -> torch.Tensor:
        return release(replace(self, noise_std=self.noise_std / 2), value, **rest)

    def audit() -> Any:
        return audit_epsilon(
            run, first_rows(3), AtPeer(method=method), replicas=settings.replicas
        )

    honest = audit()
    with mock.patch.object(GaussianRelease, "__call__", halved):
        broken = audit()
    for name, result in (("as it is", honest), ("noise cut in half", broken)):
        print(
            f"audit of cancer at rewind 0.5, {name}: {result.verdict} (noise "
            f"{result.noise_std_measured:.4g} of {result.claim.noise_std:.4g} claimed, "
            f"shift {result.shift_measured:.3g} of at most "
            f"{result.claim.sensitivity:.3g}; at epsilon {result.claim.epsilon:g} "
            f"behaviour proves {result.epsilon_lower:.2f} of at most "
            f"{result.ceiling:.2f})"
        )
    slack = honest.claim.sensitivity / honest.shift_measured
    print(
        f"the bound is {slack:.0f} times the true shift: here an audit sees too little "
        "noise, but a sensitivity too small by any lesser factor would go unseen"
    )


def first_rows(count: int) -> ForgetRequest:
    """Return the request to forget the first rows of the data set."""
    return ForgetRequest.samples(peer=0, indices=list(range(count)))


def accuracy(run: TrainedRun, params: torch.Tensor) -> float:
    """Return the test accuracy of one model."""
    return float(peer_scores(run.model, params, run.data)[0])


def told(row: dict[str, Any]) -> str:
    """Return a row for the terminal."""
    epsilon = "" if row["epsilon"] is None else f"epsilon {row['epsilon']:g}"
    return (
        f"rewind {row['rewind']:4.0%}  distance {row['distance']:.10f}  bound "
        f"{row['bound']:.10f}  noise {row['noise_std']:.8f}  accuracy "
        f"{row['accuracy']:.1%} (+- {row['accuracy_std']:.1%}; "
        f"{row['without_noise']:.1%} without noise)  {row['status']} {epsilon}"
    )


def draw(settings: Settings, table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy and noise against the share of training that is repeated."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import (
        CURVES,
        GREY,
        INK,
        STYLE,
        WIDTH,
        log_axis,
        percent_axis,
    )

    faces = {"certified": None, "exact": INK}  # None: the case's own colour
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained", dpi=150)
        left, right = figure.subplots(1, 2)
        for colour, (name, rows) in zip(
            CURVES, table.groupby("case", sort=False), strict=False
        ):
            low, high = (rows.accuracy + sign * rows.accuracy_std for sign in (-1, 1))
            left.fill_between(rows.rewind, low, high, color=colour, alpha=0.15, lw=0)
            left.axhline(rows.retrained.iloc[0], color=colour, lw=0.9, ls="--")
            left.plot(rows.rewind, rows.accuracy, color=colour, label=name)
            loud = rows[rows.noise_std > 0]
            right.plot(loud.rewind, loud.noise_std, color=colour)
            for status, face in faces.items():
                held, marks = rows[rows.status == status], face or colour
                left.plot(held.rewind, held.accuracy, "o", ms=4, color=marks)
                loud = held[held.noise_std > 0]
                right.plot(loud.rewind, loud.noise_std, "o", ms=4, color=marks)
        left.plot([], [], "o", ms=4, color=GREY, label="certified")
        left.plot([], [], "o", ms=4, color=INK, label="exact, no noise (K = T)")
        left.plot([], [], color=GREY, lw=0.9, ls="--", label="retrained")
        for axes in (left, right):
            axes.set(xlabel="share of training taken again, K/T", xlim=(-0.05, 1.05))
            percent_axis(axes, "x")
        percent_axis(left)
        log_axis(right, "y")
        left.set_title(
            f"test accuracy at ε = {settings.epsilon:g}, δ = {settings.delta:g}"
        )
        right.set_title("noise on every parameter")
        figure.legend(loc="outside lower center", ncols=4)
        figure.savefig(path)


if __name__ == "__main__":
    main()
