"""Exact influence: published numbers, finite differences, the light cone, refusals."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs, full_batch, path4, r4_data, r4_request, ridge
from oracles.training import track, train
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from dfl_unlearn import PeerData, load_topology
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.influence import leave_out, track_influence, who_influenced
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingRecordError,
    ReplayDivergedError,
    UnknownPeerError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.influence import first_contact, influence_trace
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.graph import Topology

NORMS = {
    "cta": [0.057298888, 0.0701341092, 0.0992697244, 0.0811673726],
    "atc": [0.0614145157, 0.0764694862, 0.0851039314, 0.0890987205],
}
LEAVE_OUT = [0.0607495782, 0.0748482645, 0.1065106815, 0.0869980246]
BOUND = [0.1084003554, 0.1244899054, 0.1569689541, 0.1402919844]
SIZES = [3, 9, 2, 6, 5]
TRACKER = GradientTracking()


TRACKED = [
    [0.0021513186, -0.0767811717],
    [0.0019994751, -0.0768819494],
    [0.0017167689, -0.0770676713],
    [0.0015035204, -0.0772202546],
]


def r4_run(form):
    model = ridge()
    model.init = lambda rng: torch.zeros(2, dtype=torch.float64)
    return simulate(path4(), r4_data(), model, config_of(form))


def config_of(form, **fields):
    """Full batches; a form of D-SGD, or gradient tracking."""
    if form == "gradient_tracking":
        return replace(full_batch(**fields), trainer=TRACKER)
    return full_batch(form, **fields)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_r4_gives_the_published_norms(form):
    trace = track_influence(r4_run(form), r4_request("fixed"))
    np.testing.assert_allclose(trace.norms[-1], NORMS[form], atol=5e-11)
    assert trace.mode == "exact"
    assert not trace.vacuous.any()


def test_r4_gradient_tracking_gives_the_published_derivative():
    trace = track_influence(
        r4_run("gradient_tracking"), r4_request("fixed"), vectors=True
    )
    np.testing.assert_allclose(trace.vectors[-1], TRACKED, atol=5e-11)


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("cta", [3, 2, 1, 2]),
        ("atc", [2, 1, 1, 1]),
        ("gradient_tracking", [2, 1, 1, 1]),
    ],
)
def test_r4_reaches_every_peer_in_the_published_round(form, first):
    trace = track_influence(r4_run(form), r4_request("fixed"))
    arrived = trace.rounds[(trace.norms > 0).argmax(axis=0)]
    np.testing.assert_array_equal(arrived, first)
    np.testing.assert_array_equal(first_contact(path4(), 2, form), first)
    for peer, t in enumerate(first):  # exactly zero before, never again after
        assert (trace.norms[: t - 1, peer] == 0).all()
        assert (trace.norms[t - 1 :, peer] > 0).all()


def test_r4_leave_out_and_the_bound_are_as_published():
    run, request = r4_run("cta"), r4_request("fixed")
    left = leave_out(run, request)
    moved = (run.state.params - left.state.params).norm(dim=1)
    np.testing.assert_allclose(moved, LEAVE_OUT, atol=5e-11)
    bound = influence_trace(
        run.record, run.topology, 2, gradient_norms=forget_norms(run)
    )
    np.testing.assert_allclose(bound.norms[-1], BOUND, atol=5e-11)
    exact = track_influence(run, request).norms
    assert (bound.norms * (1 + 1e-12) >= exact).all()


def forget_norms(run):
    """Norms of the forget set's part of peer 2's gradients along the run."""
    rows, norms = run.data.rows(2), []
    for t in range(run.config.rounds):
        state = run.record.initial
        if t:
            config = replace(run.config, rounds=t)
            state = simulate(run.topology, run.data, run.model, config).state.params
        x = run.data.store.inputs[rows][:2]
        error = x @ state[2] - run.data.store.labels[rows][:2]
        norms.append(float((x.T @ error / 3).norm()))
    return np.array(norms)


def softmax_losses(p, x, y):
    return F.cross_entropy(x @ p[:18].view(3, 6).T + p[18:], y, reduction="none")


def mlp_losses(p, x, y):
    hidden = torch.tanh(x @ p[:24].view(4, 6).T + p[24:28])
    logits = hidden @ p[28:40].view(3, 4).T + p[40:]
    return F.cross_entropy(logits, y, reduction="none")


def tanh_mlp():
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    return FlatModel.from_module(module, "cross-entropy", l2=0.02)


MODELS = {"softmax": ("logistic", softmax_losses), "tanh": (tanh_mlp, mlp_losses)}


def trained(model, form, steps=1, data=None, **fields):
    """Unequal peers, minibatches, l2 and weight decay; five rounds."""
    local = {
        "batch_size": 4,
        "learning_rate": 0.2,
        "weight_decay": 0.03,
        "steps": steps,
    }
    shape = {k: fields.pop(k) for k in list(fields) if hasattr(LocalSteps, k)}
    config = SimulationConfig(
        trainer=TRACKER if form == "gradient_tracking" else DSgd(form=form),
        local=LocalSteps(**{**local, **shape}),
        **{"rounds": 5, "dtype": "float64", "common_init": False, **fields},
    )
    built = MODELS[model][0]
    return simulate(
        load_topology("path", n=len(SIZES)),
        blobs(SIZES, dtype=np.float64) if data is None else data,
        built if isinstance(built, str) else built(),
        config,
    )


def differences(run, rows, losses, *, h=1e-5):
    """Central difference of a second implementation in the weight of some rows."""
    data, local = run.data, run.config.local
    split = [
        slice(a, b) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)
    ]
    steps = {
        "steps": run.record.dynamics.local_steps,
        "form": run.config.trainer.form,
        "momentum": local.momentum,
    }
    tracking = run.config.trainer is TRACKER
    ends = []
    for omega in (1 + h, 1 - h):
        keep = np.where(rows, omega, 1.0) * data.keep
        ends.append(
            (track if tracking else train)(
                run.record.initial,
                losses,
                [(data.store.inputs[s], data.store.labels[s]) for s in split],
                torch.from_numpy(run.topology.weights.toarray()),
                seed=run.config.seed,
                rates=run.record.step_sizes,
                batch_size=local.batch_size,
                scale=run.record.dynamics.scale,
                keep=[keep[s] for s in split],
                counted=[data.counted[s] for s in split],
                l2=run.model.l2,
                weight_decay=local.weight_decay,
                **({} if tracking else steps),
            )
        )
    return ((ends[0] - ends[1]) / (2 * h)).numpy()


CASES = [
    {"steps": 1},
    {"steps": 3},
    {"steps": 3, "momentum": 0.8},
    {"steps": 2, "peer_weighting": "size", "lr_schedule": "cosine"},
    {"epochs": 1.0, "batch_size": 2, "lr_schedule": "inverse_sqrt"},
    {"batch_size": None, "momentum": 0.5},
]


@pytest.mark.parametrize("model", ["softmax", "tanh"])
@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("fields", CASES, ids=str)
def test_exact_influence_is_the_derivative_of_training(model, form, fields):
    run = trained(model, form, **fields)
    exact = track_influence(run, 1, vectors=True, every=100).vectors[-1]
    numeric = differences(run, run.data.owner == 1, MODELS[model][1])
    assert np.linalg.norm(exact - numeric) <= 1e-6 * np.linalg.norm(numeric)


@pytest.mark.parametrize("model", ["mlp", "small-cnn"])
def test_networks_with_kinks_are_differentiated_piece_by_piece(model):
    data = blobs([4, 5, 3], features=16, dtype=np.float64)
    local = LocalSteps(batch_size=3, learning_rate=0.1, steps=2)
    config = SimulationConfig(rounds=3, local=local, dtype="float64")
    run = simulate("path", data, model, config)

    def losses(p, x, y):
        return run.model.sample_losses(p, (x, y))

    exact = track_influence(run, 1, vectors=True).vectors[-1]
    numeric = differences(run, run.data.owner == 1, losses, h=1e-6)
    assert np.linalg.norm(exact - numeric) <= 1e-6 * np.linalg.norm(numeric)


@pytest.mark.parametrize("model", ["softmax", "tanh"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"batch_size": None, "peer_weighting": "size", "lr_schedule": "cosine"}],
    ids=str,
)
def test_exact_influence_is_the_derivative_of_gradient_tracking(model, fields):
    run = trained(model, "gradient_tracking", **fields)
    exact = track_influence(run, 1, vectors=True, every=100).vectors[-1]
    numeric = differences(run, run.data.owner == 1, MODELS[model][1])
    assert np.linalg.norm(exact - numeric) <= 1e-6 * np.linalg.norm(numeric)


@pytest.mark.parametrize("form", ["atc", "cta", "gradient_tracking"])
def test_part_of_a_peers_data_in_a_network_that_forgot_before(form):
    forgotten = blobs(SIZES, dtype=np.float64).without(ForgetRequest.whole_peer(2))
    steps = 1 if form == "gradient_tracking" else 2
    run = trained("softmax", form, steps=steps, data=forgotten)
    request = ForgetRequest.samples(3, indices=[0, 4, 5], normalization="fixed")
    trace = track_influence(run, request, vectors=True)
    numeric = differences(run, request.mask(run.data), softmax_losses)
    np.testing.assert_allclose(trace.vectors[-1], numeric, rtol=1e-6, atol=1e-10)


def test_a_local_mean_answers_by_its_divisor():
    # Under local_mean the batch is a weighted mean: compare with weights that sum to
    # the same, done by hand through two fixed problems.
    run = trained("softmax", "atc", batch_size=None)
    rows = [0, 4]
    mean = ForgetRequest.samples(3, indices=rows)
    fixed = ForgetRequest.samples(3, indices=rows, normalization="fixed")
    whole = track_influence(run, 3, vectors=True).vectors[-1]
    part = track_influence(run, fixed, vectors=True).vectors[-1]
    exact = track_influence(run, mean, vectors=True).vectors[-1]
    np.testing.assert_allclose(exact, part - 2 / 6 * whole, atol=1e-13)


def test_a_class_at_several_peers_is_the_sum_of_its_owners_parts():
    run = trained("tanh", "cta", steps=2)
    request = ForgetRequest.class_(1)
    resolved = request.resolve(run.data)
    fixed = replace(resolved, normalization="fixed")
    trace = track_influence(run, fixed, vectors=True)
    parts = [
        track_influence(
            run,
            ForgetRequest.samples(p, indices=rows, normalization="fixed"),
            vectors=True,
        ).vectors
        for p, rows in zip(resolved.peers, resolved.items, strict=True)
    ]
    np.testing.assert_allclose(trace.vectors, sum(parts), atol=1e-13)
    assert (trace.hops[list(resolved.peers)] == 0).all()


@pytest.mark.parametrize("model", ["softmax", "tanh"])
@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_adjoint_gives_every_source_at_once(model, form, momentum):
    run = trained(model, form, steps=3, momentum=momentum, rounds=7)
    found = who_influenced(run, 1)
    forward = [
        track_influence(run, u, vectors=True, every=100).vectors[-1, 1]
        @ found.direction
        for u in range(len(SIZES))
    ]
    np.testing.assert_allclose(found.values, forward, rtol=1e-9, atol=1e-13)
    assert np.linalg.norm(found.direction) == pytest.approx(1)


@pytest.mark.parametrize("model", ["softmax", "tanh"])
def test_the_adjoint_of_gradient_tracking_gives_every_source(model):
    data = blobs(SIZES, dtype=np.float64).without(ForgetRequest.whole_peer(2))
    run = trained(model, "gradient_tracking", data=data, rounds=7)
    found = who_influenced(run, 1)
    forward = [
        track_influence(run, u, vectors=True).vectors[-1, 1] @ found.direction
        for u in range(len(SIZES))
    ]
    np.testing.assert_allclose(found.values, forward, rtol=1e-9, atol=1e-13)


def test_the_adjoint_of_the_test_loss_follows_its_gradient():
    run = trained("softmax", "atc")
    found = who_influenced(run, 2, "test_loss")
    row = run.state.params[2].clone().requires_grad_()
    run.model.sample_losses(row, run.data.test).mean().backward()
    np.testing.assert_allclose(found.direction, row.grad, rtol=1e-12)
    given = who_influenced(run, 2, row.grad)
    np.testing.assert_array_equal(given.values, found.values)
    with pytest.raises(InvalidArgumentError, match=r"shape \(21,\), got \(3,\)"):
        who_influenced(run, 2, torch.ones(3))


@pytest.mark.parametrize("form", ["atc", "cta", "gradient_tracking"])
def test_nothing_is_felt_outside_the_light_cone(form):
    data = blobs([4] * 9, dtype=np.float64)
    config = config_of(form, rounds=8)
    run = simulate(load_topology("path", n=9), data, "logistic", config)
    trace = track_influence(run, 0)
    reached = trace.rounds[:, None] >= first_contact(run.topology, 0, form)
    np.testing.assert_array_equal(trace.norms > 0, reached)
    felt = who_influenced(run, 8).values != 0
    np.testing.assert_array_equal(felt, first_contact(run.topology, 8, form) <= 8)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_influence_follows_the_direction_of_one_way_edges(form):
    topology = load_topology("exponential", n=11)
    data = blobs([4] * 11, dtype=np.float64)
    run = simulate(topology, data, "logistic", full_batch(form, rounds=4))
    trace = track_influence(run, 3)
    reached = trace.rounds[:, None] >= first_contact(topology, 3, form)
    np.testing.assert_array_equal(trace.norms > 0, reached)
    found = who_influenced(run, 6)
    forward = track_influence(run, 3, vectors=True).vectors[-1, 6]
    assert found.values[3] == pytest.approx(forward @ found.direction)


class Alternating:
    """A ring and a star, in turn."""

    n, connected_within, stochastic = 6, 1, "doubly"

    def __init__(self):
        self.two = load_topology("ring", n=6), load_topology("star", n=6)

    def at(self, t):
        return self.two[t % 2]


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_a_changing_network_carries_influence_by_its_rounds(form):
    data = blobs([4] * 6, dtype=np.float64)
    config = full_batch(form, schedule=Alternating())
    run = simulate(load_topology("ring", n=6), data, "logistic", config)
    exact = track_influence(run, 1, vectors=True)
    found = who_influenced(run, 3)
    assert found.values[1] == pytest.approx(exact.vectors[-1, 3] @ found.direction)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_bounds_follow_a_changing_network_too(form):
    data, schedule = blobs([4] * 6, dtype=np.float64), Alternating()
    config = full_batch(form, schedule=schedule)
    run = simulate(load_topology("ring", n=6), data, "logistic", config)
    power = track_influence(run, 1, "mixing_power")
    total, unit = np.zeros(6), np.eye(6)[1]
    for t in range(config.rounds):
        total = schedule.at(t).weights @ (total + unit)
        np.testing.assert_allclose(power.norms[t], total / (t + 1), rtol=1e-12)
    bound = track_influence(run, 1, "norm_bound").norms
    exact = track_influence(run, 1).norms
    assert (bound >= exact - 1e-12).all()
    assert (bound[exact == 0] == 0).all()


def test_relabelled_peers_relabel_the_influence():
    data, order = blobs([4] * 6, dtype=np.float64), [3, 0, 5, 1, 4, 2]
    graph = nx.barbell_graph(3, 0)
    config = full_batch("atc", rounds=6)
    plain = simulate(Topology.from_graph(graph), data, "logistic", config)
    moved = nx.relabel_nodes(graph, {p: i for i, p in enumerate(order)})
    ordered = nx.Graph()
    ordered.add_nodes_from(range(6))
    ordered.add_edges_from(moved.edges)
    parts = [(data.local(p).inputs, data.local(p).labels) for p in order]
    other = simulate(
        Topology.from_graph(ordered),
        PeerData.from_tensors(parts, test=data.test, num_classes=3),
        "logistic",
        config,
    )
    first = track_influence(plain, 5).norms
    second = track_influence(other, order.index(5)).norms
    np.testing.assert_allclose(second, first[:, order], rtol=1e-9, atol=1e-15)


def test_a_float32_run_is_replayed_in_float32_and_differentiated_in_float64():
    run = trained("softmax", "atc", steps=3, dtype="float32")
    trace = track_influence(run, 1)
    assert trace.norms.dtype == np.float64
    double = trained("softmax", "atc", steps=3)
    np.testing.assert_allclose(
        trace.norms, track_influence(double, 1).norms, rtol=1e-4, atol=1e-9
    )


def test_every_keeps_some_rounds_and_the_last():
    run = trained("softmax", "cta", rounds=7)
    whole = track_influence(run, 1)
    some = track_influence(run, 1, every=3)
    assert some.rounds.tolist() == [3, 6, 7]
    np.testing.assert_array_equal(some.norms, whole.norms[[2, 5, 6]])


def test_a_replay_that_ends_elsewhere_is_an_error():
    run = trained("softmax", "atc")
    initial = run.record.initial.clone()
    initial[2, 0] += 1e-3
    broken = replace(run, record=replace(run.record, initial=initial))
    for use in (track_influence, who_influenced):
        with pytest.raises(ReplayDivergedError, match="after round 5"):
            use(broken, 1)


def test_what_cannot_be_differentiated_is_refused():
    clipped = trained("softmax", "atc", clip_norm=0.5)
    with pytest.raises(UnsupportedRequestError, match=r"clip_norm=0.5.*norm_bound"):
        track_influence(clipped, 1)
    bare = trained("softmax", "atc", record=RecordPlan(parts=frozenset()))
    with pytest.raises(MissingRecordError, match="initial_state"):
        track_influence(bare, 1)
    run = trained("softmax", "atc")
    with pytest.raises(UnknownPeerError, match="got 9"):
        track_influence(run, 9)
    with pytest.raises(UnsupportedRequestError, match="'samples', got 'norm_bound'"):
        track_influence(run, ForgetRequest.samples(1, indices=[0]), "norm_bound")
    assert track_influence(run, 1, "norm_bound").mode == "norm_bound"
    assert track_influence(run, 1, "mixing_power").mode == "mixing_power"


SIX = ("ring", "torus", "erdos-renyi", "barabasi-albert", "exponential", "complete")


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("name", SIX)
def test_norms_rank_as_leaving_the_data_out_does(name, form):
    """Digits, softmax regression, 16 peers: half of a peer's rows at a time.

    Per source the peers are ranked, and over all sources the (source, peer) pairs. On
    the complete graph ``atc`` leaves all peers with one model, so there is no ranking
    of peers, only of pairs.
    """
    data = PeerData.load("digits", peers=16, partition="dirichlet", alpha=0.5, seed=0)
    config = replace(full_batch(form, rounds=40, rate=0.2), seed=0)
    run = simulate(load_topology(name, n=16), data, "logistic", config)
    exact, moved = [], []
    for source in range(0, 16, 4):
        request = ForgetRequest.samples(source, fraction=0.5, normalization="fixed")
        exact.append(track_influence(run, request, every=40).norms[-1])
        left = leave_out(run, request).state.params
        moved.append((run.state.params - left).norm(dim=1).numpy())
    assert spearmanr(np.ravel(exact), np.ravel(moved)).statistic >= 0.9
    if (name, form) == ("complete", "atc"):
        np.testing.assert_allclose(exact, np.max(exact, axis=1)[:, None].repeat(16, 1))
        return
    for s, m in zip(exact, moved, strict=True):
        assert spearmanr(s, m).statistic >= 0.9
