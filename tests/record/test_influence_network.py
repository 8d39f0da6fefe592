"""What the network alone says about influence: weights, matrix, light cone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import full_batch, path4

from dfl_unlearn import PeerData, load_topology
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.influence import (
    first_contact,
    influence_matrix,
    mixing_power,
    resolvent_weights,
)

WEIGHTS = {
    "atc": [0.8255014718, 0.9835762217, 1.0746762055, 1.1162461011],
    "cta": [0.7866362501, 0.9282307751, 1.2369068396, 1.0482261353],
}


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_path4_gives_the_published_weights(form):
    found = resolvent_weights(path4(), 2, 0.1, 0.6, form)
    np.testing.assert_allclose(found, WEIGHTS[form], atol=5e-11)


def test_the_curvature_of_r4_gives_the_published_weights():
    found = resolvent_weights(path4(), 2, 0.1, 0.6068255507, "cta")
    published = [0.7847152989, 0.9275708869, 1.2392885892, 1.0484252249]
    np.testing.assert_allclose(found, published, atol=5e-10)


def response(form, h=0.6):
    """How a change at peer 2 moves D-SGD on (h/2) x^2, the mean moving by 1."""
    a = np.sqrt(h)
    ends = []
    for kick in (0.0, 4.0):  # the mean of the minimizers moves by kick / 4
        pairs = [
            (torch.full((1, 1), a, dtype=torch.float64), torch.tensor([a * y]))
            for y in [0.0, 0.0, kick, 0.0]
        ]
        pairs = [(x, y.double()) for x, y in pairs]
        data = PeerData.from_tensors(pairs, test=pairs[0])
        model = models.build(
            "linear", input_shape=(1,), num_classes=0, l2=0.0, bias=False
        )
        run = simulate(path4(), data, model, full_batch(form, rounds=2000))
        ends.append(run.state.params[:, 0].numpy())
    return ends[1] - ends[0]


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_the_weights_are_what_training_answers(form):
    found = resolvent_weights(path4(), 2, 0.1, 0.6, form)
    np.testing.assert_allclose(response(form), found, rtol=1e-10)


@given(
    n=st.integers(2, 20),
    seed=st.integers(0, 2**20),
    form=st.sampled_from(["atc", "cta"]),
    step=st.floats(1e-4, 0.9),
)
def test_weights_are_positive_and_sum_to_the_peers(n, seed, form, step):
    topology = load_topology("erdos-renyi", n=n, p=0.6, seed=seed % 50)
    found = resolvent_weights(topology, seed % n, 1.0, step, form)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(n, rel=1e-9)


def test_small_steps_reach_everybody_evenly():
    found = resolvent_weights(load_topology("ring", n=9), 4, 1e-6, 1.0)
    np.testing.assert_allclose(found, 1.0, atol=1e-4)


def test_weights_refuse_what_has_no_meaning():
    with pytest.raises(UnknownPeerError, match="got 4"):
        resolvent_weights(path4(), 4, 0.1, 1.0)
    with pytest.raises(InvalidArgumentError, match=r"got 2 \* 0.6"):
        resolvent_weights(path4(), 0, 2.0, 0.6)


@pytest.mark.parametrize("name", ["ring", "star", "exponential", "torus"])
@pytest.mark.parametrize("rounds", [1, 2, 7, 300])
def test_the_matrix_holds_every_peers_mixing_power(name, rounds):
    topology = load_topology(name, n=9)
    matrix = influence_matrix(topology, rounds)
    for source in range(9):
        expected = mixing_power(topology, source, rounds).norms[-1]
        np.testing.assert_allclose(matrix[:, source], expected, atol=1e-13)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)


def test_path4_gives_the_published_shares():
    for rounds, shares in (
        (2, [2.444444, 1.333333, 0.222222, 0.0]),
        (50, [1.149997, 1.049999, 0.930001, 0.870003]),
    ):
        matrix = influence_matrix(path4(), rounds)
        np.testing.assert_allclose(4 * matrix[:, 0], shares, atol=5e-7)


def test_the_matrix_is_exactly_zero_outside_the_light_cone():
    topology = load_topology("path", n=12)
    hops = np.stack([topology.hops(i) for i in range(12)])
    for rounds in (1, 4, 10):
        matrix = influence_matrix(topology, rounds)
        assert (matrix[hops > rounds] == 0).all()
        assert (matrix[hops <= rounds] > 0).all()


class Alternating:
    n, connected_within, stochastic = 6, 1, "doubly"

    def __init__(self):
        self.two = load_topology("ring", n=6), load_topology("star", n=6)

    def at(self, t):
        return self.two[t % 2]


def test_the_matrix_of_a_changing_network_multiplies_its_rounds():
    schedule = Alternating()
    w = [schedule.at(t).weights.toarray() for t in range(3)]
    expected = (w[2] + w[2] @ w[1] + w[2] @ w[1] @ w[0]) / 3
    np.testing.assert_allclose(influence_matrix(schedule, 3), expected, rtol=1e-13)


def test_first_contact_counts_from_the_source():
    assert first_contact(path4(), 2, "cta").tolist() == [3, 2, 1, 2]
    assert first_contact(path4(), 2, "atc").tolist() == [2, 1, 1, 1]
    with pytest.raises(InvalidArgumentError, match="'dsgd'"):
        first_contact(path4(), 2, "dsgd")
