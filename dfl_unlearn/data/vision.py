"""MNIST and CIFAR-10; the only module that imports torchvision."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.folders import cache_folder, search_folders, slice_rows
from dfl_unlearn.data.parquet import described, find_tables, read_images
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import (
    DataError,
    InputFileError,
    MissingDataError,
    TorchvisionBuildError,
    UnsafeFormatError,
)

_FILES = tuple(
    f"{part}-{kind}-ubyte"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)

_BATCHES = "cifar-10-batches-py"
# torchvision unpickles these files, which can run code: only the published ones are
# handed to it, and its own check of the same digests follows.
_CIFAR_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


@datasets.register("mnist")
def mnist(*, root: str | Path | None = None, download: bool = False) -> Dataset:
    """MNIST, 60,000 + 10,000 handwritten digits of 28 x 28 pixels, from local files.

    The four files are looked for in ``MNIST/raw`` below ``root``, then below the
    folder that the variable ``DFL_UNLEARN_DATA`` names, then below the user's cache;
    in each also in ``mnist/MNIST/raw``.

    Args:
        root: Folder to look in first.
        download: Fetch missing files into ``root``, or into the user's cache.

    Returns:
        The data set; inputs uint8 ``(R, 28, 28)``, 10 classes.

    Raises:
        MissingDataError: If the files are nowhere and ``download`` is False.
        InputFileError: If a file is damaged or a download fails.
    """
    _validate.of_type(bool, download=download)
    bases = search_folders(root, "mnist")
    found = _find(bases)
    if found is None and not download:
        places = ", ".join(_validate.clean(str(b / "MNIST" / "raw")) for b in bases)
        raise MissingDataError(
            f"mnist: the files {', '.join(_FILES)} must lie together in one of the "
            f"folders {places}, got none that has them all; set DFL_UNLEARN_DATA to "
            "the folder above mnist/MNIST/raw or MNIST/raw, pass root, or allow the "
            "download with download=True"
        )
    # With the files in place torchvision downloads nothing.
    target = found or (Path(root).expanduser() if root else cache_folder() / "mnist")
    parts = [_read(target, train, download=found is None) for train in (True, False)]
    return Dataset(
        train=parts[0],
        test=parts[1],
        num_classes=10,
        name="mnist",
        source="MNIST (Y. LeCun and C. Cortes, CC BY-SA 3.0)",
    )


@datasets.register("cifar10")
def cifar10(
    *,
    root: str | Path | None = None,
    download: bool = False,
    rows: int | None = None,
    test_rows: int | None = None,
) -> Dataset:
    """CIFAR-10, 50,000 + 10,000 colour photographs of 32 x 32 pixels, from local files.

    Looked for in ``root``, then in the folder that the variable ``DFL_UNLEARN_DATA``
    names, then in the user's cache, in each also in ``cifar10``; in each of them the
    original ``cifar-10-batches-py`` come first, then Parquet tables
    ``train-*.parquet`` and ``test-*.parquet`` (see ``image-parquet``). Only those
    original files whose MD5 digests are the published ones are opened.

    Args:
        root: Folder to look in first.
        download: Fetch missing files into ``root``, or into the user's cache.
        rows: Training rows to take, always the same ones; None takes all.
        test_rows: The same for the test rows.

    Returns:
        The data set; inputs uint8 ``(R, 3, 32, 32)``, 10 classes. ``source`` says
        which files they are from, and if those were compressed with loss.

    Raises:
        MissingDataError: If the files are nowhere and ``download`` is False.
        UnsafeFormatError: If an original file's digest is not the published one.
        InputFileError: If a file is damaged or a download fails.
        DataError: If a Parquet table holds other images.
    """
    _validate.of_type(bool, download=download)
    for base in search_folders(root, "cifar10"):
        if all((base / _BATCHES / name).is_file() for name in _CIFAR_MD5):
            return _from_batches(base, rows, test_rows)
        tables = find_tables([base], "train-*.parquet", "test-*.parquet")
        # Tables just below a general folder may be another data set's.
        named = base.name == "cifar10" or (root and base == Path(root).expanduser())
        if tables is not None and named:
            return _from_tables(tables, rows, test_rows)
    if download:
        target = Path(root).expanduser() if root else cache_folder() / "cifar10"
        _download_cifar(target)
        return _from_batches(target, rows, test_rows)
    places = ", ".join(
        _validate.clean(str(base)) for base in search_folders(root, "cifar10")
    )
    raise MissingDataError(
        f"cifar10: {_BATCHES} (with {', '.join(_CIFAR_MD5)}), or train-*.parquet and "
        f"test-*.parquet, must lie in one of the folders {places}, got none that has "
        "them all; set DFL_UNLEARN_DATA to the folder above cifar10, pass root, or "
        "allow the download with download=True"
    )


def _from_batches(base: Path, rows: int | None, test_rows: int | None) -> Dataset:
    """Read the original files after a check of their digests."""
    folder = base / _BATCHES
    for name, digest in _CIFAR_MD5.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                got = hashlib.file_digest(
                    file, lambda: hashlib.md5(usedforsecurity=False)
                ).hexdigest()
        except OSError as error:
            raise InputFileError(
                f"cifar10: {_validate.clean(str(path))} must be readable, got {error}; "
                "replace it with a fresh copy"
            ) from error
        if got != digest:
            raise UnsafeFormatError(
                f"cifar10: {_validate.clean(str(path))} must have the published MD5 "
                f"{digest}, got {got}; it is a pickle file, which can run code, and is "
                "not opened: replace it with the original"
            )
    loader = _cifar_loader()
    parts = []
    for train, count in ((True, rows), (False, test_rows)):
        part, argument = ("train", "rows") if train else ("test", "test_rows")
        try:
            read = loader(str(base), train=train)
            images = torch.from_numpy(read.data).permute(0, 3, 1, 2)
            labels = torch.tensor(read.targets, dtype=torch.int64)
        except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise InputFileError(
                f"cifar10: {_validate.clean(str(folder))} must hold the original "
                f"files, got {type(error).__name__}: "
                f"{_validate.clean(str(error))[:200]}; replace them with fresh copies"
            ) from error
        taken = torch.from_numpy(
            slice_rows(len(labels), count, argument=argument, part=part)
        )
        parts.append(TensorBatch(images[taken].contiguous(), labels[taken]))
    return _cifar_dataset(parts[0], parts[1], "original files")


def _from_tables(
    tables: tuple[list[Path], list[Path]], rows: int | None, test_rows: int | None
) -> Dataset:
    """Read Parquet tables and check that they hold images of that kind."""
    train = read_images(
        tables[0], part="train", num_classes=10, rows=rows, argument="rows"
    )
    test = read_images(
        tables[1], part="test", num_classes=10, rows=test_rows, argument="test_rows"
    )
    for paths, table in zip(tables, (train, test), strict=True):
        shape = tuple(table.batch.inputs.shape[1:])
        if shape != (3, 32, 32):
            raise DataError(
                f"{_validate.clean(str(paths[0]))}: images of cifar10 must have the "
                f"shape (3, 32, 32), got {shape}; read other tables with image-parquet"
            )
    words = f"Parquet tables of images ({described(train, test)})"
    return _cifar_dataset(train.batch, test.batch, words)


def _cifar_dataset(train: TensorBatch, test: TensorBatch, files: str) -> Dataset:
    return Dataset(
        train=train,
        test=test,
        num_classes=10,
        name="cifar10",
        source=f"CIFAR-10 (A. Krizhevsky, V. Nair and G. Hinton, 2009), {files}",
    )


def _download_cifar(target: Path) -> None:
    """Fetch and unpack the original archive, whose digest torchvision checks."""
    cifar = _cifar_loader()
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(
            cifar.url, str(target), filename=cifar.filename, md5=cifar.tgz_md5
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputFileError(
            f"cifar10: the archive must arrive whole in {_validate.clean(str(target))}"
            f", got {type(error).__name__}: {_validate.clean(str(error))[:200]}; try "
            "again, or copy the files there"
        ) from error


def _find(bases: list[Path]) -> Path | None:
    """Return the first folder whose ``MNIST/raw`` has all four files."""
    for base in bases:
        if all((base / "MNIST" / "raw" / name).is_file() for name in _FILES):
            return base
    return None


def _read(base: Path, train: bool, *, download: bool) -> TensorBatch:
    """Read one part with torchvision's loader."""
    loader = _loader()
    try:
        part = loader(str(base), train=train, download=download)
        return TensorBatch(part.data, part.targets.to(torch.int64))
    except (
        OSError,
        RuntimeError,
        TypeError,
        LookupError,  # a type of numbers that the head names
        ValueError,
        AssertionError,
    ) as error:
        raise InputFileError(
            f"mnist: {_validate.clean(str(base / 'MNIST' / 'raw'))} must hold the "
            f"original uncompressed files, got {type(error).__name__}: "
            f"{_validate.clean(str(error))[:200]}; replace them with fresh copies"
        ) from error


