"""States that are lost with committed requests in them: made again, or refused."""

import json
import shutil

import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.checkpoint import _text_hash
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import resume, simulate
from dfl_unlearn.errors import (
    NoValidCheckpointError,
    ReplayDivergedError,
    ResumeWouldUndoUnlearningError,
    StoreCorruptError,
)
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.replaying import resume_replaying
from dfl_unlearn.unlearning.store import commit_outcome

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(rounds=9, local=LocalSteps(batch_size=5), evaluate_every=2)
OFTEN = ExecutionConfig(checkpoint_every=2)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
MORE = ForgetRequest.samples(peer=2, indices=[3])


@pytest.fixture(params=["newton-fisher", FineTune(rounds=2)], ids=["newton", "tuned"])
def committed(request, tmp_path):
    """Two requests with training between; checkpoints from before were kept."""
    path = tmp_path / "a"
    run = simulate("ring", DATA, "logistic", CONFIG, folder=path, execution=OFTEN)
    shutil.copytree(path / "ckpt", tmp_path / "old")
    outcome = unlearn(run, REQUEST, request.param, folder=path)
    commit_outcome(outcome, keep_checkpoints=True)
    run = resume(path, data=DATA, rounds=14)
    outcome = unlearn(run, MORE, request.param, folder=path)
    run = commit_outcome(outcome, keep_checkpoints=True)
    clean = resume(path, data=DATA, rounds=20, execution=OFTEN)
    shutil.rmtree(path / "ckpt")
    return clean


def lose(run, old=None):
    """Lose the final state, and all checkpoints but old ones."""
    (run.folder / "state/final.safetensors").write_bytes(b"\0" * 60)
    if old is not None:
        shutil.copytree(old, run.folder / "ckpt")


@pytest.mark.parametrize("old", [True, False])
def test_a_lost_state_is_made_again(committed, tmp_path, old):
    lose(committed, tmp_path / "old" if old else None)
    with pytest.raises(StoreCorruptError):
        load_run(committed.folder, data=DATA)
    run = resume_replaying(committed.folder, data=DATA)
    assert run.digest == committed.digest
    assert torch.equal(run.state.params, committed.state.params)
    assert run.ledger.entries == committed.ledger.entries
    assert run.requests == 2
    assert load_run(committed.folder, data=DATA).digest == committed.digest


def test_without_being_asked_nothing_is_replayed(committed, tmp_path):
    lose(committed, tmp_path / "old")
    (committed.folder / "done.json").unlink()
    with pytest.raises(ResumeWouldUndoUnlearningError, match="--replay"):
        resume(committed.folder, data=DATA)


def test_a_replay_that_ends_elsewhere_is_refused(committed, tmp_path):
    lose(committed)
    place = committed.folder / "manifest.json"
    manifest = json.loads(place.read_text())
    manifest["committed"][1]["state"] = "0" * 64
    place.write_text(json.dumps(manifest))
    with pytest.raises(ReplayDivergedError, match=r"r1: the result must have .* 0000"):
        resume_replaying(committed.folder, data=DATA)
    assert not (committed.folder / "done.json").exists()


def test_damaged_checkpoints_are_not_replayed_from(committed, tmp_path):
    lose(committed, tmp_path / "old")
    for place in (committed.folder / "ckpt").glob("*/manifest.json"):
        known = json.loads(place.read_text())
        del known["check"]
        known["arrays"]["params"]["sha256"] = "0" * 64
        place.write_text(json.dumps(known | {"check": _text_hash(known)}))
    with pytest.raises(NoValidCheckpointError):
        resume_replaying(committed.folder, data=DATA)


def test_an_intact_run_is_read(committed):
    assert resume_replaying(committed.folder, data=DATA).digest == committed.digest
