"""Where Newton/Fisher's noise goes, for whom it is enough; the peers' own target."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blobs, full_batch

from dfl_unlearn import load_topology
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.curvature.operators import DiagonalFisher
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.engine.transport import multiples
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    ResidualExceedsCapError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.influence import resolvent_weights
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.fixed_point import FixedPoint, stacked_newton
from dfl_unlearn.unlearning.influence_weights import correction_weights, mean_curvature
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

N = 5
DATA = blobs([12, 7, 9, 10, 8], dtype=np.float64)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
CORRECTION = NewtonFisher(
    scope="release",
    residual_cap=3.0,
    influence_weights="uniform",
    noise_placement="broadcast_correction",
    recovery_rounds=0,
)
INDEPENDENT = NewtonFisher(
    residual_cap=3.0, noise_placement="independent", recovery_rounds=0
)
STACK = NewtonFisher(
    target="dsgd_fixed_point",
    curvature="linearized_gossip",
    noise_placement="independent",
    recovery_rounds=0,
)


@pytest.fixture(scope="module")
def run():
    local = LocalSteps(batch_size=5, learning_rate=0.03)
    config = SimulationConfig(
        rounds=100, local=local, evaluate_every=0, dtype="float64"
    )
    return simulate("ring", DATA, "logistic", config)


@pytest.fixture(scope="module")
def resting():
    return simulate("ring", DATA, "logistic", full_batch("cta", rounds=300))


def noise(run, draw=0, shape=None, request="r0"):
    """A release's noise, drawn again by its documented key."""
    return RngTree(run.config.seed).normal(
        shape or (run.model.size,),
        "unlearn-noise",
        who="peer:1",
        request=request,
        draw=draw,
    )


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


def minimizer(run):
    return exact_minimizer(run, run.data.without(REQUEST), gradient_norm=1e-13).theta


# --- one noise vector on the correction ------------------------------------------


def test_every_peer_adds_the_one_noised_correction_to_its_own_model(run):
    outcome = unlearn(run, REQUEST, CORRECTION)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert certificate.scope == "release"
    added = outcome.state.params - run.state.params
    assert float((added - added[0]).abs().max()) < 1e-12
    corrected = outcome.state.params - certificate.noise_std * noise(run)
    away = (corrected - minimizer(run)).norm(dim=1)
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float(away.max()) <= bound <= CORRECTION.residual_cap
    assert float(away.min()) > 1e-3  # the peers' models are apart
    assert certificate.sensitivity == pytest.approx(3.03)
    assert certificate.noise_std == gaussian_noise_std(1.0, 1e-5, 3 * 1.01)
    assert len(outcome.ledger.entries) == 1
    assert "differ by no noise" in str(certificate)
    assert {m.kind for m in outcome.messages} >= {"noised correction"}


def test_differences_of_peers_carry_no_noise_so_a_joint_claim_is_refused(run):
    with pytest.raises(InvalidHyperparameterError, match="scope: must be 'release'"):
        replace(CORRECTION, scope="joint")
    with pytest.raises(InvalidHyperparameterError, match="'joint'"):
        NewtonFisher(noise_placement="broadcast_correction")


def test_recovery_after_it_is_no_post_processing_of_one_release(run):
    certificate = unlearn(
        run, REQUEST, replace(CORRECTION, recovery_rounds=1)
    ).certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.reasons == ("recovery rounds: violated",)


@pytest.mark.parametrize("how", ["resolvent", "empirical", "exact"])
def test_weights_from_the_data_scale_the_noise_and_prove_nothing(run, how):
    protocol = replace(CORRECTION, influence_weights=how, residual_cap=9.0)
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert "influence weights: estimated" in certificate.reasons
    kept = network_objective(run, run.data.without(REQUEST))
    a = correction_weights(
        how, run, replace(REQUEST, request_id="r0"), kept, run.state.mean(), run.rng
    )
    assert certificate.sensitivity == pytest.approx(9 * 1.01 / a.min())
    added = (outcome.state.params - run.state.params) / torch.from_numpy(a)[:, None]
    np.testing.assert_allclose(added, added[:1].expand(N, -1), rtol=1e-9, atol=1e-9)


