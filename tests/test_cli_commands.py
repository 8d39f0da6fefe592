"""The commands as a user types them; the heavy ones share one finished run."""

import json
import subprocess
import sys

import pytest

from dfl_unlearn import cli


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder with a small finished run named ``demo``."""
    folder = tmp_path_factory.mktemp("runs")
    assert call("demo", "--runs", folder, "--quiet") == 0
    return folder


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    return stop.value.code


def test_the_demo_tells_its_story(tmp_path, capsys):
    assert call("demo", "--runs", tmp_path, "--name", "first") == 0
    out, err = capsys.readouterr()
    for part in ("TRAINED", "INFLUENCE", "FORGOTTEN", "newton-fisher", "CERTIFIED"):
        assert part in out
    assert "dfl-unlearn unlearn first --peer 5 --all" in out
    assert "... training 8 peers" in err
    assert (tmp_path / "first" / "report.html").is_file()
    table = next(line for line in out.splitlines() if line.startswith("  newton-fish"))
    retrained = next(x for x in out.splitlines() if x.startswith("  (retrained)"))
    newton, reference = float(table.split()[3]), float(retrained.split()[1])
    assert newton >= reference - 0.01


def test_a_trial_leaves_the_run_alone_and_a_commit_changes_it(runs, capsys):
    before = (runs / "demo" / "done.json").read_text()
    words = ("unlearn", "demo", "--runs", runs, "--peer", 5, "--all")
    assert call(*words, "epsilon=0.5") == 0
    assert "eps=0.5" in capsys.readouterr().out
    assert (runs / "demo" / "done.json").read_text() == before
    assert call("ledger", "demo", "--runs", runs) == 0
    out = capsys.readouterr().out
    assert "committed in this run: no noised release" in out
    assert "trial r0.newton-fisher:" in out
    lines = [line.split() for line in out.splitlines() if "  peer:5 " in line]
    near = ["peer:5", "peer:4,", "peer:6", "200", "1", "0.5", "no", "cap", "certified"]
    assert near in lines
    far = ["peer:5", "peer:0", "…", "public", "(6)", "0", "1", "0.5", "no", "cap"]
    assert [*far, "certified"] in lines
    assert call(*words, "--commit", "--no-reference") == 0
    assert "now holds the new state" in capsys.readouterr().out
    assert (runs / "demo" / "done.json").read_text() != before
    assert not list((runs / "demo" / "record").glob("*.safetensors"))
    assert call("ledger", "demo", "--runs", runs, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["run"]
    assert {r["owner"] for r in rows} == {"peer:5"}
    assert call("ledger", "demo", "--runs", runs, "--verify") == 0
    out = capsys.readouterr().out
    assert "outcome r1.newton-fisher-2, committed: 2 entries, chain intact" in out
    assert "trial r1.newton-fisher: 2 entries, chain intact" in out
    # Forgotten once, forgotten for good: also in a new process.
    assert call(*words) == 2
    assert "forgotten already" in capsys.readouterr().err


def test_a_ledger_of_one_account_and_of_several_observers_together(runs, capsys):
    words = ("ledger", "demo", "--runs", runs, "--owner", "peer:3")
    assert call(*words, "--observer", "{peer:0,peer:2}", "--delta", "1e-6") == 0
    out = capsys.readouterr().out
    assert "ε (δ=1e-06)" in out
    assert "{peer:0,peer:2}  200 " in out
    assert "certified (same noise, counted once)" in out
    assert "carry no ε and are not recalled" in out
    assert call(*words, "--observer", "peer:2", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["r0.newton-fisher"]
    assert (row["observer"], row["pre_request"], row["releases"]) == ("peer:2", 200, 1)
    assert row["epsilon"] == pytest.approx(1.0)
    assert row["status"] == "certified"


def test_a_budget_shows_what_is_left_and_refuses_what_passes_it(tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text(
        '[topology]\nuse = "ring"\nn = 4\n[training]\nrounds = 50\n'
        "[training.privacy_budget]\nepsilon_max = 1.2\n"
        '[data]\nuse = "gaussian-classes"\n'
    )
    assert call("run", file, "--runs", tmp_path, "--no-report", "--quiet") == 0
    where = ("--runs", tmp_path, "--no-reference", "--quiet")
    words = ("unlearn", "run", *where, "--peer", 1, "--indices")
    assert call(*words, "0,1", "--commit") == 0
    folder = tmp_path / "run"

    def kept():  # the lock says who held it and when
        files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
        return {p: p.read_bytes() for p in files}

    before = kept()
    capsys.readouterr()
    assert call(*words, "2", "--commit") == 4
    err = capsys.readouterr().err
    assert "request r1 needs ε=1.466 in total at δ=1e-05 for owner peer:1" in err
    assert "budget 1.2 (spent 1). Nothing was sent" in err
    assert kept() == before
    assert call("ledger", "run", "--runs", tmp_path, "--observer", "public") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "  peer:1 " in x)
    assert line.split() == ["peer:1", "public", "0", "1", "1", "0.2", "certified"]
    assert call("ledger", "run", "--runs", tmp_path, "--verify") == 0


def test_an_outcome_held_for_review_is_shown_and_not_committed(tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text(
        '[topology]\nuse = "ring"\nn = 4\n[training]\nrounds = 50\n'
        '[data]\nuse = "gaussian-classes"\n'
    )
    assert call("run", file, "--runs", tmp_path, "--no-report", "--quiet") == 0
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    words = ("unlearn", "run", "--runs", tmp_path, "--no-reference", "--peer", 1)
    noisy = ("epsilon=0.001", "residual_cap=1.0", "recovery_rounds=0")
    capsys.readouterr()
    assert call(*words, "--indices", 0, *noisy, "--screen", "--commit") == 4
    out, err = capsys.readouterr()
    assert "held for review: mean test accuracy fell from" in out
    assert "CERTIFIED" in out
    assert "pass reviewed=True after looking at it, or retrain" in err
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_damaged_ledger_is_named_with_its_line(runs, capsys):
    words = ("ledger", "demo", "--runs", runs)
    place = runs / "demo" / "outcomes" / "r0.rr-du" / "ledger.jsonl"
    whole = place.read_bytes()
    first, second, _ = whole.split(b"\n")
    changed = second.replace(b"committed", b"reserved!")
    try:
        place.write_bytes(first + b"\n" + changed + b"\n")
        for more in ((), ("--verify",), ("--json",)):
            assert call(*words, *more) == 6
            err = capsys.readouterr().err
            assert "demo/outcomes/r0.rr-du/ledger.jsonl line 2: " in err
        place.write_bytes(first + b"\n")  # intact, but a line is gone
        assert call(*words, "--verify") == 6
        err = capsys.readouterr().err
        assert "demo/outcomes/r0.rr-du/ledger.jsonl: line 2 must have" in err
    finally:
        place.write_bytes(whole)
    assert call(*words, "--verify") == 0


def test_a_private_run_forgets_by_the_baseline(tmp_path, capsys):
    file = tmp_path / "private.toml"
    file.write_text(
        'name = "private"\n[topology]\nuse = "ring"\nn = 4\n'
        '[data]\nuse = "gaussian-classes"\n[training]\nrounds = 5\n'
        'trainer = { use = "dp-gossip", noise_multiplier = 20.0 }\n'
    )
    assert call("run", file, "--runs", tmp_path, "--no-report") == 0
    words = ("unlearn", "private", "--runs", tmp_path, "--peer", 1, "--no-reference")
    forget = (*words, "--indices", "0,4")
    assert call(*forget, "--protocol", "dp-gossip", "delta=1e-6") == 0
    out = capsys.readouterr().out
    assert "CERTIFIED" in out
    assert "scope view_joint" in out
    assert call(*words, "--all", "--protocol", "dp-gossip") == 2
    assert "dp-gossip serves class, samples" in capsys.readouterr().err
    assert call(*forget, "--protocol", "dp-gosip") == 2
    assert "did you mean 'dp-gossip'" in capsys.readouterr().err


def test_a_report_is_drawn_again(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ("report", "demo", "--runs", runs, "--out", page, "--figures", "svg,gif")
    assert call(*words) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text().startswith("<!DOCTYPE html>")
    figures = runs / "demo" / "figures"
    assert (figures / "topology.svg").is_file()
    assert (figures / "influence.gif").read_bytes().startswith(b"GIF89a")


def test_a_class_request_and_json(runs, capsys):
    words = ("unlearn", "demo", "--runs", runs, "--class", 4, "--no-reference")
    assert call(*words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["certificate"]["status"] == "certified"
    assert document["committed"] is False


def test_a_request_from_a_file(runs, tmp_path, capsys):
    file = tmp_path / "request.toml"
    file.write_text('kind = "samples"\npeer = 2\nindices = [0, 3]\nadaptive = true\n')
    words = ("unlearn", "demo", "--runs", runs, "--request", file, "--no-reference")
    assert call(*words) == 0
    assert "CERTIFIED CONDITIONAL" in capsys.readouterr().out.upper().replace("_", " ")


def test_several_requests_from_a_file_in_order_or_as_one(tmp_path, capsys):
    experiment = tmp_path / "a.toml"
    experiment.write_text(
        '[topology]\nuse = "ring"\nn = 4\n[training]\nrounds = 50\n'
        '[data]\nuse = "gaussian-classes"\n'
    )
    assert call("run", experiment, "--runs", tmp_path, "--no-report", "--quiet") == 0
    file = tmp_path / "requests.toml"
    entry = '[[forget]]\nkind = "samples"\npeer = 2\nindices = '
    file.write_text(f"{entry}[0]\n{entry}[3, 4]\n")
    words = ("unlearn", "run", "--runs", tmp_path, "--request", file, "--no-reference")
    capsys.readouterr()
    assert call(*words, "--json", "--coalesce") == 0
    one = json.loads(capsys.readouterr().out)
    assert one["certificate"]["epsilon"] == 1.0
    assert "2 requests (1, 2) carried out as one" in one["certificate"]["notes"][-1]
    assert call(*words, "--json", "--commit") == 0
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert [o["request"] for o in outcomes] == ["r1", "r2"]  # r0 was the trial
    epsilons = [o["certificate"]["epsilon"] for o in outcomes]
    assert epsilons == pytest.approx([1.0, 1.4651699604], abs=2e-10)
    assert call("ledger", "run", "--runs", tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["run"]
    assert {row["releases"] for row in rows} == {2}
    file.write_text(f"{entry}[6]\n")
    assert call(*words, "--json", "--commit", "--keep-checkpoints") == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    # What is printed is what was written, not the trial's.
    assert not any("a trial" in line for line in certificate["exposure"])
    file.write_text("forget = []\n")
    assert call(*words) == 2
    assert "must name at least one request" in capsys.readouterr().err


@pytest.mark.parametrize("kind", cli.KINDS)
def test_every_kind_is_listed_with_help(kind, capsys):
    assert call("list", kind, "--verbose") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert call("list", kind, "--json") == 0
    for entry in json.loads(capsys.readouterr().out)[kind]:
        assert entry["help"], entry["name"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("unlearn demo --peer 99 --all", 2, "peer: must be in 0..7, got 99"),
        ("unlearn demo", 2, "say what to forget"),
        ("unlearn demo --peer 1 --fraction 0.1 --all", 2, "cannot be combined"),
        ("unlearn demo --all", 2, "--all needs --peer"),
        ("unlearn demo --peer 1 --request r.toml", 2, "in the file, by peer or peers"),
        ("unlearn demo --peer 1 --indices a,b", 2, "must be integers"),
        ("unlearn demo --peer 1 --indices 0,9999", 2, "index 9999 out of range"),
        ("unlearn demo --peer 1 --indices 0,0", 2, "must be unique"),
        ("unlearn demo --peer 1 --all epsilom=1", 2, "Did you mean 'epsilon'"),
        ("unlearn demo --peer 1 --all epsilon=0", 2, "epsilon: must be"),
        ("unlearn demo --peer 1 --all --protocol newton", 2, "'newton-fisher'"),
        ("unlearn demo --peer 1 --all residual_cap=1e-9", 4, "nothing was sent"),
        ("unlearn nothing --peer 1 --all", 2, "must be a run folder"),
        ("report demo --figures eps", 2, "--figures: must be png, svg, pdf, gif"),
        ("unlearn demo --peer 3 --fraction 0.2 --screen", 4, "above max_share 10%"),
        ("ledger demo --observer node:1", 2, "got 'node:1'"),
        ("ledger demo --owner 3", 2, "owner: must be"),
        ("ledger demo --delta 1", 2, "delta: must be"),
        ("list things", 2, "KIND: must be one of"),
        ("demo --name ../x", 2, "run name: must match"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(runs, words, code, message, capsys):
    before = sorted(p for p in runs.rglob("*"))
    words = words.split()
    if words[0] != "list":
        words += ["--runs", str(runs)]
    assert call(*words) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert sorted(p for p in runs.rglob("*")) == before


def test_a_dry_run_prints_a_file_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.toml"
    file.write_text('[topology]\nuse = "ring"\nn = 4\n[training]\nrounds = 3\n')
    assert call("run", file, "--dry-run", "training.rounds=2") == 0
    resolved = capsys.readouterr().out
    assert "rounds = 2" in resolved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.toml"]
    (tmp_path / "b.toml").write_text(resolved)
    assert call("run", "b.toml", "--no-report", "--name", "b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcomes"] == []
    assert not (tmp_path / "runs" / "b" / "report.html").exists()


def test_a_run_without_requests_has_a_page(tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text('[topology]\nuse = "ring"\nn = 4\n[training]\nrounds = 3\n')
    assert call("run", file, "--runs", tmp_path / "r") == 0
    assert (tmp_path / "r" / "run" / "report.html").is_file()


def test_an_internal_error_asks_for_a_report(monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("boom\x1b[31m")

    monkeypatch.setattr(cli, "registry_of", broken)
    assert call("list") == 1
    err = capsys.readouterr().err
    assert "internal error: RuntimeError: boom[31m" in err
    assert "Please report" in err


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "registry_of", interrupted)
    assert call("list") == 130


def test_help_is_fast_and_loads_no_torch():
    code = (
        "import sys; sys.argv=['dfl-unlearn','--help']\n"
        "import dfl_unlearn.cli as c\n"
        "try:\n    c.main()\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "run", "unlearn", "report", "list", "ledger"):
        assert command in done.stdout


def test_the_demo_as_json_and_its_outcomes_in_the_order_they_were_made(
    tmp_path, capsys
):
    from dfl_unlearn import load_run
    from dfl_unlearn.unlearning.store import load_outcomes

    assert call("demo", "--runs", tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    names = ["newton-fisher", "rr-du", "fine-tune", "retrain"]
    assert [o["protocol"] for o in document["outcomes"]] == names
    spent = {
        o["protocol"]: m["value"]
        for o in document["outcomes"]
        for m in o["metrics"]
        if m["metric"] == "epsilon-spent"
    }
    assert spent == {
        "newton-fisher": 1.0,
        "rr-du": 1.0,
        "fine-tune": None,
        "retrain": 0.0,
    }
    read = load_outcomes(load_run(tmp_path / "demo"))
    assert [o.protocol_name for o in read] == names
    assert document["digest"] == read[0].run.digest
