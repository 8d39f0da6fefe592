"""Attempts and commits that are killed at every file operation, and go on."""

import errno
import itertools
import json
import logging
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from file_faults import refusals, survivors
from networks import blobs

from dfl_unlearn.accounting.certificate import KEPT_STATE
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    LedgerCorruptError,
    PrivacyBudgetExceededError,
    ReplayDivergedError,
    RunLockedError,
    StoreCorruptError,
    StoreWriteError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes

LOG = logging.getLogger(__name__)
DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(rounds=6, local=LocalSteps(batch_size=5), evaluate_every=2)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
PLACE = "outcomes/r0"
PROTOCOLS = {
    "newton-fisher": NewtonFisher(),
    "newton-fisher-secure": NewtonFisher(noise_mode="secure"),
    "fine-tune": FineTune(rounds=3),
    "rr-du": RrDu(hops=12, public_radius=5.0),
    "retrain": Retrain(),
}
ANY_REPEATED = ("newton-fisher", "fine-tune", "rr-du", "retrain")
EACH = [7, pytest.param(1, marks=pytest.mark.chaos)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = simulate(
        "ring", DATA, "logistic", CONFIG, folder=tmp_path_factory.mktemp("t") / "a"
    )
    return run.folder


@pytest.fixture
def copies(trained, tmp_path):
    """Return what makes a new copy of the trained run's folder each time."""
    numbers = itertools.count()

    def copy(source=trained):
        place = tmp_path / f"copy-{next(numbers)}" / "a"
        shutil.copytree(source, place)
        return place

    return copy


def asked(folder, protocol, request=REQUEST, **options):
    run = load_run(folder, data=DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unlearn(run, request, protocol, folder=folder, **options)


def place_of(folder):
    (place,) = (folder / "outcomes").iterdir()
    return place


def timeless(path):
    known = json.loads(path.read_text())
    del known["cost"]["wall_seconds"]
    return known


def assert_same_attempt(place, clean):
    """All files but the time it took are the same."""
    names = {p.name for p in clean.iterdir()}
    found = {p.name for p in place.iterdir()}
    assert {n for n in found if "torn" not in n} == names
    for name in names - {"outcome.json"}:
        assert (place / name).read_bytes() == (clean / name).read_bytes(), name
    assert timeless(place / "outcome.json") == timeless(clean / "outcome.json")


# --- unlearn, killed and asked again ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("newton-fisher", 5),
        ("retrain", 9),
        *(pytest.param(x, 1, marks=pytest.mark.chaos) for x in ANY_REPEATED),
    ],
)
def test_an_attempt_killed_at_any_file_operation_goes_on_as_if_it_had_not_been(
    copies, name, step
):
    protocol = PROTOCOLS[name]
    clean = copies()
    expected = asked(clean, protocol, reference=name == "newton-fisher")
    points = charged = 0
    for _, folder in survivors(
        copies,
        lambda f: asked(f, protocol, reference=name == "newton-fisher"),
        step=step,
    ):
        points += 1
        ledgers = list(folder.glob("outcomes/*/ledger.jsonl"))
        charged += any(ledger.stat().st_size for ledger in ledgers)
        outcome = asked(folder, protocol, reference=name == "newton-fisher")
        assert outcome.request.request_id == "r0"
        assert outcome.certificate == expected.certificate
        assert torch.equal(outcome.state.params, expected.state.params)
        assert outcome.ledger.entries == expected.ledger.entries
        if len(list((folder / "outcomes").iterdir())) == 2:
            # Killed after its very last operation: it was complete.
            shutil.rmtree(folder / f"outcomes/r0.{name}-2")
        assert_same_attempt(place_of(folder), place_of(clean))
        assert load_run(folder, data=DATA).ledger.entries == ()
    assert points >= 40 // step
    assert charged >= 20 // step or not expected.ledger.entries
    LOG.info("kills: %s", points)


