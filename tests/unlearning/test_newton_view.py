"""Newton/Fisher under claims about all messages: nothing leaves before the noise."""

from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blobs, full_batch

from dfl_unlearn.accounting.certificate import certify
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Guard, Transport
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    ResidualExceedsCapError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.newton_view import _least_share, correct_alone
from dfl_unlearn.unlearning.protocols import newton_fisher
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

DATA = blobs([12, 7, 9, 10, 8], dtype=np.float64)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
VIEW = NewtonFisher(scope="view_joint", curvature="local", residual_cap=50.0)
SECURE = NewtonFisher(scope="view", assume_secure_aggregation=True)
MODEL = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)


@pytest.fixture(scope="module")
def run():
    local = LocalSteps(batch_size=5, learning_rate=0.03)
    config = SimulationConfig(
        rounds=100, local=local, evaluate_every=0, dtype="float64"
    )
    return simulate("ring", DATA, MODEL, config)


def noise(run, request="r0"):
    return RngTree(run.config.seed).normal(
        (run.model.size,), "unlearn-noise", who="peer:1", request=request, draw=0
    )


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


# --- the claim -----------------------------------------------------------------


@pytest.mark.parametrize("scope", ["view", "view_joint"])
def test_the_requester_corrects_alone_and_is_certified(run, scope):
    protocol = replace(VIEW, scope=scope, recovery_rounds=0)
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert (certificate.scope, certificate.epsilon) == (scope, 1.0)
    assert certificate.noise_std == gaussian_noise_std(1.0, 1e-5, 50.5)
    others = ("peer:0", "peer:2", "peer:3", "peer:4", "public")
    assert certificate.observers == others
    params = outcome.state.params
    assert torch.equal(params, params[:1].expand_as(params))
    corrected = params[0] - certificate.noise_std * noise(run)
    target = exact_minimizer(run, DATA.without(REQUEST), gradient_norm=1e-13).theta
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float((corrected - target).norm()) <= bound + 1e-9
    assert "without noise: scope" not in str(certificate)
    assert "none" in assumption(certificate, "messages before the release").value
    text = str(certificate)
    assert "tau was recorded before the" in text
    assert "the mean of all models, which the correction starts from" in text
    assert "Delta_pri = (gmax - removed / 2) / lambda" in text


def test_only_the_noised_model_and_later_rounds_are_sent(run):
    outcome = unlearn(run, REQUEST, replace(VIEW, recovery_rounds=2))
    kinds = list(dict.fromkeys(m.kind for m in outcome.messages))
    assert kinds == ["noised model", "recovery"]
    assert outcome.messages.guarded
    (entry,) = outcome.ledger.entries
    assert (entry.scope, entry.state) == ("view_joint", "committed")
    assert outcome.cost.sample_gradients - 2 * int(DATA.without(REQUEST).keep.sum()) < (
        DATA.sizes[1] + 2 * 5 * 5
    )


def test_what_follows_the_release_is_training_on_retained_rows(run):
    """So it is post-processing: nothing of the old models enters."""
    released = unlearn(run, REQUEST, replace(VIEW, recovery_rounds=0))
    outcome = unlearn(run, REQUEST, replace(VIEW, recovery_rounds=3))
    start = PeerState(params=released.state.params, round=run.state.round)
    expected, _ = continue_training(run, DATA.without(REQUEST), start, 3)
    assert torch.equal(outcome.state.params, expected.params)


def test_the_correction_reads_no_rows_but_the_owners(run):
    """Other peers' data may change; at a given common model and record nothing does."""
    other = blobs([12, 7, 9, 10, 8], seed=3, dtype=np.float64)
    inputs = other.store.inputs.clone()
    labels = other.store.labels.clone()
    mine = DATA.rows(1)
    inputs[mine], labels[mine] = DATA.store.inputs[mine], DATA.store.labels[mine]
    changed = replace(other, store=TensorBatch(inputs=inputs, labels=labels))
    first = correct_alone(VIEW, run, REQUEST.resolve(DATA))
    second = correct_alone(VIEW, replace(run, data=changed), REQUEST.resolve(changed))
    assert torch.equal(first.rows, second.rows)
    assert first.distance == second.distance


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3]),
    l2=st.sampled_from([0.02, 0.3, 3.0]),
    weighting=st.sampled_from(["uniform", "size"]),
    kind=st.sampled_from(["samples", "fixed", "peer", "class"]),
    rounds=st.sampled_from([1, 40]),
)
def test_the_vouched_distance_is_never_below_the_true_one(
    seed, classes, l2, weighting, kind, rounds
):
    data = blobs([6, 5, 8, 4], seed=seed, classes=classes, dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=classes, l2=l2)
    config = full_batch("atc", rounds=rounds, peer_weighting=weighting)
    run = simulate("path", data, model, config)
    request = {
        "samples": ForgetRequest.samples(peer=1, indices=[0, 2]),
        "fixed": ForgetRequest.samples(peer=1, indices=[0, 2], normalization="fixed"),
        "peer": ForgetRequest.whole_peer(2),
        "class": ForgetRequest.class_(0),
    }[kind].resolve(data)
    correction = correct_alone(VIEW, run, request)
    target = exact_minimizer(run, data.without(request), gradient_norm=1e-12).theta
    true = float((correction.rows[0] - target).norm())
    assert true <= correction.distance + 1e-9
    kept = network_objective(run, data.without(request))
    start = float(kept.gradient(run.state.mean()).norm())
    assert start <= correction.residuals[0] + 1e-9


