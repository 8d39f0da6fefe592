import math

import numpy as np
import pytest
import torch
from evaluation.outcomes import (
    class_outcome,
    linear_model,
    outcome_of,
    random_data,
    random_outcome,
)
from oracles.attacks import js, tpr_at_fpr
from oracles.evaluation import mann_whitney, mean_kl, softmax

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.metrics import metrics
from dfl_unlearn.evaluation.nonmembers import matched_rows
from dfl_unlearn.evaluation.view import EvaluationView

PER_PEER = [
    "test-accuracy",
    "retain-accuracy",
    "forget-accuracy",
    "relative-gap",
    "parameter-distance",
    "prediction-kl",
    "agreement",
    "prediction-js",
    "activation-distance",
    "zrf",
    "mia-loss-auc",
    "mia-tpr-at-1",
    "mia-entropy",
    "mia-confidence",
    "mia-population-auc",
    "mia-update",
    "paired-gap",
    "relearn-steps",
]


def value(name, outcome, world="after"):
    return metrics.get(name)(EvaluationView.of(outcome).at(world))


def constant(k, classes=3):
    """Parameters of a linear model on two features that always predicts class k."""
    return [0.0] * (2 * classes) + [1.0 if c == k else 0.0 for c in range(classes)]


def labelled(*peers, test):
    """Data whose inputs are all zero: only labels matter."""
    return PeerData.from_tensors(
        [(np.zeros((len(y), 2)), np.array(y)) for y in peers],
        (np.zeros((len(test), 2)), np.array(test)),
        num_classes=3,
    )


@pytest.fixture
def counted():
    """Peer i always predicts class i; peer 0 forgets its first two rows."""
    data = labelled([0, 1, 1, 2], [0, 0, 2], [2, 2, 2, 1, 0], test=[0, 0, 1, 2, 2])
    states = [constant(0), constant(1), constant(2)]
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    rolled = states[1:] + states[:1]
    return outcome_of(data, linear_model(data), states, states, rolled, request)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test-accuracy", [2 / 5, 1 / 5, 2 / 5]),
        ("retain-accuracy", [3 / 10, 2 / 10, 5 / 10]),
        ("forget-accuracy", [1 / 2, 1 / 2, 0]),
        ("relative-gap", [1 / 5, -1 / 5, 0]),
        ("agreement", [0, 0, 0]),
    ],
)
def test_shares_are_those_counted_by_hand(counted, name, expected):
    torch.testing.assert_close(
        value(name, counted), torch.tensor(expected, dtype=torch.float64)
    )


def test_rows_of_an_earlier_request_are_neither_retained_nor_forgotten(counted):
    data = counted.run.data
    later = data.without(ForgetRequest.samples(peer=0, indices=[0, 2]))
    request = ForgetRequest.samples(peer=0, indices=[1])
    states = counted.state.params
    outcome = outcome_of(later, counted.run.model, states, states, None, request)
    view = EvaluationView.of(outcome)
    assert view.rows("forget").labels.tolist() == [1]
    assert view.rows("retain").labels.tolist() == [2, 0, 0, 2, 2, 2, 2, 1, 0]


def test_agreement_counts_equal_classes_not_equal_scores():
    data = random_data()
    model = linear_model(data)
    states = np.random.default_rng(0).normal(size=(4, model.size))
    request = ForgetRequest.whole_peer(1)
    scaled = outcome_of(data, model, states, states, 3 * states, request)
    assert value("agreement", scaled).tolist() == [1, 1, 1, 1]
    assert (value("prediction-kl", scaled) > 0.01).all()


def test_mean_squared_errors_are_those_of_numpy():
    outcome = random_outcome(regression=True)
    data, params = outcome.run.data, outcome.state.params.numpy()
    gone = [8, 10, 13]  # peer 2 starts at row 8
    kept = [r for r in range(18) if r not in gone]
    x, y = data.store.inputs.numpy(), data.store.labels.numpy()
    tests = data.test.inputs.numpy(), data.test.labels.numpy()
    sets = {"forget": (x[gone], y[gone]), "retain": (x[kept], y[kept]), "test": tests}
    for name, (inputs, labels) in sets.items():
        errors = params[:, :2] @ inputs.T + params[:, 2:] - labels
        np.testing.assert_allclose(
            value(f"{name}-mse", outcome), (errors**2).mean(1), rtol=1e-12
        )


@pytest.mark.parametrize("name", ["test-accuracy", "relative-gap", "prediction-kl"])
def test_a_metric_of_classes_refuses_a_regression(name):
    with pytest.raises(UnsupportedRequestError, match=f"{name}.*regression targets"):
        value(name, random_outcome(regression=True))


def test_a_squared_error_refuses_classes():
    with pytest.raises(UnsupportedRequestError, match=r"test-mse.*class labels"):
        value("test-mse", random_outcome())


