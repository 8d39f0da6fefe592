"""Sensitivities as they are claimed, measured on random and worst neighbours."""

import numpy as np
import pytest
import torch

from dfl_unlearn.accounting.release import clip_rows, project_ball_

PAIRS = 1000


def sums(rng, clip, dtype, change):
    """Distance of the clipped sums of random neighbours, over the clip norm."""
    rows = torch.from_numpy(rng.normal(size=(8, 5)) * 10 ** rng.uniform(-2, 3, (8, 1)))
    rows = rows.to(dtype)
    one, sensitivity = clip_rows(rows, clip)
    two, _ = clip_rows(change(rows), clip)
    assert sensitivity == clip
    moved = one.double().sum(0) - two.double().sum(0)
    return float(moved.norm()) / clip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_claimed_sensitivity_holds_when_a_row_is_added_or_removed(dtype):
    rng = np.random.default_rng(3)
    found = [
        sums(rng, float(10 ** rng.uniform(-2, 2)), dtype, lambda rows: rows[1:])
        for _ in range(PAIRS)
    ]
    assert 0.999 < max(found) <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_claimed_sensitivity_holds_when_a_row_is_exchanged(dtype):
    rng = np.random.default_rng(4)

    def other(rows):
        return torch.cat([torch.from_numpy(rng.normal(size=(1, 5))).to(rows), rows[1:]])

    def opposite(rows):
        return torch.cat([-rows[:1] * 1e3, rows[1:]])

    found = [
        sums(rng, float(10 ** rng.uniform(-2, 2)), dtype, change)
        for change in (other, opposite)
        for _ in range(PAIRS)
    ]
    assert 1.999 < max(found) <= 2 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_claimed_sensitivity_holds_in_a_ball(dtype):
    rng = np.random.default_rng(5)
    found = []
    for k in range(PAIRS):
        radius = float(10 ** rng.uniform(-2, 2))
        centre = torch.from_numpy(rng.normal(size=6) * 10 ** rng.uniform(-2, 2))
        push = torch.from_numpy(rng.normal(size=6) * 10 ** rng.uniform(-2, 3))
        other = -push if k % 2 else torch.from_numpy(rng.normal(size=6))
        one, two = (centre + push).to(dtype), (centre + other).to(dtype)
        sensitivity = project_ball_(one, radius, centre.to(dtype))
        assert project_ball_(two, radius, centre.to(dtype)) == sensitivity
        found.append(float((one.double() - two.double()).norm()) / sensitivity)
    assert 0.99 < max(found) <= 1