def at_rest(model, data):
    """A run of three peers at the minimizer of all data."""
    run = simulate("path", data, model, full_batch("atc", rounds=1))
    theta = exact_minimizer(run, gradient_norm=1e-14).theta
    record = replace(run.record, training_residual={1: 1e-14})
    state = PeerState(params=theta.expand(3, -1).clone(), round=1)
    return replace(run, state=state, record=record)


@pytest.mark.parametrize(
    ("name", "classes"), [("linear", 0), ("logistic", 2), ("logistic", 3)]
)
def test_the_requesters_own_curvature_more_than_halves_the_shift(name, classes):
    """(tau + |r| / 2) / lambda is the most; its own rows tell more."""
    data = blobs([30, 25, 28], classes=max(classes, 2), dtype=np.float64)
    if name == "linear":
        labels = data.store.labels.double()
        tested = TensorBatch(data.test.inputs, data.test.labels.double())
        store = TensorBatch(data.store.inputs, labels)
        data = replace(data, store=store, test=tested, num_classes=0)
    model = models.build(name, input_shape=(6,), num_classes=classes, l2=0.3)
    run = at_rest(model, data)
    request = REQUEST.resolve(data)
    left = data.without(request)
    kept = network_objective(run, left)
    theta = run.state.params[0]
    r = kept.gradient(theta)
    correction = correct_alone(VIEW, run, request)
    half = float(r.norm()) / 0.6
    assert correction.distance < 0.95 * half
    target = exact_minimizer(run, left, gradient_norm=1e-13).theta
    true = float((correction.rows[0] - target).norm())
    assert true <= correction.distance
    # The correction is A^-1 r / 2 with A between lambda and the requester's curvature.
    weights = np.where(data.owner == 1, kept.weights, 0.0)
    own = replace(kept, weights=weights).hessian(theta)
    unit = torch.eye(len(theta), dtype=torch.float64)
    hessian = torch.stack([own @ row for row in unit])
    whole = -torch.linalg.solve(hessian, r) / 2
    if name == "linear":  # the curvature is the same all the way
        np.testing.assert_allclose(correction.move, whole, atol=1e-7)
    assert float(whole.norm()) <= float(correction.move.norm()) + 1e-9 <= half + 1e-8


