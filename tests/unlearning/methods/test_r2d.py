import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import rewinding as oracle
from torch import nn

from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.trajectory import trajectory_sensitivity
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import retrain, simulate
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    MissingInputError,
    MissingRecordError,
    NumericalError,
    ReconstructionError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.local import Budget, LocalTask, only
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.r2d_rounding import rounding_of_training

GONE = (0, 3, 5, 8)


class Point(nn.Module):
    """Parameters that are the outputs: theta - x for every row x."""

    def __init__(self, size):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.theta - x


def quadratic_task(curvature, centres, gone, *, theta, eta, steps):
    """A task whose rows are the centres of quadratics; trained here by a loop."""
    curvature = np.asarray(curvature, dtype=np.float64)
    rows = np.arange(len(centres))
    states = oracle.descend(
        oracle.quadratic(curvature, centres, rows), theta, eta, steps
    )
    h = torch.from_numpy(curvature)

    def loss(outputs, labels):
        return 0.5 * (outputs.square() * h).sum(dim=1)

    kept = np.setdiff1d(rows, gone)
    inputs = torch.tensor(centres, dtype=torch.float64)

    def batch(index):
        at = torch.from_numpy(np.asarray(index))
        return TensorBatch(inputs[at], torch.zeros(len(index), dtype=torch.int64))

    history = LocalHistory(
        learning_rate=eta,
        lr_schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=None,
        batch_size=None,
        steps=steps,
        steps_per_round=1,
        rates=np.full(steps, eta),
        samples=len(centres),
        checkpoints={t: torch.from_numpy(state) for t, state in enumerate(states[:-1])},
        loss_name="custom",
        gossip=False,
        batch_rows=lambda step: rows,
    )
    return LocalTask(
        model=FlatModel.from_module(Point(len(curvature)), loss),
        params=torch.from_numpy(states[-1]),
        forget=batch(gone),
        retain=batch(kept),
        forget_rows=np.asarray(gone),
        retain_rows=kept,
        request=ForgetRequest.samples(peer=0, indices=gone, request_id="r0"),
        num_classes=0,
        history=history,
    )


