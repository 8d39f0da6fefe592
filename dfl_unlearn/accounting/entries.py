"""One line of the ledger: who saw which release at what cost, and its exact text.

A ledger is a text file with one JSON object per line. Each line names its place
(``seq``), the SHA-256 of the line before it (``prev``) and ends with the SHA-256 of
everything before that field (``check``), so a changed byte is found on the line where
it is. The text of an entry is unique: reading checks that writing it again gives the
same bytes, which refuses unknown keys, duplicates and other spellings at once.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, RdpCurve, curve_of
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    DflUnlearnError,
    InvalidArgumentError,
    LedgerCorruptError,
    LedgerFormatError,
)

Observer: TypeAlias = str
"""``"peer:<i>"``, a colluding set such as ``"{peer:0,peer:3}"``, or ``"public"``."""

EntryState = Literal["reserved", "committed", "aborted"]
Scope = Literal["release", "joint", "view", "view_joint", "transcript"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
NoiseMode = Literal["simulated", "secure"]
NoisePurpose = Literal["unlearn-noise", "train-noise"]
NOISE_PURPOSES: tuple[NoisePurpose, ...] = get_args(NoisePurpose)
EVERYONE = "*"
"""Owner of what is private for every single record, whoever has it."""
START = "0" * 64

_PEER = re.compile(r"peer:(0|[1-9][0-9]{0,8})")
_SET = re.compile(r"\{(peer:[0-9]+(?:,peer:[0-9]+)+)\}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")
_CHECK = re.compile(rb',"check":"([0-9a-f]{64})"\}')
_CHECK_LENGTH = len(b',"check":"') + 64 + len(b'"}')


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One release, charged to one owner for the observers that receive it.

    Attributes:
        seq: Number of the line that reserved it, from 0.
        state: ``reserved`` before the noise is drawn; ``committed`` after the last
            message left; ``aborted`` if provably nothing left. All three count as
            spent, but an aborted entry whose noise was never drawn.
        round: Training round of the release.
        request_id: The forget request it serves.
        release_id: The released bytes; seen twice, they are charged once.
        owner: Whose forgetting is claimed, ``"peer:<i>"``, or ``"*"`` for a claim on
            any one record, under ``add_remove``.
        observers: Who receives or can derive the release.
        scope: What the claim covers: one released model, or all of them together.
        mechanism: What happened; several sampled steps are one entry.
        curve: What it costs.
        noise_owner: The owner in the noise stream's name: the first of several owners
            that share the release; ``"*"`` where every peer has noise of its own.
        noise_purpose: What the noise is for, the first field of its stream.
        draw: Last field of the noise key: earlier releases of the same
            (noise purpose, noise owner, request, round).
        noise_drawn: False only when aborted before any noise existed.
        group_size: Forgotten records, or None if not disclosed.
        status: Status of the certificate that goes with it; ``pending`` while not every
            peer is known to have been corrected.
        assumptions: What the sensitivity rests on.
        note: Why it was aborted, or "".
    """

    seq: int
    state: EntryState = "reserved"
    round: int = 0
    request_id: str
    release_id: str
    owner: str
    observers: tuple[Observer, ...]
    scope: Scope = "joint"
    mechanism: Mechanism
    curve: RdpCurve = field(repr=False)
    noise_owner: str
    noise_purpose: NoisePurpose = "unlearn-noise"
    draw: int = 0
    noise_drawn: bool = True
    group_size: int | None = None
    status: str = ""
    assumptions: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Check every field that text or callers bring in.

        Raises:
            InvalidArgumentError: If an id, scope, state or number is not allowed.
            AdjacencyMismatchError: If the owner is ``"*"`` under another relation than
                ``add_remove``.
        """
        _validate.integer(at_least=0, seq=self.seq, round=self.round, draw=self.draw)
        if self.group_size is not None:
            _validate.integer(at_least=1, group_size=self.group_size)
        _validate.one_of(get_args(EntryState), state=self.state)
        _validate.one_of(SCOPES, scope=self.scope)
        _validate.one_of(NOISE_PURPOSES, noise_purpose=self.noise_purpose)
        _validate.identifier(request_id=self.request_id)
        if not _is(_RELEASE, self.release_id):
            raise InvalidArgumentError(
                "release_id: must match [A-Za-z0-9][A-Za-z0-9._:/-]{0,199}, "
                f"got {_validate.show(self.release_id)}"
            )
        check_owner(owner=self.owner, noise_owner=self.noise_owner)
        adjacency = self.mechanism.adjacency
        if self.owner == EVERYONE and adjacency != "add_remove":
            raise AdjacencyMismatchError(
                "owner: must be 'peer:<i>' under any relation but 'add_remove', got "
                f"'*' with {adjacency!r}; a claim on any one record is about adding or "
                "removing it"
            )
        observers = tuple(self.observers)
        for observer in observers:
            _validate.of_type(str, observers=observer)
            members(observer)
        if not observers or len(set(observers)) != len(observers):
            raise InvalidArgumentError(
                "observers: must be at least one, each named once, "
                f"got {_validate.show(observers)}"
            )
        _validate.of_type(str, status=self.status, note=self.note)
        for text in self.assumptions:
            _validate.of_type(str, assumptions=text)
        if not self.noise_drawn and self.state != "aborted":
            raise InvalidArgumentError(
                "noise_drawn: must be True unless aborted, got False with state "
                f"{self.state!r}"
            )

    @property
    def stream(self) -> str:
        """Name of the noise stream; no two releases share one."""
        return (
            f"{self.noise_purpose}/{self.noise_owner}/{self.request_id}/"
            f"{self.round}/{self.draw}"
        )

    @property
    def noise_mode(self) -> NoiseMode:
        """``secure``: discrete noise from the system's generator; else keyed noise."""
        discrete = isinstance(self.mechanism, DiscreteGaussianMechanism)
        return "secure" if discrete else "simulated"

    def seen_by(self, observer: Observer) -> bool:
        """Tell whether an observer, or a colluding set as a whole, has this release."""
        audience = members(observer)
        return (
            self._public
            or not self._single.isdisjoint(audience)
            or any(group <= audience for group in self._groups)
        )

    @cached_property
    def _public(self) -> bool:
        return "public" in self.observers

    @cached_property
    def _single(self) -> frozenset[int]:
        known = [members(one) for one in self.observers]
        return frozenset().union(*(peers for peers in known if len(peers) == 1))

    @cached_property
    def _groups(self) -> tuple[frozenset[int], ...]:
        known = [members(one) for one in self.observers]
        return tuple(peers for peers in known if len(peers) > 1)


