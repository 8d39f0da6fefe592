"""Methods for one model from the command line: built, run, named and told apart."""

import json

import pytest

from dfl_unlearn import cli
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.local import kinds_of, methods
from dfl_unlearn.unlearning.methods.salun import SalUn
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.store import load_outcomes

EXPERIMENT = """
name = "a"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
classes = 2
dim = 3
per_class = 20
[model]
use = "mlp"
hidden = [4]
[training]
rounds = 3
[[forget]]
kind = "samples"
peer = 1
fraction = 0.3
[[unlearning]]
use = "at-peer"
method = { use = "ssd" }
[[unlearning]]
use = "at-peer"
method = { use = "fine-tune", epochs = 1 }
reentry = "pinned"
gossip_rounds = 2
[report]
figures = []
"""


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    return stop.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder with a run made from an experiment file with two methods."""
    root = tmp_path_factory.mktemp("runs")
    (root / "a.toml").write_text(EXPERIMENT)
    assert call("run", root / "a.toml", "--runs", root, "--quiet") == 0
    return root


def test_an_experiment_file_runs_two_methods_and_tells_them_apart(runs, capsys):
    outcomes = load_outcomes(load_run(runs / "a"))
    labels = [outcome.label for outcome in outcomes]
    assert labels == ["at-peer.ssd", "at-peer.fine-tune.pinned"]
    assert outcomes[1].personal
    page = (runs / "a/report.html").read_text()
    assert all(label in page for label in labels)
    assert "What gossip left of a local correction" in page
    table = (runs / "a/tables/metrics.csv").read_text()
    assert all(f",{label}," in table for label in labels)


def test_fields_of_the_method_are_given_with_dots(runs, capsys):
    words = ("unlearn", "a", "--runs", runs, "--peer", 2, "--indices", "0,1")
    fields = ("--protocol", "at-peer", "method.use=fine-tune", "method.epochs=2")
    code = call(*words, *fields, "reentry=delta", "--no-reference", "--json")
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"] == "at-peer.fine-tune.delta"
    assert found["certificate"] is None
    (outcome,) = (
        o for o in load_outcomes(load_run(runs / "a")) if o.request.peers == (2,)
    )
    assert (outcome.protocol.method.epochs, outcome.protocol.reentry) == (2, "delta")


def test_a_wrong_field_of_the_method_is_named(runs, capsys):
    words = ("unlearn", "a", "--runs", runs, "--peer", 2, "--indices", "0,1")
    fields = ("--protocol", "at-peer", "method.use=fine-tune", "method.epoch=2")
    assert call(*words, *fields) == 2
    assert "method.epoch: unknown key. Did you mean 'epochs'?" in (
        capsys.readouterr().err
    )


def test_a_commit_of_a_pinned_change_stays_with_its_peer(runs, capsys, tmp_path):
    (tmp_path / "a.toml").write_text(EXPERIMENT)
    assert call("run", tmp_path / "a.toml", "--runs", tmp_path, "--quiet") == 0
    words = ("unlearn", "a", "--runs", tmp_path, "--peer", 1, "--indices", "0,1")
    fields = ("--protocol", "at-peer", "reentry=pinned", "--commit", "--no-reference")
    assert call(*words, *fields) == 0
    assert list(load_run(tmp_path / "a").personal) == [1]


def test_the_list_says_which_methods_need_no_retained_data(capsys):
    assert call("list", "methods", "--verbose") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("original"))
    said = next(line for line in lines[at:] if "uses" in line)
    assert "runs without retained data" in said
    assert "claims nothing" in said
    assert call("list", "methods", "--json") == 0
    found = {
        entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["methods"]
    }
    assert found["fine-tune"]["retained_data"] is True
    assert found["r2d"]["claim"] == "certified"
    assert found["original"]["uses"] == []
    assert found["unsir"]["kinds"] == ["class"]
    assert found["salun"]["kinds"] == ["class", "samples"]
    assert found["ssd"]["kinds"] == ["class", "samples"]
    assert found["gradient-ascent"]["kinds"] == ["class", "peer", "samples"]
    assert found["r2d"]["needs"]
    assert found["salun"]["needs"] == []


def test_the_list_shows_what_the_optimizer_does_by_default(capsys):
    assert call("list", "methods", "--verbose") == 0
    out = capsys.readouterr().out
    assert "<factory>" not in out
    at = out.index("  salun ")
    salun = out[at : out.index("in dfl_unlearn", at)]
    assert f"learning_rate={SalUn().optimizer.learning_rate}" in salun
    assert "serves class, samples" in salun
    assert "needs nothing of the record" in salun


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_missing_feature_layer_is_refused_before_anything_is_written(
    tmp_path, capsys, dry
):
    text = EXPERIMENT.replace('"ssd"', '"manif-smc"')
    text = text.replace('use = "mlp"\nhidden = [4]', 'use = "logistic"')
    (tmp_path / "a.toml").write_text(text)
    runs = tmp_path / "runs"
    code = call("run", tmp_path / "a.toml", "--runs", runs, "--quiet", *dry)
    assert code == 2
    err = capsys.readouterr().err
    assert "must have features for manif-smc" in err
    assert "use a model with a hidden layer" in err
    assert not runs.exists()


def test_a_regression_is_refused_before_training_where_classes_are_needed(tmp_path):
    model = models.build("linear", input_shape=(3,), num_classes=0)
    with pytest.raises(MissingInputError, match=r"class_count for salun, got neither"):
        AtPeer(method="salun").check_model(model, 0)
    with pytest.raises(UnsupportedRequestError, match="'maintain' for a regression"):
        AtPeer(reentry="maintain", maintain_steps=1, gossip_rounds=1).check_model(
            model, 0
        )


def test_progress_tells_trials_apart_by_their_methods(runs, capsys, tmp_path):
    (tmp_path / "a.toml").write_text(EXPERIMENT.replace("fine-tune", "salun"))
    assert call("run", tmp_path / "a.toml", "--runs", tmp_path, "--no-report") == 0
    said = capsys.readouterr()
    assert "... forgetting r0 by at-peer.ssd\n" in said.err
    assert "... forgetting r0 by at-peer.salun.pinned\n" in said.err
    assert call("ledger", "a", "--runs", tmp_path) == 0
    out = capsys.readouterr().out
    assert "trial r0.at-peer (at-peer.ssd): no noised release" in out
    assert "trial r0.at-peer-2 (at-peer.salun.pinned): no noised release" in out


def test_what_a_refusal_is_about_is_the_method(runs, capsys):
    words = ("unlearn", "a", "--runs", runs, "--no-reference", "--protocol", "at-peer")
    assert call(*words, "--peer", 2, "--fraction", 0.2, "method.use=unsir") == 2
    err = capsys.readouterr().err
    assert "at-peer.unsir serves class, got kind 'samples'; unsir unlearns a class" in (
        err
    )
    assert "--class C, ForgetRequest.class_" in err
    assert call(*words, "--peer", 2, "--all", "method.use=salun") == 2
    err = capsys.readouterr().err
    assert "at-peer.salun serves class, samples, got kind 'peer'; salun needs" in err
    assert "gradient-ascent" in err


def test_what_a_refusal_suggests_serves_the_request():
    assert "samples" in kinds_of(methods.build("fine-tune"))
    assert "peer" in kinds_of(methods.build("gradient-ascent"))


def test_a_class_is_forgotten_at_one_peer(runs, capsys):
    words = ("unlearn", "a", "--runs", runs, "--no-reference", "--protocol", "retrain")
    assert call(*words, "--class", 1, "--peer", 2, "--json") == 0
    name = json.loads(capsys.readouterr().out)["request"]
    run = load_run(runs / "a")
    (outcome,) = (o for o in load_outcomes(run) if o.request.request_id == name)
    assert (outcome.request.kind, outcome.request.peers) == ("class", (2,))
    rows = outcome.request.mask(run.data)
    assert set(run.data.store.labels[rows].tolist()) == {1}
    assert rows.sum() == (run.data.store.labels[run.data.rows(2)] == 1).sum()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("salun", "--protocol at-peer method.use=salun"),
        ("at-peer.salun", "--protocol at-peer method.use=salun"),
        ("at-peer.salun.all", "--protocol at-peer method.use=salun reentry=all"),
    ],
)
def test_a_methods_name_or_label_points_to_at_peer(runs, capsys, name, remedy):
    words = ("unlearn", "a", "--runs", runs, "--peer", 2, "--fraction", 0.2)
    assert call(*words, "--protocol", name) == 2
    assert capsys.readouterr().err.rstrip().endswith(remedy)


def test_a_file_that_names_a_method_as_a_protocol_is_pointed_to_at_peer(
    tmp_path, capsys
):
    text = EXPERIMENT.replace('"at-peer"\nmethod = { use = "ssd" }', '"ssd"')
    (tmp_path / "a.toml").write_text(text)
    assert call("run", tmp_path / "a.toml", "--runs", tmp_path) == 2
    err = capsys.readouterr().err
    assert "unlearning.0.use: 'ssd' is not registered. ssd is a method for" in err
    assert "AtPeer(method='ssd')" in err


def test_a_wrong_value_of_a_method_is_named_with_its_place_and_remedy(runs, capsys):
    words = ("unlearn", "a", "--runs", runs, "--peer", 2, "--fraction", 0.2)
    at = (*words, "--protocol", "at-peer")
    assert call(*at, "method.use=salun", "method.ratio=2") == 2
    assert "method.ratio: must be a finite number > 0 and <= 1, got 2" in (
        err := capsys.readouterr().err
    )
    assert "e.g. 0.5" in err
    assert call(*at, "method.use=dual-optim", "method.base=nonsense") == 2
    err = capsys.readouterr().err
    assert "method.base: 'nonsense' is not registered" in err
    assert "salun, scrub, sfron" in err
    assert "fine-tune" not in err
    assert call(*at, "method=salum") == 2
    assert "method: 'salum' is not registered; did you mean 'salun'" in (
        capsys.readouterr().err
    )