def scaled_rows(n=48, features=5, classes=3, seed=0):
    """Rows of norm 1 in float64, with labels that follow them roughly."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, features))
    labels = generator.integers(classes, size=n)
    x = centres[labels] + generator.normal(size=(n, features))
    x /= np.linalg.norm(x, axis=1, keepdims=True) * (1 + 1e-12)
    return x, labels


def one_peer(x, y, model, *, rounds=12, every=1, bound=1.0, dtype="float64", **local):
    local = {"batch_size": None, "learning_rate": 0.5} | local
    pair = (torch.from_numpy(x), torch.from_numpy(y))
    data = PeerData.from_tensors(
        [pair], test=pair, num_classes=int(y.max()) + 1, name="one", norm_bound=bound
    )
    return simulate(
        Topology.single(),
        data,
        model,
        SimulationConfig(
            rounds=rounds,
            local=LocalSteps(**local),
            evaluate_every=0,
            dtype=dtype,
            record=RecordPlan(every=every),
        ),
    )


def softmax(l2=0.01, features=5, classes=3, zero_start=False):
    return models.build(
        "logistic",
        input_shape=(features,),
        num_classes=classes,
        l2=l2,
        bias=False,
        zero_start=zero_start,
    )


def mlp():
    return models.build("mlp", input_shape=(5,), num_classes=3, hidden=(4,))


def request(rows=GONE, name="r0", **fields):
    return ForgetRequest.samples(peer=0, indices=rows, request_id=name, **fields)


@pytest.fixture(scope="module")
def run():
    return one_peer(*scaled_rows(), softmax())


@pytest.fixture(scope="module")
def network_run():
    return one_peer(*scaled_rows(), mlp())


def carried_out(run, rows=GONE, *, rng=None, task=None, **fields):
    method = R2d(**fields)
    task = local_task(run, request(rows)) if task is None else task
    return method.unlearn(only(task, method.uses), rng or run.rng)


def distance(outcome, reference):
    return float((outcome.params - torch.as_tensor(reference)).norm())


# --- oracles -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewind", "state", "apart"),
    [
        (0, 2.910089707520, 1.517463889920),
        (3, 2.080489707520, 0.687863889920),
        (7, 1.566605547520, 0.173979729920),
        (10, 1.392625817600, 0.0),
    ],
)
def test_a_quadratic_in_one_dimension_meets_its_closed_form(rewind, state, apart):
    centres = [[0.0], [1.0], [2.0], [3.0], [10.0]]
    task = quadratic_task([2.0], centres, [4], theta=[0.5], eta=0.1, steps=10)
    assert float(task.params) == pytest.approx(2.910089707520, rel=1e-12)
    outcome = R2d(steps=rewind, epsilon=None).unlearn(task, RngTree(0))
    assert float(outcome.params) == pytest.approx(state, rel=1e-11)
    retained = oracle.quadratic([2.0], centres, [0, 1, 2, 3])
    again = oracle.descend(retained, [0.5], 0.1, 10)[-1]
    assert distance(outcome, again) == pytest.approx(apart, rel=1e-9, abs=1e-15)
    assert outcome.cost.steps_retain == rewind
    assert outcome.cost.sample_gradients == 4 * rewind


@pytest.mark.parametrize(
    ("rewind", "apart"),
    [(0, 1.7493111862), (4, 1.2815073009), (8, 0.7498189272), (12, 0.0)],
)
def test_an_indefinite_quadratic_meets_the_oracle(rewind, apart):
    h, centres = [2.0, -1.0], [[0.0, 0.0], [1.0, 1.0], [2.0, -1.0], [4.0, 3.0]]
    task = quadratic_task(h, centres, [3], theta=[0.3, -0.2], eta=0.1, steps=12)
    assert task.params.tolist() == pytest.approx([1.65035676, -2.23150696], abs=5e-9)
    retained = oracle.quadratic(h, centres, [0, 1, 2])
    again = oracle.descend(retained, [0.3, -0.2], 0.1, 12)[-1]
    assert again.tolist() == pytest.approx([0.95189637, -0.62768568], abs=5e-9)
    outcome = R2d(steps=rewind, epsilon=None).unlearn(task, RngTree(0))
    assert distance(outcome, again) == pytest.approx(apart, rel=1e-9, abs=1e-15)


RECIPES = {
    "full batch": {},
    "minibatches": {"batch_size": 7, "steps": 3},
    "momentum": {"momentum": 0.9, "batch_size": 7, "steps": 3},
    "decay": {"weight_decay": 0.02},
    "clipping": {"clip_norm": 0.3},
    "cosine": {"lr_schedule": "cosine", "batch_size": 9, "clip_norm": 0.5},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("build", [softmax, mlp])
def test_rewinding_everything_is_retraining(recipe, build):
    run = one_peer(*scaled_rows(), build(), **RECIPES[recipe])
    again = retrain(run, run.data.without(request())).state.params[0]
    outcome = carried_out(run, rewind=1.0)
    torch.testing.assert_close(outcome.params, again, rtol=1e-12, atol=1e-14)
    assert outcome.certificate.status == "exact"
    assert not run.ledger.entries
    assert distance(outcome, run.state.params[0]) > 1e-4


@pytest.mark.parametrize(
    "recipe", ["full batch", "minibatches", "decay", "clipping", "cosine"]
)
def test_the_last_steps_are_taken_as_training_took_them(recipe):
    x, y = scaled_rows()
    local = RECIPES[recipe]
    run = one_peer(x, y, softmax(), **local)
    task = local_task(run, request())
    outcome = carried_out(run, task=task, epsilon=None, rewind=0.5)
    history, kept = task.history, np.setdiff1d(np.arange(len(x)), GONE)
    first = history.steps // 2
    weights = history.checkpoints[first].numpy().reshape(3, 5)
    for step in range(first, history.steps):
        rows = np.intersect1d(history.batch_rows(step), kept)
        gradient = oracle.softmax_gradient(
            x[rows], y[rows], 0.01, classes=3, clip_norm=local.get("clip_norm")
        )
        slope = gradient(weights) + local.get("weight_decay", 0.0) * weights
        weights = weights - history.rates[step] * slope
    expected = torch.from_numpy(weights.reshape(-1))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("rewind", "bound", "sigma", "apart"),
    [
        (0.0, 0.4674216043, 1.74377782, 0.0183296147),
        (0.25, 0.0987612471, 0.36844183, 0.0020709884),
        (0.5, 0.0202697198, 0.07561886, 0.0003455431),
        (0.75, 0.0035580780, 0.01327388, 0.0000594530),
    ],
)
def test_logistic_regression_on_breast_cancer_is_certified(rewind, bound, sigma, apart):
    x, y = breast_cancer()
    model = softmax(l2=0.03, features=31, classes=2, zero_start=True)
    run = one_peer(x, y, model, rounds=100, learning_rate=2.0)
    kept = slice(3, None)
    again = oracle.descend(
        oracle.logistic_gradient(x[kept], y[kept], 0.03), np.zeros(31), 2.0, 100
    )[-1]
    bare = carried_out(run, range(3), rewind=rewind, epsilon=None)
    assert distance(bare, again) == pytest.approx(apart, abs=6e-11)
    outcome = carried_out(run, range(3), rewind=rewind)
    claim = outcome.certificate
    assert claim.sensitivity == pytest.approx(bound, abs=6e-11)
    assert claim.noise_std == pytest.approx(sigma, abs=6e-9)
    assert (claim.status, claim.epsilon, claim.delta) == ("certified", 1.0, 1e-5)
    assert claim.bound == "trajectory"
    assert distance(bare, again) <= claim.sensitivity


def breast_cancer():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = np.c_[x, np.ones(len(x))] / math.sqrt(2) / (1 + 1e-15)
    train = np.arange(len(x)) % 4 != 3
    return x[train], y[train].astype(np.int64)


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = np.c_[x, np.ones(len(x))] / math.sqrt(2) / (1 + 1e-15)
    order = np.random.default_rng(42).permutation(len(x))[:1437]
    return x[order], y[order].astype(np.int64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("l2", "bounds", "measured"),
    [
        (0.0, (8.267, 4.133, 0.8267), (0.2102, 0.1073, 0.0219)),
        (0.01, (2.620, 0.4751, 0.0476), (0.0800, 0.0129, 0.0013)),
    ],
)
def test_the_certificate_bounds_what_softmax_on_digits_does(l2, bounds, measured):
    x, y = digits()
    model = softmax(l2=l2, features=65, classes=10, zero_start=True)
    run = one_peer(x, y, model, rounds=300, learning_rate=1.0)
    again = oracle.descend(
        oracle.softmax_gradient(x[14:], y[14:], l2, classes=10),
        np.zeros((10, 65)),
        1.0,
        300,
    )[-1].reshape(-1)
    found = {}
    for rewind in (0, 30, 75, 150, 225, 270, 299, 300):
        outcome = carried_out(run, range(14), steps=rewind, epsilon=None)
        claim = carried_out(run, range(14), steps=rewind).certificate
        found[rewind] = (distance(outcome, again), claim.sensitivity)
        assert claim.status == ("certified" if rewind < 300 else "exact")
        assert found[rewind][0] <= max(claim.sensitivity, 1e-13)
    for rewind, bound, apart in zip((0, 150, 270), bounds, measured, strict=True):
        assert found[rewind][1] == pytest.approx(bound, rel=1e-3)  # as many digits
        # Which rows train and go is not said there; other rows, the same size.
        assert found[rewind][0] == pytest.approx(apart, rel=0.15)
    vacuous = carried_out(run, range(14), steps=0, regime="nonconvex")
    assert 1e51 < vacuous.certificate.sensitivity < 1e53  # useless, and said to be so


# --- certificates ------------------------------------------------------------------


def test_a_certified_release_says_what_it_rests_on_and_what_it_leaves_out(run):
    claim = carried_out(run).certificate
    assert claim.status == "certified"
    assert {a.name for a in claim.assumptions} >= {
        "smoothness (L)",
        "gradient bound (G)",
        "strong convexity (mu)",
        "batches",
        "momentum",
        "start",
    }
    text = str(claim)
    assert "model released before the request" in text
    assert "each certificate stands alone" in text
    assert "choosing it by data that the forgotten rows are part of" in text
    assert "same noise" in text


VIOLATED = {
    "batches": {"batch_size": 7},
    "learning rate": {"lr_schedule": "cosine"},
    "momentum": {"momentum": 0.5},
}


@pytest.mark.parametrize("name", VIOLATED)
def test_training_that_the_bound_is_not_about_makes_it_heuristic(name):
    run = one_peer(*scaled_rows(), softmax(), **VIOLATED[name])
    claim = carried_out(run).certificate
    assert claim.status == "heuristic"
    assert claim.reasons == (f"{name}: violated",)
    assert (claim.epsilon, claim.nominal_epsilon) == (None, 1.0)


@pytest.mark.parametrize(
    ("field", "name"), [("gossip", "trajectory"), ("private", "training noise")]
)
@pytest.mark.parametrize("rewind", [0.5, 1.0])
def test_what_cannot_be_repeated_makes_it_heuristic(run, field, name, rewind):
    task = local_task(run, request())
    task = replace(task, history=replace(task.history, **{field: True}))
    claim = carried_out(run, task=task, rewind=rewind).certificate
    assert claim.status == "heuristic"
    assert claim.reasons == (f"{name}: violated",)


def test_clipping_certifies_a_gradient_bound():
    run = one_peer(*scaled_rows(), softmax(), clip_norm=0.3)
    outcome = carried_out(run)
    claim = outcome.certificate
    assert claim.status == "certified"
    (bound,) = [a for a in claim.assumptions if a.name == "gradient bound (G)"]
    assert (bound.value, bound.source) == (0.3, "clipped")
    assert outcome.info["regime"] == "nonconvex"  # clipped softmax is not convex


def test_constants_that_rest_on_the_rows_or_the_caller_are_conditional():
    x, y = scaled_rows()
    looked_up = one_peer(x, y, softmax(), bound=None)
    claim = carried_out(looked_up).certificate
    assert claim.status == "certified_conditional"
    assert set(claim.reasons) == {
        "smoothness (L): assumed",
        "gradient bound (G): assumed",
    }
    run = one_peer(x, y, softmax())
    given = carried_out(run, smoothness=0.7, gradient_bound=2.0).certificate
    assert given.status == "certified_conditional"
    known = carried_out(run).certificate
    assert given.sensitivity > known.sensitivity


def test_noise_covers_rounding_where_it_is_seen_beside_the_bound():
    x, y = scaled_rows()
    exact = carried_out(one_peer(x, y, softmax())).certificate
    single = carried_out(one_peer(x, y, softmax(), dtype="float32")).certificate
    assert single.status == "certified"
    (rounding,) = [a for a in single.assumptions if a.name == "rounding of training"]
    whole = exact.sensitivity + rounding.value
    assert single.sensitivity == pytest.approx(whole, rel=1e-12)
    assert 0 < rounding.value < 0.01 * exact.sensitivity
    assert all(a.name != "rounding of training" for a in exact.assumptions)
    # Steps so short that a row moves the model by less than rounding does.
    short = one_peer(x, y, softmax(), dtype="float32", learning_rate=1e-6)
    claim = carried_out(short).certificate
    assert claim.status == "heuristic"
    assert claim.reasons == ("rounding of training: violated",)


def contracting(**options):
    """So long a training that what rows leave is below rounding in the end."""
    x, y = scaled_rows(n=400, classes=2)
    model = softmax(l2=0.05, classes=2)
    return one_peer(x, y, model, learning_rate=1.0, rounds=1000, every=100, **options)


def test_float64_rounds_too():
    """A noise of the idealized bound would be below what rounding moves the end by."""
    run = contracting()
    retrained = unlearn(run, request(), Retrain()).state.params
    for rewind in (0.7, 0.9):
        outcome = carried_out(run, rewind=rewind)
        claim = outcome.certificate
        bare = carried_out(run, rewind=rewind, epsilon=None).params
        apart = float((bare - retrained[0]).norm())
        assert apart > 1e-16
        assert claim.status == "heuristic"
        assert claim.reasons == ("rounding of training: violated",)
        assert claim.sensitivity > apart
        assert claim.noise_std > 1e-13  # well above an ulp of the parameters
    early = carried_out(run, rewind=0.2).certificate
    assert early.status == "certified"


def test_rounding_is_bounded_by_public_numbers():
    """The certificate's value is the same whatever the rows are."""
    values = set()
    for seed in (0, 1):
        x, y = scaled_rows(seed=seed)
        claim = carried_out(one_peer(x, y, softmax(), dtype="float32")).certificate
        values |= {a.value for a in claim.assumptions if a.name.startswith("rounding")}
    assert len(values) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_on_rounding_is_above_what_it_does(dtype):
    """Against the same steps with 30 digits more, in whatever type training was."""
    x, y = scaled_rows()
    run = one_peer(x, y, softmax(), dtype=dtype, rounds=60)
    rounding = rounding_of_training(
        model=run.model,
        dtype=run.state.params.dtype,
        start_norm=float(run.record.initial[0].norm()),
        steps=60,
        learning_rate=0.5,
        smoothness=0.51,
        gradient_bound=math.sqrt(2),
        rows=48,
        decay=0.01,
        clipped=False,
        regime="strongly_convex",
        strong_convexity=0.01,
    )
    theta = run.record.initial[0].numpy().astype(np.longdouble)
    rows = run.data.store.inputs.numpy().astype(np.longdouble)
    hot = np.eye(3, dtype=np.longdouble)[y]
    for _ in range(60):
        logits = rows @ theta[:15].reshape(3, 5).T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True) - hot
        theta = theta - np.longdouble(0.5) * (
            (p.T @ rows).reshape(-1) / 48 + np.longdouble(0.01) * theta
        )
    apart = np.linalg.norm(run.state.params[0].numpy() - theta)
    assert 0 < apart < rounding.distance / 2  # one training of the two


