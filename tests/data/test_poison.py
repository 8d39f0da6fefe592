"""Poisoned rows: exactly the named ones change, and the data says so."""

import numpy as np
import pytest
import torch

from dfl_unlearn.data.features import random_features
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.poison import CORNERS, Backdoor, Trigger, backdoored, mislabelled
from dfl_unlearn.errors import (
    DataError,
    InvalidArgumentError,
    InvalidForgetSetError,
)


@pytest.fixture(scope="module")
def digits():
    return PeerData.load("digits", peers=4)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (3, 8, 8)])
@pytest.mark.parametrize("corner", CORNERS)
def test_a_trigger_is_a_patch_in_its_corner_and_nothing_else(shape, corner):
    plain = torch.linspace(0, 0.5, 5 * int(np.prod(shape))).reshape(5, *shape)
    marked = Trigger(size=2, value=0.75, corner=corner).apply(plain)
    assert marked.shape == plain.shape
    patch = torch.zeros(8, 8, dtype=torch.bool)
    rows = [0, 1] if corner.startswith("top") else [6, 7]
    columns = [0, 1] if corner.endswith("left") else [6, 7]
    for row in rows:
        for column in columns:
            patch[row, column] = True
    where = patch.expand(5, *shape[:-2], 8, 8).reshape(plain.shape)
    assert (marked[where] == 0.75).all()
    assert torch.equal(marked[~where], plain[~where])
    assert plain.max() == 0.5  # the input was not written to


def test_images_of_bytes_have_255_as_one():
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    marked = Trigger(size=1, value=0.5).apply(images)
    assert marked.dtype == torch.uint8
    assert marked.sum() == 2 * 3 * 128


@pytest.mark.parametrize(
    ("size", "shape", "words"),
    [(3, (10,), "must be images"), (3, (4,), "size: .* 2 x 2 pixels, got 3")],
)
def test_what_is_no_image_or_too_small_is_refused(size, shape, words):
    with pytest.raises(DataError, match=words):
        Trigger(size=size).apply(torch.zeros(1, *shape))


def test_only_the_asked_rows_get_wrong_labels_and_stay_in_place(digits):
    data, request = mislabelled(digits, fraction=0.1, peer=2, seed=5)
    mask = torch.from_numpy(request.mask(data))
    assert request.reason == "mislabel"
    assert request.peers == (2,)
    assert len(request.items[0]) == round(0.1 * digits.sizes[2])
    assert (data.store.labels[mask] != digits.store.labels[mask]).all()
    assert torch.equal(data.store.labels[~mask], digits.store.labels[~mask])
    assert torch.equal(data.store.inputs, digits.store.inputs)
    assert np.array_equal(data.offsets, digits.offsets)
    assert data.without(request).local(2).labels.tolist() == (
        digits.without(request).local(2).labels.tolist()
    )


def test_shifts_reach_every_wrong_class_about_equally(digits):
    data, request = mislabelled(digits.pooled(), fraction=0.9, seed=1)
    mask = torch.from_numpy(request.mask(data))
    shifts = (data.store.labels - digits.store.labels)[mask] % 10
    counts = np.bincount(shifts.numpy(), minlength=10)
    assert counts[0] == 0
    expected = counts.sum() / 9
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 27.9  # chi2(8), 0.05 %


def test_a_rows_wrong_label_does_not_depend_on_the_other_rows(digits):
    few, _ = mislabelled(digits, rows=[7], peer=0, seed=3)
    many, _ = mislabelled(digits, rows=range(20), peer=0, seed=3)
    assert few.store.labels[7] == many.store.labels[7]
    other, _ = mislabelled(digits, rows=range(20), peer=0, seed=4)
    assert not torch.equal(other.store.labels, many.store.labels)


def test_a_backdoor_marks_rows_of_other_classes_and_says_what_it_is(digits):
    trigger = Trigger(size=2)
    data, request = backdoored(
        digits, trigger=trigger, target=3, fraction=0.1, peer=1, seed=0
    )
    mask = torch.from_numpy(request.mask(data))
    assert request.reason == "backdoor"
    assert data.backdoor == Backdoor(trigger=trigger, target=3)
    assert int(mask.sum()) == round(0.1 * digits.sizes[1])
    assert (digits.store.labels[mask] != 3).all()
    assert (data.store.labels[mask] == 3).all()
    expected = trigger.apply(digits.store.inputs[mask])
    assert torch.equal(data.store.inputs[mask], expected)
    assert torch.equal(data.store.inputs[~mask], digits.store.inputs[~mask])
    assert torch.equal(data.store.labels[~mask], digits.store.labels[~mask])
    assert torch.equal(data.test.inputs, digits.test.inputs)


def test_poisoned_data_is_not_the_plain_recipe(digits):
    for data, _ in (
        mislabelled(digits, rows=[0], peer=0),
        backdoored(
            digits,
            trigger=Trigger(),
            target=int(digits.store.labels[0] + 1) % 10,
            rows=[0],
            peer=0,
        ),
    ):
        assert digits.recipe is not None
        assert data.recipe is None
        assert data.name != digits.name
        assert data.fingerprint() != digits.fingerprint()
    assert random_features(data, 8).backdoor is None


def test_what_cannot_be_poisoned_is_refused(digits):
    trigger = Trigger()
    first = int(digits.store.labels[0])
    with pytest.raises(InvalidForgetSetError, match=f"target {first}, got row 0"):
        backdoored(digits, trigger=trigger, target=first, rows=[0], peer=0)
    with pytest.raises(InvalidForgetSetError, match="take a smaller share"):
        backdoored(digits, trigger=trigger, target=0, fraction=0.99, peer=0)
    with pytest.raises(InvalidArgumentError, match="exactly one must be given"):
        backdoored(digits, trigger=trigger, target=0, peer=0)
    with pytest.raises(InvalidArgumentError, match="peer: must be named"):
        mislabelled(digits, fraction=0.1)
    rows = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(DataError, match="must be classes"):
        mislabelled(PeerData.from_tensors([rows], rows), fraction=0.5)


def test_rows_that_are_forgotten_already_are_not_poisoned(digits):
    gone = ForgetRequest.samples(peer=0, fraction=0.5, seed=9)
    rest = digits.without(gone)
    for _, request in (
        mislabelled(rest, fraction=0.5, peer=0),
        backdoored(rest, trigger=Trigger(), target=0, fraction=0.2, peer=0),
    ):
        assert not set(request.items[0]) & set(gone.resolve(digits).items[0])
