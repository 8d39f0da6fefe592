"""One flat store of rows for all peers, with an offset per peer and no padding.

Rows are sorted by peer and then by their place in the source, and they keep their
number for ever: forgetting marks rows as dropped and moves nothing, so that another
peer's forgetting changes neither batches nor indices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.data.batch import TensorBatch, check_values
from dfl_unlearn.data.partition import partitions, split
from dfl_unlearn.data.poison import Backdoor
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import (
    DataError,
    InvalidArgumentError,
    InvalidTypeError,
    UnknownPeerError,
)
from dfl_unlearn.rng import RngTree

if TYPE_CHECKING:
    from dfl_unlearn.data.forget import ForgetRequest

__all__ = ["PeerData", "TensorBatch"]

Rows = tuple[Tensor | ArrayLike, Tensor | ArrayLike]


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerData:
    """What every peer holds, in one store of R rows.

    Attributes:
        store: All rows, peer after peer.
        offsets: Peer i has the rows ``offsets[i] .. offsets[i + 1] - 1``; int64,
            shape ``(N + 1,)``.
        origin: Number of each row in its source, int64, shape ``(R,)``.
        test: Rows that no peer trains on.
        num_classes: Number of classes; 0 means regression.
        name: Of the data set.
        dropped: Which rows are forgotten, bool, shape ``(R,)``; None if none is.
        vacated: Which forgotten rows still count in their peer's divisor (requests
            with ``normalization="fixed"``), bool, shape ``(R,)``; None if none does.
        feature_bound: Public bound on the size of every feature, stated without looking
            at the rows and checked against them, or None. Bounds of gradients, and so
            noise that covers a worst case, follow from it. Images of bytes become
            numbers in [0, 1] and have the bound 1 by their type.
        norm_bound: Public bound on the norm of every row, in the same way, or None.
        recipe: How ``load`` made it, so that a stored run can be read again; None for
            arrays of your own.
        extractor: What frozen extractor the rows are features of, and what it saw
            (``data.features``); None for rows as they are.
        backdoor: What an attacker planted in the rows (``data.poison``), for metrics;
            None if nothing is known.

    Example:
        >>> x, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
        >>> data = PeerData.from_tensors([(x, y), (x[:2], y[:2])], test=(x, y))
        >>> data.sizes
        array([3, 2])
    """

    store: TensorBatch
    offsets: NDArray[np.int64]
    origin: NDArray[np.int64]
    test: TensorBatch
    num_classes: int
    name: str
    dropped: NDArray[np.bool_] | None = None
    vacated: NDArray[np.bool_] | None = None
    feature_bound: float | None = None
    norm_bound: float | None = None
    recipe: Mapping[str, Any] | None = None
    extractor: Assumption | None = None
    backdoor: Backdoor | None = None

    def __post_init__(self) -> None:
        """Check the store as a whole and every record.

        Raises:
            DataError: If a peer has no rows, a feature is not finite, a label lies
                outside the classes, or shapes and types do not fit together.
            InvalidArgumentError: If ``num_classes`` is 1.
        """
        _validate.of_type(TensorBatch, store=self.store, test=self.test)
        _validate.of_type(str, name=self.name)
        _validate.integer(num_classes=self.num_classes, at_least=0)
        if self.num_classes == 1:
            raise InvalidArgumentError(
                "num_classes: must be 0 (regression) or >= 2, got 1; a task with one "
                "class has nothing to learn"
            )
        rows = len(self.store)
        _check_index("offsets", self.offsets, np.int64, None)
        _check_index("origin", self.origin, np.int64, rows)
        if self.dropped is not None:
            _check_index("dropped", self.dropped, np.bool_, rows)
        if len(self.offsets) < 2 or self.offsets[0] != 0 or self.offsets[-1] != rows:
            raise DataError(
                f"offsets: must run from 0 to {rows} (the rows of the store) with "
                f"one entry more than there are peers, got "
                f"{_validate.show(self.offsets.tolist())}; build it with "
                "PeerData.from_tensors"
            )
        short = np.flatnonzero(np.diff(self.offsets) < 1)
        if len(short):
            raise DataError(
                f"peer {short[0]}: must hold at least one record, got "
                f"{np.diff(self.offsets)[short[0]]}; leave the peer out or give it data"
            )
        if self.test.inputs.shape[1:] != self.store.inputs.shape[1:]:
            raise DataError(
                f"test: inputs must have the shape (records, "
                f"{', '.join(map(str, self.store.inputs.shape[1:]))}) like the peers', "
                f"got {tuple(self.test.inputs.shape)}; reshape them"
            )
        check_values(self.store, self.num_classes, "peers", self._record)
        check_values(
            self.test, self.num_classes, "test", lambda row: f"test, record {row}"
        )
        self._check_bound()

    @classmethod
    def load(
        cls,
        dataset: str | Dataset,
        peers: int,
        partition: str = "iid",
        seed: int = 0,
        *,
        dataset_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "PeerData":
        """Split a data set among peers.

        Args:
            dataset: A registered name, or a data set.
            peers: Number of peers N.
            partition: A registered way to split.
            seed: Of the split.
            dataset_options: Fields of a data set given by name, e.g. ``root``.
            **options: Fields of the partition, e.g. ``alpha`` for ``dirichlet``.

        Returns:
            The peers' data; every row of the source at most once.

        Raises:
            InvalidArgumentError: If options are given for a ready data set.
        """
        _validate.integer(peers=peers, at_least=1)
        _validate.integer(seed=seed, at_least=0)
        recipe = None
        if isinstance(dataset, str):
            recipe = {
                "dataset": dataset,
                "peers": peers,
                "partition": partition,
                "seed": seed,
                "dataset_options": {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in (dataset_options or {}).items()
                },
                **options,
            }
            dataset = datasets.build(dataset, **(dataset_options or {}))
        elif dataset_options:
            raise InvalidArgumentError(
                "dataset_options: must be empty for a data set that is already "
                f"loaded, got {_validate.show(dict(dataset_options))}; give its name"
            )
        _validate.of_type(Dataset, dataset=dataset)
        partitions.get(partition)
        parts = split(
            partition, dataset.train.labels, peers, RngTree(seed), dict(options)
        )
        origin = np.concatenate(parts)
        index = torch.from_numpy(origin)
        return cls(
            store=TensorBatch(dataset.train.inputs[index], dataset.train.labels[index]),
            offsets=_offsets([len(part) for part in parts]),
            origin=origin,
            test=dataset.test,
            num_classes=dataset.num_classes,
            name=dataset.name,
            feature_bound=dataset.feature_bound,
            norm_bound=dataset.norm_bound,
            recipe=recipe,
        )

    @classmethod
    def from_tensors(
        cls,
        peers: Sequence[Rows],
        test: Rows | TensorBatch,
        *,
        num_classes: int | None = None,
        name: str = "tensors",
        dtype: torch.dtype | None = None,
        feature_bound: float | None = None,
        norm_bound: float | None = None,
    ) -> "PeerData":
        """Take arrays of your own, one pair per peer, of any number of rows each.

        Args:
            peers: Per peer ``(inputs (n_i, ...), labels (n_i,))``, torch tensors or
                NumPy arrays. Integer labels are classes, floating-point labels make
                it a regression.
            test: The same for rows that no peer trains on.
            num_classes: Number of classes; None counts the labels.
            name: Shown in reports.
            dtype: ``torch.float32`` or ``torch.float64`` to convert floating-point
                inputs and targets; None keeps what was given.
            feature_bound: Public bound on the size of every feature, or None.
            norm_bound: Public bound on the norm of every row, or None.

        Returns:
            The peers' data; ``origin`` counts the rows as they were given.

        Raises:
            DataError: If the peers' shapes or types differ, or a value is unusable.
        """
        if dtype is not None:
            _validate.one_of((torch.float32, torch.float64), dtype=dtype)
        batches = [_batch(f"peer {i}", pair, dtype) for i, pair in enumerate(peers)]
        if not batches:
            raise DataError(
                "peers: must be a list of at least one (inputs, labels) pair, got "
                "none; give one pair per peer"
            )
        tested = test if isinstance(test, TensorBatch) else _batch("test", test, dtype)
        for i, batch in enumerate(batches):
            _check_alike(f"peer {i}", batch, batches[0])
        store = TensorBatch(
            torch.cat([batch.inputs for batch in batches]),
            torch.cat([batch.labels for batch in batches]),
        )
        if num_classes is None:
            num_classes = 0 if store.is_regression else _count(store, tested)
        return cls(
            store=store,
            offsets=_offsets([len(batch) for batch in batches]),
            origin=np.arange(len(store), dtype=np.int64),
            test=tested,
            num_classes=num_classes,
            name=name,
            feature_bound=feature_bound,
            norm_bound=norm_bound,
        )

    @property
    def n(self) -> int:
        """Number of peers N."""
        return len(self.offsets) - 1

    def _check_bound(self) -> None:
        """Refuse rows that pass a public bound.

        Raises:
            DataError: If one does.
        """
        if self.feature_bound is not None:
            _validate.number(feature_bound=self.feature_bound, above=0)
        if self.norm_bound is not None:
            _validate.number(norm_bound=self.norm_bound, above=0)
        for name, batch in (("store", self.store), ("test", self.test)):
            if self.feature_bound is not None and batch.inputs.is_floating_point():
                largest = float(batch.inputs.abs().max()) if len(batch) else 0.0
                if largest > self.feature_bound:
                    raise DataError(
                        f"feature_bound: must be at least every feature of the {name}, "
                        f"got {self.feature_bound:g} and a feature of size "
                        f"{largest:g}; state a larger bound or clip the features"
                    )
            if self.norm_bound is not None:
                longest = math.sqrt(_largest_square(batch.inputs))
                if longest > self.norm_bound:
                    raise DataError(
                        f"norm_bound: must be at least the norm of every row of the "
                        f"{name}, got {self.norm_bound!r} and a row of norm "
                        f"{longest!r}; state a larger bound or scale the rows"
                    )

    def input_radius(
        self, *, bias: bool, peer: int | None = None
    ) -> tuple[float, bool]:
        """Return a bound on the norm of every input as models see it.

        Args:
            bias: Whether a 1 is appended to each input.
            peer: Whose rows are looked at; None is everybody's.

        Returns:
            The bound, and whether it is public: from ``norm_bound``, ``feature_bound``
            or the type of the images; else it is the largest norm among the stored
            rows, which is information about them.
        """
        width = math.prod(self.store.inputs.shape[1:])
        bound = self.feature_bound
        if self.store.inputs.dtype == torch.uint8:
            bound = 1.0
        squares = [] if bound is None else [width * bound**2]
        if self.norm_bound is not None:
            squares.append(self.norm_bound**2)
        if squares:
            return math.sqrt(min(squares) + bias), True
        rows = slice(None) if peer is None else self.rows(peer)
        return math.sqrt(_largest_square(self.store.inputs[rows]) + bias), False

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Stored rows per peer, forgotten ones included, shape ``(N,)``."""
        return np.diff(self.offsets)

    @cached_property
    def keep(self) -> NDArray[np.bool_]:
        """Which rows are not forgotten, shape ``(R,)``."""
        if self.dropped is None:
            return np.ones(len(self.store), dtype=np.bool_)
        return ~self.dropped

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Which rows count in their peer's divisor, shape ``(R,)``."""
        return self.keep if self.vacated is None else self.keep | self.vacated

    @cached_property
    def retained(self) -> NDArray[np.int64]:
        """Rows per peer that are not forgotten, shape ``(N,)``."""
        return np.add.reduceat(self.keep, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """Peer of each row, shape ``(R,)``."""
        return np.repeat(np.arange(self.n, dtype=np.int64), self.sizes)

    def rows(self, peer: int) -> slice:
        """Return where a peer's stored rows lie.

        Args:
            peer: Index in ``0 .. N-1``.

        Returns:
            The slice of the store, forgotten rows included.
        """
        self.check_peer(peer)
        return slice(int(self.offsets[peer]), int(self.offsets[peer + 1]))

    def local(self, peer: int) -> TensorBatch:
        """Return a peer's rows that are not forgotten.

        Args:
            peer: Index in ``0 .. N-1``.

        Returns:
            Its rows in order; without rows if all are forgotten.
        """
        rows = self.rows(peer)
        inputs, labels = self.store.inputs[rows], self.store.labels[rows]
        if self.dropped is not None and self.dropped[rows].any():
            keep = torch.from_numpy(self.keep[rows])
            inputs, labels = inputs[keep], labels[keep]
        return TensorBatch(inputs, labels)

    def without(self, request: "ForgetRequest") -> "PeerData":
        """Return the same store with a request's rows marked as forgotten.

        Args:
            request: What goes; it is resolved and checked first.

        Returns:
            Equal offsets and row numbers, a larger ``dropped``.
        """
        request = request.resolve(self)
        mask = request.mask(self)
        vacated = self.vacated
        if request.normalization == "fixed":
            vacated = mask if vacated is None else mask | vacated
        return replace(self, dropped=mask | ~self.keep, vacated=vacated)

    def pooled(self) -> "PeerData":
        """Return all rows at one peer (N = 1), forgotten ones still marked."""
        return replace(self, offsets=_offsets([len(self.store)]))

    def fingerprint(self) -> str:
        """Return the SHA-256 of all rows, what is forgotten of them, and extractor."""
        digest = sha256(b"dfl-unlearn/peer-data/1")
        arrays = [
            self.store.inputs.numpy(),
            self.store.labels.numpy(),
            self.offsets,
            ~self.keep,
            self.counted,
            self.test.inputs.numpy(),
            self.test.labels.numpy(),
        ]
        for array in arrays:
            digest.update(f"|{array.dtype.str}{array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).data)
        if self.extractor is not None:  # what a claim says of it belongs to the data
            known = self.extractor
            digest.update(f"|{known.value}|{known.source}|{known.state}".encode())
        return digest.hexdigest()

    def check_peer(self, peer: int) -> None:
        """Refuse a number that is not a peer's.

        Args:
            peer: Index to check.

        Raises:
            UnknownPeerError: If it is not in ``0 .. N-1``.
        """
        _validate.integer(peer=peer)
        if not 0 <= peer < self.n:
            raise UnknownPeerError(
                f"peer: must be in 0..{self.n - 1}, got {_validate.show(peer)}; this "
                f"network has {self.n} peers"
            )

    def _record(self, row: int) -> str:
        """Return a row's name in messages, e.g. ``peer 3, record 12``."""
        peer = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"peer {peer}, record {row - int(self.offsets[peer])}"


def _batch(place: str, pair: Rows, dtype: torch.dtype | None) -> TensorBatch:
    """Return one pair of arrays as tensors of the types the store keeps."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(
            f"{place}: must be a pair (inputs, labels), got {_validate.show(pair)}; "
            "give two arrays"
        )
    try:
        inputs, labels = (_tensor(part) for part in pair)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{place}: inputs and labels must be arrays of numbers, got "
            f"{_validate.show(pair[0])} and {_validate.show(pair[1])}; {error}"
        ) from error
    if dtype is not None and inputs.is_floating_point():
        inputs = inputs.to(dtype)
    if labels.is_floating_point():
        labels = labels if dtype is None else labels.to(dtype)
    elif not labels.is_complex():
        labels = labels.to(torch.int64)
    try:
        return TensorBatch(inputs, labels)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _largest_square(inputs: Tensor) -> float:
    """Return the largest squared norm of a row as models see it; 0 for no rows."""
    largest = 0.0
    for part in inputs.split(4096):
        x = as_features(part, torch.float64).reshape(len(part), -1)
        if len(x):
            largest = max(largest, float(x.square().sum(1).max()))
    return largest


def _tensor(array: Tensor | ArrayLike) -> Tensor:
    """Return an array as a tensor, copied only where torch cannot share its memory."""
    if isinstance(array, np.ndarray):
        array = np.require(array, requirements=["C", "W"])
    return torch.as_tensor(array).detach().cpu()


def _check_alike(place: str, batch: TensorBatch, first: TensorBatch) -> None:
    """Refuse a peer whose rows cannot stand in one store with peer 0's."""
    pairs = (
        ("inputs", batch.inputs.dtype, first.inputs.dtype, "pass dtype=torch.float32"),
        ("labels", batch.labels.dtype, first.labels.dtype, "convert them"),
        (
            "inputs",
            tuple(batch.inputs.shape[1:]),
            tuple(first.inputs.shape[1:]),
            "all peers share one model",
        ),
    )
    for what, given, needed, remedy in pairs:
        if given != needed:
            raise DataError(
                f"{place}: {what} must be {needed} like peer 0's, got {given}; {remedy}"
            )


def _check_index(
    name: str, array: object, dtype: type[np.generic], length: int | None
) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidTypeError(
            f"{name}: must be a NumPy array, got {type(array).__name__}; convert it"
        )
    if array.dtype != dtype or array.ndim != 1 or length not in (None, len(array)):
        raise DataError(
            f"{name}: must be {np.dtype(dtype).name} with shape "
            f"({'N + 1' if length is None else length},), got {array.dtype} with shape "
            f"{array.shape}; convert it"
        )


def _count(store: TensorBatch, test: TensorBatch) -> int:
    """Return the number of classes that the labels name, at least 2."""
    highest = [int(batch.labels.max()) for batch in (store, test) if len(batch)]
    return max(2, 1 + max(highest, default=0))


def _offsets(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