def test_a_noise_below_an_ulp_of_the_parameters_is_not_certified(run):
    claim = carried_out(run, noise_std=1e-25, epsilon=None).certificate
    assert claim.status == "heuristic"
    assert "noise above rounding: violated" in claim.reasons


def test_an_adaptive_request_is_conditional(run):
    task = local_task(run, request(adaptive=True))
    assert carried_out(run, task=task).certificate.status == "certified_conditional"


def test_the_published_bound_is_looser_and_calibrated_as_asked(run):
    task = local_task(run, request())
    fields = {"epsilon": 0.5, "bound": "published"}
    found = carried_out(run, task=task, calibration="classic", **fields).certificate
    expected = trajectory_sensitivity(
        rewind_steps=6,
        steps=12,
        learning_rate=0.5,
        smoothness=0.51,
        gradient_bound=math.sqrt(2),
        forget=4,
        samples=48,
        bound="published",
    )
    assert found.sensitivity == pytest.approx(expected, rel=1e-12)
    std = gaussian_noise_std(0.5, 1e-5, expected, "classic")
    assert found.noise_std == pytest.approx(std, rel=1e-12)
    analytic = carried_out(run, **fields).certificate
    assert analytic.noise_std < found.noise_std
    tight = carried_out(run, epsilon=0.5, regime="nonconvex").certificate
    convex = carried_out(run, epsilon=0.5, regime="convex").certificate
    auto = carried_out(run, epsilon=0.5).certificate
    shifts = [c.sensitivity for c in (auto, convex, tight, analytic)]
    assert shifts == sorted(shifts)
    assert len(set(shifts)) == 4


