"""Newton/Fisher with every curvature: the claim, the messages and what it costs."""

import numpy as np
import pytest
import torch
from networks import blobs, full_batch
from torch import nn

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import state_digest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.transport import HEADER_BYTES
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    ResidualExceedsCapError,
    SolverDivergedError,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.newton_bounds import prior_bound
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.retained import exact_minimizer

DATA = blobs([12, 7, 9, 10, 8], dtype=np.float64)
CONFIG = SimulationConfig(rounds=8, local=LocalSteps(batch_size=5), evaluate_every=0)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
TREE = 2 * (5 - 1)  # messages of one sum over all peers

SURROGATES = [
    "lissa",
    "diag_fisher",
    "empirical_fisher",
    "block",
    "kfac",
    "full_empirical_fisher",
    "local",
]
every_surrogate = pytest.mark.parametrize("curvature", SURROGATES)


@pytest.fixture(scope="module")
def convex():
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)
    return simulate("ring", DATA, model, full_batch("atc", rounds=8))


@pytest.fixture(scope="module")
def deep():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,), l2=0.01)
    return simulate("ring", DATA, model, CONFIG)


def assumption(certificate, name):
    (found,) = [a for a in certificate.assumptions if a.name == name]
    return found


def noise(run):
    return RngTree(run.config.seed).normal(
        (run.model.size,), "unlearn-noise", who="peer:1", request="r0", draw=0
    )


# --- claims ------------------------------------------------------------------------


@every_surrogate
def test_a_convex_model_is_certified_once_the_measured_bound_meets_the_cap(
    convex, curvature
):
    protocol = NewtonFisher(
        curvature=curvature, residual_cap=0.05, newton_steps_max=60, recovery_rounds=0
    )
    outcome = unlearn(convex, REQUEST, protocol)
    certificate = outcome.certificate
    assert certificate.status == "certified"
    assert certificate.epsilon == 1.0
    named = assumption(certificate, "curvature")
    assert named.value == f"{curvature}, damping 0"
    assert named.source == "set"
    assert "need not be" in named.note
    corrected = outcome.state.params[0] - certificate.noise_std * noise(convex)
    target = exact_minimizer(convex, convex.data.without(REQUEST)).theta
    bound = assumption(certificate, "distance to the exact minimizer").value
    assert float((corrected - target).norm()) <= bound + 1e-10
    assert bound <= 0.05


@every_surrogate
def test_a_missed_cap_releases_nothing(convex, curvature):
    protocol = NewtonFisher(curvature=curvature, residual_cap=1e-12, newton_steps_max=2)
    with pytest.raises(ResidualExceedsCapError, match="above the cap 1e-12"):
        unlearn(convex, REQUEST, protocol)
    assert convex.ledger.entries == ()


@every_surrogate
def test_a_network_is_heuristic_with_the_error_named(deep, curvature):
    outcome = unlearn(deep, REQUEST, NewtonFisher(curvature=curvature, damping=3.0))
    certificate = outcome.certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.nominal_epsilon == 1.0
    assert certificate.bound == "none"
    name = "curvature" if curvature in ("lissa", "local") else "Fisher"
    assert f"{name} error: estimated" in certificate.reasons
    assert assumption(certificate, f"{name} error").value == f"{curvature}, damping 3"
    before, after = outcome.trace["gradient_norm"]
    assert after < before
    assert outcome.state.params.isfinite().all()


@every_surrogate
def test_the_same_seed_gives_the_same_bits(deep, curvature):
    protocol = NewtonFisher(curvature=curvature, damping=3.0, newton_steps=2)
    first = unlearn(deep, REQUEST, protocol)
    torch.manual_seed(7)
    second = unlearn(deep, REQUEST, protocol)
    assert state_digest(first.state) == state_digest(second.state)
    assert first.certificate == second.certificate


