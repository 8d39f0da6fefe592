"""Methods for one model from the command line: built, run, named and told apart."""

import json

import pytest

from dfl_unlearn import cli
from dfl_unlearn.engine.run import load_run
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
