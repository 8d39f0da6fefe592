"""MNIST through torchvision; the only module that imports torchvision."""

import os
from pathlib import Path
from typing import Any

import torch

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import (
    InputFileError,
    MissingDataError,
    TorchvisionBuildError,
)

_FILES = tuple(
    f"{part}-{kind}-ubyte"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


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
    _validate.of_type((str, Path), root="" if root is None else root)
    _validate.of_type(bool, download=download)
    bases = _bases(root)
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
    target = found or (Path(root).expanduser() if root else _cache() / "mnist")
    parts = [_read(target, train, download=found is None) for train in (True, False)]
    return Dataset(
        train=parts[0],
        test=parts[1],
        num_classes=10,
        name="mnist",
        source="MNIST (Y. LeCun and C. Cortes, CC BY-SA 3.0)",
    )


def _bases(root: str | Path | None) -> list[Path]:
    """Return the folders that may hold ``MNIST/raw``, first choice first."""
    roots = [Path(root).expanduser()] if root else []
    if os.environ.get("DFL_UNLEARN_DATA"):
        roots.append(Path(os.environ["DFL_UNLEARN_DATA"]).expanduser())
    roots.append(_cache())
    return [base for folder in roots for base in (folder, folder / "mnist")]


def _cache() -> Path:
    """Return the user's cache folder for data sets."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dfl_unlearn"


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
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputFileError(
            f"mnist: {_validate.clean(str(base / 'MNIST' / 'raw'))} must hold the "
            f"original uncompressed files, got {type(error).__name__}: "
            f"{_validate.clean(str(error))[:200]}; replace them with fresh copies"
        ) from error


def _loader() -> Any:
    """Return torchvision's MNIST class, without its torch.load of old formats."""
    try:
        from torchvision.datasets import MNIST
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise TorchvisionBuildError(
            "torchvision: its compiled part must match the installed torch "
            f"{torch.__version__}, got {type(error).__name__}: "
            f"{_validate.clean(str(error))[:200]}; install the matching pair of torch "
            "and torchvision from the same package index"
        ) from error

    class RawMnist(MNIST):  # type: ignore[misc, unused-ignore]
        def _check_legacy_exist(self) -> bool:
            return False

        @property
        def raw_folder(self) -> str:
            return str(Path(self.root) / "MNIST" / "raw")

    return RawMnist
