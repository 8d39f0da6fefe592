import numpy as np
import pytest
import torch
from oracles import rewinding as oracle
from torch import nn

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.errors import NumericalError, ReconstructionError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.rewinding import rewind, undo_step


class Point(nn.Module):
    """Parameters that are the outputs: theta - x for every row x."""

    def __init__(self, size):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.theta - x


def quadratic(curvature, centres):
    h = torch.tensor(curvature, dtype=torch.float64)

    def loss(outputs, labels):
        return 0.5 * (outputs.square() * h).sum(dim=1)

    return objective(
        FlatModel.from_module(Point(len(curvature)), loss),
        torch.tensor(centres, dtype=torch.float64),
        torch.zeros(len(centres), dtype=torch.int64),
    )


def objective(model, inputs, labels):
    weights = np.full(len(inputs), 1 / len(inputs))
    return Objective(model=model, inputs=inputs, labels=labels, weights=weights)


def network(rows=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (rows,), generator=generator)
    model = models.build(
        "mlp", input_shape=(6,), num_classes=3, hidden=(8,), smooth=True
    )
    return objective(model, inputs, labels), model.init(RngTree(seed)).double()


def digits(rows=600):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    model = models.build(
        "mlp", input_shape=(64,), num_classes=10, hidden=(32,), smooth=True
    )
    inputs = torch.from_numpy(x[:rows] / 16)
    return (
        objective(model, inputs, torch.from_numpy(y[:rows])),
        model.init(RngTree(0)).double(),
    )


def trained(loss, theta, rate, steps, decay=0.0):
    states = oracle.descend(
        lambda t: (
            loss.gradient(torch.from_numpy(t)) + decay * torch.from_numpy(t)
        ).numpy(),
        theta.numpy(),
        rate,
        steps,
    )
    return [torch.from_numpy(state) for state in states]


def undone(loss, states, rate, steps, **fields):
    return rewind(
        lambda step: loss,
        states[-1],
        np.full(len(states) - 1, rate),
        steps=steps,
        rng=RngTree(0),
        **fields,
    )


def test_a_quadratic_is_undone_exactly():
    h, centres, eta = [2.0, -1.0], [[0.0, 0.0], [1.0, 3.0]], 0.1
    y = torch.tensor([0.7, -0.4], dtype=torch.float64)
    centre = np.mean(centres, axis=0)
    expected = (y.numpy() - eta * np.array(h) * centre) / (1 - eta * np.array(h))
    found = undo_step(quadratic(h, centres), y, eta)
    np.testing.assert_allclose(found.params.numpy(), expected, rtol=1e-14)
    assert found.residual < 1e-15
    assert found.gradients % 2 == 0
    assert found.gradients > 4


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_one_step_forward_and_back_returns(decay):
    loss, theta = network()
    after = trained(loss, theta, 0.2, 1, decay)[-1]
    found = undo_step(loss, after, 0.2, decay=decay)
    assert float((found.params - theta).norm()) < 1e-13
    assert found.residual < 1e-12
    gradient = loss.gradient(found.params) + decay * found.params
    off = found.params - 0.2 * gradient - after
    assert float(off.norm()) < 1e-12
    # Not gradient ascent, which errs by the square of the step.
    ascent = after + 0.2 * loss.gradient(after)
    assert float((ascent - theta).norm()) > 1e-4


