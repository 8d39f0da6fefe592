"""The attack that no certificate speaks about is real, and it is said to be."""

import pandas as pd
import pytest
from test_quick_presets import run


@pytest.mark.slow
@pytest.mark.statistical
def test_reconstruction_demo(tmp_path):
    # 200 deletions: medians and means are within 0.01 and 0.02 with 99.9 % confidence.
    done = run("reconstruction", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(tmp_path / "runs" / "reconstruction" / "table.csv")
    assert len(table) == 200
    assert table.retained.min() > 1 - 1e-9
    assert table.public.median() == pytest.approx(0.967, abs=0.01)
    assert table.public.quantile(0.1) > 0.93
    # Certified, and no help: its noise hides a residual that is nearly zero.
    assert table.certified.median() == pytest.approx(0.967, abs=0.01)
    assert "status of the certified releases: certified at epsilon 1" in done.stdout
    # Noise for the whole shift does help: what is left is chance in 12 dimensions.
    assert table.noised.mean() == pytest.approx(0.26, abs=0.04)
    assert "a certificate compares after-worlds only" in done.stdout