def test_models_too_far_apart_are_refused_before_any_charge(run):
    with pytest.raises(ResidualExceedsCapError, match="how far the peers' models lie"):
        unlearn(run, REQUEST, replace(CORRECTION, residual_cap=1e-3))
    assert run.ledger.entries == ()


# --- noise of every peer's own -----------------------------------------------------


def test_independent_noise_is_one_release_per_peer(run):
    outcome = unlearn(run, REQUEST, INDEPENDENT)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert certificate.epsilon == 1.0
    assert certificate.sensitivity == pytest.approx(3.03 * np.sqrt(N))
    assert certificate.noise_std == gaussian_noise_std(1.0, 1e-5, 3 * 1.01 * np.sqrt(N))
    assert [e.draw for e in outcome.ledger.entries] == list(range(N))
    assert {e.mechanism.sensitivity for e in outcome.ledger.entries} == {3 * 1.01}
    drawn = torch.stack([noise(run, k) for k in range(N)])
    corrected = outcome.state.params - certificate.noise_std * drawn
    away = (corrected - minimizer(run)).norm(dim=1)
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float(away.max()) <= bound + 1e-10
    assert assumption(certificate, "independent releases").value == N
    # Together they cost what the certificate says.
    assert outcome.ledger.epsilon("peer:1", "public", 1e-5) == pytest.approx(1.0)


def test_a_joint_state_may_be_trained_on_and_a_single_one_may_not(run):
    joint = unlearn(run, REQUEST, replace(INDEPENDENT, recovery_rounds=2))
    assert joint.certificate.status == "certified"
    single = replace(INDEPENDENT, scope="release")
    alone = unlearn(run, REQUEST, single).certificate
    assert alone.status == "certified"
    assert alone.noise_std == gaussian_noise_std(1.0, 1e-5, 3 * 1.01)
    assert "as if all were published" in str(alone)
    trained = unlearn(run, REQUEST, replace(single, recovery_rounds=1)).certificate
    assert trained.reasons == ("recovery rounds: violated",)


def test_independent_releases_of_several_requests_compose(run):
    first = unlearn(run, ForgetRequest.samples(peer=1, indices=[0]), INDEPENDENT)
    # The noised models lie far apart, so the cap must be wide.
    wide = replace(INDEPENDENT, residual_cap=1e3)
    second = ForgetRequest.samples(peer=1, indices=[1])
    two = unlearn(first.as_run(), second, wide)
    assert two.certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)
    assert two.certificate.status == "certified"


def test_a_class_charges_every_owner_for_every_release(run):
    outcome = unlearn(run, ForgetRequest.class_(1), INDEPENDENT)
    owners = {f"peer:{i}" for i in outcome.request.peers}
    assert {e.owner for e in outcome.ledger.entries} == owners
    assert len(outcome.ledger.entries) == N * len(owners)
    for owner in owners:
        assert outcome.ledger.epsilon(owner, "public", 1e-5) == pytest.approx(1.0)


# --- what is kept between requests -------------------------------------------------