def test_other_draws_give_another_series_but_the_same_claim(convex):
    protocol = NewtonFisher(curvature="lissa", residual_cap=0.05, newton_steps_max=60)
    other = ForgetRequest.samples(peer=1, indices=[0, 4], request_id="again")
    first, second = (unlearn(convex, r, protocol) for r in (REQUEST, other))
    distances = {
        assumption(o.certificate, "distance to the exact minimizer").value
        for o in (first, second)
    }
    assert len(distances) == 2
    assert first.certificate.noise_std == second.certificate.noise_std


def test_a_block_of_a_linear_model_is_newtons_method(convex):
    steps = [
        len(
            unlearn(
                convex, REQUEST, NewtonFisher(curvature=how, residual_cap=1e-6)
            ).trace["gradient_norm"]
        )
        for how in ("block", "exact_cg")
    ]
    assert steps[0] <= steps[1]


def test_factors_of_convolutions_correct_a_small_network_and_norms_are_refused():
    rng = np.random.default_rng(0)
    images = [
        (
            torch.from_numpy(rng.random((8, 8, 8), dtype=np.float32)),
            torch.arange(8) % 2,
        )
        for _ in range(3)
    ]
    data = PeerData.from_tensors(images, test=images[0], num_classes=2)
    config = SimulationConfig(rounds=2, evaluate_every=0)
    fields = {"channels": (2, 3), "l2": 0.01}
    model = models.build("small-cnn", input_shape=(8, 8), num_classes=2, **fields)
    run = simulate("path", data, model, config)
    outcome = unlearn(run, REQUEST, NewtonFisher(curvature="kfac", damping=1.0))
    assert outcome.certificate.status == "heuristic"
    before, after = outcome.trace["gradient_norm"]
    assert after < before
    factors = 10**2 + 2**2 + 19**2 + 3**2 + 13**2 + 2**2
    assert set(sizes(outcome, "kronecker factors")) == {8 * factors}
    fields = {"width": 2, "groups": 1}
    normed = models.build("resnet8", input_shape=(8, 8), num_classes=2, **fields)
    run = simulate("path", data, normed, config)
    refused(run, UnsupportedModelError, "got GroupNorm", curvature="kfac")


def test_a_surrogate_with_the_data_gone_is_not_the_one_with_it(deep):
    """Curvature is that of what is kept."""
    protocol = NewtonFisher(curvature="kfac", damping=3.0, recovery_rounds=0)
    few = unlearn(deep, REQUEST, protocol)
    more = unlearn(deep, ForgetRequest.samples(peer=1, indices=[0, 4, 5]), protocol)
    assert not torch.equal(few.state.params, more.state.params)


def test_a_sparse_diagonal_below_lambda_is_off_by_more(convex):
    """Dropped entries are the damping alone: 1/damping takes the place of 1/lambda."""
    request = REQUEST.resolve(convex.data)
    parts = [
        prior_bound(
            NewtonFisher(curvature="diag_fisher", sparsify=0.5, damping=damping),
            convex,
            request,
        ).curvature
        for damping in (0.02, 0.1, 5.0)
    ]
    assert parts[0] == pytest.approx(5 * parts[1])
    assert parts[2] == parts[1]


# --- messages and costs --------------------------------------------------------------


def sizes(outcome, kind):
    return [m.nbytes - HEADER_BYTES for m in outcome.messages if m.kind == kind]


@pytest.mark.parametrize(
    ("curvature", "kind", "floats", "gradients"),
    [
        ("diag_fisher", "fisher diagonal", 43, 1),
        ("empirical_fisher", "fisher diagonal", 43, 1),
        ("block", "fisher blocks", 28**2 + 15**2, 3),
        ("kfac", "kronecker factors", 7**2 + 4**2 + 5**2 + 3**2, 3),
        ("full_empirical_fisher", "fisher matrix", 43**2, 1),
    ],
)
def test_a_sum_of_the_curvature_is_sent_once_per_step(
    deep, curvature, kind, floats, gradients
):
    """decentralized-certified 3.2; a network of 6, 4 and 3: 28 + 15 parameters."""
    protocol = NewtonFisher(
        curvature=curvature, damping=3.0, newton_steps=2, recovery_rounds=0
    )
    outcome = unlearn(deep, REQUEST, protocol)
    assert sizes(outcome, kind) == [8 * floats] * (2 * TREE)
    assert sizes(outcome, "gradient") == [8 * 43] * (3 * TREE)
    assert not sizes(outcome, "curvature product")
    rows = int(DATA.sizes.sum()) - 2
    assert outcome.cost.sample_gradients == rows * (3 + 2 * gradients)
    assert outcome.cost.hvps == outcome.cost.solver_iterations == 0


