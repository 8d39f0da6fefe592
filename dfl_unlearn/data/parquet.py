"""Encoded images and integer labels in Parquet tables, as the public hubs keep them.

A table is read as if a stranger had made it: sizes are checked before anything is
allocated, images are decoded in small batches and only if the first one's size and
mode say what all others must have, and every message names file, row and remedy.
"""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.folders import search_folders, slice_rows
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import (
    DataError,
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    MissingDataError,
)

_MAX_STORE = 2**32  # bytes of one part's pixels, and of a file's uncompressed columns
_MAX_GROUP = 2**30  # uncompressed bytes of one row group, which is read at once
_MAX_ROWS = 10**7
_MAX_ENCODED = 2**24  # bytes of one encoded image
_MAX_PIXELS = 2**24  # of one image: 4096 x 4096
_MAX_CLASSES = 10**5
# Rows read at a time. A file of a kilobyte can repeat one large value in every row, so
# this times _MAX_ENCODED, half a GiB, is what such a file can make us hold.
_BATCH = 32
_FORMATS = ("PNG", "JPEG")
_MODES = {"L": 1, "RGB": 3}  # and the channels of each


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """One part of a data set, decoded.

    Attributes:
        batch: Images uint8, shape ``(R, H, W)`` or ``(R, 3, H, W)``; labels int64.
        classes: Largest label of the whole table plus 1, slice or not.
        formats: How the images were encoded, e.g. ``("PNG",)``.
    """

    batch: TensorBatch
    classes: int
    formats: tuple[str, ...]


@datasets.register("image-parquet")
def image_parquet(
    *,
    root: str | Path | None = None,
    train: str = "train*.parquet",
    test: str = "test*.parquet",
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
    rows: int | None = None,
    test_rows: int | None = None,
) -> Dataset:
    """Tables of encoded images with integer labels, from local Parquet files.

    The files are looked for in ``root``, then in the folder that the variable
    ``DFL_UNLEARN_DATA`` names, then in the user's cache. An image column holds PNG or
    JPEG files, as binary values or as structs with a binary field ``bytes``; all
    images have one size and one mode, grey or RGB.

    Args:
        root: Folder to look in first.
        train: Name of the training table below the folder, ``*`` for any letters; the
            files it fits are read in the order of their names.
        test: The same for the test table.
        image: Column of the images; None takes the only one of that type.
        label: Column of the labels; None takes the only one of integers.
        num_classes: Labels are 0 .. num_classes - 1; None counts up to the largest
            label of the training table.
        rows: Training rows to take, always the same ones; None takes all.
        test_rows: The same for the test table.

    Returns:
        The data set; inputs uint8, ``(R, H, W)`` for grey, ``(R, 3, H, W)`` for RGB.

    Raises:
        InvalidArgumentError: If a name leads out of the folder.
        MissingDataError: If no folder holds both tables.
        DataError: If the two tables' images have different shapes.
    """
    _validate.of_type(str, train=train, test=test)
    patterns = {"train": train, "test": test}
    for name, pattern in patterns.items():
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise InvalidArgumentError(
                f"{name}: must be a file name below the folder, got "
                f"{_validate.show(pattern)}; put the folder into root"
            )
    folders = search_folders(root)
    found = find_tables(folders, train, test)
    if found is None:
        places = ", ".join(_validate.clean(str(folder)) for folder in folders)
        raise MissingDataError(
            f"image-parquet: files that fit {_validate.show(train)} and "
            f"{_validate.show(test)} must lie together in one of the folders {places}, "
            "got none that has both; pass root, train and test, or set DFL_UNLEARN_DATA"
        )
    first = read_images(
        found[0],
        part="train",
        image=image,
        label=label,
        num_classes=num_classes,
        rows=rows,
        argument="rows",
    )
    classes = max(first.classes, 2) if num_classes is None else num_classes
    second = read_images(
        found[1],
        part="test",
        image=image,
        label=label,
        num_classes=classes,
        rows=test_rows,
        argument="test_rows",
    )
    shapes = [tuple(table.batch.inputs.shape[1:]) for table in (first, second)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{_name(found[1][0])}: images must have the shape {shapes[0]} of the "
            f"training table, got {shapes[1]}; convert one of the tables"
        )
    names = ", ".join(path.name for paths in found for path in paths)
    return Dataset(
        train=first.batch,
        test=second.batch,
        num_classes=classes,
        name="image-parquet",
        source=f"images ({described(first, second)}) from {_validate.clean(names)}",
    )


def described(*tables: ImageTable) -> str:
    """Return how the tables' images were encoded, and whether that lost anything."""
    formats = sorted({format for table in tables for format in table.formats})
    return " and ".join("JPEG, lossy" if f == "JPEG" else f for f in formats)


def find_tables(
    folders: list[Path], train: str, test: str
) -> tuple[list[Path], list[Path]] | None:
    """Return the files of both tables in the first folder that has both.

    Args:
        folders: Where to look.
        train: Pattern of the training table's names.
        test: Pattern of the test table's.

    Returns:
        Two sorted lists, or None.
    """
    for folder in folders:
        parts = [
            sorted(path for path in folder.glob(pattern) if path.is_file())
            for pattern in (train, test)
        ]
        if all(parts):
            return parts[0], parts[1]
    return None


