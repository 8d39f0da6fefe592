"""MNIST from local files: where they are looked for, and what is said if absent."""

import builtins
import struct

import numpy as np
import pytest
import torch

from dfl_unlearn.data.sources import datasets
from dfl_unlearn.errors import (
    InputFileError,
    InvalidTypeError,
    MissingDataError,
    TorchvisionBuildError,
)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without any data set."""
    monkeypatch.delenv("DFL_UNLEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_tiny(base, pixel=7):
    """Write three training and two test images in the original format."""
    raw = base / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, rows in (("train", 3), ("t10k", 2)):
        images = np.full((rows, 28, 28), pixel, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, rows, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, rows) + bytes(range(rows))
        )
    return raw


def test_absent_files_are_named_with_folders_and_the_variable(nowhere):
    with pytest.raises(MissingDataError) as caught:
        datasets.build("mnist", root=nowhere / "mine")
    message = str(caught.value)
    for part in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        str(nowhere / "mine" / "MNIST" / "raw"),
        str(nowhere / "mine" / "mnist" / "MNIST" / "raw"),
        str(nowhere / "cache" / "dfl_unlearn"),
        "DFL_UNLEARN_DATA",
        "download=True",
    ):
        assert part in message
    assert caught.value.exit_code == 2
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize("below", ["", "mnist"])
def test_files_are_found_below_the_root_or_its_mnist(nowhere, below):
    write_tiny(nowhere / "mine" / below)
    data = datasets.build("mnist", root=str(nowhere / "mine"))
    assert data.train.inputs.shape == (3, 28, 28)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.labels.tolist() == [0, 1, 2]
    assert data.test.labels.tolist() == [0, 1]


def test_root_comes_before_the_variable_and_that_before_the_cache(nowhere, monkeypatch):
    places = {"mine": 1, "variable": 2, "cache/dfl_unlearn": 3}
    for place, pixel in places.items():
        write_tiny(nowhere / place / "mnist", pixel)
    monkeypatch.setenv("DFL_UNLEARN_DATA", str(nowhere / "variable"))

    def pixel(**fields):
        return int(datasets.build("mnist", **fields).train.inputs[0, 0, 0])

    assert pixel(root=nowhere / "mine") == 1
    assert pixel() == 2
    monkeypatch.delenv("DFL_UNLEARN_DATA")
    assert pixel() == 3


def test_a_damaged_file_is_named(nowhere):
    raw = write_tiny(nowhere)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\x00\x00")
    with pytest.raises(InputFileError, match=r"MNIST/raw must hold the original"):
        datasets.build("mnist", root=nowhere)


def test_old_pickled_copies_are_not_opened(nowhere):
    write_tiny(nowhere)
    old = nowhere / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        (old / name).write_bytes(b"not a tensor")
    assert len(datasets.build("mnist", root=nowhere).train) == 3


@pytest.mark.parametrize(
    "cause",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("undefined symbol"),
    ],
)
def test_a_torchvision_that_does_not_match_torch_is_explained(
    nowhere, monkeypatch, cause
):
    write_tiny(nowhere)
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("torchvision"):
            raise cause
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(
        TorchvisionBuildError, match=f"{cause}.*matching pair"
    ) as caught:
        datasets.build("mnist", root=nowhere)
    assert caught.value.exit_code == 2


def test_fields_have_types():
    with pytest.raises(InvalidTypeError, match="root: must be a str or Path"):
        datasets.build("mnist", root=3)
    with pytest.raises(InvalidTypeError, match="download: must be a bool"):
        datasets.build("mnist", download="yes")


@pytest.mark.data
def test_real_mnist_has_its_known_mean_and_deviation():
    try:
        data = datasets.build("mnist")
    except MissingDataError as error:
        pytest.skip(str(error))
    pixels = data.train.inputs.double() / 255
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert pixels.mean().item() == pytest.approx(0.13066, abs=5e-6)
    assert pixels.std().item() == pytest.approx(0.30811, abs=5e-6)
    assert torch.bincount(data.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
