import math

import numpy as np
import pytest

from dfl_unlearn.errors import InvalidArgumentError, NumericalError
from dfl_unlearn.evaluation.noise_checks import (
    ENOUGH,
    TOLERANCE,
    correlation_limit,
    largest_correlation,
    measured_std,
    numbers_in,
    shift_of_means,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_measured_std_ignores_each_coordinates_mean():
    samples = np.array([[0.0, 5.0], [2.0, 9.0]])
    assert measured_std(samples) == pytest.approx(math.sqrt((2 + 8) / 2))
    moved = samples + np.array([100, -3])
    assert measured_std(moved) == pytest.approx(measured_std(samples))
    assert numbers_in(samples) == 2
    assert measured_std(draw(4, 3, 2)).shape == (3,)


@pytest.mark.statistical
def test_a_right_std_passes_and_a_factor_does_not():
    # 2000 checks with just enough numbers: 99.9 % pass, so fewer than 12 fail with
    # more than 99.99 % confidence; a std 10 % off fails in all.
    samples = draw(101, 2000, ENOUGH // 100)
    stds = measured_std(samples)
    assert (np.abs(stds - 1) > TOLERANCE).sum() < 12
    assert (np.abs(0.9 * stds - 1) > TOLERANCE).all()


@pytest.mark.statistical
def test_independent_sources_stay_below_the_limit_and_equal_ones_do_not():
    # 1000 draws of 5 sources: at 5 % between 24 and 80 alarms, 4 standard errors.
    limit = correlation_limit(numbers_in(draw(20, 5, 10)), 5, 0.05)
    alarms = [
        largest_correlation(draw(20, 5, 10, seed=seed)) > limit for seed in range(1000)
    ]
    assert 24 < sum(alarms) < 80
    repeated = draw(20, 5, 10)
    repeated[:, 3] = repeated[:, 1]
    assert largest_correlation(repeated) == pytest.approx(1)
    repeated[:, 3] *= -2
    assert largest_correlation(repeated) == pytest.approx(1)


def test_a_source_without_noise_is_alike():
    still = draw(20, 3, 10)
    still[:, 2] = 1.5
    assert largest_correlation(still) == 1


@pytest.mark.statistical
def test_the_shift_is_found_within_its_slack():
    # 300 pairs of worlds at 5 %: the lower end passes the truth in 5 % at most.
    wrong = 0
    for seed in range(300):
        reference, unlearned = draw(2, 30, 4, seed=seed) * 0.5
        shift, slack = shift_of_means(reference, unlearned + 0.3, 0.5, 0.05)
        wrong += shift - slack > 0.6  # the true shift, 0.3 in each of 4 coordinates
    assert wrong < 30
    shift, slack = shift_of_means(reference, unlearned + 3.0, 0.5, 1e-3)
    assert shift - slack > 4
    assert shift_of_means(reference, reference, 0.0, 0.05) == (0, 0)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"two replicas.*\(1, 3\)"):
        measured_std(draw(1, 3))
    with pytest.raises(NumericalError, match="got 1 numbers"):
        measured_std([[0.0, math.nan], [1.0, 2.0]])
    with pytest.raises(InvalidArgumentError, match=r"two sources, got \(5, 1, 2\)"):
        largest_correlation(draw(5, 1, 2))
    with pytest.raises(InvalidArgumentError, match=r"\(5, 2\) and \(5, 3\)"):
        shift_of_means(draw(5, 2), draw(5, 3), 1.0, 0.05)
