"""Newton/Fisher: what the certificate says is what was done, and nothing more."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blobs, full_batch, l6_data, logistic4

from dfl_unlearn.accounting.certificate import ADAPTIVE
from dfl_unlearn.accounting.gaussian import gaussian_delta, gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyBudget
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import HEADER_BYTES
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    NonPositiveCurvatureError,
    PrivacyBudgetExceededError,
    ResidualExceedsCapError,
    TopologyError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols import newton_fisher
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.retained import exact_minimizer

DATA = blobs([12, 7, 9, 10, 8], dtype=np.float64)
CONFIG = SimulationConfig(rounds=8, local=LocalSteps(batch_size=5), evaluate_every=0)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
BARE = NewtonFisher(recovery_rounds=0)


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


@pytest.fixture(scope="module")
def exact_run():
    return simulate("ring", DATA, "logistic", replace(CONFIG, dtype="float64"))


def noise(run, owner, request="r0"):
    """The noise vector, drawn again by its documented key."""
    return RngTree(run.config.seed).normal(
        (run.model.size,), "unlearn-noise", who=owner, request=request, draw=0
    )


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


# --- the release ---------------------------------------------------------------


def test_all_peers_start_from_the_minimizer_plus_one_noise_vector(exact_run):
    outcome = unlearn(exact_run, REQUEST, BARE)
    params = outcome.state.params
    assert torch.equal(params, params[:1].expand_as(params))
    std = outcome.certificate.noise_std
    corrected = params[0] - std * noise(exact_run, "peer:1")
    exact = exact_minimizer(exact_run, exact_run.data.without(REQUEST)).theta
    distance = float((corrected - exact).norm())
    measured = assumption(outcome.certificate, "distance to the exact minimizer").value
    assert distance <= measured + 1e-12
    assert measured <= BARE.residual_cap
    assert float((params[0] - exact).norm()) > 10 * BARE.residual_cap  # there is noise


def test_the_noise_is_calibrated_to_the_public_cap_alone(run):
    for request in (REQUEST, ForgetRequest.whole_peer(3)):
        certificate = unlearn(run, request, BARE).certificate
        assert certificate.sensitivity == pytest.approx(1.01e-3, rel=1e-15)
        assert certificate.noise_std == gaussian_noise_std(1.0, 1e-5, 1.01e-3)
        assert certificate.bound == "capped"
        mu = certificate.sensitivity / certificate.noise_std
        assert gaussian_delta(mu, 1.0) <= 1e-5


def test_the_release_fits_the_dtype_within_the_slack_set_aside(run):
    outcome = unlearn(run, REQUEST, BARE)
    assert outcome.state.params.dtype == torch.float32
    rounding = assumption(outcome.certificate, "rounding of the released model").value
    row = outcome.state.params[0]
    assert float((torch.nextafter(row, row + 1) - row).norm()) < rounding
    assert rounding <= 0.01 * BARE.residual_cap


def test_recovery_is_training_on_retained_rows_from_the_release_alone(run):
    """No momentum of earlier training, and the last round's rate."""
    local = LocalSteps(batch_size=5, momentum=0.9, lr_schedule="cosine")
    heavy = simulate("ring", DATA, "logistic", replace(CONFIG, local=local))
    released = unlearn(heavy, REQUEST, BARE)
    outcome = unlearn(heavy, REQUEST, NewtonFisher(recovery_rounds=3))
    assert outcome.state.round == 8 + 3
    fresh = PeerState(params=released.state.params, round=8)
    expected, _ = continue_training(heavy, DATA.without(REQUEST), fresh, 3)
    assert torch.equal(outcome.state.params, expected.params)
    carried = PeerState(params=released.state.params, slots=heavy.state.slots, round=8)
    other, _ = continue_training(heavy, DATA.without(REQUEST), carried, 3)
    assert not torch.equal(outcome.state.params, other.params)


