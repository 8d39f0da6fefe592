"""Several sweep folders as one."""

import json
import math

import pytest
from results.made_sweep import complete, make_sweep, row

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.results.sweep import SweepView

BASE = {"seed": 0, "training": {"rounds": 10, "seed": 0}, "topology": {"n": 8}}


def value(point, seed):
    return [row("test-accuracy", 0.1 * seed)]


def test_axes_are_united_and_an_absent_one_has_the_value_of_the_base(tmp_path):
    one = make_sweep(tmp_path / "one", {"training.rounds": [5, 10]}, value, name="one")
    two = make_sweep(
        tmp_path / "two",
        {"topology.n": [4]},
        value,
        name="two",
        config=lambda p, s: {"training": {"rounds": 20}},
    )
    view = SweepView.join([one, two])
    summary = view.summary()
    assert view.axes == ("training.rounds", "topology.n")
    # the first sweep's cases run on ring n=4, as their config.json says
    assert list(summary["training.rounds"]) == [5, 10, 20]
    assert list(summary["topology.n"]) == [4, 4, 4]
    assert list(summary["sweep"]) == ["one", "one", "two"]
    assert list(summary["count"]) == [3, 3, 3]
    assert len(view.case_frame) == 9


def test_an_axis_that_no_base_says_is_empty(tmp_path):
    one = make_sweep(tmp_path / "one", {"training.rounds": [5]}, value)
    two = make_sweep(tmp_path / "two", {"model.l2": [0.5]}, value, name="two")
    summary = SweepView.join([one, two]).summary()
    assert math.isnan(summary["model.l2"][0])
    assert summary["model.l2"][1] == 0.5


def test_more_seeds_of_a_point_may_lie_in_another_folder(tmp_path):
    axes = {"training.rounds": [5, 10]}
    one = make_sweep(tmp_path / "one", axes, value, (0, 1), "one", BASE)
    more = BASE | {"seed": 7, "training": {"rounds": 99, "seed": 7}, "name": "other"}
    two = make_sweep(tmp_path / "two", axes, value, (7, 8), "two", more)
    summary = SweepView.join([one, two]).summary()
    assert list(summary["count"]) == list(summary["asked"]) == [4, 4]
    assert summary["mean"][0] == pytest.approx(0.1 * (0 + 1 + 7 + 8) / 4)
    assert set(summary["sweep"]) == {"one + two"}


def test_points_of_sweeps_with_other_bases_are_kept_apart(tmp_path):
    axes = {"training.rounds": [5]}
    one = make_sweep(tmp_path / "one", axes, value, (0, 1), "one", BASE)
    other = BASE | {"model": {"use": "mlp"}}
    two = make_sweep(tmp_path / "two", axes, value, (0, 1), "two", other)
    summary = SweepView.join([one, two]).summary()
    assert list(summary["sweep"]) == ["one", "two"]
    assert list(summary["count"]) == [2, 2]


def test_a_case_in_two_folders_counts_once_the_complete_one(tmp_path):
    axes = {"training.rounds": [5, 10]}
    one = make_sweep(tmp_path / "one", axes, value, (0, 1), "a", BASE)
    two = make_sweep(tmp_path / "two", axes, value, (0, 1, 2), "b", BASE)
    first = SweepView.open(one).cases[0]
    (first.folder / "case.json").unlink()
    view = SweepView.join([one, two, one])
    assert len(view.cases) == 6
    assert list(view.summary()["count"]) == [3, 3]
    taken = next(case for case in view.cases if case.name == first.name)
    assert (taken.status, taken.sweep) == ("done", "b")


def test_one_case_with_two_results_is_refused(tmp_path):
    axes = {"training.rounds": [5]}
    folders = [
        make_sweep(tmp_path / name, axes, value, (0,), name, BASE) for name in "ab"
    ]
    complete(SweepView.open(folders[1]).cases[0].folder, digest="f" * 64)
    with pytest.raises(InvalidArgumentError, match=r"must have one result.*ffffffffff"):
        SweepView.join(folders)


def test_two_cases_with_one_point_and_seed_are_refused(tmp_path):
    folders = [
        make_sweep(tmp_path / name, {"training.rounds": [5]}, value, (0, 1), name, BASE)
        for name in "ab"
    ]
    plan = json.loads((folders[1] / "sweep.json").read_text())
    for entry in plan["cases"]:
        new = "ff" + entry["case"][2:]
        (folders[1] / "cases" / entry["case"]).rename(folders[1] / "cases" / new)
        entry["case"] = new
    (folders[1] / "sweep.json").write_text(json.dumps(plan))
    with pytest.raises(InvalidArgumentError, match="seed 0 on the same values"):
        SweepView.join(folders)


def test_sweeps_of_one_name_get_numbers(tmp_path):
    folders = [
        make_sweep(tmp_path / f"{k}", {"training.rounds": [k]}, value) for k in (1, 2)
    ]
    view = SweepView.join(folders)
    assert view.name == "made + made (2)"
    assert list(view.summary()["sweep"]) == ["made", "made (2)"]


def test_joined_tables_need_a_place(tmp_path):
    folders = [
        make_sweep(tmp_path / f"{k}", {"training.rounds": [k]}, value) for k in (1, 2)
    ]
    view = SweepView.join(folders)
    with pytest.raises(InvalidArgumentError, match="give the folder to write to"):
        view.write_tables()
    paths = view.write_tables(tmp_path / "both")
    assert paths[0] == tmp_path / "both" / "table.csv"
    assert not list(tmp_path.glob("[12]/*.csv"))


@pytest.mark.parametrize("given", ["runs/a", []])
def test_what_is_joined_is_a_list(given):
    with pytest.raises(InvalidArgumentError, match="must be a list of sweep folders"):
        SweepView.join(given)
