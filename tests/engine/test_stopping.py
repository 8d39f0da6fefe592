"""Signals: the round is finished and kept, or abandoned; a second one ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from networks import blobs

from dfl_unlearn import _stopping, resume
from dfl_unlearn._stopping import StoppedError, stopped_by_signals
from dfl_unlearn.engine.backends.inline import Inline
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate

DATA = blobs([6, 5, 4])
CONFIG = SimulationConfig(rounds=9, local=LocalSteps(batch_size=3), evaluate_every=2)


class Signal:
    def __init__(self, signum):
        self.signum = signum

    def on_round(self, info):
        if info.round == 4:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_the_round_is_finished_and_kept(tmp_path, signum, code):
    before = signal.getsignal(signum)
    with stopped_by_signals(), pytest.raises(StoppedError) as stop:
        simulate(
            "path",
            DATA,
            "logistic",
            CONFIG,
            folder=tmp_path / "a",
            callbacks=[Signal(signum)],
        )
    assert signal.getsignal(signum) is before
    assert stop.value.exit_code == code
    assert "after round 4 of 9; resume with: dfl-unlearn resume" in str(stop.value)
    assert [p.name for p in (tmp_path / "a/ckpt").iterdir()] == ["round-000004"]
    clean = simulate("path", DATA, "logistic", CONFIG)
    assert resume(tmp_path / "a", data=DATA).digest == clean.digest


def test_a_round_that_takes_too_long_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(_stopping, "GRACE_S", 0.02)
    advance = Inline.advance

    def endless(self, t):
        if t == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return advance(self, t)

    monkeypatch.setattr(Inline, "advance", endless)
    with (
        stopped_by_signals(),
        pytest.raises(StoppedError, match=r"was abandoned; resume with: dfl-unlearn"),
    ):
        simulate("path", DATA, "logistic", CONFIG, folder=tmp_path / "a")
    monkeypatch.undo()
    assert resume(tmp_path / "a", data=DATA).state.round == 9


def test_outside_of_training_a_signal_ends_at_once():
    with stopped_by_signals(), pytest.raises(StoppedError, match="nothing that was"):
        signal.raise_signal(signal.SIGINT)
    with stopped_by_signals(), pytest.raises(StoppedError):  # no folder to keep it in
        simulate("path", DATA, "logistic", CONFIG, callbacks=[Signal(signal.SIGINT)])


def test_a_library_that_makes_another_error_of_it_changes_nothing():
    def library():
        try:
            signal.raise_signal(signal.SIGTERM)
        except StoppedError:
            raise SystemError("returned a result with an exception set") from None

    with pytest.raises(StoppedError) as stop, stopped_by_signals():
        library()
    assert stop.value.exit_code == 143
    with pytest.raises(ZeroDivisionError), stopped_by_signals():
        1 / 0  # noqa: B018


def test_a_second_signal_does_not_wait():
    code = (
        "import os, signal\n"
        "from dfl_unlearn._stopping import stopped_by_signals, stops_between_rounds\n"
        "with stopped_by_signals(), stops_between_rounds():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('never', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stdout == "still here\n"


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with stopped_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [before]
