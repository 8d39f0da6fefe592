import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.engine.batches import BatchPlan
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.rng import RngTree

SIZES = [50, 7, 33, 64, 20, 64]
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)


def plan(keep=None, counted=None, *, batch_size=16, block_peers=4):
    keep = np.ones(OFFSETS[-1], dtype=bool) if keep is None else keep
    return BatchPlan(
        offsets=OFFSETS,
        keep=keep,
        counted=keep if counted is None else counted,
        local=LocalSteps(batch_size=batch_size),
        rng=RngTree(5),
        block_peers=block_peers,
    )


def rows(batch, i):
    return batch.index[i][batch.weights[i] > 0]


def test_an_epoch_takes_every_row_of_a_peer_exactly_once():
    it = plan()
    for peer, size in enumerate(SIZES):
        seen = [
            rows(it.batch(np.array([peer]), np.array([s])), 0)
            for s in range(-(-size // 16))
        ]
        expected = np.arange(OFFSETS[peer], OFFSETS[peer + 1])
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), expected)


def test_epochs_differ_and_batches_are_shuffled():
    it = plan()
    first = rows(it.batch(np.array([3]), np.array([0])), 0)
    second = rows(it.batch(np.array([3]), np.array([4])), 0)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(16) + OFFSETS[3])


def test_a_plan_can_start_at_any_step_and_in_any_company():
    walked = plan()
    for step in range(9):
        last = walked.batch(np.arange(4), np.full(4, step))
    for peer in range(4):
        alone = plan().batch(np.array([peer]), np.array([8]))
        np.testing.assert_array_equal(rows(alone, 0), rows(last, peer))


def test_the_order_is_the_argsort_of_the_documented_draw():
    uniforms = RngTree(5).numpy("batch", who="block:0", round=1).random(OFFSETS[4])
    part = uniforms[OFFSETS[2] : OFFSETS[3]]
    expected = OFFSETS[2] + np.argsort(part)[:16]
    batch = plan().batch(np.array([2]), np.array([3]))  # 33 rows: 3 batches an epoch
    np.testing.assert_array_equal(batch.index[0], expected)


def test_forgetting_at_one_peer_leaves_the_batches_of_others_alone():
    keep = np.ones(OFFSETS[-1], dtype=bool)
    keep[OFFSETS[1] : OFFSETS[1] + 5] = False
    for step in range(6):
        whole = plan().batch(np.arange(4), np.full(4, step))
        less = plan(keep).batch(np.arange(4), np.full(4, step))
        np.testing.assert_array_equal(whole.index, less.index)
        others = [0, 2, 3]
        np.testing.assert_array_equal(whole.weights[others], less.weights[others])


def test_forgotten_rows_keep_their_slot_with_weight_zero():
    keep = np.ones(OFFSETS[-1], dtype=bool)
    keep[OFFSETS[1]] = False
    batch = plan(keep).batch(np.array([1]), np.array([0]))
    gone = batch.index[0] == OFFSETS[1]
    assert batch.weights[0][gone].max() == 0
    np.testing.assert_allclose(batch.weights[0].sum(), 1.0)


def test_a_fixed_divisor_counts_forgotten_rows():
    keep = np.ones(OFFSETS[-1], dtype=bool)
    keep[OFFSETS[1] : OFFSETS[1] + 3] = False
    batch = plan(keep, np.ones_like(keep)).batch(np.array([1]), np.array([0]))
    np.testing.assert_allclose(batch.weights[0].sum(), 4 / 7)


def test_a_batch_without_retained_rows_has_no_weight():
    keep = np.ones(OFFSETS[-1], dtype=bool)
    keep[OFFSETS[1] : OFFSETS[2]] = False
    assert plan(keep).batch(np.array([1]), np.array([0])).weights.sum() == 0


@pytest.mark.parametrize("batch_size", [None, 1000])
def test_a_large_or_full_batch_is_all_rows(batch_size):
    batch = plan(batch_size=batch_size).batch(np.arange(4), np.zeros(4, dtype=int))
    for i in range(4):
        np.testing.assert_array_equal(
            np.sort(rows(batch, i)), np.arange(OFFSETS[i], OFFSETS[i + 1])
        )


@given(skip=st.integers(0, 300), count=st.integers(1, 50))
def test_skipping_draws_gives_the_same_numbers(skip, count):
    whole = RngTree(1).numpy("batch").random(skip + count)
    part = RngTree(1).numpy("batch", skip=skip).random(count)
    np.testing.assert_array_equal(part, whole[skip:])


def test_poisson_batches_keep_to_few_widths_and_their_coins():
    offsets = np.array([0, 700, 1500])
    everything = np.ones(1500, dtype=bool)
    plan = BatchPlan(
        offsets=offsets,
        keep=everything,
        counted=everything,
        local=LocalSteps(),
        rng=RngTree(3),
        block_peers=16,
    )
    widths, joined = set(), np.zeros(1500)
    for t in range(400):
        batch = plan.poisson(np.arange(2), t, 0.3)
        taken = np.where(batch.weights > 0, batch.index, -1)
        widths.add(taken.shape[1])
        for i, size in enumerate([700, 800]):
            rows = taken[i][taken[i] >= 0]
            assert len(set(rows.tolist())) == len(rows)
            assert ((offsets[i] <= rows) & (rows < offsets[i + 1])).all()
            assert set(batch.weights[i]) <= {0.0, 1 / (0.3 * size)}
            joined[rows] += 1
    assert len(widths) <= 6
    # 1500 shares of 400 coins: six standard deviations, confidence 1 - 1e-5.
    assert np.abs(joined / 400 - 0.3).max() < 6 * np.sqrt(0.3 * 0.7 / 400)
    alone = plan.poisson(np.array([1]), 7, 0.3)
    both = plan.poisson(np.arange(2), 7, 0.3)
    of_one = both.index[1][both.weights[1] > 0]
    np.testing.assert_array_equal(alone.index[0][alone.weights[0] > 0], of_one)