@pytest.mark.parametrize("step", EACH)
def test_secure_noise_that_was_drawn_is_sent_again(copies, step):
    """Noise of the operating system is never drawn twice for one release."""
    protocol = PROTOCOLS["newton-fisher-secure"]
    points = sent_again = 0
    for _, folder in survivors(copies, lambda f: asked(f, protocol), step=step):
        points += 1
        kept = list(folder.glob("outcomes/*/released-0.safetensors"))
        noted = list(folder.glob("outcomes/*/releases.jsonl"))
        before = kept[0].read_bytes() if kept else None
        was_noted = bool(noted) and b"}\n" in noted[0].read_bytes()
        outcome = asked(folder, protocol)
        assert outcome.request.request_id == "r0"
        place = folder / "outcomes/r0.newton-fisher"
        assert [e.state for e in outcome.ledger.entries] == ["committed"]
        after = place / "released-0.safetensors"
        assert after.stat().st_mode & 0o777 == 0o600
        if was_noted:
            assert after.read_bytes() == before
            sent_again += 1
    assert points >= 35 // step
    assert sent_again >= 1
    LOG.info("kills: %s", points)


class AtPower(RuntimeError):
    """The machine stops."""


@contextmanager
def power_cut(monkeypatch, where="dfl_unlearn.engine.transport.Transport.broadcast"):
    def cut(*args, **kwargs):
        raise AtPower

    with monkeypatch.context() as patch:
        patch.setattr(where, cut)
        try:
            yield
        except AtPower:
            return
    raise AssertionError("it went on without power")


@pytest.mark.parametrize("name", ["newton-fisher", "newton-fisher-secure"])
def test_bytes_that_were_noted_are_the_only_ones_that_are_sent(
    copies, monkeypatch, name
):
    folder, protocol = copies(), PROTOCOLS[name]
    with power_cut(monkeypatch):
        asked(folder, protocol)
    (note,) = (folder / "outcomes").glob("*/releases.jsonl")
    sent = []
    monkeypatch.setattr(
        "dfl_unlearn.engine.transport.Transport.broadcast",
        lambda *args, **kwargs: sent.append(args),
    )
    if name.endswith("secure"):
        place = note.with_name("released-0.safetensors")
        content = bytearray(place.read_bytes())
        content[-1] ^= 1
        place.write_bytes(bytes(content))
        with pytest.raises(StoreCorruptError, match=r"must be the value\s+released as"):
            asked(folder, protocol)
    else:
        normal = RngTree.normal
        monkeypatch.setattr(
            RngTree, "normal", lambda *args, **more: normal(*args, **more) + 1e-6
        )
        with pytest.raises(ReplayDivergedError, match=r"bytes .* noted before"):
            asked(folder, protocol)
    assert sent == []
    ledger = PrivacyLedger.load(note.with_name("ledger.jsonl"))
    assert [e.state for e in ledger.entries] == ["reserved"]  # neither twice nor back


def test_an_attempt_that_would_be_charged_otherwise_is_refused(copies, monkeypatch):
    folder = copies()
    with power_cut(monkeypatch):
        asked(folder, "newton-fisher")
    place = folder / "outcomes/r0.newton-fisher/ledger.jsonl"
    before = place.read_bytes()
    monkeypatch.setattr(
        "dfl_unlearn.unlearning.newton_release.noise_multiplier_for",
        lambda *args, **more: 99.0,
        raising=False,
    )
    original = PrivacyLedger.charge_owners

    def other(self, *args, **more):
        return original(self, *args, **{**more, "status": "another"})

    monkeypatch.setattr(PrivacyLedger, "charge_owners", other)
    with pytest.raises(ReplayDivergedError, match=r"ledger.jsonl line 1: must be"):
        asked(folder, "newton-fisher")
    assert place.read_bytes() == before


