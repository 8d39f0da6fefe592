"""Influence under faults: the derivative of what happened, bounds above it, zeros."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from oracles import faults as oracle

from dfl_unlearn import load_topology
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import (
    Delay,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.engine.influence import (
    best_influence,
    leave_out,
    mixing_of,
    track_influence,
    who_influenced,
)
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.record.influence import influence_trace

SIZES = [6, 9, 5, 12, 7, 8]
N = len(SIZES)
DATA = blobs(SIZES)
PATH = load_topology("path", n=N)
SOURCE, ROUNDS = 1, 9
CHURN = MarkovChurn(p_leave=0.2, p_return=0.4)
CRASH = ScheduledChurn(events=((3, 2, "crash"), (4, 0, "down"), (7, 0, "up")))
LOSS = MessageLoss(p=0.3)
SLOW = Straggler(share=0.4, slowdown=2)

EXACT = [
    ((LOSS,), "symmetric_drop"),
    ((LOSS, CHURN), "self"),
    ((LOSS, CHURN), "push_sum"),
    ((CRASH, SLOW), "symmetric_drop"),
]


def trained(
    models, policy="symmetric_drop", form="atc", momentum=0.0, rate=0.3, **fields
):
    trainer = GradientTracking() if form == "gradient_tracking" else DSgd(form=form)
    config = SimulationConfig(
        rounds=ROUNDS,
        trainer=trainer,
        local=LocalSteps(batch_size=None, learning_rate=rate, momentum=momentum),
        dtype="float64",
        faults=FaultPlan(models=models, weight_policy=policy),
        **fields,
    )
    return simulate(PATH, DATA, "logistic", config)


def moved(run, omega):
    """The final state with a weight on the source's data, by a loop over messages."""
    config = run.config
    start = run.record.initial.numpy().copy()
    arguments = (
        start,
        PATH.weights.toarray(),
        run.faults().at,
        ROUNDS,
        oracle.gradients_of(run, SOURCE, omega),
        config.local.learning_rate,
    )
    if config.trainer.form == "gradient_tracking":
        return oracle.track(*arguments)
    return oracle.train(
        *arguments,
        policy=config.faults.weight_policy,
        oldest=config.faults.oldest,
        form=config.trainer.form,
        momentum=config.local.momentum,
    )


def finite_difference(run):
    return (moved(run, 1 + 1e-5) - moved(run, 1 - 1e-5)) / 2e-5


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize(("models", "policy"), EXACT)
def test_exact_influence_is_the_derivative_of_what_happened(
    models, policy, form, momentum
):
    run = trained(models, policy, form, momentum)
    trace = track_influence(run, SOURCE, vectors=True)
    expected = finite_difference(run)
    error = np.abs(trace.vectors[-1] - expected).max() / np.abs(expected).max()
    assert error < 1e-6
    plain = track_influence(trained((), form=form, momentum=momentum), SOURCE)
    assert not np.allclose(plain.norms[-1], trace.norms[-1], rtol=1e-3)


@pytest.mark.parametrize("models", [(LOSS, CHURN), (SLOW,)])
def test_gradient_tracking_is_differentiated_through_its_faults(models):
    run = trained(models, form="gradient_tracking")
    trace = track_influence(run, SOURCE, vectors=True)
    expected = finite_difference(run)
    error = np.abs(trace.vectors[-1] - expected).max() / np.abs(expected).max()
    assert error < 1e-6


@pytest.mark.parametrize("form", ["atc", "cta", "gradient_tracking"])
def test_the_adjoint_agrees_with_every_source(form):
    models = (LOSS, CHURN, SLOW) if form == "gradient_tracking" else (CRASH, LOSS, SLOW)
    run = trained(models, form=form, momentum=0.0 if form[0] == "g" else 0.6)
    v = torch.linspace(-1, 1, run.model.size, dtype=torch.float64)
    found = who_influenced(run, 2, v)
    for source in range(N):
        vector = track_influence(run, source, vectors=True).vectors[-1][2]
        assert found.values[source] == pytest.approx(
            float(vector @ v.numpy()), rel=1e-9, abs=1e-14
        )


