"""What is to be forgotten: some samples of a peer, a class, or all of a peer.

A request says what goes and what retraining would mean; how private the forgetting
must be (epsilon, delta, scope) belongs to the protocol. Rows are named by their local
index: row k of peer i is stored row ``offsets[i] + k`` whatever was forgotten before.
"""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, InvalidForgetSetError
from dfl_unlearn.rng import RngTree

if TYPE_CHECKING:
    from dfl_unlearn.data.peers import PeerData

ForgetKind = Literal["samples", "class", "peer"]
Normalization = Literal["local_mean", "fixed"]


class RequestOptions(TypedDict, total=False):
    """Fields that every kind of request may set."""

    normalization: Normalization
    adaptive: bool
    reason: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """What is to be forgotten, and what training without it would mean.

    Attributes:
        kind: ``samples`` (rows of one peer), ``class`` (all rows of a class) or
            ``peer`` (all rows of a peer).
        peers: Owners of the data, ascending; filled by ``resolve`` for a class.
        items: Per owner its local row indices, ascending; empty for ``peer`` and
            until ``resolve`` has filled them.
        class_id: The class to forget, for kind ``class``.
        fraction: Share of the peer's rows in (0, 1], for ``samples`` without indices.
        seed: Of the draw that a fraction asks for.
        normalization: ``local_mean``: the peer's objective averages over what is
            left; ``fixed``: the sum over what is left keeps the old divisor.
        adaptive: Whether it was chosen after seeing released models; lowers the
            certificate's status.
        reason: ``privacy``, ``mislabel``, ``backdoor`` or free text; never changes
            the mathematics.
        request_id: Name on disk and in noise keys; empty until it is filled.
        coalesced: Of requests that ``coalesce`` put together, their ids; kind
            ``samples`` then, with all rows that go, of one owner or several.

    Example:
        >>> ForgetRequest.samples(peer=3, indices=[5, 2]).items
        ((2, 5),)
    """

    kind: ForgetKind
    peers: tuple[int, ...] = ()
    items: tuple[tuple[int, ...], ...] = ()
    class_id: int | None = None
    fraction: float | None = None
    seed: int = 0
    normalization: Normalization = "local_mean"
    adaptive: bool = False
    reason: str = ""
    request_id: str = ""
    coalesced: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check all that can be checked without the data."""
        _validate.one_of(get_args(ForgetKind), kind=self.kind)
        _validate.one_of(get_args(Normalization), normalization=self.normalization)
        _validate.of_type(bool, adaptive=self.adaptive)
        _validate.of_type(str, reason=self.reason, request_id=self.request_id)
        _validate.of_type(
            tuple, peers=self.peers, items=self.items, coalesced=self.coalesced
        )
        for name in self.coalesced:
            _validate.identifier(coalesced=name)
        _validate.integer(seed=self.seed, at_least=0)
        if self.request_id:
            _validate.identifier(request_id=self.request_id)
        if self.fraction is not None:
            _validate.number(
                fraction=self.fraction,
                above=0,
                at_most=1,
                error=InvalidForgetSetError,
            )
        for peer in self.peers:
            _validate.integer(peer=peer)
        object.__setattr__(self, "peers", tuple(int(peer) for peer in self.peers))
        if any(a >= b for a, b in pairwise(self.peers)):
            raise InvalidForgetSetError(
                "peers: must be ascending without duplicates, got "
                f"{_validate.show(self.peers)}; sort them"
            )
        self._check_kind()
        for peer, rows in zip(self.peers, self.items, strict=False):
            _check_rows(peer, rows)

    def _check_kind(self) -> None:
        """Check that the fields belong to the kind."""
        if (self.kind == "class") != (self.class_id is not None):
            raise InvalidArgumentError(
                "class_id: must be given for kind 'class' and for no other, got "
                f"{self.class_id} with kind {self.kind!r}; use ForgetRequest.class_"
            )
        if self.class_id is not None:
            _validate.integer(class_id=self.class_id, at_least=0)
        if self.is_nothing:
            return
        if self.coalesced and (self.kind != "samples" or not self.items):
            raise InvalidArgumentError(
                "coalesced: must be left out unless the kind is 'samples' with items, "
                f"got {_validate.show(self.coalesced)} with kind {self.kind!r}; use "
                "coalesce"
            )
        if self.kind != "class" and len(self.peers) != 1 and not self.coalesced:
            raise InvalidForgetSetError(
                f"peers: must be one peer for kind {self.kind!r}, got "
                f"{_validate.show(self.peers)}; send one request per peer"
            )
        if self.kind == "samples" and not self.items and self.fraction is None:
            raise InvalidArgumentError(
                "items, fraction: one must be given for kind 'samples', got neither; "
                "name the rows or a share"
            )
        if self.kind != "samples" and self.fraction is not None:
            raise InvalidArgumentError(
                f"fraction: must be left out for kind {self.kind!r}, got "
                f"{self.fraction}; use ForgetRequest.samples"
            )
        if self.items and (self.kind == "peer" or len(self.items) != len(self.peers)):
            raise InvalidForgetSetError(
                "items: must have one entry per peer, and none for kind 'peer', got "
                f"{len(self.items)} for {len(self.peers)} peers of kind "
                f"{self.kind!r}; use the constructors"
            )

    @classmethod
    def samples(
        cls,
        peer: int,
        indices: Iterable[int] | None = None,
        fraction: float | None = None,
        seed: int = 0,
        **options: Unpack[RequestOptions],
    ) -> "ForgetRequest":
        """Ask for some rows of one peer.

        Args:
            peer: The owner.
            indices: Local row indices; or give ``fraction``.
            fraction: Share of the peer's rows, drawn when the request is resolved;
                rounded, at least one row.
            seed: Of that draw.
            **options: ``normalization``, ``adaptive``, ``reason``, ``request_id``.

        Returns:
            The request.

        Raises:
            InvalidArgumentError: Unless exactly one of both is given.
            InvalidForgetSetError: If ``indices`` is empty, or has duplicates or
                anything but integers.
        """
        if (indices is None) == (fraction is None):
            raise InvalidArgumentError(
                "indices, fraction: exactly one must be given, got "
                f"{'neither' if indices is None else 'both'}; name the rows or a share"
            )
        items: tuple[tuple[int, ...], ...] = ()
        if indices is not None:
            items = (_sorted_rows(peer, indices),)
        return cls(
            kind="samples",
            peers=(peer,),
            items=items,
            fraction=fraction,
            seed=seed,
            **options,
        )

    @classmethod
    def whole_peer(
        cls, peer: int, **options: Unpack[RequestOptions]
    ) -> "ForgetRequest":
        """Ask for all rows of one peer; it goes on relaying others' models.

        Args:
            peer: The owner.
            **options: ``normalization``, ``adaptive``, ``reason``, ``request_id``.

        Returns:
            The request.
        """
        return cls(kind="peer", peers=(peer,), **options)

    @classmethod
    def class_(
        cls,
        class_id: int,
        peers: Sequence[int] | None = None,
        **options: Unpack[RequestOptions],
    ) -> "ForgetRequest":
        """Ask for all rows of a class.

        Args:
            class_id: Label of the class.
            peers: Whose rows; None for every peer that holds the class.
            **options: ``normalization``, ``adaptive``, ``reason``, ``request_id``.

        Returns:
            The request.
        """
        _validate.of_type((list, tuple, range), peers=() if peers is None else peers)
        for peer in peers or ():
            _validate.integer(peer=peer)
        owners = tuple(sorted(peers or ()))
        return cls(kind="class", peers=owners, class_id=class_id, **options)

    @classmethod
    def nothing(cls) -> "ForgetRequest":
        """Return the request of an empty list: no owner, no rows."""
        return cls(kind="samples")

    @property
    def is_nothing(self) -> bool:
        """Whether it asks for nothing at all."""
        return self.kind == "samples" and not (
            self.peers or self.items or self.fraction is not None
        )

    @property
    def is_resolved(self) -> bool:
        """Whether owners and rows are known; ``resolve`` also checks them."""
        return self.kind == "peer" or bool(self.items) or self.is_nothing

    @property
    def requester(self) -> int:
        """The peer that asks: the owner with the lowest index.

        Raises:
            InvalidArgumentError: If the owners are not known yet.
        """
        if not self.peers:
            raise InvalidArgumentError(
                "request: must be resolved before it has a requester, got "
                + (
                    "one that asks for nothing; name what goes"
                    if self.is_nothing
                    else f"class {self.class_id} of all peers; call resolve(data)"
                )
            )
        return self.peers[0]

    @property
    def group_size(self) -> int:
        """Number m of rows to forget.

        Raises:
            InvalidArgumentError: If it needs the data: for kind ``peer``, and before
                ``resolve``.
        """
        if not self.items and not self.is_nothing:
            raise InvalidArgumentError(
                f"request: the number of rows of kind {self.kind!r} must be counted "
                f"in the data, got none here; call size(data)"
            )
        return sum(len(rows) for rows in self.items)

    def resolve(self, data: "PeerData") -> "ForgetRequest":
        """Fill owners and rows, and check them against the data.

        Args:
            data: What the peers hold, earlier requests already applied.

        Returns:
            The same request with ``peers`` and ``items`` filled.

        Raises:
            InvalidForgetSetError: If it is empty, names rows that do not exist or are
                forgotten already, or leaves nothing behind.
        """
        if self.is_nothing:
            raise InvalidForgetSetError(
                "request: must name something to forget, got nothing; an empty list "
                "of requests is answered with the run's own state"
            )
        for peer in self.peers:
            data.check_peer(peer)
        resolved = self._filled(data) if not self.is_resolved else self
        for peer, rows in zip(resolved.peers, resolved.items, strict=False):
            _check_against(data, peer, rows)
        size = resolved.size(data)
        if size == 0:
            raise InvalidForgetSetError(
                f"peers: must still hold something to forget, got peer "
                f"{self.requester} with no rows left; its data are forgotten already"
            )
        if size == int(data.keep.sum()):
            raise InvalidForgetSetError(
                f"request: must leave some data in the network, got all {size} rows; "
                "there would be nothing to train on"
            )
        if (
            self.kind == "samples"
            and not self.coalesced  # which may hold a whole peer's request
            and self.normalization == "local_mean"
            and size == data.retained[self.requester]
        ):
            raise InvalidForgetSetError(
                f"items: must leave peer {self.requester} at least one record under "
                f"normalization 'local_mean', got all {size}; use kind 'peer' "
                "(ForgetRequest.whole_peer)"
            )
        return resolved

    def mask(self, data: "PeerData") -> NDArray[np.bool_]:
        """Return which stored rows go.

        Args:
            data: What the peers hold.

        Returns:
            Bool, shape ``(R,)``; rows that an earlier request dropped are False.
        """
        request = self if self.is_resolved else self.resolve(data)
        chosen = np.zeros(len(data.store), dtype=np.bool_)
        if request.kind == "peer":
            chosen[data.rows(request.requester)] = True
        for peer, rows in zip(request.peers, request.items, strict=False):
            _check_range(data, peer, rows)
            chosen[data.rows(peer).start + np.asarray(rows)] = True
        return chosen & data.keep

    def size(self, data: "PeerData") -> int:
        """Return the number m of rows to forget; see ``mask``."""
        return int(self.mask(data).sum())

    def _filled(self, data: "PeerData") -> "ForgetRequest":
        """Return the request with owners and rows looked up or drawn."""
        if self.kind == "samples":
            assert self.fraction is not None
            free = np.flatnonzero(data.keep[data.rows(self.requester)])
            if not len(free):
                raise InvalidForgetSetError(
                    f"peers: must still hold something to forget, got peer "
                    f"{self.requester} with no rows left; its data are forgotten "
                    "already"
                )
            count = max(1, round(self.fraction * len(free)))
            rng = RngTree(self.seed).numpy("forget", who=self.requester)
            rows = np.sort(rng.choice(free, size=count, replace=False))
            return replace(self, items=(tuple(rows.tolist()),))
        assert self.class_id is not None
        if self.class_id >= data.num_classes:
            classes = (
                f"in 0..{data.num_classes - 1}"
                if data.num_classes
                else "left out for a regression, which has no classes"
            )
            raise InvalidForgetSetError(
                f"class_id: must be {classes}, got {self.class_id}; choose another"
            )
        hit = (data.store.labels.numpy() == self.class_id) & data.keep
        holders = np.unique(data.owner[hit])
        for peer in self.peers:
            if peer not in holders:
                raise InvalidForgetSetError(
                    f"peers: must hold records of class {self.class_id}, got peer "
                    f"{peer}, which has none; leave it out"
                )
        owners = self.peers or tuple(holders.tolist())
        if not owners:
            raise InvalidForgetSetError(
                f"class_id: some peer must hold the class, got {self.class_id}, which "
                "no peer has (any more); choose another"
            )
        items = tuple(
            tuple(np.flatnonzero(hit[data.rows(peer)]).tolist()) for peer in owners
        )
        return replace(self, peers=owners, items=items)


def _sorted_rows(peer: int, indices: Iterable[Any]) -> tuple[int, ...]:
    """Return indices ascending as Python integers; anything else is an error."""
    given = indices.tolist() if hasattr(indices, "tolist") else indices
    rows = tuple(given) if isinstance(given, Iterable) else (given,)
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, numbers.Integral):
            raise InvalidForgetSetError(
                f"indices: must be integers, got {_validate.show(row)} for peer "
                f"{peer}; count its records from 0"
            )
    return tuple(sorted(int(row) for row in rows))


def _check_rows(peer: int, rows: object) -> None:
    """Refuse rows that are no ascending, non-empty tuple of integers."""
    _validate.of_type(tuple, items=rows)
    assert isinstance(rows, tuple)
    if not rows:
        raise InvalidForgetSetError(
            f"indices: must name at least one record, got none for peer {peer}; "
            "there is nothing to forget"
        )
    ordered = _sorted_rows(peer, rows)
    for a, b in pairwise(ordered):
        if a == b:
            raise InvalidForgetSetError(
                f"indices: must be unique, got {a} twice for peer {peer}; "
                "name each record once"
            )
    if ordered != rows:
        raise InvalidForgetSetError(
            f"items: must be ascending, got {_validate.show(rows)} for peer {peer}; "
            "sort them"
        )


def _check_range(data: "PeerData", peer: int, rows: tuple[int, ...]) -> None:
    """Refuse rows that a peer does not have."""
    size = int(data.sizes[peer])
    for row in (rows[0], rows[-1]):
        if not 0 <= row < size:
            raise InvalidForgetSetError(
                f"index {row} out of range for peer {peer} (has {size} records); "
                f"use 0..{size - 1}"
            )


def _check_against(data: "PeerData", peer: int, rows: tuple[int, ...]) -> None:
    """Refuse rows that a peer does not have or has forgotten already."""
    _check_range(data, peer, rows)
    kept = data.keep[data.rows(peer)][np.asarray(rows)]
    if not kept.all():
        raise InvalidForgetSetError(
            f"indices: must be records that are still there, got "
            f"{rows[int(np.argmin(kept))]} of peer {peer}, which is forgotten "
            "already; leave it out"
        )