def test_a_requester_that_keeps_nothing_has_the_middle_of_all_there_is():
    data = blobs([6, 5, 8], dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.3)
    run = at_rest(model, data)
    request = ForgetRequest.whole_peer(1).resolve(data)
    theta = run.state.params[0]
    gradient = network_objective(run, data.without(request)).gradient(theta)
    correction = correct_alone(VIEW, run, request)
    np.testing.assert_allclose(correction.move, -gradient / 0.6, atol=1e-13)
    assert correction.distance == pytest.approx(float(gradient.norm()) / 0.6, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_curvature_along_a_way_stays_above_its_share(classes):
    """The integral of H along the way minus s H(start) has no negative direction."""
    data = blobs([12, 9], classes=classes, dtype=np.float64)
    model = models.build("logistic", input_shape=(6,), num_classes=classes, l2=0.3)
    run = simulate("path", data, model, full_batch(rounds=1))
    mine = data.owner == 0
    plain = models.build("logistic", input_shape=(6,), num_classes=classes, l2=0.0)
    weights = np.where(mine, 1.0, 0.0)
    objective = Objective(
        model=plain,
        inputs=data.store.inputs,
        labels=data.store.labels,
        weights=weights,
    )
    unit = torch.eye(model.size, dtype=torch.float64)

    def hessian(theta):
        operator = objective.hessian(theta)
        return torch.stack([operator @ row for row in unit])

    generator = torch.Generator().manual_seed(classes)
    for length in (0.02, 0.3, 2.0):
        share = _least_share(run, mine, length)
        assert 0 < share < 1
        for _ in range(10):
            start, way = torch.randn(2, model.size, generator=generator).double()
            way *= length / way.norm()
            points = (np.arange(40) + 0.5) / 40
            mean = sum(hessian(start + t * way) for t in points) / 40
            least = torch.linalg.eigvalsh(mean - share * hessian(start))[0]
            assert float(least) >= -1e-6
    assert _least_share(run, mine, np.inf) == 0
    assert _least_share(run, mine, 0.0) == 1


# --- several owners -------------------------------------------------------------


def test_owners_of_a_class_check_public_shares_and_all_are_charged(run):
    request = ForgetRequest.class_(2)
    outcome = unlearn(run, request, VIEW)
    certificate = outcome.certificate
    owners = [f"peer:{i}" for i in outcome.request.peers]
    assert len(owners) > 1
    assert certificate.status == "certified"
    assert [e.owner for e in outcome.ledger.entries] == owners
    assert len({e.release_id for e in outcome.ledger.entries}) == 1
    assert not set(certificate.observers) & set(owners)
    assert "each of whom checks a public share" in str(certificate)
    first = next(iter(outcome.messages))
    assert first.source == outcome.request.requester


# --- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"curvature": "exact_cg"}, "curvature: must be 'local'.*assume_secure"),
        ({"curvature": "diag_fisher"}, "curvature: must be 'local'"),
        ({"target": "dsgd_fixed_point"}, "must be"),
        ({"noise_placement": "independent"}, "noise_placement: must be 'broad"),
        ({"noise_placement": "broadcast_correction"}, "noise_placement: must be"),
        ({"assume_stationary": True}, "assume_stationary: must be False"),
        ({"damping": 0.1}, "damping: must be 0.0"),
        ({"state_policy": "secret_state"}, "only the requester knows"),
        ({"newton_steps": 2}, "newton_steps: must be 1"),
    ],
)
def test_what_would_send_without_noise_is_refused_by_the_fields(changes, named):
    with pytest.raises(InvalidHyperparameterError, match=named):
        replace(VIEW, **changes)


def test_secure_aggregation_is_an_assumption_for_views_only():
    with pytest.raises(InvalidHyperparameterError, match="must be False unless scope"):
        NewtonFisher(assume_secure_aggregation=True)


@pytest.mark.parametrize("scope", ["view", "view_joint"])
def test_a_protocol_that_sums_under_a_view_is_refused_by_the_transport(
    run, scope, monkeypatch
):
    """Even where its own fields let it try."""

    def sums_all_the_same(protocol, run, request):
        run.transport().all_reduce("gradient", 8, request.requester)
        return correct_alone(protocol, run, request)

    monkeypatch.setattr(newton_fisher, "correct_alone", sums_all_the_same)
    with pytest.raises(SensitivityUnprovenError, match="'gradient' before it"):
        unlearn(run, REQUEST, replace(VIEW, scope=scope))
    assert run.ledger.entries == ()


