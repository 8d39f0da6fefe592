import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import attacks as oracle
from scipy.stats import norm

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.evaluation.attacks import (
    auc,
    balanced_accuracy,
    entropy,
    jensen_shannon,
    kullback_leibler,
    lira_statistic,
    logit_score,
    modified_entropy,
    softmax,
    tpr_at_fpr,
)

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
Q = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]])
LABELS = np.array([0, 0, 2])

scores = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


def test_entropy_has_the_published_digits():
    np.testing.assert_allclose(
        entropy(P), [0.80181855, 0.63903186, 1.09861229], atol=5e-9
    )


def test_modified_entropy_has_the_published_digits():
    expected = [0.1621672450, 3.3704129652, 1.0027182643]
    np.testing.assert_allclose(modified_entropy(P, LABELS), expected, atol=5e-11)


def test_logit_scores_have_the_published_digits():
    expected = [0.8472978604, -2.1972245773, -0.6931471806]
    np.testing.assert_allclose(logit_score(np.log(P), LABELS), expected, atol=5e-11)


def test_divergences_have_the_published_digits():
    assert kullback_leibler(P, Q).mean() == pytest.approx(0.0777573534, abs=5e-11)
    assert jensen_shannon(P, Q).mean() == pytest.approx(0.0201403424, abs=5e-11)
    assert 1 - jensen_shannon(P, Q).mean() == pytest.approx(0.9798596576, abs=5e-11)
    distance = np.linalg.norm(P - Q, axis=1).mean()
    assert distance == pytest.approx(0.2313406979, abs=5e-11)


def test_likelihood_ratios_have_the_published_digits():
    found = lira_statistic([-1, 0, 1, 3], 2, 1, 0, 1.5)
    expected = [-3.8723126697, -1.5945348919, 0.1276873303, 1.9054651081]
    np.testing.assert_allclose(found, expected, atol=5e-11)


def test_an_area_has_the_published_digits_and_counts_ties_half():
    assert float(auc([0.9, 0.8, 0.4], [0.7, 0.3, 0.4])) == pytest.approx(5 / 6)
    assert float(auc([0.3, 0.1, 0.3], [0.3, 0.1, 0.3])) == 0.5


@pytest.mark.parametrize(
    ("shift", "area", "accuracy", "found"),
    [
        (0.5, 0.638163, 0.598706, 0.033899),
        (1.0, 0.760250, 0.691462, 0.092362),
        (2.0, 0.921350, 0.841345, 0.372081),
    ],
)
def test_shifted_normals_have_their_closed_forms(shift, area, accuracy, found):
    # The quantiles of a normal stand for a sample; their step is 1/20,000.
    others = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    members = others + shift
    assert float(auc(members, others)) == pytest.approx(area, abs=2e-4)
    assert balanced_accuracy(members, others) == pytest.approx(accuracy, abs=2e-4)
    assert float(tpr_at_fpr(members, others, 0.01)) == pytest.approx(found, abs=4e-4)
    assert norm.cdf(shift / math.sqrt(2)) == pytest.approx(area, abs=5e-7)


@given(members=scores, others=scores, fpr=st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0]))
def test_rates_equal_the_loop_over_thresholds(members, others, fpr):
    expected = oracle.tpr_at_fpr(members, others, fpr)
    assert float(tpr_at_fpr(members, others, fpr)) == pytest.approx(expected)
    expected = oracle.balanced_accuracy(members, others)
    assert balanced_accuracy(members, others) == pytest.approx(expected)


def test_fewer_than_a_hundred_others_allow_no_false_alarm_at_one_percent():
    others = np.arange(99.0)
    assert tpr_at_fpr([97.5, 98.5], others, 0.01) == 0.5
    assert tpr_at_fpr([97.5, 98.5], np.arange(-1.0, 99.0), 0.01) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_loop_over_rows_and_classes(seed):
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(6, 4)) * 3
    p, q = softmax(z), softmax(draw.normal(size=(6, 4)))
    y = draw.integers(4, size=6)
    rows = range(6)
    for found, expected in [
        (entropy(p), [oracle.entropy(p[i]) for i in rows]),
        (modified_entropy(p, y), [oracle.modified_entropy(p[i], y[i]) for i in rows]),
        (logit_score(z, y), [oracle.logit_score(p[i], y[i]) for i in rows]),
        (kullback_leibler(p, q), [oracle.kl(p[i], q[i]) for i in rows]),
        (jensen_shannon(p, q), [oracle.js(p[i], q[i]) for i in rows]),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_statistic_is_the_difference_of_two_log_densities():
    x = np.array([-2.0, 0.3, 5.0])
    expected = [oracle.log_normal(v, 1, 0.5) - oracle.log_normal(v, -1, 2) for v in x]
    np.testing.assert_allclose(lira_statistic(x, 1, 0.5, -1, 2), expected, rtol=1e-12)


def test_sure_predictions_give_finite_scores():
    sure = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = modified_entropy(sure, [0, 1])
    assert found[0] == 0
    assert found[1] == pytest.approx(-2 * math.log(1e-20))
    np.testing.assert_allclose(jensen_shannon(sure, sure[:, ::-1]), math.log(2))
    z = np.array([[800.0, 0.0, 0.0]])
    assert logit_score(z, [0]) == pytest.approx(800 - math.log(2))


def test_leading_axes_are_kept():
    z = np.random.default_rng(0).normal(size=(5, 6, 4))
    y = np.arange(6) % 4
    for score in (modified_entropy, logit_score):
        whole = score(softmax(z) if score is modified_entropy else z, y)
        each = [score(softmax(x) if score is modified_entropy else x, y) for x in z]
        np.testing.assert_array_equal(whole, np.stack(each))


def test_a_model_without_spread_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"std_out.*> 0, got 0"):
        lira_statistic([0.0], 0, 1, 0, 0)
