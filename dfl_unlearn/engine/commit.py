"""Committing a forget request to a run folder: an intent, carried out to the end.

The manifest first gets the coming one under ``next``, in one step: before it, the run
is the one before; from it on, whoever opens the folder carries the commit out to its
end. Charge, state and certificate of the attempt are copied, the copy is read again,
and only then everything that was made with the forgotten data is removed. Every step
may be done twice. Rules: robustness.md §4.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfl_unlearn.accounting.certificate import KEPT_STATE, Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.engine.personal import tensors_digest
from dfl_unlearn.engine.run import state_digest
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import (
    CorruptStateError,
    InputFileError,
    RunLockedError,
    StoreCorruptError,
    StoreWriteError,
)
from dfl_unlearn.store.files import sync_folder, writing
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood

_log = logging.getLogger(__name__)

FINAL = "state/final.safetensors"
PERSONAL = "state/personal.safetensors"
LEDGER = "ledger.jsonl"
NEXT = "next"
KEPT = "pre-request state kept:"
_PLAN = "commit"
_MANIFEST = "manifest.json"


def begin_commit(
    folder: RunFolder,
    manifest: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    at: str,
    detail: str,
    keep_checkpoints: bool,
) -> None:
    """Write down that an attempt becomes the run's state; ``finish_commit`` does it.

    Args:
        folder: The run folder, held.
        manifest: The manifest in force.
        after: The one to come.
        at: The attempt's place, complete.
        detail: What the results will say of it.
        keep_checkpoints: Leave states from before the request on disk.
    """
    pre_request_files(folder)  # refuses links before anything is changed
    plan = {"at": at, "keep": keep_checkpoints, "detail": detail}
    folder.write_json(_MANIFEST, {**manifest, NEXT: {**after, _PLAN: plan}})


def finish_commit(folder: RunFolder) -> bool:
    """Carry out a commit that was begun; nothing where none was.

    Args:
        folder: The run folder, held.

    Returns:
        Whether there was one.

    Raises:
        StoreCorruptError: If the manifest is damaged, or the attempt's state is not
            what is to be committed; nothing was removed then.
    """
    with understood(f"{folder.root}/{_MANIFEST}"):
        coming = folder.read_json(_MANIFEST).get(NEXT)
        if not coming or _PLAN not in coming:
            return False
        _finish(folder, coming)
    return True


def _finish(folder: RunFolder, coming: Mapping[str, Any]) -> None:
    """Carry out what a manifest says under ``next``; see ``finish_commit``.

    Raises:
        StoreCorruptError: If the attempt's state is not what is to be committed.
    """
    after = {key: value for key, value in coming.items() if key != _PLAN}
    at, keep, detail = (coming[_PLAN][key] for key in ("at", "keep", "detail"))
    # The charge first: a crash from here on never refunds it.
    _copy_ledger(folder, at, after)
    if _digest(folder, FINAL) != after["state"]:
        source = f"{at}/state.safetensors"
        if _digest(folder, source) != after["state"]:
            raise StoreCorruptError(
                f"{folder.root}/{source}: must be the state that is being committed, "
                f"with the digest {after['state'][:16]}..., got another or none; "
                "restore the file from a copy"
            )
        folder.write_tensors(FINAL, folder.read_tensors(source))
        if _digest(folder, FINAL) != after["state"]:
            raise StoreCorruptError(
                f"{folder.root}/{FINAL}: must read as it was written, got other bytes; "
                "the disk is damaged, nothing was removed"
            )
    _copy_personal(folder, f"{at}/personal.safetensors", after.get("personal"))
    folder.write_json("done.json", {"digest": after["state"], "format": 1})
    folder.remove_leftovers()  # may hold states, too
    own = folder.read_json(f"{at}/outcome.json")["reference"]
    before = pre_request_files(folder, kept=[place for place in (at, own) if place])
    _settle(folder, at, len(before) if keep else 0)
    if not keep:
        _remove(folder, before)
        for name in ("state", "personal"):  # the run's own now
            _remove(folder, [folder.path(f"{at}/{name}.safetensors")])
    event = {
        "type": "event",
        "round": after["round"],
        "what": "committed",
        "detail": detail,
    }
    if event not in folder.records():
        folder.append(event)
    folder.write_json(_MANIFEST, after)


def settle_commit(folder: RunFolder) -> None:
    """Carry out a commit that was interrupted, unless another process is at it.

    Args:
        folder: A run folder that is about to be read.
    """
    manifest = folder.read_json(_MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get(NEXT), dict):
        return
    try:
        with folder.locked():
            if finish_commit(folder):
                _log.warning(
                    "%s: a commit was interrupted; it is carried out now", folder.root
                )
    except RunLockedError:
        return
    except StoreWriteError as error:
        _log.warning("a commit was interrupted and cannot go on now: %s", error)


def pre_request_files(
    folder: RunFolder,
    *,
    final: bool = False,
    attempts: bool = True,
    kept: list[str] | None = None,
) -> list[Path]:
    """Return files that hold states made with data that is, or will be, forgotten.

    Args:
        folder: The run folder.
        final: Also the run's own state.
        attempts: Also states and releases of attempts, and of retrained references.
        kept: Places of attempts and references that stay.

    Returns:
        Checkpoints, the record, influence, and what was asked for. A symbolic link on
        the way is refused: what it points to is not the run's to remove.
    """
    patterns = ["ckpt/**/*", "record/*", "influence/*"]
    if final:
        patterns += [FINAL, PERSONAL]
    if attempts:
        for name in ("state", "personal", "released-*"):
            patterns.append(f"outcomes/*/{name}.safetensors")
        patterns.append("reference/*/state.safetensors")
    stay = {folder.path(place) for place in kept or ()}
    found = {file for one in patterns for file in folder.root.glob(one)}
    files = (folder.path(f.relative_to(folder.root).as_posix()) for f in found)
    return sorted(f for f in files if f.is_file() and f.parent not in stay)


def _copy_ledger(folder: RunFolder, at: str, after: Mapping[str, Any]) -> None:
    seq, digest = after["ledger"]
    place = folder.path(f"{at}/{LEDGER}")
    PrivacyLedger.load(place, expected_head=(int(seq), str(digest)))
    charged = place.read_bytes()
    if folder.read_bytes(LEDGER) != charged:
        folder.write_bytes(LEDGER, charged, private=True)


def _copy_personal(folder: RunFolder, source: str, digest: str | None) -> None:
    """Make the attempt's personal state the run's; remove the run's where it has none.

    Raises:
        StoreCorruptError: If the attempt's is not what is to be committed.
    """
    if digest is None:
        _unlink(folder, [folder.path(PERSONAL)])
        return
    for rel in (source, PERSONAL):
        if not folder.path(rel).is_file():
            continue
        tensors = folder.read_tensors(rel)
        if tensors_digest(tensors) == digest:
            if rel != PERSONAL:
                folder.write_tensors(PERSONAL, tensors)
            return
    raise StoreCorruptError(
        f"{folder.root}/{source}: must be the personal state that is being committed, "
        f"with the digest {digest[:16]}..., got another or none; restore the file from "
        "a copy"
    )


def _digest(folder: RunFolder, rel: str) -> str | None:
    """Return the digest of a stored state, None where none can be read."""
    try:
        return state_digest(PeerState(params=folder.read_tensors(rel)["params"]))
    except (InputFileError, CorruptStateError, KeyError):
        return None


def _settle(folder: RunFolder, at: str, files: int) -> None:
    """Write down that the outcome is no trial any more, and what state was kept."""
    rel = f"{at}/certificate.json"
    if not folder.path(rel).is_file():
        return
    known = Certificate.from_json(folder.read_text(rel))
    lines = [line for line in known.exposure if not line.startswith(KEPT)]
    if files:
        lines.append(f"{KEPT} {files} files")
    settled = replace(known, exposure=tuple(lines))
    if files and known.status in ("exact", "certified", "certified_conditional"):
        reasons = [reason for reason in known.reasons if reason != KEPT_STATE]
        settled = replace(
            settled,
            status="certified_conditional",
            reasons=(*reasons, KEPT_STATE),
        )
    folder.write_text(rel, settled.to_json())


def _remove(folder: RunFolder, files: list[Path]) -> None:
    """Remove files for good, and the checkpoints' folders with them."""
    checkpoints = folder.path("ckpt")
    if files and checkpoints.is_dir():
        with writing(checkpoints):
            shutil.rmtree(checkpoints)
    _unlink(folder, files)


def _unlink(folder: RunFolder, files: list[Path]) -> None:
    """Remove files for good."""
    for file in files:
        with writing(file):
            file.unlink(missing_ok=True)
    for parent in {file.parent for file in files} | {folder.root}:
        if parent.is_dir():
            with writing(parent):
                sync_folder(parent)