def test_a_given_noise_is_told_the_epsilon_it_certifies(run):
    outcome = carried_out(run, noise_std=0.5, epsilon=None)
    claim = outcome.certificate
    assert claim.noise_std == 0.5
    assert claim.epsilon == gaussian_epsilon(claim.sensitivity / 0.5, 1e-5)
    assert outcome.info["epsilon"] == claim.epsilon
    more = carried_out(run, noise_std=5.0).certificate
    assert more.epsilon < claim.epsilon


def test_without_epsilon_and_noise_nothing_is_claimed(run):
    outcome = carried_out(run, epsilon=None)
    assert outcome.certificate is None
    assert not run.ledger.entries


# --- noise -------------------------------------------------------------------------


def test_noise_is_one_vector_rescaled_and_stands_in_the_ledger(run):
    bare = carried_out(run, epsilon=None)
    vectors = []
    for epsilon in (0.5, 8.0):
        task = local_task(run, request(), ledger=PrivacyLedger())
        outcome = carried_out(run, task=task, epsilon=epsilon)
        (entry,) = task.ledger.entries
        claim = outcome.certificate
        assert (entry.state, entry.owner) == ("committed", "peer:0")
        assert entry.status == claim.status == "certified"
        assert entry.mechanism.noise_std == claim.noise_std
        assert entry.mechanism.sensitivity == claim.sensitivity
        assert task.ledger.epsilon("peer:0", "public", 1e-5) == pytest.approx(epsilon)
        vectors.append((outcome.params - bare.params) / claim.noise_std)
    drawn = run.rng.normal((15,), "unlearn-noise", who="peer:0", request="r0")
    for vector in vectors:  # the noise that was charged, all of it
        torch.testing.assert_close(vector, drawn, rtol=1e-9, atol=1e-12)
    other = carried_out(run, rng=RngTree(99))
    assert not torch.equal(other.params, carried_out(run).params)


