"""Runs on disk: the same after reading, refused when damaged, committed for good."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs
from torch import nn

from dfl_unlearn.accounting.certificate import KEPT_STATE, Certificate
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine import stored
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import (
    InputFileError,
    InvalidArgumentError,
    LedgerCorruptError,
    MissingInputError,
    NoiseStreamChangedError,
    PrivacyBudgetExceededError,
    RefusedError,
    ResidualExceedsCapError,
    StoreCorruptError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning import store
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols import newton_fisher
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes, save_outcome

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(
    rounds=6, local=LocalSteps(batch_size=5, momentum=0.3), evaluate_every=2
)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])


@pytest.fixture
def run(tmp_path):
    return simulate("ring", DATA, "logistic", CONFIG, folder=tmp_path / "a")


def again(run, **options):
    return load_run(run.folder, data=DATA, **options)


def files(run, pattern="**/*"):
    found = run.folder.glob(pattern)
    return {str(p.relative_to(run.folder)) for p in found if p.is_file()}


def edit(run, name, change):
    path = run.folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# --- saving and loading ------------------------------------------------------


def test_a_loaded_run_has_the_same_bits(run):
    read = again(run)
    assert torch.equal(read.state.params, run.state.params)
    assert torch.equal(read.state.slots["momentum"], run.state.slots["momentum"])
    assert read.state.round == 6
    assert read.digest == run.digest
    assert read.config == run.config
    assert read.topology.fingerprint() == run.topology.fingerprint()
    assert read.topology.name == "ring"
    assert read.info == run.info
    assert read.ledger.entries == ()
    assert read.ledger.path == run.folder / "ledger.jsonl"
    assert read.rng == run.rng
    assert read.folder == run.folder
    assert read.model.recipe == run.model.recipe


def test_a_loaded_record_and_history_are_the_same(run):
    read = again(run)
    for f in fields(run.history):
        np.testing.assert_array_equal(
            getattr(read.history, f.name), getattr(run.history, f.name)
        )
    a, b = run.record, read.record
    assert b.plan == a.plan
    assert torch.equal(b.initial, a.initial)
    assert b.initial.stride(0) == 0  # a common start is kept once
    assert sorted(b.checkpoints) == sorted(a.checkpoints)
    assert all(torch.equal(b.checkpoints[t], a.checkpoints[t]) for t in a.checkpoints)
    np.testing.assert_array_equal(b.gradient_norms, a.gradient_norms)
    np.testing.assert_array_equal(b.step_sizes, a.step_sizes)
    for f in fields(a.dynamics):
        np.testing.assert_equal(
            getattr(b.dynamics, f.name), getattr(a.dynamics, f.name)
        )


def test_every_setting_survives(tmp_path):
    config = SimulationConfig(
        rounds=2,
        seed=2**40,
        trainer=DSgd(form="cta"),
        local=LocalSteps(epochs=0.5, batch_size=None, clip_norm=1.5, weight_decay=0.1),
        peer_weighting="size",
        record=RecordPlan(parts=frozenset({"initial_state"}), every=1, memory_budget=7),
        common_init=False,
        dtype="float64",
        block_peers=3,
        chunk_peers=2,
        kernel="loop",
        evaluate_every=0,
        privacy_budget=PrivacyBudget(epsilon_max=3.0, per_owner={"peer:1": 2.0}),
    )
    run = simulate("path", DATA, "logistic", config, folder=tmp_path / "a")
    read = again(run)
    assert read.config == config
    assert read.state.params.dtype == torch.float64
    assert torch.equal(read.record.initial, run.record.initial)
    assert read.record.initial.stride(0) != 0
    assert read.record.gradient_norms is None
    assert stored.config_from(stored.config_to(config)) == config
    assert read.ledger.budget.per_owner == {"peer:1": 2.0}


def test_a_run_from_a_recipe_needs_nothing_else(tmp_path):
    data = PeerData.load("gaussian-classes", peers=4, partition="dirichlet", seed=3)
    run = simulate("ring", data, "logistic", CONFIG, folder=tmp_path / "a")
    read = load_run(tmp_path / "a")
    assert torch.equal(read.state.params, run.state.params)
    assert read.data.fingerprint() == data.fingerprint()


def test_saving_later_gives_the_same_folder(tmp_path):
    run = simulate("ring", DATA, "logistic", CONFIG)
    assert run.folder is None
    saved = run.save(tmp_path / "b")
    assert saved.folder == tmp_path / "b"
    assert load_run(tmp_path / "b", data=DATA).digest == run.digest
    with pytest.raises(InvalidArgumentError, match="must not hold a finished run"):
        saved.save(tmp_path / "b")


def test_a_zero_weight_on_an_edge_survives(tmp_path):
    graph = nx.cycle_graph(4)
    w = np.array(
        [[0.5, 0.5, 0, 0], [0.5, 0.1, 0.4, 0], [0, 0.4, 0.2, 0.4], [0, 0, 0.4, 0.6]]
    )  # nothing flows over the edge (0, 3), though messages may
    topology = Topology.from_graph(graph, mixing="user", matrix=w, name="mine")
    run = simulate(topology, DATA, "logistic", CONFIG, folder=tmp_path / "a")
    read = again(run).topology
    assert read.edges.tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
    np.testing.assert_array_equal(read.weights.toarray(), w)
    assert read.fingerprint() == topology.fingerprint()


@pytest.mark.parametrize("normalization", ["local_mean", "fixed"])
def test_rows_forgotten_before_training_stay_forgotten(tmp_path, normalization):
    data = DATA.without(replace(REQUEST, normalization=normalization))
    run = simulate("ring", data, "logistic", CONFIG, folder=tmp_path / "a")
    for given in (DATA, data):
        read = load_run(run.folder, data=given)
        np.testing.assert_array_equal(read.data.keep, data.keep)
        np.testing.assert_array_equal(read.data.counted, data.counted)


def test_an_outcome_in_memory_can_be_saved_as_a_run(tmp_path):
    run = simulate("ring", DATA, "logistic", CONFIG)
    after = unlearn(run, REQUEST, "newton-fisher").as_run()
    saved = after.save(tmp_path / "a")
    read = again(saved)
    assert read.requests == 1
    assert read.record is None
    assert read.history is None
    assert read.data.retained.tolist() == [12, 5, 9, 10]
    assert len(read.ledger.entries) == 1
    second = unlearn(read, ForgetRequest.samples(peer=1, indices=[1]), "newton-fisher")
    assert second.request.request_id == "r1"
    assert second.certificate.epsilon == pytest.approx(1.4651699604)


def test_what_cannot_be_written_is_given_again(tmp_path):
    model = FlatModel.from_module(nn.Linear(6, 3), "cross-entropy", l2=0.1)
    run = simulate("ring", DATA, model, CONFIG, folder=tmp_path / "a")
    with pytest.raises(MissingInputError, match=r"data: must be given for this run"):
        load_run(run.folder)
    with pytest.raises(MissingInputError, match=r"model: must be given for this run"):
        load_run(run.folder, data=DATA)
    read = again(run, model=model)
    assert torch.equal(read.state.params, run.state.params)


def test_other_data_are_noticed(run):
    for other in (blobs([12, 7, 9, 10], seed=1), blobs([12, 7, 9])):
        with pytest.raises(StoreCorruptError, match=r"data must have the fingerprint"):
            load_run(run.folder, data=other)


# --- damage --------------------------------------------------------------------


def test_an_unfinished_run_is_refused(run):
    (run.folder / "done.json").unlink()
    with pytest.raises(StoreCorruptError, match=r"got no done.json; .*interrupted"):
        again(run)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(InputFileError, match="must be a run folder"):
        load_run(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda m: m.update(format=2), StoreCorruptError, "format must be 1, got 2"),
        (
            lambda m: m["noise_self_check"].__setitem__(3, "0x1p+0"),
            NoiseStreamChangedError,
            r"keyed noise must start .*'0x1p\+0'\), got .*; use the NumPy",
        ),
        (
            lambda m: m["data"].update(fingerprint="0" * 64),
            StoreCorruptError,
            r"data must have the fingerprint 0000000000000000\.\.\.",
        ),
        (
            lambda m: m["data"].update(dropped=[3]),
            StoreCorruptError,
            "data must have the fingerprint",
        ),
        (
            lambda m: m["topology"]["edges"].append([0, 2]),
            StoreCorruptError,
            "network must have the fingerprint",
        ),
        (lambda m: m.pop("training"), StoreCorruptError, "got none for 'training'"),
        (lambda m: m.update(state="1" * 64), StoreCorruptError, "params must have the"),
    ],
)
def test_a_changed_manifest_is_refused(run, change, error, match):
    edit(run, "manifest.json", change)
    with pytest.raises(error, match=match):
        again(run)


def test_changed_tensors_are_refused(run):
    folder = RunFolder(run.folder)
    params = run.state.params.clone()
    params[2, 3] += 1e-6
    folder.write_tensors(stored.FINAL, {"params": params})
    with pytest.raises(StoreCorruptError, match="params must have the digest"):
        again(run)
    folder.write_tensors(stored.FINAL, {"params": params[:3]})
    with pytest.raises(StoreCorruptError, match=r"shape \(4, 21\), got \(3, 21\)"):
        again(run)
    folder.write_bytes(stored.FINAL, b"\x00" * 40)
    with pytest.raises(StoreCorruptError, match="intact safetensors"):
        again(run)


def test_changed_weights_are_refused(run):
    folder = RunFolder(run.folder)
    parts = folder.read_tensors("weights.safetensors")
    w = np.full((4, 4), 0.0)
    np.fill_diagonal(w, 0.5)
    for i in range(4):
        w[i, (i + 1) % 4] = w[i, i - 1] = 0.25
    folder.write_tensors(
        "weights.safetensors",
        {**parts, "values": w[w > 0]},
    )
    with pytest.raises(StoreCorruptError, match="network must have the fingerprint"):
        again(run)
    for name in ("indices", "indptr"):
        wrong = parts[name].clone()
        wrong[1] = 10**9  # SciPy would write there
        folder.write_tensors("weights.safetensors", {**parts, name: wrong})
        with pytest.raises(StoreCorruptError, match="must hold a sparse matrix"):
            again(run)


# --- attempts ----------------------------------------------------------------


def test_attempts_leave_the_run_and_each_other_alone(run):
    names = files(run) - {"lock"}
    before = {name: (run.folder / name).read_bytes() for name in names}
    a = unlearn(run, REQUEST, "newton-fisher", folder=run.folder, reference=True)
    b = unlearn(run, REQUEST, FineTune(rounds=2), folder=run.folder)
    c = unlearn(run, REQUEST, "newton-fisher", folder=run.folder)
    assert all((run.folder / name).read_bytes() == raw for name, raw in before.items())
    read = load_outcomes(again(run))
    names = ["newton-fisher", "fine-tune", "newton-fisher"]
    assert [o.protocol_name for o in read] == names
    assert [len(o.ledger.entries) for o in read] == [1, 0, 1]
    for made, found in zip((a, b, c), read, strict=True):
        assert torch.equal(found.state.params, made.state.params)
        assert found.certificate == made.certificate
        assert found.request == made.request
        assert found.cost == made.cost
        assert found.protocol == made.protocol
        assert found.ledger.entries == made.ledger.entries
        assert list(found.messages) == list(made.messages)
        assert found.info == made.info
        for key, values in made.trace.items():
            np.testing.assert_array_equal(found.trace[key], values)
    assert read[1].reference is None
    assert torch.equal(read[0].reference.state.params, a.reference.state.params)


def test_requests_of_one_run_have_names_and_references_of_their_own(run):
    other = ForgetRequest.samples(peer=2, indices=[0, 1, 2])
    made = [
        unlearn(run, request, FineTune(rounds=1), folder=run.folder, reference=True)
        for request in (REQUEST, other, REQUEST)
    ]
    assert [o.request.request_id for o in made] == ["r0", "r1", "r0"]
    read = load_outcomes(again(run))
    for found, outcome in zip(read, made, strict=True):
        assert found.request == outcome.request
        assert torch.equal(found.reference.state.params, outcome.reference.state.params)
    assert len(files(run, "reference/*/manifest.json")) == 2


def test_another_reference_of_the_same_request_is_kept_beside_it(run):
    own = unlearn(run, REQUEST, "retrain", folder=run.folder)
    independent = unlearn(run, REQUEST, Retrain(coupled=False, seed_offset=1))
    other = run.replaced(state=independent.state)
    tuned = unlearn(
        run, REQUEST, FineTune(rounds=1), folder=run.folder, reference=other
    )
    read = {o.protocol_name: o for o in load_outcomes(again(run))}
    for outcome in (own, tuned):
        found = read[outcome.protocol_name].reference.state.params
        assert torch.equal(found, outcome.reference.state.params)


def test_an_outcome_made_in_memory_can_be_kept(run):
    outcome = unlearn(run, REQUEST, "newton-fisher")
    place = save_outcome(outcome, run.folder)
    (read,) = load_outcomes(again(run))
    assert place.name == "r0.newton-fisher"
    assert read.certificate == outcome.certificate
    assert read.ledger.path == place / "ledger.jsonl"


def test_a_run_in_memory_has_no_attempts_on_disk():
    run = simulate("ring", DATA, "logistic", CONFIG)
    with pytest.raises(MissingInputError, match="must come from a run folder"):
        load_outcomes(run)
    with pytest.raises(MissingInputError, match=r"use\s+outcome.as_run"):
        commit_outcome(unlearn(run, REQUEST, FineTune(rounds=1)))


def test_a_refused_attempt_leaves_nothing(run):
    protocol = NewtonFisher(residual_cap=1e-300, newton_steps_max=1)
    with pytest.raises(ResidualExceedsCapError):
        unlearn(run, REQUEST, protocol, folder=run.folder)
    assert not files(run, "outcomes/**/*")
    assert not list((run.folder / "outcomes").glob("*"))


def test_a_budget_that_is_spent_leaves_nothing_and_computes_nothing(
    tmp_path, monkeypatch
):
    config = replace(CONFIG, privacy_budget=PrivacyBudget(epsilon_max=1.2))
    run = simulate("ring", DATA, "logistic", config, folder=tmp_path / "a")
    run = commit_outcome(unlearn(run, REQUEST, "newton-fisher", folder=run.folder))
    before = files(run)
    monkeypatch.setattr(newton_fisher, "correct_mean", None)
    more = ForgetRequest.samples(peer=1, indices=[1])
    with pytest.raises(PrivacyBudgetExceededError, match=r"needs ε=1\.46\d* in total"):
        unlearn(run, more, "newton-fisher", folder=run.folder)
    assert files(run) == before
    other = ForgetRequest.samples(peer=2, indices=[1])
    monkeypatch.undo()
    unlearn(run, other, "newton-fisher", folder=run.folder)  # another owner's account


def test_a_crash_after_the_reservation_keeps_the_charge(run, monkeypatch):
    def crash(*args, **kwargs):
        raise RuntimeError("the power went")

    monkeypatch.setattr("dfl_unlearn.engine.transport.Transport.broadcast", crash)
    with pytest.raises(RuntimeError, match="power"):
        unlearn(run, REQUEST, "newton-fisher", folder=run.folder)
    ledger = PrivacyLedger.load(run.folder / "outcomes/r0.newton-fisher/ledger.jsonl")
    (entry,) = ledger.entries
    assert entry.state == "reserved"
    assert ledger.epsilon("peer:1", "peer:0", 1e-5) == pytest.approx(1.0, abs=1e-6)
    assert load_outcomes(again(run)) == []
    monkeypatch.undo()
    # Never the noise of the crashed one, for another request or protocol.
    other = ForgetRequest.samples(peer=1, indices=[2])
    outcome = unlearn(run, other, "newton-fisher", folder=run.folder)
    assert outcome.request.request_id == "r1"
    outcome = unlearn(run, REQUEST, NewtonFisher(epsilon=0.5), folder=run.folder)
    assert outcome.request.request_id == "r2"
    # The same attempt goes on where it was, and is charged once.
    outcome = unlearn(run, REQUEST, "newton-fisher", folder=run.folder)
    assert outcome.request.request_id == "r0"
    assert [e.state for e in outcome.ledger.entries] == ["committed"]
    assert len(files(run, "outcomes/r0.*/outcome.json")) == 1


def without_last_line(path, drop=1):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-drop]))


def test_charges_dropped_from_a_trials_ledger_are_noticed(run):
    outcome = unlearn(run, REQUEST, "newton-fisher", folder=run.folder)
    without_last_line(outcome.ledger.path)
    with pytest.raises(LedgerCorruptError, match=r"line 2 must .* among 1 lines"):
        load_outcomes(again(run))
    with pytest.raises(LedgerCorruptError, match="charges were removed"):
        commit_outcome(outcome)
    assert again(run).ledger.entries == ()


def test_charges_dropped_from_the_runs_ledger_are_noticed(run):
    _, after = committed(run)
    more = ForgetRequest.samples(peer=2, indices=[1])
    later = unlearn(after, more, "newton-fisher", folder=run.folder)
    without_last_line(run.folder / "ledger.jsonl", drop=2)
    with pytest.raises(LedgerCorruptError, match=r"line 2 must .* among 0 lines"):
        again(run)
    with pytest.raises(LedgerCorruptError, match="charges were removed"):
        commit_outcome(later)


def test_charges_after_the_manifest_was_written_are_kept(run):
    release = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
    run.ledger.charge("later", "peer:3", ("public",), release)
    assert again(run).ledger.entries == run.ledger.entries
    manifest = json.loads((run.folder / "manifest.json").read_text())
    del manifest["ledger"]  # as in folders of earlier versions
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    assert again(run).ledger.entries == run.ledger.entries


# --- commit ------------------------------------------------------------------


def committed(run, request=REQUEST, protocol="newton-fisher", **options):
    outcome = unlearn(run, request, protocol, folder=run.folder)
    return outcome, commit_outcome(outcome, **options)


def test_a_commit_replaces_the_state_and_charges_the_ledger(run):
    outcome, after = committed(run)
    for read in (after, again(run)):
        assert torch.equal(read.state.params, outcome.state.params)
        assert read.state.round == 7
        assert read.requests == 1
        assert read.data.retained.tolist() == [12, 5, 9, 10]
        assert [e.state for e in read.ledger.entries] == ["committed"]
        assert read.ledger.verify() == outcome.ledger.head
        assert read.record is None
    assert run.ledger.entries == ()  # the old object stays as it was
    events = [r for r in RunFolder(run.folder).records() if r["type"] == "event"]
    assert [e["detail"] for e in events] == ["r0 by newton-fisher"]


def test_a_commit_removes_what_was_made_with_the_data(run):
    other = ForgetRequest.samples(peer=2, indices=[0])
    unlearn(run, other, FineTune(rounds=1), folder=run.folder, reference=True)
    outcome = unlearn(run, REQUEST, "newton-fisher", folder=run.folder, reference=True)
    assert len(files(run, "record/*")) > 2
    commit_outcome(outcome)
    left = files(run, "**/*.safetensors")
    assert left == {
        "state/final.safetensors",
        "weights.safetensors",
        "reference/r1/state.safetensors",  # retrained without the data
    }
    assert not files(run, "record/*")
    assert load_outcomes(again(run)) == []


@pytest.mark.parametrize("protocol", [NewtonFisher(), Retrain()])
def test_kept_checkpoints_lower_the_certificate(run, protocol):
    unlearn(run, REQUEST, FineTune(rounds=1), folder=run.folder)
    outcome, after = committed(run, protocol=protocol, keep_checkpoints=True)
    assert outcome.certificate.status in ("certified", "exact")
    name = f"outcomes/r0.{outcome.protocol_name}/certificate.json"
    lowered = Certificate.from_json((run.folder / name).read_text())
    assert lowered.status == "certified_conditional"
    assert lowered.reasons == (KEPT_STATE,)
    kept = len(files(run, "record/*")) + 1  # the other attempt's state
    assert f"pre-request state kept: {kept} files" in lowered.exposure
    assert lowered.epsilon == outcome.certificate.epsilon
    assert after.record is not None


@pytest.mark.parametrize(
    ("protocol", "adaptive", "status"),
    [
        (NewtonFisher(), True, "certified_conditional"),
        (NewtonFisher(curvature="diag_fisher", assume_stationary=True), 0, "heuristic"),
    ],
)
def test_kept_checkpoints_are_named_on_every_certificate(
    run, protocol, adaptive, status
):
    committed(
        run, replace(REQUEST, adaptive=bool(adaptive)), protocol, keep_checkpoints=True
    )
    name = "outcomes/r0.newton-fisher/certificate.json"
    lowered = Certificate.from_json((run.folder / name).read_text())
    assert lowered.status == status
    assert any("pre-request state kept" in line for line in lowered.exposure)
    assert (KEPT_STATE in lowered.reasons) == (status != "heuristic")


def test_requests_go_on_after_a_commit(run):
    committed(run)
    second, last = committed(again(run), ForgetRequest.samples(peer=1, indices=[1, 2]))
    assert second.request.request_id == "r1"
    assert second.certificate.epsilon == pytest.approx(1.4651699604, abs=1e-9)
    assert second.certificate.status == "certified"
    for read in (last, again(run)):
        assert read.requests == 2
        assert read.data.retained.tolist() == [12, 3, 9, 10]
        assert read.ledger.epsilon("peer:1", "public", 1e-5) == pytest.approx(
            1.4651699604, abs=1e-9
        )
    third, _ = committed(last, ForgetRequest.whole_peer(2))
    assert third.request.request_id == "r2"
    assert third.certificate.epsilon == 1.0  # another owner


@pytest.mark.parametrize("protocol", ["newton-fisher", FineTune(rounds=1)])
def test_an_attempt_on_a_state_that_is_gone_is_refused(run, protocol):
    """A fine-tuned outcome charges nothing: the state itself tells."""
    other = ForgetRequest.samples(peer=2, indices=[0])
    first = unlearn(run, REQUEST, protocol, folder=run.folder)
    stale = unlearn(run, other, protocol, folder=run.folder)
    after = commit_outcome(first)
    for late in (stale, first):
        with pytest.raises(RefusedError, match="must not have changed"):
            commit_outcome(late)
    assert again(run).data.fingerprint() == after.data.fingerprint()
    assert torch.equal(again(run).state.params, first.state.params)


def test_committing_what_was_made_in_memory_charges_it_too(run):
    after = commit_outcome(unlearn(run, REQUEST, "newton-fisher"))
    assert len(after.ledger.entries) == 1
    assert len(again(run).ledger.entries) == 1
    assert "outcomes/r0.newton-fisher/certificate.json" in files(run)


@pytest.mark.parametrize(
    ("stop_at", "done"), [("manifest.json", 0), (stored.FINAL, 1), ("done.json", 1)]
)
def test_a_commit_that_is_interrupted_leaves_one_run_or_the_other(
    run, monkeypatch, caplog, stop_at, done
):
    outcome = unlearn(run, REQUEST, "newton-fisher", folder=run.folder)
    write = RunFolder.write_bytes

    def crash(self, rel, data, *, private=False):
        if rel == stop_at:
            raise RuntimeError("the power went")
        return write(self, rel, data, private=private)

    monkeypatch.setattr(RunFolder, "write_bytes", crash)
    with pytest.raises(RuntimeError, match="power"):
        commit_outcome(outcome)
    monkeypatch.undo()
    read = again(run)
    expected = outcome if done else run
    assert torch.equal(read.state.params, expected.state.params)
    assert read.requests == len(read.ledger.entries) == done
    assert int(read.data.retained[1]) == (5 if done else 7)
    assert ("commit was interrupted" in caplog.text) == bool(done)
    assert bool(files(run, "record/*")) != bool(done)  # reading has finished it
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert "next" not in manifest
    if done:
        committed(read, ForgetRequest.samples(peer=1, indices=[1]))
        manifest = json.loads((run.folder / "manifest.json").read_text())
        assert [r["request_id"] for r in manifest["forgotten"]] == ["r0", "r1"]
    else:
        commit_outcome(outcome)
    assert again(run).requests == 1 + done


def test_a_fresh_process_can_load_and_unlearn(tmp_path):
    data = PeerData.load("gaussian-classes", peers=4, seed=0)
    run = simulate("ring", data, "logistic", CONFIG, folder=tmp_path / "a")
    outcome, _ = committed(run)
    code = (
        "from dfl_unlearn import ForgetRequest, load_run, unlearn\n"
        f"run = load_run({str(tmp_path / 'a')!r})\n"
        "request = ForgetRequest.samples(peer=1, indices=[1])\n"
        "outcome = unlearn(run, request, 'newton-fisher', folder=run.folder)\n"
        "assert outcome.request.request_id == 'r1'\n"
        "assert abs(outcome.certificate.epsilon - 1.4651699604) < 1e-9\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert (tmp_path / "a/outcomes/r1.newton-fisher/outcome.json").is_file()
    assert store.load_outcomes(load_run(tmp_path / "a"))[0].request.request_id == "r1"
    assert outcome.request.request_id == "r0"
