from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from networks import blobs
from results.handmade import made_outcome, made_run, three_outcomes

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.influence import track_influence
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.record.influence import influence_trace, mixing_power
from dfl_unlearn.results.view import ResultsView, plain
from dfl_unlearn.store.table import ResultsTable
from dfl_unlearn.unlearning.local import Budget
from dfl_unlearn.unlearning.methods.salun import SalUn
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer


def test_a_view_holds_one_run_and_its_outcomes_in_order():
    run = made_run()
    outcomes = three_outcomes(run)
    view = ResultsView.of(outcomes)
    assert view.run is run
    assert view.topology is run.topology
    assert view.outcomes == tuple(outcomes)
    assert view.certificates == tuple(o.certificate for o in outcomes)
    assert view.request.requester == view.source_peer == 1
    assert ResultsView.of(view) is view


def test_a_run_alone_has_a_view_too():
    view = ResultsView.of(made_run())
    assert view.outcomes == ()
    assert view.request is None
    assert view.source_peer == 0
    assert len(view.table) == 0


def test_outcomes_of_different_runs_are_refused():
    pair = [made_outcome(made_run(seed=0)), made_outcome(made_run(seed=1))]
    with pytest.raises(InvalidArgumentError, match=r"digests 00abab.* and 01abab"):
        ResultsView.of(pair)


def test_nothing_and_foreign_things_are_refused():
    with pytest.raises(InvalidArgumentError, match="at least one outcome"):
        ResultsView.of([])
    with pytest.raises(InvalidTypeError, match="must be a Outcome, got str"):
        ResultsView.of(["outcome"])


def test_labels_say_what_differs():
    run = made_run()
    other = ForgetRequest.samples(peer=2, indices=[1], request_id="r1")
    view = ResultsView.of(
        [
            *three_outcomes(run),
            made_outcome(run, "fine-tune", None, request=other),
            made_outcome(run, "retrain", "exact"),
            made_outcome(run, "retrain", "exact"),
        ]
    )
    assert view.labels == (
        "newton-fisher r0 curvature=exact_cg",
        "newton-fisher r0 curvature=diag_fisher",
        "fine-tune r0",
        "fine-tune r1",
        "retrain r0 (1)",
        "retrain r0 (2)",
    )


def test_labels_show_two_short_settings_and_no_more():
    run = made_run()

    def labels(*protocols):
        outcome = made_outcome(run, "fine-tune", None)
        return ResultsView.of([replace(outcome, protocol=p) for p in protocols]).labels

    one, two, three = (
        AtPeer(method=SalUn()),
        AtPeer(method=SalUn(ratio=0.3)),
        AtPeer(method=SalUn(ratio=0.3), budget=Budget(max_steps=9)),
    )
    four = replace(three, method=SalUn(ratio=0.3, batch_size=7))
    assert labels(one, two) == ("at-peer.salun ratio=0.5", "at-peer.salun ratio=0.3")
    assert labels(two, three) == (
        "at-peer.salun max_steps=None",
        "at-peer.salun max_steps=9",
    )
    assert labels(one, three) == (
        "at-peer.salun ratio=0.5 max_steps=None",
        "at-peer.salun ratio=0.3 max_steps=9",
    )
    assert labels(one, four) == ("at-peer.salun (1)", "at-peer.salun (2)")
    slower = replace(SalUn().optimizer, learning_rate=0.02)
    slow = AtPeer(method=SalUn(optimizer=slower))
    assert labels(one, slow)[1] == "at-peer.salun learning_rate=0.02"
    assert labels(one, one, one)[2] == "at-peer.salun (3)"


def test_the_table_is_that_of_evaluate_and_is_computed_once():
    outcomes = three_outcomes(made_run())
    view = ResultsView.of(outcomes)
    expected = ResultsTable.concat([evaluate(o) for o in outcomes])
    pd.testing.assert_frame_equal(view.table.frame, expected.frame)
    assert view.table is view.table


def test_given_tables_are_used_one_per_outcome():
    outcomes = three_outcomes(made_run())
    tables = [evaluate(o, ["test-accuracy"]) for o in outcomes]
    view = ResultsView.of(outcomes, tables)
    assert view.tables == tuple(tables)
    assert len(view.table) == sum(map(len, tables))
    with pytest.raises(InvalidArgumentError, match="one per outcome, got 1 for 3"):
        ResultsView.of(outcomes, tables[:1])


def test_influence_is_exact_where_that_costs_little():
    run = simulate("ring", blobs([5, 6, 4, 5]), "logistic", SimulationConfig(rounds=6))
    trace = ResultsView.of(run).influence()
    assert trace.mode == "exact"
    np.testing.assert_array_equal(trace.norms, track_influence(run, 0).norms)


def test_influence_is_the_norm_bound_where_it_cannot_be_replayed(caplog):
    run = made_run(n=6)
    trace = ResultsView.of(made_outcome(run)).influence()
    expected = influence_trace(run.record, run.topology, 1)
    assert trace.mode == "norm_bound"
    np.testing.assert_array_equal(trace.norms, expected.norms)


def test_influence_falls_back_on_the_network_alone_and_follows_the_request():
    run = made_run(n=6, record=False)
    view = ResultsView.of(made_outcome(run))
    other = ForgetRequest.samples(peer=4, indices=[0])
    for trace, source in ((view.influence(), 1), (view.influence(other), 4)):
        expected = mixing_power(run.topology, source, run.config.rounds)
        assert trace.source == source
        np.testing.assert_array_equal(trace.norms, expected.norms)


def test_the_configuration_is_plain_values():
    config = ResultsView.of(three_outcomes(made_run(n=5))).config
    assert config["topology"]["peers"] == 5
    assert config["training"]["trainer"]["use"] == "d-sgd"
    assert config["training"]["local"]["learning_rate"] == 0.1
    assert config["training"]["record"]["parts"] == [
        "checkpoints",
        "gradient_norms",
        "initial_state",
        "training_residual",
    ]
    assert config["unlearning"]["fine-tune"]["rounds"] == 10
    assert plain(object()) == "object"