def test_a_release_that_the_budget_refuses_is_not_drawn(run):
    from dfl_unlearn.accounting.budget import PrivacyBudget
    from dfl_unlearn.errors import PrivacyBudgetExceededError

    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=0.5))
    task = local_task(run, request(), ledger=ledger)
    with pytest.raises(PrivacyBudgetExceededError):
        carried_out(run, task=task, epsilon=1.0)
    assert not ledger.entries


# --- starts ------------------------------------------------------------------------


def test_the_nearest_earlier_state_is_taken_and_told():
    run = one_peer(*scaled_rows(), softmax(), every=5)
    outcome = carried_out(run, steps=4)  # step 8 is asked for, 0, 5 and 10 are kept
    assert outcome.info["rewind_steps"] == 7
    assert outcome.cost.steps_retain == 7
    assert any("after 5 steps" in note for note in outcome.notes)
    exact = carried_out(one_peer(*scaled_rows(), softmax(), every=5), steps=7)
    assert torch.equal(outcome.params, exact.params)
    assert outcome.certificate.sensitivity == exact.certificate.sensitivity


def test_a_record_without_an_early_state_is_refused(run):
    task = local_task(run, request())
    late = {t: s for t, s in task.history.checkpoints.items() if t > 9}
    task = replace(task, history=replace(task.history, checkpoints=late))
    with pytest.raises(MissingRecordError, match=r"at most 6 steps, got \[10, 11\]"):
        carried_out(run, task=task)
    assert carried_out(run, task=task, steps=2).certificate.status == "certified"


