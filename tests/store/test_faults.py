"""Run folders under kills, changed bytes, full disks and refused permission."""

import errno
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
import zlib

import pytest
import torch
from file_faults import refusals, survivors

from dfl_unlearn.errors import (
    InputFileError,
    InvalidArgumentError,
    StoreCorruptError,
    StoreWriteError,
)
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.log import log_records

ROWS = [{"type": "metric", "round": i, "value": i / 7} for i in range(100)]


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs", "demo")


def fresh(tmp_path):
    """Return what makes a new run folder with three records each time."""
    numbers = itertools.count()

    def prepare():
        folder = RunFolder.create(tmp_path / f"runs{next(numbers)}", "demo")
        for row in ROWS[:3]:
            folder.append(row)
        folder.write_text("a.txt", "old")
        return folder

    return prepare


def names(folder):
    return {str(p.relative_to(folder.root)) for p in folder.root.rglob("*")}


# --- kills -----------------------------------------------------------------------


def kills_while_writing(tmp_path, times, seed):
    """Kill writers at other moments each time; count what was durable and what torn."""
    code = (
        "import os, sys\n"
        "from dfl_unlearn.store.folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "first = sum(1 for _ in folder.records())\n"
        "for i in range(first, 10**6):\n"
        "    folder.append({'type': 'event', 'number': i, 'text': 'x' * (i % 97)})\n"
        "    os.write(1, b'%d\\n' % i)\n"
    )
    folder = RunFolder.create(tmp_path / "runs", "demo")
    generator = torch.Generator().manual_seed(seed)
    torn = kept = 0
    for _ in range(times):
        wait = float(torch.rand((), generator=generator)) * 0.05
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()  # it is writing
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            told = process.stdout.read().split()
        before = len(list(folder.root.glob("results.torn-*")))
        rows = list(RunFolder(folder.root).records())
        left = len(list(folder.root.glob("results.torn-*"))) - before
        assert [row["number"] for row in rows] == list(range(len(rows)))
        # Whole numbers only: the kill may have cut the last one.
        assert not told or len(rows) > int(told[-2 if len(told) > 1 else -1])
        assert len(rows) > kept
        assert left <= 1
        torn, kept = torn + left, len(rows)
    return kept, torn


def test_records_that_were_durable_survive_kills(tmp_path):
    kept, _ = kills_while_writing(tmp_path, times=3, seed=0)
    assert kept >= 3


@pytest.mark.chaos
def test_200_kills_while_writing_lose_no_durable_record(tmp_path):
    kept, torn = kills_while_writing(tmp_path, times=200, seed=1)
    assert kept >= 200
    assert torn <= 200


def test_a_kill_at_any_file_operation_leaves_records_and_files_whole(tmp_path):
    def write(folder):
        folder = RunFolder(folder.root)
        folder.append({"type": "end"})
        folder.write_text("a.txt", "new" * 100)
        folder.write_tensors("b/c.safetensors", {"x": torch.ones(3)})
        folder.finish("ab")

    points = 0
    for k, folder in survivors(fresh(tmp_path), write):
        points += 1
        again = RunFolder(folder.root)
        rows = list(again.records())
        assert rows in (ROWS[:3], [*ROWS[:3], {"type": "end"}]), k
        assert again.read_text("a.txt") in ("old", "new" * 100)
        if again.path("b/c.safetensors").exists():
            assert torch.equal(
                again.read_tensors("b/c.safetensors")["x"], torch.ones(3)
            )
        if again.is_done:
            assert again.read_json("done.json")["digest"] == "ab"
        write(again)
        assert again.is_done
    assert points >= 20


def test_a_kill_while_a_torn_line_is_set_aside_loses_nothing(tmp_path):
    prepare = fresh(tmp_path)

    def torn():
        folder = prepare()
        place = folder.path("results.jsonl")
        place.write_bytes(place.read_bytes()[:-5])
        return folder

    for _, folder in survivors(torn, lambda f: list(RunFolder(f.root).records())):
        assert list(RunFolder(folder.root).records()) == ROWS[:2]
        assert folder.path("results.torn-1").read_bytes()


# --- changed bytes ---------------------------------------------------------------


def flips(folder, positions, values):
    """Yield (position, outcome) after each change of one byte of the results."""
    whole = folder.read_bytes("results.jsonl")
    place = folder.path("results.jsonl")
    for position in positions(whole):
        for value in values(whole[position]):
            changed = bytearray(whole)
            changed[position] = value
            place.write_bytes(bytes(changed))
            try:
                yield whole, position, list(folder.records())
            except StoreCorruptError as error:
                yield whole, position, error
            for aside in folder.root.glob("results.torn-*"):
                aside.unlink()
    place.write_bytes(whole)


