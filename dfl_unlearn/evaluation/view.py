"""Before, after, retrained and test rows in one frozen view; metrics over it.

Predictions are computed for some rows at a time and kept up to ``CACHE_BYTES``, so
that metrics on the same rows share them and 1,000 peers on 10,000 rows fit into memory
all the same.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData, TensorBatch
from dfl_unlearn.engine.personal import Personal, used_params
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    UnsupportedRequestError,
)
from dfl_unlearn.evaluation.metrics import SETS, Metric, MetricInfo, SetName, info_of
from dfl_unlearn.evaluation.metrics import metrics as registry
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.store.table import NETWORK, WORLDS, ResultsTable, World
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Outcome

CACHE_BYTES = 2**30
"""Predictions kept by one view, all worlds together; what passes it is recomputed."""
RETAIN_ROWS = 10_000
"""Most retained rows a metric looks at; more are thinned to evenly spaced ones."""

_BLOCK_FLOATS = 2**22  # outputs of all peers on the rows of one block
_BLOCK_ROWS = 1024

_ORDER = (*SETS, "")
_NO_REFERENCE = (
    "reference: must be the retrained run for a comparison with retraining, got None; "
    "call unlearn(..., reference=True)"
)

Score = Callable[..., Tensor]

_log = logging.getLogger(__name__)


class Cache:
    """Tensors computed so far, up to a number of bytes; nothing is ever dropped."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """Start empty.

        Args:
            limit: Bytes to keep; what would pass it is computed at every call.
        """
        self.free = limit
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def get(self, key: tuple[object, ...], compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key, computed where it is not kept; never write to it.

        Args:
            key: Names the tensor.
            compute: Gives it.

        Returns:
            The tensor.
        """
        if key in self._kept:
            return self._kept[key]
        value = compute()
        if value.nbytes <= self.free:
            self.free -= value.nbytes
            self._kept[key] = value
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationView:
    """All that a metric may look at, seen in one world.

    Attributes:
        before: State before the request, as peers use it: pinned changes are added.
        after: State after it, likewise.
        reference: State of the retrained network, or None where none was made.
        model: The model, a function of one row of the state.
        data: What the peers held before the request, earlier requests applied.
        request: The resolved request.
        topology: The network.
        outcome: What the protocol gave back.
        holdout: Rows that nobody trained on.
        world: The world that ``state`` belongs to.
        peer: The one peer that is looked at, or None for all of them; see ``only``.
        cache: Predictions computed so far, shared by the views of all worlds.
    """

    before: PeerState
    after: PeerState
    reference: PeerState | None
    model: FlatModel
    data: PeerData
    request: ForgetRequest
    topology: Topology
    outcome: Outcome
    holdout: TensorBatch
    world: World = "after"
    peer: int | None = None
    cache: Cache = field(default_factory=Cache, repr=False)

    def __post_init__(self) -> None:
        """Check that the states are of the same peers and model.

        Raises:
            InvalidArgumentError: If their shapes differ.
        """
        _validate.one_of(WORLDS, world=self.world)
        shape = (self.n, self.model.size)
        for world, state in self._states().items():
            if state is not None and tuple(state.params.shape) != shape:
                raise InvalidArgumentError(
                    f"{world}: params must have the shape {shape} (peers, parameters), "
                    f"got {tuple(state.params.shape)}; compare states of one network"
                )

    @classmethod
    def of(cls, outcome: Outcome) -> "EvaluationView":
        """Return the view of an outcome, in the world after the request."""
        run = outcome.run
        return cls(
            before=_used(run.state, run.personal),
            after=_used(outcome.state, outcome.personal),
            reference=outcome.reference.state if outcome.reference else None,
            model=run.model,
            data=run.data,
            request=outcome.request,
            topology=run.topology,
            outcome=outcome,
            holdout=run.data.test,
        )

    @property
    def n(self) -> int:
        """Number of peers N that are looked at."""
        return self.data.n if self.peer is None else 1

    @property
    def state(self) -> PeerState:
        """Every peer's state in this view's world.

        Raises:
            MissingInputError: If it is the reference's and none was made.
        """
        state = self._states()[self.world]
        if state is None:
            raise MissingInputError(_NO_REFERENCE)
        return state

    def at(self, world: World) -> "EvaluationView":
        """Return the same view in another world.

        Args:
            world: ``before``, ``after`` or ``reference``; that the reference exists is
                checked when its ``state`` is read.

        Returns:
            A view that shares this one's cache.
        """
        return replace(self, world=world)

    def only(self, peer: int) -> "EvaluationView":
        """Return the view of one peer: its model alone, measured on the same rows.

        Args:
            peer: Whose model.

        Returns:
            A view with N = 1 and a cache of its own.
        """
        self.data.check_peer(peer)

        def alone(state: PeerState) -> PeerState:
            return PeerState(params=state.params[peer : peer + 1], round=state.round)

        return replace(
            self,
            before=alone(self.before),
            after=alone(self.after),
            reference=None if self.reference is None else alone(self.reference),
            peer=peer,
            cache=Cache(),
        )

    def rows(self, name: SetName) -> TensorBatch:
        """Return the rows of a set; every peer is evaluated on all of them.

        Args:
            name: ``test``: the holdout. ``retain``: what the whole network still holds
                after the request, thinned to ``RETAIN_ROWS`` evenly spaced rows of the
                store (so each peer keeps its share) where there are more. ``forget``:
                the rows that go.

        Returns:
            The rows, at least one.

        Raises:
            MissingInputError: If the set is empty.
        """
        _validate.one_of(SETS, name=name)
        if name == "test":
            batch = self.holdout
        else:
            index = torch.from_numpy(self._index(name))
            store = self.data.store
            batch = TensorBatch(store.inputs[index], store.labels[index])
        if len(batch) == 0:
            raise MissingInputError(
                f"{name}: must have at least one row to be measured on, got none; "
                "give the data test rows, or leave the metric out"
            )
        return batch

    def average(self, name: SetName, score: Score, *worlds: World) -> Tensor:
        """Return each peer's mean score over the rows of a set.

        Args:
            name: The set.
            score: Called with the predictions of all peers on k rows in each of the
                worlds, ``(N, k, C)`` logits each (``(N, k)`` for regression), and the
                labels ``(k,)``; returns ``(N, k)``. It must not write to them.
            *worlds: Whose predictions it gets; none means this view's world.

        Returns:
            Mean over the rows, shape ``(N,)`` float64.
        """
        total = torch.zeros(self.n, dtype=torch.float64)
        for batch, given in self.blocks(name, *worlds):
            total += score(*given, batch.labels).double().sum(1)
        return total / len(self.rows(name))

    def blocks(
        self, name: SetName, *worlds: World
    ) -> Iterator[tuple[TensorBatch, list[Tensor]]]:
        """Yield the rows of a set, some at a time, with all peers' predictions.

        Args:
            name: The set.
            *worlds: Whose predictions; none means this view's world.

        Yields:
            k rows, and per world the logits ``(N, k, C)`` (``(N, k)`` for
            regression); never write to them.
        """
        batch = self.rows(name)
        views = [self.at(world) for world in worlds or (self.world,)]
        outputs = self.n * max(1, self.data.num_classes)
        for rows in _slices(len(batch), min(_BLOCK_ROWS, -(-_BLOCK_FLOATS // outputs))):
            given = [view._predictions(name, batch, rows) for view in views]
            yield TensorBatch(batch.inputs[rows], batch.labels[rows]), given

    def logits(self, batch: TensorBatch, peer: int) -> NDArray[np.float64]:
        """Return one peer's outputs on rows of your own.

        Args:
            batch: Any B rows.
            peer: Whose model.

        Returns:
            Shape ``(B, C)`` (``(B,)`` for regression).
        """
        row = self.state.params[peer : peer + 1]
        outputs = self.model.predict_all(row, batch.inputs)[0].double().cpu()
        found: NDArray[np.float64] = outputs.numpy()
        return found

    @torch.no_grad()
    def losses(self, batch: TensorBatch) -> Tensor:
        """Return the loss of every peer's model on every row, without l2.

        Args:
            batch: Any B rows.

        Returns:
            Data term of the loss, shape ``(N, B)`` float64.
        """
        params = self.state.params
        out = torch.empty(self.n, len(batch), dtype=torch.float64)
        for rows in _slices(len(batch), _BLOCK_ROWS):
            features = as_features(batch.inputs[rows], params.dtype)
            for i, row in enumerate(params):
                out[i, rows] = self.model.sample_losses(
                    row, (features, batch.labels[rows])
                ).double()
        return out

    @cached_property
    def classes_gone(self) -> tuple[int, ...]:
        """Classes of which the request leaves no row in the network; () otherwise."""
        if not self.data.num_classes:
            return ()
        labels = self.data.store.labels.numpy()
        gone = self.request.mask(self.data)
        left = np.unique(labels[self.data.keep & ~gone])
        return tuple(int(c) for c in np.setdiff1d(labels[gone], left))

    def test_rows(self, *, forgotten: bool) -> TensorBatch:
        """Return the test rows of the classes that are forgotten, or of all others.

        Args:
            forgotten: Whether to return those of ``classes_gone``; all other rows
                otherwise, which is every test row where no class is forgotten whole.

        Returns:
            The rows, at least one.

        Raises:
            MissingInputError: If there are none.
        """
        tests = self.rows("test")
        gone = torch.isin(
            tests.labels, torch.tensor(self.classes_gone, dtype=torch.int64)
        )
        index = torch.nonzero(gone == forgotten)[:, 0]
        if len(index) == 0:
            which = "a class that is forgotten whole" if forgotten else "a kept class"
            raise MissingInputError(
                f"test: must have rows of {which}, got none; leave the metric out"
            )
        if len(index) == len(tests):
            return tests
        return TensorBatch(tests.inputs[index], tests.labels[index])

    def check_task(self, metric: str, *, classes: bool) -> None:
        """Refuse data of the other task.

        Args:
            metric: Name for the message.
            classes: Whether the metric needs classes; otherwise it needs numbers.

        Raises:
            UnsupportedRequestError: If the labels are of the other kind.
        """
        if classes == (self.data.num_classes == 0):
            words = ("class labels", "regression targets")
            needed, got = words if classes else words[::-1]
            raise UnsupportedRequestError(
                f"{metric}: needs {needed}, got {got}; choose a metric of that task "
                "(accuracies for classes, mean squared errors for numbers)"
            )

    def _states(self) -> dict[World, PeerState | None]:
        return {
            "before": self.before,
            "after": self.after,
            "reference": self.reference,
        }

    def _index(self, name: SetName) -> NDArray[np.int64]:
        """Return the store's row numbers of ``retain`` or ``forget``."""
        gone = self.request.mask(self.data)
        if name == "forget":
            return np.flatnonzero(gone)
        kept = np.flatnonzero(self.data.keep & ~gone)
        if len(kept) > RETAIN_ROWS:
            kept = kept[np.arange(RETAIN_ROWS) * len(kept) // RETAIN_ROWS]
        return kept

    def _predictions(self, name: SetName, batch: TensorBatch, rows: slice) -> Tensor:
        """Return all peers' outputs on some rows of a set, kept if they fit."""

        def compute() -> Tensor:
            return self.model.predict_all(self.state.params, batch.inputs[rows])

        return self.cache.get((self.world, name, rows.start), compute)


def evaluate(
    outcome: Outcome,
    metrics: str | Iterable[str] = "default",
    worlds: World | Iterable[World] = WORLDS,
) -> ResultsTable:
    """Measure an outcome: before the request, after it, and in the retrained network.

    Args:
        outcome: What ``unlearn`` gave back.
        metrics: A registered name, several, or ``default``: every registered metric
            that the data and the outcome allow (comparisons with retraining need
            ``unlearn(..., reference=True)``, accuracies need classes), without
            those that say ``default=False`` because they fit attacks or train models.
        worlds: One or several of ``before``, ``after`` and ``reference``; the last is
            left out where there is no reference.

    Returns:
        One row per metric, world and peer, and one for the network (peer -1), which
        is the mean over peers where the metric has a value per peer (the largest where
        it says so, as ``front-time`` does).

    Raises:
        MissingInputError: If a named metric lacks its reference or rows, or only the
            reference was asked for and there is none.
        UnsupportedRequestError: If a named metric does not fit the data.
        InvalidArgumentError: If a name or a world is unknown, or a metric returns
            anything but ``(N,)`` or ``()``.
    """
    view = EvaluationView.of(outcome)
    asked: tuple[World, ...] = (
        (worlds,) if isinstance(worlds, str) else tuple(dict.fromkeys(worlds))
    )
    for world in asked:
        _validate.one_of(WORLDS, worlds=world)
    seen = tuple(w for w in asked if w != "reference" or view.reference is not None)
    if asked and not seen:
        raise MissingInputError(_NO_REFERENCE)
    default = metrics == "default"
    if default:
        names = _default_names()
    else:
        names = [metrics] if isinstance(metrics, str) else list(metrics)
    hops = [NETWORK] * view.n  # of a request for nothing there is no requester
    if not view.request.is_nothing:
        hops = view.topology.hops(view.request.requester).tolist()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # Set after set, so that what the cache keeps is what the next metric needs.
    for name in sorted(names, key=lambda name: _ORDER.index(_info(name).set)):
        try:
            for world in seen:
                rows[name] += _measured(view.at(world), name, hops)
        except (MissingInputError, UnsupportedRequestError) as reason:
            if not default:
                raise
            _log.info("left out: %s", reason)
    return ResultsTable(rows=tuple(row for found in rows.values() for row in found))


def _used(state: PeerState, personal: Personal) -> PeerState:
    params = used_params(state.params, personal)
    return state if params is state.params else replace(state, params=params)


def _measured(view: EvaluationView, name: str, hops: list[int]) -> list[dict[str, Any]]:
    """Return the rows of one metric in one world: the network's, then every peer's."""
    metric: Metric = registry.get(name)
    info = _info(name)
    if view.world not in info.worlds:
        return []
    values = metric(view)
    if not isinstance(values, Tensor) or values.shape not in ((), (view.n,)):
        got = getattr(values, "shape", type(values).__name__)
        raise InvalidArgumentError(
            f"{name}: must return a tensor of shape () or ({view.n},), got {got}; one "
            "value for the network, or one per peer"
        )
    values = values.detach().double()
    run = view.outcome.run
    row = {
        "case": run.folder.name if run.folder else "",
        "world": view.world,
        "protocol": view.outcome.label,
        "request": view.request.request_id,
        "round": view.state.round,
        "peer": NETWORK,
        "hop": NETWORK,
        "set": info.set,
        "metric": name,
        "value": float(values.max() if info.network == "max" else values.mean()),
        "unit": info.unit,
        "seed": run.config.seed,
    }
    peers = enumerate(zip(hops, values.tolist(), strict=True)) if values.ndim else ()
    return [row] + [{**row, "peer": i, "hop": h, "value": v} for i, (h, v) in peers]


def _default_names() -> list[str]:
    """Return those measured unnamed: of every world first, then by set and name."""

    def key(name: str) -> tuple[bool, int, str]:
        info = _info(name)
        return info.worlds != WORLDS, _ORDER.index(info.set), name

    return sorted((n for n in registry.names() if _info(n).default), key=key)


def _info(name: str) -> MetricInfo:
    return info_of(registry.get(name))


def _slices(count: int, width: int) -> Iterator[slice]:
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))