def light_cone(run, source):
    """Whom the data can have reached after each round, by following messages."""
    reached = np.zeros(N, dtype=bool)
    cone = []
    draws, oldest = run.faults(), run.config.faults.oldest
    weights = PATH.weights.toarray()
    sent = []
    for t in range(ROUNDS):
        now = draws.at(t)
        if now.works[source]:
            reached = reached | (np.arange(N) == source)
        sent.insert(0, reached)
        age = oracle.ages(draws.at, weights, t, oldest)
        parts = oracle.matrices(
            weights,
            age,
            run.config.faults.weight_policy,
            np.flatnonzero(now.crashed),
        )
        reached = np.any(
            [(parts[a] @ sent[a].astype(float)) > 0 for a in parts if a < len(sent)],
            axis=0,
        )
        cone.append(reached)
    return np.array(cone)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_felt_outside_the_realized_light_cone(seed):
    models = (LOSS, CHURN, NetworkSplit(start=0, end=5, peers=(0, 1, 2)))
    run = trained(models, seed=seed)
    trace = track_influence(run, SOURCE)
    cone = light_cone(run, SOURCE)
    np.testing.assert_array_equal(trace.norms > 0, cone)
    assert not cone.all()
    for mode in ("norm_bound", "mixing_power"):
        found = track_influence(run, SOURCE, mode).norms > 0
        assert (found >= cone).all()
        assert not found[:5, 3:].any()


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize(
    ("models", "policy"), [*EXACT, ((LOSS, CHURN, SLOW), "symmetric_drop")]
)
def test_the_norm_bound_lies_above_the_derivative(models, policy, form):
    run = trained(models, policy, form, rate=0.02)
    exact = track_influence(run, SOURCE).norms
    bound = track_influence(run, SOURCE, "norm_bound")
    assert (bound.norms * (1 + 1e-12) >= exact).all()
    assert (bound.norms[-1] <= 20 * exact[-1]).all()


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_norms_of_a_round_without_work_move_nothing(form):
    run = trained((CHURN, SLOW), form=form, rate=0.02)
    works = np.array([run.faults().at(t).works[SOURCE] for t in range(ROUNDS)])
    assert 0 < works.sum() < ROUNDS

    def bound(norms):
        return influence_trace(
            run.record,
            run.topology,
            SOURCE,
            gradient_norms=norms,
            mixing=mixing_of(run),
        ).norms

    np.testing.assert_array_equal(bound(np.ones(ROUNDS)), bound(works.astype(float)))


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_the_norm_bound_covers_rows_that_are_late(form):
    late = Delay(probabilities=(0.4, 0.3, 0.3), max_staleness=3)
    run = trained((late, LOSS), "self", form, rate=0.02)
    bound = track_influence(run, SOURCE, "norm_bound").norms[-1]
    exact = np.linalg.norm(finite_difference(run), axis=1)
    assert (bound * (1 + 1e-6) >= exact).all()
    np.testing.assert_array_equal(exact > 0, bound > 0)


def test_leaving_data_out_meets_the_same_faults():
    run = trained((LOSS, CHURN), momentum=0.5)
    request = ForgetRequest.samples(peer=SOURCE, indices=[0])
    left = leave_out(run, request)
    for t in range(ROUNDS):
        assert left.faults().at(t).counts() == run.faults().at(t).counts()
    change = (run.state.params - left.state.params).norm(dim=1).numpy()
    derivative = track_influence(run, request).norms[-1]
    assert change == pytest.approx(derivative, rel=0.5)


def test_what_cannot_be_followed_is_refused():
    late = trained((Delay(probabilities=(0.5, 0.5)),), rate=0.02)
    with pytest.raises(UnsupportedRequestError, match=r"delay.*norm_bound"):
        track_influence(late, SOURCE)
    assert best_influence(late, SOURCE).mode == "norm_bound"
    own = replace(CRASH, restart="checkpoint")
    run = trained((own,))
    with pytest.raises(UnsupportedRequestError, match="own checkpoints"):
        track_influence(run, SOURCE)
    with pytest.raises(UnsupportedRequestError, match="must be 'mixing_power'"):
        track_influence(run, SOURCE, "norm_bound")
    assert best_influence(run, SOURCE).mode == "mixing_power"
    with pytest.raises(UnsupportedRequestError, match="whose network failed"):
        influence_trace(late.record, late.topology, SOURCE)
