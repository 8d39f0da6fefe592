"""Runs that are interrupted anywhere and gone on with: the bits of one that was not."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from networks import blobs
from torch import nn

from dfl_unlearn import resume
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine import keeping, loop
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import Delay, FaultPlan, MarkovChurn
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import (
    ConfigMismatchError,
    DataMismatchError,
    InvalidArgumentError,
    MissingInputError,
    NoiseStreamChangedError,
    PrivacyBudgetExceededError,
    ResourceError,
    ResumeWouldUndoUnlearningError,
    RunLockedError,
    StoreCorruptError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.store import commit_outcome

DATA = blobs([12, 7, 9, 10])
MOMENTUM = SimulationConfig(
    rounds=9, local=LocalSteps(batch_size=5, momentum=0.3), evaluate_every=2
)
PRIVATE = replace(
    MOMENTUM,
    trainer=DpGossip(clip_norm=1.0, noise_multiplier=2.0, rate=0.5),
    local=LocalSteps(learning_rate=0.1),
)
CONFIGS = {
    "momentum": MOMENTUM,
    "tracking": replace(
        MOMENTUM, trainer=GradientTracking(), local=LocalSteps(batch_size=5)
    ),
    "private": PRIVATE,
    "faults": replace(
        MOMENTUM,
        faults=FaultPlan(
            models=(
                MarkovChurn(p_leave=0.2, p_return=0.5),
                Delay(probabilities=(0.6, 0.3, 0.1)),
            )
        ),
    ),
    "own starts": replace(MOMENTUM, common_init=False, dtype="float64"),
}
OFTEN = ExecutionConfig(checkpoint_every=2)


class PowerError(Exception):
    """The power went."""


class Crash:
    """Ends training after a round, as nothing in the package would."""

    def __init__(self, after):
        self.after = after

    def on_round(self, info):
        if info.round == self.after:
            raise PowerError


def crashed(path, after, config=MOMENTUM, execution=OFTEN, model="logistic"):
    with pytest.raises(PowerError):
        simulate(
            "ring",
            DATA,
            model,
            config,
            folder=path,
            execution=execution,
            callbacks=[Crash(after)],
        )
    return path


def go_on(path, **options):
    return resume(path, data=DATA, **({"checkpoint_every": 2} | options))


def rows(path):
    return [r for r in RunFolder(path).records() if r["type"] == "round"]


def assert_same(a, b):
    assert torch.equal(a.state.params, b.state.params)
    assert a.state.slots.keys() == b.state.slots.keys()
    for name, slot in a.state.slots.items():
        assert torch.equal(slot, b.state.slots[name])
    assert a.digest == b.digest
    for f in fields(a.history):
        if f.name != "seconds":
            np.testing.assert_array_equal(
                getattr(a.history, f.name), getattr(b.history, f.name)
            )
    np.testing.assert_array_equal(a.record.gradient_norms, b.record.gradient_norms)
    np.testing.assert_array_equal(a.record.step_sizes, b.record.step_sizes)
    assert torch.equal(a.record.initial, b.record.initial)
    assert a.record.training_residual == b.record.training_residual
    assert sorted(a.record.checkpoints) == sorted(b.record.checkpoints)
    for t, state in a.record.checkpoints.items():
        assert torch.equal(state, b.record.checkpoints[t])


# --- the same bits ------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_that_crashed_ends_as_if_it_never_had(tmp_path, name):
    config = CONFIGS[name]
    clean = simulate("ring", DATA, "logistic", config)
    path = crashed(tmp_path / "a", 5, config)
    with pytest.raises(PowerError):
        go_on(path, callbacks=[Crash(7)])
    run = go_on(path)
    for found in (run, load_run(path, data=DATA)):
        assert_same(found, clean)
        assert found.config == clean.config
    assert [r["round"] for r in rows(path)] == [2, 4, 6, 8, 9]
    assert run.info.get("faults") == clean.info.get("faults")
    assert run.ledger.entries == clean.ledger.entries
    assert len(run.ledger.entries) == (name == "private")


@pytest.mark.parametrize("after", range(1, 10))
def test_no_more_rounds_are_repeated_than_lie_between_checkpoints(
    tmp_path, after, monkeypatch
):
    path = crashed(tmp_path / "a", after)
    asked = []
    advance = Inline.advance
    monkeypatch.setattr(
        Inline, "advance", lambda self, t: (asked.append(t), advance(self, t))[1]
    )
    go_on(path)
    assert asked[-1:] == [8]
    assert after - asked[0] <= 2
    assert asked == list(range(asked[0], 9))


def test_before_the_first_checkpoint_a_run_starts_again_from_its_keys(tmp_path):
    path = crashed(tmp_path / "a", 3, execution=ExecutionConfig())
    assert not (path / "ckpt").exists()  # rounds of a millisecond each
    assert (path / "manifest.json").is_file()
    assert_same(go_on(path), simulate("ring", DATA, "logistic", MOMENTUM))
    assert [r["round"] for r in rows(path)] == [2, 4, 6, 8, 9]


def test_a_checkpoint_is_due_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "CHECKPOINT_SECONDS", 1e-9)
    path = crashed(tmp_path / "a", 4, execution=ExecutionConfig())
    found = sorted(p.name for p in (path / "ckpt").iterdir())
    assert found == ["round-000002", "round-000003"]  # the crash was before 4's own


def test_a_finished_run_stays_as_it_is(tmp_path):
    run = simulate("ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a")
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert_same(go_on(tmp_path / "a"), run)
    assert go_on(tmp_path / "a", rounds=9).digest == run.digest
    del before[tmp_path / "a/lock"]
    assert all(p.read_bytes() == raw for p, raw in before.items())


def test_data_and_model_of_ones_own_are_given_again(tmp_path):
    model = FlatModel.from_module(nn.Linear(6, 3), "cross-entropy", l2=0.1)
    path = crashed(tmp_path / "a", 5, model=model)
    with pytest.raises(MissingInputError, match="data: must be given"):
        resume(path)
    with pytest.raises(MissingInputError, match="model: must be given"):
        go_on(path)
    clean = simulate("ring", DATA, model, MOMENTUM)
    assert_same(go_on(path, model=model), clean)


def test_a_folder_is_taken_while_its_run_trains(tmp_path):
    class Other:
        def on_round(self, info):
            with pytest.raises(RunLockedError, match="in use by pid"):
                resume(tmp_path / "a", data=DATA)

    simulate(
        "ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a", callbacks=[Other()]
    )
    with RunFolder(tmp_path / "a").locked():
        pass  # and free afterwards


def test_an_interrupted_run_is_not_overwritten_and_not_loaded(tmp_path):
    path = crashed(tmp_path / "a", 5)
    with pytest.raises(InvalidArgumentError, match=r"interrupted.*resume\("):
        simulate("ring", DATA, "logistic", MOMENTUM, folder=path)
    with pytest.raises(StoreCorruptError, match="go on with: dfl-unlearn resume"):
        load_run(path, data=DATA)


def test_an_empty_folder_becomes_a_run_folder(tmp_path):
    (tmp_path / "a").mkdir()  # as a kill between two calls of the system leaves it
    (tmp_path / "a/.lock.tmp-1").write_bytes(b"")
    run = simulate("ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a")
    assert load_run(tmp_path / "a", data=DATA).digest == run.digest


def test_a_kernel_that_was_recorded_is_used_again(tmp_path, monkeypatch):
    path = crashed(tmp_path / "a", 5)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["info"]["arithmetic"] |= {"kernel": "loop", "chunk_peers": 2}
    (path / "manifest.json").write_text(json.dumps(manifest))
    used = []
    start = Inline.start

    def watched(self, setup, state, recorder=None):
        used.append((setup.config.kernel, setup.config.chunk_peers))
        start(self, setup, state, recorder)

    monkeypatch.setattr(Inline, "start", watched)
    run = go_on(path)
    assert used == [("loop", 2)]
    assert run.info["arithmetic"]["kernel"] == "loop"
    assert run.config.kernel == "auto"


# --- privacy ------------------------------------------------------------------


def test_private_rounds_are_charged_once_and_before_the_first(tmp_path):
    class Look:
        def on_round(self, info):
            found = PrivacyLedger.load(tmp_path / "a/ledger.jsonl").entries
            assert [e.mechanism.steps for e in found] == [9]
            if info.round == 3:
                raise PowerError

    with pytest.raises(PowerError):
        simulate(
            "ring", DATA, "logistic", PRIVATE, folder=tmp_path / "a", callbacks=[Look()]
        )
    run = go_on(tmp_path / "a")
    assert [e.state for e in run.ledger.entries] == ["committed"]
    longer = go_on(tmp_path / "a", rounds=12)
    assert [e.mechanism.steps for e in longer.ledger.entries] == [9, 3]
    assert [e.round for e in longer.ledger.entries] == [0, 9]
    straight = simulate("ring", DATA, "logistic", replace(PRIVATE, rounds=12))
    assert torch.equal(longer.state.params, straight.state.params)


def test_a_kill_before_the_charge_does_not_spare_it(tmp_path):
    path = crashed(tmp_path / "a", 1, PRIVATE)
    (path / "ledger.jsonl").write_bytes(b"")  # as between manifest and charge
    assert [e.mechanism.steps for e in go_on(path).ledger.entries] == [9]


def test_a_budget_that_does_not_suffice_leaves_nothing(tmp_path):
    config = replace(PRIVATE, privacy_budget=PrivacyBudget(epsilon_max=0.1))
    with pytest.raises(PrivacyBudgetExceededError):
        simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")
    assert not list((tmp_path / "a").glob("*.json*"))


def test_a_longer_private_run_must_fit_the_budget(tmp_path):
    spent = simulate("ring", DATA, "logistic", PRIVATE).ledger.epsilon(
        "*", "public", 1e-5
    )
    config = replace(PRIVATE, privacy_budget=PrivacyBudget(epsilon_max=1.01 * spent))
    simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")
    with pytest.raises(PrivacyBudgetExceededError):
        go_on(tmp_path / "a", rounds=40)
    assert len(PrivacyLedger.load(tmp_path / "a/ledger.jsonl").entries) == 1


# --- more rounds --------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "tracking", "own starts", "faults"])
def test_more_rounds_are_as_if_planned_from_the_start(tmp_path, name):
    config = CONFIGS[name]
    straight = simulate("ring", DATA, "logistic", replace(config, rounds=14))
    simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")
    run = go_on(tmp_path / "a", rounds=14)
    assert run.digest == straight.digest
    np.testing.assert_array_equal(run.history.rounds, straight.history.rounds)
    np.testing.assert_array_equal(
        run.record.gradient_norms, straight.record.gradient_norms
    )
    read = load_run(tmp_path / "a", data=DATA)
    assert read.digest == run.digest
    assert read.config.rounds == 14
    np.testing.assert_array_equal(read.history.rounds, run.history.rounds)


def test_an_interrupted_run_may_get_more_rounds(tmp_path):
    path = crashed(tmp_path / "a", 5)
    run = go_on(path, rounds=14)
    straight = simulate("ring", DATA, "logistic", replace(MOMENTUM, rounds=14))
    assert run.digest == straight.digest


@pytest.mark.parametrize("stop_at", ["checkpoint", "done", "manifest", "round"])
def test_a_kill_while_a_run_is_made_longer_leaves_a_run(tmp_path, monkeypatch, stop_at):
    simulate("ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a")
    straight = simulate("ring", DATA, "logistic", replace(MOMENTUM, rounds=14))

    def crash(*args, **kwargs):
        raise PowerError

    where = "dfl_unlearn.engine.resuming."
    callbacks = []
    if stop_at == "checkpoint":
        monkeypatch.setattr(where + "write_checkpoint", crash)
    elif stop_at == "done":
        monkeypatch.setattr(where + "_with_rounds", crash)
    elif stop_at == "manifest":
        monkeypatch.setattr(where + "_unfinished", crash)
    else:
        callbacks = [Crash(10)]
    with pytest.raises(PowerError):
        go_on(tmp_path / "a", rounds=14, callbacks=callbacks)
    monkeypatch.undo()
    longer = stop_at in ("manifest", "round")
    assert go_on(tmp_path / "a").state.round == (14 if longer else 9)
    assert go_on(tmp_path / "a", rounds=14).digest == straight.digest


REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])


def test_a_committed_run_goes_on_from_its_own_state(tmp_path):
    run = simulate("ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a")
    after = commit_outcome(unlearn(run, REQUEST, "newton-fisher", folder=run.folder))
    assert after.state.round == 10
    with pytest.raises(PowerError):
        go_on(run.folder, rounds=16, callbacks=[Crash(13)])
    longer = go_on(run.folder)
    assert longer.state.round == 16
    assert longer.requests == 1
    assert longer.record is None
    assert int(longer.data.retained[1]) == 5
    assert [past.request_id for past in longer.carried_out] == ["r0"]
    assert len(longer.ledger.entries) == 1
    by_hand, _ = loop.continue_training(after, after.data, after.state, 6)
    assert torch.equal(longer.state.params, by_hand.params)
    read = load_run(run.folder, data=DATA)
    assert read.digest == longer.digest
    assert read.history.rounds.tolist() == [2, 4, 6, 8, 12, 14, 16]
    second = unlearn(read, ForgetRequest.samples(peer=1, indices=[1]), "newton-fisher")
    assert second.request.request_id == "r1"


def test_what_was_forgotten_is_never_brought_back(tmp_path):
    run = simulate("ring", DATA, "logistic", MOMENTUM, folder=tmp_path / "a")
    commit_outcome(unlearn(run, REQUEST, "newton-fisher", folder=run.folder))
    with pytest.raises(PowerError):
        go_on(run.folder, rounds=16, callbacks=[Crash(11)])
    old = crashed(tmp_path / "b", 7)
    for place in (run.folder / "ckpt").iterdir():
        (place / "state.safetensors").write_bytes(b"")
    (old / "ckpt/round-000006").rename(run.folder / "ckpt/round-000006")
    (old / "record").rename(run.folder / "record")
    with pytest.raises(ResumeWouldUndoUnlearningError, match=r"round 6 from\s+before"):
        go_on(run.folder)
    for place in (run.folder / "ckpt").iterdir():
        place.rename(tmp_path / place.name)
    with pytest.raises(ResumeWouldUndoUnlearningError, match="got none"):
        go_on(run.folder)


# --- what may not differ ------------------------------------------------------


def test_other_settings_are_refused_by_name(tmp_path):
    path = crashed(tmp_path / "a", 5)
    other = replace(MOMENTUM, local=replace(MOMENTUM.local, learning_rate=0.05))
    with pytest.raises(
        ConfigMismatchError,
        match=r"training\.local\.learning_rate is 0\.05 here but 0\.1 in the check",
    ):
        go_on(path, config=other)
    with pytest.raises(ConfigMismatchError, match=r"training\.seed is 1 here but 0"):
        go_on(path, config=replace(MOMENTUM, seed=1))
    with pytest.raises(ConfigMismatchError, match="rounds is 8 here but 9"):
        go_on(path, rounds=8)
    with pytest.raises(InvalidArgumentError, match="execution: must not be given"):
        resume(path, data=DATA, execution=OFTEN, workers=2)
    assert go_on(path, config=replace(MOMENTUM, rounds=10)).state.round == 10


def test_rates_that_depend_on_the_length_keep_it(tmp_path):
    config = replace(MOMENTUM, local=LocalSteps(lr_schedule="cosine"))
    simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")
    with pytest.raises(ConfigMismatchError, match="'cosine'"):
        go_on(tmp_path / "a", rounds=10)
    assert (tmp_path / "a/done.json").is_file()


def test_other_data_are_refused_with_both_hashes(tmp_path):
    path = crashed(tmp_path / "a", 5)
    other = blobs([12, 7, 9, 10], seed=1)
    here, there = other.fingerprint()[:16], DATA.fingerprint()[:16]
    with pytest.raises(DataMismatchError, match=rf"{here}\.\.\. differs .*{there}"):
        resume(path, data=other)


def test_other_noise_is_refused(tmp_path):
    path = crashed(tmp_path / "a", 5)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["noise_self_check"][0] = "0x1p+0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NoiseStreamChangedError):
        go_on(path)


# --- the end ------------------------------------------------------------------


def test_a_kill_while_a_run_is_finished_costs_nothing(tmp_path, monkeypatch):
    clean = simulate("ring", DATA, "logistic", MOMENTUM)
    write, append = RunFolder.write_bytes, RunFolder.append
    for number in range(40):
        path, left = tmp_path / str(number), [number]

        def crash(self, rel, *args, left=left, **options):
            if left[0] == 0:
                raise PowerError
            left[0] -= 1
            return (append if isinstance(rel, dict) else write)(
                self, rel, *args, **options
            )

        monkeypatch.setattr(RunFolder, "write_bytes", crash)
        monkeypatch.setattr(RunFolder, "append", crash)
        try:
            simulate("ring", DATA, "logistic", MOMENTUM, folder=path, execution=OFTEN)
        except PowerError:
            monkeypatch.undo()
            if not (path / "manifest.json").is_file():  # nothing was begun
                simulate("ring", DATA, "logistic", MOMENTUM, folder=path)
            assert_same(go_on(path), clean)
            assert [r["round"] for r in rows(path)] == [2, 4, 6, 8, 9]
        else:
            break
    assert number > 15


def test_a_time_limit_ends_with_a_checkpoint(tmp_path):
    execution = ExecutionConfig(max_wall_s=1e-9)
    with pytest.raises(ResourceError, match=r"after round 1; resume with: dfl-unlearn"):
        simulate(
            "ring",
            DATA,
            "logistic",
            MOMENTUM,
            folder=tmp_path / "a",
            execution=execution,
        )
    assert [p.name for p in (tmp_path / "a/ckpt").iterdir()] == ["round-000001"]
    clean = simulate("ring", DATA, "logistic", MOMENTUM)
    assert_same(go_on(tmp_path / "a"), clean)
    with pytest.raises(ResourceError, match="nothing was kept"):
        simulate("ring", DATA, "logistic", MOMENTUM, execution=execution)


@pytest.mark.ray
def test_each_part_may_run_on_another_engine(tmp_path):
    config = replace(MOMENTUM, block_peers=1)
    clean = simulate("ring", DATA, "logistic", config)
    path = crashed(tmp_path / "a", 5, config)
    with pytest.raises(PowerError):
        go_on(path, engine="ray", workers=2, callbacks=[Crash(7)])
    assert_same(go_on(path), clean)
