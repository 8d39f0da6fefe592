"""The loop of methods with two objectives: order of steps, schedules, budget."""

import math

import pytest
import torch
from alternating_tasks import MODEL, task_of

from dfl_unlearn.errors import InvalidHyperparameterError, InvalidTypeError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import Budget, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.neg_grad_plus import NegGradPlus
from dfl_unlearn.unlearning.methods.random_label import RandomLabel
from dfl_unlearn.unlearning.methods.salun import SalUn
from dfl_unlearn.unlearning.methods.scrub import Scrub
from dfl_unlearn.unlearning.methods.sfron import SfRon
from dfl_unlearn.unlearning.two_objectives import (
    Objectives,
    Passes,
    Steppers,
    Turns,
    alternate,
    cosine,
)

BOTH = (RandomLabel, SalUn, Scrub, SfRon, NegGradPlus)


def steps_of(schedule, *, budget=None, lr_schedule="constant", sizes=(8, 2)):
    """What steps a schedule takes on 20 retained and 4 forgotten rows.

    Returns:
        Per step who, the rows (by their first feature), the progress that the forget
        loss was told and the learning rate.
    """
    task = task_of(NegGradPlus(), budget=budget)
    work = LocalWork(task, RngTree(0))
    seen = []

    class Watch(torch.optim.SGD):
        def step(self):
            seen[-1][3] = self.param_groups[0]["lr"]
            super().step()

    def loss(who):
        def of(batch, progress=None):
            seen.append([who, batch.inputs[:, 0].tolist(), progress, None])
            return 0 * work.losses(batch).sum()

        return of

    aims = Objectives(
        forget=lambda _: task.forget,
        retain=task.retain,
        forget_loss=loss("forget"),
        retain_loss=loss("retain"),
        schedule=schedule,
        batch_size=sizes[0],
        forget_batch_size=sizes[1],
        lr_schedule=lr_schedule,
    )
    optimizers = [Watch([work.flat]), Watch([work.flat])]
    steppers = Steppers(
        forget=optimizers[0], retain=optimizers[1], forget_rate=2.0, retain_rate=1.0
    )
    cost = alternate(work, aims, steppers).cost
    whos = [who for who, *_ in seen]
    assert cost.steps_forget == whos.count("forget")
    assert cost.steps_retain == whos.count("retain")
    assert cost.sample_gradients == sum(len(rows) for _, rows, _, _ in seen)
    return seen, task


def test_a_pass_over_what_goes_comes_before_a_pass_over_what_stays():
    seen, task = steps_of(Passes(epochs=3, forget_epochs=2))
    whos = "".join(who[0] for who, *_ in seen)
    assert whos == "ffrrr" + "ffrrr" + "rrr"
    forgotten = sorted(task.forget.inputs[:, 0].tolist())
    retained = sorted(task.retain.inputs[:, 0].tolist())
    assert sorted(seen[0][1] + seen[1][1]) == forgotten
    assert sorted(seen[2][1] + seen[3][1] + seen[4][1]) == retained
    assert [rows for _, rows, *_ in seen[:5]] != [rows for _, rows, *_ in seen[5:10]]


def test_turns_cycle_what_goes_between_steps_on_what_stays():
    seen, task = steps_of(Turns(iterations=8, forget_every=2))
    whos = "".join(who[0] for who, *_ in seen)
    assert whos == "frrfrrfrrfrr"
    forgotten = [rows for who, rows, *_ in seen if who == "forget"]
    every = sorted(task.forget.inputs[:, 0].tolist())
    # Two batches of two are a cycle, across the borders of epochs (three iterations).
    assert sorted(forgotten[0] + forgotten[1]) == every
    assert sorted(forgotten[2] + forgotten[3]) == every


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("iterations", [1, 3, 4, 11])
def test_turns_take_the_steps_they_say(iterations, every):
    seen, _ = steps_of(Turns(iterations=iterations, forget_every=every))
    whos = [who for who, *_ in seen]
    assert whos.count("retain") == iterations
    assert whos.count("forget") == math.ceil(iterations / every)
    told = [progress for who, _, progress, _ in seen if who == "forget"]
    expected = [k / iterations for k in range(0, iterations, every)]
    assert told == pytest.approx(expected)