def test_secret_state_keeps_the_models_before_the_noise_for_the_next_request(run):
    """With noise of every peer's own, published models lie too far apart."""
    requests = [ForgetRequest.samples(peer=1, indices=[k]) for k in (0, 1)]
    even = replace(INDEPENDENT, influence_weights="uniform")
    with pytest.raises(ResidualExceedsCapError, match="how far the peers' models lie"):
        unlearn(run, requests, even)
    secret = replace(even, state_policy="secret_state")
    first = unlearn(run, requests[0], secret)
    drawn = torch.stack([noise(run, k) for k in range(N)])
    kept = first.state.slots["unnoised"]
    np.testing.assert_allclose(
        first.state.params, kept + first.certificate.noise_std * drawn, atol=1e-12
    )
    assert "stay at the peers as secret state" in str(first.certificate)
    assert "secret state" not in str(unlearn(run, REQUEST, even).certificate)
    second = unlearn(first.as_run(), requests[1], secret)
    certificate = second.certificate
    assert certificate.status == "certified"
    assert certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)
    left = run.data.without(requests[0]).without(requests[1])
    target = exact_minimizer(run, left, gradient_norm=1e-13).theta
    away = (second.state.slots["unnoised"] - target).norm(dim=1)
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float(away.max()) <= bound + 1e-9 <= 3.0 + 1e-9
    # The next request may do without it.
    again = unlearn(first.as_run(), requests[1], replace(even, residual_cap=1e3))
    assert "unnoised" not in again.state.slots


def test_secret_state_of_a_stack_is_where_its_next_steps_begin(resting):
    secret = replace(STACK, state_policy="secret_state")
    requests = [ForgetRequest.samples(peer=1, indices=[k]) for k in (0, 1)]
    first = unlearn(resting, requests[0], secret).as_run()
    near = unlearn(first, requests[1], secret)
    far = unlearn(first, requests[1], STACK)
    assert near.trace["gradient_norm"][0] < far.trace["gradient_norm"][0]
    assert near.certificate.epsilon == far.certificate.epsilon


