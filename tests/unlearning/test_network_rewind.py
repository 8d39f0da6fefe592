"""Rewinding a network: exact from the start, bounded from later on, by second code."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs
from oracles.network_rewinding import (
    descend,
    gradient,
    instance,
    ring,
    without,
)
from torch import nn

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.trajectory import trajectory_sensitivity
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import state_digest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.network_claim import (
    network_sensitivity,
    smallest_eigenvalue,
)
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.retrain import Retrain

REQUEST = ForgetRequest.samples(peer=0, indices=[0, 1])
T, RATE = 30, 0.1


def rewind(rounds=None, method=None, **fields):
    return AtPeer(
        method=method or Original(),
        reentry="rewind_network",
        rewind_rounds=rounds,
        **fields,
    )


def log_cosh(outputs, labels):
    z = (outputs - labels).abs()
    return z + torch.nn.functional.softplus(-2 * z) - np.log(2)


def log_cosh_run(seed, form="cta"):
    """The worked network: 4 peers on a ring, 20 rows each, 30 full-batch rounds."""
    peers = instance(seed, shift=0.3)
    pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in peers]
    config = SimulationConfig(
        rounds=T,
        trainer=DSgd(form=form),
        local=LocalSteps(batch_size=None, learning_rate=RATE),
        dtype="float64",
        evaluate_every=0,
        record=RecordPlan(every=1),
    )
    model = FlatModel.from_module(
        nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)), log_cosh
    )
    data = PeerData.from_tensors(pairs, test=pairs[0])
    return simulate("ring", data, model, config), peers


def linear_run(form="atc", *, sizes=(20, 24, 18, 22), **changes):
    """Softmax regression on rows of norm at most 1: every constant is proven."""
    data = blobs(list(sizes), dtype=np.float64)
    store = data.store.inputs
    unit = 0.99 * store / store.norm(dim=1, keepdim=True).clamp(min=1)
    pairs = [
        (unit[data.rows(i)], data.store.labels[data.rows(i)]) for i in range(len(sizes))
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0], num_classes=3, norm_bound=1.0)
    local = {"batch_size": None, "learning_rate": 0.3, "steps": 1}
    local |= changes.pop("local", {})
    config = SimulationConfig(
        rounds=10,
        trainer=changes.pop("trainer", DSgd(form=form)),
        local=LocalSteps(**local),
        dtype="float64",
        evaluate_every=0,
        record=RecordPlan(every=1),
        **changes,
    )
    return simulate("ring", data, "logistic", config)


# --- the state -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cta", "atc"])
@pytest.mark.parametrize("rounds", [1, 10, 28, 30])
def test_the_replayed_rounds_are_those_of_the_loops(form, rounds):
    run, peers = log_cosh_run(0, form)
    outcome = unlearn(run, REQUEST, rewind(rounds))
    start = run.record.initial if rounds == T else run.record.checkpoints[T - rounds]
    kept = without(peers, 0, [0, 1])
    end = descend(start.numpy(), kept, ring(4), RATE, rounds, form)[-1]
    np.testing.assert_allclose(outcome.state.params, end, rtol=1e-12)
    assert outcome.state.round == T
    assert outcome.cost.rounds == rounds


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local": {"momentum": 0.9, "batch_size": 6, "lr_schedule": "cosine"}},
        {"trainer": GradientTracking()},
    ],
    ids=["plain", "momentum", "tracking"],
)
def test_back_at_the_start_is_retraining_to_the_bit(changes):
    run = linear_run(**changes)
    for request in (REQUEST, ForgetRequest.class_(1), ForgetRequest.whole_peer(2)):
        outcome = unlearn(run, request, rewind())
        expected = unlearn(run, request, Retrain())
        assert state_digest(outcome.state) == state_digest(expected.state)
        assert outcome.certificate.status == "exact"
        assert outcome.certificate.noise_std == 0
        assert not outcome.ledger.entries


def test_noise_is_left_out_where_the_start_is_reached():
    method = R2d(rewind=1.0, epsilon=1.0)
    outcome = unlearn(linear_run(), REQUEST, rewind(method=method))
    assert outcome.certificate.status == "exact"
    assert not outcome.ledger.entries


def test_a_local_rewind_can_hurt_and_a_networks_cannot():
    """The worked example's pattern: rewinding alone throws away what others taught."""
    run, peers = log_cosh_run(0)
    kept = without(peers, 0, [0, 1])
    retrained = descend(run.record.initial.numpy(), kept, ring(4), RATE, T, "cta")[-1]

    def distance(protocol):
        outcome = unlearn(run, REQUEST, protocol)
        return float((outcome.state.params[0] - torch.from_numpy(retrained[0])).norm())

    before = distance(AtPeer(method=Original()))
    local = {k: distance(AtPeer(method=R2d(steps=k, epsilon=None))) for k in (10, 30)}
    network = {k: distance(rewind(k)) for k in (10, 30)}
    assert before < local[30]
    assert local[10] < local[30]
    assert 0 < network[10] < before
    assert network[30] < 1e-12
    alone = run.record.checkpoints[20][0].numpy()
    for _ in range(10):
        alone = alone - RATE * gradient(alone, *kept[0])
    assert local[10] == pytest.approx(np.linalg.norm(alone - retrained[0]), rel=1e-9)