def _torchvision() -> Any:
    """Return torchvision's data sets, or say why they cannot be imported."""
    try:
        from torchvision import datasets as found
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise TorchvisionBuildError(
            "torchvision: its compiled part must match the installed torch "
            f"{torch.__version__}, got {type(error).__name__}: "
            f"{_validate.clean(str(error))[:200]}; install the matching pair of torch "
            "and torchvision from the same package index"
        ) from error
    return found


def _loader() -> Any:
    """Return torchvision's MNIST class, without its torch.load of old formats."""
    mnist: Any = _torchvision().MNIST

    class RawMnist(mnist):  # type: ignore[misc]
        def _check_legacy_exist(self) -> bool:
            return False

        @property
        def raw_folder(self) -> str:
            return str(Path(self.root) / "MNIST" / "raw")

    return RawMnist


def _cifar_loader() -> Any:
    """Return torchvision's CIFAR-10 class, checked here and without its class names."""
    cifar: Any = _torchvision().CIFAR10

    class RawCifar(cifar):  # type: ignore[misc]
        base_folder = _BATCHES
        train_list = [[n, d] for n, d in _CIFAR_MD5.items() if n != "test_batch"]  # noqa: RUF012
        test_list = [["test_batch", _CIFAR_MD5["test_batch"]]]  # noqa: RUF012

        def _load_meta(self) -> None:
            """Leave the names' file, another pickle, alone."""

    return RawCifar
