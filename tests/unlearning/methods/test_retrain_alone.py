"""Retraining one model: the engine's own retraining at N = 1, and its certificate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from one_peer import ROWS, act, mlp, samples, trained

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import retrain, simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import InvalidHyperparameterError, MissingRecordError
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.forms import form_of, protocol_of
from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.retrain import Retrain
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.recipe import TrainingRecipe

SHORT = TrainingRecipe(epochs=3, batch_size=10)


def engine_retrained(run, rows=ROWS):
    request = ForgetRequest.samples(peer=0, indices=rows).resolve(run.data)
    return retrain(run, run.data.without(request)).state.params[0]


@pytest.mark.parametrize(
    "local",
    [
        {"batch_size": None},
        {"batch_size": 12},
        {"batch_size": 5, "epochs": 2, "momentum": 0.9, "lr_schedule": "cosine"},
        {"batch_size": 7, "momentum": 0.5, "weight_decay": 0.05},
        {"batch_size": 12, "clip_norm": 0.3, "lr_schedule": "inverse_sqrt"},
        # Batches of one row: those of forgotten ones are empty, steps all the same.
        {"batch_size": 1, "epochs": 1, "momentum": 0.9, "learning_rate": 0.01},
    ],
)
def test_alone_it_is_the_engines_retrained_run(local):
    run = trained(mlp(l2=0.01), **local)
    outcome = act(Retrain(), samples(run))
    expected = engine_retrained(run)
    # float64 arithmetic in two orders, over at most 288 steps
    torch.testing.assert_close(outcome.params, expected, rtol=1e-12, atol=1e-14)
    assert (outcome.params - run.state.params[0]).norm() > 1e-3
    assert outcome.certificate.status == "exact"
    assert outcome.cost.steps_retain == samples(run).history.steps


def test_rows_forgotten_earlier_stay_away():
    run = trained(batch_size=5, epochs=1)
    earlier = ForgetRequest.samples(peer=0, indices=[1, 2]).resolve(run.data)
    later = replace(run, data=run.data.without(earlier))
    outcome = act(Retrain(), samples(later))
    expected = engine_retrained(run, sorted((1, 2, *ROWS)))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-12, atol=1e-14)


def test_what_the_forgotten_rows_were_leaves_no_trace():
    data = blobs([48], dtype=np.float64)
    run = trained(data=data)
    expected = act(Retrain(), samples(run)).params
    store = data.store
    store.inputs[list(ROWS)] += 100.0
    assert torch.equal(
        act(Retrain(), samples(replace(run, data=data))).params, expected
    )


def test_other_draws_give_other_models_just_as_exact():
    run = trained()
    task = samples(run)
    first, second, again = (
        act(Retrain(coupled=False, seed_offset=offset), task) for offset in (1, 2, 1)
    )
    assert torch.equal(first.params, again.params)
    distance = (first.params - second.params).norm()
    assert distance > 0.1
    assert first.certificate.status == second.certificate.status == "exact"
    assert first.cost.steps_retain == task.history.steps


@pytest.mark.parametrize(
    "budget", [Budget(max_steps=3), Budget(max_epochs=1), Budget(max_steps=0)]
)
@pytest.mark.parametrize("recipe", [None, SHORT])
def test_a_training_that_was_cut_short_is_not_exact(budget, recipe):
    outcome = act(Retrain(recipe=recipe), samples(trained(), budget=budget))
    assert outcome.certificate.status == "heuristic"
    assert any("ran to its end" in reason for reason in outcome.certificate.reasons)
    assert outcome.certificate.epsilon is None


def test_a_budget_that_is_just_enough_is_exact():
    outcome = act(Retrain(), samples(trained(), budget=Budget(max_steps=6)))
    assert outcome.certificate.status == "exact"


def test_a_recipe_of_its_own_needs_no_history():
    task = samples(trained())
    method = Retrain(recipe=SHORT)
    assert "history" not in method.uses
    assert method.needs == frozenset()
    outcome = act(method, replace(task, history=None))
    assert outcome.certificate.status == "exact"
    assert outcome.cost.steps_retain == 3 * 5
    assert outcome.cost.sample_gradients == 3 * task.retain_size


def test_a_recipe_takes_the_steps_of_its_optimizer():
    task = samples(trained(mlp(l2=0.02)))
    optimizer = LocalOptimizer(learning_rate=0.2)
    recipe = TrainingRecipe(epochs=2, batch_size=None, optimizer=optimizer)
    params = task.fresh(RngTree(0))
    for rate in (0.2, 0.1):  # a cosine of two passes
        leaf = params.clone().requires_grad_()
        loss = task.model.loss(leaf, task.retain)
        params = params - rate * torch.autograd.grad(loss, leaf)[0]
    found = act(Retrain(recipe=recipe), task).params
    torch.testing.assert_close(found, params, rtol=1e-12, atol=1e-14)


def test_training_in_a_network_is_not_repeated_by_one_peer():
    network = simulate(
        "ring",
        blobs([20, 20, 20]),
        mlp(),
        SimulationConfig(rounds=2, local=LocalSteps(batch_size=8), evaluate_every=0),
    )
    request = ForgetRequest.samples(peer=0, indices=[0], request_id="r0")
    certificate = act(Retrain(), local_task(network, request)).certificate
    assert certificate.status == "heuristic"
    assert any("these rows alone" in reason for reason in certificate.reasons)


def test_private_training_is_not_repeated_without_its_noise():
    run = simulate(
        trained().topology,
        blobs([48]),
        mlp(),
        SimulationConfig(
            rounds=2,
            trainer=DpGossip(noise_multiplier=1.0, clip_norm=1.0),
            evaluate_every=0,
        ),
    )
    certificate = act(Retrain(), samples(run)).certificate
    assert certificate.status == "heuristic"
    assert any("no noise" in reason for reason in certificate.reasons)


def test_a_start_that_was_not_kept_is_asked_for():
    task = samples(trained())
    kept = {step: p for step, p in task.history.checkpoints.items() if step}
    history = replace(task.history, checkpoints=kept)
    with pytest.raises(MissingRecordError, match="for_protocols"):
        act(Retrain(), replace(task, history=history))


@pytest.mark.parametrize(
    "fields",
    [{"coupled": False}, {"seed_offset": 1}, {"coupled": False, "seed_offset": 0}],
)
def test_draws_are_either_repeated_or_named(fields):
    with pytest.raises(InvalidHyperparameterError, match="seed_offset"):
        Retrain(**fields)


def test_the_least_record_that_serves_it_is_enough():
    run = simulate(
        trained().topology,
        blobs([48], dtype=np.float64),
        mlp(),
        SimulationConfig(
            rounds=6,
            local=LocalSteps(batch_size=12),
            evaluate_every=0,
            dtype="float64",
            record=RecordPlan.for_protocols(AtPeer(method=Retrain())),
        ),
    )
    assert run.record.plan.parts == {"initial_state"}
    assert torch.equal(
        act(Retrain(), samples(run)).params, act(Retrain(), samples(trained())).params
    )


def test_a_recipe_is_kept_with_its_fields():
    protocol = AtPeer(method=Retrain(recipe=SHORT))
    assert protocol_of(form_of(protocol)) == protocol
