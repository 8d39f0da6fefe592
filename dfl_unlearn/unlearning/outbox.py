"""The releases of one attempt, noted in its folder before they are sent."""

from contextlib import nullcontext

from torch import Tensor

from dfl_unlearn.accounting.entries import LedgerEntry
from dfl_unlearn.accounting.outbox import fingerprint
from dfl_unlearn.errors import ReplayDivergedError, StoreCorruptError
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.lines import LineFile

RELEASES = "releases.jsonl"
RELEASED = "released-*.safetensors"


class FolderOutbox:
    """Keeps releases in an attempt's folder, readable by the owner only.

    ``releases.jsonl`` has the SHA-256 of each; a value with secure noise, which cannot
    be drawn again, lies beside it in ``released-<n>.safetensors``. Both are durable
    before the value is given back, and so before it is sent.
    """

    def __init__(self, folder: RunFolder, rel: str, *, read_only: bool = False) -> None:
        """Open the notes of an attempt.

        Args:
            folder: The run folder, held by the caller unless ``read_only``.
            rel: The attempt's place in it.
            read_only: Note nothing new; compare with what was noted.
        """
        self._folder, self._rel, self._read_only = folder, rel, read_only
        place = folder.path(f"{rel}/{RELEASES}")
        self._notes = LineFile(place, nullcontext, private=True)
        self._known = {row["release"]: row for row in self._notes.records()}

    def kept(self, entry: LedgerEntry) -> Tensor | None:
        """Return the noised value that was kept for a release, None where none was.

        Args:
            entry: The release.

        Returns:
            The value as it was first given back.

        Raises:
            StoreCorruptError: If the file does not hold what was noted.
        """
        note = self._known.get(entry.release_id)
        if note is None or note["file"] is None:
            return None
        value = self._folder.read_tensors(f"{self._rel}/{note['file']}")["value"]
        if fingerprint(value) != note["sha256"]:
            raise StoreCorruptError(
                f"{self._folder.path(self._rel)}/{note['file']}: must be the value "
                f"released as {entry.release_id}, got another; the file was changed"
            )
        return value

    def keep(self, entry: LedgerEntry, value: Tensor) -> None:
        """Note a noised value; durable when this returns.

        Args:
            entry: The release.
            value: What is about to be sent.

        Raises:
            ReplayDivergedError: If other bytes were noted for this release before.
        """
        digest, note = fingerprint(value), self._known.get(entry.release_id)
        if note is not None:
            if note["sha256"] != digest:
                raise ReplayDivergedError(
                    f"{self._folder.path(self._rel)}: release {entry.release_id} must "
                    f"have the bytes {note['sha256'][:16]}... that were noted before, "
                    f"got {digest[:16]}...; nothing was sent: use the versions that "
                    "began it, or ask again under another request_id"
                )
            return
        if self._read_only:
            return
        file = None
        if entry.noise_mode == "secure":
            file = RELEASED.replace("*", str(len(self._known)))
            self._folder.write_tensors(f"{self._rel}/{file}", {"value": value})
        row = {"release": entry.release_id, "sha256": digest, "file": file}
        self._notes.append(row, durable=True)
        self._known[entry.release_id] = row
