"""ManiF-SMC against a second implementation, and what it may not look at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from oracles import manifold as oracle

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, InvalidHyperparameterError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.local import Budget, only, uses_of
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.manif_smc import ManifSmc
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=0.5)
ROWS = [0, 3, 5, 8, 9]


@pytest.fixture(scope="module")
def run():
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(24,))
    return simulate(
        Topology.single(),
        blobs([30], dtype=np.float64),
        model,
        SimulationConfig(
            rounds=20,
            local=LocalSteps(batch_size=10, learning_rate=0.2),
            evaluate_every=0,
            dtype="float64",
        ),
    )


@pytest.fixture(scope="module")
def task(run):
    return local_task(run, ForgetRequest.samples(peer=0, indices=ROWS, request_id="r"))


def act(method, task, seed=0):
    return method.unlearn(only(task, uses_of(method)), RngTree(seed))


def with_fresh(task, seed=4):
    """The task with one fresh vector, whatever the draw, and that vector."""
    fresh = task.model.init(RngTree(seed)).double()
    return replace(task, fresh=lambda rng: fresh), fresh


def oracles(task, fresh, *, steps, **fields):
    """Parameters after some steps of the second implementation, and its margins."""
    params, margins = task.params, []
    for _ in range(steps):
        params, alphas = oracle.one_step(
            task.params,
            task.forget.inputs,
            task.retain.inputs,
            task.retain.labels,
            fresh,
            current=params,
            rate=SGD.learning_rate,
            **fields,
        )
        margins.append(float(sum(alphas) / len(alphas)))
    return params, margins


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("margin", ["fixed", "midpoint_random", "smc"])
@pytest.mark.parametrize("variant", ["pull", "reference"])
def test_the_steps_are_the_oracles(variant, margin, normalize, task):
    task, fresh = with_fresh(task)
    fields = {"variant": variant, "margin": margin, "normalize": normalize}
    method = ManifSmc(
        **fields, positive="nearest", batch_size=None, optimizer=SGD, epochs=3
    )
    outcome = act(method, task)
    params, margins = oracles(task, fresh, steps=3, **fields)
    assert (outcome.params - task.params).abs().max() > 1e-4
    # Sums in another order; Adam divides by roots of tiny squares.
    torch.testing.assert_close(outcome.params, params, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(outcome.trace["margin"], margins, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"t": 0.2}, {"t": 0.2}),
        ({"w_loss": "representation"}, {"w_loss": "representation"}),
        ({"w_steps": 3, "w_learning_rate": 0.1}, {"w_steps": 3, "w_rate": 0.1}),
        ({"margin_max": 0.01}, {"cap": 0.01}),
        ({"margin": "fixed", "fixed_margin": 0.5}, {"margin": "fixed", "fixed": 0.5}),
        ({"margin_scale": 3.0}, {"scale": 3.0}),
        ({"preservation": 7.0}, {"preservation": 7.0}),
        ({"neighbours": 2}, {"k": 2}),
    ],
)
def test_every_field_means_what_it_says(fields, same, task):
    task, fresh = with_fresh(task)
    plain = {"batch_size": None, "optimizer": SGD, "epochs": 3}
    outcome = act(ManifSmc(**plain, **fields), task)
    same = {"variant": "pull", "margin": "smc"} | same
    params, margins = oracles(task, fresh, steps=3, **same)
    torch.testing.assert_close(outcome.params, params, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(outcome.trace["margin"], margins, rtol=1e-6, atol=1e-9)
    default = act(ManifSmc(**plain), task)
    assert not np.array_equal(outcome.trace["margin"], default.trace["margin"])


def test_a_row_whose_gap_is_reached_moves_no_more(task):
    method = ManifSmc(
        margin="fixed", fixed_margin=0.0, preservation=0.0, batch_size=None, epochs=300
    )
    method = replace(method, optimizer=replace(SGD, learning_rate=20.0))
    outcome = act(method, task)
    active = outcome.trace["active"]
    assert active[0] == 1
    assert active[-1] == 0
    still = int(np.argmax(active == 0))
    assert not active[still:].any()
    assert not outcome.trace["loss"][still:].any()


def test_a_class_centroid_is_the_mean_of_what_the_model_takes_for_the_class(task):
    inputs = torch.cat([task.forget.inputs, task.retain.inputs])
    classes = [int(oracle.logits(task.params, x).argmax()) for x in inputs]
    own = []
    for c in classes[: len(ROWS)]:
        members = [x for x, k in zip(inputs, classes, strict=True) if k == c]
        z = [oracle.representation(task.params, x) for x in members]
        own.append(sum(z) / len(z))
    fields = {"variant": "pull", "margin": "fixed"}
    method = ManifSmc(**fields, own_centroid="class", batch_size=None, optimizer=SGD)
    expected, _ = oracles(task, None, steps=1, own=own, **fields)
    torch.testing.assert_close(act(method, task).params, expected, rtol=1e-12, atol=0)


def test_a_positive_is_drawn_from_the_neighbours_anew_in_each_pass(task):
    method = ManifSmc(variant="reference", margin="fixed", batch_size=None)
    drawn = [act(replace(method, epochs=e), task, seed=1).params for e in (1, 2)]
    nearest = [
        act(replace(method, epochs=e, positive="nearest"), task, seed=1).params
        for e in (1, 2)
    ]
    assert not torch.equal(drawn[0], nearest[0])
    assert not torch.equal(drawn[1], nearest[1])
    alone = replace(method, neighbours=1)
    assert torch.equal(
        act(alone, task).params, act(replace(alone, positive="nearest"), task).params
    )


@pytest.mark.parametrize("variant", ["pull", "reference"])
def test_forgotten_rows_move_to_their_neighbours_or_away_as_the_variant_says(
    variant, task
):
    adam = LocalOptimizer(kind="adam", learning_rate=5e-3)
    outcome = act(ManifSmc(variant=variant, epochs=20, optimizer=adam), task)
    near = oracle.neighbours(task.params, task.forget.inputs, task.retain.inputs, 5)

    def distance(params):
        total = 0.0
        for x, places in zip(task.forget.inputs, near, strict=True):
            z = [
                oracle.representation(task.params, task.retain.inputs[j])
                for j in places
            ]
            total += oracle.d(oracle.representation(params, x), sum(z) / len(z))
        return float(total)

    before, after = distance(task.params), distance(outcome.params)
    assert after < 0.8 * before if variant == "pull" else after > 1.2 * before


def test_labels_of_forgotten_rows_change_nothing(task):
    wrong = TensorBatch(task.forget.inputs, (task.forget.labels + 1) % 3)
    for fields in ({}, {"variant": "reference"}, {"own_centroid": "class"}):
        method = ManifSmc(**fields)
        assert "forget_labels" not in uses_of(method)
        changed = method.unlearn(replace(task, forget=wrong), RngTree(0))
        plain = method.unlearn(task, RngTree(0))
        assert torch.equal(changed.params, plain.params)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, {"retain_labels", "fresh_start"}),
        ({"w_loss": "representation"}, {"fresh_start"}),
        ({"margin": "midpoint_random"}, {"fresh_start"}),
        ({"margin": "fixed"}, set()),
        ({"margin": "fixed", "own_centroid": "class"}, {"class_count"}),
        ({"margin": "fixed", "own_centroid": "class", "variant": "reference"}, set()),
    ],
)
def test_it_uses_no_more_than_its_fields_need(fields, parts, task):
    method = ManifSmc(**fields)
    assert uses_of(method) == {"forget_inputs", "retain_inputs", "features"} | parts
    assert act(method, task).params.isfinite().all()  # with the rest taken away


def test_margins_of_the_curve_cost_most_of_the_gradients_and_all_are_counted(task):
    fields = {"batch_size": None, "neighbours": 3}
    plain = act(ManifSmc(margin="fixed", **fields), task)
    near = oracle.neighbours(task.params, task.forget.inputs, task.retain.inputs, 3)
    union = len({place for places in near for place in places})
    assert plain.cost.sample_gradients == len(ROWS) + union
    fitted = act(ManifSmc(**fields), task)
    extra = 20 * union
    assert fitted.cost.sample_gradients == plain.cost.sample_gradients + extra
    assert fitted.info["margin_sample_gradients"] == extra
    assert fitted.cost.steps_forget == plain.cost.steps_forget == 1
    assert fitted.cost.optimizer_floats == 2 * plain.cost.optimizer_floats


def test_a_budget_that_ends_within_a_fit_leaves_the_model_as_it_was(task):
    few = replace(task, budget=Budget(max_sample_gradients=3))
    outcome = act(ManifSmc(), few)
    assert torch.equal(outcome.params, task.params)
    assert 0 < outcome.cost.sample_gradients <= 3 + task.retain_size
    assert outcome.cost.steps_forget == 0
    nothing = act(ManifSmc(), replace(task, budget=Budget(max_sample_gradients=0)))
    assert nothing.cost.sample_gradients == 0


def test_fresh_parameters_are_not_those_that_training_began_with(task, run):
    drawn = []

    def fresh(rng):
        drawn.append(task.model.init(rng).double())
        return drawn[-1]

    act(ManifSmc(batch_size=2, epochs=2), replace(task, fresh=fresh))
    assert len(drawn) == 6  # one per batch
    started = task.model.init(run.rng).double()
    every = [started, *drawn]
    assert len({tuple(vector.tolist()) for vector in every}) == 7


def test_fewer_retained_rows_than_neighbours_is_said(run):
    request = ForgetRequest.samples(peer=0, indices=range(27))
    outcome = act(ManifSmc(neighbours=4), local_task(run, request))
    assert outcome.info["neighbours"] == 3
    assert any("only 3 rows are retained" in note for note in outcome.notes)


def test_a_reconstruction_says_that_it_is_one(task):
    assert any("reconstruction" in note for note in act(ManifSmc(), task).notes)
    assert not act(ManifSmc(variant="reference"), task).notes
    assert act(ManifSmc(), task).certificate is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t": 0}, "t: must be a finite number > 0 and < 1, got 0"),
        ({"t": 1.0}, "t: must be a finite number > 0 and < 1, got 1.0"),
        ({"neighbours": 0}, "neighbours: must be an integer >= 1, got 0"),
        ({"preservation": -1}, "preservation: must be a finite number >= 0, got -1"),
        ({"margin_max": float("nan")}, "margin_max: must be .* got nan"),
        ({"batch_size": 0}, "batch_size: must be an integer >= 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(InvalidHyperparameterError, match=message):
        ManifSmc(**fields)


def test_unknown_words_are_refused():
    with pytest.raises(InvalidArgumentError, match="variant: must be one of pull"):
        ManifSmc(variant="push")
