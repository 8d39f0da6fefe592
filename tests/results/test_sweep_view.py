"""A sweep's summary by hand, its cases' statuses, and what protocols are called."""

import json
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from results.handmade import certificate
from results.made_sweep import claimed, complete, make_case, make_sweep, per_peer, row

from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.lines import encode_line
from dfl_unlearn.store.table import ResultsTable

EPSILONS = [0.5, 2.0]
# Test accuracy of two peers, by epsilon and seed.
PEERS = {
    (0.5, 0): (0.5, 0.7),
    (0.5, 1): (0.8, 0.9),
    (0.5, 2): (0.6, 0.6),
    (2.0, 0): (0.9, 1.0),
    (2.0, 1): (0.7, 0.9),
    (2.0, 2): (0.8, 1.0),
}


def accuracies(point, seed):
    return per_peer("test-accuracy", PEERS[point["unlearning.0.epsilon"], seed])


def only(summary, **columns):
    """The one line with these values."""
    for column, value in columns.items():
        summary = summary[summary[column] == value]
    assert len(summary) == 1
    return summary.iloc[0]


@pytest.fixture
def root(tmp_path):
    axes = {"unlearning.0.epsilon": EPSILONS}
    return make_sweep(tmp_path / "made", axes, accuracies)


def folder_of(root, epsilon, seed):
    view = SweepView.open(root)
    return next(
        case.folder
        for case in view.cases
        if (case.point["unlearning.0.epsilon"], case.seed) == (epsilon, seed)
    )


def test_mean_spread_and_count_are_those_of_the_seeds(root):
    summary = SweepView.open(root).summary()
    line = only(summary, **{"unlearning.0.epsilon": 0.5})
    networks = [0.6, 0.85, 0.6]
    assert line["mean"] == pytest.approx(statistics.mean(networks), rel=1e-12)
    assert line["spread"] == pytest.approx(statistics.stdev(networks), rel=1e-12)
    assert (line["count"], line["asked"], line["how"]) == (3, 3, "mean")
    assert line["worst"] == pytest.approx(0.6)
    assert line["peer_spread"] == pytest.approx((0.1 + 0.05 + 0.0) / 3)
    assert line["peer_worst"] == 0.5
    other = only(summary, **{"unlearning.0.epsilon": 2.0})
    assert other["mean"] == pytest.approx((0.95 + 0.8 + 0.9) / 3, rel=1e-12)


def test_a_seed_that_failed_lowers_the_count_and_is_asked_for_all_the_same(root):
    (folder_of(root, 0.5, 1) / "case.json").unlink()
    summary = SweepView.open(root).summary()
    line = only(summary, **{"unlearning.0.epsilon": 0.5})
    assert (line["count"], line["asked"]) == (2, 3)
    assert line["mean"] == pytest.approx(0.6)
    assert only(summary, **{"unlearning.0.epsilon": 2.0})["count"] == 3
    (folder_of(root, 0.5, 2) / "case.json").unlink()
    line = only(SweepView.open(root).summary(), **{"unlearning.0.epsilon": 0.5})
    assert line["count"] == 1
    assert math.isnan(line["spread"])


def test_a_case_is_done_failed_partial_or_missing(root):
    failed, again, partial, missing = (
        folder_of(root, *key) for key in [(0.5, 0), (0.5, 1), (2.0, 0), (2.0, 1)]
    )
    lines = [
        encode_line(
            "failures.jsonl",
            {
                "case": folder.name,
                "point": {},
                "seed": 0,
                "error": "ConfigError",
                "message": f"number {k}",
                "exit_code": 2,
                "seconds": 1.5,
            },
        )
        for k, folder in enumerate([failed, failed, again])
    ]
    (root / "failures.jsonl").write_bytes(b"".join(lines))
    for folder in (failed, partial, missing):
        (folder / "case.json").unlink()
    for path in sorted(missing.rglob("*"), reverse=True):
        path.unlink()
    missing.rmdir()
    frame = SweepView.open(root).case_frame.set_index("case")
    status = frame["status"]
    assert status[failed.name] == "failed"
    assert frame["error"][failed.name] == "ConfigError: number 1"
    assert frame["seconds"][failed.name] == 1.5
    assert status[again.name] == "done"
    assert frame["error"][again.name] == ""
    assert status[partial.name] == "partial"
    assert status[missing.name] == "missing"
    assert math.isnan(frame["seconds"][missing.name])
    assert (status == "done").sum() == 3


