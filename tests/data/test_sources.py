"""Embedded data sets: their sizes, scales and fixed splits."""

import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import InvalidArgumentError


def test_digits_load_fast_and_are_exact_sixteenths():
    begin = time.perf_counter()
    data = datasets.build("digits")
    assert time.perf_counter() - begin < 1.0
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.train.inputs.shape == (1438, 64)
    assert data.train.inputs.dtype == torch.float32
    both = torch.cat([data.train.inputs, data.test.inputs])
    assert (both.min(), both.max()) == (0, 1)
    assert torch.equal((both * 16).round(), both * 16)


@pytest.mark.parametrize(
    ("name", "load"), [("digits", load_digits), ("breast-cancer", load_breast_cancer)]
)
def test_the_split_is_a_fixed_fifth_of_each_class_and_loses_nothing(name, load):
    data, again = datasets.build(name), datasets.build(name)
    assert data.sha256 == again.sha256
    whole = np.bincount(load().target)
    test = np.bincount(data.test.labels)
    np.testing.assert_array_equal(test + np.bincount(data.train.labels), whole)
    np.testing.assert_array_equal(test, np.round(0.2 * whole))


def test_digits_rows_are_those_of_scikit_learn():
    data, raw = datasets.build("digits"), load_digits()
    ours = torch.cat([data.train.inputs, data.test.inputs]).double().numpy() * 16
    labels = torch.cat([data.train.labels, data.test.labels]).numpy()
    ours = np.column_stack([ours, labels])
    theirs = np.column_stack([raw.data, raw.target])
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)]
    )


def test_breast_cancer_is_standardized_by_its_training_rows_only():
    data = datasets.build("breast-cancer")
    x = data.train.inputs.double()
    assert x.shape == (456, 30)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0, unbiased=False), 1, atol=1e-6)
    assert data.test.inputs.double().mean(0).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "load", "sizes", "test"),
    [
        ("breast-cancer-unit", load_breast_cancer, (427, 142), lambda i: i % 4 == 3),
        ("digits-unit", load_digits, (1437, 360), lambda i: i % 5 == 0),
    ],
)
def test_unit_rows_are_the_construction_written_out(name, load, sizes, test):
    data, raw = datasets.build(name), load()
    assert (len(data.train), len(data.test)) == sizes
    assert data.norm_bound == 1.0
    kept = {True: [], False: []}
    for i, row in enumerate(raw.data):
        if name == "breast-cancer-unit":
            row = (row - raw.data.mean(0)) / raw.data.std(0)
        kept[bool(test(i))].append([*(row / np.sqrt(row @ row)), 1.0])
    for part, rows in ((data.train, kept[False]), (data.test, kept[True])):
        assert part.inputs.dtype == torch.float64
        np.testing.assert_allclose(
            part.inputs.numpy(), np.array(rows) / np.sqrt(2), rtol=1e-13, atol=1e-14
        )
        norms = part.inputs.norm(dim=1)
        assert 1 - 1e-12 < float(norms.min()) <= float(norms.max()) <= 1
    index = np.arange(len(raw.data))
    np.testing.assert_array_equal(data.train.labels, raw.target[~test(index)])
    np.testing.assert_array_equal(data.test.labels, raw.target[test(index)])


def test_statistics_of_test_rows_know_nothing_of_the_training_rows(monkeypatch):
    raw = load_breast_cancer()
    data = datasets.build("breast-cancer-unit", statistics="test")
    raw.data[0] += 100.0  # a training row
    monkeypatch.setattr("sklearn.datasets.load_breast_cancer", lambda: raw)
    other = datasets.build("breast-cancer-unit", statistics="test")
    assert torch.equal(other.train.inputs[1:], data.train.inputs[1:])
    assert torch.equal(other.test.inputs, data.test.inputs)
    assert not torch.equal(other.train.inputs[0], data.train.inputs[0])
    usual = datasets.build("breast-cancer-unit")
    assert not torch.equal(usual.train.inputs[1:], data.train.inputs[1:])
    with pytest.raises(InvalidArgumentError, match=r"statistics: .*'train'"):
        datasets.build("breast-cancer-unit", statistics="train")


def test_gaussian_classes_are_clouds_around_unit_vectors():
    data = datasets.build(
        "gaussian-classes", classes=4, dim=6, per_class=2000, spread=0.3, seed=2
    )
    assert (len(data.train), len(data.test), data.num_classes) == (8000, 2000, 4)
    for label in range(4):
        cloud = data.train.inputs[data.train.labels == label].double()
        assert len(cloud) == 2000
        # Standard error of the mean 0.3 / sqrt(2000) = 0.0067 in each of 6 features.
        assert cloud.mean(0).norm() == pytest.approx(1, abs=0.05)
        assert cloud.std(0).mean() == pytest.approx(0.3, rel=0.05)
    same = datasets.build(
        "gaussian-classes", classes=4, dim=6, per_class=2000, spread=0.3, seed=2
    )
    other = datasets.build(
        "gaussian-classes", classes=4, dim=6, per_class=2000, spread=0.3, seed=3
    )
    assert same.sha256 == data.sha256 != other.sha256


def test_gaussian_classes_refuse_impossible_fields():
    for field, value in (("classes", 1), ("dim", 0), ("per_class", 0), ("spread", -1)):
        with pytest.raises(InvalidArgumentError, match=f"{field}: .*got {value}"):
            datasets.build("gaussian-classes", **{field: value})


def test_a_data_set_of_your_own_gets_its_hash():
    rows = TensorBatch(torch.zeros(2, 3), torch.tensor([0, 1]))
    more = TensorBatch(torch.ones(2, 3), torch.tensor([0, 1]))
    prints = {
        Dataset(train=a, test=b, num_classes=2, name="x", source="here").sha256
        for a in (rows, more)
        for b in (rows, more)
    }
    assert len(prints) == 4
