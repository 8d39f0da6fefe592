"""Checkpoints on disk: whole or not there, verified in every byte, never undone."""

import errno
import json
import os
import shutil
import stat

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn import resume
from dfl_unlearn.engine import checkpoint
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.progress import Progress
from dfl_unlearn.engine.resuming import reopen
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    ConfigMismatchError,
    DataMismatchError,
    LedgerCorruptError,
    NoValidCheckpointError,
    StoreWriteError,
    UnsafeFormatError,
)
from dfl_unlearn.store.folder import RunFolder

DATA = blobs([6, 5, 4])
CONFIG = SimulationConfig(
    rounds=9, local=LocalSteps(batch_size=3, momentum=0.3), evaluate_every=2
)
CLEAN = simulate("path", DATA, "logistic", CONFIG).digest


class StopError(Exception):
    """Training ends here."""


class Stop:
    def on_round(self, info):
        if info.round == 8:
            raise StopError


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    with pytest.raises(StopError):
        simulate(
            "path",
            DATA,
            "logistic",
            CONFIG,
            folder=path,
            execution=ExecutionConfig(checkpoint_every=3, keep=2),
            callbacks=[Stop()],
        )
    return path


@pytest.fixture
def path(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "a")
    return tmp_path / "a"


def newest(path, data=DATA):
    folder = RunFolder(path)
    with folder.locked():
        run = reopen(folder, data=data)
        return checkpoint.newest_checkpoint(folder, run.identity)


def edit(place, change):
    """Change a manifest as a program would, its hash included."""
    value = json.loads(place.read_text())
    del value["check"]
    change(value)
    value["check"] = checkpoint._text_hash(value)
    place.write_text(json.dumps(value))


def names(path):
    return sorted(p.name for p in (path / "ckpt").iterdir())


def test_the_newest_stay_and_only_their_owner_reads_them(path):
    assert names(path) == ["round-000003", "round-000006"]
    for place in (path / "ckpt").iterdir():
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert {p.name for p in place.iterdir()} == {
            "manifest.json",
            "state.safetensors",
        }
        assert {stat.S_IMODE(p.stat().st_mode) for p in place.iterdir()} == {0o600}


def test_a_checkpoint_has_all_that_the_next_round_depends_on(path):
    found = newest(path)
    assert found.state.round == 6
    assert set(found.state.slots) == {"momentum"}
    assert found.recorded.rates.tolist() == [0.1] * 6
    assert found.recorded.norms.shape == (6, 3)
    assert sorted(found.recorded.checkpoints) == [1, 2, 3, 4, 5, 6]
    assert [row[0] for row in found.rows] == [2, 4, 6]
    again = Progress.of_arrays(
        {name: torch.as_tensor(value) for name, value in found.arrays().items()},
        round=6,
        seconds=found.seconds,
        faults=found.faults,
        states=found.recorded.checkpoints,
    )
    assert again.arrays().keys() == found.arrays().keys()
    known = json.loads((path / "ckpt/round-000006/manifest.json").read_text())
    assert known["contains_pre_request_state"] is False
    assert known["ledger"] == [-1, "0" * 64]
    assert known["arithmetic"]["threads"] == 1
    assert known["arithmetic"]["block_peers"] == 16


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
def test_any_flipped_byte_is_noticed_and_the_next_older_is_taken(
    path, name, share, caplog
):
    place = path / "ckpt/round-000006" / name
    raw = bytearray(place.read_bytes())
    raw[int(share * len(raw))] ^= 0x10
    place.write_bytes(raw)
    found = newest(path)
    assert found.state.round == 3
    assert names(path) == ["round-000003", "round-000006.bad"]
    assert "does not verify and is now round-000006.bad" in caplog.text
    assert resume(path, data=DATA).digest == CLEAN


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "state.safetensors").unlink(),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "state.safetensors").write_bytes(b""),
        lambda place: (place / "manifest.json").write_text("[]"),
        lambda place: edit(place / "manifest.json", lambda m: m.update(format=2)),
        lambda place: edit(place / "manifest.json", lambda m: m.update(round=5)),
        lambda place: edit(place / "manifest.json", lambda m: m.update(graph="0")),
        lambda place: edit(place / "manifest.json", lambda m: m.pop("record")),
        lambda place: edit(
            place / "manifest.json", lambda m: m["arrays"].pop("params")
        ),
        lambda place: edit(place / "manifest.json", lambda m: m.update(requests=["r"])),
        lambda place: edit(
            place / "manifest.json", lambda m: m["record"].update({"../x": "0"})
        ),
        lambda place: (place.parents[1] / "record/round-000004.safetensors").unlink(),
    ],
)
def test_what_is_missing_or_foreign_makes_a_checkpoint_bad(path, damage):
    damage(path / "ckpt/round-000006")
    assert newest(path).state.round == 3
    assert resume(path, data=DATA).digest == CLEAN


