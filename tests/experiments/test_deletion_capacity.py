"""Deletions under a budget: the predicted number, and sequences that end there."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.errors import InvalidArgumentError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("deletion_capacity")
    finally:
        sys.path.remove(str(EXPERIMENTS))


@pytest.fixture(scope="module")
def steps(script):
    tiny = replace(script.QUICK, rounds=30, dp_rounds=5, cap=5e-3)
    return pd.DataFrame(script.of_seed(tiny, 0))


@pytest.mark.parametrize(
    ("release", "budget", "number"),
    # (7.0318266756 / 3.7306316348)^2 = 3.55 and (7.0318266756 / 1.9938124456)^2 = 12.4
    [(0.5, 1.0, 3), (0.5, 2.0, 12), (0.5, 0.5, 1), (1.0, 0.5, 0)],
)
def test_the_predicted_number_is_that_of_exact_composition(
    script, release, budget, number
):
    assert script.predicted(release, budget, 1e-5) == number


@pytest.mark.parametrize("protocol", ["newton-fisher", "fine-tune"])
def test_a_sequence_ends_where_the_prediction_says(steps, protocol):
    rows = steps[steps.protocol == protocol]
    assert list(rows.deletions) == [0, 1, 2, 3]
    assert list(rows.stopped) == ["", "", "", "budget"]
    scale = gaussian_noise_std(0.5, 1e-5, 1.0)
    expected = [gaussian_epsilon(k**0.5 / scale, 1e-5) for k in (1, 2, 3)]
    assert list(rows.epsilon)[1:] == pytest.approx(expected, rel=1e-6)


def test_the_walk_carries_one_deletion(steps):
    rows = steps[steps.protocol == "rr-du"]
    assert list(rows.deletions) == [0, 1]
    assert rows.stopped.iloc[-1] == "record of training left behind"


def test_private_training_hides_no_more_than_the_budget(steps):
    rows = steps[steps.protocol == "dp-gossip"]
    assert rows.epsilon.is_monotonic_increasing
    assert rows.epsilon.max() <= 1.0
    assert rows["mean"].nunique() == 1  # forgetting does nothing


def test_the_summary_shows_measured_beside_predicted(script, steps):
    table = script.summary(steps, 1e-5).set_index("protocol")
    assert (
        table.loc["newton-fisher", ["predicted", "least", "most"]].tolist() == [3] * 3
    )
    assert table.loc["rr-du", "most"] == 1
    assert table.loc["retrain", "of a retraining"] == 1
    assert pd.isna(table.loc["dp-gossip", "predicted"])


def test_a_sequence_can_be_cut_short(script):
    tiny = replace(script.QUICK, rounds=5, most=1)
    measured = importlib.import_module("deletion_sequences")
    starts = measured.trained(tiny, script.data_of(tiny, 0), seed=0, budget=1.0)
    run, protocol = measured.protocols_of(tiny, starts, 0.5)["newton-fisher"]
    rows = list(measured.sequence(tiny, run, protocol, peer=0))
    assert [row["stopped"] for row in rows] == ["", "stopped after 1"]


def test_one_step_capacity_is_below_one_row_and_grows_with_l2(script):
    low, high = (script.one_step_capacity(script.QUICK, l2) for l2 in (0.01, 0.3))
    assert high < 1
    assert high / low == pytest.approx(30**1.5)


def test_a_budget_below_a_release_is_refused(script):
    with pytest.raises(InvalidArgumentError, match="budgets: must be at least"):
        replace(script.QUICK, budgets=(0.1,))


def test_the_committed_table_is_of_the_full_preset_and_agrees_with_the_formula(script):
    table = pd.read_csv(EXPERIMENTS / "expected" / "deletion_capacity.csv")
    pairs = {(r, b) for r in script.FULL.releases for b in script.FULL.budgets}
    newton = table[table.protocol == "newton-fisher"]
    assert set(zip(newton.release, newton.budget, strict=True)) == pairs
    for row in newton.itertuples():
        number = script.predicted(row.release, row.budget, script.FULL.delta)
        assert row.predicted == row.least == row.most == number
    spent = table.dropna(subset="budget")
    assert (spent.epsilon <= spent.budget).all()
