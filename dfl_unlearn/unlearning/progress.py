"""How far a request has come in a network with faults, and who still lacks it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dfl_unlearn._stats import round_up
from dfl_unlearn.engine.transport import Transport

Residual = tuple[float | None, str]
"""Norm of an influence, or None where it is not known; and how it was got."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """States of a request: received, computed, charged, released, acknowledged.

    Attributes:
        states: State -> network round in which it was reached.
        applied: Network round in which each peer took the corrected model, -1 if it
            has not, N of them.
        left: Peer -> network round in which it left for good.
        end: Network round after the protocol.
        sends: Sends of messages, copies included.
        duplicates: Copies that arrived after the first one, and were dropped.
        stale: Models from before the request that somebody tried to send after its
            release; the transport refuses them.
        generations: Tokens of the request, replaced ones included; 0 without a token.
        dropped: Older tokens that came up again and were dropped.
    """

    states: Mapping[str, int] = field(default_factory=dict)
    applied: tuple[int, ...]
    left: Mapping[int, int] = field(default_factory=dict)
    end: int
    sends: int = 0
    duplicates: int = 0
    stale: int = 0
    generations: int = 0
    dropped: int = 0

    @property
    def missing(self) -> tuple[int, ...]:
        """Peers that have not taken the corrected model."""
        return tuple(i for i, t in enumerate(self.applied) if t < 0)

    def left_before(self, state: str) -> tuple[int, ...]:
        """Return the peers that had left when a state was reached."""
        reached = self.states.get(state, self.end)
        return tuple(sorted(i for i, t in self.left.items() if t <= reached))

    def text(self) -> str:
        """Return the states with their rounds, one line."""
        done = len(self.applied) - len(self.missing)
        parts = [f"{state} (round {t})" for state, t in self.states.items()]
        parts.append(f"acknowledged ({done}/{len(self.applied)})")
        return " -> ".join(parts)


def incomplete_text(
    pending: tuple[int, ...],
    residual: Mapping[int, Residual],
    left: Mapping[int, int],
) -> str:
    """Say who still holds what.

    Args:
        pending: Peers that hold residual influence.
        residual: Its norm, by peer.
        left: Peer -> round in which it left.

    Returns:
        One sentence, without a full stop.
    """
    here = [i for i in pending if i not in left]
    parts = []
    if here:
        holds = "hold" if len(here) > 1 else "holds"
        norms = ", ".join(_norm(i, residual[i]) for i in here)
        parts.append(f"{_named(here)} still {holds} residual influence ({norms})")
    parts += [
        f"peer {i} left at round {left[i]} with residual influence "
        f"{_norm(i, residual[i])}"
        for i in pending
        if i in left
    ]
    return (
        f"incomplete: {'; '.join(parts)}; certificate covers observers who do not see "
        f"{_named(list(pending))}"
    )


def _norm(peer: int, residual: Residual) -> str:
    value, mode = residual
    if value is None:
        return f"‖S_{peer}‖ not known"
    shown = f"‖S_{peer}‖ ≤ {round_up(value, 3):g}"
    return shown if mode == "exact" else f"{shown} by {mode.replace('_', ' ')}"


def _named(peers: list[int]) -> str:
    return f"peer{'s' if len(peers) > 1 else ''} {', '.join(map(str, peers))}"


def pending_to(
    pending: tuple[int, ...],
    residual: Mapping[int, Residual],
    progress: Progress | None,
) -> dict[str, Any]:
    """Return what ``outcome.json`` keeps of a request in a network with faults.

    Args:
        pending: Peers that hold residual influence.
        residual: Its norm, by peer.
        progress: How far the request came; None keeps nothing.

    Returns:
        JSON values.
    """
    if progress is None:
        return {}
    told = asdict(progress)
    told["left"] = {str(i): t for i, t in progress.left.items()}
    return {
        "pending": list(pending),
        "residual_influence": {str(i): list(found) for i, found in residual.items()},
        "progress": told,
    }


def pending_from(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an outcome that ``pending_to`` kept.

    Args:
        known: What ``outcome.json`` holds.

    Returns:
        ``pending``, ``residual_influence`` and ``progress``, or none of them.
    """
    if "progress" not in known:
        return {}
    told = dict(known["progress"])
    told["left"] = {int(i): t for i, t in told["left"].items()}
    told["applied"] = tuple(told["applied"])
    return {
        "pending": tuple(known["pending"]),
        "residual_influence": {
            int(i): (value, mode)
            for i, (value, mode) in known["residual_influence"].items()
        },
        "progress": Progress(**told),
    }


def progress_of(
    transport: Transport, *, generations: int = 0, dropped: int = 0
) -> Progress | None:
    """Return how far a request has come; None in a network without faults.

    Args:
        transport: What carried its messages.
        generations: Tokens of it.
        dropped: Older tokens that were dropped.

    Returns:
        The progress at the transport's clock.
    """
    from dfl_unlearn.engine.faulty_transport import FaultyTransport

    if not isinstance(transport, FaultyTransport):
        return None
    return Progress(
        states=dict(transport.states),
        applied=tuple(transport.applied.tolist()),
        left=transport.left_since(),
        end=transport.clock,
        sends=transport.sends,
        duplicates=transport.duplicates,
        stale=transport.stale,
        generations=generations,
        dropped=dropped,
    )