@lru_cache(maxsize=8192)
def members(observer: Observer) -> frozenset[int]:
    """Return the peers an observer id names; none for ``public``.

    Args:
        observer: ``"peer:<i>"``, ``"{peer:<i>,peer:<j>}"`` (ascending) or ``"public"``.

    Returns:
        Peer indices.

    Raises:
        InvalidArgumentError: If the id has another form.
    """
    if observer == "public":
        return frozenset()
    if _is(_PEER, observer):
        return frozenset({int(observer[5:])})
    if _is(_SET, observer):
        peers = [int(name[5:]) for name in observer[1:-1].split(",")]
        if observer == colluding(peers):
            return frozenset(peers)
    raise InvalidArgumentError(
        "observer: must be 'peer:<i>', '{peer:<i>,peer:<j>}' with ascending indices, "
        f"or 'public', got {_validate.show(observer)}"
    )


def colluding(peers: Iterable[int]) -> Observer:
    """Return the id of peers that put together what they saw.

    Args:
        peers: Their indices, at least one.

    Returns:
        The observer id; a single peer's own id if there is only one.
    """
    names = [f"peer:{peer}" for peer in sorted(set(peers))]
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"


def check_owner(**named: Any) -> None:
    """Check that each named value is an owner id, ``"peer:<i>"`` or ``"*"``.

    Args:
        **named: The values under their argument names.

    Raises:
        InvalidArgumentError: If one has another form.
    """
    for name, value in named.items():
        if value != EVERYONE and not _is(_PEER, value):
            raise InvalidArgumentError(
                f"{name}: must be 'peer:<i>' or '*', got {_validate.show(value)}"
            )


