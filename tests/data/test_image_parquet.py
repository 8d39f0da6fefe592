"""Tables of encoded images: what is read, what is refused, and how that is said."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dfl_unlearn.data import parquet
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.errors import (
    DataError,
    DflUnlearnError,
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingDataError,
)

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A machine without any data set."""
    monkeypatch.delenv("DFL_UNLEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def pixels(count, shape=(5, 4, 3), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image, format="PNG", mode=None, **options):
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, format, **options)
    return buffer.getvalue()


def write(path, images, labels, *, kind=None, plain=False, **options):
    """Write a table whose images are given as bytes, arrays or None."""
    data = [encoded(i) if isinstance(i, np.ndarray) else i for i in images]
    if plain:
        column = pa.array(data, pa.binary())
    else:
        rows = [{"bytes": b, "path": f"{k}.png"} for k, b in enumerate(data)]
        column = pa.array(rows, STRUCT)
    table = pa.table({"img": column, "label": pa.array(labels, kind)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def pair(folder, images, labels, **options):
    """Write a training table beside a test table that is in order."""
    write(folder / "train.parquet", images, labels, **options)
    fine = pixels(2, seed=9)
    write(folder / "test.parquet", fine, [0, 1])
    return folder


def build(root, **fields):
    return datasets.build("image-parquet", root=root, **fields)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.int16(), pa.uint64()])
def test_lossless_images_come_back_as_they_were(tmp_path, plain, kind):
    images = pixels(7)
    labels = [2, 0, 1, 1, 0, 2, 1]
    data = build(pair(tmp_path, images, labels, plain=plain, kind=kind))
    assert data.train.inputs.dtype == torch.uint8
    np.testing.assert_array_equal(data.train.inputs, images.transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == labels
    assert data.train.labels.dtype == torch.int64
    assert data.num_classes == 3
    assert "PNG" in data.source
    assert "lossy" not in data.source


def test_grey_images_have_no_channel_as_those_of_mnist(tmp_path):
    images = pixels(3, (6, 5))
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", images, [0, 1, 0])
    data = build(tmp_path)
    np.testing.assert_array_equal(data.train.inputs, images)
    assert data.train.inputs.shape == (3, 6, 5)


def test_jpeg_is_taken_and_called_lossy(tmp_path):
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [encoded(image, "JPEG")] * 2, [0, 1])
    data = build(tmp_path)
    assert "JPEG, lossy" in data.source
    assert (data.train.inputs.int() - 100).abs().max() <= 2


def test_the_hash_follows_pixels_and_labels(tmp_path):
    images = pixels(4)
    one = build(pair(tmp_path / "a", images, [0, 1, 0, 1]))
    same = build(pair(tmp_path / "b", images, [0, 1, 0, 1], plain=True))
    other = build(pair(tmp_path / "c", images, [0, 1, 1, 1]))
    assert one.sha256 == same.sha256 != other.sha256


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    images = pixels(6)
    for k, part in ((1, slice(4, 6)), (0, slice(0, 4))):
        path = tmp_path / f"train-{k:05}-of-00002.parquet"
        write(path, images[part], list(range(6))[part])
    write(tmp_path / "test.parquet", pixels(1), [5])
    data = build(tmp_path)
    assert data.train.labels.tolist() == list(range(6))
    np.testing.assert_array_equal(data.train.inputs, images.transpose(0, 3, 1, 2))


def test_a_slice_is_a_fixed_part_of_larger_ones_across_shards_and_batches(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet, "_BATCH", 3)
    images = pixels(40, (2, 2, 3))
    for k in range(2):
        rows = slice(20 * k, 20 * k + 20)
        write(tmp_path / f"train-{k}.parquet", images[rows], list(range(40))[rows])
    write(tmp_path / "test.parquet", pixels(3, (2, 2, 3)), [0, 1, 2])
    small, again, large = (build(tmp_path, rows=r) for r in (9, 9, 25))
    assert small.sha256 == again.sha256
    assert small.num_classes == 40  # of the table, not of the slice
    taken = small.train.labels.tolist()
    assert taken == sorted(taken)
    assert taken != list(range(9))
    assert set(taken) < set(large.train.labels.tolist())
    np.testing.assert_array_equal(
        small.train.inputs, images[taken].transpose(0, 3, 1, 2)
    )
    assert len(build(tmp_path, test_rows=2).test) == 2


