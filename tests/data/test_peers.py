"""The flat store: nothing dropped, nothing duplicated, clear errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.data.features import random_features
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData, TensorBatch
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.errors import (
    DataError,
    InvalidArgumentError,
    InvalidTypeError,
    UnknownPeerError,
)


def small(sizes=(3, 1, 2), classes=3, dtype=torch.float32):
    generator = np.random.default_rng(0)
    peers = [
        (
            torch.from_numpy(generator.normal(size=(size, 5))).to(dtype),
            torch.from_numpy(generator.integers(classes, size=size)),
        )
        for size in sizes
    ]
    test = torch.zeros(4, 5, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    return PeerData.from_tensors(peers, test, num_classes=classes)


def test_own_arrays_of_unequal_sizes_are_kept_row_by_row():
    rng = np.random.default_rng(1)
    peers = [(rng.normal(size=(k, 3)), rng.integers(4, size=k)) for k in (2, 5, 1)]
    data = PeerData.from_tensors(peers, test=peers[0])
    assert data.n == 3
    assert data.num_classes == 4
    np.testing.assert_array_equal(data.sizes, [2, 5, 1])
    np.testing.assert_array_equal(data.offsets, [0, 2, 7, 8])
    np.testing.assert_array_equal(data.owner, [0, 0, 1, 1, 1, 1, 1, 2])
    for i, (x, y) in enumerate(peers):
        np.testing.assert_array_equal(data.local(i).inputs.numpy(), x)
        np.testing.assert_array_equal(data.local(i).labels.numpy(), y)


def test_read_only_and_reversed_arrays_are_taken():
    x, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])
    x.flags.writeable = False
    data = PeerData.from_tensors([(x[::-1], y[::-1])], (x, y))
    np.testing.assert_array_equal(data.store.inputs.numpy(), x[::-1])
    np.testing.assert_array_equal(data.store.labels.numpy(), [1, 1, 0])


def test_floating_types_are_kept_unless_another_is_asked_for():
    peers = [(np.ones((2, 3)), np.array([0.5, 1.5]))]
    kept = PeerData.from_tensors(peers, peers[0])
    assert kept.num_classes == 0
    assert kept.store.inputs.dtype == kept.store.labels.dtype == torch.float64
    asked = PeerData.from_tensors(peers, peers[0], dtype=torch.float32)
    assert asked.store.inputs.dtype == asked.store.labels.dtype == torch.float32
    images = [(np.ones((2, 4, 4), dtype=np.uint8), np.array([0, 1], dtype=np.uint8))]
    stored = PeerData.from_tensors(images, images[0], dtype=torch.float32).store
    assert (stored.inputs.dtype, stored.labels.dtype) == (torch.uint8, torch.int64)


@given(
    peers=st.integers(1, 12),
    partition=st.sampled_from(["iid", "dirichlet", "shards"]),
    seed=st.integers(0, 2**32),
)
def test_loading_uses_every_row_once_in_its_peers_place(peers, partition, seed):
    source = datasets.build("gaussian-classes", per_class=30, dim=2)
    data = PeerData.load(source, peers, partition, seed)
    rows = len(source.train)
    np.testing.assert_array_equal(np.sort(data.origin), np.arange(rows))
    assert data.sizes.sum() == rows == data.offsets[-1]
    for i in range(peers):
        assert (np.diff(data.origin[data.rows(i)]) > 0).all()
    assert torch.equal(data.store.inputs, source.train.inputs[data.origin])
    assert torch.equal(data.store.labels, source.train.labels[data.origin])
    assert (
        data.fingerprint()
        == PeerData.load(source, peers, partition, seed).fingerprint()
    )


def test_another_seed_gives_another_split():
    source = datasets.build("gaussian-classes", per_class=30)
    prints = {PeerData.load(source, 4, seed=seed).fingerprint() for seed in range(3)}
    assert len(prints) == 3


def test_options_reach_the_partition_and_the_data_set():
    data = PeerData.load(
        "gaussian-classes",
        3,
        "by-size",
        dataset_options={"per_class": 20, "classes": 2},
        sizes=[5, 1, 7],
    )
    np.testing.assert_array_equal(data.sizes, [5, 1, 7])
    assert data.num_classes == 2


def test_forgetting_marks_rows_and_moves_nothing():
    data = small()
    later = data.without(ForgetRequest.samples(0, indices=[1]))
    np.testing.assert_array_equal(later.offsets, data.offsets)
    np.testing.assert_array_equal(later.dropped, [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(later.sizes, [3, 1, 2])
    np.testing.assert_array_equal(later.retained, [2, 1, 2])
    assert torch.equal(later.local(0).inputs, data.local(0).inputs[[0, 2]])
    assert data.dropped is None
    last = later.without(ForgetRequest.whole_peer(2))
    np.testing.assert_array_equal(last.dropped, [0, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(last.retained, [2, 1, 0])
    assert len(last.local(2)) == 0
    assert len({data.fingerprint(), later.fingerprint(), last.fingerprint()}) == 3


def test_pooled_data_are_one_peer_with_the_same_rows():
    data = small().without(ForgetRequest.samples(0, indices=[1]))
    pooled = data.pooled()
    assert pooled.n == 1
    np.testing.assert_array_equal(pooled.dropped, data.dropped)
    np.testing.assert_array_equal(pooled.retained, [5])
    assert torch.equal(pooled.store.inputs, data.store.inputs)


def test_the_fingerprint_sees_every_part():
    data = small()
    moved = PeerData.from_tensors(
        [
            (data.store.inputs[:2], data.store.labels[:2]),
            (data.store.inputs[2:4], data.store.labels[2:4]),
            (data.store.inputs[4:], data.store.labels[4:]),
        ],
        data.test,
        num_classes=3,
    )
    other_test = PeerData.from_tensors(
        [(data.local(i).inputs, data.local(i).labels) for i in range(3)],
        (torch.ones(4, 5), torch.zeros(4, dtype=torch.int64)),
        num_classes=3,
    )
    assert data.fingerprint() == small().fingerprint()
    assert len({d.fingerprint() for d in (data, moved, other_test)}) == 3


def broken(where, value, dtype=torch.float32):
    peers = [[torch.zeros(13, 6, dtype=dtype), torch.zeros(13)] for _ in range(4)]
    peers = [(x, y.long()) for x, y in peers]
    peers[where[0]][0][where[1:]] = value
    return peers


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")]
)
def test_a_feature_that_is_not_finite_is_named(value, word):
    peers = broken((3, 12, 4), value)
    with pytest.raises(DataError, match=rf"peer 3, record 12: feature 4 is {word};"):
        PeerData.from_tensors(peers, peers[0])
    with pytest.raises(DataError, match=rf"test, record 12: feature 4 is {word};"):
        PeerData.from_tensors(peers[:2], peers[3])


def test_features_of_images_are_counted_flat():
    x = torch.zeros(2, 3, 4)
    x[1, 2, 1] = torch.nan
    with pytest.raises(DataError, match="peer 0, record 1: feature 9 is NaN"):
        PeerData.from_tensors([(x, [0, 1])], (x[:1], [0]))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label):
    good = torch.zeros(2, 3), torch.tensor([0, 2])
    bad = torch.zeros(2, 3), torch.tensor([0, label])
    with pytest.raises(
        DataError, match=rf"peer 1, record 1: label must be in 0\.\.2, got {label}"
    ):
        PeerData.from_tensors([good, bad], good, num_classes=3)


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ([], "at least one"),
        ([(np.zeros((0, 2)), np.zeros(0, dtype=int))], "peer 0: must hold at least"),
        ([(np.zeros((2, 2)), [0, 1]), (np.zeros((2, 3)), [0, 1])], r"peer 1: .*\(2,\)"),
        (
            [(np.zeros((2, 2)), [0, 1]), (np.zeros((2, 2), np.float32), [0, 1])],
            "peer 1: inputs must be torch.float64",
        ),
        ([(np.zeros((2, 2)), [0, 1]), (np.zeros((2, 2)), [0.5, 1])], "peer 1: labels"),
        ([(np.zeros((2, 2)), [0, 1, 1])], r"peer 0: labels: .*\(2,\).*\(3,\)"),
        ([(np.zeros((2, 2), dtype=np.int32), [0, 1])], "peer 0: inputs: .*int32"),
        ([(np.zeros((2, 2), dtype=complex), [0, 1])], "peer 0: inputs: .*complex"),
        ([(np.zeros(2), [0, 1])], r"peer 0: inputs: .*\(2,\)"),
        ([np.zeros((2, 2))], "peer 0: must be a pair"),
        ([("ab", [0, 1])], "peer 0: .*arrays of numbers, got 'ab'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(peers, message):
    with pytest.raises(DataError, match=message):
        PeerData.from_tensors(peers, (np.zeros((1, 2)), [0]))


def test_targets_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match=r"peer 0, record 1: label .*finite.*got nan"):
        PeerData.from_tensors(
            [(np.zeros((2, 2)), [0.0, np.nan])], (np.zeros((1, 2)), [0.0])
        )


def test_test_rows_must_have_the_peers_shape_and_kind_of_labels():
    peers = [(np.zeros((2, 2)), [0, 1])]
    with pytest.raises(DataError, match=r"test: inputs must have .*got \(1, 3\)"):
        PeerData.from_tensors(peers, (np.zeros((1, 3)), [0]))
    with pytest.raises(DataError, match="test: labels must be int64 classes"):
        PeerData.from_tensors(peers, (np.zeros((1, 2)), [0.5]))


def test_a_store_built_by_hand_is_checked():
    data = small()
    fields = {
        "store": data.store,
        "origin": data.origin,
        "test": data.test,
        "num_classes": 3,
        "name": "x",
    }
    with pytest.raises(DataError, match="offsets: must run from 0 to 6"):
        PeerData(**fields, offsets=np.array([0, 3, 5]))
    with pytest.raises(DataError, match="peer 1: must hold at least one record, got 0"):
        PeerData(**fields, offsets=np.array([0, 3, 3, 6]))
    with pytest.raises(DataError, match="dropped: must be bool"):
        PeerData(**fields, offsets=data.offsets, dropped=np.zeros(6))
    with pytest.raises(InvalidTypeError, match="offsets: must be a NumPy array"):
        PeerData(**fields, offsets=[0, 6])


def test_unknown_peers_and_options_are_refused():
    data = small()
    for peer in (-1, 3):
        with pytest.raises(UnknownPeerError, match=rf"0\.\.2, got {peer}"):
            data.rows(peer)
    source = datasets.build("gaussian-classes", per_class=10)
    with pytest.raises(InvalidArgumentError, match=r"unknown field 'alfa'.*'alpha'"):
        PeerData.load(source, 2, "dirichlet", alfa=0.1)
    with pytest.raises(InvalidArgumentError, match="'labels' must be left out"):
        PeerData.load(source, 2, labels=[1])
    with pytest.raises(InvalidArgumentError, match="did you mean 'digits'"):
        PeerData.load("digit", 2)
    with pytest.raises(InvalidArgumentError, match="did you mean 'dirichlet'"):
        PeerData.load(source, 2, "dirichle")
    with pytest.raises(InvalidArgumentError, match=r"peers: must be .* got 0"):
        PeerData.load(source, 0)
    with pytest.raises(InvalidArgumentError, match="dataset_options"):
        PeerData.load(source, 2, dataset_options={"dim": 3})
    with pytest.raises(InvalidTypeError, match="dataset: must be a Dataset"):
        PeerData.load(source.train, 2)
    with pytest.raises(InvalidTypeError, match="peers: must be an integer"):
        PeerData.load(source, True)


def test_batches_say_what_they_are():
    assert TensorBatch(torch.zeros(2, 1), torch.zeros(2)).is_regression
    assert len(TensorBatch(torch.zeros(2, 1), torch.zeros(2).long())) == 2
    with pytest.raises(InvalidTypeError, match="inputs: must be a Tensor"):
        TensorBatch([[1.0]], torch.zeros(1))


def test_a_public_feature_bound_is_checked_and_gives_a_public_radius():
    x, y = torch.tensor([[0.5, -2.0], [1.0, 1.0]]), torch.tensor([0, 1])
    with pytest.raises(DataError, match=r"feature_bound: .* got 1.5 and .* size 2"):
        PeerData.from_tensors([(x, y)], test=(x, y), feature_bound=1.5)
    data = PeerData.from_tensors([(x, y)], test=(x, y), feature_bound=2.0)
    assert data.input_radius(bias=True) == (3.0, True)
    assert PeerData.load("digits", peers=2).input_radius(bias=False) == (8.0, True)


def test_a_public_norm_bound_is_checked_and_gives_a_public_radius():
    x, y = torch.tensor([[0.6, -0.8], [0.1, 0.1]]), torch.tensor([0, 1])
    with pytest.raises(DataError, match=r"norm_bound: .* the store, got 0.9 and .* 1"):
        PeerData.from_tensors([(x, y)], test=(x, y), norm_bound=0.9)
    with pytest.raises(DataError, match=r"norm_bound: .* the test, got 1\.5 and .* 2"):
        PeerData.from_tensors([(x, y)], test=(2 * x, y), norm_bound=1.5)
    data = PeerData.from_tensors([(x, y)], test=(x, y), norm_bound=1.25)
    assert data.input_radius(bias=False) == (1.25, True)
    assert data.input_radius(bias=True) == (np.sqrt(1.25**2 + 1), True)
    # Of two public bounds the smaller one counts.
    both = replace(data, feature_bound=0.85)
    assert both.input_radius(bias=False) == (np.sqrt(2 * 0.85**2), True)
    assert replace(both, feature_bound=9.0).input_radius(bias=False) == (1.25, True)
    unit = PeerData.load("digits-unit", peers=2)
    assert unit.input_radius(bias=False) == (1.0, True)


def test_features_of_rows_do_not_keep_the_norm_bound_of_the_rows():
    data = PeerData.load("digits-unit", peers=1)
    assert random_features(data, width=8).norm_bound is None


def test_images_of_bytes_have_a_public_radius_by_their_type():
    x = torch.zeros(3, 2, 2, dtype=torch.uint8)
    data = PeerData.from_tensors([(x, torch.tensor([0, 1, 0]))], test=(x, [0, 1, 0]))
    assert data.input_radius(bias=False) == (2.0, True)


def test_without_a_bound_the_radius_is_the_largest_norm_and_not_public():
    x, y = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1])
    data = PeerData.from_tensors([(x, y)], test=(x, y))
    assert data.input_radius(bias=False) == (5.0, False)