@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize("normalization", ["local_mean", "fixed"])
def test_the_target_is_the_networks_own_objective(weighting, normalization):
    config = replace(CONFIG, dtype="float64", peer_weighting=weighting)
    run = simulate("ring", DATA, "logistic", config)
    request = replace(REQUEST, normalization=normalization)
    outcome = unlearn(run, request, NewtonFisher(recovery_rounds=0, residual_cap=1e-7))
    released = outcome.state.params[0]
    corrected = released - outcome.certificate.noise_std * noise(run, "peer:1")

    def objective(theta):
        """Pooled by hand: peers' weights times means over retained rows."""
        data = DATA.without(request)
        total, share = 0.0, 0.0
        for i in range(5):
            x, y = (data.local(i).inputs, data.local(i).labels)
            divisor = DATA.sizes[i] if normalization == "fixed" else len(y)
            p = 1.0 if weighting == "uniform" else float(divisor)
            losses = torch.nn.functional.cross_entropy(
                x @ theta[:18].view(3, 6).T + theta[18:], y, reduction="sum"
            )
            total, share = total + p * losses / divisor, share + p
        return total / share + 0.005 * theta.square().sum()

    gradient = torch.func.grad(objective)(corrected)
    assert float(gradient.norm()) / 0.01 <= 1.0001e-7


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    l2=st.sampled_from([0.003, 0.05, 0.5]),
    curvature=st.sampled_from(["exact_cg", "diag_fisher"]),
    cap=st.sampled_from([0.3, 0.01]),
    classes=st.sampled_from([2, 3]),
)
def test_the_measured_bound_is_never_below_the_true_distance(
    seed, l2, curvature, cap, classes
):
    data = blobs([6, 5, 8], seed=seed, classes=classes, dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=classes, l2=l2)
    run = simulate("path", data, model, full_batch("atc", rounds=3))
    request = ForgetRequest.samples(peer=seed % 3, indices=[0, 2])
    protocol = NewtonFisher(
        recovery_rounds=0, residual_cap=cap, curvature=curvature, newton_steps_max=60
    )
    try:
        outcome = unlearn(run, request, protocol)
    except ResidualExceedsCapError:
        assert curvature == "diag_fisher"
        return
    assert outcome.certificate.status == "certified"
    drawn = noise(run, f"peer:{seed % 3}")
    corrected = outcome.state.params[0] - outcome.certificate.noise_std * drawn
    target = exact_minimizer(run, data.without(request), gradient_norm=1e-13).theta
    bound = assumption(outcome.certificate, "distance to the exact minimizer").value
    assert float((corrected - target).norm()) <= bound + 1e-10
    assert bound <= cap


# --- the certificate -------------------------------------------------------------


def test_every_constant_is_named_with_its_origin(run):
    certificate = unlearn(run, REQUEST, NewtonFisher(disclose_m=True)).certificate
    assert certificate.status == "certified"
    assert (certificate.epsilon, certificate.delta) == (1.0, 1e-5)
    assert certificate.nominal_epsilon is None
    assert certificate.accountant == "exact_gaussian"
    assert certificate.scope == "joint"
    assert certificate.group_size == 2
    assert certificate.observers == ("public",)
    assert certificate.reasons == ()
    origins = {a.name: (a.source, a.state) for a in certificate.assumptions}
    assert origins == {
        "convex loss": ("proven", "held"),
        "strong convexity (lambda)": ("proven", "held"),
        "residual cap (Delta_max)": ("set", "held"),
        "distance to the exact minimizer": ("measured", "held"),
        "rounding of the released model": ("measured", "held"),
        "one release": ("proven", "held"),
    }
    assert assumption(certificate, "strong convexity (lambda)").value == 0.01
    assert assumption(certificate, "residual cap (Delta_max)").value == 1e-3
    text = str(certificate)
    assert "messages of 8 training rounds, sent before the request" in text
    assert "carry no noise" in text
    assert "not with a finite retraining run" in text
    assert "is taken as public" in text


def test_the_number_of_rows_is_disclosed_on_demand_only(run):
    outcome = unlearn(run, REQUEST, NewtonFisher())
    assert outcome.certificate.group_size is None
    assert outcome.ledger.entries[0].group_size is None


def test_the_ledger_says_what_the_certificate_says(run):
    outcome = unlearn(run, REQUEST, NewtonFisher())
    (entry,) = outcome.ledger.entries
    assert entry.status == "certified"
    assert entry.state == "committed"
    assert entry.owner == entry.noise_owner == "peer:1"
    assert entry.observers == ("peer:0", "peer:2", "peer:3", "peer:4", "public")
    assert entry.mechanism.noise_std == outcome.certificate.noise_std
    assert entry.mechanism.sensitivity == outcome.certificate.sensitivity
    assert entry.assumptions == tuple(a.name for a in outcome.certificate.assumptions)


