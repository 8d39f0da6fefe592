from dataclasses import replace

import pytest
import torch
from alternating_tasks import loop, losses, same, task_of

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import (
    ConfigError,
    InvalidHyperparameterError,
    UnknownNameError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.forms import form_of, protocol_of
from dfl_unlearn.unlearning.local import Budget, methods
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.dual_optim import DualOptim
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.methods.random_label import RandomLabel, random_labels
from dfl_unlearn.unlearning.methods.salun import SalUn
from dfl_unlearn.unlearning.methods.scrub import Scrub
from dfl_unlearn.unlearning.methods.sfron import SfRon
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

ADAM = LocalOptimizer(kind="adam", learning_rate=0.02)
ADAMW = LocalOptimizer(kind="adamw", learning_rate=0.02, weight_decay=0.05)
BASES = ("neg-grad-plus", "random-label", "salun", "scrub", "sfron")


def test_each_objective_has_its_own_optimizer():
    method = DualOptim(
        base=RandomLabel(epochs=3, batch_size=None, forget_batch_size=None),
        forget_optimizer=ADAMW,
        retain_optimizer=LocalOptimizer(learning_rate=0.1, momentum=0.9),
    )
    task = task_of(method)
    work = LocalWork(task, RngTree(5))
    steps = []
    for epoch in range(3):
        noise = TensorBatch(task.forget.inputs, random_labels(work, 4, epoch))
        steps += [
            ("forget", lambda p, noise=noise: losses(p, noise).mean(), 0.02, same),
            ("retain", lambda p: losses(p, task.retain).mean(), 0.1, same),
        ]
    expected = loop(
        task.params,
        steps,
        lambda params: torch.optim.AdamW(params, weight_decay=0.05),
        lambda params: torch.optim.SGD(params, momentum=0.9),
    )
    outcome = method.unlearn(task, RngTree(5))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert outcome.cost.optimizer_floats == 3 * len(task.params)


@pytest.mark.parametrize("base", BASES)
def test_two_states_are_not_one(base):
    one = methods.build(
        base, optimizer=LocalOptimizer(learning_rate=0.05, momentum=0.9)
    )
    two = DualOptim(
        base=one, forget_optimizer=one.optimizer, retain_optimizer=one.optimizer
    )
    task = task_of(one)
    ends = [each.unlearn(task, RngTree(0)).params for each in (one, two)]
    assert (ends[0] - ends[1]).abs().max() > 1e-4


@pytest.mark.parametrize("base", ["random-label", "salun", "scrub", "sfron"])
def test_two_stateless_optimizers_are_one(base):
    plain = LocalOptimizer(learning_rate=0.05)
    one = methods.build(base, optimizer=plain)
    two = DualOptim(base=one, forget_optimizer=plain, retain_optimizer=plain)
    task = task_of(one)
    ends = [each.unlearn(task, RngTree(0)).params for each in (one, two)]
    assert torch.equal(*ends)


def test_sharing_both_moments_is_the_base_with_one_adam():
    base = SfRon(iterations=20, optimizer=ADAM)
    shared = DualOptim(
        base=base,
        forget_optimizer=ADAM,
        retain_optimizer=ADAM,
        decouple_m=False,
        decouple_v=False,
    )
    task = task_of(base)
    assert torch.equal(
        shared.unlearn(task, RngTree(0)).params, base.unlearn(task, RngTree(0)).params
    )


@pytest.mark.parametrize("own_m", [False, True])
@pytest.mark.parametrize("own_v", [False, True])
def test_memory_is_what_the_moments_take(own_m, own_v):
    method = DualOptim(
        base=SfRon(iterations=10),
        forget_optimizer=ADAMW,
        retain_optimizer=ADAM,
        decouple_m=own_m,
        decouple_v=own_v,
    )
    task = task_of(method)
    floats = method.unlearn(task, RngTree(0)).cost.optimizer_floats
    assert floats == (2 + own_m + own_v) * len(task.params)


def test_moments_in_bfloat16_repeat_and_stay_near():
    exact = DualOptim(
        base=SfRon(iterations=40), forget_optimizer=ADAMW, retain_optimizer=ADAM
    )
    rounded = replace(exact, state_dtype="bfloat16")
    task = task_of(exact, dtype=torch.float32)
    first, again = (rounded.unlearn(task, RngTree(0)).params for _ in range(2))
    full = exact.unlearn(task, RngTree(0)).params
    assert torch.equal(first, again)
    moved = (full - task.params).norm()
    assert 0 < (first - full).norm() < 0.1 * moved


def test_a_base_may_be_a_name_or_a_method():
    assert DualOptim(base="salun") == DualOptim(base=SalUn())
    assert DualOptim() == DualOptim(base=SfRon())


@pytest.mark.parametrize("base", ["fine-tune", FineTune(), "dual-optim"])
def test_a_base_without_two_objectives_is_refused_with_those_that_have(base):
    name = base if isinstance(base, str) else "fine-tune"
    known = ", ".join(BASES)
    with pytest.raises(InvalidHyperparameterError, match=rf"\({known}\), got '{name}'"):
        DualOptim(base=base)


def test_an_unknown_base_is_refused():
    with pytest.raises(UnknownNameError, match=r"'salum'.*did you mean 'salun'"):
        DualOptim(base="salum")


def test_it_reads_and_serves_what_its_base_does():
    for base in (SfRon(), Scrub(), Scrub(rewind=True), RandomLabel()):
        method = DualOptim(base=base)
        assert method.uses == base.uses
        assert "class" in DualOptim(base="salun").kinds
    assert DualOptim(base=Scrub(rewind=True)).kinds == {"samples"}
    assert getattr(DualOptim(), "claim", None) is None


def test_shared_moments_need_two_of_adams_kind():
    with pytest.raises(InvalidHyperparameterError, match=r"retain_optimizer: .*'sgd'"):
        DualOptim(decouple_m=False)
    with pytest.raises(InvalidHyperparameterError, match=r"retain_optimizer: .*'sgd'"):
        DualOptim(state_dtype="bfloat16")
    with pytest.raises(ValueError, match="state_dtype: must be one of params, float32"):
        DualOptim(state_dtype="int8")


def test_the_budget_counts_the_mask_of_the_base():
    method = DualOptim(base="salun")
    task = task_of(method, budget=Budget(max_sample_gradients=4))
    outcome = method.unlearn(task, RngTree(0))
    assert outcome.cost.sample_gradients == 4
    assert torch.equal(outcome.params, task.params)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("salun", SalUn()),
        ({"use": "salun"}, SalUn()),
        ({"use": "salun", "ratio": 0.3}, SalUn(ratio=0.3)),
    ],
)
def test_a_file_gives_a_base_by_name_or_with_its_fields(base, expected):
    form = {"use": "at-peer", "method": {"use": "dual-optim", "base": base}}
    protocol = protocol_of(form)
    assert protocol == AtPeer(method=DualOptim(base=expected))
    written = form_of(protocol)
    assert written["method"]["base"]["use"] == "salun"
    assert written["method"]["base"]["ratio"] == expected.ratio
    assert protocol_of(written) == protocol


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("fine-tune", r"protocol\.method\.base: must be a method with two objectives"),
        ("salum", "'salum' is not registered"),
        ({"use": "salun", "ratio": 2.0}, r"protocol\.method\.base\.ratio: .*got 2\.0"),
        ({"use": "salun", "rato": 0.3}, r"base\.rato: unknown key.*'ratio'"),
        (3, r"protocol\.method\.base: expected table or string, got integer 3"),
    ],
)
def test_a_file_that_gives_another_base_is_refused(base, message):
    form = {"use": "at-peer", "method": {"use": "dual-optim", "base": base}}
    with pytest.raises(ConfigError, match=message):
        protocol_of(form)