def test_export_leaves_secret_state_out(run, tmp_path):
    outcome = unlearn(run, REQUEST, replace(INDEPENDENT, state_policy="secret_state"))
    plain = unlearn(run, REQUEST, INDEPENDENT)
    paths = [o.export(tmp_path / f"{k}") for k, o in enumerate((outcome, plain))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# --- alignment -------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [CORRECTION, INDEPENDENT], ids=["one", "own"])
def test_aligned_models_need_a_smaller_cap(run, protocol):
    """decentralized-certified 3.1, phase 2; rho = 0.5393 on the ring of five."""
    even = replace(protocol, influence_weights="uniform", residual_cap=1e-3)
    with pytest.raises(ResidualExceedsCapError):
        unlearn(run, REQUEST, even)
    outcome = unlearn(run, REQUEST, replace(even, align_to=1e-4))
    certificate = outcome.certificate
    assert certificate.status == "certified"
    apart = run.state.params - run.state.params.mean(0)
    rounds = int(
        np.ceil(np.log(1e-4 / float(apart.norm())) / np.log(run.topology.slem))
    )
    kinds = [m.kind for m in outcome.messages]
    assert kinds.count("align") == rounds * 2 * N
    assert kinds.index("align") < kinds.index("mean model")
    one = protocol is CORRECTION
    drawn = torch.stack([noise(run, 0 if one else k) for k in range(N)])
    corrected = outcome.state.params - certificate.noise_std * drawn
    away = (corrected - minimizer(run)).norm(dim=1)
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float(away.max()) <= bound + 1e-10 <= 1.1e-3
    if one:
        spread = outcome.state.params - outcome.state.params.mean(0)
        assert float(spread.norm()) <= 1e-4


def test_models_that_are_together_are_not_aligned(run):
    outcome = unlearn(run, REQUEST, replace(CORRECTION, align_to=1e3))
    kinds = {m.kind for m in outcome.messages}
    assert "disagreement" in kinds
    assert "align" not in kinds


def test_alignment_is_refused_where_it_changes_nothing():
    for protocol in (NewtonFisher(), STACK):
        with pytest.raises(InvalidHyperparameterError, match="keeps the mean model"):
            replace(protocol, align_to=0.1)
    with pytest.raises(InvalidHyperparameterError, match="align_to"):
        replace(CORRECTION, align_to=0.0)


# --- ways to the peers -----------------------------------------------------------


def test_averaging_leaves_public_multiples_of_one_release(run):
    protocol = NewtonFisher(dissemination="gossip_average", recovery_rounds=0)
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert (certificate.status, certificate.scope) == ("certified", "joint")
    held = np.linalg.matrix_power(
        run.topology.weights.toarray(), run.topology.mixing_rounds()
    )[:, 1]
    assert np.ptp(held) > 0
    tree = unlearn(run, REQUEST, replace(protocol, dissemination="tree"))
    np.testing.assert_allclose(
        outcome.state.params, N * held[:, None] * tree.state.params.numpy(), rtol=1e-12
    )
    assert len(outcome.ledger.entries) == 1
    assert "numbers of the network alone, so this is post-processing" in str(
        certificate
    )
    assert "numbers of the network" not in str(tree.certificate)
    kinds = [m.kind for m in outcome.messages]
    assert kinds.count("noised model") == 2 * N * run.topology.mixing_rounds()


@pytest.mark.parametrize("protocol", [CORRECTION, INDEPENDENT], ids=["one", "own"])
def test_averaging_changes_the_parts_that_peers_take(run, protocol):
    averaged = replace(
        protocol, influence_weights="uniform", dissemination="gossip_average"
    )
    outcome = unlearn(run, REQUEST, averaged)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    held = multiples(run.topology, 1, "gossip_average")
    one = protocol is CORRECTION
    draws = [0] * N if one else range(N)
    drawn = torch.stack([noise(run, k) for k in draws])
    scale = torch.from_numpy(held)[:, None] if one else 1.0
    corrected = outcome.state.params - certificate.noise_std * scale * drawn
    away = (corrected - minimizer(run)).norm(dim=1)
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float(away.max()) <= bound + 1e-10
    if one:  # every peer's own noise covers its own distance
        assert certificate.sensitivity == pytest.approx(3.03 / held.min())


@pytest.mark.parametrize("how", ["push", "gossip_average"])
def test_the_token_ends_the_same_ways(run, how):
    walk = RrDu(hops=6, residual_cap=100.0, dissemination=how)
    outcome = unlearn(run, REQUEST, walk)
    tree = unlearn(run, REQUEST, replace(walk, dissemination="tree"))
    assert outcome.certificate.epsilon == tree.certificate.epsilon
    held = multiples(run.topology, int(outcome.trace["holder"][-1]), how)
    np.testing.assert_allclose(
        outcome.state.params, held[:, None] * tree.state.params.numpy(), rtol=1e-12
    )
    assert ("numbers of the network" in str(outcome.certificate)) == (how != "push")


# --- influence weights ---------------------------------------------------------


@pytest.mark.parametrize("how", ["uniform", "resolvent", "empirical", "exact"])
def test_weights_sum_to_the_number_of_peers(run, how):
    kept = network_objective(run, run.data.without(REQUEST))
    request = replace(REQUEST.resolve(run.data), request_id="r0")
    a = correction_weights(how, run, request, kept, run.state.mean(), run.rng)
    assert a.sum() == pytest.approx(N)
    if how != "uniform":
        assert a.argmax() == 1 or how == "exact"
        assert a.std() > 1e-3


def test_exact_weights_are_the_best_multiples_of_the_mean_response(run):
    kept = network_objective(run, run.data.without(REQUEST))
    request = REQUEST.resolve(run.data)
    a = correction_weights("exact", run, request, kept, run.state.mean(), run.rng)
    s = track_influence(run, request, vectors=True).vectors[-1]
    best = [np.linalg.lstsq(s.mean(0)[:, None], row, rcond=None)[0][0] for row in s]
    np.testing.assert_allclose(a, best, rtol=1e-9)


def test_several_local_steps_are_one_of_their_joint_size():
    local = LocalSteps(batch_size=None, steps=3)
    config = replace(full_batch("atc", rounds=3), local=local)
    run = simulate("ring", DATA, "logistic", config)
    kept = network_objective(run)
    request = replace(REQUEST, request_id="r0")
    theta = run.state.mean()
    a = correction_weights("resolvent", run, request, kept, theta, run.rng)
    h = mean_curvature(kept, theta, run.rng, request)
    assert h == pytest.approx(float(kept.hessian(theta).diagonal().mean()))
    step = 1 - (1 - 0.1 * h) ** 3
    expected = resolvent_weights(run.topology, 1, 1.0, step, "atc")
    np.testing.assert_allclose(a, expected, rtol=1e-9)


def test_a_rule_that_the_run_does_not_carry_is_refused_first(run):
    steep = replace(run.config, local=LocalSteps(learning_rate=0.5))
    with pytest.raises(UnsupportedRequestError, match="grows without limit"):
        unlearn(
            simulate("ring", DATA, "logistic", steep),
            REQUEST,
            replace(INDEPENDENT, influence_weights="empirical"),
        )
    bare = simulate(
        "ring",
        DATA,
        "logistic",
        replace(run.config, record=RecordPlan(parts=frozenset())),
    )
    for how in ("empirical", "exact"):
        with pytest.raises(MissingRecordError):
            unlearn(bare, REQUEST, replace(INDEPENDENT, influence_weights=how))
    tracked = simulate(
        "ring", DATA, "logistic", replace(run.config, trainer=GradientTracking())
    )
    with pytest.raises(UnsupportedRequestError, match="must be 'uniform'"):
        unlearn(tracked, REQUEST, INDEPENDENT)
    even = replace(INDEPENDENT, influence_weights="uniform")
    assert unlearn(tracked, REQUEST, even).certificate.status == "certified"


# --- the decentralized fixed point ---------------------------------------------


def test_the_stack_is_released_around_the_exact_fixed_point(resting):
    outcome = unlearn(resting, REQUEST, STACK)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert certificate.sensitivity == pytest.approx(1.01e-3)
    shape = tuple(resting.state.params.shape)
    corrected = outcome.state.params - certificate.noise_std * noise(
        resting, shape=shape
    )
    equation = FixedPoint(resting, resting.data.without(REQUEST))
    exact = stacked_newton(
        equation, resting.state.params, target=1e-14, tolerance=1e-10
    ).state
    bound = assumption(certificate, "distance to the exact fixed point").value
    assert float((corrected - exact).norm()) <= bound + 1e-10
    assert bound <= STACK.residual_cap
    # It is where training without the data comes to rest, not consensus.
    start = PeerState(params=exact, round=300)
    moved, _ = continue_training(resting, resting.data.without(REQUEST), start, 50)
    np.testing.assert_allclose(moved.params, exact, atol=1e-11)
    assert float((exact - exact.mean(0)).norm()) > 0.01


def test_the_stack_is_solved_by_neighbours_alone(resting):
    outcome = unlearn(resting, REQUEST, STACK)
    kinds = {m.kind for m in outcome.messages}
    assert kinds == {"model", "correction", "residual norm"}
    for message in outcome.messages:
        if message.kind == "residual norm":
            assert message.nbytes == 8 + 96  # one number
    rounds = sum(m.kind == "correction" for m in outcome.messages) / (2 * N)
    assert rounds == outcome.cost.solver_iterations
    assert outcome.cost.hvps == rounds * (len(DATA.store) - 2)
    assert "that neighbours exchange carry no noise" in str(outcome.certificate)


def test_a_stack_may_be_trained_on_and_its_releases_compose(resting):
    again = replace(STACK, recovery_rounds=1)
    requests = [ForgetRequest.samples(peer=1, indices=[k]) for k in (0, 1)]
    two = unlearn(resting, requests, again)
    assert two.certificate.status == "certified"
    assert two.certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)


