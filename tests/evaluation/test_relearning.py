import numpy as np
import torch
from evaluation.outcomes import linear_model, outcome_of, random_data, random_outcome

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.evaluation.metrics import metrics, relearning
from dfl_unlearn.evaluation.view import EvaluationView


def steps(outcome, world="after"):
    return metrics.get("relearn-steps")(EvaluationView.of(outcome).at(world)).tolist()


def far(distance, learned=2.0):
    """Peers that know two rows of class 0, and states some way from there."""
    data = random_data(sizes=(6, 6))
    labels = data.store.labels.clone()
    labels[:2] = 0
    data.store.labels.copy_(labels)
    model = linear_model(data)
    before = np.zeros((2, 9))
    before[:, 6] = learned  # bias of class 0
    after = before.copy()
    after[:, 6] -= distance
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    return outcome_of(data, model, before, after, before - 20, request)


def test_nothing_is_to_be_learned_again_where_nothing_was_forgotten():
    assert steps(far(0.0)) == [0, 0]
    assert steps(far(3.0), "before") == [0, 0]


def test_a_state_farther_away_takes_longer():
    found = [steps(far(distance))[0] for distance in (0.5, 1.0, 3.0)]
    assert 0 < found[0] < found[1] < found[2] < relearning.MOST_BATCHES


def test_steps_are_those_of_plain_gradient_descent():
    # Both rows fit into one batch, so that the order of rows does not matter.
    outcome = far(1.0)
    view = EvaluationView.of(outcome)
    rows, goal = (
        view.rows("forget"),
        1.05 * view.at("before").losses(view.rows("forget")).mean(1),
    )
    params = outcome.state.params[0].clone()
    taken = 0
    while outcome.run.model.sample_losses(params, rows).mean() > goal[0]:
        params.requires_grad_()
        (slope,) = torch.autograd.grad(outcome.run.model.loss(params, rows), params)
        params = (params - 0.1 * slope).detach()
        taken += 1
    assert steps(outcome) == [taken, taken]


def test_it_gives_up_after_the_most_batches(monkeypatch):
    monkeypatch.setattr(relearning, "MOST_BATCHES", 3)
    assert steps(far(8.0)) == [3, 3]


def test_relearning_changes_no_state():
    outcome = random_outcome()
    before = outcome.state.params.clone()
    steps(outcome)
    assert outcome.state.params.equal(before)
