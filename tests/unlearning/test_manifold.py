"""Neighbours, triplets and the nuclear norm (oracle O7)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.unlearning import manifold
from dfl_unlearn.unlearning.manifold import (
    mmcr_loss,
    nearest,
    triplet_gap,
    triplet_loss,
    unit,
)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "loss"), [(0, 3), (1, 4), (5, 8)])
def test_the_pull_loss_is_the_oracles_with_its_gradient(alpha, loss):
    z = vector(1, 0).requires_grad_()
    own, centre = vector(0, 0), vector(3, 0)
    value = triplet_loss(z, centre, own, alpha)
    assert value.item() == loss
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.tolist() == [-6, 0]  # 2 (o - c)


@pytest.mark.parametrize("alpha", [-3, -4])
def test_where_the_gap_is_reached_nothing_moves(alpha):
    z = vector(1, 0).requires_grad_()
    value = triplet_loss(z, vector(3, 0), vector(0, 0), alpha)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.tolist() == [0, 0]


def test_the_reference_loss_is_the_oracles():
    z, positive, centre = vector(1, 0), vector(2, 1), vector(2, 0)
    assert float(triplet_loss(centre, positive, z, 0.5)) == 0.5


def test_a_gap_is_one_number_per_sample():
    draw = np.random.default_rng(0)
    a, p, n = (torch.from_numpy(draw.normal(size=(4, 3))) for _ in range(3))
    expected = [
        sum((x - y) ** 2 for x, y in zip(a[i], n[i], strict=True))
        - sum((x - y) ** 2 for x, y in zip(a[i], p[i], strict=True))
        for i in range(4)
    ]
    torch.testing.assert_close(triplet_gap(a, p, n), torch.stack(expected))


@given(
    m=st.integers(1, 7), n=st.integers(1, 9), k=st.integers(1, 6), seed=st.integers(0)
)
def test_neighbours_are_the_most_similar_rows_however_long(m, n, k, seed):
    draw = np.random.default_rng(seed)
    queries, pool = draw.normal(size=(m, 3)), draw.normal(size=(n, 3))
    pool *= draw.uniform(0.1, 10, size=(n, 1))
    found = nearest(torch.from_numpy(queries), torch.from_numpy(pool), k).numpy()
    assert found.shape == (m, min(k, n))
    for i, query in enumerate(queries):
        sims = [q @ query / np.linalg.norm(q) for q in pool]
        np.testing.assert_array_equal(found[i], np.argsort(sims)[::-1][:k])


def test_blocks_of_queries_change_nothing(monkeypatch):
    draw = np.random.default_rng(1)
    queries, pool = (torch.from_numpy(draw.normal(size=(n, 4))) for n in (11, 6))
    at_once = nearest(queries, pool, 3)
    monkeypatch.setattr(manifold, "_BLOCK_FLOATS", 13)
    assert torch.equal(nearest(queries, pool, 3), at_once)


def test_rows_of_zeros_stay_zero_with_a_bounded_gradient():
    z = torch.zeros(2, 3, requires_grad=True)
    assert not unit(z).any()
    (gradient,) = torch.autograd.grad(unit(z).sum(), z)
    assert gradient.abs().max() <= 1


def test_the_mmcr_term_is_minus_the_sum_of_singular_values():
    draw = np.random.default_rng(2)
    views = draw.normal(size=(5, 2, 3))
    means = (views / np.linalg.norm(views, axis=2, keepdims=True)).mean(1)
    expected = -np.sqrt(np.linalg.eigvalsh(means.T @ means)).sum()
    got = mmcr_loss(torch.from_numpy(views))
    np.testing.assert_allclose(float(got), expected, rtol=1e-12)


def test_the_mmcr_term_rewards_agreeing_views_and_different_samples():
    eye = torch.eye(3)
    agreeing = torch.stack([eye, eye], dim=1)
    assert float(mmcr_loss(agreeing)) == pytest.approx(-3, rel=1e-6)  # its minimum
    opposed = torch.stack([eye, -eye], dim=1)
    assert float(mmcr_loss(opposed)) == pytest.approx(0, abs=1e-6)
    same = torch.stack([eye[:1].repeat(3, 1)] * 2, dim=1)
    assert float(mmcr_loss(same)) == pytest.approx(-(3**0.5), rel=1e-6)
