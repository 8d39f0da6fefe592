"""Ray's own processes are killed, or signals come: nothing is left running."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray_jobs import ROWS, clean

from dfl_unlearn import resume

PROGRAM = Path(__file__).parent / "ray_program.py"

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def rest_of(marker):
    """Processes whose environment holds the marker: they descend from the program."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DFL_TEST_MARK") == marker:
                found.append((process.pid, process.name()))
        except psutil.Error:
            continue
    return found


def ended(how, name, round_, folder):
    """What a program of its own says and its exit code; it must leave nothing."""
    marker = f"{name}-{round_}-{os.getpid()}"
    short = tempfile.mkdtemp(prefix="dfl-")  # for sockets; a test's own is too long
    answer = subprocess.run(
        [sys.executable, PROGRAM, how, name, str(round_), str(folder)],
        env={**os.environ, "DFL_TEST_MARK": marker, "TMPDIR": short},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert rest_of(marker) == []
    assert not list(Path(short).glob("dfl-ray-*"))
    shutil.rmtree(short, ignore_errors=True)
    assert "resume with: dfl-unlearn resume" in answer.stdout, answer.stderr[-2000:]
    return answer.stdout, answer.returncode


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
@pytest.mark.parametrize("round_", [3, 20])
def test_a_dead_daemon_ends_the_run_with_an_error(name, round_, tmp_path):
    said, code = ended("daemon", name, round_, tmp_path / "a")
    assert code == 5
    assert re.search(rf"ResourceError Ray's {name} .* has ended", said)
    assert resume(tmp_path / "a", data=ROWS).digest == clean().digest


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_run_on_ray_after_its_round(name, code, tmp_path):
    said, found = ended("signal", name, 12, tmp_path / "a")
    assert found == code
    assert "StoppedError interrupted after round 13 of 30" in said
    assert resume(tmp_path / "a", data=ROWS).digest == clean().digest