def test_kl_equals_the_loop_over_rows_and_classes():
    outcome = random_outcome()
    inputs, model = outcome.run.data.test.inputs, outcome.run.model
    for i, kl in enumerate(value("prediction-kl", outcome).tolist()):
        retrained, ours = (
            model.predict(state.params[i], inputs).tolist()
            for state in (outcome.reference.state, outcome.state)
        )
        assert kl == pytest.approx(mean_kl(retrained, ours), rel=1e-12)


def test_kl_is_floored_where_a_probability_is_zero():
    data = labelled([0, 1], [1, 2], [2, 0], test=[0, 1])
    model = linear_model(data)
    sure, other = (1e4 * np.array([constant(k)] * 3) for k in (0, 1))
    request = ForgetRequest.samples(peer=0, indices=[0])
    outcome = outcome_of(data, model, sure, sure, other, request)
    expected = -math.log(1e-12)  # p puts everything where q has the floor
    assert value("prediction-kl", outcome).tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("world", ["before", "after"])
def test_distances_on_forgotten_rows_equal_the_loops(world):
    outcome = random_outcome()
    view = EvaluationView.of(outcome).at(world)
    inputs, model = view.rows("forget").inputs, outcome.run.model
    found = zip(
        value("prediction-js", outcome, world).tolist(),
        value("activation-distance", outcome, world).tolist(),
        strict=True,
    )
    for i, (divergence, distance) in enumerate(found):
        pairs = [
            (softmax(theirs), softmax(ours))
            for theirs, ours in zip(
                model.predict(outcome.reference.state.params[i], inputs).tolist(),
                model.predict(view.state.params[i], inputs).tolist(),
                strict=True,
            )
        ]
        mean = sum(js(p, q) for p, q in pairs) / len(pairs)
        assert divergence == pytest.approx(mean, rel=1e-9)
        mean = sum(math.dist(p, q) for p, q in pairs) / len(pairs)
        assert distance == pytest.approx(mean, rel=1e-9)


def test_zrf_is_one_for_predictions_of_the_random_network_itself():
    outcome = random_outcome()
    draws = outcome.run.rng.child("zrf/r0")
    fresh = outcome.run.model.init(draws).double()
    outcome.state = type(outcome.state)(params=fresh.expand(4, -1).contiguous())
    assert value("zrf", outcome).tolist() == [1.0] * 4
    (last, *_) = value("zrf", outcome, "before").tolist()
    inputs, model = EvaluationView.of(outcome).rows("forget").inputs, outcome.run.model
    ours = model.predict(outcome.run.state.params[0], inputs).tolist()
    chance = model.predict(fresh, inputs).tolist()
    pairs = zip(map(softmax, chance), map(softmax, ours), strict=True)
    assert last == pytest.approx(1 - sum(js(p, q) for p, q in pairs) / 3, rel=1e-9)


@pytest.mark.parametrize("tests", [4, 300])
def test_low_losses_are_found_at_one_percent_of_false_alarms(tests):
    data = random_data(tests=tests)
    states = np.random.default_rng(0).normal(size=(3, 4, 9))
    request = ForgetRequest.samples(peer=2, indices=[0, 1, 2, 3])
    outcome = outcome_of(data, linear_model(data), *states, request)
    view = EvaluationView.of(outcome)
    rows = matched_rows(view)
    inside, outside = view.losses(rows.members), view.losses(rows.others)
    for i, share in enumerate(value("mia-tpr-at-1", outcome).tolist()):
        expected = tpr_at_fpr((-inside[i]).tolist(), (-outside[i]).tolist(), 0.01)
        assert share == pytest.approx(expected)


def test_nothing_differs_from_itself():
    data = random_data()
    model = linear_model(data)
    states = np.random.default_rng(0).normal(size=(4, model.size))
    same = outcome_of(data, model, states, states, states, ForgetRequest.whole_peer(1))
    zero = ("parameter-distance", "relative-gap", "prediction-kl", "prediction-js")
    for name in (*zero, "activation-distance", "paired-gap"):
        assert value(name, same).tolist() == [0, 0, 0, 0]
    assert value("agreement", same).tolist() == [1, 1, 1, 1]


def test_parameter_distance_is_relative_to_the_retrained_norm():
    data = labelled([0, 1], [1, 2], [2, 0], test=[0, 1])
    model = linear_model(data)
    reference = torch.zeros(3, 9)
    reference[:, 0] = torch.tensor([2.0, 5.0, 10.0])
    after = reference.clone()
    after[:, 1:3] = torch.tensor([3.0, 4.0])  # distance 5
    request = ForgetRequest.samples(peer=0, indices=[0])
    outcome = outcome_of(data, model, after, after, reference, request)
    assert value("parameter-distance", outcome).tolist() == [2.5, 1.0, 0.5]


