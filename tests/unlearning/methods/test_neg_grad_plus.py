import pytest
import torch
from alternating_tasks import loop, losses, same, task_of

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.methods.dual_optim import DualOptim
from dfl_unlearn.unlearning.methods.neg_grad_plus import NegGradPlus
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

FULL = {"batch_size": None, "forget_batch_size": None}


def test_a_step_is_on_the_difference_of_both_losses():
    method = NegGradPlus(beta=0.8, epochs=4, **FULL)
    task = task_of(method)

    def joint(p):
        forget, retain = losses(p, task.forget), losses(p, task.retain)
        return 0.8 * retain.mean() - (1 - 0.8) * forget.mean()

    def sgd(params):
        return torch.optim.SGD(params, momentum=0.9, weight_decay=5e-4)

    expected = loop(task.params, [("retain", joint, 0.01, same)] * 4, sgd, sgd)
    outcome = method.unlearn(task, RngTree(0))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (0, 4)
    assert outcome.cost.sample_gradients == 4 * 24


def test_under_dual_optim_the_two_terms_become_two_steps():
    method = DualOptim(
        base=NegGradPlus(beta=0.8, epochs=3, **FULL),
        forget_optimizer=LocalOptimizer(kind="adam", learning_rate=0.02),
        retain_optimizer=LocalOptimizer(learning_rate=0.1, momentum=0.9),
    )
    task = task_of(method)

    def forget(p):
        return -(1 - 0.8) * losses(p, task.forget).mean()

    def retain(p):
        return 0.8 * losses(p, task.retain).mean()

    steps = [("forget", forget, 0.02, same), ("retain", retain, 0.1, same)] * 3
    expected = loop(
        task.params,
        steps,
        torch.optim.Adam,
        lambda params: torch.optim.SGD(params, momentum=0.9),
    )
    outcome = method.unlearn(task, RngTree(0))
    torch.testing.assert_close(outcome.params, expected, rtol=1e-10, atol=1e-12)
    assert (outcome.cost.steps_forget, outcome.cost.steps_retain) == (3, 3)


@pytest.mark.parametrize("beta", [0, 1, float("nan")])
def test_a_weight_outside_0_and_1_is_refused(beta):
    with pytest.raises(InvalidHyperparameterError, match=r"beta: .*got"):
        NegGradPlus(beta=beta)
