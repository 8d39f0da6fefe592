import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.errors import (
    ConfigError,
    InputFileError,
    InvalidArgumentError,
    InvalidTypeError,
    RunLockedError,
    StoreCorruptError,
    StoreWriteError,
    UnsafeFormatError,
)
from dfl_unlearn.store.files import make_folder
from dfl_unlearn.store.folder import RunFolder, runs_root


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs", "demo")


def listing(folder):
    return sorted(p.name for p in folder.root.iterdir())


def test_runs_root_takes_the_argument_then_the_variable_then_the_default(monkeypatch):
    monkeypatch.setenv("DFL_UNLEARN_RUNS", "from-variable")
    assert str(runs_root("given")) == "given"
    assert str(runs_root()) == "from-variable"
    monkeypatch.delenv("DFL_UNLEARN_RUNS")
    assert str(runs_root()) == "runs"


def test_an_existing_name_gets_a_number_and_nothing_is_overwritten(tmp_path):
    names = [RunFolder.create(tmp_path, "demo").name for _ in range(3)]
    assert names == ["demo", "demo-2", "demo-3"]


def test_a_numbered_long_name_is_still_a_legal_name(tmp_path):
    name = "a" * 64
    RunFolder.create(tmp_path, name)
    assert RunFolder.create(tmp_path, name).name == "a" * 62 + "-2"


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "a" * 65, "ä"])
def test_a_bad_run_name_is_refused_and_nothing_is_made(tmp_path, name):
    with pytest.raises(ConfigError, match="name: must match"):
        RunFolder.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_link_in_place_of_a_run_folder_is_refused(tmp_path):
    real = RunFolder.create(tmp_path, "real")
    (tmp_path / "link").symlink_to(real.root)
    with pytest.raises(UnsafeFormatError, match="link: must be a real folder"):
        RunFolder(tmp_path / "link")
    with pytest.raises(UnsafeFormatError, match="remove the link"):
        RunFolder.create(tmp_path, "link")


def test_opening_what_is_not_a_run_folder_says_what_to_do(tmp_path):
    with pytest.raises(InputFileError, match=r"nothing there; make one with"):
        RunFolder(tmp_path / "absent")
    with pytest.raises(InputFileError, match=r"without lock and manifest\.json"):
        RunFolder(tmp_path)


def test_a_root_that_is_a_file_is_a_write_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreWriteError, match="must be writable"):
        RunFolder.create(tmp_path / "file", "demo")


@pytest.mark.parametrize("rel", ["../x", "/etc/x", "a/../../x", "", "a//b", "a\0"])
def test_a_path_out_of_the_folder_is_refused(folder, rel):
    with pytest.raises(InvalidArgumentError, match="inside the run folder"):
        folder.write_text(rel, "x")


def test_a_link_inside_the_folder_is_refused(folder, tmp_path):
    (folder.root / "outcomes").symlink_to(tmp_path)
    with pytest.raises(UnsafeFormatError, match="symbolic link"):
        folder.write_text("outcomes/x.json", "x")
    assert not (tmp_path / "x.json").exists()


def test_json_comes_back_and_equal_values_give_equal_files(folder):
    folder.write_json("a/config.json", {"b": [1, 2.5, None], "a": {"ä": True}})
    folder.write_json("b.json", {"a": {"ä": True}, "b": [1, 2.5, None]})
    assert folder.read_json("b.json") == {"a": {"ä": True}, "b": [1, 2.5, None]}
    assert folder.read_bytes("a/config.json") == folder.read_bytes("b.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_json_that_is_not_finite_or_not_plain_is_refused(folder, value):
    with pytest.raises(InvalidArgumentError, match=r"x\.json: must hold finite"):
        folder.write_json("x.json", {"value": value})
    assert listing(folder) == ["lock"]


@pytest.mark.parametrize(
    "text", ["{", '{"a":1,"a":2}', '{"a":NaN}', "[" * 100_000, "\udcff"]
)
def test_damaged_json_names_the_file(folder, text):
    folder.write_bytes("x.json", text.encode(errors="surrogateescape"))
    with pytest.raises(StoreCorruptError, match=r"x\.json: must be"):
        folder.read_json("x.json")


def test_a_missing_file_is_named(folder):
    with pytest.raises(InputFileError, match=r"absent\.json: must be a readable file"):
        folder.read_json("absent.json")
    with pytest.raises(InputFileError, match=r"absent\.safetensors"):
        folder.read_tensors("absent.safetensors")


def test_tensors_come_back_bit_for_bit(folder):
    tensors = {
        "params": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "transposed": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "mask": np.array([True, False]),
        "image": np.arange(4, dtype=np.uint8),
    }
    place = folder.write_tensors("state/final.safetensors", tensors)
    back = folder.read_tensors("state/final.safetensors")
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(back[name], torch.as_tensor(value)), name
        assert back[name].dtype == torch.as_tensor(value).dtype
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_tensor_of_another_type_is_refused(folder):
    with pytest.raises(InvalidTypeError, match=r"half must be one of .* got float16"):
        folder.write_tensors("x.safetensors", {"half": torch.zeros(2).half()})


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_damaged_tensors_are_read_with_other_values_or_refused(
    tmp_path_factory, position, value
):
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "x")
    place = folder.write_tensors("x.safetensors", {"a": torch.arange(40)})
    data = bytearray(place.read_bytes())
    data[position % len(data)] = value
    folder.write_bytes("x.safetensors", bytes(data))
    with suppress(StoreCorruptError):
        folder.read_tensors("x.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (2**24 + 1).to_bytes(8, "little") + b" " * (2**24 + 1),
        (59).to_bytes(8, "little")
        + b'{"a":{"dtype":"F64","shape":[1000],"data_offsets":[0,8000]}}',
    ],
)
def test_a_file_that_is_not_safetensors_is_corrupt(folder, data):
    folder.write_bytes("x.safetensors", data)
    with pytest.raises(StoreCorruptError, match="intact safetensors"):
        folder.read_tensors("x.safetensors")