def test_an_attempt_that_charges_less_than_before_is_refused(copies, monkeypatch):
    folder = copies()
    asked(folder, "newton-fisher")
    place = folder / "outcomes/r0.newton-fisher"
    (place / "outcome.json").unlink()  # as if it had been killed at its end
    monkeypatch.setattr(PrivacyLedger, "commit", lambda self, request, status=None: ())
    with pytest.raises(ReplayDivergedError, match="1 lines fewer"):
        asked(folder, "newton-fisher")


def test_a_ledger_of_another_run_is_not_continued(copies, monkeypatch):
    folder = copies()
    with power_cut(monkeypatch):
        asked(folder, "newton-fisher")
    place = folder / "outcomes/r0.newton-fisher/ledger.jsonl"
    content = place.read_bytes()
    place.write_bytes(content.replace(b"peer:1", b"peer:2", 1))
    with pytest.raises(LedgerCorruptError, match="line 1"):
        asked(folder, "newton-fisher")


@pytest.mark.parametrize("step", EACH)
def test_a_full_disk_at_any_file_operation_neither_sends_nor_loses_a_charge(
    copies, step
):
    clean = copies()
    expected = asked(clean, "newton-fisher")
    points = 0
    for k, folder, error in refusals(
        copies, lambda f: asked(f, "newton-fisher"), errno.ENOSPC, step=step
    ):
        points += 1
        assert isinstance(error, StoreWriteError), (k, error)
        outcome = asked(folder, "newton-fisher")
        assert outcome.ledger.entries == expected.ledger.entries
        assert torch.equal(outcome.state.params, expected.state.params)
    assert points >= 35 // step


def test_two_processes_never_carry_out_one_attempt(copies):
    folder = copies()
    with RunFolder(folder).locked(), pytest.raises(RunLockedError, match="in use by"):
        asked(folder, "newton-fisher")
    assert not (folder / "outcomes").exists()


# --- a commit, killed and opened again ----------------------------------------------


def with_checkpoints(folder):
    """Add what other parts leave behind: checkpoints and influence."""
    for rel in (
        "ckpt/round-000002/state.safetensors",
        "ckpt/round-000002/manifest.json",
        "ckpt/round-000004.bad/state.safetensors",
        "ckpt/round-000005.tmp-1/state.safetensors",
        "influence/peer-1.exact.safetensors",
    ):
        RunFolder(folder).write_text(rel, "made with the data")
    return folder


def everything(folder):
    """All files as bytes, but locks, logs and lines that were cut short."""
    names = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in names
        if p.name not in ("lock", "log.jsonl") and ".torn-" not in p.name
    }


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("step", EACH)
def test_a_commit_killed_at_any_file_operation_ends_before_or_after(copies, keep, step):
    base = with_checkpoints(copies())
    asked(base, "newton-fisher")
    asked(base, "fine-tune", ForgetRequest.samples(peer=2, indices=[1]))

    def commit(folder):
        run = load_run(folder, data=DATA)
        outcome = load_outcomes(run)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return commit_outcome(outcome, keep_checkpoints=keep)

    before = everything(base)
    clean = copies(base)
    commit(clean)
    after = everything(clean)
    states = [
        name
        for name in after
        if name.startswith(("ckpt", "record", "influence")) or "state.safe" in name
    ]
    assert bool(states) == keep
    seen = {"before": 0, "after": 0}
    for k, folder in survivors(lambda: copies(base), commit, step=step):
        load_run(folder, data=DATA)  # opening it is enough
        if everything(folder) == after:
            seen["after"] += 1
        else:
            left = {p.name for p in folder.glob(".*.tmp-*")}
            assert {
                n: b for n, b in everything(folder).items() if n not in left
            } == before, k
            seen["before"] += 1
            commit(folder)
            assert everything(folder) == after, k
    assert seen["before"] >= 1
    assert seen["after"] >= 25 // step
    LOG.info("kills: %s", seen)