@pytest.mark.parametrize(("count", "error"), [(0, "rows: .*got 0"), (8, "<= 7.*got 8")])
def test_a_slice_has_rows_of_the_table(tmp_path, count, error):
    pair(tmp_path, pixels(7), [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(InvalidArgumentError, match=error):
        build(tmp_path, rows=count)


def test_columns_are_found_by_type_or_named(tmp_path):
    images = [encoded(image) for image in pixels(2)]
    table = pa.table(
        {
            "photo": pa.array(images, pa.binary()),
            "mask": pa.array(images, pa.binary()),
            "fine": [0, 1],
            "coarse": [1, 0],
            "note": ["a", "b"],
        }
    )
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    with pytest.raises(DataError, match=r"exactly one column of encoded images.*photo"):
        build(tmp_path)
    with pytest.raises(DataError, match=r"exactly one column of integer labels.*fine"):
        build(tmp_path, image="photo")
    with pytest.raises(DataError, match="label='note' needs a column of integer"):
        build(tmp_path, image="photo", label="note")
    with pytest.raises(DataError, match="image='foto' needs a column"):
        build(tmp_path, image="foto", label="fine")
    data = build(tmp_path, image="photo", label="coarse")
    assert data.train.labels.tolist() == [1, 0]


def test_the_root_comes_before_the_variable_and_that_before_the_cache(
    nowhere, monkeypatch
):
    places = {"mine": 1, "variable": 2, "cache/dfl_unlearn": 3}
    for place, value in places.items():
        image = np.full((4, 4, 3), value, dtype=np.uint8)
        for part in ("train", "test"):
            write(nowhere / place / f"{part}.parquet", [image] * 2, [0, 1])
    monkeypatch.setenv("DFL_UNLEARN_DATA", str(nowhere / "variable"))

    def pixel(root=None):
        return int(build(root).train.inputs[0, 0, 0, 0])

    assert pixel(nowhere / "mine") == 1
    assert pixel() == 2
    monkeypatch.delenv("DFL_UNLEARN_DATA")
    assert pixel() == 3


def test_absent_files_are_named_with_folders_and_the_variable(tmp_path):
    with pytest.raises(MissingDataError) as caught:
        build(tmp_path / "mine", train="cats-*.parquet")
    for part in ("cats-*.parquet", "test*.parquet", "mine", "DFL_UNLEARN_DATA"):
        assert part in str(caught.value)


@pytest.mark.parametrize("pattern", ["", "../x.parquet", "/x.parquet"])
def test_names_do_not_leave_the_folder(tmp_path, pattern):
    with pytest.raises(InvalidArgumentError, match=r"train: .*below the folder"):
        build(tmp_path, train=pattern)


def test_fields_have_types(tmp_path):
    pair(tmp_path, pixels(2), [0, 1])
    for field, value in (("root", 3), ("train", 3), ("image", 3), ("rows", 1.5)):
        with pytest.raises(InvalidTypeError, match=f"{field}: must be"):
            datasets.build("image-parquet", **{"root": tmp_path, field: value})
    with pytest.raises(InvalidArgumentError, match=r"num_classes: .*got 1"):
        build(tmp_path, num_classes=1)


def huge_png(width=60_000, height=60_000):
    """A PNG of a few bytes whose header promises 3.6 billion pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


FINE = pixels(1)[0]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (b"not an image", DataError, "undamaged PNG or JPEG"),
        (b"", DataError, "undamaged PNG or JPEG"),
        (encoded(FINE)[:-30], DataError, "undamaged PNG or JPEG"),
        (encoded(FINE, "BMP"), DataError, "undamaged PNG or JPEG"),
        (None, DataError, "got null"),
        (encoded(FINE, mode="P"), DataError, "mode must be L .*got P"),
        (encoded(FINE, mode="RGBA"), DataError, "mode must be L .*got RGBA"),
        (encoded(FINE, mode="1"), DataError, "mode must be L .*got 1"),
        (encoded(FINE, mode="L"), DataError, "4 x 5 pixels of mode RGB.*mode L"),
        (pixels(1, (5, 5, 3))[0], DataError, "4 x 5 pixels .*got 5 x 5"),
        (huge_png(), InputTooLargeError, "at most 16777216 pixels"),
        (huge_png(11_000, 11_000), InputTooLargeError, "at most 16777216 pixels"),
        (huge_png(4_000, 4_000), DataError, "4 x 5 pixels .*got 4000 x 4000"),
    ],
)
def test_a_hostile_image_is_refused_by_file_and_row(tmp_path, bad, error, message):
    pair(tmp_path, [FINE, FINE, bad], [0, 1, 0])
    with pytest.raises(error, match=rf"train\.parquet: row 2: .*{message}"):
        build(tmp_path)


@pytest.mark.parametrize("size", [(60_000, 60_000), (11_000, 11_000), (5_000, 5_000)])
def test_a_huge_first_image_allocates_nothing(tmp_path, size):
    pair(tmp_path, [huge_png(*size)] * 2, [0, 1])
    with pytest.raises(InputTooLargeError, match=r"row 0: .*at most 16777216 pixels"):
        build(tmp_path)


def test_many_large_images_are_counted_before_the_store_is_made(tmp_path):
    pair(tmp_path, [huge_png(4_000, 4_000)] * 120, [0, 1] * 60)
    with pytest.raises(InputTooLargeError, match="bytes of pixels in all, got 57600"):
        build(tmp_path)


def test_a_large_value_repeated_by_a_small_file_is_not_held_for_all_rows(tmp_path):
    value = b"\x89PNG\r\n\x1a\n" + bytes(4 * 2**20)
    zeros = np.zeros(2_000, dtype=np.int64)
    column = pa.DictionaryArray.from_arrays(pa.array(zeros.astype(np.int32)), [value])
    for part in ("train", "test"):
        path = tmp_path / f"{part}.parquet"
        pq.write_table(
            pa.table({"img": column, "label": zeros}),
            path,
            compression="zstd",
            dictionary_pagesize_limit=2**30,
            store_schema=False,
        )
        assert path.stat().st_size < 5_000  # for 8 GB
    with pytest.raises(DataError, match="row 0: must be an undamaged PNG"):
        build(tmp_path)
    # Other tests share the pool and hold little.
    assert pa.default_memory_pool().max_memory() < 2**29


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(image) for image in pixels(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    pair(tmp_path, [buffer.getvalue()] * 2, [0, 1])
    with pytest.raises(DataError, match="row 0: must be one image"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("labels", "kind", "fields", "message"),
    [
        ([0, 1, -1], None, {}, "row 2: label must be in 0..99999, got -1"),
        ([0, 3, 1], None, {"num_classes": 3}, "row 1: label .* 0..2, got 3"),
        ([0, None, 1], None, {}, "row 1: label .*got null"),
        ([0, 2**63, 1], pa.uint64(), {}, f"row 1: label .*got {2**63}"),
        ([0.0, 1.0, 2.0], None, {}, "exactly one column of integer labels"),
        ([True, False, True], None, {}, "exactly one column of integer labels"),
    ],
)
def test_labels_are_classes(tmp_path, labels, kind, fields, message):
    pair(tmp_path, pixels(3), labels, kind=kind)
    with pytest.raises(DataError, match=message):
        build(tmp_path, **fields)


def test_labels_of_the_test_table_stay_below_the_training_tables(tmp_path):
    pair(tmp_path, pixels(3), [0, 1, 1])
    write(tmp_path / "test.parquet", pixels(1), [2])
    with pytest.raises(DataError, match=r"test\.parquet: row 0: label .*got 2"):
        build(tmp_path)
    assert build(tmp_path, num_classes=3).num_classes == 3


def test_both_tables_have_one_shape(tmp_path):
    pair(tmp_path, pixels(2), [0, 1])
    write(tmp_path / "test.parquet", pixels(1, (4, 4, 3)), [0])
    with pytest.raises(DataError, match=r"\(3, 5, 4\) of .*got \(3, 4, 4\)"):
        build(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    pair(tmp_path, [], [], kind=pa.int64())
    with pytest.raises(DataError, match=r"train\.parquet: must have rows, got none"):
        build(tmp_path)


def test_columns_of_one_name_are_refused(tmp_path):
    pair(tmp_path, pixels(1), [0])
    one = pa.array([0])
    table = pa.Table.from_arrays([one, one], names=["label", "label"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="columns must have different names"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("_MAX_ROWS", 2, r"0\.\.2 rows"),
        ("_MAX_GROUP", 50, "bytes in a row group"),
        ("_MAX_STORE", 50, "bytes in all"),
        ("_MAX_ENCODED", 50, "row 0: an encoded image"),
    ],
)
def test_sizes_are_capped(tmp_path, monkeypatch, limit, value, message):
    pair(tmp_path, pixels(3), [0, 1, 0])
    monkeypatch.setattr(parquet, limit, value)
    with pytest.raises(InputTooLargeError, match=message):
        build(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -60])
def test_a_truncated_file_is_named(tmp_path, keep):
    pair(tmp_path, pixels(3), [0, 1, 0])
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputFileError, match=r"train\.parquet: must be an undamaged"):
        build(tmp_path)


def test_any_damage_gives_an_error_of_this_package(tmp_path):
    pair(tmp_path, pixels(4), [0, 1, 0, 1], write_page_checksum=True)
    path = tmp_path / "train.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            build(tmp_path)
        except DflUnlearnError:
            refused += 1
    assert refused > 100