def check_flips(folder, positions, values):
    tried = 0
    for whole, position, found in flips(folder, positions, values):
        tried += 1
        line = whole[:position].count(b"\n")
        if isinstance(found, StoreCorruptError):
            start = whole[:position].rfind(b"\n") + 1
            assert f"line {line + 1} (byte offset {start})" in str(found)
            assert f"--drop-line {line + 1}" in str(found)
        else:  # set aside with the tail
            assert found == ROWS[: len(found)]
            assert len(found) in (98, 99)
    return tried


def test_changed_bytes_in_100_lines_are_noticed(folder):
    for row in ROWS:
        folder.append(row)
    end = len(folder.read_bytes("results.jsonl"))
    sample = [*range(0, end, 61), *range(end - 60, end)]
    tried = check_flips(folder, lambda whole: sample, lambda b: (b ^ 1, b ^ 0x80))
    assert tried == 2 * len(sample)


@pytest.mark.chaos
def test_every_changed_byte_in_100_lines_is_noticed(folder):
    for row in ROWS:
        folder.append(row)
    tried = check_flips(
        folder,
        lambda whole: range(len(whole)),
        lambda b: (*(b ^ (1 << k) for k in range(8)), 0x0A if b != 0x0A else 0x20),
    )
    assert tried == 9 * len(folder.read_bytes("results.jsonl"))


def test_a_damaged_line_is_dropped_into_a_repaired_copy(folder):
    for row in ROWS[:5]:
        folder.append(row)
    place = folder.path("results.jsonl")
    lines = place.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"round", b"rounb")
    lines[3] = lines[3][:9] + b"\n"
    place.write_bytes(b"".join(lines))
    with pytest.raises(StoreCorruptError, match=r"resume demo --drop-line 2"):
        list(folder.records())
    with pytest.raises(InvalidArgumentError, match=r"damaged one, got 1 of"):
        folder.drop_line(1)
    with pytest.raises(InvalidArgumentError, match=r"one of the 5 lines .* got 6"):
        folder.drop_line(6)
    before = place.stat().st_ino
    kept = folder.drop_line(2)
    assert kept.name == "results.dropped-1"
    assert kept.read_bytes() == lines[1]
    assert place.stat().st_ino != before  # a copy took its place
    assert folder.drop_line(3).read_bytes() == lines[3]
    assert list(folder.records()) == [ROWS[0], ROWS[2], ROWS[4]]


def test_a_kill_while_a_line_is_dropped_leaves_one_file_or_the_other(tmp_path):
    prepare = fresh(tmp_path)

    def damaged():
        folder = prepare()
        place = folder.path("results.jsonl")
        place.write_bytes(place.read_bytes().replace(b'"round":1', b'"round":5'))
        return folder

    for _, folder in survivors(damaged, lambda f: RunFolder(f.root).drop_line(2)):
        again = RunFolder(folder.root)
        try:
            rows = list(again.records())
        except StoreCorruptError:
            again.drop_line(2)
            rows = list(again.records())
        assert rows == [ROWS[0], ROWS[2]]
        assert any(
            b'"round":5' in p.read_bytes() for p in folder.root.glob("*.dropped-*")
        )


# --- full disks and refused permission ---------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, r"no space left in .* \(needed \d+ kB\)"),
        (errno.EDQUOT, r"no space left in .* \(needed \d+ kB\)"),
        (errno.EFBIG, r"no space left in .* \(needed \d+ kB\)"),
        (errno.EACCES, r"must be writable, got permission denied"),
    ],
)
def test_a_refusal_at_any_file_operation_leaves_the_folder_as_it_was(
    tmp_path, number, text
):
    actions = {
        "append": lambda f: RunFolder(f.root).append({"type": "end"}),
        "text": lambda f: f.write_text("a.txt", "new"),
        "tensors": lambda f: f.write_tensors("b.safetensors", {"x": torch.ones(3)}),
        "below": lambda f: f.write_json("d/e.json", {}),
        "finish": lambda f: f.finish("ab"),
    }
    points = 0
    for name, action in actions.items():
        for k, folder, error in refusals(fresh(tmp_path), action, number):
            points += 1
            assert isinstance(error, StoreWriteError), (name, k)
            assert error.exit_code == 5
            assert re.search(text, str(error)), (name, k)
            assert not [x for x in names(folder) if "tmp" in x], (name, k)
            again = RunFolder(folder.root)
            rows = list(again.records())
            assert rows == ROWS[:3], (name, k)
            # A move that could not be made durable may have happened.
            assert again.read_text("a.txt") in ("old", "new")
            action(again)
    assert points >= 20


