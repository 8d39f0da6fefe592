"""DP-SGD with gossip: what is clipped, drawn, added, divided by, charged."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from oracles.training import private_rows, private_train
from scipy import stats
from small_models import MODELS, SIZES, features, shapes
from torch import nn

from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.private import charge_rounds
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import continue_training, samples_per_round, simulate
from dfl_unlearn.engine.trainers.contract import PrivateSteps
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    MissingRecordError,
    PrivacyBudgetExceededError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.influence import influence_trace
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.unlearning.apply import unlearn

STEP = 0.1


def settings(trainer, *, rounds=4, dtype="float64", local=None, **fields):
    return SimulationConfig(
        rounds=rounds,
        seed=11,
        trainer=trainer,
        local=local or LocalSteps(learning_rate=STEP),
        dtype=dtype,
        evaluate_every=0,
        **fields,
    )


def agree(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def trained(kind, config, request=None):
    losses, use, model_fields = MODELS[kind]
    pairs = features(kind)
    data = PeerData.from_tensors(
        pairs, test=pairs[0], num_classes=model_fields["num_classes"]
    )
    data = data if request is None else data.without(request)
    model = models.build(use, l2=0.05, **shapes(kind), **model_fields)
    run = simulate(load_topology("path", n=len(SIZES)), data, model, config)
    return run, losses, pairs


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("softmax", "stacked"),
        ("binary", "stacked"),
        ("squared", "stacked"),
        ("mlp", "stacked"),
        ("softmax", "vmap"),
        ("mlp", "loop"),
        ("cnn", "loop"),
    ],
)
@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_run_is_dp_sgd_written_out_row_by_row(kind, kernel, form, rate):
    trainer = DpGossip(clip_norm=0.4, noise_multiplier=0.7, rate=rate, form=form)
    local = LocalSteps(learning_rate=STEP, lr_schedule="cosine", weight_decay=0.02)
    config = settings(
        trainer, local=local, kernel=kernel, common_init=False, block_peers=2
    )
    request = ForgetRequest.samples(peer=2, indices=[1, 3, 4])
    run, losses, pairs = trained(kind, config, request)
    split = [
        slice(a, b)
        for a, b in zip(run.data.offsets[:-1], run.data.offsets[1:], strict=True)
    ]
    expected = private_train(
        run.record.initial,
        losses,
        pairs,
        torch.from_numpy(run.topology.weights.toarray()),
        seed=11,
        rates=STEP * 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)),
        rate=rate,
        clip_norm=0.4,
        noise_multiplier=0.7,
        keep=[run.data.keep[s] for s in split],
        form=form,
        l2=0.05,
        weight_decay=0.02,
        block_peers=2,
    )
    agree(run.state.params, expected)


def test_an_empty_batch_is_a_step_with_noise_and_is_charged():
    trainer = DpGossip(rate=1e-9, noise_multiplier=2.0, clip_norm=0.5)
    run, _, _ = trained("softmax", settings(trainer, rounds=1))
    rows = [private_rows(11, SIZES, i, 0, 1e-9) for i in range(len(SIZES))]
    assert sum(map(len, rows)) == 0
    start = run.record.initial
    local = run.rng.normal(tuple(start.shape), "train-noise", who="block:0")
    spread = 2.0 * 0.5 / (1e-9 * torch.tensor(SIZES, dtype=torch.float64))
    moved = start - STEP * (spread[:, None] * local + 0.05 * start)
    agree(run.state.params, run.topology.weights @ moved.numpy())
    (entry,) = run.ledger.entries
    assert entry.mechanism.steps == 1


@pytest.mark.parametrize("trials", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_one_row_moves_its_peers_sum_by_at_most_the_clipping_norm(kind, trials):
    # The triangle check of the accounting specification, section 1: random neighbours.
    data = blobs([5, 7], dtype=np.float64)
    model = models.build(kind, input_shape=(6,), num_classes=3, l2=0.0)
    trainer = DpGossip(clip_norm=0.3, noise_multiplier=1e-30, rate=0.6)
    rng, largest, clipped = np.random.default_rng(0), 0.0, 0
    weights = torch.from_numpy(load_topology("path", n=2).weights.toarray())
    for trial in range(trials):
        config = replace(settings(trainer, rounds=1), seed=trial)
        point = torch.from_numpy(rng.standard_normal(model.size))
        model.init = lambda rng, point=point: point
        peer = trial % 2
        row = int(rng.integers(data.sizes[peer]))
        request = ForgetRequest.samples(peer, indices=[row])
        with_row = simulate("path", data, model, config).state.params
        without = simulate("path", data.without(request), model, config).state.params
        # One round of atc: the difference is W's column of the peer times the step's.
        factor = STEP / (trainer.rate * data.sizes[peer])
        moved = (with_row - without) / factor / weights[:, peer, None]
        shift = moved.norm(dim=1)
        largest = max(largest, float(shift.max()))
        clipped += bool(torch.isclose(shift, torch.tensor(0.3).double()).all())
    assert largest <= 0.3 * (1 + 1e-9)
    assert clipped > trials / 5


@pytest.mark.statistical
def test_the_noise_has_the_stated_size():
    # Confidence 1 - 1e-6 for the right size; another size by 5 % is rejected.
    data = blobs([40, 25, 60, 35])
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    model.init = lambda rng: torch.zeros(model.size)
    trainer = DpGossip(clip_norm=1e-6, noise_multiplier=1e6, rate=0.5, form="cta")
    drawn = []
    for seed in range(300):
        config = replace(settings(trainer, rounds=1, dtype="float32"), seed=seed)
        run = simulate("ring", data, model, config)
        size = STEP * 1.0 / (0.5 * torch.from_numpy(data.sizes).double())
        drawn.append(run.state.params.double() / size[:, None])
    values = torch.stack(drawn).flatten().numpy()
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(values))
    assert low < (values**2).sum() < high
    assert not low < ((1.05 * values) ** 2).sum() < high
    # Peers and rounds have noise of their own.
    rows = torch.stack(drawn)[:, :, 0].numpy()
    assert np.abs(np.corrcoef(rows.T) - np.eye(4)).max() < 0.3


def test_forgetting_one_row_changes_no_others_coin_noise_or_divisor():
    trainer = DpGossip(rate=0.8, noise_multiplier=0.5)
    config = replace(settings(trainer, rounds=1), block_peers=3)
    full, losses, pairs = trained("softmax", config)
    less, _, _ = trained(
        "softmax", config, ForgetRequest.samples(peer=1, indices=[0, 2, 3])
    )
    weights = full.topology.weights.toarray()
    moved = torch.from_numpy(np.linalg.inv(weights)) @ (
        full.state.params - less.state.params
    )
    assert float(moved[[0, 2, 3, 4]].abs().max()) < 1e-12
    gone = [r for r in private_rows(11, SIZES, 1, 0, 0.8, 3) if r in (0, 2, 3)]
    assert gone
    total = torch.zeros(21, dtype=torch.float64)
    for row in gone:
        leaf = full.record.initial[1].clone().requires_grad_()
        x, y = pairs[1]
        losses(leaf, x[row : row + 1], y[row : row + 1])[0].backward()
        total += leaf.grad * min(1.0, 1.0 / float(leaf.grad.norm()))
    np.testing.assert_allclose(moved[1], -STEP * total / (0.8 * SIZES[1]), atol=1e-12)


@pytest.mark.parametrize("kernel", ["stacked", "loop"])
def test_the_chunk_size_changes_nothing_but_the_last_bits(kernel):
    config = settings(DpGossip(rate=0.3), kernel=kernel)
    whole, _, _ = trained("softmax", config)
    for chunk in (1, 2, 3):
        run, _, _ = trained("softmax", replace(config, chunk_peers=chunk))
        agree(run.state.params, whole.state.params)


def test_a_run_starts_with_the_charge_of_all_its_rounds():
    trainer = DpGossip(rate=0.2, noise_multiplier=3.0)
    run, _, _ = trained("softmax", settings(trainer, rounds=7))
    (entry,) = run.ledger.entries
    assert entry.mechanism == SampledGaussianMechanism(
        rate=0.2, noise_multiplier=3.0, steps=7, adjacency="add_remove"
    )
    assert (entry.owner, entry.observers) == ("*", ("public",))
    assert (entry.state, entry.scope) == ("committed", "view_joint")
    assert entry.stream == "train-noise/*/training/0/0"
    plain, _, _ = trained("softmax", replace(run.config, trainer=DpGossip()))
    assert plain.ledger.epsilon("*", "peer:0", 1e-5) > run.ledger.epsilon(
        "*", "peer:0", 1e-5
    )


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "published"),
    [(0.01, 1.1, 1000, 1.7117700912), (0.02, 1.0, 500, 3.1442564752)],
)  # decentralized-certified 7, item 9: Opacus' values
@pytest.mark.filterwarnings("ignore")
def test_the_charge_is_what_opacus_accounts(rate, noise, rounds, published):
    from opacus.accountants import RDPAccountant

    ledger = PrivacyLedger()
    steps = PrivateSteps(clip_norm=0.7, noise_multiplier=noise, rate=rate)
    charge_rounds(ledger, steps, rounds)
    epsilon = ledger.epsilon("*", "public", 1e-5)
    assert published * (1 - 1e-9) <= epsilon <= published * (1 + 1e-7)
    theirs = RDPAccountant()
    theirs.history = [(noise, rate, rounds)]
    assert epsilon == pytest.approx(theirs.get_epsilon(delta=1e-5), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["softmax", "mlp", "cnn"])
def test_clipped_sums_are_those_of_opacus(kind):
    from opacus.grad_sample import GradSampleModule

    layers = {
        "softmax": [nn.Flatten(), nn.Linear(6, 3)],
        "mlp": [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)],
        "cnn": [
            nn.Conv2d(1, 2, 3),
            nn.GroupNorm(1, 2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(72, 3),
        ],
    }
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((9, 1, 8, 8) if kind == "cnn" else (9, 6)))
    y = torch.from_numpy(rng.integers(0, 3, 9))
    module = nn.Sequential(*layers[kind]).double()
    data = PeerData.from_tensors([(x, y)] * 2, test=(x, y), num_classes=3)
    trainer = DpGossip(clip_norm=0.8, noise_multiplier=1e-30, rate=1.0)
    run = simulate(
        load_topology("path", n=2),
        data,
        FlatModel.from_module(module, "cross-entropy"),
        settings(trainer, rounds=1),
    )
    start = run.record.initial[0]
    nn.utils.vector_to_parameters(start, module.parameters())
    outputs = GradSampleModule(module, loss_reduction="sum")(x)
    nn.functional.cross_entropy(outputs, y, reduction="sum").backward()
    rows = torch.cat(
        [p.grad_sample.reshape(len(y), -1) for p in module.parameters()], dim=1
    )
    factor = (0.8 / rows.norm(dim=1)).clamp(max=1.0)
    assert float(factor.min()) < 1
    total = (factor[:, None] * rows).sum(0)
    # Equal peers: mixing changes nothing.
    ours = (start - run.state.params[0]) * len(y) / STEP
    np.testing.assert_allclose(ours, total, rtol=1e-9, atol=1e-12)


def test_more_rounds_are_charged_before_they_begin():
    run, _, _ = trained("softmax", settings(DpGossip(rate=0.5)))
    _, gradients = continue_training(run, run.data, run.state, 3)
    first, second = run.ledger.entries
    assert (first.mechanism.steps, second.mechanism.steps) == (4, 3)
    assert (first.stream, second.round) == ("train-noise/*/training/0/0", 4)
    assert first.stream != second.stream
    assert gradients == 3 * samples_per_round(run.data, run.config)
    assert samples_per_round(run.data, run.config) == round(0.5 * sum(SIZES))
    outcome = unlearn(run, ForgetRequest.samples(peer=0, indices=[1]), "fine-tune")
    assert [e.mechanism.steps for e in outcome.ledger.entries] == [4, 3, 10]
    assert len(run.ledger.entries) == 2


def test_a_budget_refuses_before_training():
    budget = PrivacyBudget(epsilon_max=0.5)
    with pytest.raises(PrivacyBudgetExceededError, match=r"owner \*.*budget 0\.5"):
        trained("softmax", settings(DpGossip(rate=0.5), privacy_budget=budget))
    generous = PrivacyBudget(epsilon_max=50.0)
    run, _, _ = trained("softmax", settings(DpGossip(), privacy_budget=generous))
    assert run.ledger.remaining("*", "public") > 0


def test_sums_without_noise_are_not_recorded():
    run, _, _ = trained("softmax", settings(DpGossip()))
    assert "training_residual" not in run.record.plan.parts
    assert not run.record.training_residual
    with pytest.raises(MissingRecordError, match="training_residual"):
        unlearn(run, ForgetRequest.samples(peer=0, indices=[1]), "rr-du")


def test_influence_knows_that_gradients_are_clipped():
    run, _, _ = trained("softmax", settings(DpGossip()))
    assert run.record.dynamics.clip_norm == 1.0
    assert run.record.dynamics.form == "atc"
    with pytest.raises(UnsupportedRequestError, match="clip_norm=1"):
        track_influence(run, 1)
    trace = influence_trace(run.record, run.topology, 1, mode="mixing_power")
    assert np.isfinite(trace.norms).all()


def test_a_stored_run_keeps_trainer_and_charge(tmp_path):
    data = PeerData.load("gaussian-classes", peers=4, seed=0)
    trainer = DpGossip(clip_norm=0.5, noise_multiplier=1.5, rate=0.25, form="cta")
    config = settings(trainer, dtype="float32")
    run = simulate("ring", data, "logistic", config, folder=tmp_path / "a")
    again = load_run(tmp_path / "a")
    assert again.config.trainer == trainer
    assert again.digest == run.digest
    assert again.ledger.entries == run.ledger.entries
    assert math.isfinite(again.ledger.epsilon("*", "public", 1e-5))


@pytest.mark.parametrize(
    ("local", "match"),
    [
        (LocalSteps(steps=2), "local.steps.*got steps=2"),
        (LocalSteps(epochs=1.0), "local.steps.*got epochs=1"),
        (LocalSteps(batch_size=None), "local.batch_size.*got None; set trainer.rate"),
        (LocalSteps(momentum=0.9), r"local.momentum.*got 0\.9"),
        (LocalSteps(clip_norm=1.0), r"local.clip_norm.*got 1\.0; set trainer.clip"),
    ],
)
def test_settings_that_break_the_step_are_refused(local, match):
    with pytest.raises(InvalidArgumentError, match=match):
        SimulationConfig(trainer=DpGossip(), local=local)


def test_weights_by_size_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"peer_weighting.*'size'"):
        SimulationConfig(trainer=DpGossip(), peer_weighting="size")


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"clip_norm": 0.0}, InvalidArgumentError, "clip_norm"),
        ({"noise_multiplier": 0.0}, InvalidPrivacyParameterError, "no privacy"),
        ({"rate": 0.0}, InvalidPrivacyParameterError, "rate"),
        ({"rate": 1.5}, InvalidPrivacyParameterError, "rate"),
        ({"form": "mixed"}, InvalidArgumentError, "form"),
    ],
)
def test_fields_out_of_bounds_are_named(fields, error, match):
    with pytest.raises(error, match=match):
        DpGossip(**fields)