def test_a_sweep_without_a_complete_case_has_empty_tables(root):
    for place in root.glob("cases/*/case.json"):
        place.unlink()
    view = SweepView.open(root)
    assert len(view.table) == len(view.frame) == len(view.summary()) == 0
    assert list(view.case_frame["status"]) == ["partial"] * 6
    view.write_tables()


def test_one_seed_says_what_the_table_of_its_run_says(tmp_path):
    draw = np.random.default_rng(0)

    def rows(point, seed):
        kinds = [
            ("test-accuracy", "test", "fraction"),
            ("forget-accuracy", "forget", "fraction"),
            ("mia-loss-auc", "forget", "fraction"),
            ("prediction-kl", "test", "nats"),
        ]
        found = []
        for name, over, unit in kinds:
            for world in ("before", "after", "reference"):
                if name == "prediction-kl" and world == "reference":
                    continue
                more = {"set": over, "unit": unit, "world": world}
                found += per_peer(name, draw.uniform(size=5).tolist(), **more)
        return found

    root = make_sweep(tmp_path / "one", {"training.rounds": [10]}, rows, seeds=(0,))
    view = SweepView.open(root)
    summary = view.summary()
    for wanted in view.table.summary():
        line = only(summary, metric=wanted.metric, world="after")
        assert line["mean"] == wanted.after
        assert line["peer_spread"] == pytest.approx(wanted.spread, rel=1e-12)
        assert line["peer_worst"] == wanted.worst
        assert only(summary, metric=wanted.metric, world="before")["mean"] == (
            wanted.before
        )


@pytest.mark.parametrize("after", [0.2, 0.9])
def test_on_the_forget_set_the_worst_seed_is_farthest_from_its_own_retraining(
    tmp_path, after
):
    reference = {0: 0.5, 1: after, 2: 0.5}

    def rows(point, seed):
        value = after if seed else 0.55
        return [
            row("forget-accuracy", v, set="forget", world=world)
            for world, v in (("after", value), ("reference", reference[seed]))
        ]

    root = make_sweep(tmp_path / "made", {"training.rounds": [10]}, rows)
    assert only(SweepView.open(root).summary(), world="after")["worst"] == after


def test_a_value_that_is_not_finite_is_no_value(tmp_path):
    def rows(point, seed):
        value, note = ((3.0, {}), (None, {"note": "inf"}), (None, {"note": "nan"}))[
            seed
        ]
        return [row("front-time", value, unit="rounds", world="before", **note)]

    root = make_sweep(tmp_path / "made", {"training.rounds": [10]}, rows)
    view = SweepView.open(root)
    assert np.array_equal(
        view.frame["value"], [3.0, math.inf, math.nan], equal_nan=True
    )
    line = only(view.summary(), metric="front-time")
    assert (line["mean"], line["count"], line["asked"]) == (3.0, 1, 3)


def test_an_attack_without_the_reference_is_withheld(tmp_path):
    def rows(point, seed):
        found = [row("mia-loss-auc", 0.7 + 0.1 * seed, set="forget")]
        if seed:
            found.append(row("mia-loss-auc", 0.5, set="forget", world="reference"))
        return found

    root = make_sweep(tmp_path / "made", {"training.rounds": [10]}, rows, seeds=(0, 1))
    line = only(SweepView.open(root).summary(), world="after")
    assert (line["count"], line["note"]) == (1, "no reference")
    assert line["mean"] == pytest.approx(0.8)


def test_of_epsilon_the_largest_counts_and_none_without_every_seed(tmp_path):
    def rows(point, seed):
        values = {10: (1.0, 4.0), 20: (1.0, None)}[point["training.rounds"]]
        return [row("epsilon-spent", values[seed])]

    axes = {"training.rounds": [10, 20]}
    root = make_sweep(tmp_path / "made", axes, rows, seeds=(0, 1))
    summary = SweepView.open(root).summary()
    line = only(summary, **{"training.rounds": 10})
    assert (line["mean"], line["how"], line["count"]) == (4.0, "max", 2)
    assert math.isnan(line["spread"])
    line = only(summary, **{"training.rounds": 20})
    assert math.isnan(line["mean"])
    assert line["count"] == 1


