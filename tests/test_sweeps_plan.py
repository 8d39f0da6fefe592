"""Which cases a sweep consists of, and what is refused before anything is written."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sweep_base import forgetting, tiny

from dfl_unlearn.errors import ConfigError, InvalidArgumentError
from dfl_unlearn.experiment import read_experiment, to_config
from dfl_unlearn.sweeps import Sweep, case_name, load_sweep
from dfl_unlearn.sweeps.axes import split_values
from dfl_unlearn.sweeps.plan import MAX_ERRORS


def seen(sweep, *keys):
    """The values that the cases' configurations have at some dotted keys."""
    found = []
    for case in sweep.cases():
        row = []
        for key in keys:
            at = to_config(case.experiment)
            for part in key.split("."):
                at = at[int(part)] if isinstance(at, list) else at[part]
            row.append(at)
        found.append(tuple(row))
    return found


def test_a_grid_has_every_combination_and_the_last_axis_changes_fastest():
    axes = {"training.rounds": [2, 3], "topology.n": [4, 5]}
    sweep = Sweep(base=tiny(), axes=axes, seeds=(0, 7))
    assert seen(sweep, "training.rounds", "topology.n", "seed") == [
        (2, 4, 0),
        (2, 4, 7),
        (2, 5, 0),
        (2, 5, 7),
        (3, 4, 0),
        (3, 4, 7),
        (3, 5, 0),
        (3, 5, 7),
    ]


def test_zip_takes_the_values_together():
    axes = {"training.rounds": [2, 3], "topology.n": [4, 5]}
    sweep = Sweep(base=tiny(), axes=axes, mode="zip")
    assert seen(sweep, "training.rounds", "topology.n") == [(2, 4), (3, 5)]


def test_fields_with_commas_between_move_together_in_a_grid():
    base = forgetting(unlearning=[{"use": "newton-fisher"}, {"use": "rr-du"}])
    both = "unlearning.0.epsilon,unlearning.1.epsilon"
    sweep = Sweep(base=base, axes={both: [0.5, 2.0], "training.rounds": [2, 3]})
    keys = ("unlearning.0.epsilon", "unlearning.1.epsilon", "training.rounds")
    assert seen(sweep, *keys) == [(0.5, 0.5, 2), (0.5, 0.5, 3), (2, 2, 2), (2, 2, 3)]


def test_a_table_is_one_value_and_a_later_axis_refines_it():
    networks = [{"use": "ring", "n": 4}, {"use": "torus", "n": 9}]
    axes = {"topology": networks, "topology.mixing": ["max-degree"]}
    sweep = Sweep(base=tiny(topology={"use": "complete", "n": 3}), axes=axes)
    keys = ("topology.use", "topology.n", "topology.mixing")
    assert seen(sweep, *keys) == [("ring", 4, "max-degree"), ("torus", 9, "max-degree")]


def test_an_axis_that_a_later_one_undoes_is_refused():
    axes = {"topology.n": [4, 5], "topology": [{"use": "ring", "n": 6}]}
    with pytest.raises(ConfigError, match=r"topology\.n is undone by a later axis"):
        Sweep(base=tiny(), axes=axes).cases()


@pytest.mark.parametrize("as_experiment", [False, True], ids=["tables", "experiment"])
def test_a_seed_reaches_every_section(as_experiment):
    base = forgetting(topology={"use": "erdos-renyi", "n": 6, "p": 0.9}, seed=5)
    if as_experiment:
        base = read_experiment(base)
    sweep = Sweep(base=base, axes={}, seeds=(1, 2))
    keys = ("seed", "topology.seed", "training.seed", "forget.0.seed")
    assert seen(sweep, *keys) == [(1, 1, 1, 1), (2, 2, 2, 2)]


def test_a_resolved_configuration_is_swept_like_the_file_it_came_from():
    base = forgetting(seed=5)
    resolved = to_config(read_experiment(base))
    names = [
        [case.name for case in Sweep(base=b, axes={}, seeds=(1, 2)).cases()]
        for b in (base, resolved, read_experiment(base))
    ]
    assert names[0] == names[1] == names[2]


def test_a_section_with_another_seed_keeps_it():
    base = tiny(seed=5, training={"rounds": 2, "seed": 9})
    sweep = Sweep(base=base, axes={}, seeds=(1, 2))
    assert seen(sweep, "seed", "training.seed") == [(1, 9), (2, 9)]


def test_draws_do_not_depend_on_their_number_or_on_other_axes():
    axes = {
        "training.local.learning_rate": {"low": 0.01, "high": 1.0, "log": True},
        "training.rounds": {"low": 2, "high": 4},
        "topology.use": ["ring", "complete"],
    }
    few = Sweep(base=tiny(), axes=axes, mode="random", samples=5)
    many = Sweep(base=tiny(), axes=axes, mode="random", samples=20)
    assert many.points()[:5] == few.points()
    rates = {k: axes[k] for k in ("training.local.learning_rate",)}
    alone = Sweep(base=tiny(), axes=rates, mode="random", samples=5).points()
    assert [p["training.local.learning_rate"] for p in few.points()] == [
        p["training.local.learning_rate"] for p in alone
    ]
    other = Sweep(base=tiny(seed=1), axes=axes, mode="random", samples=5)
    assert other.points() != few.points()


