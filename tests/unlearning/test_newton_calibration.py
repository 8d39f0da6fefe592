"""Newton/Fisher: what the noise goes by, and when the source's preset is certified."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.retained import exact_minimizer

DATA = blobs([12, 7, 9, 10, 8], dtype=np.float64)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
CONFIG = SimulationConfig(
    rounds=100,
    local=LocalSteps(batch_size=5, learning_rate=0.03),
    evaluate_every=0,
    dtype="float64",
)


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", CONFIG)


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


def distance(certificate):
    return assumption(certificate, "distance to the exact minimizer")


@pytest.mark.parametrize(
    ("calibration", "epsilon", "scale"),
    [
        ("analytic", 1.0, 3.7306316348),
        ("rdp", 1.0, 4.0453853689),
        ("analytic", 0.5, 7.0318266756),
        ("classic", 0.5, 9.6896105252),
    ],
)
def test_noise_for_one_unit_of_the_cap(run, calibration, epsilon, scale):
    """decentralized-certified 7, item 8."""
    protocol = NewtonFisher(calibration=calibration, epsilon=epsilon)
    certificate = unlearn(run, REQUEST, protocol).certificate
    assert certificate.status == "certified"
    assert certificate.epsilon == epsilon
    assert certificate.noise_std / certificate.sensitivity == pytest.approx(
        scale, rel=1e-9
    )


def test_the_classic_formula_is_for_small_epsilon_only():
    with pytest.raises(InvalidPrivacyParameterError, match="too little noise"):
        NewtonFisher(calibration="classic")
    with pytest.raises(InvalidArgumentError, match="calibration"):
        NewtonFisher(calibration="gdp")


def test_a_rdp_calibration_spends_no_more_than_it_says(run):
    outcome = unlearn(run, REQUEST, NewtonFisher(calibration="rdp"))
    assert outcome.ledger.epsilon("peer:1", "public", 1e-5) < 1.0


@pytest.mark.parametrize("placement", ["broadcast_model", "independent"])
def test_noise_from_the_measured_bound_proves_nothing(run, placement):
    protocol = NewtonFisher(
        calibration="oracle_residual",
        residual_cap=3.0,
        noise_placement=placement,
        recovery_rounds=0,
    )
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.nominal_epsilon == 1.0
    assert certificate.bound == "a_posteriori"
    assert certificate.reasons == ("noise from a public number: violated",)
    assert "depends on the forgotten data" in str(certificate)
    rounding = assumption(certificate, "rounding of the released model").value
    seen = distance(certificate).value + rounding
    assert seen < 3.0  # the cap
    seen *= np.sqrt(5) if placement == "independent" else 1.0
    assert certificate.sensitivity == pytest.approx(seen, rel=1e-12)
    assert certificate.noise_std == gaussian_noise_std(
        1.0, 1e-5, certificate.sensitivity
    )
    assert {e.status for e in outcome.ledger.entries} == {"heuristic"}


def test_noise_from_the_measured_bound_needs_one():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,), l2=0.01)
    deep = simulate("ring", DATA, model, replace(CONFIG, rounds=2))
    protocol = NewtonFisher(calibration="oracle_residual", damping=3.0)
    with pytest.raises(UnsupportedRequestError, match="where no bound is measured"):
        unlearn(deep, REQUEST, protocol)
    assert deep.ledger.entries == ()


# --- the source's preset -----------------------------------------------------------


def test_the_sources_preset_is_certified_per_peer_once_every_peer_is_checked(run):
    protocol = replace(
        NewtonFisher.preset("wu2026"), recovery_rounds=0, residual_cap=25.0
    )
    outcome = unlearn(run, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert (certificate.scope, certificate.epsilon) == ("release", 1.0)
    assert certificate.bound == "capped"
    drawn = RngTree(run.config.seed).normal(
        (run.model.size,), "unlearn-noise", who="peer:1", request="r0", draw=0
    )
    corrected = outcome.state.params - certificate.noise_std * drawn
    target = exact_minimizer(run, run.data.without(REQUEST), gradient_norm=1e-13).theta
    away = (corrected - target).norm(dim=1)
    assert float(away.max()) <= distance(certificate).value <= 25.0
    kinds = [m.kind for m in outcome.messages]
    assert kinds.count("gradient") == 2 * 4  # one sum, to check the result
    assert len(outcome.trace["gradient_norm"]) == 2  # one correction


def test_above_the_cap_it_stays_heuristic_and_says_by_how_much(run):
    protocol = replace(NewtonFisher.preset("wu2026"), recovery_rounds=0)
    certificate = unlearn(run, REQUEST, protocol).certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.bound == "none"
    assert "distance to the exact minimizer: estimated" in certificate.reasons
    assert distance(certificate).value > protocol.residual_cap
    assert "measured above the cap" in str(certificate)


@pytest.mark.parametrize(
    "changes",
    [
        {"recovery_rounds": 1},
        {"recovery_rounds": 0, "influence_weights": "resolvent"},
    ],
    ids=["recovery", "weights"],
)
def test_nothing_is_summed_to_check_what_cannot_be_certified(run, changes):
    protocol = replace(NewtonFisher.preset("wu2026"), residual_cap=50.0, **changes)
    outcome = unlearn(run, REQUEST, protocol)
    assert outcome.certificate.status == "heuristic"
    assert "gradient" not in {m.kind for m in outcome.messages}
    assert distance(outcome.certificate).value == "no bound"


def test_a_converged_run_may_be_taken_as_converged(run):
    """The removed data's gradient alone, for one model to all peers."""
    protocol = NewtonFisher(
        assume_stationary=True, residual_cap=25.0, recovery_rounds=0
    )
    outcome = unlearn(run, REQUEST, protocol)
    assert outcome.certificate.status == "certified"
    std = outcome.certificate.noise_std
    drawn = RngTree(run.config.seed).normal(
        (run.model.size,), "unlearn-noise", who="peer:1", request="r0", draw=0
    )
    corrected = outcome.state.params[0] - std * drawn
    target = exact_minimizer(run, run.data.without(REQUEST), gradient_norm=1e-13).theta
    assert float((corrected - target).norm()) <= distance(outcome.certificate).value
    assert torch.equal(outcome.state.params[0], outcome.state.params[4])