def test_the_claim_of_a_point_is_the_least_of_its_seeds(tmp_path):
    form = {"use": "fine-tune"}
    claims = {
        10: [claimed(1.0), claimed(2.0, "certified_conditional")],
        20: [claimed(1.0), claimed(3.0, "heuristic")],
        30: [claimed(1.0), None],
    }
    root = make_sweep(
        tmp_path / "made",
        {"training.rounds": list(claims)},
        lambda point, seed: [
            row("cost-rounds", 1.0, world=world) for world in ("before", "after")
        ],
        seeds=(0, 1),
        attempts=lambda p, seed: [(form, claims[p["training.rounds"]][seed])],
    )
    summary = SweepView.open(root).summary()
    after = summary[summary["world"] == "after"]
    assert list(after["claim"]) == ["certified_conditional", "heuristic", "none"]
    assert list(after["nominal_epsilon"]) == [2.0, 3.0, 1.0]
    assert set(summary.loc[summary["world"] == "before", "claim"]) == {""}


def forms(scope):
    return {"use": "newton-fisher", "scope": scope, "epsilon": 1.0}


def test_a_protocol_that_is_tried_with_two_settings_has_two_names(tmp_path):
    def rows(point, seed):
        return [row("cost-rounds", v, protocol="newton-fisher") for v in (1.0, 2.0)]

    root = make_sweep(
        tmp_path / "made",
        {"training.rounds": [10]},
        rows,
        attempts=lambda p, s: [(forms(x), claimed(1.0)) for x in ("joint", "release")],
    )
    means = SweepView.open(root).summary().set_index("protocol")["mean"]
    assert means.to_dict() == {
        "newton-fisher scope=joint": 1.0,
        "newton-fisher scope=release": 2.0,
    }


def test_a_refused_first_attempt_does_not_give_its_name_to_the_second(tmp_path):
    tried = ["joint", "release"]

    def attempts(point, seed):
        kept = tried[1:] if seed == 1 else tried
        return [(forms(scope), claimed(1.0)) for scope in kept]

    def rows(point, seed):
        values = (2.0,) if seed == 1 else (1.0, 2.0)
        return [row("cost-rounds", v, protocol="newton-fisher") for v in values]

    root = make_sweep(
        tmp_path / "made",
        {"training.rounds": [10]},
        rows,
        seeds=(0, 1),
        attempts=attempts,
        config=lambda p, s: {"unlearning": [forms(scope) for scope in tried]},
    )
    lines = SweepView.open(root).summary().set_index("protocol")
    assert lines.loc["newton-fisher scope=joint", ["mean", "count"]].tolist() == [1, 1]
    assert lines.loc["newton-fisher scope=release", ["mean", "count"]].tolist() == [
        2,
        2,
    ]


def test_a_setting_that_an_axis_varies_is_not_in_the_name(tmp_path):
    def attempts(point, seed):
        first = forms("joint") | {"epsilon": point["unlearning.0.epsilon"]}
        return [(first, claimed(1.0)), (forms("release"), claimed(1.0))]

    root = make_sweep(
        tmp_path / "made",
        {"unlearning.0.epsilon": [0.5, 1.0]},
        lambda p, s: [row("cost-rounds", v, protocol="newton-fisher") for v in (1, 2)],
        attempts=attempts,
    )
    assert set(SweepView.open(root).summary()["protocol"]) == {
        "newton-fisher scope=joint",
        "newton-fisher scope=release",
    }


def test_refusals_of_a_case_are_told(tmp_path):
    refusal = {
        "request": "r0",
        "protocol": "rr-du",
        "error": "RefusedError",
        "message": "too large",
    }
    root = make_sweep(
        tmp_path / "made", {"training.rounds": [10]}, accuracies_of, seeds=(0,)
    )
    folder = SweepView.open(root).cases[0].folder
    complete(folder, refused=[refusal])
    view = SweepView.open(root)
    assert view.cases[0].refused[0].message == "too large"
    assert view.case_frame["refused"][0] == "r0 by rr-du: RefusedError: too large"


