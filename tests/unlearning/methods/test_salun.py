import pytest
import torch
from alternating_tasks import gradient, losses, task_of
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.dual_optim import DualOptim
from dfl_unlearn.unlearning.methods.random_label import RandomLabel
from dfl_unlearn.unlearning.methods.salun import SalUn, largest
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

HEAVY = LocalOptimizer(learning_rate=0.05, momentum=0.9, weight_decay=0.1)
ADAMW = LocalOptimizer(kind="adamw", learning_rate=0.01, weight_decay=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.77])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda base: base,
        lambda base: DualOptim(base=base, forget_optimizer=ADAMW),
        lambda base: DualOptim(
            base=base,
            forget_optimizer=ADAMW,
            retain_optimizer=ADAMW,
            decouple_m=False,
            state_dtype="bfloat16",
        ),
    ],
)
def test_masked_weights_stay_to_the_bit_under_decay_and_momentum(wrapped, ratio, dtype):
    method = wrapped(SalUn(ratio=ratio, optimizer=HEAVY, batch_size=8))
    task = task_of(method, dtype=dtype)
    outcome = method.unlearn(task, RngTree(0))
    moved = outcome.params != task.params
    assert abs(int(moved.sum()) - ratio * len(moved)) <= 1
    assert outcome.cost.trainable_parameters == pytest.approx(ratio * len(moved), abs=1)
    assert outcome.info["kept_weights"] == pytest.approx(ratio, abs=1 / len(moved))


@pytest.mark.parametrize("score", ["forget", "difference"])
def test_the_weights_that_move_have_the_largest_gradients(score):
    method = SalUn(ratio=0.3, score=score, forget_batch_size=3, batch_size=7)
    task = task_of(method)
    wanted = gradient(lambda p: losses(p, task.forget).mean(), task.params).abs()
    if score == "difference":
        retained = gradient(lambda p: losses(p, task.retain).mean(), task.params)
        wanted = wanted - retained.abs()
    moved = method.unlearn(task, RngTree(0)).params != task.params
    assert wanted[moved].min() >= wanted[~moved].max()


def test_both_scores_choose_differently():
    masks = []
    for score in ("forget", "difference"):
        work = LocalWork(task_of(SalUn()), RngTree(0))
        SalUn(score=score).objectives(work)
        masks.append(work.mask)
    assert not torch.equal(*masks)


def test_gradients_of_the_mask_are_counted():
    bare, masked = RandomLabel(epochs=1), SalUn(epochs=1)
    both = SalUn(epochs=1, score="difference")
    counts = [
        each.unlearn(task_of(each), RngTree(0)).cost.sample_gradients
        for each in (bare, masked, both)
    ]
    assert counts == [24, 24 + 4, 24 + 4 + 20]


def test_with_every_weight_it_is_random_labels():
    method = SalUn(ratio=1.0)
    task = task_of(method)
    expected = RandomLabel().unlearn(task, RngTree(0)).params
    assert torch.equal(method.unlearn(task, RngTree(0)).params, expected)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40),
    ratio=st.floats(0.001, 1),
)
def test_the_largest_are_as_many_as_asked_whatever_ties_there_are(scores, ratio):
    score = torch.tensor(scores)
    mask = largest(score, ratio)
    assert int(mask.sum()) == max(1, round(ratio * len(scores)))
    if not mask.all():
        assert score[mask].min() >= score[~mask].max()


@pytest.mark.parametrize("ratio", [0, 1.1, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(InvalidHyperparameterError, match=r"ratio: .*got"):
        SalUn(ratio=ratio)


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="score: must be one of forget, difference"):
        SalUn(score="size")
