"""What every registered method must do, plugins included (centralized-methods §1.2)."""

import re
from dataclasses import is_dataclass, replace

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import methods
from dfl_unlearn.unlearning.local import Budget, only, uses_of
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

REQUESTS = {
    "samples": ForgetRequest.samples(peer=0, indices=[0, 3, 5, 8]),
    "class": ForgetRequest.class_(1),
}
every_method = pytest.mark.parametrize("name", methods.names())


def centralized(dtype="float32", model=None):
    """A trained network of one peer whose record holds every round."""
    return simulate(
        Topology.single(),
        blobs([48]),
        model or mlp(),
        SimulationConfig(
            rounds=6,
            local=LocalSteps(batch_size=12),
            evaluate_every=0,
            dtype=dtype,
            record=RecordPlan(every=1),
        ),
    )


def mlp():
    from dfl_unlearn.models.zoo import models

    return models.build("mlp", input_shape=(6,), num_classes=3, hidden=(8,))


@pytest.fixture(scope="module")
def run():
    return centralized()


def kind_of(name):
    kinds = getattr(methods.build(name), "kinds", None)
    return "samples" if kinds is None or "samples" in kinds else "class"


def task_of(run, name, **changes):
    """The task of a method, with no more than what it says it uses."""
    request = replace(REQUESTS[kind_of(name)], request_id="r0")
    task = replace(local_task(run, request), **changes)
    return only(task, uses_of(methods.build(name)))


def tensors(task):
    yield task.params
    for batch in (task.forget, task.retain):
        if batch is not None:
            yield from (batch.inputs, batch.labels)
    if task.history is not None:
        yield from task.history.checkpoints.values()


@every_method
def test_a_method_gives_finite_parameters_of_the_same_shape(name, run):
    task = task_of(run, name)
    outcome = methods.build(name).unlearn(task, RngTree(0))
    assert outcome.params.dtype == task.params.dtype
    assert outcome.params.isfinite().all()
    if outcome.model is None:
        assert outcome.params.shape == task.params.shape
    else:
        assert outcome.params.shape == (outcome.model.size,)


@every_method
def test_a_method_never_writes_to_its_task(name, run):
    task = task_of(run, name)
    before = [tensor.clone() for tensor in tensors(task)]
    outcome = methods.build(name).unlearn(task, RngTree(0))
    assert all(a.equal(b) for a, b in zip(tensors(task), before, strict=True))
    storage = outcome.params.untyped_storage().data_ptr()
    assert storage != task.params.untyped_storage().data_ptr()
    assert not outcome.params.requires_grad


@every_method
def test_the_same_draws_give_the_same_bits(name, run):
    first = methods.build(name).unlearn(task_of(run, name), RngTree(7))
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - nothing global may matter
    second = methods.build(name).unlearn(task_of(run, name), RngTree(7))
    assert torch.equal(first.params, second.params)


@every_method
def test_what_is_missing_is_named_before_anything_is_computed(name, run):
    method = methods.build(name)
    for part in uses_of(method):
        task = task_of(run, name)
        if part == "features":
            task = replace(task, model=without_features())
            task = replace(task, params=torch.zeros(task.model.size))
        lacking = replace(task, allowed=task.allowed - {part})
        with pytest.raises(MissingInputError, match=part):
            method.unlearn(only(lacking, uses_of(method)), RngTree(0))


def without_features():
    from dfl_unlearn.models.zoo import models

    return models.build("logistic", input_shape=(6,), num_classes=3)


@every_method
def test_nothing_to_forget_is_an_exact_copy(name, run):
    task = task_of(run, name)
    none = replace(task, forget_rows=np.empty(0, np.int64))
    outcome = methods.build(name).unlearn(none, RngTree(0))
    assert torch.equal(outcome.params, task.params)
    assert outcome.cost.steps_forget == outcome.cost.steps_retain == 0
    assert outcome.cost.sample_gradients == 0
    assert outcome.certificate.status == "exact"
    assert outcome.params.data_ptr() != task.params.data_ptr()


@every_method
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_budget_of_steps_is_honoured_to_the_step(name, steps, run):
    outcome = methods.build(name).unlearn(
        task_of(run, name, budget=Budget(max_steps=steps)), RngTree(0)
    )
    assert outcome.cost.steps_forget + outcome.cost.steps_retain <= steps
    assert outcome.params.isfinite().all()


@every_method
def test_a_budget_of_gradients_is_honoured_within_one_step(name, run):
    task = task_of(run, name)
    full = methods.build(name).unlearn(task, RngTree(0))
    limit = full.cost.sample_gradients // 2
    if not limit:
        pytest.skip(f"{name} takes no gradients")
    less = methods.build(name).unlearn(
        replace(task, budget=Budget(max_sample_gradients=limit)), RngTree(0)
    )
    one_step = task.forget_size + task.retain_size
    assert less.cost.sample_gradients <= limit + one_step


