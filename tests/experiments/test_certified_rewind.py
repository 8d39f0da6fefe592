"""The demonstration of a certificate: its published digits, and its committed table."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

# K/T, distance to retraining, bound, noise for (1, 1e-5), accuracy over 200 draws: from
# a script of its own, in float64.
ORACLE = [
    (0.0, 0.0183296147, 0.4674216043, 1.74377782, 0.735),
    (0.25, 0.0020709884, 0.0987612471, 0.36844183, 0.943),
    (0.5, 0.0003455431, 0.0202697198, 0.07561886, 0.970),
    (0.75, 0.0000594530, 0.0035580780, 0.01327388, 0.968),
    (1.0, 0.0, 0.0, 0.0, 0.965),
]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module("certified_rewind")
    finally:
        sys.path.remove(str(EXPERIMENTS))


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(EXPERIMENTS / "expected" / "certified_rewind.csv")


def printed(value, digits):
    """The value is the oracle's to the last digit that the oracle has."""
    return pytest.approx(value, rel=0, abs=0.501 * 10**-digits)


def near(row, accuracy, draws):
    """Two means over 200 draws of the noise, four standard errors apart at most."""
    error = row["accuracy_std"] * (1 / draws + 1 / 200) ** 0.5
    return abs(row["accuracy"] - accuracy) <= 4 * error + 0.0005


def test_breast_cancer_has_the_oracles_digits_and_a_real_certificate(script):
    settings = replace(script.FULL, rewinds=tuple(row[0] for row in ORACLE), draws=50)
    run = script.trained(settings, "cancer")
    rows = list(script.rewound(settings, run, 3))
    for row, (rewind, distance, bound, noise, accuracy) in zip(
        rows, ORACLE, strict=True
    ):
        assert row["rewind"] == rewind
        assert row["distance"] == printed(distance, 10)
        assert row["bound"] == printed(bound, 10)
        assert row["noise_std"] == printed(noise, 8)
        assert near(row, accuracy, settings.draws), row
        exact = rewind == 1
        assert row["status"] == ("exact" if exact else "certified")
        assert row["epsilon"] == (0 if exact else 1)
    half = rows[2]
    assert half["accuracy"] >= 0.96
    assert abs(half["accuracy"] - half["retrained"]) <= 0.01
    assert half["original"] == pytest.approx(0.9718, abs=5e-5)
    assert half["retrained"] == pytest.approx(0.9648, abs=5e-5)


def test_the_committed_table_is_sound_and_of_the_full_preset(script, table):
    names = ["cancer", "cancer, public scaling", "digits, l2 = 0.01", "digits, l2 = 0"]
    assert list(table.case.unique()) == names
    for name, rows in table.groupby("case"):
        assert tuple(rows.rewind) == script.FULL.rewinds
        assert (rows.distance <= rows.bound + 1e-12).all()
        assert set(rows.status[rows.rewind < 1]) == {"certified"}
        assert list(rows.status[rows.rewind == 1]) == ["exact"]
        assert (rows.bound.diff().dropna() < 0).all()
        assert (rows.noise_std.diff().dropna() < 0).all()
        if name.startswith("digits"):  # accuracy rises with what is taken again
            assert (rows.accuracy.diff().dropna() > 0).all()
    cancer = table[table.case == "cancer"].set_index("rewind")
    for rewind, distance, bound, noise, accuracy in ORACLE:
        row = cancer.loc[rewind]
        assert row.distance == printed(distance, 10)
        assert row.bound == printed(bound, 10)
        assert row.noise_std == printed(noise, 8)
        assert near(row, accuracy, script.FULL.draws)
    public = table[table.case == "cancer, public scaling"].set_index("rewind")
    assert public.accuracy[0.5] >= 0.96
    # Bounds of the two cases on digits, from the same script of its own.
    for name, bounds in (
        ("digits, l2 = 0", {0.0: 8.267, 0.5: 4.133, 0.9: 0.8267}),
        ("digits, l2 = 0.01", {0.0: 2.620, 0.5: 0.4751, 0.9: 0.0476}),
    ):
        rows = table[table.case == name].set_index("rewind")
        for rewind, bound in bounds.items():
            assert rows.bound[rewind] == pytest.approx(bound, rel=1e-3)


def test_constants_that_were_published_certify_nothing(script):
    """The paper's own numbers: a noise of 0.01 stands for an epsilon of millions."""
    expected = [
        (136.8, 148.6, 9.4e7),
        (129.7, 140.9, 8.4e7),
        (111.8, 121.4, 6.3e7),
        (40.4, 43.8, 8.2e6),
        (1.05, 1.14, 5.7e3),
    ]
    for row, (bound, noise, epsilon) in zip(script.published(), expected, strict=True):
        assert row["bound"] == pytest.approx(bound, rel=5e-3)
        assert row["noise for epsilon 1"] == pytest.approx(noise, rel=5e-3)
        assert row["epsilon of noise 0.01"] == pytest.approx(epsilon, rel=1e-2)


def test_forgotten_rows_move_retraining_through_the_scaling_alone(script):
    run = script.trained(script.FULL, "cancer")
    moved = script.scaling_moves(run, 3)
    assert moved == pytest.approx(0.010477, abs=1e-6)