def test_other_settings_or_data_are_said_in_words(path):
    place = path / "ckpt/round-000006/manifest.json"
    edit(place, lambda m: m["training"]["local"].update(momentum=0.4))
    with pytest.raises(
        ConfigMismatchError, match=r"local\.momentum is 0\.3 here but 0\.4"
    ):
        newest(path)
    edit(place, lambda m: m["training"]["local"].update(momentum=0.3))
    edit(place, lambda m: m.update(data="f" * 64))
    with pytest.raises(DataMismatchError, match=r"differs from checkpoint ffff"):
        newest(path)
    assert names(path) == ["round-000003", "round-000006"]


def test_without_a_valid_one_all_are_listed(path):
    for place in (path / "ckpt").iterdir():
        (place / "state.safetensors").write_bytes(b"\0" * 50)
    for _ in range(2):  # what was set aside counts the next time as well
        with pytest.raises(NoValidCheckpointError) as caught:
            resume(path, data=DATA)
        for part in ("2 that do not", "round-000003", "round-000006", "remove ckpt/"):
            assert part in str(caught.value)
    shutil.rmtree(path / "ckpt")
    assert resume(path, data=DATA).digest == CLEAN


def test_a_ledger_that_lost_charges_is_no_reason_to_go_further_back(path):
    def claims_a_charge(manifest):
        manifest["ledger"] = [0, "1" * 64]

    edit(path / "ckpt/round-000006/manifest.json", claims_a_charge)
    with pytest.raises(LedgerCorruptError):
        newest(path)
    assert names(path) == ["round-000003", "round-000006"]


def test_what_a_dead_writer_left_is_removed(path):
    left = path / "ckpt/round-000008.tmp-12345"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    assert newest(path).state.round == 6
    assert names(path) == ["round-000003", "round-000006"]


def test_a_link_in_the_place_of_a_checkpoint_is_refused(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (path / "ckpt/round-000007").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFormatError, match="symbolic link"):
        newest(path)


def test_a_full_disk_stops_the_run_and_says_what_is_safe(path, monkeypatch):
    real = os.fsync

    def full(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            name = os.readlink(f"/proc/self/fd/{handle}")
            if "tmp-" in name and "ckpt" in name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match=r"no space left.*round 6 is safe") as bad:
        resume(path, data=DATA, checkpoint_every=1)
    assert bad.value.exit_code == 5
    monkeypatch.undo()
    assert names(path) == ["round-000003", "round-000006"]
    assert resume(path, data=DATA).digest == CLEAN


def test_older_ones_are_removed_only_after_the_newest_was_read_back(path, monkeypatch):
    def lies(folder, place, identity):
        raise StoreWriteError("read back wrong")

    folder = RunFolder(path)
    with folder.locked():
        run = reopen(folder, data=DATA)
        found = checkpoint.newest_checkpoint(folder, run.identity)
        monkeypatch.setattr(checkpoint, "_read", lies)
        with pytest.raises(StoreWriteError, match="read back wrong"):
            checkpoint.write_checkpoint(
                folder, found, run.identity, ledger=(-1, "0" * 64), keep=1
            )
    assert names(path) == ["round-000003", "round-000006"]
