import math

import pytest
import torch
from alternating_tasks import gradient, loop, losses, same, task_of

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.methods.sfron import SfRon, adaptive_loss

ROWS = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)


def test_weights_and_value_are_those_of_the_oracle():
    rows = ROWS.clone().requires_grad_()
    value = adaptive_loss(rows, 0.5)
    assert float(value.detach()) == pytest.approx(0.46134246, rel=1e-7)
    value.backward()  # weights are constants: the gradient is the weights
    assert rows.grad.tolist() == pytest.approx(
        [0.26766108, 0.13383054, 0.59850838], rel=1e-7
    )


def test_without_a_power_it_is_the_mean():
    assert float(adaptive_loss(ROWS, 0.0)) == pytest.approx(float(ROWS.mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_without_any_loss_does_not_break_it(dtype):
    rows = torch.tensor([0.0, 1.0, 1e-30], dtype=dtype).requires_grad_()
    adaptive_loss(rows, 0.5).backward()
    assert rows.grad.isfinite().all()
    assert float(rows.grad.sum()) == pytest.approx(1.0)


def written_again(method, task, *, clip_norm):
    """The whole method in full batches, after its description."""
    squares = [
        gradient(lambda p, rows=rows: losses(p, rows).mean(), task.params) ** 2
        for rows in (task.forget, task.retain)
    ]
    mask = squares[0] / (squares[1] + 1e-15) >= method.threshold
    assert 0 < int(mask.sum()) < len(mask)

    def ascent(s):
        a_s = method.alpha * (1 + math.cos(math.pi * s / method.iterations)) / 2

        def loss(p):
            rows = losses(p, task.forget)
            powers = rows.detach() ** -method.weight_power
            return -a_s * (powers / powers.sum() * rows).sum()

        return loss

    def clipped(change):
        change = change * mask
        return change * min(1.0, clip_norm / float(change.norm()))

    def descent(p):
        return losses(p, task.retain).mean()

    steps = []
    for s in range(method.iterations):
        falling = (1 + math.cos(math.pi * s / method.iterations)) / 2
        if s % method.forget_every == 0:
            steps.append(("forget", ascent(s), 0.03 * falling, clipped))
        steps.append(("retain", descent, 0.01 * falling, same))

    def sgd(params):
        return torch.optim.SGD(params, momentum=0.9, weight_decay=5e-4)

    return loop(task.params, steps, sgd, sgd)


@pytest.mark.parametrize("clip_norm", [7.0, 0.05])
def test_it_is_the_loop_of_its_description(clip_norm):
    method = SfRon(
        iterations=12,
        forget_every=5,
        alpha=3.0,
        clip_norm=clip_norm,
        batch_size=None,
        forget_batch_size=None,
        forget_learning_rate=0.03,
    )
    task = task_of(method)
    outcome = method.unlearn(task, RngTree(0))
    expected = written_again(method, task, clip_norm=clip_norm)
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (3, 12)
    # Both Fisher informations, three forget steps, twelve retain steps.
    assert outcome.cost.sample_gradients == 24 + 3 * 4 + 12 * 20


def test_clipping_changes_what_comes_out():
    task = task_of(SfRon())
    ends = [
        written_again(SfRon(iterations=12, alpha=3.0, clip_norm=c), task, clip_norm=c)
        for c in (7.0, 0.05)
    ]
    assert (ends[0] - ends[1]).abs().max() > 1e-4


def test_the_mask_follows_the_threshold():
    shares = [
        SfRon(iterations=1, threshold=t)
        .unlearn(task_of(SfRon()), RngTree(0))
        .info["forget_step_weights"]
        for t in (0.0, 1.0, 1e9)
    ]
    assert shares[0] == 1
    assert 1 > shares[1] > shares[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0),
        ("weight_power", -1),
        ("threshold", -0.1),
        ("clip_norm", 0),
        ("iterations", 0),
        ("forget_every", 0),
    ],
)
def test_fields_that_mean_nothing_are_refused(field, value):
    with pytest.raises(InvalidHyperparameterError, match=f"{field}: .*got {value}"):
        SfRon(**{field: value})