def encode(entry: LedgerEntry, seq: int, prev: str) -> bytes:
    """Return the line of an entry, without the newline.

    Args:
        entry: What is written.
        seq: Number of this line; a commit is a line of its own.
        prev: SHA-256 of the line before, ``START`` for the first.

    Returns:
        One JSON object, ASCII.
    """
    orders = entry.curve.orders
    mechanism = entry.mechanism
    grid = mechanism.grid if isinstance(mechanism, DiscreteGaussianMechanism) else None
    record = {
        "v": 1,
        "seq": seq,
        "prev": prev,
        "state": entry.state,
        "round": entry.round,
        "request": entry.request_id,
        "release": entry.release_id,
        "owner": entry.owner,
        "observers": list(entry.observers),
        "scope": entry.scope,
        "adjacency": mechanism.adjacency,
        "group_size": entry.group_size,
        "mechanism": _mechanism_to(mechanism),
        "curve": {
            "orders": "default-1" if orders == DEFAULT_ORDERS else list(orders),
            "hex": [_to_hex(value) for value in entry.curve.values.tolist()],
        },
        "noise": {
            "mode": entry.noise_mode,
            "generator": "philox-sha256/1" if grid is None else "os-urandom/1",
            "stream": entry.stream,
            "dtype": "float64",
            "grid": grid,
            "drawn": entry.noise_drawn,
        },
        "status": entry.status,
        "assumptions": list(entry.assumptions),
        "note": entry.note,
    }
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return body[:-1] + f',"check":"{sha256(body).hexdigest()}"}}'.encode()


