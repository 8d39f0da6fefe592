"""MNIST and CIFAR-10 from files: where they are looked for, what is said if absent."""

import builtins
import hashlib
import io
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dfl_unlearn.data import vision
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.errors import (
    DataError,
    InputFileError,
    InvalidTypeError,
    MissingDataError,
    TorchvisionBuildError,
    UnsafeFormatError,
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


def write_batches(base, monkeypatch=None, rows=2):
    """Write small files in CIFAR-10's own format; with digests that are expected."""
    folder = base / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    digests = {}
    for k, name in enumerate(vision._CIFAR_MD5):
        entry = {
            "data": np.full((rows, 3072), k, dtype=np.uint8),
            "labels": [k % 10] * rows,
        }
        # Channel after channel, row after row: marks red's second pixel.
        entry["data"][:, 1] = 200
        (folder / name).write_bytes(pickle.dumps(entry))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    if monkeypatch is not None:
        monkeypatch.setattr(vision, "_CIFAR_MD5", digests)
    return folder


def write_tables(base, pixel=7, side=32):
    """Write three training and two test images as Parquet tables of PNG."""
    base.mkdir(parents=True)
    buffer = io.BytesIO()
    image = np.full((side, side, 3), pixel, dtype=np.uint8)
    Image.fromarray(image).save(buffer, "PNG")
    for part, rows in (("train", 3), ("test", 2)):
        images = [{"bytes": buffer.getvalue(), "path": "x.png"}] * rows
        table = pa.table({"img": images, "label": list(range(rows))})
        pq.write_table(table, base / f"{part}-00000-of-00001.parquet")
    return base


def test_published_digests_are_torchvisions():
    from torchvision.datasets import CIFAR10

    assert dict([*CIFAR10.train_list, *CIFAR10.test_list]) == vision._CIFAR_MD5


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_is_read_from_its_own_files(nowhere, monkeypatch, below):
    write_batches(nowhere / "mine" / below, monkeypatch)
    data = datasets.build("cifar10", root=nowhere / "mine")
    assert data.train.inputs.shape == (10, 3, 32, 32)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.inputs.is_contiguous()
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.train.inputs[2, 0, 0, :3].tolist() == [1, 200, 1]
    assert data.test.labels.tolist() == [5, 5]
    assert "original files" in data.source
    part = datasets.build("cifar10", root=nowhere / "mine", rows=4, test_rows=1)
    assert (len(part.train), len(part.test)) == (4, 1)


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_that_is_not_the_published_one_is_never_opened(nowhere, monkeypatch):
    folder, marker = write_batches(nowhere, monkeypatch), nowhere / "marker"
    (folder / "data_batch_3").write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(
        UnsafeFormatError,
        match=r"data_batch_3 must have the published MD5 .*not opened",
    ):
        datasets.build("cifar10", root=nowhere)
    assert not marker.exists()


def test_the_file_of_class_names_is_not_unpickled(nowhere, monkeypatch):
    folder, marker = write_batches(nowhere, monkeypatch), nowhere / "marker"
    (folder / "batches.meta").write_bytes(pickle.dumps(Trap(marker)))
    assert len(datasets.build("cifar10", root=nowhere).train) == 10
    assert not marker.exists()


def test_small_files_in_the_format_are_refused_by_the_published_digests(nowhere):
    write_batches(nowhere)
    with pytest.raises(UnsafeFormatError, match="c99cafc152244af753f735de768cd75f"):
        datasets.build("cifar10", root=nowhere)


def test_cifar_is_read_from_parquet_tables(nowhere, monkeypatch):
    write_tables(nowhere / "cifar10")
    monkeypatch.setenv("DFL_UNLEARN_DATA", str(nowhere))
    data = datasets.build("cifar10")
    assert data.train.inputs.shape == (3, 3, 32, 32)
    assert data.train.labels.tolist() == [0, 1, 2]
    assert data.num_classes == 10
    assert (data.train.inputs == 7).all()
    assert "PNG" in data.source
    assert len(datasets.build("cifar10", rows=2).train) == 2


def test_tables_beside_the_folder_of_cifar_are_not_taken_for_it(nowhere, monkeypatch):
    write_tables(nowhere / "other")
    monkeypatch.setenv("DFL_UNLEARN_DATA", str(nowhere / "other"))
    with pytest.raises(MissingDataError):
        datasets.build("cifar10", root=nowhere / "mine")
    assert len(datasets.build("cifar10", root=nowhere / "other").train) == 3


def test_the_original_files_come_before_the_tables(nowhere, monkeypatch):
    write_batches(nowhere, monkeypatch)
    for path in write_tables(nowhere / "tables").iterdir():
        path.rename(nowhere / path.name)
    assert "original files" in datasets.build("cifar10", root=nowhere).source


def test_tables_of_other_images_are_not_cifar(nowhere):
    write_tables(nowhere / "cifar10", side=28)
    with pytest.raises(DataError, match=r"\(3, 32, 32\), got \(3, 28, 28\)"):
        datasets.build("cifar10", root=nowhere)


def test_absent_cifar_is_named_with_folders_and_the_variable(nowhere):
    with pytest.raises(MissingDataError) as caught:
        datasets.build("cifar10", root=nowhere / "mine")
    for part in (
        "cifar-10-batches-py",
        "data_batch_5",
        "train-*.parquet",
        str(nowhere / "mine" / "cifar10"),
        "DFL_UNLEARN_DATA",
        "download=True",
    ):
        assert part in str(caught.value)
    assert list(nowhere.iterdir()) == []


def test_a_failed_download_is_explained(nowhere, monkeypatch):
    import torchvision.datasets.utils as utils

    def fail(*_, **fields):
        assert fields["md5"] == "c58f30108f718f92721af3b95e74349a"
        raise OSError("no route")

    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(InputFileError, match=r"archive must arrive whole.*no route"):
        datasets.build("cifar10", root=nowhere, download=True)


@pytest.mark.data
@pytest.mark.slow
def test_real_cifar_has_its_known_means_and_balanced_classes():
    try:
        data = datasets.build("cifar10")
    except MissingDataError as error:
        pytest.skip(str(error))
    assert data.train.inputs.shape == (50_000, 3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [5_000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1_000] * 10
    # Krizhevsky's files have 0.4914, 0.4822, 0.4465; JPEG copies come this near.
    for channel, mean in enumerate((0.4914, 0.4822, 0.4465)):
        pixels = data.train.inputs[:, channel].double() / 255
        assert pixels.mean().item() == pytest.approx(mean, abs=5e-4)
