"""Ray's own processes are killed: a clear error soon, and nothing left running."""

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


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
@pytest.mark.parametrize("round_", [3, 20])
def test_a_dead_daemon_ends_the_run_with_an_error(name, round_, tmp_path):
    marker = f"{name}-{round_}-{os.getpid()}"
    short = tempfile.mkdtemp(prefix="dfl-")  # for sockets; a test's own is too long
    # Starting takes what it takes; from the blow on 60 s must do.
    answer = subprocess.run(
        [sys.executable, PROGRAM, "daemon", name, str(round_), str(tmp_path / "a")],
        env={**os.environ, "DFL_TEST_MARK": marker, "TMPDIR": short},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert answer.returncode == 5, answer.stderr[-2000:]
    assert re.search(rf"ResourceError Ray's {name} .* has ended", answer.stdout)
    assert "resume with: dfl-unlearn resume" in answer.stdout
    assert rest_of(marker) == []
    assert not list(Path(short).glob("dfl-ray-*"))
    shutil.rmtree(short, ignore_errors=True)
    assert resume(tmp_path / "a", data=ROWS).digest == clean().digest
