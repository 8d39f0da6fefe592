"""The comparison of protocols: its names, its files, and what it refuses."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dfl_unlearn.errors import InvalidArgumentError, MissingRecordError
from dfl_unlearn.evaluation.comparison import CONTROLS, MINIMUM, Line
from dfl_unlearn.unlearning.contracts import unlearners
from dfl_unlearn.unlearning.local import methods

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("compare_protocols")
    finally:
        sys.path.remove(str(EXPERIMENTS))


@pytest.fixture
def case(script):
    return next(script.cases(script.QUICK))


def line(method, *, setting="mislabel, ring", seed=0, off=0.0):
    return Line(
        setting=setting,
        method=method,
        seed=seed,
        values=dict.fromkeys(MINIMUM, 0.5 + off),
        seconds=1.0,
        sample_gradients=10,
        certificate="none",
        epsilon=None,
        delta=None,
    )


def test_every_registered_method_and_protocol_is_in_the_comparison(script, case):
    every = replace(case, methods=())
    local, tuned = script.local_methods(every)
    used = {methods.name_of(protocol.method) for protocol in local.values()}
    assert used == set(methods.names()) - {"original", "retrain"}
    assert tuned <= set(local)
    assert "at-peer gradient-ascent" in tuned
    assert "at-peer unsir" not in tuned  # no table names it: its defaults
    tiny = replace(every, peers=4, rounds=2, dp_rounds=2)
    cases = importlib.import_module("protocol_cases")
    run, _ = cases.trained(tiny, cases.RecordPlan())
    protocols = [protocol for _, protocol in cases.protocols_of(tiny, run).values()]
    assert {unlearners.name_of(p) for p in protocols} == set(unlearners.names()) - {
        "retrain"  # a control
    }


def test_what_changes_a_case_changes_its_digest_and_workers_do_not(script, case):
    others = [replace(case, seed=1), replace(case, l2=0.2), replace(case, methods=())]
    assert len({script.digest(each) for each in (case, *others)}) == 4
    alone = next(script.cases(replace(script.QUICK, workers=2)))
    assert script.digest(alone) == script.digest(case)


def test_a_case_is_computed_once_and_keeps_its_refusals(
    script, case, tmp_path, monkeypatch
):
    calls = []

    def computed(case):
        calls.append(case)
        yield from ((name, line(name)) for name in CONTROLS)
        yield "rr-du", MissingRecordError("record: must hold something")

    monkeypatch.setattr(script, "lines", computed)
    first = script.done(case, tmp_path)
    assert script.done(case, tmp_path) == first
    assert calls == [case]
    assert first[1] == {"rr-du": "MissingRecordError: record: must hold something"}
    assert [each.method for each in first[0]] == list(CONTROLS)


def test_an_interrupted_case_is_computed_again(script, case, tmp_path, monkeypatch):
    def broken(case):
        yield "original", line("original")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "lines", broken)
    with pytest.raises(KeyboardInterrupt):
        script.done(case, tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_rows_come_by_gap_after_the_controls(script):
    found = [line("far", off=0.3), line("near", off=0.01)]
    found += [line(name) for name in CONTROLS]
    table = script.sorted_by_gap(found)
    assert [row.method for row in table.rows] == [*CONTROLS, "near", "far"]


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("forget", "mislabeled", "did you mean 'mislabel'"),
        ("topologies", "rings", "did you mean 'ring'"),
        ("methods", "gradient-ascend", "did you mean 'gradient-ascent'"),
    ],
)
def test_unknown_names_are_refused(script, setting, value, hint):
    with pytest.raises(InvalidArgumentError, match=f"{setting}.*{hint}"):
        replace(script.QUICK, **{setting: (value,)})


def test_the_worst_peer_is_no_better_than_the_mean(script, case):
    tiny = replace(case, peers=4, rounds=3, descent_rounds=1, dp_rounds=2)
    found = dict(script.lines(tiny))
    assert set(CONTROLS) < set(found)
    assert isinstance(found["fine-tune, epsilon"], Exception)  # one round is too few
    measured = [each for each in found.values() if isinstance(each, Line)]
    assert {each.seed for each in measured} == {0}
    for each in measured:
        values = each.values
        assert values["test-accuracy-worst"] <= values["test-accuracy-kept"]
        assert values["retain-accuracy-worst"] <= values["retain-accuracy"]
        assert values["forget-accuracy-most"] >= values["forget-accuracy"]
    assert found["newton-fisher"].certificate == "certified"
    assert found["newton-fisher, diagonal"].certificate == "heuristic"
    assert found["retrain"].certificate == "exact"
    assert found["original"].certificate == "none"
    assert found["at-peer gradient-ascent"].note.startswith("tuned on an MLP")
    assert found["dp-gossip"].note == "own training"


def test_the_committed_table_has_all_controls_and_says_what_was_tuned():
    table = pd.read_csv(EXPERIMENTS / "expected" / "compare_protocols.csv")
    for _, part in table.groupby("setting"):
        assert list(part.method[:3]) == list(CONTROLS)
        assert (part.sets == 5).all()
        notes = part.set_index("method").note.fillna("")
        assert notes["at-peer gradient-ascent"] == "tuned on an MLP against its " + (
            "retrained model"
        )
        assert notes["newton-fisher"] == ""
    exact = table[table.method.isin(["retrain", "retrain-2"])]
    assert (exact.certificate == "exact").all()
    assert set(table[table.certificate == "certified"].method) == {
        "newton-fisher",
        "rr-du",
        "fine-tune, epsilon",
        "dp-gossip",
    }
