"""Checkpoints: a training between two rounds on disk, whole or not at all.

``ckpt/round-000120/`` holds ``state.safetensors`` (parameters, slots, gradient norms,
figures so far) and ``manifest.json``, which says what the state belongs to and has
type, shape and SHA-256 of every array. States that the training record keeps are too
large to be written again each time: they lie under ``record/`` from the first
checkpoint after they were taken, and the manifest lists their hashes.

A checkpoint is written beside its place, made durable, moved there, made durable again
and read back; only then are older ones removed. One that does not verify is renamed to
``*.bad`` and the next older one is taken. Rules: robustness.md §4.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._kill_hook import die_if_asked
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.engine.fault_rounds import FaultsSeen
from dfl_unlearn.engine.progress import Array, Progress
from dfl_unlearn.engine.stored import LEDGER, noted_head
from dfl_unlearn.engine.stored_parts import ROUND
from dfl_unlearn.errors import (
    ConfigMismatchError,
    DataMismatchError,
    InputFileError,
    NoValidCheckpointError,
    ResumeWouldUndoUnlearningError,
    StoreCorruptError,
    StoreWriteError,
    UnsafeFormatError,
)
from dfl_unlearn.store.files import (
    from_json,
    sync_folder,
    to_json,
    to_safetensors,
    writing,
)
from dfl_unlearn.store.folder import RunFolder

_log = logging.getLogger(__name__)

CHECKPOINTS = "ckpt"
FORMAT = 1
_STATE, _MANIFEST = "state.safetensors", "manifest.json"
_NAME = re.compile(r"round-(\d{6,})")
_LEFTOVER = re.compile(r"round-\d{6,}\.tmp-.*")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint must agree with to be gone on with.

    Attributes:
        training: The configuration as JSON values; ``rounds`` may differ.
        data: Fingerprint of the data.
        graph: Fingerprint of the network.
        requests: Ids of the forget requests that the state carries, oldest first.
        noted: What else is written down for readers: versions, noise self-check,
            arithmetic.
    """

    training: Mapping[str, Any]
    data: str
    graph: str
    requests: tuple[str, ...]
    noted: Mapping[str, Any]


def write_checkpoint(
    folder: RunFolder,
    progress: Progress,
    identity: Identity,
    *,
    ledger: tuple[int, str],
    keep: int,
) -> Path:
    """Write a checkpoint, verify it and remove all but the newest.

    Args:
        folder: The run's folder, locked.
        progress: What to keep.
        identity: What it belongs to.
        ledger: The ledger's head.
        keep: Checkpoints that stay, >= 1.

    Returns:
        Where it lies.

    Raises:
        StoreWriteError: If it cannot be written; says which round is safe.
    """
    done = progress.state.round
    try:
        place = _write(folder, progress, identity, ledger)
    except StoreWriteError as error:
        safe = max((r for r, _ in _candidates(folder)), default=0)
        raise StoreWriteError(
            f"{error}; the state up to round {safe} is safe"
        ) from error
    _read(folder, place, identity)
    for number, (_, old) in enumerate(_candidates(folder)):
        if number >= keep:
            shutil.rmtree(old)
    die_if_asked("checkpoint", done, "purge")
    return place


def newest_checkpoint(folder: RunFolder, identity: Identity) -> Progress | None:
    """Return the newest checkpoint that verifies.

    Args:
        folder: The run's folder, locked.
        identity: What it must belong to.

    Returns:
        What it holds; None where there never was one, so that the first round may be
        started again from its keys.

    Raises:
        NoValidCheckpointError: If there are some and none verifies.
        ResumeWouldUndoUnlearningError: If those that verify are from before a request
            that was committed.
    """
    clear_leftovers(folder)
    failures, older = _earlier_failures(folder), []
    for done, place in _candidates(folder):
        try:
            known, arrays = _read(folder, place, identity)
            states = _record_states(folder, known)
            with _as_corrupt(place):
                FaultsSeen.of(known["faults"])
                head = noted_head(known)
                progress = Progress.of_arrays(
                    arrays,
                    round=done,
                    seconds=float(known["seconds"]),
                    faults=known["faults"],
                    states=states,
                )
        except StoreCorruptError as error:
            failures.append(f"{place.name}: {error}")
            _set_aside(place, error)
            continue
        if tuple(known["requests"]) != identity.requests:
            older.append(done)
            continue
        # A ledger that is shorter than it was is no fault of the checkpoint: an older
        # one would only hide that charges are gone.
        PrivacyLedger.load(folder.path(LEDGER), expected_head=head)
        return progress
    if older:
        raise ResumeWouldUndoUnlearningError(
            f"{folder.root}: the newest checkpoint must carry the committed requests "
            f"{', '.join(identity.requests)}, got one of round {max(older)} from "
            "before; going on from it would bring back what was forgotten. With "
            "--replay the requests are carried out again"
        )
    if failures:
        listed = "; ".join(failures)
        raise NoValidCheckpointError(
            f"{folder.root}/{CHECKPOINTS}: must hold a checkpoint that verifies, got "
            f"{len(failures)} that do not: {listed}. To train from the first round "
            f"again, remove {CHECKPOINTS}/ and resume"
        )
    return None


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what writers that died left half-written; the folder must be locked."""
    home = folder.path(CHECKPOINTS)
    for place in sorted(home.iterdir()) if home.is_dir() else ():
        if _LEFTOVER.fullmatch(place.name) and not place.is_symlink():
            shutil.rmtree(place)


def check_same_training(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse to go on under other settings than a run began with.

    Args:
        here: The configuration that is asked for, as JSON values.
        there: The one that was written down; ``rounds`` is not compared.

    Raises:
        ConfigMismatchError: Names the first key that differs, and both values.
    """
    for path, a, b in _differences(_plain(here), _plain(there), "training"):
        if path != "training.rounds":
            raise ConfigMismatchError(
                f"{path} is {_validate.show(a)} here but {_validate.show(b)} in the "
                "checkpoint; resume with the settings the run began with, or start a "
                "new run"
            )


