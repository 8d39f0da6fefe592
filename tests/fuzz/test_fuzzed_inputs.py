"""20,000 damaged inputs in every ordinary run, and all that ever broke something."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz import harness
from fuzz.harness import Bench, Misread, Report, Target, attempt, guarded, tried_many
from fuzz.mutate import NUMBERS, VALUES, edited, json_edits, mutated
from fuzz.targets import TARGETS, shares

from dfl_unlearn.errors import InputFileError, StaleStateError

INPUTS = 20_000
REGRESSIONS = Path(__file__).parent / "regressions"
BROKEN = sorted(REGRESSIONS.glob("*/*.bin"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Benches by target name; each is built once."""
    built = {}

    def get(name):
        if name not in built:
            place = tmp_path_factory.mktemp(name)
            built[name] = place, TARGETS[name].build(place)
        return built[name]

    return get


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_input_gives_a_value_or_a_clear_error(name, bench):
    place, one = bench(name)
    count = shares(INPUTS, list(TARGETS))[name]
    report = tried_many(
        TARGETS[name], one, place, seed=0, indices=range(count), memory=False
    )
    assert not report.failures, "\n".join(
        f"input {f.index}: {f.detail}" for f in report.failures.values()
    )
    assert report.values + report.errors == report.inputs == count
    assert report.errors > 0


@pytest.mark.fuzz
@pytest.mark.parametrize("path", BROKEN, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_broke_something_once_does_not_again(path, bench):
    place, one = bench(path.parent.name)
    data = path.read_bytes()
    with guarded(place, memory=False):
        kind, _, detail, _ = attempt(one, data)
    assert kind != "failure", detail


def test_every_target_has_a_seed_that_is_accepted(bench):
    for name in TARGETS.keys() - {"cifar"}:
        _, one = bench(name)
        assert any(attempt(one, seed)[0] == "value" for seed in one.seeds), name


# --- the harness itself can fail -------------------------------------------------


def tried(what, root):
    one = Bench([b"x"], lambda rng: b"x", what)
    with guarded(root, memory=False):
        return attempt(one, b"x")[:3]


def test_any_other_exception_is_a_failure_with_its_place(tmp_path):
    def broken(data):
        raise KeyError("gone")

    kind, signature, detail = tried(broken, tmp_path)
    assert kind == "failure"
    assert "KeyError" in signature
    assert "gone" in detail
    assert tried(lambda data: 1, tmp_path)[0] == "value"


def test_an_error_of_the_package_is_none_unless_its_code_is_that_of_a_bug(tmp_path):
    def refused(data):
        raise InputFileError("no such file")

    def lost(data):
        raise StaleStateError("a worker's rows")

    def silent(data):
        raise InputFileError(" ")

    assert tried(refused, tmp_path)[0] == "error"
    assert "code 1" in tried(lost, tmp_path)[2]
    assert "says nothing" in tried(silent, tmp_path)[2]


def test_memory_that_ran_out_is_a_failure_under_any_error(tmp_path):
    def hidden(data):
        try:
            raise MemoryError("745 GiB")
        except Exception as error:
            raise InputFileError("damaged") from error

    assert "745 GiB" in tried(hidden, tmp_path)[2]


def test_a_slow_input_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.05)

    def slow(data):
        while True:
            pass

    assert "TooSlow" in tried(slow, tmp_path)[1]


@pytest.mark.parametrize(
    "what",
    [
        lambda root: (root.parent / "outside").write_text("x"),
        lambda root: (root / ".." / "outside").mkdir(),
        lambda root: (root / "inside").rename(root.parent / "outside"),
        lambda root: (root / "link").symlink_to(root),
        lambda root: subprocess.run([sys.executable, "-c", "pass"], check=False),
        lambda root: socket.socket().bind(("127.0.0.1", 0)),
        lambda root: os.system("true"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_no_input_may_do_is_stopped(tmp_path, what):
    root = tmp_path / "root"
    root.mkdir()
    (root / "inside").write_text("x")
    kind, signature, _ = tried(lambda data: what(root), root)
    assert kind == "failure"
    assert "Forbidden" in signature
    assert not (tmp_path / "outside").exists()


def test_a_misread_value_is_a_failure(tmp_path):
    def misread(data):
        raise Misread("another meaning: 3")

    assert tried(misread, tmp_path)[1].startswith("Misread: another meaning")


def test_the_same_number_gives_the_same_input_and_failures_are_counted(tmp_path):
    words = [b"a", b"="]
    seeds = [b"x = 1\n[a]\n", b"{}"]
    one = [mutated(seeds[0], seeds, Random(f"0/t/{k}"), words) for k in range(200)]
    assert one == [
        mutated(seeds[0], seeds, Random(f"0/t/{k}"), words) for k in range(200)
    ]
    assert len(set(one)) > 120

    def broken(data):
        raise ValueError(len(data))

    bench = Bench(seeds, lambda rng: mutated(seeds[0], seeds, rng, words), broken)
    target = Target("t", 1, lambda place: bench)
    report = tried_many(
        target, bench, tmp_path, seed=0, indices=range(20), memory=False
    )
    assert isinstance(report, Report)
    assert [f.times for f in report.failures.values()] == [20]
    assert "20 inputs" in report.line()


def test_json_edits_reach_every_kind_of_damage():
    value = {"a": {"b": [1, {"c": "x"}]}, "d": None}
    texts = [
        edited(value, json_edits(value, Random(f"{k}"))).decode() for k in range(500)
    ]
    assert edited(value, []) == b'{"a": {"b": [1, {"c": "x"}]}, "d": null}'
    assert any(text.count('"d":') == 2 for text in texts)
    assert any('"d"' not in text for text in texts)
    for raw in (NUMBERS[-1], VALUES[-1], "nan"):
        assert any(raw in text for text in texts)
