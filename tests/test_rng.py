"""Keyed draws: the same key gives the same numbers, whatever else is drawn."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.rng import PURPOSES, RngTree, noise_self_check

SELF_CHECK = (
    "-0x1.ecf057b6e7dffp-2",
    "-0x1.4cde9137def1dp+0",
    "0x1.03aa68c9add3fp+0",
    "-0x1.566e2ada180b9p+0",
)


def documented_key(text):
    """The key as the documentation states it, written a second time."""
    return int.from_bytes(sha256(f"dfl-unlearn/1|{text}".encode()).digest()[:16])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "7|batch|-|-|0|0"),
        ({"who": 3}, "7|batch|peer:3|-|0|0"),
        ({"who": np.int64(3)}, "7|batch|peer:3|-|0|0"),
        ({"who": "peer:3"}, "7|batch|peer:3|-|0|0"),
        ({"who": "block:2", "round": 5}, "7|batch|block:2|-|5|0"),
        ({"request": "r0", "draw": 1}, "7|batch|-|r0|0|1"),
    ],
)
def test_a_key_is_the_hash_that_is_documented(fields, text):
    assert RngTree(7).key("batch", **fields) == documented_key(text)
    expected = np.random.Generator(np.random.Philox(key=documented_key(text)))
    drawn = RngTree(7).numpy("batch", **fields)
    np.testing.assert_array_equal(drawn.random(8), expected.random(8))


def test_every_field_of_the_key_gives_other_numbers():
    keys = [
        RngTree(0).key("batch"),
        RngTree(1).key("batch"),
        RngTree(0).key("forget"),
        RngTree(0).key("batch", who=0),
        RngTree(0).key("batch", who="block:0"),
        RngTree(0).key("batch", request="r0"),
        RngTree(0).key("batch", round=1),
        RngTree(0).key("batch", draw=1),
    ]
    assert len(set(keys)) == len(keys)


def test_draws_do_not_depend_on_the_order_of_calls():
    tree = RngTree(0)
    alone = tree.numpy("batch", who=1).random(4)
    tree.numpy("batch", who=0).random(1000)
    tree.torch("init")
    np.testing.assert_array_equal(tree.numpy("batch", who=1).random(4), alone)


def test_the_purposes_are_the_documented_ones():
    assert {
        "init",
        "topology",
        "schedule",
        "data-split",
        "batch",
        "dropout",
        "train-noise",
        "unlearn-noise",
        "walk",
        "churn",
        "loss",
        "delay",
        "forget",
        "method",
        "attack",
        "audit",
        "sweep",
    } == PURPOSES


def test_an_unknown_purpose_is_refused():
    with pytest.raises(
        InvalidArgumentError, match=r"purpose: must be one of .*'lottery'"
    ):
        RngTree(0).numpy("lottery")


@given(skip=st.integers(0, 300), length=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_skipping_gives_the_rest_of_the_same_stream(skip, length, seed):
    whole = RngTree(seed).numpy("batch", who="block:1").random(skip + length)
    rest = RngTree(seed).numpy("batch", who="block:1", skip=skip).random(length)
    np.testing.assert_array_equal(rest, whole[skip:])


@given(short=st.integers(1, 50), more=st.integers(0, 50))
def test_a_longer_draw_begins_with_the_shorter_one(short, more):
    first = RngTree(0).normal((short,), "unlearn-noise", request="r0")
    longer = RngTree(0).normal((short + more,), "unlearn-noise", request="r0")
    assert torch.equal(longer[:short], first)


def test_normals_are_float64_of_the_shape_asked_for():
    drawn = RngTree(0).normal((20, 300), "unlearn-noise", who=2, request="r0")
    assert drawn.dtype == torch.float64
    assert drawn.device.type == "cpu"
    assert drawn.shape == (20, 300)


@pytest.mark.statistical
@pytest.mark.parametrize(("scale", "passes"), [(1.0, True), (1.05, False)])
def test_noise_moments(scale, passes):
    """Kolmogorov-Smirnov at 1e-6, and four moments within five standard errors."""
    noise = scale * RngTree(0).normal((200_000,), "unlearn-noise").numpy()
    fits = [kstest(noise, "norm").pvalue > 1e-6]
    for power, moment, square in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        error = ((square - moment**2) / len(noise)) ** 0.5
        fits.append(abs((noise**power).mean() - moment) < 5 * error)
    assert all(fits) == passes
    assert fits[0] == passes


def test_torch_generators_come_from_the_same_key():
    draws = [
        torch.rand(3, generator=RngTree(0).torch("init", who=who)) for who in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    seed = RngTree(0).key("init", who=0) % 2**63
    assert RngTree(0).torch("init", who=0).initial_seed() == seed


def test_children_are_trees_of_their_own():
    parent = RngTree(0)
    child = parent.child("replica:1")
    assert child.key("init") == documented_key("0/replica:1|init|-|-|0|0")
    assert child.child("a") == RngTree("0/replica:1/a")
    assert (
        len({parent.key("init"), child.key("init"), parent.child("2").key("init")}) == 3
    )


def test_drawing_leaves_the_global_generators_alone():
    state = torch.get_rng_state()
    RngTree(0).torch("init")
    RngTree(0).normal((4,), "unlearn-noise")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_self_check_is_the_noise_of_a_fixed_key():
    values = RngTree(0).normal((4,), "unlearn-noise", who=0, request="self-check")
    assert noise_self_check() == tuple(float(x).hex() for x in values)


def test_the_self_check_has_not_changed():
    """A change of the stream would change the noise of every stored certificate."""
    assert noise_self_check() == SELF_CHECK