# --- writing -----------------------------------------------------------------------


def _write(
    folder: RunFolder,
    progress: Progress,
    identity: Identity,
    ledger: tuple[int, str],
) -> Path:
    done = progress.state.round
    home = folder.path(CHECKPOINTS)
    with writing(home):
        home.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.root)
    clear_leftovers(folder)
    record = _keep_record_states(folder, progress)
    arrays = progress.arrays()
    manifest = {
        "format": FORMAT,
        "run": folder.name,
        "round": done,
        "training": dict(identity.training),
        "config": _config_hash(identity.training),
        "data": identity.data,
        "graph": identity.graph,
        "requests": list(identity.requests),
        # What is written is the state that carries all committed requests, and a
        # record that was begun after them.
        "contains_pre_request_state": False,
        "ledger": list(ledger),
        "arrays": {name: _described(value) for name, value in arrays.items()},
        "record": record,
        "seconds": progress.seconds,
        "faults": dict(progress.faults),
        **identity.noted,
    }
    manifest["check"] = _text_hash(manifest)
    contents = {
        _STATE: to_safetensors(_STATE, arrays),
        _MANIFEST: (to_json(_MANIFEST, manifest, indent=2) + "\n").encode(),
    }
    place = home / f"round-{done:06d}"
    temporary = home / f"{place.name}.tmp-{os.getpid()}"
    with writing(place, sum(map(len, contents.values()))):
        try:
            os.mkdir(temporary, 0o700)
            die_if_asked("checkpoint", done, "create")
            for name, content in contents.items():
                _write_file(temporary / name, content, done)
            sync_folder(temporary)
            die_if_asked("checkpoint", done, "fsync")
            if place.is_dir():  # of a state that a request has replaced since
                os.rename(place, home / f"{place.name}.tmp-old")
            os.rename(temporary, place)
            die_if_asked("checkpoint", done, "rename")
            sync_folder(home)
            die_if_asked("checkpoint", done, "parent")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    clear_leftovers(folder)
    return place