def accuracies_of(point, seed):
    return per_peer("test-accuracy", (0.5, 0.7))


def test_rows_carry_the_sweep_the_axes_and_the_replicate_seed(root):
    frame = SweepView.open(root).frame
    assert list(frame.columns[:2]) == ["sweep", "unlearning.0.epsilon"]
    assert len(frame) == 6 * 3
    assert set(frame["seed"]) == {0, 1, 2}
    assert set(frame["sweep"]) == {"made"}
    peers = frame[frame["peer"] >= 0]
    for (epsilon, seed), own in peers.groupby(["unlearning.0.epsilon", "seed"]):
        assert tuple(own["value"]) == PEERS[epsilon, seed]


def test_the_table_has_the_rows_of_the_frame(root):
    view = SweepView.open(root)
    assert isinstance(view.table, ResultsTable)
    columns = list(view.table.frame.columns)
    pd.testing.assert_frame_equal(view.table.frame, view.frame[columns])


def test_axes_that_are_tables_and_lists_become_cells(tmp_path):
    axes = {"topology": [{"use": "ring", "n": 4}, {"use": "torus", "n": 9}]}
    root = make_sweep(tmp_path / "made", axes, accuracies_of)
    summary = SweepView.open(root).summary()
    assert list(summary["topology"]) == ["ring n=4", "torus n=9"]
    assert list(summary["count"]) == [3, 3]


def test_networks_name_their_family_and_size(tmp_path):
    def config(point, seed):
        return {"topology": {"use": point["topology.use"], "n": 2}}

    axes = {"topology.use": ["ring", "mine/office.graphml"]}
    root = make_sweep(tmp_path / "made", axes, accuracies_of, seeds=(0,), config=config)
    networks = SweepView.open(root).networks
    assert list(networks["family"]) == ["ring", "office"]
    assert list(networks["peers"]) == [2, 2]


def test_reading_writes_nothing(root):
    folder = folder_of(root, 0.5, 0)
    (folder / "case.json").unlink()
    (root / "failures.jsonl").write_bytes(encode_line("", failure(folder))[:-9])
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    view = SweepView.open(root)
    view.summary()
    assert view.case_frame["status"].value_counts().to_dict() == {
        "done": 5,
        "partial": 1,
    }
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def failure(folder):
    return {
        "case": folder.name,
        "point": {},
        "seed": 0,
        "error": "x",
        "message": "y",
        "exit_code": 1,
        "seconds": 0.1,
    }


def test_a_case_of_another_package_keeps_its_name(tmp_path):
    make_case(
        tmp_path / "a" / "cases" / "c0",
        [row("cost-rounds", 1.0, protocol="unheard-of")],
        attempts=[({"use": "unheard-of"}, certificate())],
    )
    plan = {
        "format": 1,
        "name": "a",
        "mode": "grid",
        "axes": {},
        "seeds": [0],
        "cases": [{"case": "c0", "point": {}, "seed": 0}],
    }
    (tmp_path / "a" / "sweep.json").write_text(json.dumps(plan))
    line = only(SweepView.open(tmp_path / "a").summary(), protocol="unheard-of")
    assert line["claim"] == "certified"


def test_infinite_values_are_told_beside_the_mean_that_leaves_them_out(tmp_path):
    """A front that did not reach the last peer in one seed."""

    def fronts(point, seed):
        far = {"value": None, "note": "inf"} if seed == 2 else {}
        last = row("front-time", 4.0 + seed, unit="rounds", world="before") | far
        peers = [{**last, "peer": 1}, {**last, "peer": 0, "value": 1.0}]
        return [last, *peers]

    view = SweepView.open(make_sweep(tmp_path / "made", {}, fronts))
    line = only(view.summary())
    assert (line["mean"], line["count"], line["worst"]) == (4.5, 2, math.inf)
    assert line["note"] == "infinite in 1 of 3 seeds"
    assert line["peer_worst"] == math.inf
    assert line["peer_spread"] == (1.5 + 2.0) / 2  # of the seeds that have one
