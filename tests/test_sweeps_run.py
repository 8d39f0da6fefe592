"""Sweeps that are carried out: what is complete, what failed, and side by side."""

import json
import shutil

import psutil
import pytest
from sweep_base import forgetting, tiny

from dfl_unlearn.engine.run import load_run
from dfl_unlearn.errors import (
    ConfigError,
    ConfigMismatchError,
    InputFileError,
    InvalidArgumentError,
    ResourceError,
    RunLockedError,
    StoreCorruptError,
    StoreWriteError,
    UnsafeFormatError,
)
from dfl_unlearn.results.sweep import SweepView
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.sweeps import Sweep, failed_cases, run, run_sweep
from dfl_unlearn.sweeps.progress import SweepProgress, duration

AXES = {"unlearning.0.epsilon": [0.5, 1.0]}


def sweep(**fields):
    return Sweep(**{"base": forgetting(), "axes": AXES, "seeds": (0, 1), **fields})


@pytest.fixture
def calls(monkeypatch):
    """The places of the cases that were begun or gone on with."""
    places = []
    run_case = run.run_case

    def counted(place, *args, **more):
        places.append(place)
        run_case(place, *args, **more)

    monkeypatch.setattr(run, "run_case", counted)
    return places


def facts(folder):
    """What must be the same however a sweep was carried out."""
    view = SweepView.open(folder)
    rows = sorted(
        (repr(dict(row)) for row in view.table.rows if "wall" not in row["metric"]),
    )
    return [(c.name, c.status, c.digest) for c in view.cases], rows


def untimed(folder):
    """A written table without measured seconds."""
    lines = (folder / "rows.csv", folder / "table.csv")
    text = next(path for path in lines if path.is_file()).read_text().splitlines()
    return [line for line in text if "wall-seconds" not in line]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "a"
    run_sweep(sweep(), folder)
    return folder


def test_every_case_is_a_run_folder_that_ends_with_case_json(clean):
    view = SweepView.open(clean)
    assert [case.status for case in view.cases] == ["done"] * 4
    for case in view.cases:
        told = json.loads((case.folder / "case.json").read_text())
        assert told.keys() == {"format", "digest", "seconds", "refused"}
        assert told["digest"] == load_run(case.folder).digest
        assert told["refused"] == []
        assert not (case.folder / "report.html").exists()
        assert not (case.folder / "figures").exists()
    assert len({c.digest for c in view.cases}) == 2  # one training per seed
    assert set(view.frame["case"]) == {c.name for c in view.cases}
    assert (clean / "table.csv").is_file()
    assert (clean / "table.parquet").is_file()


def test_the_plan_says_what_was_asked_for(clean):
    plan = json.loads((clean / "sweep.json").read_text())
    assert plan["axes"] == AXES
    assert plan["seeds"] == [0, 1]
    assert plan["base"]["training"]["rounds"] == 3
    assert plan["base"]["model"]["use"] == "logistic"
    points = [(c["point"]["unlearning.0.epsilon"], c["seed"]) for c in plan["cases"]]
    assert points == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]


def test_a_complete_sweep_runs_nothing_again(tmp_path, clean, calls):
    folder = shutil.copytree(clean, tmp_path / "a")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("case.json")}
    run_sweep(sweep(), folder)
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("case.json")} == before


def test_more_values_and_seeds_keep_the_finished_cases(tmp_path, clean, calls):
    folder = shutil.copytree(clean, tmp_path / "a")
    more = sweep(axes={"unlearning.0.epsilon": [0.5, 1.0, 2.0]}, seeds=(0, 1))
    run_sweep(more, folder)
    assert len(calls) == 2
    assert len(SweepView.open(folder).cases) == 6
    new = sweep(axes={**more.axes, "training.rounds": [3]})
    run_sweep(new, folder)  # an axis whose one value is the base's
    assert len(calls) == 2
    assert SweepView.open(folder).axes == ("unlearning.0.epsilon", "training.rounds")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seeds": (1,)}, r"2 of its 4 cases .*seed=0; seeds lack 0"),
        ({"axes": {"unlearning.0.epsilon": [1.0]}}, r"0\.epsilon lacks 0\.5"),
        ({"axes": {"training.rounds": [2]}}, r"training\.rounds is a new axis"),
        ({"base": forgetting(training={"rounds": 2})}, r"base differs in training\."),
    ],
)  # fmt: skip
def test_another_plan_is_refused_and_nothing_changes(tmp_path, clean, fields, words):
    folder = shutil.copytree(clean, tmp_path / "a")
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(ConfigMismatchError, match=words) as caught:
        run_sweep(sweep(**fields), folder)
    assert "give another name" in str(caught.value)
    assert (folder / "sweep.json").read_bytes() == before
    assert len(list((folder / "cases").iterdir())) == 4


