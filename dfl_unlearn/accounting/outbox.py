"""What was released is noted before it is sent, so that a crash never sends another.

An attempt that was interrupted is carried out again from the same keys. Simulated
noise comes out the same, and the note of its SHA-256 proves it; noise of the operating
system does not come again, so the noised value itself is kept and sent again.
"""

from hashlib import sha256
from typing import Protocol

from torch import Tensor

from dfl_unlearn.accounting.entries import LedgerEntry


class Outbox(Protocol):
    """Keeps releases durably, and knows those of an interrupted attempt."""

    def kept(self, entry: LedgerEntry) -> Tensor | None:
        """Return the noised value that was kept for a release, None where none was."""
        ...

    def keep(self, entry: LedgerEntry, value: Tensor) -> None:
        """Note a noised value; durable when this returns.

        Args:
            entry: The release.
            value: What is about to be sent; kept itself where its noise is secure.

        Raises:
            ReplayDivergedError: If other bytes were noted for this release before.
        """
        ...


def fingerprint(value: Tensor) -> str:
    """Return the SHA-256 of a value's little-endian bytes, type and shape included."""
    array = value.detach().cpu().contiguous().numpy()
    digest = sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
