"""Experiments that are killed go on; a protocol that refuses ends no other."""

import itertools
import json
import shutil
import warnings

import pytest
import torch
from file_faults import killed_at, survivors

from dfl_unlearn import cli, conduct
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.errors import InputFileError, PrivacyBudgetExceededError, RefusedError
from dfl_unlearn.experiment import read_experiment, resume_experiment, run_experiment
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.store import commit_outcome

TABLE = {
    "name": "tiny",
    "topology": {"use": "ring", "n": 4},
    "data": {"use": "gaussian-classes", "fields": {}},
    "training": {"rounds": 6},
    "execution": {"checkpoint_every": 2},
    "forget": [{"kind": "samples", "peer": 1, "indices": [0, 4]}],
    "unlearning": [{"use": "newton-fisher"}, {"use": "fine-tune", "rounds": 2}],
    "report": {"figures": [], "html": False},
}
del TABLE["data"]["fields"]


def experiment(**changes):
    return read_experiment(json.loads(json.dumps({**TABLE, **changes})))


def quietly(function, *args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **more)


def rows(folder):
    """Return the results but times; each appears once."""
    found = [
        (r["type"], json.dumps({k: v for k, v in r.items() if k != "seconds"}))
        for r in RunFolder(folder).records()
        if r.get("metric") != "cost-wall-seconds"
    ]
    assert len(set(found)) == len(found)
    return sorted(found)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    runs = tmp_path_factory.mktemp("clean")
    return quietly(run_experiment, experiment(), runs)


def check_same(folder, clean):
    run, outcomes, _ = clean
    again = load_run(folder)
    assert again.digest == run.digest
    places = sorted(p.parent.name for p in folder.glob("outcomes/*/outcome.json"))
    assert places == ["r0.fine-tune", "r0.newton-fisher"]
    assert len(list(folder.glob("outcomes/*"))) == 2
    assert len(list(folder.glob("reference/*/manifest.json"))) == 1
    for name in ("fine-tune", "newton-fisher"):
        for file in ("ledger.jsonl", "state.safetensors", "certificate.json"):
            rel = f"outcomes/r0.{name}/{file}"
            there = run.folder / rel
            assert there.exists() == (folder / rel).exists()
            if there.exists():
                assert there.read_bytes() == (folder / rel).read_bytes(), rel
    assert rows(folder) == rows(run.folder)
    assert (folder / "tables/metrics.csv").is_file()
    del outcomes


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.chaos)])
def test_an_experiment_killed_at_any_file_operation_goes_on(
    tmp_path, clean, step, record_property
):
    numbers = itertools.count()
    begun = points = 0
    for _, runs in survivors(
        lambda: tmp_path / f"runs-{next(numbers)}",
        lambda place: quietly(run_experiment, experiment(), place),
        step=step,
    ):
        points += 1
        folder = runs / "tiny"
        if not (folder / "config.json").is_file():
            if folder.is_dir() and (folder / "lock").is_file():
                with pytest.raises(InputFileError, match="run again"):
                    resume_experiment(folder)
            continue
        begun += 1
        run, outcomes, _ = quietly(resume_experiment, folder)
        assert run.digest == clean[0].digest
        for outcome, expected in zip(outcomes, clean[1], strict=True):
            assert torch.equal(outcome.state.params, expected.state.params)
            assert outcome.certificate == expected.certificate
        check_same(folder, clean)
        shutil.rmtree(runs)
    assert begun >= 150 // step
    record_property("kills", points)


@pytest.mark.slow
def test_an_experiment_killed_again_and_again_ends_as_one_that_was_not(tmp_path, clean):
    folder = tmp_path / "tiny"
    killed_at(lambda: quietly(run_experiment, experiment(), tmp_path), 40)
    kills = 1
    while killed_at(lambda: quietly(resume_experiment, folder), 110):
        kills += 1
        assert kills < 40
    check_same(folder, clean)
    assert kills >= 3


def test_what_is_complete_is_not_done_again(clean, tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    shutil.copytree(clean[0].folder, folder)

    def again(*args, **more):
        raise AssertionError("done twice")

    for name in ("unlearn", "retrain"):
        monkeypatch.setattr(conduct, name, again)
    before = (folder / "results.jsonl").read_bytes()
    run, outcomes, tables = resume_experiment(folder)
    assert (folder / "results.jsonl").read_bytes() == before
    assert run.digest == clean[0].digest
    assert [o.protocol_name for o in outcomes] == ["newton-fisher", "fine-tune"]
    for table, expected in zip(tables, clean[2], strict=True):
        assert str(table.rows) == str(expected.rows)


def test_rows_that_a_kill_left_out_are_added(clean, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(clean[0].folder, folder)
    place = folder / "results.jsonl"
    lines = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(b"".join(lines[:-7]))
    resume_experiment(folder)
    assert rows(folder) == rows(clean[0].folder)


def test_after_a_commit_the_trained_run_is_gone(clean, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(clean[0].folder, folder)
    _, outcomes, _ = resume_experiment(folder)
    commit_outcome(outcomes[0])
    with pytest.raises(RefusedError, match="carries 1 committed requests"):
        resume_experiment(folder)


BUDGET = {
    **TABLE,
    "training": {"rounds": 6, "privacy_budget": {"epsilon_max": 0.5}},
    "unlearning": [
        {"use": "newton-fisher"},
        {"use": "newton-fisher", "epsilon": 0.4},
        {"use": "retrain"},
    ],
}


def test_a_protocol_that_refuses_does_not_end_the_others(tmp_path):
    refusals = []
    run, outcomes, _ = quietly(
        run_experiment, experiment(**BUDGET), tmp_path, refusals=refusals
    )
    assert [o.protocol_name for o in outcomes] == ["newton-fisher", "retrain"]
    (refused,) = refusals
    assert isinstance(refused.error, PrivacyBudgetExceededError)
    events = [r for r in RunFolder(run.folder).records() if r.get("what") == "refused"]
    assert [e["detail"] for e in events] == [str(refused)]
    assert str(refused).startswith("r0 by newton-fisher: PrivacyBudgetExceededError: ")
    with pytest.raises(PrivacyBudgetExceededError, match=r"budget 0\.5"):
        quietly(resume_experiment, run.folder)  # tried again, and noted once
    assert rows(run.folder)


def test_the_command_line_ends_with_4_when_the_rest_is_done(tmp_path, capsys):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(BUDGET))
    with pytest.raises(SystemExit) as stop:
        quietly(cli.main, ["run", str(file), "--runs", str(tmp_path), "--json"])
    assert stop.value.code == 4
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [o["protocol"] for o in found["outcomes"]] == ["newton-fisher", "retrain"]
    assert found["refused"][0]["error"] == "PrivacyBudgetExceededError"
    assert "refused: r0 by newton-fisher: PrivacyBudgetExceededError" in err


def test_the_command_line_goes_on_with_an_experiment(tmp_path, capsys, clean):
    killed_at(lambda: quietly(run_experiment, experiment(), tmp_path), 130)
    with pytest.raises(SystemExit) as stop:
        quietly(cli.main, ["resume", "tiny", "--runs", str(tmp_path), "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == clean[0].digest
    assert len(found["outcomes"]) == 2
    check_same(tmp_path / "tiny", clean)
