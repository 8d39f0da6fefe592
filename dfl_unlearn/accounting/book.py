"""Entries in memory: found by owner, release and noise stream, and kept consistent."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from dfl_unlearn.accounting.entries import START, LedgerEntry, decode
from dfl_unlearn.accounting.mechanisms import Mechanism, SampledGaussianMechanism
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    InvalidArgumentError,
    LedgerCorruptError,
    LedgerFormatError,
)


class EntryBook:
    """All entries of a ledger, oldest first, each in its present state.

    Attributes:
        entries: The entries.
    """

    def __init__(self) -> None:
        """Open an empty book."""
        self.entries: list[LedgerEntry] = []
        self._of_owner: dict[str, list[int]] = {}
        self._of_release: dict[str, list[int]] = {}
        self._streams: dict[str, str] = {}  # noise stream -> release

    @property
    def owners(self) -> tuple[str, ...]:
        """Everyone who was charged."""
        return tuple(self._of_owner)

    def owned(self, owner: str) -> list[LedgerEntry]:
        """Return one owner's entries."""
        return [self.entries[at] for at in self._of_owner.get(owner, ())]

    def of_release(self, release_id: str | None) -> list[LedgerEntry]:
        """Return the entries of one release; none without a name."""
        return [self.entries[at] for at in self._of_release.get(release_id or "", ())]

    def draws(self, key: str) -> int:
        """Return the first number that a noise key has not been used with."""
        draw = 0
        while f"{key}/{draw}" in self._streams:
            draw += 1
        return draw

    def admit(self, entry: LedgerEntry) -> int:
        """Take an entry in.

        Args:
            entry: As checked by ``check``.

        Returns:
            Its place.
        """
        at = len(self.entries)
        self.entries.append(entry)
        self._of_owner.setdefault(entry.owner, []).append(at)
        self._of_release.setdefault(entry.release_id, []).append(at)
        self._streams[entry.stream] = entry.release_id
        return at

    def check(self, new: LedgerEntry) -> None:
        """Check a new charge against the ones before it: streams, releases, relation.

        Args:
            new: The charge.

        Raises:
            InvalidArgumentError: If a noise stream would serve two releases, or a
                release have two streams or mechanisms.
            AdjacencyMismatchError: If the owner was charged under another relation.
        """
        shared = self._streams.get(new.stream, new.release_id)
        if shared != new.release_id:
            raise InvalidArgumentError(
                f"noise stream: must serve one release, got {new.stream} for "
                f"{new.release_id} after {shared}; leave release_id out to draw fresh "
                "noise"
            )
        for old in self.of_release(new.release_id):
            if (
                old.stream != new.stream
                or _noise_of(old.mechanism) != _noise_of(new.mechanism)
                or (old.owner == new.owner and old.mechanism != new.mechanism)
            ):
                raise InvalidArgumentError(other_noise(old, new.mechanism))
        first = next(iter(self.owned(new.owner)), new).mechanism.adjacency
        if first != new.mechanism.adjacency:
            raise AdjacencyMismatchError(
                f"cannot charge {new.owner} a {new.mechanism.adjacency!r} release "
                f"after a {first!r} one; derive both sensitivities for the same "
                "relation first"
            )


def replay(lines: Sequence[bytes], name: str) -> EntryBook:
    """Return what a chain of lines says.

    Args:
        lines: Without their newlines.
        name: Of the file, for messages.

    Returns:
        A book of all entries.

    Raises:
        LedgerCorruptError: If a line was changed, or is not the next of the chain.
        LedgerFormatError: If intact lines are not of format 1 or contradict each other.
    """
    book = EntryBook()
    places: dict[tuple[str, str, tuple[str, ...]], int] = {}
    prev = START
    for seq, line in enumerate(lines):
        place = f"{name} line {seq + 1}"
        entry = decode(line, seq, prev, place)
        prev = sha256(line).hexdigest()
        key = (entry.release_id, entry.owner, entry.observers)
        if entry.state == "reserved":
            try:
                book.check(entry)
            except (InvalidArgumentError, AdjacencyMismatchError) as error:
                raise LedgerFormatError(f"{place}: {error}") from error
            places[key] = book.admit(entry)
            continue
        at = places.pop(key, -1)
        settled = replace(entry, seq=book.entries[at].seq) if at >= 0 else None
        if settled is None or book.entries[at] != replace(
            settled,
            state="reserved",
            noise_drawn=True,
            note="",
            status=book.entries[at].status,
        ):
            raise LedgerFormatError(
                f"{place}: must settle an earlier reservation, got "
                f"{entry.state} of {entry.release_id} without one"
            )
        book.entries[at] = settled
    return book


def check_head(lines: Sequence[bytes], head: tuple[int, str], name: str) -> None:
    """Check that a chain holds the line that was its last at an earlier time.

    Args:
        lines: The chain.
        head: Number and SHA-256 of that line, as ``PrivacyLedger.head`` gave them.
        name: Of the file, for messages.

    Raises:
        LedgerCorruptError: If it does not.
    """
    seq, digest = head
    if (seq, digest) == (-1, START):
        return
    found = sha256(lines[seq]).hexdigest() if 0 <= seq < len(lines) else "none"
    if found != digest:
        raise LedgerCorruptError(
            f"{name}: line {seq + 1} must have SHA-256 {str(digest)[:8]}… as was "
            f"noted elsewhere, got {found[:8]} among {len(lines)} lines; charges were "
            "removed or replaced, restore the file from a copy"
        )


def _noise_of(mechanism: Mechanism) -> object:
    """Return what owners with different shifts have in common in one release."""
    if isinstance(mechanism, SampledGaussianMechanism):
        return mechanism
    return type(mechanism), mechanism.noise_std


def other_noise(old: LedgerEntry, mechanism: Mechanism) -> str:
    """Return the message for a known release that comes with another mechanism."""
    return (
        f"mechanism: must be the one release {old.release_id} was charged with, "
        f"{old.mechanism}, got {mechanism}; leave release_id out if the noise is fresh"
    )
