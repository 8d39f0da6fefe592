import networkx as nx
import numpy as np
import pytest
from networks import full_batch, path4, r4_data, ridge
from oracles.networks import r4

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import UnknownPeerError, UnsupportedRequestError
from dfl_unlearn.record.influence import (
    best_trace,
    influence_trace,
    mixing_power,
)
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.record.training import Dynamics, TrainingRecord
from dfl_unlearn.topology.graph import Topology


def record_of(topology, rounds, *, form="atc", decay=0.0, beta=1.0, rate=1.0, **fields):
    dynamics = {
        "form": form,
        "local_steps": np.ones(topology.n, dtype=np.int64),
        "scale": np.ones(topology.n),
        "decay": decay,
        "momentum": 0.0,
        "convex": True,
        "smoothness": Assumption(name="smoothness", value=beta, source="proven"),
        "clip_norm": None,
    }
    return TrainingRecord(
        plan=RecordPlan(),
        dynamics=Dynamics(**{**dynamics, **fields}),
        step_sizes=np.full(rounds, rate),
    )


def test_the_bound_on_r4_is_the_published_one():
    """decentralized-certified 7, item 2; the scalars come from a plain loop."""
    from oracles.networks import metropolis

    inputs, targets = r4()
    w = metropolis([(0, 1), (1, 2), (2, 3)], 4)
    x = np.zeros((4, 2))
    norms = []
    for _ in range(25):
        error = np.einsum("ijp,ip->ij", inputs, x) - targets
        forget = inputs[2, :2].T @ error[2, :2] / 3
        norms.append(np.linalg.norm(forget))
        gradient = np.einsum("ijp,ij->ip", inputs, error) / 3 + 0.1 * x
        x = w @ x - 0.1 * gradient
    record = record_of(path4(), 25, form="cta", decay=0.1, beta=1.5, rate=0.1)
    trace = influence_trace(record, path4(), 2, gradient_norms=np.array(norms))
    published = [0.1084003554, 0.1244899054, 0.1569689541, 0.1402919844]
    np.testing.assert_allclose(trace.norms[-1], published, atol=5e-11)
    exact = [0.057298888, 0.0701341092, 0.0992697244, 0.0811673726]
    assert (trace.norms[-1] >= exact).all()


def test_a_ring_with_a_unit_source_every_round():
    """decentralized-certified 7, item 6: ring6, ATC, lambda = 0."""
    ring = Topology.from_graph(nx.cycle_graph(6))
    trace = influence_trace(record_of(ring, 3), ring, 0, gradient_norms=np.ones(3))
    expected = [0.925926, 0.777778, 0.222222, 0.074074, 0.222222, 0.777778]
    np.testing.assert_allclose(trace.norms[2], expected, atol=5e-7)
    np.testing.assert_allclose(trace.effective_spread()[2], 4.663504, atol=5e-7)
    np.testing.assert_allclose(trace.distance_to_uniform()[2], 0.327160, atol=5e-7)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (2, [2.444444, 1.333333, 0.222222, 0]),
        (50, [1.149997, 1.049999, 0.930001, 0.870003]),
    ],
)
def test_mean_powers_of_a_path(rounds, expected):
    """decentralized-certified 7, item 6: N * C on path4, u = 0."""
    trace = mixing_power(path4(), 0, rounds)
    np.testing.assert_allclose(4 * trace.norms[-1], expected, atol=5e-7)


@pytest.mark.parametrize(
    ("form", "first"), [("cta", [3, 2, 1, 2]), ("atc", [2, 1, 1, 1])]
)
def test_influence_is_exactly_zero_outside_the_light_cone(form, first):
    """decentralized-certified 7, item 2: first non-zero rounds on path4, u = 2."""
    record = record_of(path4(), 5, form=form, beta=0.5, rate=0.1)
    trace = influence_trace(record, path4(), 2, gradient_norms=np.ones(5))
    reached = (trace.norms > 0).argmax(axis=0) + 1
    np.testing.assert_array_equal(reached, first)


def test_training_records_the_norms_of_the_data_gradients():
    inputs, targets = r4()
    run = simulate(path4(), r4_data(), ridge(), full_batch("cta", rounds=3))
    x, norms = run.record.initial.numpy(), []
    for _ in range(3):
        error = np.einsum("ijp,ip->ij", inputs, x) - targets
        gradient = np.einsum("ijp,ij->ip", inputs, error) / 3
        norms.append(np.linalg.norm(gradient, axis=1))
        x = path4().weights @ x - 0.1 * (gradient + 0.1 * x)
    np.testing.assert_allclose(run.record.gradient_norms, norms, rtol=1e-12)
    np.testing.assert_allclose(run.state.params, x, rtol=1e-12)
    trace = influence_trace(run.record, run.topology, 1)
    assert (trace.norms[-1] > 0).all()
    assert not trace.vacuous.any()


def test_momentum_falls_back_to_the_mixing_power():
    assert best_trace(record_of(path4(), 3, momentum=0.5), path4(), 0).mode == (
        "mixing_power"
    )


def test_the_bound_is_flagged_where_it_grows():
    record = record_of(path4(), 5, beta=40.0, rate=0.1)
    trace = influence_trace(record, path4(), 0, gradient_norms=np.ones(5))
    assert trace.vacuous.all()
    assert not influence_trace(
        record_of(path4(), 5, beta=1.0, rate=0.1), path4(), 0, gradient_norms=np.ones(5)
    ).vacuous.any()


def test_shares_sum_to_one_and_hops_average_them():
    trace = mixing_power(path4(), 0, 6)
    np.testing.assert_allclose(trace.shares().sum(axis=1), 1)
    np.testing.assert_allclose(trace.by_hop(), trace.shares())  # a path: one per hop
    assert trace.front(0.01).tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"convex": False}, "not convex"),
        ({"smoothness": None}, "not convex"),
    ],
)
def test_iterations_without_a_bound_are_refused(fields, reason):
    with pytest.raises(UnsupportedRequestError, match=reason):
        influence_trace(
            record_of(path4(), 3, **fields), path4(), 0, gradient_norms=np.ones(3)
        )


def test_an_unknown_source_is_named():
    record = record_of(path4(), 3)
    with pytest.raises(UnknownPeerError, match=r"0..3, got 7"):
        influence_trace(record, path4(), 7)
