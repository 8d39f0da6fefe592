import math

import numpy as np
import pytest
import torch
from evaluation.outcomes import (
    linear_model,
    outcome_of,
    random_data,
    random_outcome,
)

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    UnknownNameError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation import view as view_module
from dfl_unlearn.evaluation.metrics import info_of, measures, metrics
from dfl_unlearn.evaluation.view import Cache, EvaluationView, evaluate

COMPARISONS = {
    "relative-gap",
    "parameter-distance",
    "prediction-kl",
    "prediction-js",
    "activation-distance",
    "agreement",
}


@pytest.fixture
def registered(monkeypatch):
    """Registers metrics for the length of one test."""
    metrics.names()
    monkeypatch.setattr(metrics, "_entries", dict(metrics._entries))
    return metrics.register


def names_in(table):
    return {row["metric"] for row in table.rows}


def test_a_view_reads_the_state_of_its_world():
    outcome = random_outcome()
    view = EvaluationView.of(outcome)
    assert view.state is outcome.state
    assert view.at("before").state is outcome.run.state
    assert view.at("reference").state is outcome.reference.state


def test_a_missing_reference_is_named_with_the_remedy():
    view = EvaluationView.of(random_outcome(reference=False))
    with pytest.raises(MissingInputError, match="reference=True"):
        _ = view.at("reference").state


@pytest.mark.parametrize("name", ["test-accuracy", "mia-entropy", "lira", "paired-gap"])
def test_the_view_of_one_peer_gives_that_peers_values(name):
    view = EvaluationView.of(random_outcome())
    for world in ("before", "after"):
        every = metrics.get(name)(view.at(world))
        for peer in (0, 3):
            alone = metrics.get(name)(view.only(peer).at(world))
            torch.testing.assert_close(alone, every[peer : peer + 1])


def test_an_unknown_world_is_refused():
    with pytest.raises(InvalidArgumentError, match="later"):
        EvaluationView.of(random_outcome()).at("later")


def test_states_of_another_network_are_refused():
    outcome = random_outcome()
    short = outcome.state.params[:3]
    outcome.state = type(outcome.state)(params=short)
    with pytest.raises(InvalidArgumentError, match=r"after.*\(4, 9\).*\(3, 9\)"):
        EvaluationView.of(outcome)


def test_forgotten_and_retained_rows_are_all_rows_once():
    outcome = random_outcome()
    view, store = EvaluationView.of(outcome), outcome.run.data.store
    both = torch.cat([view.rows("retain").inputs, view.rows("forget").inputs])
    assert len(view.rows("forget")) == 3
    assert sorted(both.tolist()) == sorted(store.inputs.tolist())


def test_retained_rows_are_thinned_evenly_above_the_limit(monkeypatch):
    data = random_data(sizes=(40, 20, 20, 21))
    model = linear_model(data)
    states = np.zeros((4, model.size))
    request = ForgetRequest.samples(peer=3, indices=[20])
    view = EvaluationView.of(outcome_of(data, model, states, states, None, request))
    assert len(view.rows("retain")) == 100
    monkeypatch.setattr(view_module, "RETAIN_ROWS", 10)
    thinned = view.rows("retain").inputs
    torch.testing.assert_close(thinned, data.store.inputs[0:100:10])
    assert len(view.rows("forget")) == 1


def test_predictions_are_computed_once_for_all_metrics(monkeypatch):
    outcome = random_outcome()
    calls = []
    predict_all = outcome.run.model.predict_all

    def noted(params, inputs):
        calls.append(len(inputs))
        return predict_all(params, inputs)

    monkeypatch.setattr(outcome.run.model, "predict_all", noted)
    evaluate(outcome, ["test-accuracy", "relative-gap", "prediction-kl", "agreement"])
    assert calls == [7, 7, 7]  # the test rows in three worlds


def test_values_do_not_depend_on_what_the_cache_may_keep():
    outcome = random_outcome()
    full = EvaluationView.of(outcome)
    bare = EvaluationView(
        **{f: getattr(full, f) for f in full.__dataclass_fields__ if f != "cache"},
        cache=Cache(limit=0),
    )
    kl = metrics.get("prediction-kl")
    assert kl(full).equal(kl(bare))
    assert kl(full).equal(kl(full))
    assert bare.cache.free == 0
    assert full.cache.free < view_module.CACHE_BYTES


def test_the_cache_stops_at_its_limit():
    cache = Cache(limit=100)
    made = []

    def make():
        made.append(1)
        return torch.zeros(8, dtype=torch.float64)

    for key in ("a", "b", "a", "b"):
        cache.get((key,), make)
    assert len(made) == 3  # "a" is kept (64 bytes), "b" would pass 100
    assert cache.free == 36


@pytest.mark.parametrize("name", ["retain-accuracy", "prediction-kl", "mia-loss-auc"])
def test_values_do_not_depend_on_the_size_of_the_blocks(name, monkeypatch):
    outcome = random_outcome()
    whole = metrics.get(name)(EvaluationView.of(outcome))
    monkeypatch.setattr(view_module, "_BLOCK_ROWS", 2)
    parts = metrics.get(name)(EvaluationView.of(outcome))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)


def test_every_peer_and_the_network_get_a_row():
    outcome = random_outcome()
    table = evaluate(outcome, "test-accuracy", worlds=("after",))
    network, *peers = table.rows
    values = metrics.get("test-accuracy")(EvaluationView.of(outcome)).tolist()
    assert [row["value"] for row in peers] == values
    assert [row["peer"] for row in peers] == [0, 1, 2, 3]
    assert [row["hop"] for row in peers] == [2, 1, 0, 1]  # from peer 2 on a ring
    assert network["value"] == pytest.approx(sum(values) / 4, rel=1e-15)
    assert network["peer"] == network["hop"] == -1