@every_method
def test_costs_are_counted(name, run):
    cost = methods.build(name).unlearn(task_of(run, name), RngTree(0)).cost
    steps = cost.steps_forget + cost.steps_retain
    assert steps >= 0
    assert cost.sample_gradients >= steps
    assert cost.optimizer_floats >= 0


@every_method
def test_a_claim_is_no_higher_than_announced(name, run):
    certificate = (
        methods.build(name).unlearn(task_of(run, name), RngTree(0)).certificate
    )
    if certificate is None:
        return
    assert certificate.method == name
    assert certificate.request_id == "r0"
    assert Certificate.from_json(certificate.to_json()) == certificate
    if certificate.status in ("exact", "certified"):
        assert getattr(methods.build(name), "claim", None) == certificate.status


@every_method
def test_an_exact_outcome_owes_nothing_to_the_trained_model_or_what_goes(name, run):
    """Neither to the parameters nor to the rows: it could not know either of them."""
    if getattr(methods.get(name), "claim", None) != "exact":
        return
    method = methods.build(name)
    assert not {"forget_inputs", "forget_labels"} & uses_of(method)
    task = task_of(run, name)
    outcome = method.unlearn(task, RngTree(0))
    assert outcome.certificate.status == "exact"
    other = replace(task, params=torch.full_like(task.params, 7.0))
    assert torch.equal(method.unlearn(other, RngTree(0)).params, outcome.params)


@every_method
def test_what_claims_to_be_exact_does_not_when_it_is_cut_short(name, run):
    if getattr(methods.get(name), "claim", None) != "exact":
        return
    task = task_of(run, name, budget=Budget(max_steps=1))
    certificate = methods.build(name).unlearn(task, RngTree(0)).certificate
    assert certificate.status == "heuristic"


@every_method
def test_kinds_that_are_not_served_are_refused(name, run):
    kinds = getattr(methods.build(name), "kinds", None)
    if kinds is None:
        return
    for kind in set(REQUESTS) - set(kinds):
        task = only(local_task(run, REQUESTS[kind]), uses_of(methods.build(name)))
        with pytest.raises(UnsupportedRequestError, match=kind):
            methods.build(name).unlearn(task, RngTree(0))


@every_method
def test_the_old_divisor_is_refused(name, run):
    request = replace(REQUESTS[kind_of(name)], normalization="fixed")
    method = methods.build(name)
    with pytest.raises(UnsupportedRequestError, match="normalization"):
        method.unlearn(only(local_task(run, request), uses_of(method)), RngTree(0))


@every_method
def test_one_peer_alone_is_the_centralized_case_bit_for_bit(name, run):
    request = replace(REQUESTS[kind_of(name)], request_id="r0")
    method = methods.build(name)
    outcome = unlearn(run, request, AtPeer(method=method))
    direct = method.unlearn(task_of(run, name), run.rng)
    if direct.model is None:
        assert torch.equal(outcome.state.params[0], direct.params)
    if direct.certificate is None:
        assert outcome.certificate is None
    else:
        assert outcome.certificate.status == direct.certificate.status


@every_method
def test_in_a_network_a_method_claims_nothing_of_its_own(name):
    network = simulate(
        "ring",
        blobs([30, 20, 25, 20]),
        mlp(),
        SimulationConfig(
            rounds=4,
            local=LocalSteps(batch_size=10),
            evaluate_every=0,
            record=RecordPlan(every=1),
        ),
    )
    request = ForgetRequest.samples(peer=0, indices=[0, 1, 2])
    if kind_of(name) == "class":
        request = ForgetRequest.class_(1, peers=[0])
    outcome = unlearn(network, request, AtPeer(method=methods.build(name)))
    changed = (outcome.state.params != network.state.params).any(dim=1)
    assert not changed[1:].any()
    if outcome.certificate is not None:
        assert outcome.certificate.status == "heuristic"
        assert any("trajectory" in reason for reason in outcome.certificate.reasons)


@every_method
def test_float64_is_served_too(name):
    run = centralized("float64")
    outcome = methods.build(name).unlearn(task_of(run, name), RngTree(0))
    assert outcome.params.dtype == torch.float64


@every_method
def test_a_method_is_kept_with_its_fields(name, tmp_path, run):
    from dfl_unlearn.unlearning.store import load_outcomes

    saved = run.save(tmp_path / "a")
    protocol = AtPeer(method=methods.build(name))
    request = REQUESTS[kind_of(name)]
    outcome = unlearn(saved, request, protocol, folder=saved.folder)
    (read,) = load_outcomes(saved)
    assert read.protocol == outcome.protocol
    assert read.label == f"at-peer.{name}"


@every_method
def test_a_method_says_what_it_is(name):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert methods.help(name)
    assert is_dataclass(methods.get(name))
    assert methods.build(name) == methods.build(name)
