"""What a sweep writes, and what it says of damaged files."""

import json

import pandas as pd
import pytest
from results.made_sweep import make_sweep, per_peer, row

from dfl_unlearn.errors import (
    InputFileError,
    InvalidArgumentError,
    StoreCorruptError,
    UnsupportedFormatError,
)
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.lines import encode_line

TABLES = ["table.csv", "table.parquet", "rows.csv", "rows.parquet", "cases.csv"]


def rows(point, seed):
    return [
        *per_peer("test-accuracy", (0.25, 0.75)),
        row("front-time", None, unit="rounds", world="before", note="inf"),
    ]


@pytest.fixture
def root(tmp_path):
    return make_sweep(tmp_path / "made", {"training.rounds": [5, 10]}, rows)


def test_tables_are_copies_that_can_be_deleted_and_have_equal_bytes(root):
    paths = SweepView.open(root).write_tables()
    assert [p.name for p in paths] == TABLES
    first = {p.name: p.read_bytes() for p in paths}
    for path in paths:
        path.unlink()
    SweepView.open(root).write_tables()
    assert {p.name: p.read_bytes() for p in paths} == first
    assert sorted(p.name for p in root.iterdir()) == sorted(
        [*TABLES, "cases", "sweep.json"]
    )


def test_tables_say_what_the_view_says(root):
    view = SweepView.open(root)
    view.write_tables()
    summary = pd.read_parquet(root / "table.parquet")
    pd.testing.assert_frame_equal(summary, view.summary())
    pd.testing.assert_frame_equal(pd.read_parquet(root / "rows.parquet"), view.frame)
    read = pd.read_csv(root / "table.csv", keep_default_na=False, na_values=["nan"])
    pd.testing.assert_frame_equal(
        read.set_index(["metric", "training.rounds"])[["mean", "spread", "count"]],
        summary.set_index(["metric", "training.rounds"])[["mean", "spread", "count"]],
        check_exact=True,
        check_index_type=False,
    )
    cases = pd.read_csv(root / "cases.csv")
    assert list(cases["case"]) == [case.name for case in view.cases]


def test_csv_has_words_for_what_is_not_finite_and_runs_no_formula(tmp_path):
    axes = {"=cmd()": ["=1+1", "plain\x1b"]}
    root = make_sweep(tmp_path / "made", axes, rows, seeds=(0,))
    SweepView.open(root).write_tables()
    lines = (root / "rows.csv").read_text().splitlines()
    assert lines[0].startswith("sweep,'=cmd(),case,")
    assert lines[1].startswith("made,'=1+1,")
    assert ",front-time,inf,rounds," in lines[4]
    assert "made,plain," in lines[5]
    assert "," + "nan," in (root / "table.csv").read_text()


def test_an_axis_with_numbers_and_words_is_written_as_words(tmp_path):
    axes = {"topology.seed": [1, "none", 2.5]}
    root = make_sweep(tmp_path / "made", axes, rows, seeds=(0,))
    view = SweepView.open(root)
    view.write_tables()
    cases = pd.read_parquet(root / "rows.parquet")["topology.seed"].unique()
    assert list(cases) == ["1", "none", "2.5"]
    assert list(view.summary()["topology.seed"].unique()) == [1, "none", 2.5]


def test_a_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"must be a sweep folder.*dfl-unlearn"):
        SweepView.open(tmp_path)


def test_another_format_is_refused(root):
    change(root, format=2)
    with pytest.raises(UnsupportedFormatError, match="must have the format 1, got 2"):
        SweepView.open(root)


def change(root, **values):
    plan = json.loads((root / "sweep.json").read_text())
    (root / "sweep.json").write_text(json.dumps(plan | values))


@pytest.mark.parametrize(
    "values",
    [
        {"name": 3},
        {"axes": ["training.rounds"]},
        {"axes": {}},
        {"seeds": [0, -1]},
        {"seeds": [True]},
        {"base": []},
        {"cases": {}},
        {"cases": [{"case": "a"}]},
        {"cases": [{"case": "../a", "point": {"training.rounds": 1}, "seed": 0}]},
        {"cases": [{"case": "a", "point": {}, "seed": 0}]},
        {"cases": [{"case": "a", "point": {"training.rounds": 1}, "seed": "0"}]},
        {"cases": [{"case": "a", "point": {"training.rounds": 1}, "seed": 0}] * 2},
    ],
    ids=str,
)
def test_a_damaged_plan_is_named(root, values):
    change(root, **values)
    with pytest.raises(StoreCorruptError, match=r"sweep\.json"):
        SweepView.open(root)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"format": 1}'])