def test_float64_runs_round_less(exact_run):
    outcome = unlearn(exact_run, REQUEST, NewtonFisher())
    assert outcome.state.params.dtype == torch.float64
    found = assumption(outcome.certificate, "rounding of the released model")
    assert found.value < 1e-12


def test_without_strong_convexity_nothing_is_certified(run):
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.0)
    flat = simulate("ring", DATA, model, CONFIG)
    certificate = unlearn(flat, REQUEST, NewtonFisher(damping=0.1)).certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.delta is None
    assert (certificate.nominal_epsilon, certificate.nominal_delta) == (1.0, 1e-5)
    assert "strong convexity (lambda): violated" in certificate.reasons


@pytest.mark.parametrize("curvature", ["diag_fisher", "exact_cg"])
def test_a_network_is_heuristic(curvature):
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,), l2=0.01)
    deep = simulate("ring", DATA, model, CONFIG)
    protocol = NewtonFisher(curvature=curvature, damping=3.0)
    outcome = unlearn(deep, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.nominal_epsilon == 1.0
    assert certificate.bound == "none"
    assert "convex loss: violated" in certificate.reasons
    assert "distance to the exact minimizer: estimated" in certificate.reasons
    assert outcome.ledger.entries[0].status == "heuristic"
    assert str(certificate).startswith("HEURISTIC — not a certified (ε,δ) guarantee: ")


def test_negative_curvature_of_a_network_is_an_error_before_any_charge():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,))
    deep = simulate("ring", DATA, model, CONFIG)
    with pytest.raises(NonPositiveCurvatureError, match="raise damping"):
        unlearn(deep, REQUEST, NewtonFisher())
    assert deep.ledger.entries == ()


@pytest.mark.parametrize("curvature", ["diag_fisher", "exact_cg"])
def test_taking_training_as_converged_proves_nothing(run, curvature):
    protocol = NewtonFisher(curvature=curvature, assume_stationary=True)
    outcome = unlearn(run, REQUEST, protocol)
    assert outcome.certificate.status == "heuristic"
    assert "carry no noise" in str(outcome.certificate)  # the mean model at least
    assert {m.kind for m in outcome.messages} >= {"mean model", "noised model"}


def test_adaptive_requests_lower_the_status(run):
    certificate = unlearn(run, replace(REQUEST, adaptive=True), BARE).certificate
    assert certificate.status == "certified_conditional"
    assert certificate.reasons == (ADAPTIVE,)
    assert certificate.epsilon == 1.0


def test_a_weak_epsilon_is_called_weak(run):
    assert "weak: ε > 10" in str(
        unlearn(run, REQUEST, NewtonFisher(epsilon=11.0)).certificate
    )


# --- sequences -----------------------------------------------------------------


def test_releases_of_one_owner_compose(run):
    """decentralized-certified 7, item 10."""
    requests = [ForgetRequest.samples(peer=1, indices=[k]) for k in range(4)]
    two = unlearn(run, requests[:2], NewtonFisher())
    assert two.request.request_id == "r1"
    assert two.certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)
    assert two.certificate.status == "certified"
    earlier = assumption(two.certificate, "earlier releases of the same owner")
    assert (earlier.value, earlier.source) == (1, "proven")
    assert "all releases so far" in str(two.certificate)
    four = unlearn(run, requests, NewtonFisher())
    assert four.certificate.epsilon == pytest.approx(2.1546766577, abs=1e-9)
    assert four.as_run().requests == 4


def test_an_id_names_one_request_of_an_owner(run):
    first, second = (
        ForgetRequest.samples(peer=1, indices=[k], request_id="mine") for k in (0, 1)
    )
    with pytest.raises(InvalidForgetSetError, match="twice in one list"):
        unlearn(run, [first, second], NewtonFisher())
    after = unlearn(run, first, NewtonFisher()).as_run()
    with pytest.raises(InvalidForgetSetError, match="carries already"):
        unlearn(after, second, NewtonFisher())