def test_the_nearest_recorded_round_before_is_taken():
    run = linear_run(sizes=(20, 24, 18, 22))
    known = {t: run.record.checkpoints[t] for t in (3, 8)}
    thin = replace(run, record=replace(run.record, checkpoints=known))
    outcome = unlearn(thin, REQUEST, rewind(4))
    assert outcome.info["rewind_rounds"] == 7
    assert any("4 rounds were asked for" in note for note in outcome.notes)
    full = unlearn(run, REQUEST, rewind(7))
    assert torch.equal(outcome.state.params, full.state.params)


def test_peers_that_the_data_hardly_reached_keep_their_models():
    run = linear_run(sizes=(20, 24, 18, 22, 20, 20, 20, 20))
    short = unlearn(run, REQUEST, rewind(2, influence_threshold=0.12))
    kept = (short.state.params == run.state.params).all(dim=1)
    assert 0 < int(kept.sum()) < 8
    assert not kept[0]
    assert short.certificate is None
    everyone = unlearn(run, REQUEST, rewind(2))
    assert short.cost.sample_gradients < everyone.cost.sample_gradients
    assert any("kept their models" in note for note in short.notes)


def test_a_second_request_begins_at_the_same_state():
    """Two requests in a row are both at once, noise aside."""
    run = linear_run()
    first = ForgetRequest.samples(peer=0, indices=[0, 1])
    second = ForgetRequest.samples(peer=2, indices=[4])
    one = unlearn(run, first, rewind(6))
    assert one.as_run().record is None
    two = unlearn(one.as_run(), second, rewind(6))
    both = unlearn(run, [first, second], rewind(6), coalesce=True)
    assert torch.equal(two.state.params, both.state.params)
    noised = rewind(method=R2d(rewind=0.6))
    one = unlearn(run, first, noised)
    two = unlearn(one.as_run(), second, noised)
    both = unlearn(run, [first, second], noised, coalesce=True)
    bounds = [o.certificate.sensitivity for o in (one, two, both)]
    assert bounds[0] < bounds[1] == pytest.approx(bounds[2], rel=1e-12)
    assert two.certificate.status == "certified"


# --- the bound --------------------------------------------------------------------


def weights_of(graph):
    return Topology.from_graph(graph)


@pytest.mark.parametrize("form", ["cta", "atc"])
def test_the_bound_is_never_below_the_true_distance(form):
    worst = 0.0
    for seed in range(25):
        rng = np.random.default_rng([seed, 15])
        graph = nx.connected_watts_strogatz_graph(6, 2, 0.5, seed=seed)
        topology = weights_of(graph)
        w = topology.weights.toarray()
        peers = instance([seed, 6], peers=6)
        owner = int(rng.integers(6))
        gone = rng.choice(20, size=int(rng.integers(1, 6)), replace=False)
        kept = without(peers, owner, gone)
        smooth = max(float((x**2).sum(1).max()) for x, _ in peers)
        slope = float(np.linalg.norm(peers[owner][0], axis=1).max())
        rate = min(0.1, 0.99 * (1 + smallest_eigenvalue(topology)) / smooth)
        start = np.tile(rng.standard_normal(3), (6, 1))
        trained = descend(start, peers, w, rate, T, form)
        retrained = descend(start, kept, w, rate, T, form)[-1]
        shares = np.zeros(6)
        shares[owner] = len(gone) / 20
        for k in (0, 10, 25, 30):
            end = descend(trained[T - k], kept, w, rate, k, form)[-1]
            true = np.linalg.norm(end - retrained)
            for regime in ("nonconvex", "convex"):
                bound = network_sensitivity(
                    topology=topology,
                    form=form,
                    local_steps=1,
                    rewind_rounds=k,
                    rounds=T,
                    learning_rate=rate,
                    smoothness=smooth,
                    gradient_bound=slope,
                    forgotten=shares,
                    regime=regime,
                )
                assert true <= bound
                worst = max(worst, true / bound if bound else 0.0)
    assert 0.01 < worst < 1  # loose, but of the right order


