"""RR-DU: what is claimed, what the walk reads, where it goes, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from scipy import stats

from dfl_unlearn.accounting.budget import PrivacyBudget
from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.network import walk_rdp
from dfl_unlearn.accounting.rdp import rdp_to_epsilon
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    PrivacyBudgetExceededError,
    ResidualExceedsCapError,
    TopologyError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.shift import Removal
from dfl_unlearn.unlearning.token_walk import draw_route

CONFIG = SimulationConfig(
    rounds=300, local=LocalSteps(batch_size=8, lr_schedule="cosine"), evaluate_every=0
)
REQUEST = ForgetRequest.samples(peer=2, indices=[0, 4, 5])
QUICK = {"hops": 60, "residual_cap": 8.0}


def bounded(sizes, **fields):
    """Blobs whose features lie in a public range."""
    data = blobs(sizes, **fields)
    pairs = [
        (data.local(i).inputs.clamp(-4, 4), data.local(i).labels) for i in range(data.n)
    ]
    test = TensorBatch(data.test.inputs.clamp(-4, 4), data.test.labels)
    return PeerData.from_tensors(pairs, test=test, num_classes=3, feature_bound=4.0)


DATA = bounded([24, 30, 20, 28, 26])


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


def by_name(certificate):
    return {a.name: a for a in certificate.assumptions}


def test_the_default_is_certified_by_one_release_at_the_start(run):
    outcome = unlearn(run, REQUEST, RrDu())
    certificate = outcome.certificate
    assert (certificate.status, certificate.scope) == ("certified", "view_joint")
    assert (certificate.epsilon, certificate.delta) == (1.0, 1e-5)
    (entry,) = outcome.ledger.entries
    assert entry.scope == "view_joint"
    assert "peer:2" not in entry.observers
    assert {"peer:0", "peer:4", "public"} <= set(entry.observers)
    # public worst case 2 m L / (N (n_u - m) lambda) with L = sqrt(2) B
    bound = np.sqrt(2) * np.sqrt(6 * 16 + 1)
    cap = 2 * 3 * bound / (5 * 17 * 0.01)
    assert certificate.sensitivity == pytest.approx(cap)
    assert certificate.noise_std == pytest.approx(
        cap * gaussian_noise_std(1.0, 1e-5, 1.0)
    )
    found = by_name(certificate)
    assert found["input radius (B)"].source == "proven"
    assert found["distance of the start"].source == "measured"
    assert found["distance of the start"].value <= cap
    assert len(set(map(tuple, outcome.state.params.tolist()))) == 1


def test_the_start_is_within_the_measured_distance_of_the_minimizer(run):
    from dfl_unlearn.unlearning.retained import exact_minimizer

    certificate = unlearn(run, REQUEST, RrDu(**QUICK)).certificate
    exact = exact_minimizer(run, DATA.without(REQUEST))
    true = float((run.state.mean() - exact.theta).norm())
    measured = by_name(certificate)["distance of the start"].value
    assert 0 < true <= measured <= 8.0


@pytest.mark.parametrize("alignment", ["exact", "corrected"])
def test_after_the_start_no_forgotten_row_is_read(run, alignment):
    protocol = RrDu(alignment=alignment, **QUICK)
    mask = REQUEST.resolve(DATA).mask(DATA)
    store = TensorBatch(DATA.store.inputs.clone(), DATA.store.labels.clone())
    store.inputs[torch.from_numpy(mask)] *= 0.9
    other = replace(run, data=replace(DATA, store=store))
    request = replace(REQUEST, request_id="r0")
    ours, theirs = unlearn(run, request, protocol), unlearn(other, request, protocol)
    assert torch.equal(ours.state.params, theirs.state.params)


def test_a_lightweight_walk_does_read_them(run):
    protocol = RrDu(alignment="lightweight", clip_norm=1.0, **QUICK)
    mask = REQUEST.resolve(DATA).mask(DATA)
    store = TensorBatch(DATA.store.inputs.clone(), DATA.store.labels.clone())
    store.inputs[torch.from_numpy(mask)] *= 0.9
    other = replace(run, data=replace(DATA, store=store))
    request = replace(REQUEST, request_id="r0")
    ours, theirs = unlearn(run, request, protocol), unlearn(other, request, protocol)
    assert not torch.equal(ours.state.params, theirs.state.params)


def test_visits_that_read_forgotten_rows_are_charged_and_share_the_budget(run):
    protocol = RrDu(alignment="lightweight", clip_norm=1.0, **QUICK)
    outcome = unlearn(run, REQUEST, protocol)
    certificate, entries = outcome.certificate, outcome.ledger.entries
    visits = int(outcome.info["visits"])
    assert visits > 3
    assert len(entries) == visits
    assert certificate.status == "certified"
    assert certificate.epsilon == 1.0
    start, *later = (e.mechanism for e in entries)
    # S = (m / n_u) C w_u; on a ring with exclusion the requester holds pi_r = 1/N
    np.testing.assert_allclose([m.sensitivity for m in later], 3 / 20, rtol=1e-9)
    total = sum(m.mu**2 for m in (start, *later))
    np.testing.assert_allclose(start.mu**2, total / 2, rtol=1e-9)
    alone = gaussian_epsilon(np.sqrt(total), 1e-5)
    assert 0.99999 < alone <= 1.0


def test_hidden_visits_need_less_noise_for_the_same_epsilon(run):
    fields = {"alignment": "lightweight", "clip_norm": 1.0, **QUICK}
    open_ = unlearn(run, REQUEST, RrDu(**fields))
    hidden = unlearn(run, REQUEST, RrDu(segment_subsampling=0.1, **fields))
    certificate = hidden.certificate
    assert (certificate.status, certificate.accountant) == ("certified", "rdp")
    assert certificate.epsilon == 1.0
    visits = int(hidden.info["visits"])
    noise, full = hidden.info["visit_noise_std"], open_.info["visit_noise_std"]
    assert noise < 0.5 * full
    curve = walk_rdp(
        certificate.rdp_orders,
        start_shift=certificate.sensitivity,
        start_noise=hidden.info["start_noise_std"],
        visit_sensitivity=3 / 20,
        visit_noise=noise,
        visits=visits,
        rate=0.1,
    )
    found = rdp_to_epsilon(certificate.rdp_orders, curve, 1e-5).epsilon
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    _, *later = (e.mechanism for e in hidden.ledger.entries)
    assert len(later) == visits - 1
    assert {(type(m), m.rate) for m in later} == {(SampledGaussianMechanism, 0.1)}
    # The ledger holds what the certificate says, and is never below it.
    spent = hidden.ledger.epsilon("peer:2", "public", 1e-5)
    assert found * (1 - 1e-12) <= spent <= found * (1 + 1e-9)
    # Reading no forgotten row in a visit is the common case, adding no noise never is.
    assert hidden.cost.sample_gradients < open_.cost.sample_gradients
    with pytest.raises(InvalidHyperparameterError, match="segment_subsampling: must"):
        RrDu(segment_subsampling=0.1)


def test_an_epsilon_that_hidden_visits_cannot_show_is_refused(run):
    protocol = RrDu(
        alignment="lightweight",
        clip_norm=1.0,
        segment_subsampling=0.1,
        epsilon=1e-3,
        **QUICK,
    )
    with pytest.raises(
        InvalidHyperparameterError, match=r"got 0\.1 with epsilon 0\.001: the start"
    ):
        unlearn(run, REQUEST, protocol)
    assert not run.ledger.entries


def test_the_transcript_claim_is_no_claim_of_unlearning(run):
    free = unlearn(run, REQUEST, RrDu(certify="transcript", hops=40))
    assert free.certificate.status == "heuristic"
    assert free.certificate.scope == "transcript"
    assert (free.certificate.epsilon, free.certificate.nominal_epsilon) == (None, 0.0)
    assert not free.ledger.entries
    assert "not claimed" in str(free.certificate)
    paid = unlearn(
        run,
        REQUEST,
        RrDu(certify="transcript", alignment="lightweight", clip_norm=2.0, hops=40),
    )
    assert paid.certificate.nominal_epsilon == 1.0
    assert len(paid.ledger.entries) == paid.info["visits"] - 1


def test_the_published_calibration_is_heuristic_and_says_why(run):
    outcome = unlearn(run, REQUEST, RrDu.preset("lamri2026"))
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert (certificate.epsilon, certificate.nominal_epsilon) == (None, 1.0)
    assert any("noise of the start" in reason for reason in certificate.reasons)
    assert any("published noise" in reason for reason in certificate.reasons)
    assert outcome.cost.hops == 100


def test_realized_messages_are_what_the_transport_counted(run):
    outcome = unlearn(run, REQUEST, RrDu(**QUICK))
    tokens = [m for m in outcome.messages if m.kind == "token"]
    assert len(tokens) == outcome.trace["messages"].sum()
    assert outcome.cost.messages == len(tokens) + DATA.n - 1
    holders = outcome.trace["holder"].astype(int)
    assert holders[0] == 2
    arrivals = np.cumsum(outcome.trace["messages"]).astype(int)
    for hop in range(1, len(holders)):
        if arrivals[hop] > arrivals[hop - 1]:
            assert tokens[arrivals[hop] - 1].target == holders[hop]
        else:
            assert holders[hop] == holders[hop - 1]
    visits = np.flatnonzero(holders == 2)
    np.testing.assert_array_equal(outcome.trace["gap"], np.diff(visits))
    assert outcome.info["visits"] == len(visits)


def route(topology, *, hops=40_000, natural_visit="exclude", **fields):
    chosen = {
        "restart": 1 / topology.n,
        "walk": "mh",
        "lazy": 0.0,
        "importance": True,
        "max_weight": 1e9,
        "rng": RngTree(3),
        "request_id": "r0",
        **fields,
    }
    return draw_route(topology, 1, hops=hops, natural_visit=natural_visit, **chosen)


@pytest.mark.statistical
@pytest.mark.parametrize("natural_visit", ["exclude", "relay", "noisy"])
def test_holders_follow_their_law(natural_visit):
    """Confidence 0.999; every 40th hop is nearly fresh at a quarter restarts."""
    topology = load_topology("watts-strogatz", n=8, seed=1)
    drawn = route(topology, natural_visit=natural_visit, restart=0.25)
    seen = np.bincount(drawn.holders[::40], minlength=8)
    assert stats.chisquare(seen, drawn.law * seen.sum()).pvalue > 1e-3
    wrong = np.full(8, 1 / 8)
    assert stats.chisquare(seen, wrong * seen.sum()).pvalue < 1e-3


@pytest.mark.statistical
def test_gaps_between_visits_are_geometric():
    """Confidence 0.999, fixed seed; a wrong rate is rejected."""
    gaps = np.diff(route(load_topology("ring", n=8)).visits)
    edges = np.arange(1, 25)
    seen = np.array([*(np.sum(gaps == k) for k in edges), np.sum(gaps > edges[-1])])

    def p_value(rate):
        law = rate * (1 - rate) ** (edges - 1)
        law = np.array([*law, 1 - law.sum()])
        return stats.chisquare(seen, law * seen.sum()).pvalue

    assert p_value(1 / 8) > 1e-3
    assert p_value(1 / 7) < 1e-3


@pytest.mark.parametrize("natural_visit", ["exclude", "relay", "noisy"])
@pytest.mark.parametrize("name", ["ring", "watts-strogatz", "complete"])
def test_weighted_steps_follow_the_networks_gradient_on_average(name, natural_visit):
    topology = load_topology(name, n=8)
    data = bounded([9, 12, 7, 10, 8, 11, 6, 13], dtype=np.float64)
    kept = data.without(ForgetRequest.samples(peer=1, indices=[0, 1]))
    model = simulate(topology, data, "logistic", SimulationConfig(rounds=1)).model
    drawn = route(topology, natural_visit=natural_visit, hops=1)
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=model.size))
    rate = drawn.law.copy()
    if natural_visit == "relay":
        rate[1] = 1 / 8
    total = torch.zeros_like(theta)
    for v in range(8):
        leaf = theta.clone().requires_grad_()
        batch = (kept.local(v).inputs, kept.local(v).labels)
        gradient = torch.autograd.grad(model.loss(leaf, batch), leaf)[0]
        total += rate[v] * drawn.weights[v] * gradient
    exact = network_objective(model, kept, "uniform").gradient(theta)
    np.testing.assert_allclose(total, exact, rtol=1e-9, atol=1e-12)


def test_the_same_seed_gives_the_same_bits(run):
    protocol = RrDu(alignment="lightweight", clip_norm=1.0, optimizer="adam", **QUICK)
    first, second = (unlearn(run, REQUEST, protocol) for _ in range(2))
    assert torch.equal(first.state.params, second.state.params)


def test_the_walk_learns_again_what_the_noise_took(run):
    outcome = unlearn(run, REQUEST, RrDu(), reference=True)
    scores = {}
    for name, state in (("after", outcome.state), ("before", outcome.reference.state)):
        logits = outcome.run.model.predict_all(state.params, DATA.test.inputs)
        right = logits.argmax(2) == DATA.test.labels
        scores[name] = float(right.double().mean())
    assert scores["after"] >= 0.9 * scores["before"]


@pytest.mark.parametrize(
    "request_",
    [ForgetRequest.whole_peer(2), ForgetRequest.class_(1), REQUEST],
    ids=["peer", "class", "samples"],
)
def test_every_kind_is_certified(run, request_):
    certificate = unlearn(run, request_, RrDu(hops=60)).certificate
    assert certificate.status == "certified"


def test_a_radius_from_the_rows_themselves_is_only_conditional():
    data = blobs([24, 30, 20, 28, 26])
    run = simulate("ring", data, "logistic", CONFIG)
    certificate = unlearn(run, REQUEST, RrDu(hops=40)).certificate
    assert certificate.status == "certified_conditional"
    assert "input radius (B): assumed" in certificate.reasons
    capped = unlearn(run, REQUEST, RrDu(**QUICK)).certificate
    assert capped.status == "certified"


def test_a_network_is_heuristic_and_an_assumed_distance_conditional():
    run = simulate("ring", DATA, "mlp", replace(CONFIG, rounds=20))
    with pytest.raises(InvalidHyperparameterError, match="residual_cap: must be given"):
        unlearn(run, REQUEST, RrDu(hops=40))
    nominal = unlearn(run, REQUEST, RrDu(**QUICK)).certificate
    assert (nominal.status, nominal.nominal_epsilon) == ("heuristic", 1.0)
    assumed = unlearn(run, REQUEST, RrDu(delta0="assumed", **QUICK)).certificate
    assert assumed.status == "certified_conditional"


def test_a_cap_that_does_not_hold_is_refused_before_anything_is_charged(run):
    with pytest.raises(ResidualExceedsCapError, match=r"above the cap 0.01; nothing"):
        unlearn(run, REQUEST, RrDu(residual_cap=0.01))
    assert not run.ledger.entries


def test_owners_of_a_class_are_held_to_what_each_can_check_alone(run):
    request = ForgetRequest.class_(1)
    resolved = request.resolve(DATA)
    assert len(resolved.peers) > 1
    removal = Removal.of(DATA, resolved, "uniform")
    mean, l2 = run.state.mean(), run.model.l2
    tau = run.record.training_residual[run.state.round]
    together = (removal.kappa * tau + removal.norm(run.model, DATA, mean)) / l2
    # Only who adds up vectors of several owners could know that this cap holds.
    with pytest.raises(ResidualExceedsCapError, match="nothing was sent"):
        unlearn(run, request, RrDu(hops=40, residual_cap=1.001 * together))
    assert not run.ledger.entries


def test_the_budget_is_asked_before_the_walk(run):
    config = replace(CONFIG, privacy_budget=PrivacyBudget(epsilon_max=0.9))
    poor = simulate("ring", DATA, "logistic", config)
    with pytest.raises(PrivacyBudgetExceededError):
        unlearn(poor, REQUEST, RrDu())
    assert unlearn(poor, REQUEST, RrDu(epsilon=0.8)).certificate.epsilon == 0.8


def test_less_noise_costs_a_larger_epsilon(run):
    half = 8.0 * gaussian_noise_std(2.0, 1e-5, 1.0)
    certificate = unlearn(
        run, REQUEST, RrDu(release_noise_std=half, **QUICK)
    ).certificate
    np.testing.assert_allclose(certificate.epsilon, 2.0, rtol=1e-6)
    none = unlearn(run, REQUEST, RrDu(release_noise_std=0.0, **QUICK)).certificate
    assert (none.status, none.epsilon) == ("heuristic", None)


def test_max_visits_ends_the_walk_early(run):
    outcome = unlearn(run, REQUEST, RrDu(max_visits=3, **QUICK))
    assert outcome.info["visits"] == 3
    assert outcome.cost.hops < 60


def test_the_trust_region_holds_the_token_and_says_so(run):
    protocol = RrDu(
        alignment="lightweight", clip_norm=1.0, radius=1e-3, learning_rate=5.0, **QUICK
    )
    outcome = unlearn(run, REQUEST, protocol)
    assert any("edge of the trust region" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment": "lightweight"}, "clip_norm: must be given with alignment"),
        ({"calibration": "lamri_view"}, "clip_norm: must be given with calibration"),
        ({"delta0": "assumed"}, "residual_cap: must be given with delta0"),
        ({"restart_probability": 0.0}, "restart_probability: must be .* got 0"),
        ({"restart_probability": 1.5}, "restart_probability: must be .* got 1.5"),
        ({"scope": "joint"}, "scope: must be one of view_joint, got .joint"),
        ({"hops": 0}, "hops: must be .* got 0"),
        ({"radius": 0.0}, "radius: must be .* got 0"),
        ({"local_batches": 0}, "local_batches: must be .* got 0"),
        ({"clip_norm": -1.0}, "clip_norm: must be .* got -1"),
        ({"visit_noise_std": -0.1}, "visit_noise_std: must be .* got -0.1"),
        ({"epsilon": 0.0}, "epsilon: must be .* got 0"),
        ({"delta": 1.0}, "delta: must be .* got 1"),
        ({"lazy": 1.0}, "lazy: must be .* got 1"),
    ],
)
def test_bad_fields_are_named(fields, message):
    from dfl_unlearn.errors import InvalidArgumentError

    with pytest.raises(InvalidArgumentError, match=message):
        RrDu(**fields)


def test_what_it_does_not_serve_is_refused(run):
    alone = simulate(Topology.single(), DATA.pooled(), "logistic", CONFIG)
    with pytest.raises(TopologyError, match="at least 2 peers"):
        unlearn(alone, ForgetRequest.samples(peer=0, indices=[1]), RrDu())
    with pytest.raises(UnsupportedRequestError, match="one owner"):
        unlearn(
            run,
            ForgetRequest.class_(1),
            RrDu(alignment="lightweight", clip_norm=1.0),
        )
    bare = simulate(
        "ring", DATA, "logistic", replace(CONFIG, record=RecordPlan(parts=frozenset()))
    )
    with pytest.raises(MissingRecordError, match="training_residual"):
        unlearn(bare, REQUEST, RrDu())
    path = simulate("star", DATA, "logistic", CONFIG)
    with pytest.raises(TopologyError, match="avoid: every other peer"):
        unlearn(path, ForgetRequest.samples(peer=0, indices=[1]), RrDu())