def test_releases_of_other_owners_do_not_add_up(run):
    requests = [ForgetRequest.samples(peer=k, indices=[0]) for k in (1, 2)]
    outcome = unlearn(run, requests, NewtonFisher())
    assert outcome.certificate.epsilon == 1.0
    assert outcome.ledger.epsilon("peer:2", "public", 1e-5) == pytest.approx(1.0)


def test_a_sum_with_a_heuristic_release_is_not_certified(run):
    first = unlearn(run, REQUEST, NewtonFisher(assume_stationary=True)).as_run()
    second = ForgetRequest.samples(peer=1, indices=[1])
    certificate = unlearn(first, second, NewtonFisher()).certificate
    assert certificate.status == "heuristic"
    assert "earlier releases of the same owner: estimated" in certificate.reasons
    assert certificate.nominal_epsilon == pytest.approx(1.4651699604, abs=1e-9)
    other = ForgetRequest.samples(peer=2, indices=[1])
    assert unlearn(first, other, NewtonFisher()).certificate.status == "certified"


def test_a_sum_with_an_adaptive_release_is_conditional(run):
    first = unlearn(run, replace(REQUEST, adaptive=True), NewtonFisher()).as_run()
    second = ForgetRequest.samples(peer=1, indices=[1])
    certificate = unlearn(first, second, NewtonFisher()).certificate
    assert certificate.status == "certified_conditional"


def test_retraining_later_leaves_earlier_releases_spent(run):
    first = unlearn(run, REQUEST, NewtonFisher()).as_run()
    outcome = unlearn(first, ForgetRequest.samples(peer=1, indices=[1]), Retrain())
    assert outcome.certificate.status == "exact"
    assert "stay spent" in str(outcome.certificate)
    assert outcome.ledger.epsilon("peer:1", "public", 1e-5) == pytest.approx(1.0)
    assert "stay spent" not in str(unlearn(run, REQUEST, Retrain()).certificate)


# --- kinds of requests -------------------------------------------------------------


def test_a_class_charges_every_owner_for_one_draw(exact_run):
    outcome = unlearn(exact_run, ForgetRequest.class_(2), BARE)
    owners = [f"peer:{i}" for i in outcome.request.peers]
    assert len(owners) > 1
    assert [e.owner for e in outcome.ledger.entries] == owners
    assert len({e.release_id for e in outcome.ledger.entries}) == 1
    for e in outcome.ledger.entries:
        for observer in [*owners, "public"]:  # an owner sees the others' release
            assert outcome.ledger.epsilon(e.owner, observer, 1e-5) == (
                pytest.approx(1.0)
            )
    std = outcome.certificate.noise_std
    corrected = outcome.state.params[0] - std * noise(exact_run, owners[0])
    data = exact_run.data.without(outcome.request)
    assert not (data.store.labels[torch.from_numpy(data.keep)] == 2).any()
    exact = exact_minimizer(exact_run, data).theta
    assert float((corrected - exact).norm()) <= 1e-3
    assert outcome.certificate.epsilon == 1.0


def test_a_peer_that_gave_everything_back_relays(run):
    outcome = unlearn(run, ForgetRequest.whole_peer(3), NewtonFisher(recovery_rounds=2))
    assert outcome.certificate.status == "certified"
    assert outcome.as_run().data.retained[3] == 0
    received = outcome.messages.received(5)
    assert (received > 0).all()
    again = unlearn(outcome.as_run(), REQUEST, NewtonFisher())
    assert again.certificate.status == "certified"


# --- messages and cost -------------------------------------------------------------


@pytest.mark.parametrize(("how", "expected"), [("tree", 9), ("flood", 21)])
def test_dissemination_counts_its_messages(how, expected):
    """decentralized-certified 7, item 6: Petersen, 2|E| - N + 1 = 21."""
    topology = Topology.from_graph(nx.petersen_graph())
    wide = simulate(topology, blobs([5] * 10), "logistic", CONFIG)
    protocol = NewtonFisher(dissemination=how, recovery_rounds=2)
    outcome = unlearn(wide, REQUEST, protocol)
    kinds = [m.kind for m in outcome.messages]
    assert kinds.count("noised model") == expected
    assert kinds.count("recovery") == 2 * 2 * 15
    assert kinds.count("mean model") == 2 * 9
    products = outcome.cost.solver_iterations
    assert kinds.count("curvature product") == products * 2 * 9
    assert kinds.count("gradient") % (2 * 9) == 0
    edges = {tuple(e) for e in topology.edges.tolist()}
    assert {tuple(sorted((m.source, m.target))) for m in outcome.messages} <= edges
    order = list(dict.fromkeys(kinds))
    assert order.index("noised model") == len(order) - 2  # then only recovery
    size = wide.model.size * 4 + HEADER_BYTES
    assert {m.nbytes for m in outcome.messages if m.kind == "noised model"} == {size}
    assert outcome.cost.messages == len(kinds)
    assert outcome.cost.payload_bytes == sum(m.nbytes for m in outcome.messages)


