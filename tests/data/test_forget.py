"""Forget requests: what they name, and every way to get them wrong."""

import numpy as np
import pytest
import torch

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidForgetSetError,
    InvalidTypeError,
    UnknownPeerError,
)


@pytest.fixture
def data():
    """Three peers with 4, 2 and 3 rows; class 2 is at peers 0 and 2."""
    labels = ([0, 2, 1, 2], [0, 1], [2, 0, 1])
    peers = [(torch.zeros(len(y), 2), torch.tensor(y)) for y in labels]
    return PeerData.from_tensors(peers, peers[0])


def test_samples_are_local_rows(data):
    request = ForgetRequest.samples(2, indices=np.array([2, 0])).resolve(data)
    assert request.items == ((0, 2),)
    assert (request.requester, request.group_size, request.size(data)) == (2, 2, 2)
    np.testing.assert_array_equal(np.flatnonzero(request.mask(data)), [6, 8])


def test_a_class_is_looked_up_at_every_peer_that_holds_it(data):
    request = ForgetRequest.class_(2)
    assert not request.is_resolved
    resolved = request.resolve(data)
    assert resolved.is_resolved
    assert resolved.peers == (0, 2)
    assert resolved.items == ((1, 3), (0,))
    assert resolved.requester == 0
    np.testing.assert_array_equal(request.mask(data), data.store.labels.numpy() == 2)
    assert ForgetRequest.class_(2, peers=[2]).resolve(data).items == ((0,),)


def test_a_whole_peer_counts_its_rows_in_the_data(data):
    request = ForgetRequest.whole_peer(1)
    assert request.resolve(data) == request
    assert request.size(data) == 2
    np.testing.assert_array_equal(np.flatnonzero(request.mask(data)), [4, 5])
    with pytest.raises(InvalidArgumentError, match="call size"):
        _ = request.group_size


def test_a_fraction_is_drawn_by_its_seed_and_rounded():
    peers = [(torch.zeros(50, 1), torch.zeros(50).long())] * 3
    data = PeerData.from_tensors(peers, peers[0])
    request = ForgetRequest.samples(peer=1, fraction=0.2)
    assert not request.is_resolved
    rows = request.resolve(data).items[0]
    assert len(rows) == 10
    assert rows == tuple(sorted(set(rows)))
    assert request.resolve(data).items[0] == rows
    assert request.resolve(data).resolve(data).items[0] == rows
    other_seed = ForgetRequest.samples(peer=1, fraction=0.2, seed=1).resolve(data)
    other_peer = ForgetRequest.samples(peer=2, fraction=0.2).resolve(data)
    assert len({rows, other_seed.items[0], other_peer.items[0]}) == 3
    assert ForgetRequest.samples(1, fraction=1e-9).resolve(data).group_size == 1


def test_a_fraction_is_of_what_is_left(data):
    first = ForgetRequest.samples(0, fraction=0.5).resolve(data)
    left = data.without(first)
    second = ForgetRequest.samples(0, fraction=0.5).resolve(left)
    assert second.group_size == 1
    assert not set(first.items[0]) & set(second.items[0])


def test_rows_that_are_gone_are_not_forgotten_again(data):
    left = data.without(ForgetRequest.samples(0, indices=[1]))
    with pytest.raises(InvalidForgetSetError, match=r"got 1 of peer 0.*already"):
        ForgetRequest.samples(0, indices=[1, 2]).resolve(left)
    assert ForgetRequest.class_(2).resolve(left).items == ((3,), (0,))
    assert ForgetRequest.whole_peer(0).size(left) == 3
    gone = left.without(ForgetRequest.whole_peer(0))
    for request in (
        ForgetRequest.whole_peer(0),
        ForgetRequest.samples(0, fraction=0.5),
    ):
        with pytest.raises(InvalidForgetSetError, match="peer 0 with no rows left"):
            request.resolve(gone)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([5021], r"index 5021 out of range for peer 2 \(has 3 records\)"),
        ([0, 3], r"index 3 out of range for peer 2 \(has 3 records\)"),
        ([-1], r"index -1 out of range for peer 2"),
        ([1, 1], r"unique, got 1 twice for peer 2"),
        ([1.0], r"integers, got 1\.0 for peer 2"),
        ([True], r"integers, got True for peer 2"),
        (["1"], r"integers, got '1'"),
        ([np.nan], r"integers, got nan"),
        (np.array([0.0]), r"integers, got 0\.0"),
        (np.array([True, False, True]), r"integers, got True"),
        (torch.tensor(1), None),
        (7, r"index 7 out of range"),
        ([], r"at least one record, got none for peer 2"),
    ],
)
def test_rows_that_cannot_be_are_refused(data, indices, message):
    if message is None:
        assert ForgetRequest.samples(2, indices=indices).items == ((1,),)
        return
    with pytest.raises(InvalidForgetSetError, match=message):
        ForgetRequest.samples(2, indices=indices).resolve(data)