@pytest.mark.statistical
def test_ranges_are_drawn_evenly_and_reach_both_ends():
    """Each share is within 5 standard deviations: wrong by chance below 1e-5."""
    n = 2000
    axes = {
        "training.local.learning_rate": {"low": 0.01, "high": 1.0, "log": True},
        "training.rounds": {"low": 2, "high": 4},
        "training.local.steps": {"low": 1, "high": 7, "log": True},
        "topology.use": ["ring", "complete"],
    }
    points = Sweep(base=tiny(), axes=axes, mode="random", samples=n).points()
    rates = np.array([p["training.local.learning_rate"] for p in points])
    assert ((rates >= 0.01) & (rates <= 1)).all()
    off = 5 / math.sqrt(n)
    assert abs((rates < 0.1).mean() - 1 / 2) < off / 2
    rounds = [p["training.rounds"] for p in points]
    assert all(type(k) is int for k in rounds)
    for k in (2, 3, 4):
        assert abs(rounds.count(k) / n - 1 / 3) < off / 2
    steps = [p["training.local.steps"] for p in points]
    assert set(steps) == set(range(1, 8))
    assert abs(steps.count(1) / n - math.log(2) / math.log(8)) < off / 2
    rings = [p["topology.use"] for p in points].count("ring")
    assert abs(rings / n - 1 / 2) < off / 2


def test_a_point_drawn_twice_is_run_once():
    axes = {"topology.use": ["ring", "complete"]}
    sweep = Sweep(base=tiny(), axes=axes, mode="random", samples=30)
    assert len(sweep.points()) == 30
    assert len(sweep.cases()) == 2


def test_two_cases_that_are_the_same_experiment_are_refused():
    axes = {"unlearning.0.epsilon": [1, 1.0]}
    with pytest.raises(ConfigError, match=r"the same one for .*=1 .*=1\.0 seed=0"):
        Sweep(base=forgetting(), axes=axes).cases()


def test_the_name_depends_on_what_changes_results_only():
    one = read_experiment(tiny())
    assert len(case_name(one)) == 12
    assert case_name(one) == case_name(replace(one, name="other"))
    shown = read_experiment(tiny(report={"html": False}, execution={"keep": 5}))
    assert case_name(one) == case_name(shown)
    assert case_name(one) != case_name(read_experiment(tiny(seed=1)))


def test_all_bad_values_are_told_at_once_each_with_its_case():
    axes = {"unlearning.0.epsilon": [1.0, -1, 0], "trainng.rounds": [3]}
    with pytest.raises(ConfigError) as caught:
        Sweep(base=forgetting(), axes=axes, seeds=(0, 1)).cases()
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("sweep: 6 of its cases cannot be run")
    assert any("epsilon=-1" in x and "> 0, got -1.0" in x for x in lines)
    assert any("epsilon=0 " in x and "> 0, got 0.0" in x for x in lines)
    assert any("and 1 more: trainng: unknown key" in x for x in lines)


def test_errors_are_told_up_to_a_number():
    axes = {"training.rounds": list(range(-50, 0))}
    with pytest.raises(ConfigError, match=r"30 more errors are not shown") as caught:
        Sweep(base=tiny(), axes=axes).cases()
    assert len(str(caught.value).split("\n")) == MAX_ERRORS + 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"axes": {"topology.use": "ring"}}, "must have a list of values, got 'ring'"),
        ({"axes": {"topology.n": []}}, r"must have a list of values, got \[\]"),
        ({"axes": {"topology.n": {"low": 3, "high": 5}}}, "must have a list of values"),
        ({"axes": {"seed": [1]}}, "'seed' cannot vary: give seeds instead"),
        ({"axes": {"execution.keep": [1, 2]}}, "it changes no result"),
        ({"axes": {"topology..n": [4]}}, r"dotted fields.*got 'topology\.\.n'"),
        ({"axes": {"topology.n,topology.n": [4]}}, "must name a field once"),
        (
            {"axes": {"topology.n": [4], "topology.n,training.rounds": [4]}},
            r"topology\.n must vary once",
        ),
        (
            {"axes": {"topology.n": [4], "training.rounds": [1, 2]}, "mode": "zip"},
            r"equally many values .*topology\.n: 1, training\.rounds: 2",
        ),
        ({"axes": {}, "mode": "random"}, "samples: must be given for mode 'random'"),
        ({"axes": {}, "samples": 3}, "left out otherwise, got 3 for 'grid'"),
        ({"axes": {}, "mode": "random", "samples": 0}, "samples: must be .*got 0"),
        ({"axes": {}, "seeds": ()}, "seeds: must hold at least one"),
        ({"axes": {}, "seeds": (1, 1)}, r"seeds: must differ, got \[1, 1\]"),
        ({"axes": {}, "seeds": (-1,)}, "seeds: must be an integer >= 0.*got -1"),
        ({"axes": {}, "name": "../x"}, r"sweep name: .*got '\.\./x'"),
        ({"axes": {"topology.n": list(range(999))} | {"training.rounds": list(
            range(999))}}, "at most 100000 points, got 998001"),
    ],
)  # fmt: skip
def test_what_makes_no_sweep_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Sweep(base=tiny(), **fields)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"low": 1}, "must have low and high"),
        ({"low": 1, "high": 2, "step": 1}, "must have low and high, and may have log"),
        ({"low": 2, "high": 2}, "high: must be a finite number > 2, got 2"),
        ({"low": 0, "high": 2, "log": True}, "low must be > 0 with log, got 0"),
        ({"low": 1, "high": 2, "log": 1}, "log must be true or false, got 1"),
        ({"low": 1, "high": math.inf}, "high: must be a finite number"),
        ({"low": 1, "high": 10**400}, "high: must be an integer .*got 1000"),
    ],
)
def test_a_range_must_make_sense(bounds, words):
    axes = {"training.rounds": bounds}
    with pytest.raises(ConfigError, match=words):
        Sweep(base=tiny(), axes=axes, mode="random", samples=2)