def test_the_requesters_own_curvature_sends_nothing_and_reads_its_rows_alone(deep):
    protocol = NewtonFisher(curvature="local", damping=3.0, recovery_rounds=0)
    outcome = unlearn(deep, REQUEST, protocol)
    kinds = {m.kind for m in outcome.messages}
    assert kinds == {"mean model", "gradient", "noised model"}
    own = int(DATA.sizes[1]) - 2
    assert outcome.cost.hvps == own * outcome.cost.solver_iterations
    assert outcome.cost.solver_iterations == len(outcome.trace["solver_residual"]) > 0


def test_every_product_of_a_series_is_a_sum_over_all_peers(convex, deep):
    protocol = NewtonFisher(curvature="lissa", damping=3.0, recovery_rounds=0)
    outcome = unlearn(deep, REQUEST, protocol)
    rows, series = int(DATA.sizes.sum()) - 2, outcome.cost.solver_iterations
    assert series > 0
    assert outcome.cost.hvps == 20 * rows + 64 * series  # power iteration first
    assert sizes(outcome, "curvature product") == [8 * 43] * ((20 + series) * TREE)
    protocol = NewtonFisher(
        curvature="lissa", damping=3.0, recovery_rounds=0, residual_cap=10.0
    )
    outcome = unlearn(convex, REQUEST, protocol)  # its scale is proven instead
    assert outcome.cost.hvps == 64 * outcome.cost.solver_iterations
    assert sizes(outcome, "largest input norm") == [8] * TREE


# --- refusals ------------------------------------------------------------------------


def refused(run, error, message, **fields):
    with pytest.raises(error, match=message):
        unlearn(run, fields.pop("request", REQUEST), NewtonFisher(**fields))
    assert run.ledger.entries == ()


def run_of(module, data=DATA):
    model = FlatModel.from_module(module, "cross-entropy", l2=0.1)
    return simulate("ring", data, model, SimulationConfig(rounds=1, evaluate_every=0))


def test_layers_and_sizes_that_do_not_fit_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(
        "dfl_unlearn.unlearning.protocols.newton_fisher.correct_mean", None
    )
    normed = run_of(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    refused(normed, UnsupportedModelError, "got LayerNorm", curvature="kfac")
    wide = run_of(nn.Sequential(nn.Linear(6, 700), nn.ReLU(), nn.Linear(700, 3)))
    refused(wide, UnsupportedModelError, "layer '0' .* got 4900", curvature="block")
    refused(wide, UnsupportedModelError, "7003", curvature="full_empirical_fisher")


def test_a_requester_without_rows_has_no_curvature(convex):
    refused(
        convex,
        UnsupportedRequestError,
        "keeps no rows, got peer 3",
        curvature="local",
        request=ForgetRequest.whole_peer(3),
    )


def test_a_series_over_negative_curvature_is_refused(deep):
    refused(deep, SolverDivergedError, "raise damping", curvature="lissa", damping=0.01)


def test_only_diagonals_are_made_sparse(deep):
    with pytest.raises(InvalidHyperparameterError, match="curvature='kfac'"):
        NewtonFisher(curvature="kfac", sparsify=0.5, damping=1.0)
    protocol = NewtonFisher(curvature="empirical_fisher", sparsify=0.5, damping=3.0)
    certificate = unlearn(deep, REQUEST, protocol).certificate
    assert assumption(certificate, "Fisher error").value == (
        "empirical_fisher, damping 3, 0.5 of it kept"
    )
