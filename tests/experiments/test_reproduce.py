"""The reproductions run, go on where they were, and say what does not hold."""

import importlib
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "reproduce"
SHARED = {path.stem for path in FOLDER.glob("*.py")} | {"settings", "privacy_utility"}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Imports a module of the folder; the working directory is empty."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module
    for name in SHARED:
        sys.modules.pop(name, None)


@dataclass(frozen=True, kw_only=True)
class Case:
    seed: int


def refuse(case):
    raise AssertionError(f"computed again: {case}")


@pytest.fixture
def ran_once(script, monkeypatch, capsys):
    """Runs a QUICK preset twice; the second time nothing is computed."""

    def run(name, tables, cases):
        module = script(name)
        module.main(["--preset", "quick"])
        first = capsys.readouterr().out
        folder = Path("runs") / name
        before = {table: (folder / table).read_bytes() for table in tables}
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert len(list((folder / "cases").iterdir())) == cases
        assert "what must hold:\n" in first
        monkeypatch.setattr(module, "rows_of", refuse)
        module.main(["--preset", "quick"])
        assert capsys.readouterr().out == first
        assert {table: (folder / table).read_bytes() for table in tables} == before
        with pytest.raises(AssertionError, match="computed again"):
            module.main(["--preset", "quick", "seeds=[1]"])
        return before

    return run


def test_the_backdoor_table_is_made_once_and_says_what_is_claimed(ran_once):
    written = ran_once("lamri2026", ("table.csv", "summary.csv", "summary.md"), cases=2)
    table = pd.read_csv(BytesIO(written["table.csv"])).set_index(["arm", "method"])
    status = table.status
    assert set(status[:, "retrain"]) == {"exact"}
    # A network has no certificate; the convex model has those that can be proven.
    assert set(status["mlp"]) == {"none", "exact", "heuristic", "certified"}
    assert status["logistic", "rr-du, noised start"] == "certified"
    assert status["logistic", "newton-fisher, exact"] == "certified"
    assert status["logistic", "rr-du, published"] == "heuristic"
    # Noise for one row is not a claim at epsilon 1 about all of them.
    epsilon = table.epsilon["mlp"]
    assert epsilon["dp-gossip, all rows"] <= 1
    assert epsilon["dp-gossip, one row"] > 10
    assert table.epsilon[table.status == "heuristic"].isna().all()
    attack = table.attack
    for arm in ("mlp", "logistic"):
        assert attack[arm, "retrain"] < attack[arm, "original"] - 0.2
    found = table[table.status != "refused"]
    assert (found.attack_worst >= found.attack - 1e-5).all()
    assert (found.accuracy_worst <= found.accuracy + 1e-5).all()


def test_the_removal_table_is_made_once_and_measures_against_retraining(ran_once):
    written = ran_once("wu2026", ("removal.csv", "slopes.csv"), cases=3)
    table = pd.read_csv(BytesIO(written["removal.csv"]))
    assert set(table.request) == {"samples", "class", "peer"}
    by_method = table.set_index(["model", "request", "method"]).sort_index()
    for key, row in by_method[by_method.status == "exact"].iterrows():
        assert key[2] == "retrain"
        assert row.distance == 0
        assert row.accuracy == row.retrained_accuracy
        assert row.gradients_share == row.bytes_share == 1
    claimed = by_method.loc["logistic", "samples"]
    for method in ("certified per peer", "certified, cap 0.001"):
        assert claimed.status[method] == "certified"
        # What the certificate is about: the exact minimizer of what is kept.
        assert claimed.to_minimizer[method] < 0.2 * claimed.to_minimizer["original"]
    small, large = (claimed.noise_std[f"certified, cap {c}"] for c in ("0.001", "0.01"))
    assert large == pytest.approx(10 * small, rel=1e-4)
    assert set(table[table.method == "published"].status) == {"heuristic"}


def test_a_case_that_fails_leaves_nothing_and_others_stay(script, tmp_path):
    cases = script("cases")

    def some(case):
        yield {"value": case.seed}
        if case.seed == 1:
            raise RuntimeError("stopped")

    asked = [Case(seed=0), Case(seed=1)]
    with pytest.raises(RuntimeError, match="stopped"):
        list(cases.run_cases(asked, some, tmp_path, workers=1))
    assert len(list((tmp_path / "cases").iterdir())) == 1
    assert cases.rows_of(asked[0], refuse, tmp_path) == [{"value": 0}]


def test_numbers_that_are_none_are_refused_not_kept(script, tmp_path):
    cases = script("cases")
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(
            cases.run_cases(
                [Case(seed=0)], lambda case: [{"value": np.nan}], tmp_path, workers=1
            )
        )
    assert not list((tmp_path / "cases").iterdir())