def test_one_peer_alone_has_the_bound_for_one_model():
    fields = {"learning_rate": 0.1, "smoothness": 2.0, "gradient_bound": 1.5}
    for regime, mu in (("nonconvex", 0.0), ("convex", 0.0), ("strongly_convex", 0.5)):
        found = network_sensitivity(
            topology=Topology.single(),
            form="atc",
            local_steps=3,
            rewind_rounds=4,
            rounds=9,
            forgotten=np.array([0.25]),
            regime=regime,
            strong_convexity=mu,
            **fields,
        )
        expected = trajectory_sensitivity(
            rewind_steps=12,
            steps=27,
            forget=5,
            samples=20,
            regime=regime,
            strong_convexity=mu,
            **fields,
        )
        assert expected <= found * (1 + 1e-12)
        assert found == pytest.approx(expected, rel=1e-12)


def test_several_owners_add_up_in_squares():
    fields = {
        "topology": load_topology("ring", n=4),
        "form": "atc",
        "local_steps": 1,
        "rewind_rounds": 3,
        "rounds": 9,
        "learning_rate": 0.1,
        "smoothness": 2.0,
        "gradient_bound": 1.5,
    }
    three = network_sensitivity(forgotten=np.array([0.3, 0, 0, 0]), **fields)
    five = network_sensitivity(forgotten=np.array([0.3, 0.4, 0, 0]), **fields)
    assert five / three == pytest.approx(5 / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("form", "steps", "rate", "fits"),
    [
        ("atc", 1, 1.9, True),
        ("atc", 3, 1.9, True),
        ("atc", 1, 2.1, False),
        ("cta", 1, 0.6, True),  # 1 + lambda_min = 2/3 of a ring of four
        ("cta", 1, 0.7, False),
        ("cta", 2, 0.1, False),
    ],
)
def test_a_convex_loss_helps_only_where_a_round_does_not_stretch(
    form, steps, rate, fits
):
    def bound():
        return network_sensitivity(
            topology=load_topology("ring", n=4),
            form=form,
            local_steps=steps,
            rewind_rounds=3,
            rounds=9,
            learning_rate=rate,
            smoothness=1.0,
            gradient_bound=1.0,
            forgotten=np.array([0.1, 0, 0, 0]),
            regime="convex",
        )

    if fits:
        assert bound() == pytest.approx(2 * rate * 0.1 * 6 * steps, rel=1e-12)
    else:
        with pytest.raises(SensitivityUnprovenError, match=r"regime|learning_rate"):
            bound()


def test_the_smallest_eigenvalue_is_bounded_from_below():
    topology = load_topology("ring", n=4)
    exact = np.linalg.eigvalsh(topology.weights.toarray())[0]
    assert exact == pytest.approx(-1 / 3)
    assert exact - 1e-9 < smallest_eigenvalue(topology) <= exact


# --- the claim --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_the_joint_release_is_certified_with_noise_of_the_bound(form):
    run = linear_run(form)
    outcome = unlearn(run, REQUEST, rewind(method=R2d(rewind=0.6, epsilon=2.0)))
    claim = outcome.certificate
    assert (claim.status, claim.scope, claim.epsilon) == ("certified", "joint", 2.0)
    assert claim.bound == "trajectory"
    assert claim.noise_std == gaussian_noise_std(2.0, 1e-5, claim.sensitivity)
    (entry,) = outcome.ledger.entries
    assert (entry.owner, entry.state, entry.status) == (
        "peer:0",
        "committed",
        "certified",
    )
    assert entry.mechanism.sensitivity == claim.sensitivity
    quiet = unlearn(run, REQUEST, rewind(6))
    noise = (outcome.state.params - quiet.state.params) / claim.noise_std
    assert noise.shape == run.state.params.shape
    assert 0.8 < float(noise.std()) < 1.2  # 84 draws, from a key
    assert not torch.equal(noise[0], noise[1])


