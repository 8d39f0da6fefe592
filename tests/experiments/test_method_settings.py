"""Typos in settings of scripts about methods are refused, and nothing is written."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_unlearn.errors import ConfigError, InvalidArgumentError

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    import attack_methods
    import compare_methods
    import tune_forget_learning_rate

    yield {
        "compare": compare_methods,
        "attack": attack_methods,
        "tune": tune_forget_learning_rate,
    }
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "field", "value", "near"),
    [
        ("compare", "data", ("digit",), "digits"),
        ("compare", "settings", ("clas",), "class"),
        ("compare", "places", ("networks",), "network"),
        ("compare", "methods", ("salun", "scrubb"), "scrub"),
        ("attack", "data", "minst", "mnist"),
        ("attack", "settings", ("random10",), "random-10"),
        ("attack", "methods", ("salum",), "salun"),
        ("tune", "data", "digit", "digits"),
        ("tune", "settings", ("users",), "user"),
        ("tune", "methods", ("fine_tune",), "fine-tune"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_name(scripts, name, field, value, near):
    wrong = f"{field}: must be known, got .*did you mean '{near}'"
    with pytest.raises(InvalidArgumentError, match=wrong):
        scripts[name].Settings(**{field: value})


def test_a_name_without_lines_of_its_own_is_refused(scripts):
    compare, tune = scripts["compare"], scripts["tune"]
    for name in ("retrain", "dual-optim", "retrain, locally"):
        with pytest.raises(InvalidArgumentError, match=f"methods: .*'{name}'"):
            compare.Settings(methods=(name,), places=("one model",))
    with pytest.raises(InvalidArgumentError, match=r"methods: .*sisa"):
        tune.Settings(methods=("sisa",))


def test_retraining_locally_can_be_asked_for_by_name(scripts):
    compare = scripts["compare"]
    asked = compare.Settings(methods=(compare.LOCALLY,), seeds=(0,))
    chosen = {case.network: set(names) for case, names, _ in compare.jobs(asked)}
    assert chosen == {False: set(), True: {compare.LOCALLY}}


def test_tuning_an_unknown_method_writes_nothing(scripts, monkeypatch, tmp_path):
    tune = scripts["tune"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune.method_recipes, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'salun'"):
        tune.main(["--preset", "quick", 'methods=["salum"]', "write=true"])
    assert not list(tmp_path.iterdir())


def test_tuning_what_refuses_every_request_writes_nothing(
    scripts, monkeypatch, tmp_path, capsys
):
    tune = scripts["tune"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune.method_recipes, "FOLDER", tmp_path)
    short = replace(tune.TRAININGS["digits"], rounds=1, hidden=(4,))
    monkeypatch.setitem(tune.TRAININGS, "digits", short)
    tune.main(["--preset", "quick", 'methods=["unsir"]', "write=true"])
    assert "nothing was tuned" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.toml"))


def test_the_sentence_about_seeds_is_true_of_the_seeds(scripts):
    tune = scripts["tune"]
    reported = set(scripts["compare"].FULL.seeds)
    assert reported.isdisjoint(tune.FULL.seeds)
    assert "other ones than those of the comparison" in tune.how(tune.FULL)
    shared = tune.how(replace(tune.FULL, seeds=(100, 3)))
    assert "of which [3] are the comparison's" in shared
    assert "other ones" not in shared


def test_methods_for_classes_are_skipped_with_a_line(scripts, monkeypatch, capsys):
    attack = scripts["attack"]
    short = replace(attack.TRAININGS["digits"], rounds=1, hidden=(4,))
    monkeypatch.setitem(attack.TRAININGS, "digits", short)
    settings = attack.Settings(
        settings=("class", "random-10"),
        methods=("boundary-shrink",),
        shadows=6,
        pairs=10,
    )
    rows = list(attack.attacked(settings))
    found = [(row["setting"], row["method"]) for row in rows]
    assert [name for _, name in found if name == "boundary-shrink"] == []
    assert ("random-10", "original") in found
    told = capsys.readouterr().out.splitlines()
    skipped = [line.split() for line in told if " skipped: " in line]
    assert [words[:2] for words in skipped] == [
        ["class", "boundary-shrink"],
        ["random-10", "boundary-shrink"],
    ]
