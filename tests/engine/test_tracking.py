"""Watched runs: what TensorBoard reads back, and observers that fail."""

import json
import sys
import warnings

import pytest
from typer.testing import CliRunner

from dfl_unlearn import ForgetRequest, PeerData, SimulationConfig, evaluate, unlearn
from dfl_unlearn.cli import app
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.simulator import resume, simulate
from dfl_unlearn.engine.tracking import TensorBoard
from dfl_unlearn.errors import DependencyError, InvalidArgumentError
from dfl_unlearn.experiment import read_experiment, resume_experiment, run_experiment

DATA = PeerData.load("gaussian-classes", peers=4, seed=0)
CONFIG = SimulationConfig(rounds=8, evaluate_every=4)
KEPT = ExecutionConfig(checkpoint_every=3)
TABLE = {
    "name": "watched",
    "topology": {"use": "ring", "n": 4},
    "data": {"use": "gaussian-classes"},
    "training": {"rounds": 4},
    "forget": [{"kind": "samples", "peer": 1, "indices": [0, 4]}],
    "unlearning": [{"use": "newton-fisher"}, {"use": "fine-tune", "rounds": 2}],
    "report": {"figures": [], "html": False, "tensorboard": True},
}


def trained(**more):
    return simulate("ring", DATA, "logistic", CONFIG, **more)


def shown(folder):
    """What TensorBoard shows of a folder: scalars as (step, value), texts' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )

        events = EventAccumulator(str(folder)).Reload()
    scalars = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return scalars, events.Tags()["tensors"], events


class Stop:
    """An observer that breaks in one round."""

    def __init__(self, after):
        self.after = after

    def on_round(self, info):
        if info.round == self.after:
            raise RuntimeError("the observer broke")


def test_curves_hold_what_the_run_s_history_says(tmp_path):
    run = trained(callbacks=[TensorBoard(tmp_path, every=2)])
    scalars, _, _ = shown(tmp_path / "training")
    assert [step for step, _ in scalars["loss/mean"]] == [2, 4, 6, 8]
    history = run.history
    rounds = history.rounds.tolist()
    expected = {
        "test-score/mean": history.accuracy.mean(axis=1),
        "test-score/worst": history.accuracy.min(axis=1),
        "consensus/distance": history.consensus,
    }
    for tag, values in expected.items():
        assert [step for step, _ in scalars[tag]] == rounds
        assert [v for _, v in scalars[tag]] == pytest.approx(values.tolist())
    last = history.loss[-1]
    ends = {tag: points[-1][1] for tag, points in scalars.items()}
    assert ends["loss/mean"] == pytest.approx(last.mean())
    assert ends["loss/worst"] == pytest.approx(last.max())
    assert ends["loss/spread"] == pytest.approx(last.max() - last.min())


def test_watching_changes_no_bit(tmp_path):
    assert trained(callbacks=[TensorBoard(tmp_path)]).digest == trained().digest


def test_an_observer_that_breaks_corrupts_nothing_and_no_step_is_doubled(tmp_path):
    place, board = tmp_path / "run", tmp_path / "board"
    with pytest.raises(RuntimeError, match="observer broke"):
        trained(callbacks=[TensorBoard(board), Stop(5)], folder=place, execution=KEPT)
    assert [s for s, _ in shown(board / "training")[0]["loss/mean"]] == [1, 2, 3, 4, 5]
    done = resume(place, execution=KEPT, callbacks=[TensorBoard(board)])
    assert done.digest == trained().digest
    scalars, _, _ = shown(board / "training")
    assert [s for s, _ in scalars["loss/mean"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [s for s, _ in scalars["test-score/mean"]] == done.history.rounds.tolist()


def test_a_broken_end_leaves_a_finished_run(tmp_path):
    class Broken:
        def on_end(self, run):
            raise RuntimeError("no server")

    with pytest.raises(RuntimeError, match="no server"):
        trained(callbacks=[Broken()], folder=tmp_path / "run")
    assert resume(tmp_path / "run").digest == trained().digest


def test_forgetting_is_written_once_with_its_claim(tmp_path):
    request = ForgetRequest.samples(peer=1, indices=[0, 4])
    outcome = unlearn(trained(), request, "newton-fisher", reference=True)
    table = evaluate(outcome, ["test-accuracy"])
    for _ in range(2):
        TensorBoard(tmp_path).on_forgotten("n f", table, outcome.certificate)
    for world in ("before", "after", "reference"):
        scalars, texts, events = shown(tmp_path / "forgetting/n_f" / world)
        (line,) = [s for s in table.summary() if s.metric == "test-accuracy"]
        assert scalars["test-accuracy/test"] == [
            (0, pytest.approx(getattr(line, world)))
        ]
        assert ("certificate/epsilon" in scalars) == (
            world == "after" and outcome.certificate.epsilon is not None
        )
        if world == "after":
            (told,) = events.Tensors(texts[0])
            text = told.tensor_proto.string_val[0].decode()
            assert str(outcome.certificate) in text


def test_an_experiment_s_file_asks_for_it_and_going_on_doubles_nothing(tmp_path):
    watched = read_experiment(json.loads(json.dumps(TABLE)))
    plain = {**TABLE, "report": {"figures": [], "html": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run, _, _ = run_experiment(watched, tmp_path)
        other, _, _ = run_experiment(read_experiment(plain), tmp_path / "plain")
        resume_experiment(run.folder)
    assert run.digest == other.digest
    assert not (other.folder / "tensorboard").exists()
    scalars, _, _ = shown(run.folder / "tensorboard/training")
    assert [s for s, _ in scalars["loss/mean"]] == [1, 2, 3, 4]
    written = sorted(p.name for p in (run.folder / "tensorboard/forgetting").iterdir())
    assert written == ["fine-tune", "newton-fisher"]
    after, _, _ = shown(run.folder / "tensorboard/forgetting/fine-tune/after")
    assert all(len(points) == 1 for points in after.values())


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match=r"pip install 'dfl-unlearn\[tensorb"):
        TensorBoard(tmp_path)
    with pytest.raises(DependencyError, match="tensorboard"):
        run_experiment(read_experiment(json.loads(json.dumps(TABLE))), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_interval_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"every: .*0"):
        TensorBoard(tmp_path, every=0)


def test_more_rounds_by_the_command_go_on_in_the_same_curves(tmp_path, monkeypatch):
    run_experiment(read_experiment({**TABLE, "forget": [], "unlearning": []}), tmp_path)
    monkeypatch.setenv("DFL_UNLEARN_RUNS", str(tmp_path))
    result = CliRunner().invoke(app, ["resume", "watched", "--rounds", "6"])
    assert result.exit_code == 0, result.output
    scalars, _, _ = shown(tmp_path / "watched" / "tensorboard" / "training")
    assert [step for step, _ in scalars["loss/mean"]] == [1, 2, 3, 4, 5, 6]
