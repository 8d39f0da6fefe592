"""Partitions: invariants of every entry, and what each one promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.data.partition import partitions, split
from dfl_unlearn.errors import DataError, DflUnlearnError, InvalidArgumentError
from dfl_unlearn.rng import RngTree

NEEDED = {
    "by-size": lambda rows, n: {"sizes": [max(1, rows // (2 * n))] * n},
    "lists": lambda rows, n: {"lists": [range(i, rows, n) for i in range(n)]},
}


def labels_of(rows, classes=4, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(classes, size=rows))


@pytest.mark.parametrize("name", partitions.names())
@given(
    n=st.integers(1, 9),
    per_peer=st.integers(2, 30),
    extra=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_every_partition_gives_each_row_to_at_most_one_peer(
    name, n, per_peer, extra, seed
):
    labels = labels_of(n * per_peer + extra, seed=seed)
    options = NEEDED.get(name, lambda rows, n: {})(len(labels), n)
    parts = split(name, labels, n, RngTree(seed), options)
    assert len(parts) == n
    used = np.concatenate(parts)
    assert len(np.unique(used)) == len(used)
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= 1
        assert (np.diff(part) > 0).all()
    if name != "by-size":
        np.testing.assert_array_equal(np.sort(used), np.arange(len(labels)))
    again = split(name, labels, n, RngTree(seed), options)
    for a, b in zip(parts, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_another_seed_gives_another_partition(name):
    labels = labels_of(200)
    a, b = (split(name, labels, 4, RngTree(seed), {}) for seed in (0, 1))
    assert not all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_iid_parts_differ_by_at_most_one_row():
    sizes = [len(p) for p in split("iid", labels_of(103), 10, RngTree(0), {})]
    assert sorted(sizes) == [10] * 7 + [11] * 3


def skew(labels, parts):
    """Mean over peers of the largest class share."""
    return np.mean([np.bincount(labels[p]).max() / len(p) for p in parts])


def test_smaller_alpha_means_more_skewed_peers():
    labels = labels_of(4000)
    shares = [
        skew(labels, split("dirichlet", labels, 8, RngTree(0), {"alpha": alpha}))
        for alpha in (0.05, 0.5, 1000.0)
    ]
    assert shares[0] > shares[1] + 0.1 > shares[2] + 0.2
    assert shares[2] == pytest.approx(0.25, abs=0.03)


def test_dirichlet_sizes_follow_the_drawn_proportions():
    # With one class the shares are one Dirichlet draw, and the mean square of a share
    # is (alpha + 1) / (n (n alpha + 1)). Four standard errors: 1 false alarm in 15,000.
    labels = torch.zeros(10_000, dtype=torch.int64)
    squares = [
        np.square([len(p) / 10_000 for p in parts]).mean()
        for parts in (
            split("dirichlet", labels, 4, RngTree(seed), {"alpha": 0.5})
            for seed in range(300)
        )
    ]
    exact = (0.5 + 1) / (4 * (4 * 0.5 + 1))
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - exact) < 4 * error
    assert error < 0.006


@pytest.mark.parametrize("alpha", [1e-3, 0.01, 0.3])
def test_min_per_peer_is_met_however_skewed(alpha):
    labels = labels_of(300)
    options = {"alpha": alpha, "min_per_peer": 10}
    parts = split("dirichlet", labels, 20, RngTree(3), options)
    assert min(map(len, parts)) >= 10


def test_a_peer_without_rows_is_named():
    with pytest.raises(
        DataError,
        match=r"peer \d+ received 0 records \(Dirichlet alpha=0\.01, "
        r"min_per_peer=0\)\. Use min_per_peer or another seed\.",
    ):
        split(
            "dirichlet",
            labels_of(50),
            20,
            RngTree(0),
            {"alpha": 0.01, "min_per_peer": 0},
        )
    with pytest.raises(DataError, match=r"peer 3 received 0 records \(Iid\)"):
        split("iid", labels_of(3), 4, RngTree(0), {})


def test_shards_give_few_classes_to_each_peer():
    labels = torch.arange(10).repeat_interleave(20)
    for part in split("shards", labels, 10, RngTree(0), {"per_peer": 2}):
        assert len(np.unique(labels[part])) <= 2
        assert len(part) == 20


def test_shards_of_a_regression_are_cut_by_value():
    targets = torch.linspace(0, 1, 40)
    for part in split("shards", targets, 4, RngTree(0), {"per_peer": 1}):
        np.testing.assert_array_equal(np.diff(part), 1)


@pytest.mark.parametrize(
    ("name", "n", "options", "message"),
    [
        ("dirichlet", 2, {"alpha": 0.0}, "alpha: .*got 0.0"),
        ("dirichlet", 2, {"alpha": float("inf")}, "alpha: .*got inf"),
        ("dirichlet", 2, {"min_per_peer": -1}, "min_per_peer: .*got -1"),
        ("dirichlet", 2, {"min_per_peer": 7}, "at least 14 records .* got 12"),
        ("shards", 2, {"per_peer": 0}, "per_peer: .*got 0"),
        ("shards", 7, {}, "at least 14 records .* got 12"),
        ("by-size", 2, {"sizes": [3]}, "2 entries, .*got 1"),
        ("by-size", 2, {"sizes": [3, 0]}, r"sizes\[1\].*got 0"),
        ("by-size", 2, {"sizes": [3, 2.0]}, r"sizes\[1\].*got 2.0"),
        ("by-size", 2, {"sizes": [3, 10]}, "at most 12 .* got 13"),
        ("lists", 2, {"lists": [[0]]}, r"per peer \(2\), got 1"),
        ("lists", 2, {"lists": [[0], [0]]}, "record 0 at peers 0, 1"),
        ("lists", 2, {"lists": [[0, 0], [1]]}, "record 0 at peers 0;"),
        ("lists", 2, {"lists": [[0], [12]]}, r"lists\[1\].*0\.\.11, got 12"),
        ("lists", 2, {"lists": [[0], [-1]]}, r"lists\[1\].*got -1"),
        ("lists", 2, {"lists": [[0], [1.5]]}, r"lists\[1\].*got 1.5"),
        ("lists", 2, {"lists": [[0], []]}, "peer 1 received 0 records"),
        ("lists", 2, {"lists": [[0], 3]}, r"lists\[1\]: must be a list.*got 3"),
    ],
)
def test_impossible_options_are_refused(name, n, options, message):
    with pytest.raises(DflUnlearnError, match=message) as caught:
        split(name, labels_of(12), n, RngTree(0), options)
    assert isinstance(caught.value, DataError | InvalidArgumentError)
    assert caught.value.exit_code == 2


def test_dirichlet_needs_classes():
    with pytest.raises(DataError, match=r"int64 classes, got torch\.float32"):
        split("dirichlet", torch.zeros(5), 2, RngTree(0), {})