def test_costs_are_counted_over_retained_rows(run):
    outcome = unlearn(run, REQUEST, BARE)
    rows = int(DATA.sizes.sum()) - 2
    assert outcome.cost.hvps == outcome.cost.solver_iterations * rows
    assert outcome.cost.solver_iterations == len(outcome.trace["solver_residual"])
    assert outcome.cost.sample_gradients % rows == 0
    assert outcome.cost.rounds == 0
    recovered = unlearn(run, REQUEST, NewtonFisher(recovery_rounds=4))
    assert recovered.cost.rounds == 4
    assert recovered.cost.sample_gradients > outcome.cost.sample_gradients


# --- refusals --------------------------------------------------------------------


def test_a_missed_cap_is_refused_before_any_charge_or_message(monkeypatch):
    run = simulate("ring", l6_data(), logistic4(), full_batch("atc", rounds=2))
    sent = []
    monkeypatch.setattr(
        "dfl_unlearn.engine.transport.Transport.broadcast",
        lambda self, *a, **k: sent.append(a),
    )
    protocol = NewtonFisher(
        curvature="diag_fisher", residual_cap=1e-9, newton_steps_max=2
    )
    with pytest.raises(ResidualExceedsCapError, match=r"after 2 corrections, above"):
        unlearn(run, REQUEST, protocol)
    assert not sent
    assert run.ledger.entries == ()


def test_a_cap_below_the_rounding_of_the_dtype_is_refused(run):
    with pytest.raises(ResidualExceedsCapError, match="train in float64"):
        unlearn(run, REQUEST, NewtonFisher(residual_cap=1e-6))


def test_a_budget_that_is_too_small_is_refused_before_any_work(monkeypatch):
    budget = PrivacyBudget(epsilon_max=0.9)
    run = simulate("ring", DATA, "logistic", replace(CONFIG, privacy_budget=budget))
    monkeypatch.setattr(newton_fisher, "correct_mean", None)
    with pytest.raises(PrivacyBudgetExceededError, match="Nothing was sent"):
        unlearn(run, REQUEST, NewtonFisher())
    monkeypatch.undo()
    assert unlearn(run, REQUEST, NewtonFisher(epsilon=0.9)).certificate.epsilon == 0.9


def test_a_single_peer_has_nobody_to_correct():
    alone = simulate(Topology.single(), DATA.pooled(), "logistic", CONFIG)
    request = ForgetRequest.samples(peer=0, indices=[0])
    with pytest.raises(TopologyError, match="needs a network of at least 2 peers"):
        unlearn(alone, request, NewtonFisher())


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"epsilon": 0.0}, InvalidPrivacyParameterError),
        ({"epsilon": float("inf")}, InvalidPrivacyParameterError),
        ({"delta": 1.0}, InvalidPrivacyParameterError),
        ({"delta": 0.0}, InvalidPrivacyParameterError),
        ({"residual_cap": 0.0}, InvalidHyperparameterError),
        ({"damping": -1.0}, InvalidHyperparameterError),
        ({"newton_steps": 0}, InvalidHyperparameterError),
        ({"newton_steps": 4, "newton_steps_max": 3}, InvalidHyperparameterError),
        ({"recovery_rounds": -1}, InvalidHyperparameterError),
    ],
)
def test_fields_out_of_bounds_are_named(fields, error):
    with pytest.raises(error, match=next(iter(fields))):
        NewtonFisher(**fields)


def test_the_rigorous_preset_is_the_defaults():
    assert NewtonFisher.preset("rigorous") == NewtonFisher()