def test_two_requests_in_a_row_are_one_for_both(run):
    """Noise aside; training is always taken up from the same kept state."""
    first = local_task(run, request((0, 3), "r0"))
    one = carried_out(run, task=first, epsilon=None)
    later = replace(run, data=run.data.without(request((0, 3))))
    second = local_task(later, request((5, 8), "r1"))
    gone = replace(second.history, checkpoints={})  # the record stays behind
    second = replace(second, history=gone, params=one.params, companions=one.personal)
    two = carried_out(later, task=second, epsilon=None)
    both = carried_out(run, (0, 3, 5, 8), epsilon=None)
    torch.testing.assert_close(two.params, both.params, rtol=1e-12, atol=1e-14)
    again = carried_out(later, task=second)
    whole = carried_out(run, (0, 3, 5, 8))
    assert again.certificate.sensitivity == whole.certificate.sensitivity
    assert again.certificate.status == "certified"
    with pytest.raises(MissingRecordError, match="companions"):
        carried_out(later, task=replace(second, companions={}))
    # The noised model is no state of training, though it stands at its end.
    with pytest.raises(MissingRecordError, match="companions"):
        carried_out(later, task=replace(second, companions={}), steps=0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_network_of_one_peer_forgets_one_request_after_another(run, stored, tmp_path):
    bare, noisy = AtPeer(method=R2d(epsilon=None)), AtPeer(method=R2d())
    both = unlearn(run, request((0, 3, 5, 8)), bare)
    first = unlearn(run, request((0, 3), "r0"), noisy).as_run()
    if stored:
        first = load_run(first.save(tmp_path / "run").folder, data=run.data)
    second = unlearn(first, request((5, 8), "r1"), bare)
    torch.testing.assert_close(
        second.state.params, both.state.params, rtol=1e-12, atol=1e-14
    )
    claim = unlearn(first, request((5, 8), "r1"), noisy).certificate
    assert claim.status == "certified"
    whole = unlearn(run, request((0, 3, 5, 8)), noisy).certificate
    assert claim.sensitivity == whole.sensitivity
    more = AtPeer(method=R2d(rewind=0.9))
    with pytest.raises(MissingRecordError, match="companions"):
        unlearn(first, request((5, 8), "r1"), more)
    other = unlearn(run, request((0, 3), "r0"), AtPeer(method=FineTune())).as_run()
    with pytest.raises(MissingRecordError, match="stayed behind"):
        unlearn(other, request((5, 8), "r1"), noisy)


def test_a_state_worked_out_backwards_does_as_well_as_a_kept_one(run):
    kept = carried_out(run, steps=4, epsilon=None)
    undone = carried_out(run, steps=4, epsilon=None, start="proximal")
    torch.testing.assert_close(undone.params, kept.params, rtol=1e-9, atol=1e-11)
    claim = carried_out(run, steps=4, start="proximal", start_error=1e-7).certificate
    exact = carried_out(run, steps=4).certificate
    assert claim.status == "certified"
    (start,) = [a for a in claim.assumptions if a.name == "start"]
    assert start.source == "measured"
    # The cap, not what was measured, is what the noise covers: c^K e on top.
    contraction = 1 - 0.5 * 0.01
    more = claim.sensitivity - exact.sensitivity
    assert more == pytest.approx(contraction**4 * 1e-7, rel=1e-4)
    assert undone.cost.sample_gradients > kept.cost.sample_gradients
    assert 0 < undone.info["start_error"] < 1e-12


def test_undone_minibatches_are_told_apart():
    run = one_peer(*scaled_rows(), softmax(), batch_size=7)
    kept = carried_out(run, steps=4, epsilon=None)
    undone = carried_out(run, steps=4, epsilon=None, start="proximal")
    torch.testing.assert_close(undone.params, kept.params, rtol=1e-9, atol=1e-11)


def test_what_l_rests_on_is_kept_with_an_undone_state(run):
    """A first request's word is not forgotten by the second."""

    def twice(**stated):
        fields = {"steps": 4, "start": "proximal"}
        first = unlearn(run, request((0, 3)), AtPeer(method=R2d(**fields, **stated)))
        plain = AtPeer(method=R2d(**fields))
        second = unlearn(first.as_run(), request((5, 8), "r1"), plain)
        return first.certificate, second.certificate

    first, second = twice()
    assert first.status == second.status == "certified"
    first, second = twice(smoothness=0.6)
    assert second.status == "certified_conditional"
    assert second.reasons == ("start: assumed",)
    assert "start: assumed" in first.reasons
    # What is stated is above l2 and below the curvature that is measured there.
    first, second = twice(smoothness=0.02)
    assert first.status == second.status == "heuristic"
    assert "start: violated" in first.reasons
    assert "start: violated" in second.reasons


def test_what_an_undone_start_measured_is_not_in_the_certificate(run):
    outcome = carried_out(run, steps=4, start="proximal", start_error=1e-7)
    (start,) = [a for a in outcome.certificate.assumptions if a.name == "start"]
    assert f"{outcome.info['start_error']:.3g}" not in start.note
    assert "1e-07" in start.note
    assert any("carry no noise" in line for line in outcome.certificate.exposure)
    kept = carried_out(run, steps=4).certificate
    assert not any("carry no noise" in line for line in kept.exposure)


def test_an_undone_state_without_a_bound_on_curvature_is_heuristic():
    model = models.build(
        "mlp", input_shape=(5,), num_classes=3, hidden=(4,), smooth=True
    )
    run = one_peer(*scaled_rows(), model, learning_rate=0.1)
    outcome = carried_out(run, steps=3, start="proximal", safety=1.5)
    assert outcome.certificate.status == "heuristic"
    assert "start: estimated" in outcome.certificate.reasons
    assert outcome.info["start_amplification"] > 1


def test_what_cannot_be_undone_is_refused(run):
    for local, name in (({"momentum": 0.5}, "momentum"), ({"clip_norm": 1.0}, "clip")):
        other = one_peer(*scaled_rows(), softmax(), **local)
        with pytest.raises(UnsupportedRequestError, match=name):
            carried_out(other, start="proximal")
    later = replace(run, data=run.data.without(request((1, 2))))
    with pytest.raises(MissingInputError, match="all 48 rows of training"):
        carried_out(later, start="proximal")
    long = one_peer(*scaled_rows(), softmax(), learning_rate=2.0)
    with pytest.raises(ReconstructionError, match="learning_rate"):
        carried_out(long, start="proximal")
    with pytest.raises(ReconstructionError, match="start_error"):
        carried_out(run, start="proximal", start_error=1e-18)


# --- constants ---------------------------------------------------------------------


def test_a_network_without_constants_is_rewound_and_nothing_is_certified(network_run):
    outcome = carried_out(network_run)
    claim = outcome.certificate
    assert claim.status == "heuristic"
    assert (claim.epsilon, claim.nominal_epsilon, claim.noise_std) == (None, None, 0)
    assert "smoothness (L): violated" in claim.reasons
    assert any("no noise was added" in note for note in outcome.notes)
    bare = carried_out(network_run, epsilon=None)
    assert torch.equal(outcome.params, bare.params)
    with pytest.raises(SensitivityUnprovenError, match="noise_std"):
        carried_out(network_run, noise_std=0.1)


def test_estimated_constants_give_noise_and_no_certificate(network_run):
    outcome = carried_out(network_run, safety=2.0)
    claim = outcome.certificate
    assert claim.status == "heuristic"
    assert set(claim.reasons) == {
        "smoothness (L): estimated",
        "gradient bound (G): estimated",
    }
    assert claim.nominal_epsilon == 1.0
    assert claim.noise_std > 0
    once = carried_out(network_run, safety=1.0)
    assert once.certificate.sensitivity < claim.sensitivity / 2
    plain = carried_out(network_run, epsilon=None)
    assert outcome.cost.sample_gradients > plain.cost.sample_gradients


def test_a_bound_that_fits_no_float_is_an_error_with_a_way_out(network_run):
    fields = {"smoothness": 1e60, "gradient_bound": 1.0}
    with pytest.raises(NumericalError, match="rewind=1"):
        carried_out(network_run, **fields)
    assert carried_out(network_run, rewind=1.0, **fields).certificate.status == "exact"


def test_the_callers_regime_is_the_callers_claim():
    centres = [[0.0], [1.0], [2.0], [3.0], [10.0]]
    task = quadratic_task([2.0], centres, [4], theta=[0.5], eta=0.1, steps=10)
    known = {"smoothness": 2.0, "gradient_bound": 30.0, "strong_convexity": 2.0}
    outcome = R2d(steps=3, **known).unlearn(task, RngTree(0))
    claim = outcome.certificate
    assert outcome.info["regime"] == "strongly_convex"
    assert claim.status == "certified_conditional"
    assert claim.sensitivity >= 0.687863889920
    with pytest.raises(InvalidHyperparameterError, match="strong_convexity"):
        R2d(
            steps=3, regime="strongly_convex", smoothness=2.0, gradient_bound=30.0
        ).unlearn(task, RngTree(0))


@pytest.mark.parametrize("regime", ["convex", "strongly_convex"])
def test_a_network_is_not_convex_because_the_caller_says_so(network_run, regime):
    known = {"smoothness": 1.0, "gradient_bound": 1.0, "strong_convexity": 0.1}
    claim = carried_out(network_run, regime=regime, **known).certificate
    assert claim.status == "heuristic"
    assert "regime: violated" in claim.reasons
    clipped = one_peer(*scaled_rows(), softmax(), clip_norm=0.3)
    claim = carried_out(clipped, regime=regime, strong_convexity=0.01).certificate
    assert claim.reasons[-1] == "regime: violated"
    assert carried_out(network_run, **known).certificate.status == "heuristic"


def test_a_smoothness_is_taken_from_the_caller_only_where_there_can_be_one(network_run):
    known = {"smoothness": 1.0, "gradient_bound": 1.0}
    claim = carried_out(network_run, **known).certificate
    assert claim.status == "heuristic"
    assert "smoothness (L): violated" in claim.reasons
    smooth = models.build(
        "mlp", input_shape=(5,), num_classes=3, hidden=(4,), smooth=True
    )
    claim = carried_out(one_peer(*scaled_rows(), smooth), **known).certificate
    assert claim.status == "certified_conditional"
    assert claim.reasons == (
        "smoothness (L): assumed",
        "gradient bound (G): assumed",
    )


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"strong_convexity": 0.02}, "strong convexity (mu): violated"),
        ({"smoothness": 0.005, "regime": "nonconvex"}, "smoothness (L): violated"),
    ],
)
def test_a_stated_constant_that_cannot_be_is_violated(run, fields, wrong):
    """Logistic losses flatten: mu is what decay gives, and L is no less than that."""
    claim = carried_out(run, **fields).certificate
    assert claim.status == "heuristic"
    assert wrong in claim.reasons
    possible = {"strong_convexity": 0.01, "smoothness": 0.4}
    claim = carried_out(run, **possible).certificate
    assert claim.status == "certified_conditional"
    decayed = one_peer(*scaled_rows(), softmax(), weight_decay=0.01)
    claim = carried_out(decayed, strong_convexity=0.02).certificate
    assert claim.status == "certified_conditional"