def read_images(
    paths: list[Path],
    *,
    part: str,
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
    rows: int | None = None,
    argument: str = "rows",
) -> ImageTable:
    """Decode a table that may lie in several files.

    Args:
        paths: The files, in order.
        part: ``train`` or ``test``, for messages and slices.
        image: Column of the images; None takes the only one of that type.
        label: Column of the labels; None takes the only one of integers.
        num_classes: Upper bound of the labels; None for any.
        rows: How many rows to take; None takes all.
        argument: Name of ``rows`` in messages.

    Returns:
        The images and labels, in the order of the table.

    Raises:
        DataError: If the table is empty, or an image or label does not fit.
        InputFileError: If a file is no Parquet table or is damaged.
        InputTooLargeError: If a file, an image or the whole is above the limits.
    """
    if num_classes is not None:
        _validate.integer(num_classes=num_classes, at_least=2, at_most=_MAX_CLASSES)
    _validate.of_type(str, image=image or "", label=label or "")
    files = [_File(path, image, label) for path in paths]
    labels = np.concatenate([file.labels(num_classes) for file in files])
    if not len(labels):
        raise DataError(
            f"{_name(paths[0])}: must have rows, got none; take another table"
        )
    taken = slice_rows(len(labels), rows, argument=argument, part=part)
    store = _Store(len(taken))
    begin = 0
    for file in files:
        end = begin + file.rows
        wanted = taken[(taken >= begin) & (taken < end)] - begin
        for row, data in file.images(wanted):
            store.add(data, f"{_name(file.path)}: row {row}")
        begin = end
    inputs = store.images()
    return ImageTable(
        batch=TensorBatch(torch.from_numpy(inputs), torch.from_numpy(labels[taken])),
        classes=int(labels.max()) + 1,
        formats=tuple(sorted(store.formats)),
    )


class _File:
    """One Parquet file, its size checked and its columns found."""

    def __init__(self, path: Path, image: str | None, label: str | None) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.name = _name(path)
        try:
            self._file = pq.ParquetFile(
                path,
                thrift_string_size_limit=2**24,
                thrift_container_size_limit=2**20,
                page_checksum_verification=True,
            )
            meta, self._schema = self._file.metadata, self._file.schema_arrow
            groups = [
                meta.row_group(k).total_byte_size for k in range(meta.num_row_groups)
            ]
        except Exception as error:  # pyarrow raises many classes on damaged files
            raise self._damaged(error) from error
        self.rows: int = meta.num_rows
        for what, got, limit in (
            ("rows", self.rows, _MAX_ROWS),
            ("bytes in a row group", max(groups, default=0), _MAX_GROUP),
            ("bytes in all", sum(groups), _MAX_STORE),
        ):
            if not 0 <= got <= limit:
                raise InputTooLargeError(
                    f"{self.name}: must have 0..{limit} {what} uncompressed, got "
                    f"{got}; split the table or write smaller row groups"
                )
        self._image = self._column("image", image, _is_image, "encoded images")
        self._label = self._column("label", label, _is_integer, "integer labels")

    def labels(self, num_classes: int | None) -> NDArray[np.int64]:
        """Return all labels, checked, shape ``(rows,)``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            column = self._file.read(columns=[self._label]).column(self._label)
        except Exception as error:
            raise self._damaged(error) from error
        if len(column) != self.rows:
            raise self._damaged(ValueError(f"{len(column)} of {self.rows} labels"))
        top = _MAX_CLASSES if num_classes is None else num_classes
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            got = "null"
        else:
            bad = pc.or_(
                pc.less(column, pa.scalar(0, column.type)),
                pc.greater_equal(
                    column.cast(pa.uint64(), safe=False), pa.scalar(top, pa.uint64())
                ),
            )
            row = pc.index(bad, True).as_py()
            got = str(column[row].as_py()) if row >= 0 else ""
        if row >= 0:
            remedy = (
                f"the largest that is taken is {_MAX_CLASSES - 1}"
                if num_classes is None
                else "count the classes from 0, or set num_classes"
            )
            raise DataError(
                f"{self.name}: row {row}: {self._label} must be in 0..{top - 1}, got "
                f"{got}; {remedy}"
            )
        values: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
        return values

    def images(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Yield row number and encoded image of the ascending rows ``wanted``."""
        import pyarrow as pa

        begin = 0
        batches = self._file.iter_batches(_BATCH, columns=[self._image])
        while len(wanted):
            try:
                batch = next(batches, None)
            except Exception as error:
                raise self._damaged(error) from error
            if batch is None:
                raise self._damaged(ValueError(f"no row {int(wanted[0])}"))
            column = batch.column(0)
            end = begin + len(column)
            here, wanted = wanted[wanted < end], wanted[wanted >= end]
            for row in here.tolist():
                value = column[row - begin]
                if value.is_valid and pa.types.is_struct(column.type):
                    value = value["bytes"]
                if not value.is_valid:
                    raise DataError(
                        f"{self.name}: row {row}: {self._image} must hold the bytes "
                        "of an image, got null; drop the row, or embed the images "
                        "that the table only names"
                    )
                yield row, value.as_buffer().to_pybytes()
            begin = end

    def _column(self, argument: str, name: str | None, fits: Any, what: str) -> str:
        """Return the column's name: the given one, or the only one that fits."""
        columns = [(field.name, field.type) for field in self._schema]
        shown = _validate.show([f"{n}: {t}" for n, t in columns])
        if len({n for n, _ in columns}) < len(columns):
            raise DataError(
                f"{self.name}: columns must have different names, got {shown}; "
                "rename them"
            )
        fitting: list[str] = [n for n, t in columns if fits(t)]
        if name is None and len(fitting) == 1:
            return fitting[0]
        if name is not None and name in fitting:
            return name
        needed = f"a column of {what}" if name else f"exactly one column of {what}"
        raise DataError(
            f"{self.name}: {argument}={_validate.show(name)} needs {needed}, got the "
            f"columns {shown}; name the right one with {argument}=..."
        )

    def _damaged(self, error: Exception) -> InputFileError:
        return InputFileError(
            f"{self.name}: must be an undamaged Parquet file, got "
            f"{type(error).__name__}: {_validate.clean(str(error))[:200]}; "
            "replace it with a fresh copy"
        )