@pytest.mark.parametrize("way", ["send", "broadcast", "all_reduce", "exchange"])
def test_a_guard_holds_every_way_of_sending_back(way):
    released = []
    topology = Topology.from_graph(nx.path_graph(3))
    guard = Guard(request_id="r7", released=lambda: bool(released))
    transport = Transport(topology, guard=guard)
    args = {
        "send": (0, 1, "model", 8),
        "broadcast": (0, "model", 8, "tree"),
        "all_reduce": ("model", 8),
        "exchange": ("model", 8),
    }[way]
    with pytest.raises(SensitivityUnprovenError, match=r"request r7.*'model'"):
        getattr(transport, way)(*args)
    assert len(transport.log) == 0
    released.append(True)
    getattr(transport, way)(*args)
    assert len(transport.log) > 0
    hidden = Transport(
        topology, guard=replace(guard, released=lambda: False, sums=True)
    )
    if way == "all_reduce":
        hidden.all_reduce(*args)
    else:
        with pytest.raises(SensitivityUnprovenError):
            getattr(hidden, way)(*args)


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Claims about all messages; sends the model first, or is not watched."""

    early: bool = True
    noised_only: bool = True
    claim: ClassVar[str] = "certified"

    def unlearn(self, run, request, rng):
        transport = run.transport()
        if self.early:
            transport.exchange("model", 8)
        GaussianRelease(sensitivity=1.0, noise_std=3.8)(
            run.state.params[0],
            ledger=run.ledger,
            request_id=request.request_id,
            owner="peer:1",
            observers=("public",),
            rng=rng,
            scope="view_joint",
        )
        transport.exchange("model", 8)
        certificate = certify(
            method="careless",
            request_id=request.request_id,
            group_size=None,
            scope="view_joint",
            epsilon=1.0,
            delta=1e-5,
            sensitivity=1.0,
            bound="capped",
            noise_std=3.8,
            accountant="exact_gaussian",
            assumptions=(),
            observers=("public",),
        )
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=run.state,
            certificate=certificate,
            cost=Cost(),
            ledger=run.ledger,
            messages=transport.log,
        )


def test_anybodys_claim_about_views_is_watched(run, monkeypatch):
    monkeypatch.setattr(protocols, "_entries", dict(protocols._entries))
    protocols.names()
    protocols.register("careless")(Careless)
    with pytest.raises(SensitivityUnprovenError, match="'model' before it"):
        unlearn(run, REQUEST, Careless())
    with pytest.raises(SensitivityUnprovenError, match="unguarded log"):
        unlearn(run, REQUEST, Careless(early=False, noised_only=False))
    outcome = unlearn(run, REQUEST, Careless(early=False))
    assert outcome.certificate.status == "certified"
    again = unlearn(outcome.as_run(), REQUEST_2, Careless(early=False))
    assert again.messages.guarded
    with pytest.raises(SensitivityUnprovenError):  # an older release does not count
        unlearn(outcome.as_run(), REQUEST_2, Careless())


REQUEST_2 = ForgetRequest.samples(peer=1, indices=[1])


def test_the_token_walk_is_watched_too(run):
    outcome = unlearn(run, REQUEST, RrDu(hops=5, residual_cap=100.0))
    assert outcome.certificate.status == "certified"
    assert outcome.messages.guarded
    bare = unlearn(run, REQUEST, RrDu(hops=5, certify="transcript"))
    assert not bare.messages.guarded
    assert not RrDu.preset("lamri2026").noised_only
    assert not RrDu(release_noise_std=0.0).noised_only


def test_the_record_must_hold_the_residual_of_the_last_round(run):
    assert NewtonFisher().needs == frozenset()
    plan = RecordPlan.for_protocols(VIEW, NewtonFisher, RrDu)
    assert plan.parts == {"training_residual"}
    assert RecordPlan.for_protocols(NewtonFisher).parts == frozenset()
    advice = r"record=RecordPlan.for_protocols\(protocol\)"
    with pytest.raises(MissingRecordError, match=advice):
        unlearn(replace(run, record=None), REQUEST, VIEW)
    first = unlearn(run, REQUEST, VIEW)
    with pytest.raises(MissingRecordError, match="training_residual"):
        unlearn(first.as_run(), REQUEST_2, VIEW)
    moved = replace(run, state=replace(run.state, round=101))
    with pytest.raises(MissingRecordError, match="of the last round for a view"):
        unlearn(moved, REQUEST, VIEW)


def test_networks_are_pointed_to_final_models():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,), l2=0.01)
    deep = simulate("ring", DATA, model, SimulationConfig(rounds=2))
    with pytest.raises(UnsupportedRequestError, match="'joint' or 'release'"):
        unlearn(deep, REQUEST, VIEW)


def test_a_missed_cap_is_refused_at_the_requester(run):
    with pytest.raises(ResidualExceedsCapError, match="only known to lie within"):
        unlearn(run, REQUEST, replace(VIEW, residual_cap=0.01))
    assert run.ledger.entries == ()


# --- with secure aggregation ----------------------------------------------------------


def test_secure_aggregation_is_assumed_and_printed(run):
    outcome = unlearn(run, REQUEST, SECURE)
    certificate = outcome.certificate
    assert certificate.status == "certified_conditional"
    assert certificate.epsilon == 1.0
    assert certificate.reasons == ("secure aggregation: assumed",)
    assert "the simulator does not do this" in str(certificate)
    assert certificate.noise_std == gaussian_noise_std(1.0, 1e-5, 1.01e-3)
    assert {m.kind for m in outcome.messages} == {
        "mean model",
        "gradient",
        "curvature product",
        "noised model",
        "recovery",
    }
    assert outcome.messages.guarded


def test_secure_aggregation_hides_sums_and_nothing_else(run, monkeypatch):
    def gossips(protocol, run, kept, request, rng, transport):
        transport.exchange("model", 8)

    monkeypatch.setattr(newton_fisher, "correct_mean", gossips)
    with pytest.raises(SensitivityUnprovenError, match="'model' before it"):
        unlearn(run, REQUEST, SECURE)


def test_the_bound_before_says_what_l_comes_from(run):
    text = str(unlearn(run, REQUEST, VIEW).certificate)
    assert "L = " in text
    assert "(proven for B); B = " in text
    assert "from the stored rows" in text
