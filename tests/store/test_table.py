import csv
import math
import subprocess
import sys

import pytest

from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    StoreWriteError,
)
from dfl_unlearn.store.table import COLUMNS, ResultsTable


def row(**changes):
    return {
        "case": "",
        "world": "after",
        "protocol": "newton-fisher",
        "request": "r0",
        "round": 200,
        "peer": -1,
        "hop": -1,
        "set": "test",
        "metric": "test-accuracy",
        "value": 0.5,
        "unit": "fraction",
        "seed": 0,
    } | changes


def measured(metric, values, *, mean=True, **changes):
    """Rows of one metric: values per world, one per peer, and the network's mean."""
    rows = []
    for world, peers in values.items():
        about = {"metric": metric, "world": world} | changes
        rows.append(row(value=sum(peers) / len(peers), **about))
        rows += [row(peer=i, hop=i, value=v, **about) for i, v in enumerate(peers)]
    return rows


def table(*rows):
    return ResultsTable(rows=rows)


def line(text, metric):
    """The cells of a metric's line in the printed table."""
    (found,) = (part for part in text.splitlines() if part.startswith(metric))
    return [cell.strip() for cell in found.split("  ") if cell.strip()]


def test_rows_are_counted_and_kept_in_order():
    t = table(row(value=1.0), row(value=2.0))
    assert len(t) == 2
    assert [r["value"] for r in t.rows] == [1.0, 2.0]


def test_a_table_does_not_share_its_rows_with_the_caller():
    given = row()
    t = table(given)
    given["value"] = 9.0
    assert t.rows[0]["value"] == 0.5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"note": "x"}, InvalidArgumentError, "note"),
        ({"peer": 1.5}, InvalidTypeError, r"peer.*1\.5"),
        ({"metric": 3}, InvalidTypeError, "metric.*3"),
        ({"world": "later"}, InvalidArgumentError, "later"),
        ({"value": "0.5"}, InvalidTypeError, "value.*'0.5'"),
    ],
)
def test_a_row_of_the_wrong_form_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        table(row(**changes))


def test_a_missing_column_is_named():
    short = row()
    del short["hop"]
    with pytest.raises(InvalidArgumentError, match="hop"):
        table(short)


def test_frame_has_the_columns_and_types_of_the_contract():
    frame = table(row(value=None), row(peer=3)).frame
    assert tuple(frame.columns) == COLUMNS
    assert frame["value"].dtype == "float64"
    assert frame["peer"].dtype == "int64"
    assert math.isnan(frame["value"][0])


def test_an_empty_table_has_a_frame_with_the_same_columns_and_types():
    frame = ResultsTable().frame
    assert tuple(frame.columns) == COLUMNS
    assert (frame.dtypes == table(row()).frame.dtypes).all()