@pytest.mark.parametrize(
    "request_", [ForgetRequest.whole_peer(2), ForgetRequest.class_(0)], ids=str
)
def test_peers_and_classes_are_served_by_the_stack(resting, request_):
    certificate = unlearn(resting, request_, STACK).certificate
    assert certificate.status == "certified"


def test_other_training_is_pointed_to_consensus(run):
    with pytest.raises(UnsupportedRequestError, match="target='consensus'"):
        unlearn(run, REQUEST, STACK)
    assert run.ledger.entries == ()


def test_a_missed_cap_of_the_stack_charges_nothing(resting):
    tight = replace(STACK, residual_cap=1e-9, newton_steps_max=1)
    with pytest.raises(ResidualExceedsCapError, match="nothing was sent"):
        unlearn(resting, REQUEST, tight)
    assert resting.ledger.entries == ()


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["ring", "path", "star"]),
    placement=st.sampled_from(["broadcast_correction", "independent"]),
    how=st.sampled_from(["uniform", "resolvent", "exact"]),
)
def test_the_measured_distance_is_never_below_any_peers_true_one(
    seed, name, placement, how
):
    data = blobs([6, 5, 8, 4], seed=seed, dtype=np.float64)
    run = simulate(load_topology(name, n=4), data, "logistic", full_batch(rounds=6))
    request = ForgetRequest.samples(peer=seed % 4, indices=[0, 2])
    protocol = NewtonFisher(
        scope="release",
        residual_cap=100.0,
        noise_placement=placement,
        influence_weights=how,
        recovery_rounds=0,
        newton_steps=2,
    )
    try:
        outcome = unlearn(run, request, protocol)
    except UnsupportedRequestError as error:
        assert "positive weight" in str(error)  # noqa: PT017
        return
    left = run.data.without(request)
    kept = network_objective(run, left)
    filled = replace(request, request_id="r0")
    a = correction_weights(how, run, filled, kept, run.state.mean(), run.rng)
    target = exact_minimizer(run, left, gradient_norm=1e-13).theta
    move = target - run.state.mean()  # two Newton steps are exact to 1e-6 here
    rows = run.state.params + torch.from_numpy(a)[:, None] * move
    worst = float((rows - target).norm(dim=1).max())
    bound = assumption(outcome.certificate, "distance to the exact minimizer").value
    assert bound >= worst * (1 - 1e-3) - 1e-3