def _write_file(path: Path, content: bytes, done: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        die_if_asked("checkpoint", done, "write")
        os.fsync(file.fileno())


def _keep_record_states(folder: RunFolder, progress: Progress) -> dict[str, str]:
    """Write the record's states that are not on disk yet; return the hashes of all."""
    if progress.recorded is None:
        return {}
    found = {}
    for t, params in sorted(progress.recorded.checkpoints.items()):
        rel = ROUND.format(t)
        digest = _hash(params)
        if _hash_on_disk(folder, rel) != digest:
            folder.write_tensors(rel, {"params": params})
        found[rel] = digest
    return found


def _hash_on_disk(folder: RunFolder, rel: str) -> str | None:
    if not folder.path(rel).is_file():
        return None
    try:
        return _hash(folder.read_tensors(rel)["params"])
    except (StoreCorruptError, KeyError):
        return None


# --- reading -----------------------------------------------------------------------


def _candidates(folder: RunFolder) -> list[tuple[int, Path]]:
    """Return round and place of what has a checkpoint's name, newest first."""
    home = folder.path(CHECKPOINTS)
    found = [
        (int(name[1]), folder.path(f"{CHECKPOINTS}/{place.name}"))
        for place in (home.iterdir() if home.is_dir() else ())
        if (name := _NAME.fullmatch(place.name))
    ]
    return sorted(found, reverse=True)


def _earlier_failures(folder: RunFolder) -> list[str]:
    home = folder.path(CHECKPOINTS)
    places = sorted(home.glob("*.bad*")) if home.is_dir() else []
    return [f"{place.name}: set aside earlier" for place in places]


def _set_aside(place: Path, error: Exception) -> None:
    bad = place.with_name(f"{place.name}.bad")
    number = 1
    while bad.exists():
        number += 1
        bad = place.with_name(f"{place.name}.bad-{number}")
    with writing(bad):
        os.rename(place, bad)
        sync_folder(place.parent)
    _log.warning("%s does not verify and is now %s: %s", place, bad.name, error)


def _read(
    folder: RunFolder, place: Path, identity: Identity
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a checkpoint's manifest and arrays, all verified.

    Raises:
        StoreCorruptError: If a file is missing or damaged, or belongs elsewhere.
        ConfigMismatchError: If it was written under other settings.
        DataMismatchError: If it was trained on other data.
    """
    rel = f"{CHECKPOINTS}/{place.name}"
    with _as_corrupt(place):
        known = folder.read_json(f"{rel}/{_MANIFEST}")
        if known["format"] != FORMAT:
            raise StoreCorruptError(f"format must be {FORMAT}, got {known['format']}")
        if known.pop("check", None) != _text_hash(known):
            raise StoreCorruptError(f"{_MANIFEST} does not match its hash")
        if f"round-{known['round']:06d}" != place.name:
            raise StoreCorruptError(f"round must be as named, got {known['round']}")
        if known["graph"] != identity.graph:
            raise StoreCorruptError("the network must be the run's, got another one")
        requests = tuple(known["requests"])
        if requests != identity.requests[: len(requests)]:
            raise StoreCorruptError("the requests it carries are not the run's")
        described = known["arrays"]
        arrays = folder.read_tensors(
            f"{rel}/{_STATE}",
            expected={
                name: (entry["dtype"], tuple(entry["shape"]))
                for name, entry in described.items()
            },
        )
        for name, value in arrays.items():
            if _described(value) != described[name]:
                raise StoreCorruptError(f"{name} in {_STATE} does not match its hash")
        training, data = known["training"], known["data"]
        if not isinstance(training, dict) or not isinstance(data, str):
            raise StoreCorruptError("training must be a table and data a hash")
    check_same_training(identity.training, training)
    if requests == identity.requests and data != identity.data:
        raise DataMismatchError(
            f"{folder.root}: data hash {identity.data[:16]}... differs from checkpoint "
            f"{data[:16]}...; give the data that the run was trained on"
        )
    return known, arrays


def _record_states(folder: RunFolder, known: Mapping[str, Any]) -> dict[int, Tensor]:
    """Return the record's states that a checkpoint lists.

    Raises:
        StoreCorruptError: If one is missing or was changed.
    """
    states = {}
    with _as_corrupt(folder.path("record")):
        for rel, digest in known["record"].items():
            params = folder.read_tensors(rel)["params"]
            if _hash(params) != digest:
                raise StoreCorruptError(f"{rel} does not match its hash")
            states[int(Path(rel).stem.removeprefix("round-"))] = params
    return states


@contextmanager
def _as_corrupt(place: Path) -> Iterator[None]:
    """Say of what is missing or malformed that the checkpoint is damaged."""
    try:
        yield
    except UnsafeFormatError:
        raise
    except (
        FileNotFoundError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as bad:
        raise StoreCorruptError(
            f"{place}: {type(bad).__name__} {_validate.clean(str(bad))}"
        ) from bad
    except InputFileError as error:
        if not isinstance(error.__cause__, FileNotFoundError) and error.__cause__:
            raise
        raise StoreCorruptError(str(error)) from error


def _described(value: Array) -> dict[str, Any]:
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "sha256": _hash(value),
    }


def _hash(value: Array) -> str:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    array = np.ascontiguousarray(array)
    return sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _config_hash(training: Mapping[str, Any]) -> str:
    return _text_hash({k: value for k, value in training.items() if k != "rounds"})


def _text_hash(value: Mapping[str, Any]) -> str:
    return sha256(to_json(_MANIFEST, value).encode()).hexdigest()


def _plain(values: Mapping[str, Any]) -> Any:
    """Return values as they are after JSON: tuples are lists."""
    return from_json(to_json("training", values))


def _differences(here: Any, there: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in sorted(here.keys() | there.keys()):
            yield from _differences(here.get(key), there.get(key), f"{path}.{key}")
    elif here != there:
        yield path, here, there