def test_an_unknown_mode_is_named():
    with pytest.raises(InvalidArgumentError, match="mode: must be one of grid, zip"):
        Sweep(base=tiny(), axes={}, mode="latin")


def test_arrays_are_values_like_lists():
    sweep = Sweep(base=tiny(), axes={"training.local.learning_rate": np.array([0.1])})
    assert seen(sweep, "training.local.learning_rate") == [(0.1,)]
    json.dumps(sweep.points())


FILE = """
name = "rings"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 3
[sweep]
seeds = [0, 1]
[sweep.axes]
"topology" = [{ use = "ring", n = 4 }, { use = "torus", n = 9 }]
training.local.steps = [1, 2]
"""


def test_a_file_has_a_table_of_axes(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(FILE)
    sweep = load_sweep(file)
    assert sweep.name == "rings"
    assert list(sweep.axes) == ["topology", "training.local.steps"]
    assert len(sweep.cases()) == 8


def test_words_make_axes_and_change_the_base(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(FILE)
    words = [
        "topology=ring",
        'topology={use = "ring", n = 5}',
        "training.local.steps=3,4,5",
        "training.rounds=2",
        'data.partition={use="iid"},{use="dirichlet", alpha=0.5}',
    ]
    sweep = load_sweep(file, words[1:], seeds=[4], name="b")
    keys = ("topology.n", "training.local.steps", "training.rounds", "seed")
    assert sorted(set(seen(sweep, *keys))) == [(5, k, 2, 4) for k in (3, 4, 5)]
    assert len(sweep.cases()) == 6
    assert sweep.name == "b"


def test_a_range_is_an_axis_in_random_mode_only(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(FILE.split("[sweep]")[0])
    word = "training.rounds={low=2, high=9}"
    sweep = load_sweep(file, [word], mode="random", samples=3)
    assert all(2 <= p["training.rounds"] <= 9 for p in sweep.points())
    with pytest.raises(ConfigError, match=r"training\.rounds"):
        load_sweep(file, [word]).cases()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = [0, 1]", 'seeds = "0"', r"sweep\.seeds"),
        ("seeds = [0, 1]", "sed = [0, 1]", "unknown key. Did you mean 'seeds'"),
        ("seeds = [0, 1]", 'mode = "zap"', r"sweep\.mode"),
        ("training.local.steps = [1, 2]", "training.local.steps = 1", "list of values"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, old, new, words):
    file = tmp_path / "a.toml"
    file.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        load_sweep(file)


@pytest.mark.parametrize("word", ["topology.n", "=3", "training.rounds=1,,2"])
def test_a_word_without_key_or_value_is_refused(tmp_path, word):
    file = tmp_path / "a.toml"
    file.write_text(FILE)
    with pytest.raises(ConfigError):
        load_sweep(file, [word])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1", ["1"]),
        ("1, 2,3", ["1", "2", "3"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ('{a=[1,2], b="x,}"},y', ['{a=[1,2], b="x,}"}', "y"]),
        ('\'a,b\',"c\\",d"', ["'a,b'", '"c\\",d"']),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas_outside_of_everything(text, parts):
    assert split_values(text) == parts


def test_the_file_that_the_document_shows_is_a_sweep(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    file = tmp_path / "rings.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    assert len(load_sweep(file).cases()) == 2 * 3 * 3
    words = ["training.rounds=50,100"]
    assert len(load_sweep(file, words, seeds=(0, 1), name="rounds").cases()) == 24