def test_a_case_is_named_by_all_that_changes_it(script, monkeypatch):
    cases = script("cases")
    first = cases.digest(Case(seed=0))
    assert first == cases.digest(Case(seed=0))
    assert first != cases.digest(Case(seed=1))
    monkeypatch.setattr(cases, "FORMAT", cases.FORMAT + 1)
    assert first != cases.digest(Case(seed=0))


@pytest.mark.slow
def test_workers_do_not_change_rows(script, tmp_path):
    cases, slopes = script("cases"), script("wu_slopes")
    asked = [
        slopes.SlopeCase(name="gaussian", peers=4, rows=200, l2=0.1, seed=seed)
        for seed in (0, 1)
    ]
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        rows = dict(cases.run_cases(asked, slopes.errors, folder, workers))
        found.append([rows[case] for case in asked])
    assert found[0] == found[1]


METHODS = {
    "original": (0.95, 0.99),
    "retrain": (0.0, 0.99),
    "rr-du, published": (0.01, 0.985),
    "fine-tune": (0.2, 0.99),
    "dp-gossip, all rows": (0.3, 0.9),
}


def backdoor(**changed):
    rows = [
        {
            "arm": "small-cnn",
            "seed": seed,
            "method": method,
            "status": "none",
            "epsilon": None,
            "attack": attack,
            "attack_worst": attack + 0.01 * seed,
            "accuracy": accuracy,
            "accuracy_worst": accuracy - 0.01 * seed,
            "gradients": 50 if method == "fine-tune" else 100,
            "bytes": 1e6,
            "seconds": 1.0,
        }
        for seed in (0, 1)
        for method, (attack, accuracy) in {**METHODS, **changed}.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({}, set()),
        ({"original": (0.5, 0.99)}, {"the attack works first"}),
        (
            {"rr-du, published": (0.5, 0.9)},
            {
                "published RR-DU is within 5 points of retraining's attack",
                "published RR-DU is within a point of retraining's accuracy",
                "fine-tuning leaves more of the attack than published RR-DU",
                "privacy for all rows costs more accuracy than published RR-DU",
            },
        ),
    ],
)
def test_orderings_that_break_are_named(script, changed, broken):
    table = script("backdoor_table")
    lines = list(table.shape(backdoor(**changed)))
    assert len(lines) == 7
    failed = {line for line in lines if line.startswith("DOES NOT HOLD")}
    said = {line.split("small-cnn")[1].rsplit("(")[0].strip() for line in failed}
    assert said == broken


def test_the_summary_has_the_worst_peer_and_the_papers_numbers(script):
    shown = script("backdoor_table").summary(backdoor()).set_index("method")
    assert shown["worst attack"]["fine-tune"] == pytest.approx(21)
    assert shown["worst accuracy"]["retrain"] == pytest.approx(98)
    assert shown["paper's attack"]["fine-tune"] == 18
    assert shown["gradients, % of retrain"]["fine-tune"] == pytest.approx(50)
    page = script("backdoor_table").markdown(backdoor())
    assert "| `fine-tune` | none | 20.0 ± 0.0 (18) | 99.0 ± 0.0 (99) | 50.0 |" in page
    assert "- holds          small-cnn  the attack works first (95.0)" in page


def measured(power):
    shift = np.array([0.001, 0.01, 0.1])
    return pd.DataFrame(
        {
            "problem": "made",
            "seed": 0,
            "order": "random",
            "curvature": "exact",
            "share": shift**2,
            "shift": shift,
            "error": 3 * shift**power,
        }
    )


def test_slopes_are_those_of_a_power_law(script):
    slopes = script("wu_slopes")
    (row,) = slopes.slopes(measured(2)).to_dict("records")
    assert row["slope in shift, mean"] == pytest.approx(2)
    assert row["slope in share, mean"] == pytest.approx(1)
    said = [line.split("  ")[0] for line in slopes.slope_shape(measured(2))]
    assert said == ["DOES NOT HOLD", "holds"]
    said = [line.split("  ")[0] for line in slopes.slope_shape(measured(1))]
    assert said == ["DOES NOT HOLD", "DOES NOT HOLD"]


def test_one_step_is_exact_to_second_order_only_with_the_exact_curvature(script):
    slopes = script("wu_slopes")
    case = slopes.SlopeCase(name="gaussian", peers=4, rows=400, l2=0.1)
    rows = pd.DataFrame(list(slopes.errors(case)))
    found = slopes.slopes(rows).set_index(["order", "curvature"])[
        "slope in shift, mean"
    ]
    assert found["alike", "exact"] > 1.6
    assert 0.7 < found["alike", "diagonal"] < 1.4
    large = rows[rows.share == 0.5].set_index(["order", "curvature"])
    for order in slopes.ORDERS:
        exact, wrong = (large.error[order, c] for c in ("exact", "diagonal"))
        assert exact < 0.1 * wrong < 0.1 * large["shift"][order, "exact"] * 3