def test_a_smooth_network_of_the_zoo_is_not_convex_either():
    smooth = models.build(
        "mlp", input_shape=(5,), num_classes=3, hidden=(4,), smooth=True
    )
    known = {"smoothness": 1.0, "gradient_bound": 1.0, "strong_convexity": 0.0}
    claim = carried_out(one_peer(*scaled_rows(), smooth), **known).certificate
    assert claim.status == "heuristic"
    assert "regime: violated" in claim.reasons


def test_step_sizes_outside_the_regime_are_refused(run):
    with pytest.raises(SensitivityUnprovenError, match="learning_rate"):
        carried_out(run, regime="convex", smoothness=5.0)


# --- budget and fields -------------------------------------------------------------


@pytest.mark.parametrize(
    "budget", [Budget(max_steps=3), Budget(max_epochs=3), Budget(max_steps=0)]
)
def test_a_descent_that_the_budget_ends_claims_nothing(run, budget):
    task = local_task(run, request(), budget=budget, ledger=PrivacyLedger())
    outcome = carried_out(run, task=task)
    assert outcome.certificate is None
    assert not task.ledger.entries
    assert any("stopped by the budget" in note for note in outcome.notes)
    taken = 0 if budget.max_steps == 0 else 3
    assert outcome.cost.steps_retain == taken
    if not taken:
        assert torch.equal(outcome.params, task.params)