# --- fields ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"target": "dsgd_fixed_point"}, "curvature: must be 'linearized_gossip'"),
        (
            {"target": "dsgd_fixed_point", "curvature": "linearized_gossip"},
            "noise_placement: must be 'independent'",
        ),
        ({"curvature": "linearized_gossip"}, "curvature: must be 'exact_cg'"),
        ({"sparsify": 0.5}, "sparsify: must be None unless"),
        ({"sparsify": 0.0, "curvature": "diag_fisher", "damping": 1.0}, "sparsify"),
        ({"sparsify": 0.5, "curvature": "diag_fisher"}, "damping > 0"),
    ],
)
def test_fields_that_contradict_each_other_are_named(fields, named):
    with pytest.raises(InvalidHyperparameterError, match=named):
        NewtonFisher(**fields)
    for name, value in (("damping", 0.1), ("assume_stationary", True)):
        with pytest.raises(InvalidHyperparameterError, match=f"{name}: must be"):
            replace(STACK, **{name: value})


def test_the_sources_preset_is_heuristic_and_says_why(run):
    protocol = NewtonFisher.preset("wu2026")
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert certificate.reasons == (
        "distance to the exact minimizer: estimated",
        "Fisher error: estimated",
        "recovery rounds: violated",
    )
    assert "training is taken as converged" in str(certificate)
    flooded = [m for m in outcome.messages if m.kind == "noised correction"]
    assert len(flooded) == 2 * N - N + 1  # 2|E| - N + 1 on a ring


def test_a_sparse_fisher_diagonal_keeps_its_largest_entries(run):
    kept = network_objective(run)
    theta = run.state.mean()
    options = {"damping": 0.1, "rng": run.rng, "request": "r0"}
    whole = DiagonalFisher.at(kept, theta, **options).values
    sparse = DiagonalFisher.at(kept, theta, **options, sparsify=1 / 3).values
    changed = sparse != whole
    assert int((~changed).sum()) == 7  # of 21
    assert (sparse[changed] == 0.1).all()
    assert float(whole[~changed].min()) >= float(whole[changed].max())
