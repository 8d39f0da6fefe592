"""Protocols with noise from the operating system: charges, claims and exports."""

import math
from dataclasses import replace

import pytest
import torch
from networks import blobs
from safetensors.torch import load_file

from dfl_unlearn.accounting.budget import PrivacyBudget
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import DiscreteGaussianMechanism
from dfl_unlearn.accounting.release import project_ball_
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InsecureNoiseError,
    InvalidArgumentError,
    InvalidHyperparameterError,
    PrivacyBudgetExceededError,
)
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.rr_du import RrDu

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
