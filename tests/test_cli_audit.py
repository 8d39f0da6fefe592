"""``dfl-unlearn audit``: what it prints, writes and returns."""

import json
from dataclasses import replace

import pytest
import torch

from dfl_unlearn import cli
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.evaluation.audit_result import AuditResult
from dfl_unlearn.evaluation.audit_store import load_audits, save_audit
from dfl_unlearn.report import write_report
from dfl_unlearn.unlearning.protocols import newton_fisher
from dfl_unlearn.unlearning.store import load_outcomes

FILE = """
name = "small"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 10
[training.local]
learning_rate = 0.1
[model]
l2 = 0.05
[[forget]]
kind = "samples"
peer = 1
fraction = 0.3
[[unlearning]]
use = "newton-fisher"
epsilon = 0.5
[[unlearning]]
use = "retrain"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder with the experiment's file and its finished run ``small``."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(FILE)
    words = ("run", folder / "small.toml", "--runs", folder, "--quiet", "--no-report")
    assert call(*words) == 0
    return folder


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    return stop.value.code


def test_an_audit_is_printed_kept_and_reported(runs, capsys):
    words = ("audit", "small", "--runs", runs, "--replicas", 60, "--gamma", 0.01)
    assert call(*words) == 0
    out = capsys.readouterr().out
    assert "newton-fisher:\nAUDIT  request r0  scope joint  claim (ε=0.5" in out
    assert "replicas 60+60 (evaluated 30+30)" in out
    assert "verdict: consistent" in out
    kept = runs / "small" / "outcomes" / "r0.newton-fisher" / "audit.json"
    audit = AuditResult.from_json(kept.read_text())
    assert str(audit) in out
    assert not (runs / "small" / "outcomes" / "r0.retrain" / "audit.json").exists()
    assert call("report", "small", "--runs", runs) == 0
    page = (runs / "small" / "report.html").read_text()
    assert "newton-fisher on request r0: consistent" in page
    assert "REFUTED" not in page


def test_one_document_for_programs_and_a_request_by_its_id(runs, capsys):
    words = ("audit", "small", "--runs", runs, "--replicas", 40, "--json")
    assert call(*words, "--statistic", "residual", "--request", "r0") == 0
    found = json.loads(capsys.readouterr().out)
    (audit,) = found["audits"]
    assert audit["use"] == "newton-fisher"
    assert audit["statistic"] == "residual (split half)"
    assert audit["verdict"] in ("consistent", "powerless", "invalid")
    assert call(*words, "--request", "r9") == 2
    assert "--request: must be one of r0, got 'r9'" in capsys.readouterr().err


def test_a_refuted_certificate_ends_with_code_3(runs, capsys, monkeypatch):
    right = newton_fisher.correct_mean

    def broken(protocol, run, kept, *rest):
        found = right(protocol, run, kept, *rest)
        mean = run.state.mean()
        return replace(found, rows=mean.expand_as(found.rows), distance=0.0)

    monkeypatch.setattr(newton_fisher, "correct_mean", broken)
    words = ("audit", "small", "--runs", runs, "--replicas", 60)
    assert call(*words) == 3
    assert "verdict: REFUTED" in capsys.readouterr().out


def test_a_file_is_run_and_then_audited(runs, tmp_path, capsys):
    words = ("audit", runs / "small.toml", "--runs", tmp_path, "--one-run")
    assert call(*words) == 0
    out = capsys.readouterr().out
    assert "tested: inclusion of one record (ε=1, δ=" in out
    kept = tmp_path / "small" / "outcomes" / "r0.newton-fisher"
    assert (kept / "audit-one-run.json").is_file()


def test_what_cannot_be_audited_is_named_and_the_rest_goes_on(tmp_path, capsys):
    secure = '[[unlearning]]\nuse = "rr-du"\nhops = 5\nnoise_mode = "secure"\n'
    (tmp_path / "two.toml").write_text(FILE + secure)
    words = ("--runs", tmp_path, "--replicas", 40, "--quiet")
    assert call("audit", tmp_path / "two.toml", *words) == 0
    out, err = capsys.readouterr()
    assert "newton-fisher:\nAUDIT" in out
    assert "rr-du is not audited: noise_mode: must be 'simulated'" in err
    other = FILE.replace('"newton-fisher"\nepsilon', '"newton-fisher"\nnoise_mode')
    (tmp_path / "one.toml").write_text(other.replace("= 0.5", '= "secure"'))
    assert call("audit", tmp_path / "one.toml", *words) == 2
    assert "audit the same protocol with noise_mode='simulated'" in (
        capsys.readouterr().err
    )


REWOUND = """
name = "rewound"
[topology]
use = "single"
n = 1
[data]
use = "breast-cancer-unit"
[model]
l2 = 0.03
bias = false
zero_start = true
[training]
rounds = 4
dtype = "float64"
evaluate_every = 0
[training.local]
batch_size = "none"
learning_rate = 2.0
[training.record]
every = 2
[[forget]]
kind = "samples"
peer = 0
indices = [0, 1, 2]
[[unlearning]]
use = "at-peer"
[unlearning.method]
use = "r2d"
rewind = 0.5
"""


def test_one_rewound_model_goes_through_the_same_door(tmp_path, capsys):
    (tmp_path / "rewound.toml").write_text(REWOUND)
    words = ("--runs", tmp_path, "--replicas", 60, "--gamma", 0.01)
    assert call("audit", tmp_path / "rewound.toml", *words) == 0
    out = capsys.readouterr().out
    assert "at-peer.r2d:\nAUDIT  request r0  scope release  claim (ε=1, δ=1e-05" in out
    assert "verdict: consistent" in out
    kept = tmp_path / "rewound" / "outcomes" / "r0.at-peer" / "audit.json"
    assert AuditResult.from_json(kept.read_text()).noise_holds


def test_nothing_to_audit_says_what_to_do(tmp_path, capsys):
    lines = FILE.replace('use = "newton-fisher"\nepsilon = 0.5', 'use = "fine-tune"')
    (tmp_path / "plain.toml").write_text(lines)
    assert call("audit", tmp_path / "plain.toml", "--runs", tmp_path) == 2
    assert "needs an outcome with a noised claim" in capsys.readouterr().err


def test_a_page_of_other_outcomes_leaves_their_audits_out(runs, tmp_path):
    run = load_run(runs / "small")
    newton, other = load_outcomes(run)
    (kept, audit), *_ = load_audits(run)
    assert kept.protocol_name == "newton-fisher"
    assert torch.equal(kept.state.params, newton.state.params)
    save_audit(newton, audit)
    page = write_report(other, tmp_path / "page.html").read_text()
    assert "<h2>Audit</h2>" not in page
