"""Array files from others: read exactly, or refused before memory is taken."""

import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dfl_unlearn import PeerData, SimulationConfig, load_run, load_topology, simulate
from dfl_unlearn._arrayfile import MAX_MEMBERS
from dfl_unlearn.data.sources import datasets
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import (
    DataError,
    InputFileError,
    InputTooLargeError,
    InvalidArgumentError,
    InvalidTypeError,
    NumericalError,
    UnsafeFormatError,
    UnsupportedFormatError,
)
from dfl_unlearn.experiment import build_parts, read_experiment, to_config
from dfl_unlearn.models.zoo import models
from dfl_unlearn.store.inputs import read_arrays

GOOD = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "float64": np.full((2, 1, 2), np.pi),
    "int64": np.array([-(2**62), 0, 2**62]),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([[True, False]]),
    "scalar": np.float64(2.5).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}


def save(path, arrays, *, packed=False):
    if path.suffix == ".npz":
        (np.savez_compressed if packed else np.savez)(path, **arrays)
    else:
        plain = {k: np.ascontiguousarray(v).reshape(v.shape) for k, v in arrays.items()}
        save_file(plain, path)
    return path


def header(descr="<f8", shape=(1,), order=False, version=1):
    """The bytes of a .npy header that may say anything."""
    text = repr({"descr": descr, "fortran_order": order, "shape": shape})
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", 118) + text.encode()


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tensors(path, entries, data=b"", *, raw=None):
    """A safetensors file that may say anything."""
    text = raw if raw is not None else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# --- what is read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "packed"), [("a.npz", False), ("a.npz", True), ("a.safetensors", False)]
)
def test_arrays_come_back_bit_for_bit(tmp_path, name, packed):
    found = read_arrays(save(tmp_path / name, GOOD, packed=packed), names=tuple(GOOD))
    assert list(found) == list(GOOD) or name.endswith("safetensors")
    for key, array in GOOD.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array, strict=True)
        found[key][...] = 0  # ours to write to


