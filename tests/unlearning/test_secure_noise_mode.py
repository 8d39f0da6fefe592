"""Protocols with noise from the operating system: charges, claims and exports."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs, full_batch
from safetensors.torch import load_file

from dfl_unlearn.accounting.budget import PrivacyBudget
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import DiscreteGaussianMechanism
from dfl_unlearn.accounting.rdp import curve_of
from dfl_unlearn.accounting.release import project_ball_
from dfl_unlearn.accounting.secure_noise import to_grid
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    InsecureNoiseError,
    InvalidArgumentError,
    InvalidHyperparameterError,
    PrivacyBudgetExceededError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.retained import exact_minimizer

CONFIG = SimulationConfig(
    rounds=300, local=LocalSteps(batch_size=8, lr_schedule="cosine"), evaluate_every=0
)
REQUEST = ForgetRequest.samples(peer=2, indices=[0, 4, 5])
OTHER = ForgetRequest.samples(peer=2, indices=[1, 2])
WALK = RrDu(hops=60, residual_cap=8.0, noise_mode="secure")
VISITS = replace(WALK, alignment="lightweight", clip_norm=1.0)
RDP = gaussian_noise_std(1.0, 1e-5, 1.0, method="rdp")


def bounded(sizes):
    """Blobs whose features lie in a public range."""
    data = blobs(sizes)
    pairs = [
        (data.local(i).inputs.clamp(-4, 4), data.local(i).labels) for i in range(data.n)
    ]
    test = TensorBatch(data.test.inputs.clamp(-4, 4), data.test.labels)
    return PeerData.from_tensors(pairs, test=test, num_classes=3, feature_bound=4.0)


@pytest.fixture(scope="module")
def run():
    return simulate("ring", bounded([24, 30, 20, 28, 26]), "logistic", CONFIG)


def by_name(certificate):
    return {a.name: a for a in certificate.assumptions}


def whole_steps(value, grid):
    steps = value.double() / grid
    return torch.equal(steps, steps.round())


# --- rr-du ---------------------------------------------------------------------------


def test_a_secure_walk_is_certified_by_renyi_orders(run):
    outcome = unlearn(run, REQUEST, WALK)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert (certificate.epsilon, certificate.delta) == (1.0, 1e-5)
    assert (certificate.noise_mode, certificate.numerics) == ("secure", "grid")
    assert certificate.accountant == "rdp"
    (entry,) = outcome.ledger.entries
    assert (entry.state, entry.noise_mode) == ("committed", "secure")
    assert isinstance(entry.mechanism, DiscreteGaussianMechanism)
    grid, size = entry.mechanism.grid, run.model.size
    assert certificate.sensitivity == entry.mechanism.sensitivity
    assert certificate.noise_std == entry.mechanism.noise_std
    assert certificate.noise_std == pytest.approx(
        RDP * certificate.sensitivity, rel=1e-8
    )
    plain = unlearn(run, REQUEST, replace(WALK, noise_mode="simulated")).certificate
    assert certificate.sensitivity == pytest.approx(
        plain.sensitivity + grid * math.sqrt(size), rel=1e-14
    )
    assert 1.05 * plain.noise_std < certificate.noise_std < 1.3 * plain.noise_std
    spent = outcome.ledger.epsilon("peer:2", "public", 1e-5)
    assert 1 - 1e-6 < spent <= 1.0
    assert by_name(certificate)["grid of the start"].value == grid
    assert any("cannot be repeated" in note for note in certificate.notes)


def test_the_start_of_a_secure_walk_lies_on_its_grid(run, monkeypatch):
    seen = []

    def watched(theta, radius):
        seen.append(theta.clone())
        return project_ball_(theta, radius)

    monkeypatch.setattr("dfl_unlearn.unlearning.token.project_ball_", watched)
    (entry,) = unlearn(run, REQUEST, WALK).ledger.entries
    (start,) = seen
    assert whole_steps(start, entry.mechanism.grid)
    assert not whole_steps(run.state.mean(), entry.mechanism.grid)


def test_secure_noise_is_never_the_same_twice(run):
    first, second = (unlearn(run, REQUEST, WALK).state.params for _ in range(2))
    assert not torch.isclose(first, second).any()
    plain = replace(WALK, noise_mode="simulated")
    first, second = (unlearn(run, REQUEST, plain).state.params for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("certify", ["retrain", "transcript"])
def test_secure_visits_share_the_budget(run, certify):
    outcome = unlearn(run, REQUEST, replace(VISITS, certify=certify))
    certificate = outcome.certificate
    # A transcript is no claim of unlearning, so its epsilon is nominal.
    claimed = certify == "retrain"
    assert (certificate.epsilon if claimed else certificate.nominal_epsilon) == 1.0
    entries = outcome.ledger.entries
    visits = int(outcome.info["visits"]) - 1
    assert len(entries) == visits + claimed > 2
    spent = outcome.ledger.epsilon("peer:2", "public", 1e-5)
    assert 1 - 1e-6 < spent <= 1.0
    rho = [entry.mechanism.rho for entry in entries]
    if claimed:
        assert rho[0] == pytest.approx(sum(rho[1:]), rel=1e-8)
    # What the certificate shows is one release as costly as all.
    shown = certificate.sensitivity / certificate.noise_std
    assert shown**2 / 2 == pytest.approx(sum(rho), rel=1e-12)
    assert certificate.rdp == pytest.approx(
        outcome.ledger.spent("peer:2", "public").values, rel=1e-12
    )


def test_a_given_noise_is_taken_as_it_is(run):
    outcome = unlearn(run, REQUEST, replace(WALK, release_noise_std=50.0))
    certificate = outcome.certificate
    assert certificate.noise_std == 50.0
    curve = outcome.ledger.spent("peer:2", "public")
    assert certificate.epsilon == curve.to_epsilon(1e-5).epsilon
    silent = unlearn(run, REQUEST, replace(WALK, release_noise_std=0.0)).certificate
    assert (silent.status, silent.noise_mode) == ("heuristic", "simulated")
    assert "noise of the start" in by_name(silent)


def test_secure_requests_add_up_by_renyi_orders(run):
    first = unlearn(run, REQUEST, WALK)
    after = replace(first.as_run(), record=run.record)
    second = unlearn(after, OTHER, replace(WALK, delta0="assumed"))
    certificate = second.certificate
    curve = second.ledger.spent("peer:2", "public")
    assert certificate.rdp == tuple(curve.values)
    assert certificate.epsilon == curve.to_epsilon(1e-5).epsilon > 1.4
    plain = replace(WALK, delta0="assumed", noise_mode="simulated")
    third = unlearn(after, OTHER, plain).certificate
    assert third.noise_mode == "simulated"
    # Real and discrete noise together have no exact value.
    assert third.accountant == "rdp"
    assert third.epsilon > 1.4


def test_a_budget_refuses_secure_noise_by_its_own_cost(run):
    def allowed(cap, protocol):
        config = replace(run.config, privacy_budget=PrivacyBudget(epsilon_max=cap))
        fresh = simulate("ring", run.data, "logistic", config)
        fresh = replace(run, ledger=fresh.ledger)
        unlearn(fresh, REQUEST, protocol)

    allowed(1.0, WALK)
    given = replace(WALK, release_noise_std=50.0)
    cost = unlearn(run, REQUEST, given).certificate.epsilon
    allowed(cost * (1 + 1e-9), given)
    with pytest.raises(PrivacyBudgetExceededError, match="Nothing was sent"):
        allowed(cost * 0.999, given)


@pytest.mark.parametrize(
    "changes",
    [
        {"segment_subsampling": 0.5, "alignment": "lightweight", "clip_norm": 1.0},
        {"calibration": "lamri_view", "clip_norm": 1.0},
    ],
)
def test_secure_noise_beside_draws_from_the_seed_is_refused(changes):
    with pytest.raises(
        InvalidHyperparameterError, match=r"noise_mode: .* got 'secure'"
    ):
        replace(WALK, **changes)
    with pytest.raises(InvalidArgumentError, match=r"noise_mode: .* got 'device'"):
        replace(WALK, noise_mode="device")


def test_secure_noise_after_simulated_noise_is_refused(run):
    first = unlearn(run, REQUEST, replace(WALK, noise_mode="simulated"))
    with pytest.raises(InsecureNoiseError, match=r"request r1, got 'secure' .* \(r0\)"):
        unlearn(replace(first.as_run(), record=run.record), OTHER, WALK)


# --- newton-fisher -------------------------------------------------------------------

EXACT = blobs([12, 7, 9, 10, 8], dtype=np.float64)
MODEL = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)
NEWTON = NewtonFisher(noise_mode="secure", recovery_rounds=0)
STACK = replace(
    NEWTON,
    target="dsgd_fixed_point",
    curvature="linearized_gossip",
    noise_placement="independent",
)
FROM_ONE = ForgetRequest.samples(peer=1, indices=[0, 4])
FROM_ONE_MORE = ForgetRequest.samples(peer=1, indices=[1])


@pytest.fixture(scope="module")
def exact_run():
    """A run in float64, whose released models are the released numbers."""
    local = LocalSteps(batch_size=5, learning_rate=0.03)
    config = SimulationConfig(
        rounds=100, local=local, evaluate_every=0, dtype="float64"
    )
    return simulate("ring", EXACT, MODEL, config)


@pytest.fixture(scope="module")
def full_run():
    """A run that comes to rest at a fixed point of its own."""
    return simulate("ring", EXACT, MODEL, full_batch("cta", rounds=200))


@pytest.mark.parametrize(
    ("protocol", "releases", "seen"),
    [
        (NEWTON, 1, 1),
        (replace(NEWTON, scope="release"), 1, 1),
        (replace(NEWTON, noise_placement="independent", residual_cap=5.0), 5, 5),
        (
            replace(
                NEWTON,
                noise_placement="independent",
                scope="release",
                residual_cap=5.0,
            ),
            5,
            1,
        ),
        (
            replace(NEWTON, scope="view_joint", curvature="local", residual_cap=50.0),
            1,
            1,
        ),
        (STACK, 1, 1),
    ],
    ids=["model", "one model", "independent", "one of them", "view", "stack"],
)
def test_secure_models_lie_on_a_grid_and_cost_what_is_claimed(
    exact_run, full_run, protocol, releases, seen
):
    run = full_run if protocol.stacked else exact_run
    outcome = unlearn(run, FROM_ONE, protocol)
    certificate, entries = outcome.certificate, outcome.ledger.entries
    assert certificate.status == "certified"
    assert (certificate.noise_mode, certificate.numerics) == ("secure", "grid")
    assert (certificate.accountant, certificate.epsilon) == ("rdp", 1.0)
    assert len(entries) == releases
    mechanism = entries[0].mechanism
    assert whole_steps(outcome.state.params, mechanism.grid)
    together = seen * curve_of(mechanism)
    assert certificate.rdp == pytest.approx(together.values, rel=1e-12)
    assert 1 - 1e-6 < together.to_epsilon(1e-5).epsilon <= 1.0
    numbers = run.model.size * (5 if protocol.stacked else 1)
    shift = 1.01 * protocol.residual_cap + mechanism.grid * math.sqrt(numbers)
    assert mechanism.sensitivity == pytest.approx(shift, rel=1e-12)
    assert certificate.sensitivity == pytest.approx(shift * math.sqrt(seen), rel=1e-12)
    assert certificate.noise_std == pytest.approx(
        RDP * certificate.sensitivity, rel=1e-8
    )
    grid = by_name(certificate)["grid of the release"]
    assert grid.value == mechanism.grid
    assert f"2**{round(math.log2(mechanism.grid))}; " in grid.note
    assert "cannot be repeated" in str(certificate)


def test_rounding_leaves_models_as_near_to_their_target_as_charged(
    exact_run, monkeypatch
):
    rounded = []

    def watched(value, grid):
        rounded.append((to_grid(value, grid), grid))
        return rounded[-1][0].copy()

    monkeypatch.setattr("dfl_unlearn.accounting.release.to_grid", watched)
    # As coarse as it gets beside the cap, so that rounding is what is seen.
    coarse = replace(NEWTON, epsilon=0.01)
    for peer in range(5):
        request = ForgetRequest.samples(peer=peer, indices=[0, 2, 3])
        (entry,) = unlearn(exact_run, request, coarse).ledger.entries
        ((steps, grid),) = rounded
        rounded.clear()
        kept = exact_run.data.without(request.resolve(exact_run.data))
        target = exact_minimizer(exact_run, kept, gradient_norm=1e-13).theta
        shift = grid * np.linalg.norm(steps - to_grid(target.numpy(), grid))
        assert shift <= entry.mechanism.sensitivity
        assert 1.01 * coarse.residual_cap < entry.mechanism.sensitivity / 2


def test_recovery_rounds_after_a_secure_release_are_post_processing(exact_run):
    plain = unlearn(exact_run, FROM_ONE, NEWTON)
    outcome = unlearn(exact_run, FROM_ONE, replace(NEWTON, recovery_rounds=2))
    assert outcome.certificate.status == "certified"
    (entry,) = outcome.ledger.entries
    assert not whole_steps(outcome.state.params, entry.mechanism.grid)
    assert entry.mechanism == plain.ledger.entries[0].mechanism


def test_secure_corrections_add_up_by_renyi_orders(exact_run):
    first = unlearn(exact_run, FROM_ONE, NEWTON)
    second = unlearn(first.as_run(), FROM_ONE_MORE, NEWTON)
    certificate = second.certificate
    curve = second.ledger.spent("peer:1", "public")
    assert certificate.rdp == tuple(curve.values)
    assert certificate.epsilon == curve.to_epsilon(1e-5).epsilon > 1.4
    plain = unlearn(first.as_run(), FROM_ONE_MORE, NewtonFisher()).certificate
    assert (plain.noise_mode, plain.accountant) == ("simulated", "rdp")
    assert plain.epsilon > 1.4
    simulated = unlearn(exact_run, FROM_ONE, NewtonFisher())
    with pytest.raises(InsecureNoiseError, match=r"request r1, got 'secure' .* \(r0\)"):
        unlearn(simulated.as_run(), FROM_ONE_MORE, NEWTON)


def test_fine_tuning_after_secure_noise_adds_both_up_by_renyi_orders(full_run):
    first = unlearn(full_run, FROM_ONE, STACK)
    protocol = FineTune(rounds=50, epsilon=1.0, residual_cap=10.0)
    certificate = unlearn(first.as_run(), FROM_ONE_MORE, protocol).certificate
    assert (certificate.noise_mode, certificate.accountant) == ("simulated", "rdp")
    assert certificate.epsilon > 1.4
    alone = unlearn(full_run, FROM_ONE_MORE, protocol).certificate
    assert (alone.accountant, alone.epsilon) == ("exact_gaussian", 1.0)


def test_a_heuristic_release_with_secure_noise_claims_nothing(exact_run):
    network = models.build("mlp", input_shape=(6,), num_classes=3, hidden=[4], l2=0.1)
    run = simulate("ring", EXACT, network, replace(exact_run.config, rounds=5))
    protocol = replace(NEWTON, curvature="diag_fisher", damping=1.0)
    certificate = unlearn(run, FROM_ONE, protocol).certificate
    assert (certificate.status, certificate.epsilon) == ("heuristic", None)
    assert (certificate.noise_mode, certificate.nominal_epsilon) == ("secure", 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"noise_placement": "broadcast_correction", "scope": "release"},
            r"noise_placement: .* got 'broadcast_correction'; .* last bits tell",
        ),
        ({"calibration": "classic", "epsilon": 0.5}, r"calibration: .* got 'classic'"),
        ({"calibration": "oracle_residual"}, r"calibration: .* got 'oracle_residual'"),
    ],
)
def test_what_secure_noise_does_not_fit_is_refused(changes, message):
    with pytest.raises(InvalidHyperparameterError, match=message):
        replace(NEWTON, **changes)


def test_secure_noise_after_training_with_noise_from_the_seed_is_refused(
    exact_run, tmp_path
):
    config = replace(
        exact_run.config,
        rounds=3,
        trainer=DpGossip(rate=0.5, noise_multiplier=20.0),
        local=LocalSteps(learning_rate=0.03),
    )
    private = simulate("ring", EXACT, MODEL, config)
    with pytest.raises(InsecureNoiseError, match=r"'secure' after 1 with simulated"):
        unlearn(private, FROM_ONE, NEWTON)
    outcome = unlearn(private, FROM_ONE, FineTune(rounds=1))
    with pytest.raises(InsecureNoiseError, match="is simulated"):
        outcome.export(tmp_path / "models.safetensors", secure=True)


# --- export --------------------------------------------------------------------------


def test_secure_outcomes_are_exported_as_they_are(run, tmp_path):
    outcome = unlearn(run, REQUEST, WALK)
    path = outcome.export(tmp_path / "models.safetensors", secure=True)
    written = load_file(path)
    for peer, row in enumerate(outcome.state.params):
        for name, value in run.model.state_dict(row).items():
            assert torch.equal(written[f"peer{peer}/{name}"], value)


def test_simulated_noise_is_not_exported_as_secure(run, tmp_path):
    path = tmp_path / "models.safetensors"
    outcome = unlearn(run, REQUEST, replace(WALK, noise_mode="simulated"))
    with pytest.raises(InsecureNoiseError, match=r"noise of request r0 is simulated"):
        outcome.export(path, secure=True)
    assert not path.exists()
    outcome.export(path)
    # The noise stays in the models of whoever goes on from there.
    later = unlearn(outcome.as_run(), OTHER, "fine-tune")
    assert later.certificate is None
    with pytest.raises(
        InsecureNoiseError, match=r"request r1, got True; .* request r0"
    ):
        later.export(path, secure=True)
    untouched = unlearn(run, REQUEST, "fine-tune")
    assert untouched.export(path, secure=True) == path
