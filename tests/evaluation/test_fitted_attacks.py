"""Attacks that fit a classifier, on networks whose answer is known."""

import numpy as np
import pytest
import torch
from evaluation.outcomes import linear_model, outcome_of, random_data, random_outcome
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.evaluation.attacks import entropy, modified_entropy, softmax
from dfl_unlearn.evaluation.metrics import fitted_attacks, metrics
from dfl_unlearn.evaluation.nonmembers import matched_rows
from dfl_unlearn.evaluation.view import EvaluationView


def value(name, outcome, world="after"):
    return metrics.get(name)(EvaluationView.of(outcome).at(world)).numpy()


def one_feature(forgotten, kept, tests, after, before=(0.0, 0.0, 0.0, 0.0)):
    """Peer 0 has rows of one feature and class 0; the models are ``x w + b``."""
    rows = np.array([*forgotten, *kept], dtype=np.float64)[:, None]
    data = PeerData.from_tensors(
        [(rows, np.zeros(len(rows), dtype=np.int64))],
        (np.array(tests, dtype=np.float64)[:, None], np.zeros(len(tests), dtype=int)),
        num_classes=2,
    )
    request = ForgetRequest.samples(peer=0, indices=range(len(forgotten)))
    states = torch.tensor([before, after, (0.0, 0.0, 0.0, 0.0)], dtype=torch.float64)
    return outcome_of(data, linear_model(data), *states[:, None], request)


SLOPE = (1.0, -1.0, 0.0, 0.0)  # a larger feature is a smaller loss


def test_the_entropy_attack_calls_sure_rows_members():
    # Retained rows are sure, test rows unsure; three of four forgotten ones are sure.
    outcome = one_feature([4, 4.1, 3.9, 0.1], [4] * 20, [0.05] * 15, SLOPE)
    assert value("mia-entropy", outcome).tolist() == [0.75]
    assert value("mia-confidence", outcome).tolist() == [0.25]


def random_view(seed=0):
    data = random_data(sizes=(12, 30, 9, 20), tests=40, seed=seed)
    states = np.random.default_rng(seed).normal(size=(3, 4, 9))
    request = ForgetRequest.samples(peer=1, indices=range(14))
    outcome = outcome_of(data, linear_model(data), *states, request)
    return EvaluationView.of(outcome)


def seen(view, peer, batch):
    logits = view.model.predict(view.state.params[peer], batch.inputs.double())
    return softmax(logits), batch.labels.numpy()


@pytest.mark.parametrize("world", ["before", "after", "reference"])
def test_the_entropy_attack_is_a_balanced_logistic_regression(world):
    view = random_view().at(world)
    for peer, share in enumerate(metrics.get("mia-entropy")(view).tolist()):
        kept, tests, gone = (
            entropy(seen(view, peer, view.rows(name))[0])[:, None]
            for name in ("retain", "test", "forget")
        )
        fitted = LogisticRegression(class_weight="balanced").fit(
            np.concatenate([kept, tests]), [1] * len(kept) + [0] * len(tests)
        )
        assert share == fitted.predict(gone).mean()


@pytest.mark.parametrize(
    ("key", "feature"),
    [
        ("confidence", lambda p, y: p[np.arange(len(y)), y]),
        ("correctness", lambda p, y: 1.0 * (p.argmax(1) == y)),
        ("entropy", lambda p, y: entropy(p)),
        ("modified-entropy", modified_entropy),
        ("probability", lambda p, y: p),
    ],
)
def test_the_support_vector_attack_sees_its_key_only(key, feature):
    view = random_view()
    shares = fitted_attacks.svc_efficacy(view, key).tolist()
    for peer, share in enumerate(shares):
        kept, tests, gone = (
            np.reshape(
                feature(*seen(view, peer, view.rows(name))),
                (-1, 3 ** (key == "probability")),
            )
            for name in ("retain", "test", "forget")
        )
        index = np.arange(40) * len(kept) // 40  # as many as test rows, evenly spaced
        members = kept[index]
        fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(
            np.concatenate([members, tests]), [1] * 40 + [0] * 40
        )
        assert share == pytest.approx(1 - fitted.predict(gone).mean(), abs=1e-12)


