"""What gossip leaves of a correction, against powers of W and whole simulations."""

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import UnknownPeerError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.dilution import (
    dilution_weights,
    follow_correction,
    gossip_once,
    mean_losses,
)
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

SIZES = [30, 20, 25, 20, 24, 22]
REQUEST = ForgetRequest.samples(peer=2, indices=[0, 3, 5, 8], request_id="r0")


@pytest.fixture(scope="module", params=["ring", "star", "complete"])
def run(request):
    return simulate(
        request.param,
        blobs(SIZES, dtype=np.float64),
        models.build("mlp", input_shape=(6,), num_classes=3, hidden=(5,)),
        SimulationConfig(
            rounds=4,
            local=LocalSteps(batch_size=10, learning_rate=0.1, momentum=0.5),
            evaluate_every=0,
            dtype="float64",
        ),
    )


def test_the_ring_of_eight_has_the_known_powers():
    left = dilution_weights(load_topology("ring", n=8), 0, 50)
    known = {
        1: 0.33333333,
        2: 0.33333333,
        3: 0.25925926,
        5: 0.20987654,
        10: 0.15348270,
        20: 0.12824361,
        50: 0.12500479,
    }
    assert {r: round(float(left[r, 0]), 8) for r in known} == known


@pytest.mark.parametrize("name", ["ring", "star", "complete", "erdos-renyi"])
def test_the_change_tends_to_one_nth_everywhere(name):
    topology = load_topology(name, n=9)
    left = dilution_weights(topology, 4, 400)
    np.testing.assert_allclose(left.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(left[-1], 1 / 9, rtol=1e-6)
    dense = np.linalg.matrix_power(topology.weights.toarray(), 7)
    np.testing.assert_allclose(left[7], dense[:, 4], rtol=1e-12)


def test_a_peer_that_is_not_there_is_named():
    with pytest.raises(UnknownPeerError, match="9"):
        dilution_weights(load_topology("ring", n=8), 9, 1)


def test_mixing_leaves_what_the_powers_say(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=FineTune(epochs=2)))
    found = follow_correction(run, outcome.request, outcome.state.params, 6)
    assert found.change > 1e-3
    assert found.error < 1e-12
    expected = dilution_weights(run.topology, 2, 6)
    np.testing.assert_allclose(found.left, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.hops, run.topology.hops(2))


def test_training_on_bends_the_curve_away_from_the_powers(run):
    outcome = unlearn(run, REQUEST, AtPeer(method=FineTune(epochs=2)))
    found = follow_correction(run, outcome.request, outcome.state.params, 4, "train")
    assert found.error > 1e-4


def test_the_protocol_writes_the_same_curve(run):
    method = FineTune(epochs=2)
    at_once = unlearn(run, REQUEST, AtPeer(method=method))
    outcome = unlearn(run, REQUEST, AtPeer(method=method, gossip_rounds=5))
    found = follow_correction(run, outcome.request, at_once.state.params, 5)
    trace = outcome.trace
    np.testing.assert_allclose(
        trace["peers_change"], found.left * found.change, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_array_equal(trace["peers_forget_loss"], found.forget_loss)


def test_rounds_one_by_one_are_the_rounds_at_once(run):
    """Bit for bit, momentum and batches included."""
    data = run.data.without(REQUEST.resolve(run.data))
    together, gradients = continue_training(run, data, run.state, 3)
    state, taken = run.state, 0
    for _ in range(3):
        state, more = gossip_once(run, data, state, "train")
        taken += more
    assert torch.equal(state.params, together.params)
    assert (state.round, taken) == (together.round, gradients)


def test_losses_are_those_of_each_model(run):
    batch = run.data.local(0)
    expected = [
        float(run.model.loss(row, batch)) - run.model.l2 / 2 * float(row @ row)
        for row in run.state.params
    ]
    found = mean_losses(run.model, run.state.params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_mixing_does_not_change_the_mean(run):
    data = run.data.without(REQUEST.resolve(run.data))
    state = PeerState(params=run.state.params)
    mixed, gradients = gossip_once(run, data, state, "mix")
    assert gradients == 0
    torch.testing.assert_close(mixed.mean(), state.mean(), rtol=1e-12, atol=1e-12)
