"""The norm bound is never below the derivative of training itself."""

import numpy as np
import pytest
import torch
from networks import blobs
from oracles.training import train
from torch.nn import functional as F

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.record.influence import best_trace, influence_trace

SIZES = [3, 9, 2, 6]
RELAY = ForgetRequest.whole_peer(2)


def losses(p, x, y):
    return F.cross_entropy(x @ p[:18].view(3, 6).T + p[18:], y, reduction="none")


def derivative(run, source, *, h=1e-5):
    """Central difference in the weight of the source's rows, peer by peer."""
    data, local = run.data, run.config.local
    split = [
        slice(a, b) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)
    ]
    ends = []
    for omega in (1 + h, 1 - h):
        keep = [data.keep[s].astype(float) for s in split]
        keep[source] *= omega
        ends.append(
            train(
                run.record.initial,
                losses,
                [(data.store.inputs[s], data.store.labels[s]) for s in split],
                torch.from_numpy(run.topology.weights.toarray()),
                seed=run.config.seed,
                rates=run.record.step_sizes,
                steps=run.record.dynamics.local_steps,
                batch_size=local.batch_size,
                scale=run.record.dynamics.scale,
                keep=keep,
                counted=[data.counted[s] for s in split],
                form=run.config.trainer.form,
                l2=run.model.l2,
                weight_decay=local.weight_decay,
            )
        )
    return ((ends[0] - ends[1]) / (2 * h)).norm(dim=1).numpy()


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize(("rate", "decay"), [(0.005, 0.0), (0.005, 20.0), (0.3, 0.0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_bound_holds_for_training_as_it_was_run(
    form, weighting, rate, decay, steps
):
    data = blobs(SIZES, dtype=np.float64).without(RELAY)
    config = SimulationConfig(
        rounds=5,
        trainer=DSgd(form=form),
        local=LocalSteps(
            batch_size=4, learning_rate=rate, weight_decay=decay, steps=steps
        ),
        peer_weighting=weighting,
        dtype="float64",
        common_init=False,
    )
    run = simulate("path", data, "logistic", config)
    for source in (0, 1):
        trace = influence_trace(run.record, run.topology, source)
        exact = derivative(run, source)
        assert (trace.norms[-1] >= exact * (1 - 1e-6)).all()
        assert (exact > 0).all()


def test_training_with_clipped_softmax_gradients_has_no_such_bound():
    config = SimulationConfig(rounds=3, local=LocalSteps(clip_norm=0.1))
    run = simulate("path", blobs(SIZES), "logistic", config)
    with pytest.raises(UnsupportedRequestError, match="known smoothness"):
        influence_trace(run.record, run.topology, 0)
    assert best_trace(run.record, run.topology, 0).mode == "mixing_power"
