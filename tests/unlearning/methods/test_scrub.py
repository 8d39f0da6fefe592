from dataclasses import replace

import pytest
import torch
from alternating_tasks import loop, losses, outputs, same, task_of

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.errors import InvalidHyperparameterError, UnsupportedRequestError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.scrub import Scrub, mean_kl
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

SGD = LocalOptimizer(learning_rate=0.05, momentum=0.9)


def divergence(teacher, p, inputs, temperature):
    """KL(teacher || student) by its definition, mean over rows."""
    t = torch.softmax(outputs(teacher, inputs) / temperature, 1)
    s = torch.softmax(outputs(p, inputs) / temperature, 1)
    return (t * (t.log() - s.log())).sum(1).mean()


def test_it_is_the_loop_of_its_description():
    method = Scrub(
        epochs=4,
        msteps=3,
        alpha=0.4,
        gamma=0.9,
        temperature=2.0,
        optimizer=SGD,
        forget_learning_rate=0.2,
        batch_size=None,
        forget_batch_size=None,
    )
    task = task_of(method)
    teacher = task.params

    def leave(p):
        return -4 * divergence(teacher, p, task.forget.inputs, 2.0)

    def follow(p):
        apart = divergence(teacher, p, task.retain.inputs, 2.0)
        return 0.9 * losses(p, task.retain).mean() + 0.4 * 4 * apart

    steps = []
    for epoch in range(4):
        if epoch < 3:
            steps.append(("forget", leave, 0.2, same))
        steps.append(("retain", follow, 0.05, same))

    def sgd(params):
        return torch.optim.SGD(params, momentum=0.9)

    outcome = method.unlearn(task, RngTree(0))
    expected = loop(teacher, steps, sgd, sgd)
    torch.testing.assert_close(outcome.params, expected, rtol=1e-9, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (3, 4)
    assert outcome.cost.sample_gradients == 3 * 4 + 4 * 20


def test_divergences_are_means_over_rows_in_nats():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64)
    expected = (0.5 * torch.log(p[0] / q[0])).sum() / 2
    assert float(mean_kl(p.log(), q.log(), 1.0)) == pytest.approx(float(expected))


def test_a_retained_row_goes_through_the_student_once_and_is_counted_once():
    method = Scrub(epochs=1, optimizer=SGD)
    task = task_of(method)
    work = LocalWork(task, RngTree(0))
    aims = method.objectives(work)
    passes = []
    layer = dict(task.model.modules())[task.model.feature_layer]
    handle = layer.register_forward_hook(
        lambda *call: passes.append(call[-1].requires_grad)
    )
    loss = aims.retain_loss(task.retain)
    handle.remove()
    assert sorted(passes) == [False, True]  # the teacher, and the student
    work.gradient(loss, 20)
    assert work.sample_gradients == 20


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-logistic", "squared-error"])
def test_an_objective_of_known_logits_is_the_objective(loss):
    width = 3 if loss == "cross-entropy" else 1
    module = torch.nn.Linear(6, width)
    model = FlatModel.from_module(module, loss, l2=0.3)
    task = task_of(Scrub())
    labels = (task.retain.labels > 0).long()
    rows = type(task.retain)(task.retain.inputs, labels)
    params = model.init(RngTree(1)).double()
    work = LocalWork(replace(task, model=model, params=params), RngTree(0))
    apart = work.objective(rows)
    once = work.objective(rows, work.logits(rows.inputs))
    torch.testing.assert_close(once, apart, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        work.gradient(once, 20), work.gradient(apart, 20), rtol=1e-12, atol=1e-14
    )


def test_the_first_forget_pass_has_no_gradient():
    method = Scrub(epochs=1, optimizer=SGD)
    task = task_of(method)
    aims = method.objectives(work := LocalWork(task, RngTree(0)))
    assert work.gradient(aims.forget_loss(task.forget, 0.0), 4).abs().max() < 1e-15


def errors(p, rows):
    return float((outputs(p, rows.inputs).argmax(1) != rows.labels).double().mean())


def test_rewinding_takes_the_epoch_that_errs_like_rows_left_out():
    fields = {"epochs": 12, "optimizer": SGD, "forget_learning_rate": 0.4}
    method = Scrub(rewind=True, holdout=0.3, **fields)
    task = task_of(method)
    work = LocalWork(task, RngTree(0))
    aims = method.objectives(work)
    kept = {tuple(row.tolist()) for row in aims.retain.inputs}
    left = [
        k for k, x in enumerate(task.retain.inputs) if tuple(x.tolist()) not in kept
    ]
    assert len(left) == 6
    reference = type(task.retain)(task.retain.inputs[left], task.retain.labels[left])

    # The same rows without rewinding, stopped after every epoch.
    alone = type(task)(**{**vars(task), "retain": aims.retain})
    ends = []
    for epochs in range(1, 13):
        fields["epochs"] = epochs
        ends.append(Scrub(**fields).unlearn(alone, RngTree(0)).params)
    target = errors(ends[-1], reference)
    gaps = [abs(errors(p, task.forget) - target) for p in ends]
    best = max(k for k in range(12) if gaps[k] == min(gaps))
    assert best != 11  # or this would not show anything
    outcome = method.unlearn(task, RngTree(0))
    assert torch.equal(outcome.params, ends[best])


def test_only_rewinding_looks_at_forgotten_labels_and_only_for_samples():
    assert "forget_labels" not in Scrub().uses
    method = Scrub(rewind=True)
    assert "forget_labels" in method.uses
    task = task_of(method)
    whole_class = type(task)(**{**vars(task), "request": ForgetRequest.class_(1)})
    with pytest.raises(UnsupportedRequestError, match="serves samples, got kind 'cla"):
        method.unlearn(whole_class, RngTree(0))
    Scrub(epochs=1).unlearn(whole_class, RngTree(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -1),
        ("gamma", -0.5),
        ("temperature", 0),
        ("holdout", 1),
        ("msteps", -1),
    ],
)
def test_fields_that_mean_nothing_are_refused(field, value):
    with pytest.raises(InvalidHyperparameterError, match=f"{field}: .*got {value}"):
        Scrub(**{field: value})
