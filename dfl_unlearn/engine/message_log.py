"""The log of a protocol's messages: who sent how much to whom, and in which step."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message between two neighbours.

    Attributes:
        step: Communication step after the request, from 0.
        source: Sending peer.
        target: Receiving peer.
        kind: What it carries, e.g. ``"correction"``.
        nbytes: Payload and header, in bytes.
        round: Network round in which it was sent; None in a network without faults.
        arrived: Round in which it came to its target, -1 if it never did; likewise.
        seq: Its number at its sender, the same for every copy of it; likewise.
    """

    step: int
    source: int
    target: int
    kind: str
    nbytes: int
    round: int | None = None
    arrived: int | None = None
    seq: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage:
    """When the messages of one step were sent in a network with faults, and arrived.

    Attributes:
        round: Network round in which they were sent.
        arrived: Round in which each came to its target, -1 if never, shape ``(M,)``.
        seqs: Number of each at its sender, equal for copies, shape ``(M,)``.
    """

    round: int
    arrived: NDArray[np.int64]
    seqs: NDArray[np.int64]


class MessageLog:
    """All messages of one attempt, in order; grows by whole communication steps.

    Attributes:
        guarded: Whether a ``Guard`` held messages back until a noised release.
    """

    def __init__(self, *, guarded: bool = False) -> None:
        """Start an empty log.

        Args:
            guarded: Whether a guard watched all of it from the start.
        """
        self.guarded = guarded
        self._steps: list[tuple[str, NDArray[np.int64], NDArray[np.int64], int]] = []
        self._passages: dict[int, Passage] = {}
        self._works: list[tuple[int, NDArray[np.int64], NDArray[np.float64]]] = []

    def append(
        self,
        kind: str,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        nbytes: int,
        passage: Passage | None = None,
    ) -> None:
        """Add one communication step: equal messages along the given edges.

        Args:
            kind: What the messages carry.
            sources: Sending peers, shape ``(M,)``.
            targets: Receiving peers, shape ``(M,)``.
            nbytes: Size of each message in bytes.
            passage: When they were sent and came, in a network with faults.
        """
        if passage is not None:
            self._passages[len(self._steps)] = passage
        self._steps.append((kind, sources, targets, nbytes))

    def work(self, peers: NDArray[np.int64], samples: NDArray[np.float64]) -> None:
        """Note what peers compute before the next communication step.

        The simulated clock reads it; it is not kept on disk.

        Args:
            peers: Who, each once, shape ``(k,)``.
            samples: Per-sample gradients of each, a Hessian-vector product counted
                twice, shape ``(k,)``.
        """
        self._works.append((len(self._steps), peers, samples))

    @property
    def works(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """What was computed: peers and their per-sample gradients, in order."""
        return [(peers, samples) for _, peers, samples in self._works]

    def events(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over work (peers, samples) and steps (sources, targets, bytes)."""
        works = deque(self._works)
        for step, (_, sources, targets, nbytes) in enumerate(self._steps):
            while works and works[0][0] <= step:
                yield works.popleft()[1:]
            passage = self._passages.get(step)
            # nobody waits for a message that never arrives
            came = slice(None) if passage is None else passage.arrived >= 0
            yield sources[came], targets[came], nbytes
        for _, peers, samples in works:
            yield peers, samples

    def __len__(self) -> int:
        """Number of messages."""
        return sum(len(sources) for _, sources, _, _ in self._steps)

    def __iter__(self) -> Iterator[Message]:
        """Iterate over all messages in order."""
        for step, (kind, sources, targets, nbytes) in enumerate(self._steps):
            passage = self._passages.get(step)
            for m, (source, target) in enumerate(zip(sources, targets, strict=True)):
                yield Message(
                    step=step,
                    source=int(source),
                    target=int(target),
                    kind=kind,
                    nbytes=nbytes,
                    round=None if passage is None else passage.round,
                    arrived=None if passage is None else int(passage.arrived[m]),
                    seq=None if passage is None else int(passage.seqs[m]),
                )

    @property
    def steps(self) -> int:
        """Number of communication steps."""
        return len(self._steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all messages together."""
        return sum(len(sources) * nbytes for _, sources, _, nbytes in self._steps)

    def view(self, observer: int) -> list[Message]:
        """Return the messages that a peer sent or received."""
        return [m for m in self if observer in (m.source, m.target)]

    def received(self, n: int) -> NDArray[np.int64]:
        """Return how many messages each of ``n`` peers received, shape ``(n,)``.

        Messages that never arrived do not count, copies do.
        """
        counts = np.zeros(n, dtype=np.int64)
        for step, (_, _, targets, _) in enumerate(self._steps):
            passage = self._passages.get(step)
            came = slice(None) if passage is None else passage.arrived >= 0
            np.add.at(counts, targets[came], 1)
        return counts

    def max_edge_bytes(self) -> int:
        """Return the most bytes that any directed edge carried."""
        loads: dict[tuple[int, int], int] = {}
        for _, sources, targets, nbytes in self._steps:
            for edge in zip(sources.tolist(), targets.tolist(), strict=True):
                loads[edge] = loads.get(edge, 0) + nbytes
        return max(loads.values(), default=0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-able row per communication step; see ``append_row``."""
        return [
            {
                "step": step,
                "kind": kind,
                "nbytes": nbytes,
                "sources": sources.tolist(),
                "targets": targets.tolist(),
                **self._passage_row(step),
            }
            for step, (kind, sources, targets, nbytes) in enumerate(self._steps)
        ]

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a communication step that ``rows`` gave."""
        sources = np.array(row["sources"], dtype=np.int64)
        targets = np.array(row["targets"], dtype=np.int64)
        passage = None
        if "round" in row:
            passage = Passage(
                round=row["round"],
                arrived=np.array(row["arrived"], dtype=np.int64),
                seqs=np.array(row["seqs"], dtype=np.int64),
            )
        self.append(row["kind"], sources, targets, row["nbytes"], passage)

    def _passage_row(self, step: int) -> dict[str, Any]:
        passage = self._passages.get(step)
        if passage is None:
            return {}
        return {
            "round": passage.round,
            "arrived": passage.arrived.tolist(),
            "seqs": passage.seqs.tolist(),
        }
