"""Which way the two readings of ManiF-SMC go, on digits (acceptance of the method)."""

import numpy as np
import pytest

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.poison import mislabelled
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.methods.manif_smc import ManifSmc
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

METRICS = ["prediction-js", "forget-accuracy", "retain-accuracy"]


def figures(setting, seed):
    """Metric, then world or variant, then the value."""
    data = PeerData.load("digits", peers=1)
    request = ForgetRequest.class_(3)
    if setting == "mislabel":
        data, request = mislabelled(data, fraction=0.1, seed=seed)
    run = simulate(
        Topology.single(),
        data,
        models.build("mlp", input_shape=(64,), num_classes=10, hidden=(128, 64)),
        SimulationConfig(
            rounds=60,
            seed=seed,
            local=LocalSteps(
                epochs=1,
                batch_size=64,
                learning_rate=0.1,
                lr_schedule="cosine",
                momentum=0.9,
                weight_decay=5e-4,
            ),
            evaluate_every=0,
        ),
    )
    found = {name: {} for name in METRICS}
    for variant in ("pull", "reference"):
        method = ManifSmc(variant=variant, epochs=3)
        outcome = unlearn(run, request, AtPeer(method=method), reference=True)
        for row in evaluate(outcome, METRICS).rows:
            name = variant if row["world"] == "after" else row["world"]
            if row["peer"] == -1 and (variant == "pull" or name == variant):
                where = "retrain" if row["world"] == "reference" else name
                found[row["metric"]][where] = row["value"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["mislabel", "class"])
def test_pulling_nears_retraining_and_the_code_s_loss_goes_away_from_it(setting):
    every = [figures(setting, seed) for seed in range(3)]

    def mean(metric, where):
        return np.mean([found[metric][where] for found in every])

    divergence = {w: mean("prediction-js", w) for w in ("before", "pull", "reference")}
    assert divergence["pull"] < 0.7 * divergence["before"]
    assert divergence["reference"] > divergence["before"]
    forgotten = {w: mean("forget-accuracy", w) for w in every[0]["forget-accuracy"]}
    assert forgotten["pull"] < 0.6 * forgotten["before"]
    assert forgotten["reference"] >= forgotten["before"]
    assert forgotten["retrain"] < 0.02
    assert mean("retain-accuracy", "pull") > 0.985