@pytest.mark.parametrize("key", GOOD)
def test_a_npy_comes_back_under_the_name_that_was_asked_for(tmp_path, key):
    np.save(tmp_path / "x.npy", GOOD[key])
    for names in (None, ("params",)):
        (name, array), *rest = read_arrays(tmp_path / "x.npy", names=names).items()
        assert (name, rest) == (names[0] if names else "array", [])
        np.testing.assert_array_equal(array, GOOD[key], strict=True)


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", ".pth", ".pkl", ".PT", ".joblib", ".bin"])
def test_pickles_are_refused_by_their_ending_and_never_opened(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    os.mkfifo(path)  # opening it would hang
    with pytest.raises(
        UnsafeFormatError, match=r"pickle.*never loads.*Convert it.*npz"
    ):
        read_arrays(path)


class Bomb:
    """Writes a marker file when a pickle of it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_an_object_array_is_refused_and_its_code_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    bombs = np.array([Bomb(marker)], dtype=object)
    np.save(tmp_path / "a.npy", bombs, allow_pickle=True)
    np.savez(tmp_path / "a.npz", params=bombs)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnsafeFormatError, match=r"Python objects.*never loaded"):
            read_arrays(tmp_path / name)
    assert not marker.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the bomb works elsewhere
    assert marker.exists()


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(header(shape=(10**11,)) + b"\0" * 8)
    bombs = [path, zipped(tmp_path / "a.npz", [("x.npy", path.read_bytes())])]
    bombs.append(tensors(tmp_path / "a.safetensors", {"x": entry(shape=(10**11,))}))
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(InputFileError, match="damaged"):
            read_arrays(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    zeros = np.zeros(2**22, np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", x=zeros)
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(InputTooLargeError, match=r"holds 4 MB of arrays; limit 1 MB"):
        read_arrays(tmp_path / "bomb.npz", max_load_bytes=2**20)
    assert read_arrays(tmp_path / "bomb.npz")["x"].sum() == 0


def test_the_limit_is_on_all_arrays_together(tmp_path):
    parts = {f"x{k}": np.zeros(2**17, np.float64) for k in range(4)}
    for name in ("a.npz", "a.safetensors"):
        save(tmp_path / name, parts)
        with pytest.raises(InputTooLargeError, match="limit 2 MB"):
            read_arrays(tmp_path / name, max_load_bytes=2**21)


def altered(tmp_path, change):
    """An intact .npz with bytes changed by ``change(bytearray)``."""
    save(tmp_path / "a.npz", {"x": np.zeros(1000)}, packed=True)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    change(data)
    (tmp_path / "a.npz").write_bytes(data)
    return tmp_path / "a.npz"


def field(data, offset, value, form="<L"):
    """Set a field of the one entry of the zip directory."""
    struct.pack_into(form, data, data.rfind(b"PK\x01\x02") + offset, value)


LIES = {
    "a directory size of 3 GB": lambda data: field(data, 24, 3 * 2**30),
    "a stored size beyond the file": lambda data: field(data, 20, 2**31),
    "an encrypted part": lambda data: field(data, 8, 1, "<H"),
    "another compression": lambda data: field(data, 10, 12, "<H"),
    "a checksum": lambda data: field(data, 16, 7),
    "a local header elsewhere": lambda data: field(data, 42, 10**6),
    "a directory that is huge": lambda data: struct.pack_into(
        "<L", data, data.rfind(b"PK\x05\x06") + 12, 2**31
    ),
    "no end": lambda data: data.__delitem__(slice(-30, None)),
    "no start": lambda data: data.__delitem__(slice(0, 40)),
    "no content": lambda data: data.clear(),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_zip_that_lies_is_refused(tmp_path, lie):
    with pytest.raises(InputFileError, match=r"a\.npz: "):
        read_arrays(altered(tmp_path, LIES[lie]))


MEMBERS = {
    "two of one name": [("x.npy", b""), ("x.npy", b"")],
    "a way out": [("../x.npy", header() + b"\0" * 8)],
    "an absolute name": [("/etc/x.npy", header() + b"\0" * 8)],
    "something else": [("x.txt", b"hello")],
    "an empty member": [("x.npy", b"")],
    "a tail": [("x.npy", header() + b"\0" * 9)],
    "a short one": [("x.npy", header() + b"\0" * 7)],
    "other magic": [("x.npy", b"\x93NUMPX" + header()[6:] + b"\0" * 8)],
    "version 3": [("x.npy", header(version=3) + b"\0" * 8)],
    "a negative side": [("x.npy", header(shape=(-1,)) + b"\0" * 8)],
    "a side that is true": [("x.npy", header(shape=(True,)) + b"\0" * 8)],
    "an overflow": [("x.npy", header(shape=(2**40, 2**40)) + b"\0" * 8)],
    "a zero beside huge sides": [("x.npy", header(shape=(2**62, 2**62, 0)))],
    "a header that is code": [("x.npy", header(descr=print))],
    "bad truth values": [("x.npy", header("|b1") + b"\x02")],
}


@pytest.mark.parametrize("case", MEMBERS)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_member_that_lies_is_refused(tmp_path, case):
    with pytest.raises(InputFileError, match=r"a\.npz: cannot be read as \.npz"):
        read_arrays(zipped(tmp_path / "a.npz", MEMBERS[case]))


def test_parts_that_share_their_bytes_are_refused(tmp_path):
    """The overlapping bomb: many directory entries, one content."""
    raw = header("|u1", (2**16,)) + b"\0" * 2**16
    zipped(tmp_path / "a.npz", [("x.npy", raw)], zipfile.ZIP_STORED)
    data = (tmp_path / "a.npz").read_bytes()
    start, end = data.rfind(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    one = data[start:end]
    many = b"".join(one.replace(b"x.npy", b"%c.npy" % c) for c in range(97, 117))
    tail = bytearray(data[end:])
    struct.pack_into("<HHL", tail, 8, 20, 20, len(many))
    # The local header's name must agree, so all but one would fail there anyway.
    (tmp_path / "a.npz").write_bytes(data[:start] + many + bytes(tail))
    with pytest.raises(InputFileError, match="lie over each other"):
        read_arrays(tmp_path / "a.npz")


def test_too_many_members_are_refused(tmp_path):
    members = [(f"{k}.npy", b"") for k in range(MAX_MEMBERS + 1)]
    with pytest.raises(InputTooLargeError, match="4097 arrays; limit 4096"):
        read_arrays(zipped(tmp_path / "a.npz", members))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, np.float16),
        np.zeros(2, np.complex128),
        np.zeros(2, ">f8"),
        np.zeros(2, np.int32),
        np.zeros(2, "M8[s]"),
        np.array(["text"]),
        np.zeros(2, [("a", "<f4")]),
    ],
    ids=lambda array: array.dtype.str,
)
def test_other_types_are_refused_by_name(tmp_path, array):
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(
        UnsupportedFormatError, match="x must be one of float32, float64"
    ):
        read_arrays(tmp_path / "a.npz")


SAFETENSORS = {
    "a gap": ({"a": entry(), "b": entry(offsets=(5, 9))}, b"\0" * 9),
    "an overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, b"\0" * 6),
    "a tail": ({"a": entry()}, b"\0" * 5),
    "a short file": ({"a": entry()}, b"\0" * 3),
    "a wrong shape": ({"a": entry(shape=(2,))}, b"\0" * 4),
    "a backward offset": ({"a": entry(offsets=(4, 0))}, b"\0" * 4),
    "a negative side": ({"a": entry(shape=(-1, -1))}, b"\0" * 4),
    "a fraction": ({"a": entry(shape=(1.0,))}, b"\0" * 4),
    "a truth value": ({"a": entry(shape=(True,))}, b"\0" * 4),
    "an odd key": ({"a": entry() | {"x": 1}}, b"\0" * 4),
    "no table": ({"a": 3}, b""),
    "bad truth values": ({"a": entry("BOOL", (1,), (0, 1))}, b"\x07"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, case):
    with pytest.raises(InputFileError, match=r"cannot be read as \.safetensors"):
        read_arrays(tensors(tmp_path / "a.safetensors", *SAFETENSORS[case]))


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"{",
        b"\xff\xff",
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=range(7),
)
def test_a_safetensors_header_that_is_no_table_is_refused(tmp_path, raw):
    with pytest.raises(InputFileError, match=r"cannot be read as \.safetensors"):
        read_arrays(tensors(tmp_path / "a.safetensors", {}, raw=raw))
    path = tmp_path / "b.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + raw)
    with pytest.raises(InputFileError, match="a header of 1099511627776 bytes"):
        read_arrays(path)


def test_half_floats_are_refused_by_name(tmp_path):
    path = tensors(tmp_path / "a.safetensors", {"a": entry("F16", (2,))}, b"\0" * 4)
    with pytest.raises(UnsupportedFormatError, match=r"a must be one of .*, got 'F16'"):
        read_arrays(path)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
def test_every_truncation_of_a_file_is_refused(tmp_path, name):
    arrays = {"x": np.arange(20.0), "y": np.arange(3)}
    if name == "a.npy":
        np.save(tmp_path / name, arrays["x"])
    else:
        save(tmp_path / name, arrays, packed=True)
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputFileError, match=name):
            read_arrays(tmp_path / name)


def test_names_are_exactly_those_asked_for(tmp_path):
    path = save(tmp_path / "a.npz", {"x": np.zeros(1), "z\x1b[31m": np.zeros(1)})
    with pytest.raises(InputFileError) as caught:
        read_arrays(path, names=("x", "y"))
    assert "must hold exactly the arrays x, y, got x, z[31m; save" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "no such file"),
        ("file/x.npz", "no such file"),
        ("folder.npz", "is a directory"),
        ("pipe.npz", "is no regular file"),
        ("x.h5", r"must end in \.npz, \.npy, \.safetensors, got '\.h5'"),
        ("nul\0.npz", "cannot be read"),
    ],
)
def test_places_that_are_no_files_are_named(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputFileError, match=message):
        read_arrays(tmp_path / name)


def test_a_crc_that_was_recomputed_does_not_help_a_wrong_shape(tmp_path):
    body = header(shape=(3,)) + b"\0" * 8
    path = zipped(tmp_path / "a.npz", [("x.npy", body)], zipfile.ZIP_STORED)
    assert zlib.crc32(body).to_bytes(4, "little") in path.read_bytes()
    with pytest.raises(InputFileError, match=r"shape \(3,\) of float64 needs 24 bytes"):
        read_arrays(path)


# --- models trained elsewhere -------------------------------------------------------


@pytest.mark.parametrize("name", ["p.npz", "p.npy", "p.safetensors"])
def test_states_from_a_file_are_the_tensor_itself(tmp_path, name):
    topology, data = load_topology("ring", n=3), classes(3)
    model = models.build("logistic", input_shape=(10,), num_classes=3)
    rows = np.linspace(-1, 1, 3 * model.size, dtype=np.float32).reshape(3, -1)
    path = tmp_path / name
    np.save(path, rows) if name == "p.npy" else save(path, {"params": rows})
    run = TrainedRun.from_states(topology, data, model, str(path))
    direct = TrainedRun.from_states(topology, data, model, torch.from_numpy(rows))
    assert run.digest == direct.digest
    assert run.record is None


def classes(peers):
    return PeerData.load("gaussian-classes", peers=peers)


def test_states_that_do_not_fit_are_refused(tmp_path):
    model = models.build("logistic", input_shape=(10,), num_classes=3)
    ring = load_topology("ring", n=3)

    def bring(states):
        return TrainedRun.from_states(ring, classes(3), model, states)

    cases = [
        (np.zeros((3, 5), np.float32), InvalidArgumentError, r"shape \(3, 33\)"),
        (np.zeros((3, 33), np.int64), InvalidArgumentError, "must be float32"),
        (np.full((3, 33), np.nan), NumericalError, "must be finite, got peer 0"),
    ]
    for rows, error, message in cases:
        np.savez(tmp_path / "p.npz", params=rows)
        with pytest.raises(error, match=message):
            bring(tmp_path / "p.npz")
    with pytest.raises(UnsafeFormatError, match="Convert it"):
        bring(tmp_path / "model.pt")
    with pytest.raises(InvalidTypeError, match=r"states: .* path of a file"):
        bring([[0.0]])


# --- data of one's own ----------------------------------------------------------------


def own(path, **more):
    rng = np.random.Generator(np.random.Philox(key=1))
    labels = np.arange(60) % 3
    inputs = (rng.standard_normal((60, 4)) + labels[:, None]).astype(np.float32)
    return save(path, {"inputs": inputs, "labels": labels, **more})


def test_own_arrays_hold_out_a_fifth_of_each_class(tmp_path):
    data = datasets.build("arrays", file=own(tmp_path / "a.npz"))
    assert (len(data.train), len(data.test), data.num_classes) == (48, 12, 3)
    assert torch.bincount(data.test.labels).tolist() == [4, 4, 4]
    again = datasets.build("arrays", file=own(tmp_path / "a.safetensors"))
    assert again.sha256 == data.sha256
    whole = datasets.build("arrays", file=tmp_path / "a.npz", test_share=0.0)
    assert (len(whole.train), len(whole.test)) == (60, 0)


def test_own_test_rows_are_taken_as_they_are(tmp_path):
    more = {
        "test_inputs": np.zeros((2, 4), np.float32),
        "test_labels": np.array([0, 4]),
    }
    data = datasets.build("arrays", file=own(tmp_path / "a.npz", **more))
    assert (len(data.train), len(data.test), data.num_classes) == (60, 2, 5)


def test_own_targets_make_a_regression(tmp_path):
    save(
        tmp_path / "a.npz",
        {"inputs": np.zeros((10, 2)), "labels": np.linspace(0, 1, 10)},
    )
    data = datasets.build("arrays", file=tmp_path / "a.npz")
    assert (data.num_classes, len(data.train), len(data.test)) == (0, 8, 2)


BROKEN = {
    "a name too many": (
        {"extra": np.zeros(1)},
        InputFileError,
        "test_labels or neither",
    ),
    "half a test set": ({"test_inputs": np.zeros(1)}, InputFileError, "or neither"),
    "labels too few": (
        {"labels": np.zeros(3, int)},
        DataError,
        r"\(60, 4\) and \(3,\)",
    ),
    "integer features": ({"inputs": np.zeros((60, 4), int)}, DataError, "inputs: must"),
    "no rows": (
        {"inputs": np.zeros((0, 4)), "labels": np.zeros(0, int)},
        DataError,
        r"\(0, 4\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_own_arrays_that_do_not_fit_are_refused(tmp_path, case):
    changes, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        datasets.build("arrays", file=own(tmp_path / "a.npz", **changes))


def test_nan_features_are_named_by_peer_record_and_feature(tmp_path):
    inputs = np.zeros((20, 5), np.float32)
    inputs[13, 4] = np.nan
    save(tmp_path / "a.npz", {"inputs": inputs, "labels": np.arange(20) % 2})
    with pytest.raises(DataError, match=r"^peer \d, record \d+: feature 4 is NaN"):
        PeerData.load(
            "arrays",
            peers=2,
            dataset_options={"file": tmp_path / "a.npz", "test_share": 0.0},
        )


def test_a_run_on_own_arrays_is_stored_and_read_again(tmp_path):
    data = PeerData.load(
        "arrays", peers=3, dataset_options={"file": own(tmp_path / "a.npz")}
    )
    config = SimulationConfig(rounds=2)
    run = simulate("ring", data, "logistic", config).save(tmp_path / "run")
    assert load_run(tmp_path / "run").digest == run.digest
    own(tmp_path / "a.npz", inputs=np.zeros((60, 4), np.float32))
    with pytest.raises(Exception, match="data must have the fingerprint"):
        load_run(tmp_path / "run")


def test_an_experiment_file_names_own_arrays(tmp_path):
    file = str(own(tmp_path / "a.npz"))
    table = {
        "data": {"use": "arrays", "file": file},
        "topology": {"use": "ring", "n": 4},
    }
    experiment = read_experiment(table)
    _, data, model = build_parts(experiment)
    assert (data.n, data.num_classes, model.size) == (4, 3, 15)
    assert read_experiment(json.loads(json.dumps(to_config(experiment)))) == experiment


def test_a_file_in_memory_is_not_a_path():
    with pytest.raises(TypeError):
        read_arrays(io.BytesIO())