def test_a_commit_removes_checkpoints_and_says_what_is_kept(copies):
    folder = with_checkpoints(copies())
    outcome = asked(folder, "newton-fisher")
    files = 1 + sum(
        p.is_file()
        for x in ("ckpt", "record", "influence")
        for p in folder.rglob(f"{x}/**/*")
    )
    assert (
        f"pre-request state kept: {files} files, the run's own: a trial leaves the run "
        "as it is, a commit removes them"
    ) in outcome.certificate.exposure
    kept = copies(folder)
    commit_outcome(load_outcomes(load_run(kept, data=DATA))[0], keep_checkpoints=True)
    (certificate,) = (
        json.loads(p.read_text()) for p in kept.glob("outcomes/*/certificate.json")
    )
    assert f"pre-request state kept: {files - 1} files" in certificate["exposure"]
    assert certificate["status"] == "certified_conditional"
    assert certificate["reasons"] == [KEPT_STATE]
    assert (kept / "ckpt/round-000002/state.safetensors").exists()
    commit_outcome(outcome)
    assert not (folder / "ckpt").exists()
    assert not list(folder.glob("influence/*"))


def test_a_commit_whose_state_was_changed_stops_before_anything_is_removed(
    copies, monkeypatch
):
    folder = with_checkpoints(copies())
    outcome = asked(folder, "newton-fisher")
    place = folder / "outcomes/r0.newton-fisher/state.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(bytes(content))
    with pytest.raises(StoreCorruptError, match="that is being committed"):
        commit_outcome(outcome)
    content[-1] ^= 1
    place.write_bytes(bytes(content))
    assert (folder / "ckpt").exists()
    assert load_run(folder, data=DATA).requests == 1  # it went on from the intent
    assert not (folder / "ckpt").exists()


def test_while_another_process_commits_the_run_reads_as_before(copies, monkeypatch):
    folder = copies()
    outcome = asked(folder, "newton-fisher")
    with power_cut(monkeypatch, "dfl_unlearn.unlearning.store.finish_commit"):
        commit_outcome(outcome)
    with RunFolder(folder).locked():
        assert load_run(folder, data=DATA).requests == 0
    assert load_run(folder, data=DATA).requests == 1


def test_the_same_request_twice_on_one_run_is_two_trials(copies):
    folder = copies()
    first = asked(folder, "newton-fisher")
    second = asked(folder, "newton-fisher")
    assert (
        first.request
        == second.request
        == replace(REQUEST.resolve(DATA), request_id="r0")
    )
    assert len(list((folder / "outcomes").iterdir())) == 2


def test_outcomes_before_a_request_that_fails_are_not_lost(copies):
    folder = copies()
    run = load_run(folder, data=DATA)
    others = [ForgetRequest.samples(peer=2, indices=[i]) for i in (0, 1)]
    tight = replace(
        run,
        ledger=PrivacyLedger(PrivacyBudget(epsilon_max=1.2)),
    )
    with pytest.raises(PrivacyBudgetExceededError) as stop:
        unlearn(tight, [REQUEST, *others], "newton-fisher")
    assert [o.request.request_id for o in stop.value.outcomes] == ["r0", "r1"]
    run = stop.value.outcomes[-1].as_run()
    with pytest.raises(PrivacyBudgetExceededError) as stop:
        unlearn(run, others[1], "newton-fisher")
    assert stop.value.outcomes == ()


def test_an_outcome_says_whether_its_commit_keeps_checkpoints(copies):
    folder = with_checkpoints(copies())
    outcome = asked(folder, "newton-fisher", keep_checkpoints=True)
    assert any(
        line.endswith("a commit keeps them") for line in outcome.certificate.exposure
    )
    (stored,) = load_outcomes(load_run(folder, data=DATA))
    assert stored.keep_checkpoints
    commit_outcome(stored)
    (certificate,) = folder.glob("outcomes/*/certificate.json")
    assert json.loads(certificate.read_text())["status"] == "certified_conditional"
    assert (folder / "ckpt/round-000002/state.safetensors").exists()