def test_a_row_says_where_its_value_comes_from():
    row = evaluate(random_outcome(), "test-accuracy", worlds=("before",)).rows[1]
    del row["value"]
    assert row == {
        "case": "",
        "world": "before",
        "protocol": "newton-fisher",
        "request": "r0",
        "round": 20,
        "peer": 0,
        "hop": 2,
        "set": "test",
        "metric": "test-accuracy",
        "unit": "fraction",
        "seed": 7,
    }


def test_default_measures_everything_that_applies():
    table = evaluate(random_outcome())
    mse = {"test-mse", "retain-mse", "forget-mse"}
    elsewhere = {"attack-success", "test-accuracy-gone"}
    cheap = {n for n in metrics.names() if info_of(metrics.get(n)).default}
    assert names_in(table) == cheap - mse - elsewhere
    assert {row["world"] for row in table.rows} == {"before", "after", "reference"}
    assert table.rows[0]["metric"] == "test-accuracy"


def test_default_without_a_reference_leaves_comparisons_out():
    table = evaluate(random_outcome(reference=False))
    assert not names_in(table) & COMPARISONS
    assert "mia-loss-auc" in names_in(table)
    assert {row["world"] for row in table.rows} == {"before", "after"}
    assert "no reference" in str(table)


def test_default_for_a_regression_measures_errors_instead_of_accuracies():
    found = names_in(evaluate(random_outcome(regression=True)))
    assert {"test-mse", "retain-mse", "forget-mse", "parameter-distance"} <= found
    assert not found & {"test-accuracy", "agreement", "prediction-kl"}


def test_default_without_test_rows_leaves_metrics_on_them_out():
    data = random_data(tests=0)
    model = linear_model(data)
    states = np.ones((4, model.size))
    outcome = outcome_of(
        data, model, states, states, states, ForgetRequest.whole_peer(1)
    )
    found = names_in(evaluate(outcome))
    assert "retain-accuracy" in found
    assert not found & {"test-accuracy", "mia-loss-auc"}
    with pytest.raises(MissingInputError, match=r"test.*none"):
        evaluate(outcome, "test-accuracy")


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_a_comparison_asked_for_by_name_needs_the_reference(name):
    with pytest.raises(MissingInputError, match="reference=True"):
        evaluate(random_outcome(reference=False), [name])


def test_only_the_reference_world_needs_a_reference():
    with pytest.raises(MissingInputError, match="reference=True"):
        evaluate(random_outcome(reference=False), worlds=("reference",))


def test_a_metric_of_the_other_task_asked_for_by_name_is_refused():
    with pytest.raises(UnsupportedRequestError, match="test-accuracy"):
        evaluate(random_outcome(regression=True), "test-accuracy")


def test_a_mistyped_metric_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="test-accuracy"):
        evaluate(random_outcome(), "test-acuracy")


def test_a_mistyped_world_is_refused():
    with pytest.raises(InvalidArgumentError, match="afterwards"):
        evaluate(random_outcome(), "test-accuracy", worlds=("afterwards",))


def test_costs_exist_only_after_the_request():
    table = evaluate(random_outcome(), "cost-messages")
    (row,) = table.rows
    assert (row["world"], row["peer"], row["value"]) == ("after", -1, 3.0)


def test_an_outcome_without_a_claim_has_no_epsilon():
    (row,) = evaluate(random_outcome(certificate=None), "epsilon-spent").rows
    assert math.isnan(row["value"])


def test_a_plain_function_is_a_metric_with_defaults(registered):
    @registered("largest-weight")
    def largest_weight(view):
        """Largest parameter of a peer."""
        return view.state.params.amax(1)

    table = evaluate(random_outcome())
    rows = table.filter(metric="largest-weight", peer=-1).rows
    assert [row["world"] for row in rows] == ["before", "after", "reference"]
    assert {(row["unit"], row["set"]) for row in rows} == {("fraction", "")}


def test_a_metric_says_its_unit_set_and_worlds(registered):
    @registered("forget-rows")
    @measures(unit="rows", set="forget", worlds=("after",))
    def forget_rows(view):
        return torch.tensor(float(len(view.rows("forget"))))

    (row,) = evaluate(random_outcome(), "forget-rows").rows
    assert (row["unit"], row["set"], row["value"]) == ("rows", "forget", 3.0)


def test_a_metric_outside_the_default_is_measured_where_it_is_named(registered):
    @registered("slow-attack")
    @measures(default=False)
    def slow_attack(view):
        return torch.tensor(1.0)

    assert "slow-attack" not in names_in(evaluate(random_outcome()))
    assert names_in(evaluate(random_outcome(), "slow-attack")) == {"slow-attack"}


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(4, 1), 0.5])
def test_a_metric_of_the_wrong_shape_is_refused_by_name(registered, wrong):
    registered("wrong-shape")(lambda view: wrong)
    with pytest.raises(InvalidArgumentError, match=r"wrong-shape.*\(\) or \(4,\)"):
        evaluate(random_outcome(), "wrong-shape")


def test_the_printed_evaluation_puts_the_retrained_value_beside(registered):
    text = str(evaluate(random_outcome(), ["test-accuracy", "mia-loss-auc"]))
    header, accuracy, attack = text.splitlines()[1:]
    assert header.split()[:5] == ["metric", "set", "before", "after", "retrained"]
    for line in (accuracy, attack):
        assert "-" not in line.split()[2:5]
