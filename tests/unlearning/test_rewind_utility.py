import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import rewinding as oracle

from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.unlearning.rewind_utility import (
    expected_loss_bound,
    squared_gradients_bound,
)


def log_cosh_run(seed, rewind, eta, forget=3, samples=20, steps=25):
    """Rewinding on sum_j log cosh(x.theta - y): smooth, and slopes are below |x|."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = 3 * generator.normal(size=samples)

    def gradient(rows):
        return lambda theta: (np.tanh(x[rows] @ theta - y[rows]) @ x[rows]) / len(rows)

    def loss(rows):
        def value(theta):
            z = x[rows] @ theta - y[rows]
            return (np.logaddexp(z, -z) - np.log(2)).mean()

        return value

    everything, kept = np.arange(samples), np.arange(forget, samples)
    first = oracle.descend(
        gradient(everything), generator.normal(size=3), eta, steps - rewind
    )
    last = oracle.descend(gradient(kept), first[-1], eta, rewind)
    slopes = [gradient(kept)(state) for state in (*first[:-1], *last[:-1])]
    constants = {
        "rewind_steps": rewind,
        "steps": steps,
        "learning_rate": eta,
        "smoothness": 1.0,
        "gradient_bound": 1.0,
        "forget": forget,
        "samples": samples,
    }
    drop = loss(kept)(first[0]) - loss(kept)(last[-1])
    return constants, sum(float(g @ g) for g in slopes), drop


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rewind", [0, 7, 25])
def test_squared_gradients_stay_below_their_bound(seed, rewind):
    constants, total, drop = log_cosh_run(seed, rewind, eta=0.5)
    bound = squared_gradients_bound(loss_drop=drop, **constants)
    assert 0 < total <= bound
    if rewind == 25:  # the descent lemma alone is left, with room for short steps
        assert bound <= 20 * total


def quadratic_run(rewind, noise_std=0.0, forget=2, samples=10, steps=30, eta=0.05):
    """Quadratics with curvatures 1 to 4, whose expected loss is known exactly."""
    h = np.array([4.0, 2.0, 1.0])
    centres = np.random.default_rng(5).normal(size=(samples, 3))
    kept = np.arange(forget, samples)
    start = np.array([2.0, -1.0, 1.0])
    states = oracle.descend(
        oracle.quadratic(h, centres, np.arange(samples)), start, eta, steps - rewind
    )
    states += oracle.descend(
        oracle.quadratic(h, centres, kept), states[-1], eta, rewind
    )
    middle = centres[kept].mean(axis=0)
    steepest = max(
        float(np.linalg.norm(h * (state - centre)))
        for state in states
        for centre in (*centres, middle)
    )
    constants = {
        "rewind_steps": rewind,
        "steps": steps,
        "learning_rate": eta,
        "smoothness": 4.0,
        "gradient_bound": steepest,
        "forget": forget,
        "samples": samples,
        "curvature": 1.0,
        "start_gap": 0.5 * float(h @ (start - middle) ** 2),
        "noise_std": noise_std,
        "parameters": 3,
    }
    gap = 0.5 * float(h @ (states[-1] - middle) ** 2) + h.sum() * noise_std**2 / 2
    return constants, gap


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("rewind", [0, 10, 30])
def test_the_expected_loss_stays_below_its_bound(rewind, noise_std):
    constants, gap = quadratic_run(rewind, noise_std)
    assert gap <= expected_loss_bound(**constants)


def test_what_is_rewound_wholly_forgets_the_push_of_the_rows():
    constants, _ = quadratic_run(30)
    constants |= {"gradient_bound": 0.0, "noise_std": 0.5}
    slow = (1 - 0.05) ** 30 * constants["start_gap"]
    expected = slow + 4.0 * 3 * 0.25 / 2
    assert expected_loss_bound(**constants) == pytest.approx(expected, rel=1e-12)


@given(rewind=st.integers(0, 25), forget=st.integers(1, 9))
def test_more_rows_to_forget_never_bound_the_gradients_lower(rewind, forget):
    fields, _, drop = log_cosh_run(0, 7, eta=0.4)
    fields |= {"rewind_steps": rewind}
    less = squared_gradients_bound(loss_drop=drop, **fields | {"forget": forget - 1})
    more = squared_gradients_bound(loss_drop=drop, **fields | {"forget": forget})
    assert less <= more


def test_steps_that_are_too_long_are_refused():
    constants, _, drop = log_cosh_run(0, 7, eta=0.4)
    for rate, forget in ((0.6, 3), (1.1, 15)):
        fields = constants | {"learning_rate": rate, "forget": forget}
        with pytest.raises(InvalidHyperparameterError, match=f"got {rate}"):
            squared_gradients_bound(loss_drop=drop, **fields)
    fields, _ = quadratic_run(10)
    with pytest.raises(InvalidHyperparameterError, match="curvature"):
        expected_loss_bound(**fields | {"curvature": 5.0})