def test_all_rows_of_a_peer_are_a_request_of_kind_peer(data):
    for request in (
        ForgetRequest.samples(1, indices=[0, 1]),
        ForgetRequest.samples(1, fraction=1.0),
    ):
        with pytest.raises(InvalidForgetSetError, match=r"peer 1 .*whole_peer"):
            request.resolve(data)
    fixed = ForgetRequest.samples(1, indices=[0, 1], normalization="fixed")
    assert fixed.resolve(data).group_size == 2


def test_a_network_keeps_some_data(data):
    with pytest.raises(InvalidForgetSetError, match="got all 9 rows"):
        ForgetRequest.whole_peer(0).resolve(data.pooled())


@pytest.mark.parametrize(
    "request_",
    [
        ForgetRequest.samples(3, indices=[0]),
        ForgetRequest.samples(3, fraction=0.1),
        ForgetRequest.whole_peer(3),
        ForgetRequest.class_(0, peers=(3,)),
        ForgetRequest.whole_peer(-1),
    ],
)
def test_unknown_peers_are_refused(data, request_):
    with pytest.raises(UnknownPeerError, match=r"peer: must be in 0\.\.2"):
        request_.resolve(data)


def test_classes_that_are_not_there_are_refused(data):
    with pytest.raises(InvalidForgetSetError, match=r"class_id: .*0\.\.2, got 3"):
        ForgetRequest.class_(3).resolve(data)
    with pytest.raises(InvalidForgetSetError, match="class 2, got peer 1"):
        ForgetRequest.class_(2, peers=(0, 1)).resolve(data)
    with pytest.raises(InvalidForgetSetError, match="no peer has"):
        ForgetRequest.class_(2).resolve(data.without(ForgetRequest.class_(2)))
    targets = PeerData.from_tensors(
        [(torch.zeros(2, 1), torch.zeros(2))], (torch.zeros(1, 1), torch.zeros(1))
    )
    with pytest.raises(InvalidForgetSetError, match="regression"):
        ForgetRequest.class_(0).resolve(targets)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, InvalidArgumentError, "exactly one must be given, got neither"),
        ({"indices": [0], "fraction": 0.1}, InvalidArgumentError, "got both"),
        ({"fraction": 0.0}, InvalidForgetSetError, "fraction: .*got 0.0"),
        ({"fraction": 1.5}, InvalidForgetSetError, "fraction: .*got 1.5"),
        ({"fraction": float("nan")}, InvalidForgetSetError, "fraction: .*got nan"),
        ({"fraction": "a"}, InvalidTypeError, "fraction: .*got 'a'"),
        ({"indices": [0], "normalization": "mean"}, InvalidArgumentError, "local_mean"),
        ({"indices": [0], "request_id": "../x"}, InvalidArgumentError, r"'\.\./x'"),
        ({"indices": [0], "adaptive": 1}, InvalidTypeError, "adaptive: .*bool"),
        ({"fraction": 0.5, "seed": -1}, InvalidArgumentError, "seed: .*got -1"),
    ],
)
def test_fields_are_checked_where_they_enter(fields, error, message):
    with pytest.raises(error, match=message):
        ForgetRequest.samples(0, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "concept", "peers": (0,)}, "kind: must be one of samples, class"),
        ({"kind": "samples", "peers": (0,)}, "one must be given"),
        ({"kind": "samples", "peers": (0, 1), "fraction": 0.1}, "one peer"),
        ({"kind": "peer"}, "one peer"),
        ({"kind": "peer", "peers": (0,), "class_id": 1}, "class_id"),
        ({"kind": "class"}, "class_id"),
        ({"kind": "class", "class_id": 1, "peers": (1, 0)}, "ascending"),
        ({"kind": "class", "class_id": 1, "fraction": 0.5}, "fraction"),
        ({"kind": "peer", "peers": (0,), "items": ((1,),)}, "items"),
        ({"kind": "samples", "peers": (0,), "items": ((2, 1),)}, "ascending"),
        ({"kind": "samples", "peers": (0,), "items": ((),)}, "at least one"),
    ],
)
def test_fields_belong_to_their_kind(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ForgetRequest(**fields)


def test_a_class_of_all_peers_has_no_requester_before_it_is_resolved(data):
    request = ForgetRequest.class_(1)
    with pytest.raises(InvalidArgumentError, match="resolve"):
        _ = request.requester
    assert request.resolve(data).requester == 0
