"""Several requests as one: the union of their rows, and when they do not combine."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfl_unlearn.data.coalesce import coalesce
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidForgetSetError,
    UnknownPeerError,
)

LABELS = ([0, 2, 1, 2], [0, 1], [2, 0, 1])


@pytest.fixture(scope="module")
def data():
    """Three peers with 4, 2 and 3 rows; class 2 is at peers 0 and 2."""
    peers = [(torch.zeros(len(y), 2), torch.tensor(y)) for y in LABELS]
    return PeerData.from_tensors(peers, peers[0])


def test_rows_of_several_owners_and_kinds_go_once(data):
    merged = coalesce(
        [
            ForgetRequest.samples(0, indices=[0, 1], request_id="a", reason="privacy"),
            ForgetRequest.class_(2, reason="privacy"),
            ForgetRequest.whole_peer(1, adaptive=True, reason="left"),
        ],
        data,
    )
    assert merged.kind == "samples"
    assert merged.peers == (0, 1, 2)
    assert merged.items == ((0, 1, 3), (0, 1), (0,))
    assert merged.group_size == merged.size(data) == 6
    assert merged.coalesced == ("a", "2", "3")
    assert merged.adaptive
    assert merged.reason == "privacy; left"
    assert merged.request_id == ""
    assert merged.requester == 0


@given(st.data())
def test_the_same_rows_go_as_one_after_the_other(data, draw):
    requests = [
        ForgetRequest.samples(
            peer,
            indices=draw.draw(
                st.sets(st.integers(0, len(LABELS[peer]) - 1), min_size=1, max_size=2)
            ),
            normalization="fixed",
        )
        for peer in draw.draw(st.permutations((0, 2)))
    ]
    step = data
    for one in requests:
        step = step.without(one)
    together = data.without(coalesce(requests, data))
    np.testing.assert_array_equal(together.keep, step.keep)
    np.testing.assert_array_equal(together.counted, step.counted)


def test_requests_of_different_retrainings_do_not_combine(data):
    mixed = [
        ForgetRequest.samples(0, indices=[0]),
        ForgetRequest.samples(2, indices=[0], normalization="fixed"),
    ]
    with pytest.raises(InvalidForgetSetError, match="got fixed and local_mean, which"):
        coalesce(mixed, data)


def test_each_request_is_checked_by_itself(data):
    with pytest.raises(UnknownPeerError, match="got 9"):
        coalesce([ForgetRequest.whole_peer(0), ForgetRequest.whole_peer(9)], data)
    twice = [ForgetRequest.samples(p, indices=[0], request_id="a") for p in (0, 2)]
    with pytest.raises(InvalidForgetSetError, match=r"each one's own, got .*'a'"):
        coalesce(twice, data)
    everything = [ForgetRequest.whole_peer(p) for p in range(3)]
    with pytest.raises(InvalidForgetSetError, match="got all 9 rows"):
        coalesce(everything, data)
    with pytest.raises(InvalidForgetSetError, match="at least one"):
        coalesce([], data)


def test_only_a_list_of_rows_can_be_coalesced():
    with pytest.raises(InvalidArgumentError, match="kind 'peer'; use coalesce"):
        ForgetRequest(kind="peer", peers=(1,), coalesced=("a", "b"))
    with pytest.raises(InvalidArgumentError, match="coalesced: must match"):
        ForgetRequest(kind="samples", peers=(1,), items=((0,),), coalesced=("../a",))


def test_nothing_has_no_owner_and_cannot_be_sent_as_a_request(data):
    nothing = ForgetRequest.nothing()
    assert nothing.is_nothing
    assert nothing.is_resolved
    assert (nothing.group_size, nothing.size(data)) == (0, 0)
    assert not nothing.mask(data).any()
    with pytest.raises(InvalidForgetSetError, match="got nothing"):
        nothing.resolve(data)
    with pytest.raises(InvalidArgumentError, match="asks for nothing"):
        _ = nothing.requester
    assert not ForgetRequest.samples(0, fraction=0.5).is_nothing
