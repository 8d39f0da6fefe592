"""Certified configurations under audit: none is refuted, and every audit could have."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def grid():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("audit_grid")
    finally:
        sys.path.remove(str(EXPERIMENTS))


def sound(table):
    """Whether no row was refuted and no audit of a row was blind."""
    return (
        (table.verdict == "consistent").all()
        and (table.epsilon_lower <= table.epsilon).all()
        and (table.epsilon < table.ceiling).all()
        and table[["no_correction_detected", "no_noise_detected"]].all(axis=None)
        and (table.shift_over_sensitivity <= 1).all()
    )


def test_the_committed_table_is_the_whole_grid_and_sound(grid):
    table = pd.read_csv(EXPERIMENTS / "expected" / "audit_grid.csv")
    cases = ["/".join(map(str, c)) for c in grid.configurations(grid.FULL)]
    assert sorted(table.case) == sorted(cases)
    assert len(cases) >= 50
    assert set(table.settings) == {grid.identity(grid.FULL)}
    for names in (table.protocol, table.epsilon):
        assert names.nunique() >= 4
    assert sound(table)


def test_two_small_configurations_are_not_refuted(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "quick", "replicas=60", "gamma=0.01"]
    grid.main(words)
    table = pd.read_csv(tmp_path / "runs" / "audit_grid" / "table.csv")
    assert list(table.verdict) == ["consistent", "powerless"]
    assert (table.epsilon_lower <= table.epsilon).all()
    before = table.seconds.tolist()
    grid.main(words)  # finished rows are kept
    again = pd.read_csv(tmp_path / "runs" / "audit_grid" / "table.csv")
    assert again.seconds.tolist() == before


def test_a_refuted_row_ends_with_code_3(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        grid,
        "audited",
        lambda settings, which: {
            "case": "/".join(map(str, which)),
            "network": which[0],
            "protocol": which[1],
            "epsilon": which[2],
            "verdict": "refuted",
            "epsilon_lower": 4.7,
            "ceiling": 4.7,
            "no_correction_detected": True,
            "no_noise_detected": True,
            "shift_over_noise": 3,
            "noise_over_claimed": None,
            "shift_over_sensitivity": 0.1,
            "seconds": 1.0,
            "settings": grid.identity(settings),
        },
    )
    with pytest.raises(SystemExit) as stop:
        grid.main(["--preset", "quick"])
    assert stop.value.code == 3
    table = pd.read_csv(tmp_path / "runs" / "audit_grid" / "table.csv")
    assert not sound(table)


@pytest.mark.slow
@pytest.mark.statistical
def test_certified_never_refuted(grid, tmp_path, monkeypatch):
    # One network of the grid, all protocols, at 99.9 % confidence each; the others and
    # 2,000 replicas are the script's, whose table is committed.
    monkeypatch.chdir(tmp_path)
    grid.main(['networks=["ring6"]', "replicas=1000", "jobs=1"])
    table = pd.read_csv(tmp_path / "runs" / "audit_grid" / "table.csv")
    assert len(table) == 9
    assert set(table.verdict) <= {"consistent", "powerless"}
    assert sound(table[table.verdict == "consistent"])
    assert (table.verdict == "consistent").sum() >= 6