def decode(line: bytes, seq: int, prev: str, place: str) -> LedgerEntry:
    """Return the entry of a line after checking every byte of it.

    Args:
        line: Without the newline.
        seq: The number it must have.
        prev: SHA-256 that it must name as the line before it.
        place: File and line for messages, e.g. ``"ledger.jsonl line 13"``.

    Returns:
        The entry; its ``seq`` is this line's.

    Raises:
        LedgerCorruptError: If the line was changed, or is not the next of the chain.
        LedgerFormatError: If an intact line holds something the format does not allow.
    """
    found = _CHECK.fullmatch(line[-_CHECK_LENGTH:])
    body = line[:-_CHECK_LENGTH] + b"}"
    expected = sha256(body).hexdigest()
    if found is None or found[1].decode() != expected:
        raise LedgerCorruptError(
            f"{place}: must end with its own checksum {_short(expected)}, got "
            f"{_short(found[1].decode()) if found else 'none'}; the line was changed, "
            "restore the file from a copy"
        )
    try:
        record = json.loads(body, parse_constant=_refuse_constant)
        if record["seq"] != seq or record["prev"] != prev:
            raise LedgerCorruptError(
                f"{place}: chain broken (expected seq {seq} and prev {_short(prev)}, "
                f"found seq {_validate.show(record['seq'])} and prev "
                f"{_validate.show(_short(record['prev']))}); lines are missing, added "
                "or out of order, restore the file from a copy"
            )
        return _entry_of(record, line)
    except LedgerCorruptError:
        raise
    except (
        DflUnlearnError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise LedgerFormatError(
            f"{place}: not an entry of format 1: {_validate.clean(str(error))[:200]}"
        ) from error


def looks_complete(tail: bytes) -> bool:
    """Tell whether text without a newline begins with a whole line and goes on.

    A write that was cut short leaves a beginning of a line, never more than one.

    Args:
        tail: What follows a file's last newline.

    Returns:
        True if it was changed, not cut short.
    """
    found = _CHECK.search(tail)
    return found is not None and found.end() < len(tail)


def _entry_of(record: dict[str, Any], line: bytes) -> LedgerEntry:
    if record["v"] != 1:
        raise InvalidArgumentError(
            f"v: must be 1, got {_validate.show(record['v'])}; use a newer version"
        )
    cost, noise = record["curve"], record["noise"]
    mechanism = _mechanism_of(record)
    named = cost["orders"] == "default-1"
    own = curve_of(mechanism, DEFAULT_ORDERS if named else tuple(cost["orders"]))
    curve = RdpCurve(
        orders=own.orders,
        values=np.array([_from_hex(text) for text in cost["hex"]]),
        adjacency=mechanism.adjacency,
        description=own.description,
        gaussian_like=own.gaussian_like,
    )
    # Integrals may differ between machines by less than the accountant's safety factor.
    tolerance = 1e-9 if own.gaussian_like else 2e-8
    if not np.allclose(curve.values, own.values, rtol=tolerance, atol=1e-300):
        raise InvalidArgumentError("curve: must be the mechanism's, got another one")
    purpose, noise_owner, request, round_, draw = noise["stream"].split("/")
    if (request, round_) != (record["request"], str(record["round"])):
        raise InvalidArgumentError(
            "noise: stream must name the entry's request and round, got "
            f"{_validate.show(noise['stream'])}"
        )
    entry = LedgerEntry(
        seq=record["seq"],
        state=record["state"],
        round=record["round"],
        request_id=record["request"],
        release_id=record["release"],
        owner=record["owner"],
        observers=tuple(record["observers"]),
        scope=record["scope"],
        mechanism=mechanism,
        curve=curve,
        noise_owner=noise_owner,
        noise_purpose=purpose,
        draw=int(draw),
        noise_drawn=bool(noise["drawn"]),
        group_size=record["group_size"],
        status=record["status"],
        assumptions=tuple(record["assumptions"]),
        note=record["note"],
    )
    if encode(entry, record["seq"], record["prev"]) != line:
        raise InvalidArgumentError(
            "a line must be written exactly as this program writes it, got another "
            "spelling or unknown keys"
        )
    return entry


def _mechanism_to(mechanism: Mechanism) -> dict[str, Any]:
    """Return a mechanism as the format writes it; sampled ones per unit of shift."""
    if isinstance(mechanism, SampledGaussianMechanism):
        return {
            "kind": "sampled_gaussian",
            "noise_std": mechanism.noise_multiplier,
            "sensitivity": 1.0,
            "rate": mechanism.rate,
            "count": mechanism.steps,
        }
    discrete = isinstance(mechanism, DiscreteGaussianMechanism)
    return {
        "kind": "discrete_gaussian" if discrete else "gaussian",
        "noise_std": mechanism.noise_std,
        "sensitivity": mechanism.sensitivity,
        "rate": 1.0,
        "count": 1,
    }


def _mechanism_of(record: dict[str, Any]) -> Mechanism:
    what, adjacency = record["mechanism"], record["adjacency"]
    scales = {
        "noise_std": what["noise_std"],
        "sensitivity": what["sensitivity"],
        "adjacency": adjacency,
    }
    if what["kind"] == "gaussian":
        return GaussianMechanism(**scales)
    if what["kind"] == "discrete_gaussian":
        return DiscreteGaussianMechanism(grid=record["noise"]["grid"], **scales)
    if what["kind"] == "sampled_gaussian":
        return SampledGaussianMechanism(
            rate=what["rate"],
            noise_multiplier=what["noise_std"],
            steps=what["count"],
            adjacency=adjacency,
        )
    raise InvalidArgumentError(
        "mechanism: kind must be one of gaussian, sampled_gaussian, "
        f"discrete_gaussian, got {_validate.show(what['kind'])}"
    )


def _to_hex(value: float) -> str:
    return "inf" if value == math.inf else value.hex()


def _from_hex(text: str) -> float:
    return math.inf if text == "inf" else float.fromhex(text)


def _refuse_constant(text: str) -> float:
    raise InvalidArgumentError(f"numbers: must be finite, got {text}")


def _short(digest: object) -> str:
    return f"{str(digest)[:8]}…"


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
