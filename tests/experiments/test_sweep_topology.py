"""The topology sweep: what it asks for, how it ranks, and that it goes on."""

import importlib
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.sweeps import run_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = {
    "name": "tiny",
    "families": ("ring", "complete"),
    "peers": (9,),
    "seeds": (0,),
    "rounds": 30,
    "jobs": 1,
}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("sweep_topology")
    finally:
        sys.path.remove(str(EXPERIMENTS))
        for name in ("sweep_topology", "settings"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def view(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("topology")
    run_sweep(script.sweep_of(script.Settings(**TINY)), folder, jobs=1)
    return SweepView.open(folder)


def test_every_preset_has_six_families_and_three_sizes(script):
    for settings in (script.QUICK, script.FULL):
        networks = {
            (case.point["topology"]["use"], case.point["topology"]["n"])
            for case in script.sweep_of(settings).cases()
        }
        assert len({family for family, _ in networks}) >= 6
        sizes = {n for _, n in networks}
        assert len(sizes) == 3
        assert all(math.isqrt(n) ** 2 == n for n in sizes)  # a torus is square
        assert len(networks) == len(settings.families) * 3
    assert len(script.FULL.seeds) >= 3


def test_a_row_per_network_has_every_question_s_number(script, view):
    table = script.by_case(view)
    assert sorted(table["family"]) == ["complete", "ring"]
    for protocol in ("newton-fisher", "rr-du", "fine-tune"):
        for metric in ("test_accuracy", "cost_messages", "cost_payload_bytes"):
            assert table[f"{protocol}_{metric}"].notna().all()
    assert table[["spectral_gap", "front_time", "effective_spread"]].notna().all().all()
    assert table[["before_test_accuracy", "retrain_test_accuracy"]].notna().all().all()


def test_the_complete_network_is_crossed_first(script, view):
    means = script.by_family(script.by_case(view)).set_index("family")
    assert means.loc["complete", "spectral_gap"] > means.loc["ring", "spectral_gap"]
    assert means.loc["complete", "front_time"] < means.loc["ring", "front_time"]
    assert (
        means.loc["complete", "effective_spread"]
        > means.loc["ring", "effective_spread"]
    )
    ranks = script.correlations(script.by_case(view))
    assert list(ranks["gap~front, families"]) == pytest.approx([-1.0, -1.0])
    assert list(ranks["gap~spread, families"]) == pytest.approx([1.0, 1.0])


def made_up(fronts):
    """Means of four families of 9 peers whose gaps fall in the order given."""
    return pd.DataFrame(
        {
            "peers": 9,
            "family": ["a", "b", "c", "d"],
            "seed": 0,
            "spectral_gap": [0.8, 0.4, 0.2, 0.1],
            "front_time": fronts,
            "effective_spread": [8.9, 8.8, 8.7, 8.6],
        }
    )


def test_a_front_that_never_arrives_is_the_latest(script):
    ranks = script.correlations(made_up([2.0, 5.0, 9.0, math.inf]))
    assert ranks["gap~front, cases"].iloc[0] == pytest.approx(-1.0)


def test_families_out_of_order_are_named_with_their_places(script):
    lines = list(script.out_of_order(made_up([9.0, 5.0, 2.0, 12.0])))
    assert lines == [
        "9 peers, a: front 9 is number 3 of 4, its gap 0.8 number 1",
        "9 peers, c: front 2 is number 1 of 4, its gap 0.2 number 3",
    ]
    assert list(script.out_of_order(made_up([2.0, 5.0, 9.0, 12.0]))) == []


def test_equal_gaps_tie_in_spite_of_rounding(script):
    gaps = pd.Series([0.4, 0.4 + 1e-13, 0.1])
    assert script.rank(gaps, pd.Series([2.0, 1.0, 9.0])) == script.rank(
        gaps, pd.Series([1.0, 2.0, 9.0])
    )