def test_rates_follow_one_cosine_of_the_progress():
    seen, _ = steps_of(Turns(iterations=8, forget_every=2), lr_schedule="cosine")
    rates = [(who, rate) for who, _, _, rate in seen]
    retain = [rate for who, rate in rates if who == "retain"]
    forget = [rate for who, rate in rates if who == "forget"]
    wanted = [0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    assert retain == pytest.approx(wanted)
    assert forget == pytest.approx([2 * rate for rate in wanted[::2]])
    assert cosine(0) == 1
    assert cosine(1) == pytest.approx(0, abs=1e-15)
    seen, _ = steps_of(Passes(epochs=2), lr_schedule="cosine")
    first = [rate for who, _, _, rate in seen if who == "forget"]
    wanted = [2 * cosine(progress) for progress in (0, 0.25, 0.5, 0.75)]
    assert first == pytest.approx(wanted)


@pytest.mark.parametrize(
    "schedule", [Passes(epochs=3), Turns(iterations=9, forget_every=2)]
)
def test_budgets_cut_the_sequence_of_steps(schedule):
    full, _ = steps_of(schedule)
    for most in range(len(full)):
        cut, _ = steps_of(schedule, budget=Budget(max_steps=most))
        assert cut == full[:most]
    rows = 0
    for k, (_, batch, *_) in enumerate(full):
        cut, _ = steps_of(schedule, budget=Budget(max_sample_gradients=rows + 1))
        assert cut == full[: k + 1]
        rows += len(batch)


def test_a_budget_of_epochs_counts_passes_over_what_stays():
    for schedule in (Passes(epochs=3), Turns(iterations=9)):
        seen, _ = steps_of(schedule, budget=Budget(max_epochs=1))
        assert [who for who, *_ in seen].count("retain") == 3


def test_traces_hold_only_epochs_that_had_such_steps():
    outcome = SfRon(iterations=9, forget_every=5, batch_size=8).unlearn(
        task_of(SfRon()), RngTree(0)
    )
    assert len(outcome.trace["retain_loss"]) == 3
    assert len(outcome.trace["forget_loss"]) == 2  # iterations 0 and 5 of 0 .. 8


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_is_computed_where_the_budget_is_spent_from_the_start(kind):
    for budget in (Budget(max_steps=0), Budget(max_sample_gradients=0)):
        task = task_of(kind(), budget=budget)
        outcome = kind().unlearn(task, RngTree(0))
        assert torch.equal(outcome.params, task.params)
        assert outcome.cost.sample_gradients == 0
        assert outcome.cost.steps_forget == outcome.cost.steps_retain == 0


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("forget_batch_size", -1), ("batch_size", 2.5)],
)
def test_fields_out_of_range_are_refused(kind, field, value):
    error = InvalidTypeError if value == 2.5 else InvalidHyperparameterError
    with pytest.raises(error, match=f"{field}: must be an integer >= 1, got {value}"):
        kind(**{field: value})


@pytest.mark.parametrize("kind", [RandomLabel, SalUn, Scrub, SfRon])
def test_a_forget_learning_rate_is_positive(kind):
    for value in (0, -1.0, math.nan):
        with pytest.raises(InvalidHyperparameterError, match="forget_learning_rate"):
            kind(forget_learning_rate=value)


def test_every_method_of_this_kind_is_tried_here():
    known = {n for n in methods.names() if hasattr(methods.get(n), "objectives")}
    assert known == {methods.name_of(kind) for kind in BOTH}
    assert MODEL.size == 53
