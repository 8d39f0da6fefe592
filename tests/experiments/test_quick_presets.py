"""Every script's QUICK preset runs, so that scripts cannot rot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments"
# What has no presets is shared by scripts, and is no script.
NAMES = sorted(p.stem for p in SCRIPTS.glob("*.py") if "\nQUICK = " in p.read_text())
# A minute or more; tests of their own run something smaller.
SLOW = {"sweep_privacy", "sweep_topology"}


def run(name, folder, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "error::UserWarning"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES],
)
def test_the_quick_preset_runs_and_keeps_its_results(name, tmp_path):
    done = run(name, tmp_path, "--preset", "quick")
    assert done.returncode == 0, done.stderr[-2000:]
    assert any((tmp_path / "runs" / name).iterdir())


def test_an_override_is_checked(tmp_path):
    done = run("quickstart", tmp_path, "--preset", "quick", "roundz=3")
    assert done.returncode != 0
    assert "roundz: unknown key. Did you mean 'rounds'?" in done.stderr
    assert not (tmp_path / "runs").exists()
