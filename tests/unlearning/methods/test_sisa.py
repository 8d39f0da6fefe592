"""SISA (oracle O11): what a deletion retrains, and that nothing tells it from new."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from one_peer import act, mlp, samples, trained

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.methods.sisa import Sisa, SisaEnsemble
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.recipe import TrainingRecipe

MOMENTUM = LocalOptimizer(learning_rate=0.1, momentum=0.9)
SHORT = TrainingRecipe(epochs=4, batch_size=4, optimizer=MOMENTUM)
TWO_BY_THREE = Sisa(shards=2, slices=3, recipe=SHORT)


@pytest.fixture(scope="module")
def run():
    return trained()  # 48 rows: shards of 24, slices of 8


def prepared(method, run, rows=(0,)):
    """The task of forgetting rows, with an ensemble that was trained on all of them."""
    task = samples(run, rows)
    return replace(task, companions=method.train(task, RngTree(0)).personal)


def place(shard, part, k, *, shards=2, slices=3):
    """Row k of a slice of a shard."""
    return shard + shards * (part + slices * k)


def without(task):
    return replace(task, companions={})


@pytest.mark.parametrize(
    "rows",
    [
        [place(0, 0, 1)],
        [place(1, 2, 0)],
        [place(0, 1, 3), place(1, 1, 2), place(1, 2, 5)],
        [place(0, 2, k) for k in range(8)],  # a whole slice
        [place(1, j, k) for j in range(3) for k in range(8)],  # a whole shard
    ],
)
def test_a_deletion_gives_the_bits_of_training_without_the_rows(run, rows):
    task = prepared(TWO_BY_THREE, run, sorted(rows))
    deleted = act(TWO_BY_THREE, task)
    anew = act(TWO_BY_THREE, without(task))
    assert torch.equal(deleted.params, anew.params)
    for name, tensor in deleted.personal.items():
        assert torch.equal(tensor, anew.personal[name]), name
    assert deleted.cost.sample_gradients < anew.cost.sample_gradients
    assert deleted.certificate.status == anew.certificate.status == "exact"


def test_the_rows_that_went_leave_no_trace(run):
    """Other values in the forgotten rows, before they were trained on: the same end."""
    rows = sorted((place(0, 1, 0), place(1, 2, 3)))
    expected = act(TWO_BY_THREE, prepared(TWO_BY_THREE, run, rows))
    data = blobs([48], dtype=np.float64)
    data.store.inputs[rows] += 50.0
    other = act(TWO_BY_THREE, prepared(TWO_BY_THREE, replace(run, data=data), rows))
    assert torch.equal(expected.params, other.params)
    for name, tensor in expected.personal.items():
        assert torch.equal(tensor, other.personal[name]), name


def test_the_last_slice_retrains_exactly_one_stage(run):
    task = prepared(TWO_BY_THREE, run, [place(1, 2, 0)])
    outcome = act(TWO_BY_THREE, task)
    assert outcome.info["stages_trained"] == 1
    passes = TWO_BY_THREE.stage_epochs
    assert outcome.cost.sample_gradients == passes * (24 - 1)
    assert outcome.cost.steps_retain == passes * 6
    old, new = task.companions["sisa-states"], outcome.personal["sisa-states"]
    changed = (old != new).any(dim=2)
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("slices", [1, 2, 4, 10])
def test_the_work_of_a_deletion_is_the_predicted_share(slices):
    """Measured over one row of every slice, against (2 R + 1) / (3 R)."""
    size, shards = 20, 2
    data = blobs([shards * slices * size], dtype=np.float64)
    run = trained(data=data, rounds=1)
    recipe = TrainingRecipe(epochs=1, batch_size=size)
    method = Sisa(shards=shards, slices=slices, recipe=recipe)
    whole = method.train(samples(run, (0,)), RngTree(0)).cost.sample_gradients / shards
    spent = []
    for j in range(slices):
        row = place(0, j, 3, shards=shards, slices=slices)
        task = prepared(method, run, [row])
        spent.append(act(method, task).cost.sample_gradients)
        stages = slices - j  # each of them has one row less than before
        full = spent[-1] + stages * method.stage_epochs
        assert full == method.stage_epochs * size * sum(range(j + 1, slices + 1))
    share = np.mean(spent) / whole
    expected = (2 * slices + 1) / (3 * slices)
    # The deleted row itself is not gone through: at most one row in a slice's 20.
    assert expected * (1 - 1 / size) <= share < expected
    missing = method.stage_epochs * np.mean([slices - j for j in range(slices)])
    assert share + missing / whole == pytest.approx(expected, rel=1e-12)


def test_requests_follow_one_another(run):
    first, second = [place(0, 1, 0)], sorted([place(1, 0, 2), place(0, 2, 1)])
    method = TWO_BY_THREE
    once = act(method, prepared(method, run, first))
    later = replace(run, data=run.data.without(request_of(run, first)))
    task = samples(later, second, request_id="r1")
    twice = act(method, replace(task, companions=once.personal))
    together = act(method, samples(run, sorted(first + second)))
    assert torch.equal(twice.params, together.params)
    for name, tensor in twice.personal.items():
        assert torch.equal(tensor, together.personal[name]), name


def request_of(run, rows):
    from dfl_unlearn.data.forget import ForgetRequest

    return ForgetRequest.samples(peer=0, indices=rows).resolve(run.data)


def test_rows_that_another_method_forgot_are_noticed(run):
    """The ensemble still has them: it takes them out with the next request."""
    task = prepared(TWO_BY_THREE, run, [place(0, 2, 0)])
    elsewhere = [place(1, 1, 4)]
    later = replace(run, data=run.data.without(request_of(run, elsewhere)))
    now = replace(samples(later, [place(0, 2, 0)]), companions=task.companions)
    outcome = act(TWO_BY_THREE, now)
    assert torch.equal(outcome.params, act(TWO_BY_THREE, without(now)).params)
    assert outcome.info["stages_trained"] == 3


def test_an_ensemble_of_other_fields_is_not_taken_up(run):
    task = prepared(TWO_BY_THREE, run)
    other = replace(TWO_BY_THREE, recipe=replace(SHORT, epochs=6))
    outcome = act(other, task)
    assert outcome.info["stages_trained"] == 6
    assert torch.equal(outcome.params, act(other, without(task)).params)


@pytest.mark.parametrize("steps", [0, 1, 11, 12, 30, 43])
def test_a_budget_leaves_stages_for_later(run, steps):
    task = prepared(TWO_BY_THREE, run, sorted([place(0, 0, 0), place(1, 1, 0)]))
    cut = act(TWO_BY_THREE, replace(task, budget=Budget(max_steps=steps)))
    assert cut.certificate.status == "heuristic"
    assert any("stage" in reason for reason in cut.certificate.reasons)
    assert cut.cost.steps_retain <= steps
    states, done = cut.personal["sisa-states"], cut.personal["sisa-done"]
    for s in range(2):  # nothing is left of states that saw a forgotten row
        assert not states[s, int(done[s]) + 1 :].any()
    on = act(TWO_BY_THREE, replace(task, companions=cut.personal))
    assert torch.equal(on.params, act(TWO_BY_THREE, without(task)).params)
    assert on.certificate.status == "exact"


def test_the_certificate_says_what_it_is_about(run):
    certificate = act(TWO_BY_THREE, samples(run)).certificate
    assert certificate.covers != ("all",)
    assert "ensemble" in str(certificate)


def test_the_ensemble_is_carried_over_where_nothing_is_forgotten(run):
    task = prepared(TWO_BY_THREE, run)
    none = replace(task, forget_rows=np.empty(0, np.int64))
    assert act(TWO_BY_THREE, none).personal == task.companions


def test_members_say_together_what_each_says(run):
    task = samples(run)
    outcome = act(TWO_BY_THREE, task)
    ensemble = SisaEnsemble.of(task.model, outcome.personal)
    x = task.forget.inputs
    each = torch.stack([task.model.predict(m, x) for m in ensemble.members])
    torch.testing.assert_close(ensemble.mean(x), each.softmax(dim=2).mean(dim=0))
    votes = ensemble.vote(x)
    for row, named in zip(votes, each.argmax(dim=2).T, strict=True):
        assert row.tolist() == [(named == c).double().mean() for c in range(3)]
    torch.testing.assert_close(outcome.params, ensemble.members.mean(dim=0))
    with pytest.raises(MissingInputError, match="sisa-states"):
        SisaEnsemble.of(task.model, {})


def test_a_regression_has_a_mean():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)).double()
    data = PeerData.from_tensors([(x, x.sum(dim=1))], test=(x, x.sum(dim=1)))
    model = models.build("linear", input_shape=(4,), num_classes=0)
    task = samples(trained(model, data=data), (0, 7))
    outcome = act(TWO_BY_THREE, task)
    mean = SisaEnsemble.of(model, outcome.personal).mean(x)
    torch.testing.assert_close(mean, model.predict(outcome.params, x))


def test_training_needs_all_rows(run):
    hidden = replace(samples(run), forget=None)
    with pytest.raises(MissingInputError, match="local_task"):
        TWO_BY_THREE.train(hidden, RngTree(0))
    assert mlp().size == TWO_BY_THREE.train(samples(run), RngTree(0)).params.numel()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sisa-states", lambda t: t[:1]),
        ("sisa-states", lambda t: t.float()),
        ("sisa-states", lambda t: t + torch.nan),
        ("sisa-done", lambda t: t + 1),
        ("sisa-done", lambda t: t - 4),
        ("sisa-done", lambda t: t.double()),
        ("sisa-rows", lambda t: -t - 1),
        ("sisa-rows", lambda t: t[None]),
        ("sisa-fields", lambda t: t + 1),
        ("sisa-fields", lambda t: t.double()),
        ("sisa-fields", lambda t: t[:0]),
    ],
)
def test_an_ensemble_that_was_damaged_is_not_taken_up(run, name, change):
    task = prepared(TWO_BY_THREE, run)
    damaged = {**task.companions, name: change(task.companions[name])}
    outcome = act(TWO_BY_THREE, replace(task, companions=damaged))
    assert outcome.info["stages_trained"] == 6
    assert torch.equal(outcome.params, act(TWO_BY_THREE, without(task)).params)
