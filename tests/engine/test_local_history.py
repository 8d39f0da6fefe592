import math

import numpy as np
import pytest
import torch

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.local_history import history_of
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain


def rows(length, n=12, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 4)))
    return length * x / x.norm(dim=1, keepdim=True), torch.arange(n) % 3


def network(
    *,
    l2=0.1,
    bias=False,
    classes=3,
    lengths=(2.0,),
    norm_bound=None,
    kind=None,
    **local,
):
    pairs = [rows(length, seed=i) for i, length in enumerate(lengths)]
    if classes < 3:
        pairs = [(x, y % 2) for x, y in pairs]
    if not classes:
        pairs = [(x, y.double()) for x, y in pairs]
    data = PeerData.from_tensors(
        pairs, test=pairs[0], num_classes=classes, name="h", norm_bound=norm_bound
    )
    if kind == "mlp":
        model = models.build("mlp", input_shape=(4,), num_classes=3, hidden=(3,))
    else:
        model = models.build(
            "logistic" if classes else "linear",
            input_shape=(4,),
            num_classes=classes,
            l2=l2,
            bias=bias,
        )
    return simulate(
        Topology.single() if len(lengths) == 1 else "ring",
        data,
        model,
        SimulationConfig(rounds=2, local=LocalSteps(**local), dtype="float64"),
    )


def history(**fields):
    return history_of(network(**fields), 0)


def test_public_bounds_on_rows_prove_the_constants():
    found = history(norm_bound=2.5, weight_decay=0.05)
    assert found.smoothness.value == pytest.approx(2.5**2 / 2 + 0.15)
    assert found.gradient_bound.value == pytest.approx(math.sqrt(2) * 2.5)
    assert found.strong_convexity.value == pytest.approx(0.15)
    for constant in (
        found.smoothness,
        found.gradient_bound,
        found.strong_convexity,
    ):
        assert (constant.source, constant.state) == ("proven", "held")


def test_a_bias_lengthens_the_rows():
    found = history(norm_bound=2.0, bias=True, l2=0.0)
    assert found.smoothness.value == pytest.approx(5 / 2)
    assert found.strong_convexity.value == 0


def test_what_was_looked_up_in_the_rows_is_assumed():
    found = history()
    assert found.smoothness.value == pytest.approx(2.0**2 / 2 + 0.1)
    assert found.smoothness.source == found.gradient_bound.source == "assumed"
    assert "norm_bound" in found.smoothness.note
    assert found.strong_convexity.source == "proven"  # lambda is public


def test_only_the_peers_own_rows_are_looked_at():
    found = history(lengths=(2.0, 50.0, 1.0))
    assert found.smoothness.value == pytest.approx(2.0**2 / 2 + 0.1)
    assert found.gossip


def test_clipping_bounds_gradients_and_takes_convexity_from_softmax():
    found = history(norm_bound=2.0, clip_norm=0.5)
    assert (found.gradient_bound.value, found.gradient_bound.source) == (
        0.5,
        "clipped",
    )
    assert found.smoothness.value == pytest.approx(2.1)
    assert found.strong_convexity is None
    loose = history(norm_bound=2.0, clip_norm=100.0)
    assert loose.gradient_bound.source == "proven"
    assert loose.strong_convexity.value == pytest.approx(0.1)
    clipped = history(clip_norm=0.5)
    assert clipped.gradient_bound.source == "clipped"
    assert clipped.smoothness.source == "assumed"


def test_a_clipped_single_output_stays_convex():
    found = history(classes=0, norm_bound=2.0, clip_norm=0.5)
    assert found.strong_convexity.value == pytest.approx(0.1)
    assert found.smoothness.value == pytest.approx(4.1)
    assert history(classes=0, norm_bound=2.0).gradient_bound is None


def test_a_network_has_no_constants_but_what_it_clips():
    found = history(kind="mlp")
    assert (found.smoothness, found.gradient_bound) == (None, None)
    found = history(kind="mlp", clip_norm=0.5)
    assert found.gradient_bound.source == "clipped"
    assert found.smoothness is None
    assert found.strong_convexity is None


def test_after_a_request_the_recipe_is_left_without_states():
    run = network(batch_size=5, lr_schedule="cosine", steps=3)
    request = ForgetRequest.samples(peer=0, indices=[1])
    left = unlearn(run, request, Retrain()).as_run()
    before, after = history_of(run, 0), history_of(left, 0)
    assert before.checkpoints
    assert not after.checkpoints
    assert (after.steps, after.samples) == (before.steps, before.samples) == (6, 12)
    np.testing.assert_array_equal(after.rates, before.rates)
    for step in range(6):
        np.testing.assert_array_equal(after.batch_rows(step), before.batch_rows(step))
    elsewhere = TrainedRun.from_states(
        run.topology, run.data, run.model, run.state.params
    )
    assert history_of(elsewhere, 0) is None
    left = unlearn(elsewhere, request, FineTune(rounds=1)).as_run()
    assert history_of(left, 0) is None
