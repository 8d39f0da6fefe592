"""Random plans on random networks: training and influence are what messages say."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import blobs
from oracles import faults as oracle

from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedRequestError
from dfl_unlearn.topology.graph import Topology

ROUNDS = 6


@st.composite
def networks(draw):
    """A connected graph of 2 to 8 peers."""
    n = draw(st.integers(2, 8))
    graph = nx.random_labeled_tree(n, seed=draw(st.integers(0, 999)))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    graph.add_edges_from((a, b) for a, b in draw(st.lists(pairs, max_size=6)) if a != b)
    return Topology.from_graph(graph)


@st.composite
def plans(draw, n):
    share = st.floats(0, 0.8)
    peer, when = st.integers(0, n - 1), st.integers(0, ROUNDS)
    event = st.tuples(when, peer, st.sampled_from(["up", "down", "leave", "crash"]))
    model = st.one_of(
        st.builds(MarkovChurn, p_leave=share, p_return=share),
        st.builds(MessageLoss, p=share),
        st.builds(Duplicate, p=share),
        st.builds(Straggler, share=share, slowdown=st.integers(1, 4)),
        st.builds(
            ScheduledChurn, events=st.lists(event, min_size=1, max_size=4).map(tuple)
        ),
        st.builds(
            NetworkSplit,
            start=st.integers(0, 2),
            end=st.integers(3, 6),
            peers=peer.map(lambda i: (i,)),
        ),
        st.integers(0, 4).map(
            lambda d: Delay(probabilities=(1 / (d + 1),) * (d + 1), max_staleness=3)
        ),
    )
    try:
        return FaultPlan(
            models=draw(st.lists(model, min_size=1, max_size=3).map(tuple)),
            weight_policy=draw(st.sampled_from(["symmetric_drop", "self", "push_sum"])),
        )
    except InvalidArgumentError:
        return assume(False)


def check(draw):
    """One random plan on a random network, in all that can be compared."""
    topology = draw(networks())
    n = topology.n
    form = draw(st.sampled_from(["atc", "cta"]))
    momentum = draw(st.sampled_from([0.0, 0.7]))
    config = SimulationConfig(
        rounds=ROUNDS,
        seed=draw(st.integers(0, 2**32)),
        trainer=DSgd(form=form),
        local=LocalSteps(batch_size=None, learning_rate=0.2, momentum=momentum),
        dtype="float64",
        common_init=False,
        block_peers=3,
        faults=draw(plans(n)),
    )
    run = simulate(topology, blobs([5 + i for i in range(n)]), "logistic", config)
    source = draw(st.integers(0, n - 1))

    def written_out(omega):
        return oracle.train(
            run.record.initial.numpy(),
            topology.weights.toarray(),
            run.faults().at,
            ROUNDS,
            oracle.gradients_of(run, source, omega),
            0.2,
            policy=config.faults.weight_policy,
            oldest=config.faults.oldest,
            form=form,
            momentum=momentum,
        )

    np.testing.assert_allclose(run.state.params, written_out(1.0), rtol=1e-9, atol=1e-9)
    derivative = (written_out(1 + 1e-5) - written_out(1 - 1e-5)) / 2e-5
    try:
        found = track_influence(run, source, vectors=True).vectors[-1]
    except UnsupportedRequestError:
        assert config.faults.oldest > 0
        return
    scale = np.abs(derivative).max()
    assert np.abs(found - derivative).max() <= 1e-6 * scale + 1e-9
    moved = np.linalg.norm(derivative, axis=1)
    assert (moved[np.linalg.norm(found, axis=1) == 0] <= 1e-9).all()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_plans_do_what_a_loop_over_messages_does(data):
    check(data.draw)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_many_random_plans_do_what_a_loop_over_messages_does(data):
    check(data.draw)
