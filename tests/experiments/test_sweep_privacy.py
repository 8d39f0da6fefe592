"""The privacy sweeps: what they ask for, what they read, and what they say of it."""

import importlib
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.sweeps import run_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = {
    "name": "tiny",
    "epsilons": (8.0,),
    "shown_epsilon": 8.0,
    "seeds": (0,),
    "peers": 4,
    "degree": 2,
    "rounds": 40,
    "descent_rounds": 20,
    "dp_rounds": 10,
    "caps": (1e-3,),
    "clips": (1.0,),
    "jobs": 1,
}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("sweep_privacy")
    finally:
        sys.path.remove(str(EXPERIMENTS))
        for name in ("sweep_privacy", "privacy_table", "settings"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def found(script, tmp_path_factory):
    """The rows of all outcomes of the tiny sweeps that make the curves."""
    folder = tmp_path_factory.mktemp("privacy")
    settings = script.Settings(**TINY)
    epsilon_of = {noise: e for e, noise in script.noise_multipliers(settings).items()}
    rows = []
    for name in script.CURVES:
        run_sweep(script.sweeps_of(settings)[name], folder / name, jobs=1)
        view = SweepView.open(folder / name)
        assert [case.status for case in view.cases] == ["done"]
        rows += script.released(name, view, epsilon_of)
    return pd.DataFrame(rows)


def test_every_certified_protocol_is_tried_at_every_epsilon(script):
    asked = {0.1, 0.5, 1.0, 2.0, 4.0, 8.0}
    assert set(script.FULL.epsilons) == asked
    assert len(script.FULL.seeds) >= 3
    sweeps = script.sweeps_of(script.FULL)
    for name in script.CURVES:
        assert len(sweeps[name].cases()) == 6 * 3, name
    for case in sweeps["rewinding"].cases():
        epsilons = {
            getattr(protocol, "method", protocol).epsilon
            for protocol in case.experiment.unlearning
        }
        assert epsilons == set(case.point.values())


def test_every_protocol_is_read_with_its_own_certificate(found):
    assert sorted(found["protocol"]) == [
        "at-peer.r2d.rewind_network",
        "dp-gossip",
        "fine-tune",
        "newton-fisher joint",
        "newton-fisher release",
        "newton-fisher view",
        "rr-du",
    ]
    assert set(found["epsilon"]) == {8.0}
    released = found[found["status"] != "refused"].set_index("protocol")
    assert released.loc["newton-fisher joint", "sensitivity"] == pytest.approx(1.01e-3)
    assert set(released["certified_epsilon"].round(2)) == {8.0}
    measured = released[["mean", "worst", "before_mean", "retrained_mean"]]
    assert ((measured >= 0) & (measured <= 1)).all().all()
    assert (released["worst"] <= released["mean"] + 1e-12).all()


def test_a_refusal_is_a_row_with_its_reason(found, script):
    refused = found[found["status"] == "refused"]
    assert "newton-fisher view" in set(refused["protocol"])  # 40 rounds are too few
    assert refused["error"].str.contains("residual_cap").any()
    assert refused.get("mean").isna().all()
    told = "\n".join(script.refusals(found))
    assert "newton-fisher view residual_cap 0.1 refused 1 times, at ε 8" in told


def test_the_noise_of_private_training_costs_the_epsilon(script):
    settings = script.Settings(name="x", forgotten=3, epsilons=(0.5, 4.0))
    for epsilon, noise in script.noise_multipliers(settings).items():
        steps = SampledGaussianMechanism(
            rate=1.0, noise_multiplier=noise, steps=settings.dp_rounds
        )
        spent = group_curve(steps, 3).to_epsilon(settings.delta).epsilon
        assert 0.99 * epsilon < spent <= epsilon + 1e-6


def outcome(sweep, protocol, seed, mean, retrained, **changes):
    return {
        "sweep": sweep,
        "protocol": protocol,
        "setting": "",
        "epsilon": 1.0,
        "seed": seed,
        "status": "certified",
        "certified_epsilon": 1.0,
        "mean": mean,
        "worst": mean - 0.1,
        "before_mean": 0.8,
        "retrained_mean": retrained,
        "retrained_worst": retrained - 0.1,
        "sensitivity": 0.5,
        "noise_std": 2.0,
        "model_length": 4.0,
        "dimension": 100,
        **changes,
    }


def test_losses_are_against_the_same_seed_and_private_training_against_the_best(script):
    rows = pd.DataFrame(
        [
            outcome("rewinding", "rr-du", 0, 0.70, 0.80),
            outcome("rewinding", "rr-du", 1, 0.60, 0.74),
            outcome("descent", "fine-tune", 0, 0.70, 0.75),
            outcome("descent", "fine-tune", 1, 0.70, 0.75),
            outcome("private", "dp-gossip", 0, 0.30, 0.30),
            outcome("private", "dp-gossip", 1, 0.30, 0.30),
        ]
    )
    table = script.summary(rows).set_index("protocol")
    assert table.loc["rr-du", "lost"] == pytest.approx(100 * (0.10 + 0.14) / 2)
    assert table.loc["rr-du", "std"] == pytest.approx(0.1 / math.sqrt(2))
    assert table.loc["fine-tune", "lost"] == pytest.approx(5)
    assert table.loc["fine-tune", "lost_to_best"] == pytest.approx(7)
    assert table.loc["dp-gossip", "lost"] == pytest.approx(47)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": 0.795}, "as good as retraining"),
        ({"mean": 0.70}, "worse than retraining"),
        ({"mean": 0.85}, "more accurate than retraining, as it trains further"),
        ({"mean": 0.15}, "leaves noise"),
        ({"mean": 0.80, "status": "heuristic"}, "claims nothing"),
        ({"status": "refused", "mean": math.nan}, "refuses"),
    ],
)
def test_a_verdict_says_what_became_of_accuracy(script, changes, words):
    mean = changes.pop("mean")
    rows = [outcome("rewinding", "rr-du", 0, mean, 0.80, **changes)]
    rows.append(outcome("rewinding", "newton-fisher joint", 0, 0.8, 0.80))
    lines = list(script.verdicts(script.summary(pd.DataFrame(rows))))
    assert lines[0] == f"rewinding: rr-du: {words} at ε 1" + (
        " (one seed)" if words != "refuses" else ""
    )


def test_a_loss_within_two_standard_errors_is_not_called_one_nor_none(script):
    rows = [
        outcome("rewinding", "rr-du", seed, mean, 0.80)
        for seed, mean in enumerate((0.90, 0.60, 0.78))
    ]
    (line,) = script.verdicts(script.summary(pd.DataFrame(rows)))
    assert line == (
        "rewinding: rr-du: not told apart from retraining by these seeds at ε 1"
    )


def test_blame_multiplies_to_the_noise(script):
    rows = pd.DataFrame([outcome("rewinding", "rr-du", 0, 0.5, 0.80)])
    (line,) = script.blamed(script.summary(rows))
    assert line.startswith("rr-du loses 30.00 points at ε 1 (noise of length 20 beside")
    assert "sensitivity 0.5 x s(ε, δ) 4 x sqrt(P) 10" in line