class _Store:
    """Decoded images of one size and mode, in one array that the first one shapes."""

    def __init__(self, rows: int) -> None:
        self.formats: set[str] = set()
        self._rows = rows
        self._filled = 0
        self._first: tuple[str, tuple[int, int]] | None = None
        self._pixels = np.empty((0, 0, 0, 0), dtype=np.uint8)

    def images(self) -> NDArray[np.uint8]:
        """Return the images, ``(R, H, W)`` or ``(R, C, H, W)``."""
        assert self._filled == self._rows
        return self._pixels[:, 0] if self._pixels.shape[1] == 1 else self._pixels

    def add(self, data: bytes, where: str) -> None:
        """Decode one image; nothing is decoded before its header fits."""
        from PIL import Image, UnidentifiedImageError

        if len(data) > _MAX_ENCODED:
            raise InputTooLargeError(
                f"{where}: an encoded image must have at most {_MAX_ENCODED} bytes, "
                f"got {len(data)}; make it smaller"
            )
        # Pillow warns of large images and refuses huge ones; both are refused here.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                    self._check(picture, where)
                    self.formats.add(str(picture.format))
                    pixels = np.asarray(picture, dtype=np.uint8)
            except (DataError, InputTooLargeError):
                raise
            except UnidentifiedImageError as error:
                raise DataError(
                    f"{where}: must be an undamaged PNG or JPEG image, got "
                    f"{len(data)} other bytes; replace or drop the row"
                ) from error
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
                raise InputTooLargeError(
                    f"{where}: an image must have at most {_MAX_PIXELS} pixels, got "
                    f"{_validate.clean(str(e))[:200]}; make it smaller"
                ) from e
            except Exception as error:  # decoders raise many classes on damaged bytes
                raise DataError(
                    f"{where}: must be an undamaged PNG or JPEG image, got "
                    f"{type(error).__name__}: {_validate.clean(str(error))[:200]}; "
                    "replace or drop the row"
                ) from error
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        self._pixels[self._filled] = pixels.transpose(2, 0, 1)
        self._filled += 1

    def _check(self, picture: Any, where: str) -> None:
        """Compare a header with the first one, which decides about the array."""
        width, height = picture.size
        if getattr(picture, "is_animated", False):
            raise DataError(f"{where}: must be one image, got an animation; drop it")
        if picture.mode not in _MODES:
            raise DataError(
                f"{where}: mode must be L (grey) or RGB, got {picture.mode}; convert "
                "the images with Pillow's Image.convert"
            )
        if self._first is None:
            channels = _MODES[picture.mode]
            size = self._rows * channels * width * height
            for what, got, limit in (
                ("pixels in an image", width * height, _MAX_PIXELS),
                ("bytes of pixels in all", size, _MAX_STORE),
            ):
                if got > limit:
                    raise InputTooLargeError(
                        f"{where}: must have at most {limit} {what}, got {got} "
                        f"({self._rows} rows of {width} x {height}); make the images "
                        "smaller or take fewer rows"
                    )
            self._first = picture.mode, picture.size
            self._pixels = np.empty((self._rows, channels, height, width), np.uint8)
        elif self._first != (picture.mode, picture.size):
            mode, (w, h) = self._first
            raise DataError(
                f"{where}: must be {w} x {h} pixels of mode {mode} like the first "
                f"image, got {width} x {height} of mode {picture.mode}; bring all "
                "images to one size and mode"
            )


def _is_image(kind: Any) -> bool:
    """Tell whether a column's type can hold encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = {kind.field(k).name: kind.field(k).type for k in range(len(kind))}
        return "bytes" in fields and _is_image(fields["bytes"])
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _name(path: Path) -> str:
    """Return how messages name a file."""
    return _validate.clean(str(path))