def test_consensus_distance_is_the_mean_square_around_the_average():
    data = labelled([0, 1], [1, 2], [2, 0], test=[0, 1])
    model = linear_model(data)
    states = torch.zeros(3, 9)
    states[:, 4] = torch.tensor([0.0, 3.0, 6.0])
    request = ForgetRequest.samples(peer=0, indices=[0])
    outcome = outcome_of(data, model, states, states + 1.0, None, request)
    assert value("consensus-distance", outcome).item() == 6.0
    assert value("consensus-distance", outcome, "before").item() == 6.0
    assert value("consensus-distance", outcome).shape == ()


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_membership_area_is_the_share_of_pairs_ranked_right(regression, seed):
    data = random_data(regression=regression, seed=seed, tests=4)
    model = linear_model(data)
    states = np.random.default_rng(seed).normal(size=(4, model.size))
    # More rows go than there are test rows, so every test row is in the comparison.
    request = ForgetRequest.samples(peer=2, indices=[0, 1, 2, 3, 4])
    outcome = outcome_of(data, model, states, states, None, request)
    view = EvaluationView.of(outcome)
    for i, area in enumerate(value("mia-loss-auc", outcome).tolist()):
        members, others = (
            (-model.sample_losses(outcome.state.params[i], view.rows(name))).tolist()
            for name in ("forget", "test")
        )
        assert area == pytest.approx(mann_whitney(members, others), rel=1e-12)


def test_membership_area_is_one_half_where_all_losses_tie():
    data = labelled([0, 0, 1], [1, 2], [2, 0], test=[0, 1, 2])
    model = linear_model(data)
    states = torch.zeros(3, 9)
    request = ForgetRequest.samples(peer=0, indices=[0, 1])
    outcome = outcome_of(data, model, states, states, None, request)
    assert value("mia-loss-auc", outcome).tolist() == [0.5, 0.5, 0.5]


def test_membership_takes_as_many_test_rows_as_rows_go(counted, monkeypatch):
    sizes = []
    losses = EvaluationView.losses

    def noted(view, batch):
        sizes.append(len(batch))
        return losses(view, batch)

    monkeypatch.setattr(EvaluationView, "losses", noted)
    value("mia-loss-auc", counted)
    assert sizes == [2, 2]


def test_membership_draws_the_same_test_rows_in_every_world(counted):
    areas = [value("mia-loss-auc", counted, w).tolist() for w in ("before", "after")]
    assert areas[0] == areas[1]


def test_attack_success_is_the_share_of_triggered_rows_taken_for_the_target():
    outcome = class_outcome()
    view = EvaluationView.of(outcome)
    tests = view.rows("test")
    others = tests.labels != 1
    inputs = tests.inputs[others].clone()
    inputs[:, 3] = 1.0  # the lower right pixel of four
    for world in ("before", "after", "reference"):
        state = view.at(world).state
        for peer, found in enumerate(
            metrics.get("attack-success")(view.at(world)).tolist()
        ):
            guesses = outcome.run.model.predict(state.params[peer], inputs).argmax(1)
            assert found == float((guesses == 1).double().mean())


def test_test_accuracy_is_split_where_a_class_goes_whole():
    view = EvaluationView.of(class_outcome())
    tests = view.rows("test")
    assert view.classes_gone == (2,)
    kept, gone, whole = (
        metrics.get(f"test-accuracy{end}")(view) for end in ("-kept", "-gone", "")
    )
    n_gone = int((tests.labels == 2).sum())
    right = kept * (len(tests) - n_gone) + gone * n_gone
    torch.testing.assert_close(right, whole * len(tests))
    for peer, row in enumerate(view.state.params):
        guesses = view.model.predict(row, tests.inputs).argmax(1)
        of_class = guesses[tests.labels == 2]
        assert float(gone[peer]) == float((of_class == 2).double().mean())


def test_kept_accuracy_is_the_test_accuracy_where_no_class_goes_whole():
    view = EvaluationView.of(random_outcome())
    kept, whole = (
        metrics.get(name)(view) for name in ("test-accuracy-kept", "test-accuracy")
    )
    assert kept.equal(whole)


def test_costs_are_those_of_the_outcome():
    outcome = random_outcome()
    names = ("messages", "payload-bytes", "gradient-evaluations", "rounds")
    values = [value(f"cost-{name}", outcome).item() for name in names]
    assert values == [3, 1000, 50 + 2 * 7, 2]
    names = ("sample-gradients", "steps-forget", "steps-retain", "optimizer-floats")
    values = [value(f"cost-{name}", outcome).item() for name in names]
    assert values == [50, 11, 13, 18]
    assert value("cost-wall-seconds", outcome).item() == 0.25
    assert value("epsilon-spent", outcome).item() == 1.5


def test_epsilon_is_nan_where_nothing_is_claimed():
    assert math.isnan(value("epsilon-spent", random_outcome(certificate=None)))


@pytest.mark.parametrize("name", PER_PEER)
def test_permuting_the_peers_models_permutes_the_values(name):
    first = random_outcome()
    order = [2, 0, 3, 1]
    run, second = first.run, first
    states = (run.state, first.state, first.reference.state)
    second = outcome_of(
        run.data, run.model, *(s.params[order] for s in states), first.request
    )
    torch.testing.assert_close(
        value(name, second), value(name, first)[order], rtol=1e-12, atol=0
    )