def test_a_case_that_was_exchanged_is_noticed(tmp_path, clean):
    folder = shutil.copytree(clean, tmp_path / "a")
    one, two, *_ = [case.folder for case in SweepView.open(folder).cases]
    shutil.copy(two / "config.json", one / "config.json")
    with pytest.raises(ConfigMismatchError, match=f"got that of {two.name}; .*move it"):
        run_sweep(sweep(), folder)


def test_a_partial_case_goes_on_and_a_stub_begins_again(tmp_path, clean, calls):
    folder = shutil.copytree(clean, tmp_path / "a")
    partial, stub, unborn, _ = [case.folder for case in SweepView.open(folder).cases]
    (partial / "case.json").unlink()
    shutil.rmtree(next(partial.glob("outcomes/*")))
    for path in stub.iterdir():
        if path.name not in ("lock", "config.toml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(unborn)
    unborn.mkdir()  # killed before the lock was written
    run_sweep(sweep(), folder)
    assert len(calls) == 3
    assert facts(folder) == facts(clean)


def test_a_folder_in_a_cases_place_is_not_removed(tmp_path, clean):
    folder = shutil.copytree(clean, tmp_path / "a")
    case = SweepView.open(folder).cases[0].folder
    shutil.rmtree(case)
    case.mkdir()
    (case / "thesis.txt").write_text("mine")
    run_sweep(sweep(), folder)
    failure = failed_cases(folder)[case.name]
    assert "got thesis.txt without config.json" in failure.message
    assert (case / "thesis.txt").read_text() == "mine"


def test_a_folder_that_is_no_sweep_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputFileError, match=r"got notes\.txt there and no sweep"):
        run_sweep(sweep(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafeFormatError, match="symbolic link"):
        run_sweep(sweep(), tmp_path / "link")


def test_a_bad_case_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ConfigError, match="cannot be run, so nothing was begun"):
        run_sweep(sweep(axes={"unlearning.0.epsilon": [1, -1]}), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_one_program_writes_a_folder(tmp_path, clean):
    folder = shutil.copytree(clean, tmp_path / "a")
    with RunFolder(folder).locked(), pytest.raises(RunLockedError, match="in use by"):
        run_sweep(sweep(), folder)


@pytest.mark.parametrize("words", ["{", '{"cases": [{}]}', "[]"])
def test_a_damaged_plan_is_named(tmp_path, clean, words):
    folder = shutil.copytree(clean, tmp_path / "a")
    (folder / "sweep.json").write_text(words)
    with pytest.raises(StoreCorruptError, match=r"sweep\.json"):
        run_sweep(sweep(), folder)


NETWORKS = {"topology": [{"use": "ring", "n": 4}, {"use": "torus", "n": 7}]}


def test_a_case_that_fails_is_noted_and_tried_again_on_demand(tmp_path, calls):
    failing = Sweep(base=tiny(), axes=NETWORKS)
    run_sweep(failing, tmp_path / "a")
    first, _ = SweepView.open(tmp_path / "a").cases
    assert first.status == "done"
    (failure,) = failed_cases(tmp_path / "a").values()
    assert failure.error == "InvalidArgumentError"
    assert failure.message.startswith("topology.n: must be rows x columns")
    assert failure.exit_code == 2
    assert failure.point == {"topology": {"use": "torus", "n": 7}}
    assert failure.seed == 0
    assert failure.seconds > 0
    assert len(calls) == 2
    run_sweep(failing, tmp_path / "a")
    assert len(calls) == 2
    run_sweep(failing, tmp_path / "a", retry_failed=True)
    assert len(calls) == 3
    lines = (tmp_path / "a" / "failures.jsonl").read_bytes().splitlines()
    assert len(lines) == 2


def test_a_failure_that_was_overcome_is_none_any_more(tmp_path, monkeypatch):
    run_case, fail = run.run_case, [True]

    def failing(place, *args, **more):
        if fail:
            raise MemoryError("of 3 TB")
        run_case(place, *args, **more)

    monkeypatch.setattr(run, "run_case", failing)
    one = Sweep(base=tiny(), axes={})
    run_sweep(one, tmp_path / "a")
    (failure,) = failed_cases(tmp_path / "a").values()
    assert (failure.error, failure.exit_code) == ("ResourceError", 5)
    fail.clear()
    run_sweep(one, tmp_path / "a", retry_failed=True)
    assert failed_cases(tmp_path / "a") == {}
    assert SweepView.open(tmp_path / "a").cases[0].status == "done"


def test_a_refusal_is_no_failure(tmp_path):
    budget = {"rounds": 3, "privacy_budget": {"epsilon_max": 0.1}}
    base = forgetting(training=budget)
    run_sweep(Sweep(base=base, axes={}), tmp_path / "a")
    assert failed_cases(tmp_path / "a") == {}
    (case,) = SweepView.open(tmp_path / "a").cases
    (refused,) = json.loads((case.folder / "case.json").read_text())["refused"]
    assert refused["request"] == "r0"
    assert refused["protocol"] == "newton-fisher"
    assert refused["error"] == "PrivacyBudgetExceededError"
    assert set(SweepView.open(tmp_path / "a").frame["protocol"]) >= {"fine-tune"}


def test_an_interruption_leaves_tables_and_goes_on(tmp_path, clean, monkeypatch):
    run_case, ends = run.run_case, []

    def interrupted(place, *args, **more):
        if len(ends) == 2:
            raise KeyboardInterrupt
        run_case(place, *args, **more)
        ends.append(place)

    monkeypatch.setattr(run, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep(), tmp_path / "a")
    assert (tmp_path / "a" / "table.csv").is_file()
    monkeypatch.setattr(run, "run_case", run_case)
    run_sweep(sweep(), tmp_path / "a")
    assert facts(tmp_path / "a") == facts(clean)


def test_two_processes_give_what_one_does_and_outlive_a_killed_one(
    tmp_path, monkeypatch
):
    """The longer case is killed at its checkpoint, in its worker."""
    base = forgetting(execution={"checkpoint_every": 3})
    both = Sweep(base=base, axes={"training.rounds": [5, 3, 2]})
    monkeypatch.setenv("DFL_UNLEARN_FAULT", "checkpoint:3:rename")
    folder = tmp_path / "two"
    run_sweep(both, folder, jobs=2)
    monkeypatch.delenv("DFL_UNLEARN_FAULT")
    (killed,) = failed_cases(folder).values()
    assert killed.error == "SIGKILL"
    assert killed.exit_code == 5
    assert "use fewer jobs" in killed.message
    assert killed.point == {"training.rounds": 5}
    done = [case.status == "done" for case in SweepView.open(folder).cases]
    assert done == [False, True, True]
    run_sweep(both, folder, retry_failed=True)
    run_sweep(both, tmp_path / "one")
    assert facts(folder) == facts(tmp_path / "one")
    assert untimed(folder) == untimed(tmp_path / "one")


def test_cases_that_use_ray_themselves_run_one_by_one(tmp_path, monkeypatch):
    """Whatever jobs and engine say: never cases and blocks side by side at once."""
    places = []
    monkeypatch.setattr(run, "run_case", lambda place, *_, **__: places.append(place))
    monkeypatch.setattr(run, "side_by_side", None)
    base = tiny(execution={"engine": "ray", "workers": 2})
    for engine in ("processes", "ray"):
        alone = Sweep(base=base, axes={}, seeds=(0, 1))
        run_sweep(alone, tmp_path / engine, jobs=2, engine=engine)
    assert len(places) == 4


@pytest.mark.ray
@pytest.mark.slow
def test_ray_tasks_give_what_one_process_does(tmp_path, clean):
    networks = [{"use": "ring", "n": 4}, {"use": "torus", "n": 7}]
    folder = tmp_path / "a"
    run_sweep(sweep(), folder, jobs=2, engine="ray")
    assert facts(folder) == facts(clean)
    failing = Sweep(base=tiny(), axes={"topology": networks})
    run_sweep(failing, tmp_path / "b", jobs=2, engine="ray")
    (failure,) = failed_cases(tmp_path / "b").values()
    assert failure.error == "InvalidArgumentError"


@pytest.mark.slow
def test_workers_end_with_a_program_that_cannot_go_on(tmp_path, monkeypatch):
    def full(*_):
        raise StoreWriteError("no space left")

    monkeypatch.setattr(run, "write_failure", full)
    failing = Sweep(base=tiny(), axes=NETWORKS, seeds=(0, 1))
    with pytest.raises(StoreWriteError):
        run_sweep(failing, tmp_path / "a", jobs=2)
    held = [c for c in psutil.Process().children() if "spawn_main" in str(c.cmdline())]
    assert not held


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"jobs": 0}, "jobs: must be"), ({"engine": "dask"}, "engine: must be one of")],
)
def test_arguments_are_checked_first(tmp_path, arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        run_sweep(sweep(), tmp_path / "a", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pages_are_written_where_they_are_asked_for(tmp_path):
    base = forgetting(report={"figures": [], "html": True})
    run_sweep(Sweep(base=base, axes={}), tmp_path / "a", pages=True)
    assert len(list((tmp_path / "a").glob("cases/*/report.html"))) == 1


def test_progress_is_a_line_per_tenth_with_an_estimate(capsys):
    bar = SweepProgress(45, [3.0] * 5, 0, jobs=2, show=True)
    for k in range(40):
        bar.ended(3.0, failed=k == 0)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "sweep: 9 of 45 cases, 1 failed, about 54 s left"
    assert lines[-1] == "sweep: 45 of 45 cases, 1 failed"


def test_what_is_complete_already_gives_the_first_estimate():
    assert SweepProgress(9, [], 0, jobs=2, show=False).remaining() is None
    bar = SweepProgress(9, [2.0, 4.0], 1, jobs=2, show=False)
    assert bar.remaining() == 9.0  # six cases of 3 s, two at a time
    assert SweepProgress(4, [2.0] * 3, 0, jobs=2, show=False).remaining() == 2.0


def test_progress_says_nothing_unasked(capsys):
    bar = SweepProgress(2, [], 0, jobs=1, show=False)
    bar.ended(1.0, failed=False)
    assert bar.remaining() == 1.0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 5 min")],
)
def test_durations_are_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.slow
def test_a_program_without_a_guard_is_told_so(tmp_path):
    """Workers start such a program again, which ends them before their first case."""
    import subprocess
    import sys

    file = tmp_path / "program.py"
    file.write_text(
        "from dfl_unlearn.sweeps import Sweep, run_sweep\n"
        "base = {'topology': {'use': 'ring', 'n': 4}, 'training': {'rounds': 1}}\n"
        f"run_sweep(Sweep(base=base, axes={{}}), {str(tmp_path / 'a')!r}, jobs=2)\n"
    )
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True)
    assert ended.returncode != 0
    assert ResourceError.__name__ in ended.stderr
    assert "under if __name__ == '__main__'" in ended.stderr


def test_a_lock_that_is_there_is_never_replaced(tmp_path):
    """Two programs that begin one folder at once must lock the same file."""
    place = tmp_path / "lock"
    run._make_lock(place)
    before = place.stat().st_ino
    with RunFolder(tmp_path).locked():
        run._make_lock(place)
        assert place.stat().st_ino == before
        with pytest.raises(RunLockedError), RunFolder(tmp_path).locked():
            pass
