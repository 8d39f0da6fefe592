"""Targets that hold data: arrays, Parquet tables of images, the files of MNIST."""

import io
import struct
import zipfile
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from fuzz.harness import Bench, Misread, Target
from fuzz.mutate import LETTERS, damaged, mutated

from dfl_unlearn.data.parquet import read_images
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.data.vision import _BATCHES, _CIFAR_MD5
from dfl_unlearn.store.inputs import read_arrays

_WORDS = [
    t.encode() for t in (*LETTERS, "PAR1", "IHDR", "IDAT", "\x00\x00\x00\x01", "IEND")
]


def _image(side: int, mode: str, kind: str) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(side)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _table(images: list[bytes | None], labels: list[int], plain: bool = True) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array(images, pa.binary())
    if not plain:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": b, "path": "x"} for b in images], kind)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": column, "label": pa.array(labels)}), buffer)
    return buffer.getvalue()


def _parquet(scratch: Path) -> Bench:
    path = scratch / "train.parquet"
    png, jpeg, grey = (
        _image(4, "RGB", "PNG"),
        _image(8, "RGB", "JPEG"),
        _image(4, "L", "PNG"),
    )
    whole = [png, jpeg, grey]
    seeds = [
        _table([png] * 3, [0, 1, 2]),
        _table([grey] * 3, [0, 1, 1], plain=False),
        _table([jpeg] * 2, [5, 0]),
        _table([], []),
        _table([png, None], [0, 1]),
        _table([png, grey], [-1, 10**12]),
    ]

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.7:
            return mutated(rng.choice(seeds), seeds, rng, _WORDS)
        # A sound table around a damaged image.
        image = mutated(rng.choice(whole), whole, rng, _WORDS)
        images = [rng.choice(whole), image] if rng.random() < 0.3 else [image]
        return _table([*images], [rng.randrange(3) for _ in images])

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        found = read_images([path], part="train")
        assert len(found.batch.inputs) == len(found.batch.labels)
        return found

    return Bench(seeds, draw, tried)


def _mnist(scratch: Path) -> Bench:
    raw = scratch / "MNIST" / "raw"
    raw.mkdir(parents=True)
    names, whole = [], []
    for part, rows in (("train", 3), ("t10k", 2)):
        images = np.full((rows, 28, 28), 7, np.uint8).tobytes()
        names += [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        whole += [
            struct.pack(">IIII", 2051, rows, 28, 28) + images,
            struct.pack(">II", 2049, rows) + bytes(range(rows)),
        ]
    for name, content in zip(names, whole, strict=True):
        (raw / name).write_bytes(content)
    seeds = [bytes([at]) + content for at, content in enumerate(whole)]

    def draw(rng: Random) -> bytes:
        at = rng.randrange(4)
        content = whole[at]
        if rng.random() < 0.7:  # the head is a small part of the file
            head = mutated(content[:16], whole, rng, _WORDS)
            return bytes([at]) + head + content[16:]
        return bytes([at]) + mutated(content, whole, rng, _WORDS)

    def tried(data: bytes) -> object:
        at = data[0] % 4 if data else 0
        path = raw / names[at]
        try:
            path.write_bytes(data[1:])
            return datasets.build("mnist", root=scratch)
        finally:
            path.write_bytes(whole[at])

    return Bench(seeds, draw, tried)


def _cifar(scratch: Path) -> Bench:
    """The original files are pickles: none whose digest is not known is opened."""
    folder = scratch / _BATCHES
    folder.mkdir()
    # A pickle that would call os.getcwd, if anybody loaded it.
    seeds = [b"\x80\x04cos\ngetcwd\n)R.", b"", b"\x80\x04}."]
    for name in _CIFAR_MD5:
        (folder / name).write_bytes(seeds[0])

    def tried(data: bytes) -> object:
        (folder / next(iter(_CIFAR_MD5))).write_bytes(data)
        found = datasets.build("cifar10", root=scratch)
        raise Misread(f"a file with another digest was read: {found}")

    return Bench(seeds, damaged(seeds, _WORDS), tried)


def _arrays(suffix: str, scratch: Path) -> Bench:
    """A file of arrays, and for a zip one whose members are damaged inside."""
    path = scratch / f"data{suffix}"
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.standard_normal((6, 3)).astype(np.float32),
        "labels": np.array([0, 1, 2, 0, 1, 2]),
    }
    params = {"params": np.zeros((2, 3)), "mask": np.array([True]), "n": np.uint8(3)}
    code = np.array([{}, print], dtype=object)
    seeds = [_saved(suffix, a) for a in (arrays, params, {"array": np.ones(3)})]
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, code, allow_pickle=True)
        seeds.append(buffer.getvalue())
    words = [*_WORDS, b"<f8", b"|O", b"(99999999999,)", b"fortran_order", b"True"]
    whole = [_saved(".npy", {"array": value}) for value in arrays.values()]

    def draw(rng: Random) -> bytes:
        if suffix == ".npz" and rng.random() < 0.5:
            buffer = io.BytesIO()
            kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            with zipfile.ZipFile(buffer, "w", kind) as archive:
                for name, value in zip(arrays, whole, strict=True):
                    name = rng.choice((name, name, name, *LETTERS))
                    if "\x00" not in name:
                        damaged_too = mutated(value, whole, rng, words)
                        chosen = rng.choice((value, damaged_too))
                        archive.writestr(zipfile.ZipInfo(f"{name}.npy"), chosen)
            return buffer.getvalue()
        return mutated(rng.choice(seeds), seeds, rng, words)

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        found = read_arrays(path)
        for value in found.values():
            value.sum()
        if set(found) >= {"inputs", "labels"}:
            datasets.build("arrays", file=path)
        return found

    return Bench(seeds, draw, tried)


def _saved(suffix: str, arrays: dict[str, np.ndarray]) -> bytes:
    from dfl_unlearn.store.files import to_safetensors

    if suffix == ".safetensors":
        return to_safetensors("a", {k: np.asarray(v) for k, v in arrays.items()})
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(buffer, **arrays)
    else:
        np.save(buffer, next(iter(arrays.values())))
    return buffer.getvalue()


TARGETS = (
    Target("npz", 5, partial(_arrays, ".npz")),
    Target("npy", 4, partial(_arrays, ".npy")),
    Target("tensors", 4, partial(_arrays, ".safetensors")),
    Target("parquet", 3, _parquet),
    Target("mnist", 1, _mnist),
    Target("cifar", 1, _cifar),
)