def test_records_come_back_in_order_with_the_checksum_of_their_bytes(folder):
    rows = [{"type": "round", "round": i, "loss": i / 3} for i in range(5)]
    for row in rows:
        folder.append(row)
    assert list(folder.records()) == rows
    first = folder.read_bytes("results.jsonl").split(b"\n")[0]
    # The CRC-32 of the canonical JSON, as gzip's trailer has it.
    assert first == b'a627da35 {"loss":0.0,"round":0,"type":"round"}'


def test_a_torn_last_line_is_set_aside_and_the_next_record_starts_clean(folder, caplog):
    folder.append({"type": "round", "round": 1})
    folder.append({"type": "round", "round": 2})
    place = folder.path("results.jsonl")
    place.write_bytes(place.read_bytes()[:-7])
    again = RunFolder(folder.root)
    again.append({"type": "end"})
    assert [r["type"] for r in again.records()] == ["round", "end"]
    assert "results.torn-1" in caplog.text
    assert folder.path("results.torn-1").read_bytes() == b"d75b6b49 " + (
        b'{"round":2,"type":"r'
    )


def test_a_torn_line_stays_while_another_process_may_be_writing_it(folder):
    folder.append({"type": "round", "round": 1})
    with folder.path("results.jsonl").open("ab") as file:
        file.write(b"0123")
    reader = RunFolder(folder.root)
    with folder.locked():
        assert len(list(reader.records())) == 1
        assert folder.read_bytes("results.jsonl").endswith(b"0123")
    assert len(list(reader.records())) == 1
    assert not folder.read_bytes("results.jsonl").endswith(b"0123")


def test_every_single_damaged_byte_in_the_results_is_noticed(folder):
    rows = [{"type": "metric", "value": i} for i in range(4)]
    for row in rows:
        folder.append(row)
    whole = folder.read_bytes("results.jsonl")
    last = whole[:-1].rindex(b"\n") + 1
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        folder.write_bytes("results.jsonl", bytes(damaged))
        if position < last - 1:
            number = whole[:position].count(b"\n") + 1
            start = whole[:position].rfind(b"\n") + 1
            where = re.escape(f"line {number} (byte offset {start})")
            with pytest.raises(StoreCorruptError, match=where):
                list(folder.records())
        else:
            kept = list(folder.records())
            assert kept == rows[: len(kept)]
            assert len(kept) < len(rows)


def test_a_locked_folder_names_the_process_that_holds_it(folder):
    other = RunFolder(folder.root)
    with (
        folder.locked(),
        folder.locked(),
        pytest.raises(
            RunLockedError,
            match=rf"in use by pid {os.getpid()} since 2\d{{3}}-.*Z; if that",
        ),
        other.locked(),
    ):
        pass
    with other.locked():
        pass


def test_the_lock_of_a_killed_process_is_released_by_itself(folder):
    code = (
        "import sys, time\n"
        "from dfl_unlearn.store.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n"
        "    sys.stdout.write('held\\n'); sys.stdout.flush(); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunLockedError, match=f"pid {process.pid}"), folder.locked():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with folder.locked():
        pass


@contextmanager
def no_space():
    """Files may not grow beyond 4 KiB, as on a full disk.

    No longer than needed: the limit also holds for the log that pytest writes to.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new(folder):
    folder.write_text("a.txt", "old")
    text = "x" * 12_000
    expected = r"a\.txt: no space left in .*demo/ \(needed 12 kB"
    with no_space(), pytest.raises(StoreWriteError, match=expected):
        folder.write_text("a.txt", text)
    assert folder.read_text("a.txt") == "old"
    assert listing(folder) == ["a.txt", "lock"]


def test_a_full_disk_leaves_whole_lines_in_the_results(folder):
    row = {"type": "metric", "text": "x" * 900}
    for _ in range(4):
        folder.append(row)
    with no_space(), pytest.raises(StoreWriteError, match="no space left"):
        folder.append(row)
    assert len(list(folder.records())) == 4
    assert listing(folder) == ["lock", "results.jsonl"]


def test_the_run_is_done_only_when_it_says_so(folder):
    folder.append({"type": "end"})
    assert not folder.is_done
    folder.finish("ab12")
    assert RunFolder(folder.root).is_done
    assert folder.read_json("done.json")["digest"] == "ab12"


def test_a_reader_sees_the_old_or_the_new_file_when_a_writer_is_killed(folder):
    folder.write_text("a.txt", "0" * 100_000)
    code = (
        "import sys\n"
        "from dfl_unlearn.store.folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "sys.stdout.write('go\\n'); sys.stdout.flush()\n"
        "for i in range(10**6):\n"
        "    folder.write_text('a.txt', str(i % 10) * 100_000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"go\n"
        for _ in range(200):
            assert len(set(folder.read_text("a.txt"))) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = folder.read_text("a.txt")
    assert len(text) == 100_000
    assert len(set(text)) == 1


def test_a_folder_that_another_program_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    is_dir, too_early = Path.is_dir, [False]
    monkeypatch.setattr(
        Path, "is_dir", lambda path: too_early.pop() if too_early else is_dir(path)
    )
    make_folder(tmp_path)
    assert not too_early