def test_at_one_peer_the_networks_certificate_is_the_methods(run):
    outcome = unlearn(run, request(), AtPeer(method=R2d()))
    assert outcome.certificate.status == "certified"
    assert outcome.personal[0]["r2d-place"].tolist() == [6, 0, 1]
    assert torch.equal(outcome.personal[0]["r2d-start"], run.record.checkpoints[6][0])
    assert [entry.state for entry in outcome.ledger.entries] == ["committed"]


def test_a_share_is_rounded_up_to_steps():
    assert R2d(rewind=0.3).rewind_steps(10) == 3
    assert R2d(rewind=0.31).rewind_steps(10) == 4
    assert R2d(rewind=1.0).rewind_steps(7) == 7
    assert R2d(rewind=0.0).rewind_steps(7) == 0
    assert R2d(steps=2).rewind_steps(7) == 2
    with pytest.raises(InvalidHyperparameterError, match="at most the 7 steps"):
        R2d(steps=8).rewind_steps(7)


@pytest.mark.parametrize(
    ("fields", "error", "name"),
    [
        ({"rewind": 1.1}, InvalidHyperparameterError, "rewind"),
        ({"steps": -1}, InvalidHyperparameterError, "steps"),
        ({"start": "ascent"}, InvalidArgumentError, "start"),
        ({"epsilon": 0.0}, InvalidPrivacyParameterError, "epsilon"),
        ({"delta": 1.0}, InvalidPrivacyParameterError, "delta"),
        ({"noise_std": 0.0}, InvalidPrivacyParameterError, "noise_std"),
        ({"bound": "loose"}, InvalidArgumentError, "bound"),
        ({"regime": "flat"}, InvalidArgumentError, "regime"),
        ({"calibration": "classic"}, InvalidPrivacyParameterError, "epsilon"),
        ({"smoothness": -1.0}, InvalidHyperparameterError, "smoothness"),
        ({"safety": 0.5}, InvalidHyperparameterError, "safety"),
        ({"start_error": 0.0}, InvalidHyperparameterError, "start_error"),
        (
            {"bound": "published", "regime": "convex"},
            InvalidHyperparameterError,
            "regime",
        ),
    ],
)
def test_wrong_fields_are_named(fields, error, name):
    with pytest.raises(error, match=name):
        R2d(**fields)


def test_a_claim_needs_a_name_before_anything_is_computed(run):
    task = local_task(run, ForgetRequest.samples(peer=0, indices=GONE))
    with pytest.raises(InvalidArgumentError, match="request_id"):
        carried_out(run, task=task)
