"""Which way the two readings of ManiF-SMC go, on digits (acceptance of the method)."""

import numpy as np
import pytest

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.poison import mislabelled
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import MissingDataError
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.methods.manif_smc import ManifSmc
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

METRICS = ["prediction-js", "forget-accuracy", "retain-accuracy"]


def training(data, hidden, rounds, seed):
    return simulate(
        Topology.single(),
        data,
        models.build(
            "mlp",
            input_shape=data.store.inputs.shape[1:],
            num_classes=10,
            hidden=hidden,
        ),
        SimulationConfig(
            rounds=rounds,
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


def figures(run, request):
    """Metric, then world or variant, then the value."""
    found = {name: {} for name in METRICS}
    for variant in ("pull", "reference"):
        method = ManifSmc(variant=variant, epochs=3)
        outcome = unlearn(run, request, AtPeer(method=method), reference=True)
        for row in evaluate(outcome, METRICS).rows:
            if row["peer"] == -1:
                where = {"after": variant, "reference": "retrain"}
                name = where.get(row["world"], row["world"])
                found[row["metric"]][name] = row["value"]
    return found


def means(every):
    """Mean over seeds of the same structure."""
    return {
        metric: {w: np.mean([found[metric][w] for found in every]) for w in worlds}
        for metric, worlds in every[0].items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["mislabel", "class"])
def test_pulling_nears_retraining_and_the_code_s_loss_goes_away_from_it(setting):
    every = []
    for seed in range(3):
        data, request = PeerData.load("digits", peers=1), ForgetRequest.class_(3)
        if setting == "mislabel":
            data, request = mislabelled(data, fraction=0.1, seed=seed)
        every.append(figures(training(data, (128, 64), 60, seed), request))
    found = means(every)
    divergence, forgotten = found["prediction-js"], found["forget-accuracy"]
    assert divergence["pull"] < 0.7 * divergence["before"]
    assert divergence["reference"] > divergence["before"]
    assert forgotten["pull"] < 0.6 * forgotten["before"]
    assert forgotten["reference"] >= forgotten["before"]
    assert forgotten["retrain"] < 0.02
    assert found["retain-accuracy"]["pull"] > 0.985


@pytest.mark.slow
@pytest.mark.data
def test_pulling_nears_retraining_on_wrong_labels_of_mnist():
    try:
        data = PeerData.load("mnist", 1, "by-size", sizes=[2000])
    except MissingDataError as error:
        pytest.skip(str(error))
    data, request = mislabelled(data, fraction=0.1)
    found = figures(training(data, (256, 64), 30, 0), request)
    divergence, forgotten = found["prediction-js"], found["forget-accuracy"]
    assert divergence["pull"] < 0.7 * divergence["before"]
    assert divergence["pull"] < 0.8 * divergence["reference"]
    assert forgotten["pull"] < 0.7 * forgotten["before"]
    assert found["retain-accuracy"]["pull"] > 0.98
