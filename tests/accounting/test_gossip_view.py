"""What single peers see of gossip with noise: the light cone, and the linear system."""

import networkx as nx
import numpy as np
import pytest
from oracles.networks import metropolis

from dfl_unlearn.accounting.gossip_view import linear_view_mu, rounds_seen
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    UnknownPeerError,
)

PATH = metropolis([(0, 1), (1, 2), (2, 3)], 4)
STAR = metropolis([(0, i) for i in range(1, 5)], 5)


def simulated(w, source, observer, rounds, form, gains=None):
    """The squared shift over noise, from the recursion itself and a pseudo-inverse.

    ``gains`` multiplies each peer's own model before its noise is added: a gradient
    that depends on the model.
    """
    n = len(w)
    local = np.diag(np.ones(n) if gains is None else gains)
    noise = np.eye(rounds * n).reshape(rounds, n, -1)
    x = np.zeros((n, rounds * n))
    seen = []
    for t in range(rounds):
        y = local @ x + noise[t]
        message, x = (y, w @ y) if form == "atc" else (x, w @ x + (y - x))
        heard = (w[observer] > 0) & (np.arange(n) != observer)
        seen.append(message[heard])
    b = np.concatenate(seen)
    own = np.arange(rounds) * n
    b[:, own + observer] = 0
    a = b[:, own + source]
    m = a.T @ np.linalg.pinv(b @ b.T, rcond=1e-12) @ a
    return np.abs(m).sum()


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("w", [PATH, STAR], ids=["path", "star"])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_it_is_the_view_of_the_recursion(w, form, rounds):
    for source in range(len(w)):
        mu = linear_view_mu(
            w, source=source, rounds=rounds, noise_multiplier=2.0, form=form
        )
        for observer in range(len(w)):
            if observer != source:
                square = simulated(w, source, observer, rounds, form)
                assert mu[observer] ** 2 == pytest.approx(
                    min(square, rounds) / 4, abs=1e-7
                )


def test_a_peer_in_between_hides_what_it_passes_on():
    # One round reaches the neighbour alone, in full. After two, the second peer has
    # heard (x0 + x1 + x2)/3 plus the neighbour's second noise: with its own x2 taken
    # away and x1 known from the first message, 1/3 of x0 under one unit of noise.
    once = linear_view_mu(PATH, source=0, rounds=1, noise_multiplier=1.0)
    np.testing.assert_allclose(once, [1, 1, 0, 0], atol=1e-8)
    twice = linear_view_mu(PATH, source=0, rounds=2, noise_multiplier=1.0)
    assert twice[2] ** 2 == pytest.approx((1 / 9) / (1 / 9 + 1), rel=1e-8)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_nothing_is_seen_outside_the_light_cone(form):
    w = metropolis([(i, i + 1) for i in range(6)], 7)
    for rounds in range(6):
        mu = linear_view_mu(w, source=0, rounds=rounds, noise_multiplier=1.0, form=form)
        seen = rounds_seen(np.arange(7), rounds, form)
        np.testing.assert_array_equal(mu > 0, seen > 0)
        assert (mu**2 <= seen * (1 + 1e-8)).all()


def test_it_falls_with_distance_and_grows_with_rounds():
    graph = nx.cycle_graph(10)
    w = metropolis(list(graph.edges), 10)
    short, long = (
        linear_view_mu(w, source=0, rounds=t, noise_multiplier=3.0) for t in (10, 30)
    )
    assert (np.diff(short[1:6]) < 0).all()
    assert (long > short).all()
    assert long[0] == pytest.approx(np.sqrt(30) / 3)
    np.testing.assert_allclose(short[1:5], short[9:5:-1])


def test_gradients_that_depend_on_models_can_show_more():
    # Why it is no bound for training: peer 1 doubles what it was sent.
    gains = np.array([1.0, 2.0, 1.0, 1.0])
    linear = linear_view_mu(PATH, source=0, rounds=4, noise_multiplier=1.0)
    assert simulated(PATH, 0, 2, 4, "atc", gains) > 1.5 * linear[2] ** 2
    # The light cone stays a bound.
    seen = rounds_seen(np.arange(4), 4)
    assert simulated(PATH, 0, 2, 4, "atc", gains) <= seen[2]


def test_the_rounds_that_are_seen_are_counted():
    np.testing.assert_array_equal(rounds_seen(np.arange(5), 3), [3, 3, 2, 1, 0])
    np.testing.assert_array_equal(rounds_seen(np.arange(5), 3, "cta"), [3, 2, 1, 0, 0])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"source": 4}, UnknownPeerError),
        ({"rounds": -1}, InvalidArgumentError),
        ({"noise_multiplier": 0.0}, InvalidPrivacyParameterError),
        ({"form": "both"}, InvalidArgumentError),
        ({"weights": -PATH}, InvalidArgumentError),
        ({"weights": PATH[:2]}, InvalidArgumentError),
    ],
)
def test_arguments_are_checked(fields, error):
    given = {"weights": PATH, "source": 0, "rounds": 2, "noise_multiplier": 1.0}
    with pytest.raises(error):
        linear_view_mu(**{**given, **fields})
