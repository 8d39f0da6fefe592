"""Ray's own processes are killed: a clear error soon, and nothing left running."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

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
def test_a_dead_daemon_ends_the_run_with_an_error(name, round_):
    marker = f"{name}-{round_}-{os.getpid()}"
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob("dfl-ray-*"))
    # Starting takes what it takes; from the blow on 60 s must do.
    answer = subprocess.run(
        [sys.executable, PROGRAM, "daemon", name, str(round_)],
        env={**os.environ, "DFL_TEST_MARK": marker},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert answer.returncode == 5, answer.stderr[-2000:]
    assert re.search(rf"ResourceError Ray's {name} .* has ended", answer.stdout)
    assert rest_of(marker) == []
    assert set(folder.glob("dfl-ray-*")) <= before
