"""Personal state: named, kept on disk, carried on, and refused where it was changed."""

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.personal import (
    PINNED,
    personal_digest,
    personal_from,
    personal_to,
    used_params,
)
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import resume, simulate
from dfl_unlearn.errors import (
    CorruptStateError,
    InputFileError,
    StoreCorruptError,
)
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune as GossipFineTune
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes, save_outcome

REQUEST = ForgetRequest.samples(peer=1, indices=[0, 3])
PINS = AtPeer(method=FineTune(epochs=1), reentry="pinned")
DATA = blobs([9, 8, 7, 9])


@pytest.fixture
def stored(tmp_path):
    config = SimulationConfig(rounds=4, evaluate_every=0)
    return simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")


def same(one, other):
    return personal_digest(one) == personal_digest(other) is not None


def test_names_come_back_as_they_were():
    personal = {
        0: {"mask": torch.tensor([True, False]), "a/b": torch.zeros(2, 3)},
        12: {"steps": torch.tensor([3])},
    }
    back = personal_from(personal_to(personal), peers=13, size=5)
    assert personal_to(back).keys() == personal_to(personal).keys()
    assert personal_digest(back) == personal_digest(personal)


def test_the_digest_covers_name_type_shape_and_value():
    base = {1: {"a": torch.zeros(2, 3)}}
    others = [
        {1: {"b": torch.zeros(2, 3)}},
        {2: {"a": torch.zeros(2, 3)}},
        {1: {"a": torch.zeros(3, 2)}},
        {1: {"a": torch.zeros(2, 3, dtype=torch.float64)}},
        {1: {"a": torch.zeros(2, 3).index_fill(0, torch.tensor([1]), 1.0)}},
    ]
    digests = {personal_digest(one) for one in (base, *others)}
    assert len(digests) == 6
    assert personal_digest({}) is None
    assert personal_digest({3: {}}) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2)}, "<peer>/<name>"),
        ({"01/a": torch.zeros(2)}, "<peer>/<name>"),
        ({"-1/a": torch.zeros(2)}, "<peer>/<name>"),
        ({"4/a": torch.zeros(2)}, "peers below 4"),
        ({"99999999/a": torch.zeros(2)}, "<peer>/<name>"),
        ({"1/": torch.zeros(2)}, "<peer>/<name>"),
        ({f"1/{PINNED}": torch.zeros(2)}, "5 finite numbers"),
        ({f"1/{PINNED}": torch.zeros(5, dtype=torch.int64)}, "5 finite numbers"),
        ({f"1/{PINNED}": torch.full((5,), torch.nan)}, "5 finite numbers"),
    ],
)
def test_what_is_not_of_this_network_is_refused(tensors, message):
    with pytest.raises(StoreCorruptError, match=message):
        personal_from(tensors, peers=4, size=5)


def test_only_pinned_changes_are_added():
    params = torch.zeros(3, 2)
    personal = {1: {PINNED: torch.ones(2)}, 2: {"other": torch.ones(2)}}
    assert used_params(params, personal).tolist() == [[0, 0], [1, 1], [0, 0]]
    assert used_params(params, {2: personal[2]}) is params
    assert not params.any()


def test_a_trial_keeps_it_and_reads_it_back(stored):
    outcome = unlearn(stored, REQUEST, PINS, folder=stored.folder)
    (read,) = load_outcomes(load_run(stored.folder, data=DATA))
    assert same(read.personal, outcome.personal)
    assert read.as_run().personal[1][PINNED].equal(outcome.personal[1][PINNED])


def test_a_commit_makes_it_the_runs_and_training_on_carries_it(stored):
    outcome = unlearn(stored, REQUEST, PINS, folder=stored.folder)
    committed = commit_outcome(outcome)
    assert same(committed.personal, outcome.personal)
    assert same(load_run(stored.folder, data=DATA).personal, outcome.personal)
    assert not list(stored.folder.glob("outcomes/*/personal.safetensors"))
    longer = resume(stored.folder, rounds=6, data=DATA)
    assert same(longer.personal, outcome.personal)
    assert same(load_run(stored.folder, data=DATA).personal, outcome.personal)


def test_a_saved_run_keeps_it(stored, tmp_path):
    after = unlearn(stored, REQUEST, PINS).as_run()
    saved = after.save(tmp_path / "b")
    assert same(load_run(saved.folder, data=DATA).personal, after.personal)


def test_a_protocol_that_does_not_hand_it_on_ends_it(stored):
    """It was made from data that may be asked to go next."""
    committed = commit_outcome(unlearn(stored, REQUEST, PINS, folder=stored.folder))
    other = ForgetRequest.samples(peer=2, indices=[1])
    fine = GossipFineTune(rounds=1)
    after = commit_outcome(unlearn(committed, other, fine, folder=stored.folder))
    assert not after.personal
    assert not (stored.folder / "state/personal.safetensors").exists()
    assert not load_run(stored.folder, data=DATA).personal


def test_an_outcome_in_memory_is_saved_with_it(stored):
    outcome = unlearn(stored, REQUEST, PINS)
    save_outcome(outcome, stored.folder)
    (read,) = load_outcomes(load_run(stored.folder, data=DATA))
    assert same(read.personal, outcome.personal)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("damage", ["gone", "other", "cut", "link"])
def test_a_changed_file_is_refused(stored, committed, damage, tmp_path):
    outcome = unlearn(stored, REQUEST, PINS, folder=stored.folder)
    if committed:
        commit_outcome(outcome)
    (path,) = stored.folder.rglob("personal.safetensors")
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        folder = RunFolder(stored.folder)
        rel = path.relative_to(stored.folder).as_posix()
        tensors = folder.read_tensors(rel)
        tensors[f"1/{PINNED}"][0] += 1
        folder.write_tensors(rel, tensors)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    with pytest.raises((StoreCorruptError, CorruptStateError, InputFileError)):
        load_outcomes(load_run(stored.folder, data=DATA))


def test_a_commit_of_a_changed_file_removes_nothing(stored):
    outcome = unlearn(stored, REQUEST, PINS, folder=stored.folder)
    (path,) = stored.folder.rglob("personal.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    before = sorted(p for p in stored.folder.glob("record/*"))
    with pytest.raises((StoreCorruptError, CorruptStateError, InputFileError)):
        commit_outcome(outcome)
    assert sorted(p for p in stored.folder.glob("record/*")) == before


def test_a_method_gets_what_it_kept_the_last_time(stored):
    from dfl_unlearn.unlearning.local_tasks import local_task

    run = stored.replaced(
        personal={1: {"kept": torch.arange(3), PINNED: torch.ones(stored.model.size)}}
    )
    task = local_task(run, REQUEST)
    assert list(task.companions) == ["kept"]
    np.testing.assert_allclose(task.params, run.state.params[1] + 1, rtol=1e-6)
    assert not local_task(run, REQUEST, 0).companions