def test_a_plan_that_is_no_plan_is_named(root, text):
    (root / "sweep.json").write_bytes(text)
    with pytest.raises(StoreCorruptError, match=r"sweep\.json"):
        SweepView.open(root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"format":1,"digest":1,"seconds":1,"refused":[]}',
        '{"format":1,"digest":"a","seconds":-1,"refused":[]}',
        '{"format":1,"digest":"a","seconds":"1","refused":[]}',
        '{"format":1,"digest":"a","seconds":1,"refused":[{"request":"r0"}]}',
    ],
)
def test_a_damaged_case_is_named(root, text):
    place = SweepView.open(root).cases[2].folder / "case.json"
    place.write_text(text)
    with pytest.raises(StoreCorruptError, match=rf"{place.parent.name}/case\.json"):
        SweepView.open(root)


def test_a_damaged_failure_is_named(root):
    line = encode_line("", {"case": "x", "error": "e", "message": "m", "seconds": 1})
    (root / "failures.jsonl").write_bytes(line.replace(b"e", b"f", 1) + line)
    with pytest.raises(StoreCorruptError, match=r"failures\.jsonl: line 1"):
        SweepView.open(root)
    (root / "failures.jsonl").write_bytes(encode_line("", {"case": "x"}))
    with pytest.raises(StoreCorruptError, match=r"failures\.jsonl"):
        SweepView.open(root)


@pytest.mark.parametrize("how", ["changed", "cut", "blank"])
def test_a_damaged_row_of_a_complete_case_is_named_with_the_remedy(root, how):
    place = SweepView.open(root).cases[1].folder / "results.jsonl"
    data = place.read_bytes()
    damaged = {
        "changed": data.replace(b"0.25", b"0.75"),
        "cut": data[:-4],
        "blank": data + b"\n",
    }
    place.write_bytes(damaged[how])
    with pytest.raises(StoreCorruptError, match=r"results\.jsonl: line \d.*run the"):
        SweepView.open(root).summary()


@pytest.mark.parametrize(
    "change",
    [
        {"value": "0.5"},
        {"value": True},
        {"peer": 1.0},
        {"world": "later"},
        {"unit": None},
    ],
    ids=str,
)
def test_a_row_of_other_kinds_is_named(tmp_path, change):
    root = make_sweep(
        tmp_path / "made",
        {"training.rounds": [5]},
        lambda point, seed: [row("cost-rounds", 1.0) | change],
    )
    with pytest.raises(StoreCorruptError, match=r"results\.jsonl"):
        SweepView.open(root).summary()


def test_a_row_that_is_there_twice_is_named(tmp_path):
    root = make_sweep(
        tmp_path / "made",
        {"training.rounds": [5]},
        lambda point, seed: [row("cost-rounds", 1.0)] * 2,
    )
    with pytest.raises(StoreCorruptError, match="got two with case"):
        SweepView.open(root).summary()


def test_an_axis_may_not_be_called_as_a_column_is(tmp_path):
    root = make_sweep(tmp_path / "made", {"seed": [1]}, rows, seeds=(0,))
    with pytest.raises(InvalidArgumentError, match="give several seeds"):
        SweepView.open(root).summary()


def test_a_complete_case_without_its_rows_is_named_with_the_remedy(root):
    case = SweepView.open(root).cases[0]
    (case.folder / "results.jsonl").unlink()
    with pytest.raises(StoreCorruptError, match=f"remove the folder {case.name} and"):
        _ = SweepView.open(root).table


def test_damaged_failures_name_a_remedy_that_is_a_sweeps(root):
    (root / "failures.jsonl").write_text("damaged\nand more\n")
    with pytest.raises(StoreCorruptError, match="delete it, and the cases that failed"):
        SweepView.open(root)