def test_an_area_is_one_where_every_member_is_surer():
    outcome = one_feature([3, 3.2, 3.4, 3.6, 3.8], [3], [0, 0.1, 0.2, 0.3, 0.4], SLOPE)
    assert value("mia-population-auc", outcome).tolist() == [1.0]


def test_forgetting_too_much_is_leakage_too():
    # As after gradient ascent: forgotten rows are answered worse than all others.
    outcome = one_feature(
        [-3, -3.2, -3.4, -3.6, -3.8], [4] * 9, [1, 1.1, 1.2, 1.3, 1.4], SLOPE
    )
    assert value("mia-loss-auc", outcome).tolist() == [0.0]  # no success: |0 - 0.5|
    assert value("mia-population-auc", outcome).tolist() == [1.0]  # the sign is fitted
    assert value("mia-tpr-at-1", outcome).tolist() == [0.0]  # sees low losses only
    assert value("mia-entropy", outcome).tolist() == [1.0]  # sure, though wrong


@pytest.mark.statistical
def test_rows_of_one_distribution_are_not_told_apart():
    # 300 against 300 rows: the standard error of an area is 0.024, three of them 0.07.
    draw = np.random.default_rng(5)
    rows, kept, tests = (draw.normal(size=n) for n in (300, 10, 300))
    null = one_feature(rows, kept, tests, SLOPE)
    assert abs(value("mia-population-auc", null)[0] - 0.5) < 0.07
    shifted = one_feature(rows + 0.5, kept, tests, SLOPE)
    assert value("mia-population-auc", shifted)[0] > 0.57


def test_an_update_tells_the_rows_that_it_changed():
    # Before, all predictions are even; afterwards only forgotten rows have moved.
    outcome = one_feature(
        [3, 3.1, 3.2, 3.3, 3.4], [0], [0, 0.01, 0.02, 0.03, 0.04], SLOPE
    )
    assert value("mia-update", outcome).tolist() == [1.0]
    assert value("mia-update", outcome, "before").tolist() == [0.5]
    assert value("mia-update", outcome, "reference").tolist() == [0.5]


def test_more_repetitions_use_other_folds_and_draws():
    view = random_view()
    rows = matched_rows(view)
    inside, outside = (
        view.losses(batch).numpy()[0][:, None] for batch in (rows.members, rows.others)
    )

    def area(**numbers):
        return fitted_attacks.population_auc(rows, inside, outside, **numbers)

    first = area(repeats=1, undersamplings=1)
    assert area(repeats=1, undersamplings=1) == first
    assert area(repeats=2, undersamplings=1) != first


def test_one_row_cannot_be_compared_by_fitting():
    data = random_data()
    states = np.zeros((3, 4, 9))
    request = ForgetRequest.samples(peer=0, indices=[0])
    outcome = outcome_of(data, linear_model(data), *states, request)
    with pytest.raises(MissingInputError, match=r"at least two rows.*got 1"):
        value("mia-population-auc", outcome)


@pytest.mark.parametrize("name", ["mia-entropy", "mia-confidence", "mia-update"])
def test_an_attack_on_classes_refuses_a_regression(name):
    with pytest.raises(UnsupportedRequestError, match=f"{name}.*regression targets"):
        value(name, random_outcome(regression=True))


def test_gaps_are_means_of_four_differences():
    view = random_view()
    four = ("forget-accuracy", "retain-accuracy", "test-accuracy", "mia-entropy")
    ours, theirs = (
        torch.stack([metrics.get(name)(view.at(world)) for name in four])
        for world in ("after", "reference")
    )
    paired = (ours - theirs).abs().mean(0)
    torch.testing.assert_close(metrics.get("paired-gap")(view), paired)
    gap = (ours.mean(1) - theirs.mean(1)).abs().mean()
    torch.testing.assert_close(metrics.get("gap")(view), gap)
    assert gap < paired.mean()  # signed errors of peers cancel