def test_the_bound_covers_the_networks_true_distance_to_retraining():
    run = linear_run()
    method = R2d(rewind=0.5)
    claim = unlearn(run, REQUEST, rewind(method=method)).certificate
    end = unlearn(run, REQUEST, rewind(5)).state.params
    true = float((end - unlearn(run, REQUEST, Retrain()).state.params).norm())
    assert 0 < true <= claim.sensitivity


def test_more_noise_or_more_rounds_never_raise_epsilon():
    run = linear_run()

    def epsilon(noise, share):
        method = R2d(rewind=share, epsilon=None, noise_std=noise)
        return unlearn(run, REQUEST, rewind(method=method)).certificate.epsilon

    assert epsilon(0.2, 0.5) < epsilon(0.1, 0.5)
    assert epsilon(0.1, 0.9) < epsilon(0.1, 0.2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"local": {"batch_size": 6}}, "batches"),
        ({"local": {"momentum": 0.5}}, "momentum"),
        ({"local": {"lr_schedule": "cosine"}}, "learning rate"),
        ({"trainer": GradientTracking()}, "training iteration"),
        ({"peer_weighting": "size"}, "weights of peers"),
    ],
)
def test_what_the_bound_is_not_about_makes_it_heuristic(changes, reason):
    run = linear_run(**changes)
    outcome = unlearn(run, REQUEST, rewind(method=R2d(rewind=0.5)))
    assert outcome.certificate.status == "heuristic"
    assert outcome.certificate.epsilon is None
    assert any(reason in line for line in outcome.certificate.reasons)
    assert {e.status for e in outcome.ledger.entries} == {"heuristic"}


def test_an_owner_without_rows_left_is_not_what_the_bound_is_about():
    run = linear_run()
    request = ForgetRequest.whole_peer(2)
    outcome = unlearn(run, request, rewind(method=R2d(rewind=0.5)))
    assert outcome.certificate.status == "heuristic"


def test_constants_given_by_the_caller_are_assumed():
    run, _ = log_cosh_run(0)
    method = R2d(rewind=0.9, smoothness=15.0, gradient_bound=4.0)
    outcome = unlearn(run, REQUEST, rewind(method=method))
    assert outcome.certificate.status == "certified_conditional"
    with pytest.raises(SensitivityUnprovenError, match=r"smoothness.*epsilon=None"):
        unlearn(run, REQUEST, rewind(method=R2d(rewind=0.9)))


def test_a_bound_that_does_not_fit_a_float_is_no_bound():
    run, _ = log_cosh_run(0)
    method = R2d(rewind=0.1, smoothness=1e300, gradient_bound=4.0)
    with pytest.raises(SensitivityUnprovenError, match="finite"):
        unlearn(run, REQUEST, rewind(method=method))


# --- refusals ---------------------------------------------------------------------


def test_states_made_elsewhere_can_only_begin_again():
    run = linear_run()
    bare = replace(run, record=None)
    with pytest.raises(MissingRecordError, match="rewind_rounds=10"):
        unlearn(bare, REQUEST, rewind(3))
    assert unlearn(bare, REQUEST, rewind()).certificate.status == "exact"