def test_creating_filtering_and_printing_a_table_loads_no_pandas():
    code = (
        "import sys\n"
        "from dfl_unlearn.store.table import ResultsTable\n"
        "str(ResultsTable().filter(world='after'))\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_filter_takes_a_value_or_several():
    t = table(*(row(peer=i, hop=i) for i in range(4)))
    assert [r["peer"] for r in t.filter(peer=2).rows] == [2]
    assert [r["peer"] for r in t.filter(peer=[0, 3], world="after").rows] == [0, 3]
    assert len(t.filter(world="before")) == 0


def test_filter_refuses_an_unknown_column_by_name():
    with pytest.raises(InvalidArgumentError, match="colour"):
        table(row()).filter(colour="red")


def test_pivot_reads_network_rows_unless_peers_or_hops_are_asked_for():
    t = table(*measured("test-accuracy", {"before": [0.0, 0.5], "after": [0.5, 1.0]}))
    wide = t.pivot("metric", "world")
    assert wide.loc["test-accuracy", "before"] == 0.25
    assert wide.loc["test-accuracy", "after"] == 0.75
    by_hop = t.pivot(["metric", "hop"], "world")
    assert by_hop.loc[("test-accuracy", 1), "after"] == 1.0
    assert len(by_hop) == 2


def test_pivot_averages_what_falls_into_one_cell():
    t = table(row(seed=0, value=0.0), row(seed=1, value=1.0))
    assert t.pivot("metric", "world").loc["test-accuracy", "after"] == 0.5


def test_concat_joins_tables_in_order():
    joined = ResultsTable.concat([table(row(case="a")), table(row(case="b"))])
    assert [r["case"] for r in joined.rows] == ["a", "b"]


def test_csv_gives_back_every_value_exactly(tmp_path):
    values = [1 / 3, 1e-300, -0.0, math.nan, math.inf]
    path = table(*(row(value=v) for v in values)).to_csv(tmp_path / "t.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert list(map(repr, map(float, (r["value"] for r in read)))) == [
        repr(v) for v in values
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_csv_defuses_texts_that_a_spreadsheet_would_run(tmp_path, start):
    path = table(row(case=f"{start}cmd|' /C calc'!A0", value=-1.5)).to_csv(
        tmp_path / "t.csv"
    )
    with path.open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert read["case"].startswith(f"'{start}cmd")
    assert read["value"] == "-1.5"
    assert read["peer"] == "-1"


def test_csv_replaces_a_file_and_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    table(row()).to_csv(path)
    assert path.read_text().startswith("case,world")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_folder_that_does_not_exist_is_a_store_error(tmp_path):
    with pytest.raises(StoreWriteError, match="nowhere"):
        table(row()).to_csv(tmp_path / "nowhere" / "t.csv")


def test_parquet_gives_back_the_frame(tmp_path):
    import pandas as pd

    t = table(row(case="=1+1"), row(value=None, peer=2, hop=1))
    read = pd.read_parquet(t.to_parquet(tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(read, t.frame)


def test_the_text_shows_the_worlds_the_worst_peer_and_the_spread():
    t = table(
        *measured(
            "test-accuracy",
            {"before": [0.9, 0.8], "after": [0.9, 0.7], "reference": [0.8, 0.8]},
        )
    )
    text = str(t)
    assert "newton-fisher, request r0, seed 0" in text
    assert line(text, "test-accuracy") == [
        "test-accuracy",
        "test",
        "0.8500",
        "0.8000",
        "0.8000",
        "0.7000 (peer 1)",
        "0.1000",
        "fraction",
    ]


def test_columns_of_the_text_are_aligned():
    t = table(
        *measured("a", {"after": [0.5, 0.25]}),
        *measured("a-longer-name", {"after": [0.5, 0.25]}),
    )
    _, header, *lines = str(t).splitlines()
    end = header.index("after") + len("after")
    assert [text[end - 6 : end] for text in lines] == ["0.3750", "0.3750"]


def test_the_worst_peer_of_a_distance_is_the_farthest():
    t = table(*measured("parameter-distance", {"after": [0.1, 0.3]}, unit="", set=""))
    (summary,) = t.summary()
    assert (summary.worst, summary.worst_peer) == (0.3, 1)


def test_the_worst_peer_on_the_forget_set_is_farthest_from_its_retrained_self():
    values = {"after": [0.5, 0.1], "reference": [0.45, 0.9]}
    (summary,) = table(*measured("forget-accuracy", values, set="forget")).summary()
    assert (summary.worst, summary.worst_peer) == (0.1, 1)
    alone = {"after": [0.5, 0.1]}
    (summary,) = table(*measured("forget-accuracy", alone, set="forget")).summary()
    assert (summary.worst, summary.worst_peer) == (0.5, 0)


def test_an_attack_is_never_shown_without_the_reference():
    values = {"before": [0.71, 0.72], "after": [0.61, 0.62]}
    t = table(*measured("mia-loss-auc", values, set="forget"))
    assert line(str(t), "mia-loss-auc")[2:] == [*"-----", "fraction; no reference"]
    for shown in (str(t), t._repr_html_()):
        assert "no reference" in shown
        assert "0.6" not in shown
        assert "0.7" not in shown
    full = table(
        *measured("mia-loss-auc", values | {"reference": [0.5, 0.5]}, set="forget")
    )
    assert line(str(full), "mia-loss-auc")[2:5] == ["0.7150", "0.6150", "0.5000"]


def test_counts_are_shown_whole_and_missing_values_as_a_dash():
    t = table(
        row(metric="cost-payload-bytes", unit="bytes", set="", value=1234567.0),
        row(metric="epsilon-spent", unit="", set="", value=None),
    )
    assert line(str(t), "cost-payload-bytes")[2] == "1,234,567"
    assert line(str(t), "epsilon-spent")[1:] == [*"-----"]


def test_every_protocol_gets_its_own_block():
    t = table(row(protocol="retrain"), row(protocol="fine-tune"))
    assert str(t).count("test-accuracy") == 2
    assert "retrain, request r0" in str(t)
    assert "fine-tune, request r0" in str(t)


def test_an_empty_table_says_so():
    assert str(ResultsTable()) == "no results"


def test_html_escapes_names():
    page = table(row(case="<script>alert(1)</script>"))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