@pytest.mark.parametrize(
    ("files", "safe"),
    [
        ((), "what was written before is intact"),
        (("ckpt/round-000060/x", "ckpt/round-000118/x"), "up to round 118 is safe"),
        (("ckpt/round-000118/x", "done.json"), "the finished run is safe"),
    ],
)
def test_a_full_disk_says_what_is_safe(folder, files, safe, monkeypatch):
    for file in files:
        folder.write_text(file, "x")

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreWriteError, match=safe):
        folder.write_bytes("state/final.safetensors", b"x" * 12_000)


# --- tensors -----------------------------------------------------------------------


def safetensors_of(header, data):
    text = header.encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 12, "12 bytes of"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', 12, "at byte 0"),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
            "overlap at byte 4",
        ),
        (
            '{"a":{"dtype":"F64","shape":[100000000000],"data_offsets":[0,8]}}',
            8,
            "8 bytes for 'a'",
        ),
        ('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4, "damaged shape"),
        ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', 4, "damaged"),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}', 4, "type 'F16'"),
        ('{"a":{"dtype":[],"shape":[2],"data_offsets":[0,4]}}', 4, "the type"),
        ('{"a":[]}', 0, "damaged entry for 'a'"),
        ('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1}}', 0, "entry"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_read(
    folder, header, data, match, monkeypatch
):
    def read(path):
        raise AssertionError("the tensors were read")

    monkeypatch.setattr("safetensors.torch.load_file", read)
    folder.write_bytes("x.safetensors", safetensors_of(header, b"\0" * data))
    with pytest.raises(StoreCorruptError, match=match):
        folder.read_tensors("x.safetensors")


@pytest.mark.parametrize(
    ("expected", "match"),
    [
        ({"x": (torch.float32, (2, 3)), "y": ("int64", ())}, None),
        (
            {"x": (torch.float32, (3, 2)), "y": ("int64", ())},
            r"float32 of shape \(2, 3\) for 'x' instead of float32 of shape \(3, 2\)",
        ),
        ({"x": ("float64", (2, 3)), "y": ("int64", ())}, "instead of float64"),
        ({"x": ("float32", (2, 3))}, "'y' instead of nothing"),
        (
            {"x": ("float32", (2, 3)), "y": ("int64", ()), "z": ("bool", ())},
            "nothing for 'z'",
        ),
    ],
)
def test_tensors_must_be_those_expected(folder, expected, match):
    folder.write_tensors("x.safetensors", {"x": torch.ones(2, 3), "y": torch.tensor(7)})
    if match is None:
        assert folder.read_tensors("x.safetensors", expected=expected)["y"] == 7
        return
    with pytest.raises(StoreCorruptError, match=match):
        folder.read_tensors("x.safetensors", expected=expected)


def test_every_cut_of_a_tensor_file_is_noticed(folder):
    whole = folder.write_tensors("x.safetensors", {"x": torch.ones(4)}).read_bytes()
    for size in range(len(whole)):
        folder.write_bytes("x.safetensors", whole[:size])
        with pytest.raises(StoreCorruptError):
            folder.read_tensors("x.safetensors")


def test_tensors_that_may_not_be_read_are_named(folder, monkeypatch):
    folder.write_tensors("x.safetensors", {"x": torch.ones(4)})

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(
        InputFileError, match=r"got permission denied; check its rights"
    ):
        folder.read_tensors("x.safetensors")


# --- the log -----------------------------------------------------------------------


def test_what_the_package_logs_while_a_folder_is_held_is_in_its_log(folder):
    logger = logging.getLogger("dfl_unlearn.somewhere")
    logger.warning("before")
    with folder.locked():
        logger.warning("peer %d\x1b[31m is slow", 3)
        logging.getLogger("another").warning("not ours")
    logger.warning("after")
    found = list(log_records(folder.path("log.jsonl")))
    assert [r["message"] for r in found] == ["peer 3[31m is slow"]
    assert found[0]["level"] == "WARNING"
    assert found[0]["logger"] == "dfl_unlearn.somewhere"
    assert found[0]["time"].startswith("20")


def test_a_line_of_the_log_that_was_cut_short_is_skipped(folder):
    logger = logging.getLogger("dfl_unlearn.somewhere")
    with folder.locked():
        logger.warning("one")
        logger.warning("two")
    place = folder.path("log.jsonl")
    place.write_bytes(place.read_bytes()[:-9])
    with folder.locked():
        logger.warning("three")
    assert [r["message"] for r in log_records(place)] == ["one", "three"]


def test_a_log_that_cannot_be_written_ends_nothing(folder):
    folder.path("log.jsonl").mkdir()
    with folder.locked():
        logging.getLogger("dfl_unlearn.somewhere").warning("lost")
    assert list(folder.path("log.jsonl").iterdir()) == []


def test_the_checksum_is_the_crc_of_the_json_alone(folder):
    folder.append(ROWS[0])
    line = folder.read_bytes("results.jsonl")
    assert int(line[:8], 16) == zlib.crc32(line[9:-1])