def test_newton_steps_take_over_where_sweeps_do_not_shrink():
    """Curvature -30 at rate 0.1: sweeps grow threefold, the solution is unique."""
    loss = quadratic([1.0, -30.0], [[0.0, 1.0], [2.0, 0.0]])
    y = torch.tensor([0.3, 0.9], dtype=torch.float64)
    found = undo_step(loss, y, 0.1)
    expected = (y.numpy() - 0.1 * np.array([1.0, -15.0])) / np.array([0.9, 4.0])
    np.testing.assert_allclose(found.params.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("curvature", [10.0, 12.0])
def test_steps_of_one_over_l_and_more_are_refused(curvature):
    loss = quadratic([curvature, 1.0], [[0.0, 0.0], [1.0, 1.0]])
    states = trained(loss, torch.tensor([0.3, 0.2], dtype=torch.float64), 0.1, 2)
    with pytest.raises(ReconstructionError, match=r"learning_rate.* got 0.1"):
        undone(loss, states, 0.1, 1)
    mild = quadratic([1.0, 1.0], [[0.0, 0.0], [1.0, 1.0]])
    states = trained(mild, torch.tensor([0.3, 0.2], dtype=torch.float64), 0.1, 2)
    with pytest.raises(ReconstructionError, match="bounded as 10"):
        undone(mild, states, 0.1, 1, smoothness=10.0)


def test_a_residual_that_stays_is_refused():
    """Above 1/L there is no state before the step, or too many."""
    loss = quadratic([25.0, 10.0], [[0.0, 0.0]])
    y = torch.tensor([1.0, 1.0], dtype=torch.float64)
    with pytest.raises(ReconstructionError, match="residual"):
        undo_step(loss, y, 0.1)
    assert issubclass(ReconstructionError, NumericalError)
    assert ReconstructionError.exit_code == 2


def test_the_error_told_is_never_below_the_real_one():
    h, centres = [2.0, 0.5], [[0.0, 0.0], [1.0, 3.0], [2.0, -1.0]]
    loss = quadratic(h, centres)
    eps = torch.finfo(torch.float64).eps
    states = trained(loss, torch.tensor([3.0, -2.0], dtype=torch.float64), 0.2, 30)
    for steps in (1, 10, 30):
        found = undone(loss, states, 0.2, steps, smoothness=2.0, rounding=eps)
        real = float((found.params - states[-1 - steps]).norm())
        assert found.bounded
        assert real <= found.error
        expected = (1 - 0.2 * 2.0) ** -steps
        assert found.amplification == pytest.approx(expected, rel=1e-6)
        assert found.curvature == pytest.approx(0.4, rel=1e-6)


def test_a_stated_curvature_below_the_measured_one_is_no_bound():
    """Training rounds by up to 1e-9 here, so that the error told is put to the test."""
    h, centres = [2.0, 0.5], [[0.0, 0.0], [1.0, 3.0], [2.0, -1.0]]
    loss = quadratic(h, centres)
    states = trained(loss, torch.tensor([3.0, -2.0], dtype=torch.float64), 0.2, 30)
    states[-1] = states[-1] + torch.tensor([1e-9, 0.0], dtype=torch.float64)
    low = undone(loss, states, 0.2, 10, smoothness=1e-3, rounding=1e-9)
    real = float((low.params - states[-11]).norm())
    assert real <= low.error
    assert low.exceeded
    assert not low.bounded
    right = undone(loss, states, 0.2, 10, smoothness=2.0, rounding=1e-9)
    assert low.error == pytest.approx(right.error, rel=1e-6)
    assert not right.exceeded


def test_an_estimated_curvature_is_no_bound():
    loss, theta = network()
    states = trained(loss, theta, 0.1, 10)
    found = undone(loss, states, 0.1, 5)
    assert not found.bounded
    assert float((found.params - states[5]).norm()) < 1e-12


def test_undoing_stops_when_told_and_counts_what_it_took():
    loss, theta = network()
    states = trained(loss, theta, 0.1, 6)
    counted = []
    assert undone(loss, states, 0.1, 5, count=counted.append) is not None
    assert len(counted) == 6  # five steps, one look at the curvature
    assert sum(counted) >= 40 * (2 * 20 + 5 * 3)
    asked = iter([False, False, True])
    counted.clear()
    fields = {"count": counted.append, "stop": lambda: next(asked)}
    assert undone(loss, states, 0.1, 5, **fields) is None
    assert len(counted) == 3


@pytest.fixture(scope="module")
def digits_states():
    loss, theta = digits()
    return loss, trained(loss, theta, 0.05, 200)


@pytest.mark.slow
def test_long_trainings_on_digits_come_back_as_far_as_expected(digits_states):
    """64-32-10, 600 digits, rate 0.05, T = 200, in float64.

    The expected errors belong to another draw of initial parameters.
    """
    loss, states = digits_states
    expected = {1: 1.8e-15, 20: 8.9e-13, 50: 6.2e-11, 100: 7.8e-9, 200: 5.8e-7}
    for steps, error in expected.items():
        found = undone(loss, states, 0.05, steps)
        real = float((found.params - states[-1 - steps]).norm())
        assert error / 10 < real < 10 * error
        assert real / 3 < found.error < 10 * real
        assert found.curvature == pytest.approx(0.17, abs=0.02)


@pytest.mark.slow
def test_float32_would_lose_the_steps_that_float64_gets_back(digits_states):
    loss, states = digits_states
    rounded = [state.float().double() for state in states]
    found = undone(loss, rounded, 0.05, 100)
    assert float((found.params - states[100]).norm()) > 1e-3


@pytest.mark.slow
def test_training_near_the_edge_of_stability_cannot_be_undone():
    loss, theta = digits()
    states = trained(loss, theta, 0.2, 200)
    with pytest.raises(ReconstructionError):
        undone(loss, states, 0.2, 20)