def test_more_rounds_than_there_were_are_refused():
    with pytest.raises(InvalidHyperparameterError, match=r"10 rounds.*got 11"):
        unlearn(linear_run(), REQUEST, rewind(11))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gossip_rounds": 2}, "gossip_rounds"),
        ({"method": R2d(), "influence_threshold": 0.1}, "influence_threshold"),
        ({"method": R2d(start="proximal")}, "checkpoint"),
        ({"method": R2d(bound="published")}, "tight"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(InvalidHyperparameterError, match=message):
        rewind(**fields)


def test_private_training_is_not_replayed():
    from dfl_unlearn.engine.trainers.dp_gossip import DpGossip

    trainer = DpGossip(clip_norm=1.0, noise_multiplier=1.0, rate=0.2)
    config = SimulationConfig(rounds=3, trainer=trainer, evaluate_every=0)
    run = simulate("ring", blobs([20, 20, 20, 20]), "logistic", config)
    with pytest.raises(UnsupportedRequestError, match="privately"):
        unlearn(run, REQUEST, rewind())


def test_owners_of_earlier_requests_pay_for_every_later_release():
    run = linear_run()
    protocol = rewind(method=R2d(rewind=0.6, epsilon=1.0))
    for peer in range(3):
        request = ForgetRequest.samples(peer=peer, indices=[0])
        outcome = unlearn(run, request, protocol)
        run = outcome.as_run()
    spent = [run.ledger.epsilon(f"peer:{i}", "public", 1e-5) for i in range(4)]
    assert spent[0] > spent[1] > spent[2] >= 1.0 - 1e-9
    assert spent[3] == 0
    assert outcome.certificate.epsilon == pytest.approx(spent[0])


# --- what r2d refuses for one model ---------------------------------------------------


def claimed(run, rounds=5, **fields):
    protocol = rewind(rounds, method=R2d(**fields))
    return unlearn(run, REQUEST, protocol).certificate


def other_run(model, rounds=10, dtype="float64", rate=0.3, peers=3, **local):
    """Peers with rows of norm at most 1 in three classes."""
    data = blobs([20] * peers, dtype=np.float64)
    store = data.store.inputs
    unit = 0.99 * store / store.norm(dim=1, keepdim=True).clamp(min=1)
    pairs = [
        (unit[data.rows(i)], data.store.labels[data.rows(i)]) for i in range(peers)
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0], num_classes=3, norm_bound=1.0)
    config = SimulationConfig(
        rounds=rounds,
        local=LocalSteps(batch_size=None, learning_rate=rate, **local),
        dtype=dtype,
        evaluate_every=0,
        record=RecordPlan(every=1 if rounds < 50 else rounds // 10),
    )
    shape = (data.store.inputs.shape[1],)
    model = models.build(model[0], input_shape=shape, num_classes=3, **model[1])
    return simulate("complete", data, model, config)


def test_a_network_with_kinks_has_no_smoothness_by_word_of_the_caller():
    run = other_run(("mlp", {}))
    known = {"smoothness": 1.0, "gradient_bound": 1.0}
    claim = claimed(run, **known)
    assert claim.status == "heuristic"
    assert "smoothness (L): violated" in claim.reasons
    convex = claimed(run, strong_convexity=0.0, **known)
    assert convex.sensitivity == claim.sensitivity  # not taken for convex
    said = claimed(run, strong_convexity=0.0, regime="convex", **known)
    assert "regime: violated" in said.reasons


def test_clipped_softmax_is_not_convex_because_the_caller_says_so():
    run = other_run(("logistic", {}), clip_norm=0.3)
    known = claimed(run)
    said = claimed(run, strong_convexity=0.0)
    assert said.sensitivity == known.sensitivity
    assert said.status == known.status == "certified"
    forced = claimed(run, strong_convexity=0.0, regime="convex")
    assert (forced.status, forced.reasons[-1]) == ("heuristic", "regime: violated")


def test_constants_that_cannot_be_are_violated_for_a_network_too():
    run = other_run(("logistic", {"l2": 0.1}))
    claim = claimed(run, strong_convexity=0.2)
    assert "strong convexity (mu): violated" in claim.reasons
    claim = claimed(run, smoothness=0.01, regime="nonconvex")
    assert "smoothness (L): violated" in claim.reasons


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_covered_or_told_in_a_network_too(dtype):
    """So long a training that what rows leave is below rounding in the end."""
    rounds = 300 if dtype == "float32" else 800
    run = other_run(("logistic", {"l2": 0.1}), rounds=rounds, dtype=dtype, rate=1.0)
    rewound = rounds * 7 // 10
    claim = claimed(run, rounds=rewound)
    bare = unlearn(run, REQUEST, rewind(rewound)).state.params
    retrained = unlearn(run, REQUEST, Retrain()).state.params
    apart = float((bare.double() - retrained.double()).norm())
    assert 0 < apart < claim.sensitivity
    assert claim.status == "heuristic"
    assert claim.reasons == ("rounding of training: violated",)
    if dtype == "float64":  # seen beside the bound, and far below it
        assert claimed(run, rounds=rounds // 10).status == "certified"
    tiny = claimed(run, rounds=rounds // 10, epsilon=None, noise_std=1e-25)
    assert "noise above rounding: violated" in tiny.reasons
