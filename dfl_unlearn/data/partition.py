"""Ways to split the rows of a data set among peers.

A partition is a function ``(labels, n, rng, *, ...)`` that returns, per peer, the
ascending numbers of its rows; no row goes to two peers.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._limits import PEERS, check_cap
from dfl_unlearn.errors import DataError, InvalidArgumentError
from dfl_unlearn.registry import Registry, field_names
from dfl_unlearn.rng import RngTree

Parts = tuple[NDArray[np.int64], ...]

partitions: Registry[Parts] = Registry(
    "partitions", packages=("dfl_unlearn.data.partition",)
)

_GIVEN = ("labels", "n", "rng")


def split(
    name: str, labels: Tensor, n: int, rng: RngTree, options: Mapping[str, Any]
) -> Parts:
    """Split rows by a registered partition and check what it returns.

    Args:
        name: A registered name.
        labels: Label of every row, shape ``(R,)``.
        n: Number of peers.
        rng: The split's draws (purpose ``data-split``).
        options: The partition's own fields.

    Returns:
        Per peer its row numbers, ascending.

    Raises:
        DataError: If a peer gets no row, or a row is unknown or given twice.
        InvalidArgumentError: If an option is not the partition's own.
    """
    check_cap(PEERS, n, name)
    for key in _GIVEN:
        if key in options:
            raise InvalidArgumentError(
                f"{name}: option {key!r} must be left out, got "
                f"{_validate.show(options[key])}; it comes from the data"
            )
    built = partitions.build(name, labels=labels, n=n, rng=rng, **options)
    parts = tuple(np.asarray(part) for part in built)
    detail = ", ".join(f"{key}={_validate.show(options[key])}" for key in options)
    words = name.replace("-", " ").capitalize() + (f" {detail}" if detail else "")
    if len(parts) != n:
        raise DataError(
            f"{name}: must give one list of rows per peer ({n}), got {len(parts)}; "
            "match the number of peers"
        )
    for peer, part in enumerate(parts):
        if len(part) == 0:
            fields = field_names(partitions.get(name)) or ()
            remedy = (
                "Use min_per_peer or another seed."
                if "min_per_peer" in fields
                else "Take fewer peers or give it records."
            )
            raise DataError(f"peer {peer} received 0 records ({words}). {remedy}")
    _check_rows(name, parts, len(labels))
    return parts


@partitions.register("iid")
def iid(labels: Tensor, n: int, rng: RngTree) -> Parts:
    """Rows in random order, cut into parts whose sizes differ by at most one.

    Args:
        labels: Label of every row, shape ``(R,)``.
        n: Number of peers.
        rng: The split's draws.

    Returns:
        Per peer its row numbers; every row is used.
    """
    order = rng.numpy("data-split").permutation(len(labels))
    return _sorted(np.array_split(order, n))


@partitions.register("dirichlet")
def dirichlet(
    labels: Tensor,
    n: int,
    rng: RngTree,
    *,
    alpha: float = 0.5,
    min_per_peer: int = 1,
) -> Parts:
    """Each class shared out by proportions from a symmetric Dirichlet distribution.

    Small ``alpha`` gives each class to few peers, large ``alpha`` to all alike. Peers
    below ``min_per_peer`` then take random rows from the peer that has most.

    Args:
        labels: Class of every row, shape ``(R,)``.
        n: Number of peers.
        rng: The split's draws.
        alpha: Concentration, > 0.
        min_per_peer: Rows that every peer has at least, >= 0.

    Returns:
        Per peer its row numbers; every row is used.

    Raises:
        DataError: If the labels are not classes, or there are too few rows.

    References:
        Hsu, Qi and Brown (2019), Measuring the effects of non-identical data
        distribution for federated visual classification.
    """
    _validate.number(alpha=alpha, above=0)
    _validate.integer(min_per_peer=min_per_peer, at_least=0)
    classes = labels.numpy()
    if labels.is_floating_point():
        raise DataError(
            f"dirichlet: labels must be int64 classes, got {labels.dtype}; split a "
            "regression with iid, shards or by-size"
        )
    if n * min_per_peer > len(classes):
        raise DataError(
            f"dirichlet: must have at least {n * min_per_peer} records for {n} peers "
            f"with min_per_peer={min_per_peer}, got {len(classes)}; take fewer peers"
        )
    generator = rng.numpy("data-split")
    parts: list[list[int]] = [[] for _ in range(n)]
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        share = _proportions(generator, alpha, n)
        cuts = np.rint(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(piece.tolist())
    for part in parts:
        while len(part) < min_per_peer:
            largest = max(parts, key=len)
            part.append(largest.pop(int(generator.integers(len(largest)))))
    return _sorted(parts)


@partitions.register("shards")
def shards(labels: Tensor, n: int, rng: RngTree, *, per_peer: int = 2) -> Parts:
    """Rows sorted by label, cut into equal shards, some random ones for each peer.

    Args:
        labels: Label of every row, shape ``(R,)``.
        n: Number of peers.
        rng: The split's draws.
        per_peer: Shards that each peer gets, >= 1.

    Returns:
        Per peer its row numbers; every row is used.

    Raises:
        DataError: If there are fewer rows than shards.

    References:
        McMahan et al. (2017), Communication-efficient learning of deep networks from
        decentralized data, section 3.
    """
    _validate.integer(per_peer=per_peer, at_least=1)
    if n * per_peer > len(labels):
        raise DataError(
            f"shards: must have at least {n * per_peer} records for {n} peers with "
            f"per_peer={per_peer}, got {len(labels)}; take fewer peers or shards"
        )
    order = np.argsort(labels.numpy(), kind="stable")
    pieces = np.array_split(order, n * per_peer)
    deal = rng.numpy("data-split").permutation(n * per_peer).reshape(n, per_peer)
    return _sorted([np.concatenate([pieces[s] for s in hand]) for hand in deal])


@partitions.register("by-size")
def by_size(labels: Tensor, n: int, rng: RngTree, *, sizes: Sequence[int]) -> Parts:
    """Random rows in the numbers asked for; rows beyond their sum stay unused.

    Args:
        labels: Label of every row, shape ``(R,)``.
        n: Number of peers.
        rng: The split's draws.
        sizes: Rows per peer, each >= 1, N of them.

    Returns:
        Per peer its row numbers.

    Raises:
        DataError: If the number of sizes is not N, or their sum is too large.
    """
    _validate.of_type((list, tuple, np.ndarray), sizes=sizes)
    if len(sizes) != n:
        raise DataError(
            f"by-size: sizes must have {n} entries, one per peer, got {len(sizes)}; "
            "match the number of peers"
        )
    for peer, size in enumerate(sizes):
        if not _is_integer(size) or size < 1:
            raise DataError(
                f"by-size: sizes[{peer}] must be an integer >= 1, got "
                f"{_validate.show(size)}; every peer needs a record"
            )
    total = int(sum(sizes))
    if total > len(labels):
        raise DataError(
            f"by-size: sizes must sum to at most {len(labels)} (the records there "
            f"are), got {total}; take fewer"
        )
    order = rng.numpy("data-split").permutation(len(labels))[:total]
    return _sorted(np.split(order, np.cumsum(sizes)[:-1]))


@partitions.register("lists")
def lists(
    labels: Tensor, n: int, rng: RngTree, *, lists: Sequence[Sequence[int]]
) -> Parts:
    """Exactly the rows that are listed for each peer; others stay unused.

    Args:
        labels: Label of every row, shape ``(R,)``.
        n: Number of peers.
        rng: Not used.
        lists: Per peer its row numbers in any order.

    Returns:
        Per peer its row numbers, ascending.

    Raises:
        DataError: If an entry is not a row number.
    """
    _validate.of_type((list, tuple), lists=lists)
    for peer, rows in enumerate(lists):
        if not isinstance(rows, list | tuple | range | np.ndarray):
            raise DataError(
                f"lists[{peer}]: must be a list of row numbers, got "
                f"{_validate.show(rows)}; give one list per peer"
            )
        for row in rows:
            if not _is_integer(row):
                raise DataError(
                    f"lists[{peer}]: must hold row numbers, got {_validate.show(row)}; "
                    "count the records from 0"
                )
            if not 0 <= int(row) < len(labels):
                raise DataError(
                    f"lists[{peer}]: rows must be in 0..{len(labels) - 1}, got "
                    f"{_validate.show(int(row))}; the data set has {len(labels)}"
                )
    return _sorted(lists)


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _proportions(
    generator: np.random.Generator, alpha: float, n: int
) -> NDArray[np.float64]:
    """Return Dirichlet proportions; where all underflow, one peer takes all."""
    share = generator.dirichlet(np.full(n, alpha))
    if not np.isfinite(share).all():
        share = np.zeros(n)
        share[generator.integers(n)] = 1.0
    return share


def _sorted(parts: Sequence[Sequence[int] | NDArray[np.integer]]) -> Parts:
    return tuple(np.sort(np.asarray(part, dtype=np.int64)) for part in parts)


def _check_rows(name: str, parts: Sequence[NDArray[np.int64]], rows: int) -> None:
    """Refuse a split that uses a row twice or one that does not exist."""
    used = np.concatenate(parts)
    if used.dtype != np.int64 or used.min() < 0 or used.max() >= rows:
        raise DataError(
            f"{name}: must give int64 row numbers in 0..{rows - 1}, got "
            f"{used.dtype} in {used.min()}..{used.max()}; correct the partition"
        )
    ordered = np.sort(used)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        peers = [peer for peer, part in enumerate(parts) if twice[0] in part]
        raise DataError(
            f"{name}: every record must go to one peer, got record {twice[0]} at "
            f"peers {', '.join(map(str, peers))}; list it once"
        )
    for peer, part in enumerate(parts):
        if (np.diff(part) < 0).any():
            raise DataError(
                f"{name}: rows must be ascending, got others for peer {peer}; sort them"
            )
