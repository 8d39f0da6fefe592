import pytest
import torch
from alternating_tasks import loop, losses, same, task_of

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.methods.random_label import RandomLabel, random_labels


def test_the_truth_follows_fresh_noise_in_every_epoch():
    method = RandomLabel(
        epochs=3, batch_size=None, forget_batch_size=None, forget_learning_rate=0.2
    )
    task = task_of(method)
    work = LocalWork(task, RngTree(5))
    steps = []
    for epoch in range(3):
        noise = TensorBatch(task.forget.inputs, random_labels(work, 4, epoch))
        steps += [
            ("forget", lambda p, noise=noise: losses(p, noise).mean(), 0.2, same),
            ("retain", lambda p: losses(p, task.retain).mean(), 0.05, same),
        ]

    def sgd(params):
        return torch.optim.SGD(params, momentum=0.9, weight_decay=5e-4)

    outcome = method.unlearn(task, RngTree(5))
    expected = loop(task.params, steps, sgd, sgd)
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (3, 3)
    assert outcome.cost.optimizer_floats == len(task.params)


@pytest.mark.statistical
def test_labels_are_uniform_over_all_classes():
    # Chi-square with 2 degrees of freedom: above 18.4 once in 10,000 seeds.
    work = LocalWork(task_of(RandomLabel()), RngTree(0))
    counts = torch.bincount(random_labels(work, 30_000, 0), minlength=3)
    assert len(counts) == 3
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 18.4
    without_one = torch.tensor([15_000, 15_000, 0])  # the true class left out
    assert float(((without_one - 10_000) ** 2 / 10_000).sum()) > 18.4


def test_labels_are_drawn_again_for_every_epoch_and_seed():
    work = LocalWork(task_of(RandomLabel()), RngTree(0))
    other = LocalWork(task_of(RandomLabel()), RngTree(1))
    first = random_labels(work, 100, 0)
    assert torch.equal(first, random_labels(work, 100, 0))
    assert not torch.equal(first, random_labels(work, 100, 1))
    assert not torch.equal(first, random_labels(other, 100, 0))


def test_the_labels_of_what_goes_are_not_looked_at():
    assert "forget_labels" not in RandomLabel.uses
    assert (task_of(RandomLabel()).forget.labels == -1).all()


@pytest.mark.parametrize("schedule", ["linear", 3])
def test_an_unknown_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="lr_schedule: must be one of constant, cosi"):
        RandomLabel(lr_schedule=schedule)
