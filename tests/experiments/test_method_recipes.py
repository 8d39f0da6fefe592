"""Recipes are read strictly, and the committed ones fit the registry."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dfl_unlearn.errors import ConfigError
from dfl_unlearn.unlearning.local import methods
from dfl_unlearn.unlearning.methods.fine_tune import FineTune

SCRIPTS = Path(__file__).parents[2] / "experiments"
HEAD = '[recipes]\nversion = 1\ndata = "digits"\noracle_tuned = true\ntuned = "so"\n'


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    import forget_sets
    import method_recipes
    import tune_forget_learning_rate

    yield forget_sets, method_recipes, tune_forget_learning_rate
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_committed_recipes_build_and_no_registered_method_is_left_out(scripts):
    sets, recipes, _ = scripts
    paths = sorted(recipes.FOLDER.glob("*.toml"))
    assert paths
    for path in paths:
        read = recipes.read(path, tuple(sets.SETTINGS))
        assert read.head.data == path.stem
        for setting in sets.SETTINGS:
            for network in (False, True):
                found = read.methods(setting, network=network)
                used = {methods.name_of(method) for method in found.values()}
                assert used == set(methods.names())


def test_a_settings_table_goes_before_that_of_all(scripts, tmp_path):
    sets, recipes, _ = scripts
    path = tmp_path / "digits.toml"
    path.write_text(
        HEAD + "[all.fine-tune]\nepochs = 3\n[class.fine-tune]\nepochs = 4\n"
        "[class-network.fine-tune]\nepochs = 5\n"
    )
    read = recipes.read(path, tuple(sets.SETTINGS))
    assert read.methods("mislabel")["fine-tune"] == FineTune(epochs=3)
    assert read.methods("class")["fine-tune"] == FineTune(epochs=4)
    assert read.methods("class", network=True)["fine-tune"] == FineTune(epochs=5)


def test_tuned_is_what_takes_its_fields_from_a_tuned_table(scripts, tmp_path):
    sets, recipes, _ = scripts
    path = tmp_path / "digits.toml"
    tables = (
        "[all.fine-tune]\n[all.salun]\n[class.salun]\n[class.ssd]\n"
        "[class-network.fine-tune]\n"
    )
    path.write_text(HEAD + tables)
    read = recipes.read(path, tuple(sets.SETTINGS))
    assert read.oracle_tuned("class") == {"salun", "ssd"}
    # In the network the other two run with the very same fields as without it.
    assert read.oracle_tuned("class", network=True) == {"fine-tune", "salun", "ssd"}
    assert read.oracle_tuned("user", network=True) == set()
    path.write_text(HEAD.replace("true", "false") + tables)
    blind = recipes.read(path, tuple(sets.SETTINGS))
    assert blind.oracle_tuned("class", network=True) == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[all.fine-tune]\nepochz = 3\n", "epochz: unknown key"),
        ("[all.quick]\n", "'quick' is not registered"),
        ("[klass.fine-tune]\n", "klass: must be all, or one of"),
        ('[all.x]\nuse = "dual-optim"\nbase = { use = "fine-tune" }\n', "base"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(scripts, tmp_path, text, words):
    sets, recipes, _ = scripts
    path = tmp_path / "digits.toml"
    path.write_text(HEAD + text)
    with pytest.raises(ConfigError, match=words):
        recipes.read(path, tuple(sets.SETTINGS))


def test_a_tuned_method_comes_back_from_its_table(scripts):
    _, recipes, tune = scripts
    for name in tune.KNOBS:
        value = tune.KNOBS[name][1][0]
        method = tune.tuned(methods.build(name), value)
        for label in (name, "another"):
            table = tune.table_of(label, method)
            assert recipes.method_of(label, table, "here") == method
    dual = tune.tuned(methods.build("dual-optim", base="salun"), 0.5)
    assert recipes.method_of("x", tune.table_of("x", dual), "here") == dual


def test_without_a_retrained_model_the_aim_depends_on_what_goes(scripts):
    _, _, tune = scripts
    before = np.array([1.0, 0.9, 0.8, 0.5])
    after = np.array([0.7, 0.95, 0.6, 0.0])
    unseen = tune.blind("random-10", before, after)
    np.testing.assert_allclose(unseen, [0.1, 0.0, -0.2])
    gone = tune.blind("class", before, after)
    np.testing.assert_allclose(gone, [0.7, 0.0, -0.2])


def test_a_peer_takes_small_batches_and_small_steps_at_any_depth(scripts):
    _, recipes, _ = scripts
    dual = methods.build("dual-optim", base="salun")
    small = recipes.with_rates(recipes.with_batches(dual, 16), 0.1)
    assert small.base.batch_size == small.base.forget_batch_size == 16
    for before, after in (
        (dual.forget_optimizer, small.forget_optimizer),
        (dual.retain_optimizer, small.retain_optimizer),
        (dual.base.optimizer, small.base.optimizer),
    ):
        assert after.learning_rate == pytest.approx(0.1 * before.learning_rate)
        assert after.momentum == before.momentum
    assert recipes.with_batches(FineTune(batch_size=None), 16).batch_size is None


@pytest.mark.slow
def test_tuning_at_a_peer_twice_gives_the_same_recipe(scripts, tmp_path, monkeypatch):
    _, recipes, tune = scripts
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    arguments = ['settings=["mislabel"]', 'methods=["fine-tune"]', "seeds=[100]"]
    arguments += ["network=true", "write=true", "workers=1"]
    texts = []
    for _ in range(2):
        tune.main(arguments)
        texts.append((tmp_path / "digits.toml").read_text())
    assert texts[0] == texts[1]
    assert "learning_rate" in texts[0]
