"""The read-only face of finished work: one run and what was tried on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import trainers
from dfl_unlearn.engine.influence import best_influence
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidArgumentError, UnknownNameError
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.results.settings import differing, flat, shown_settings
from dfl_unlearn.store.table import ResultsTable
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Outcome

MOST_SETTINGS = 2
MOST_LETTERS = 30
"""Most settings that a name shows, and their length: it stands beside an axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultsView:
    """A trained run and the outcomes of protocols that were tried on it.

    Plots and reports read it and change nothing. What takes time (metrics, influence)
    is computed on first use and kept.

    Attributes:
        run: The trained run.
        outcomes: What the protocols gave back, in the order to be shown; may be empty.
        given: Metric rows of each outcome where they exist already; None computes
            them when asked for.

    Example:
        >>> view = ResultsView.of(outcome)  # doctest: +SKIP
        >>> view.influence().shares().shape  # doctest: +SKIP
        (200, 8)
    """

    run: TrainedRun
    outcomes: tuple[Outcome, ...] = ()
    given: tuple[ResultsTable, ...] | None = None

    def __post_init__(self) -> None:
        """Check that all outcomes belong to the run."""
        _validate.of_type(TrainedRun, run=self.run)
        for outcome in self.outcomes:
            _validate.of_type(Outcome, why="e.g. unlearn(...)", outcomes=outcome)
            if outcome.run.digest != self.run.digest:
                raise InvalidArgumentError(
                    "outcomes: must come from one run, got runs with the digests "
                    f"{self.run.digest[:12]} and {outcome.run.digest[:12]}; write one "
                    "report per run"
                )
        if self.given is not None and len(self.given) != len(self.outcomes):
            raise InvalidArgumentError(
                f"tables: must be one per outcome, got {len(self.given)} for "
                f"{len(self.outcomes)} outcomes; give evaluate(outcome) of each"
            )

    @classmethod
    def of(
        cls,
        source: "Outcome | Sequence[Outcome] | TrainedRun | ResultsView",
        tables: Sequence[ResultsTable] | None = None,
    ) -> "ResultsView":
        """Return the view of an outcome, several outcomes of one run, or a run.

        Args:
            source: What to look at; a view is returned as it is.
            tables: Metric rows of each outcome; None computes them when asked for.

        Returns:
            The view.

        Raises:
            InvalidArgumentError: If a sequence is empty or mixes runs.
        """
        if isinstance(source, ResultsView):
            return source
        if isinstance(source, TrainedRun):
            return cls(run=source)
        outcomes = (source,) if isinstance(source, Outcome) else tuple(source)
        if not outcomes:
            raise InvalidArgumentError(
                "source: must hold at least one outcome, got none; call unlearn first "
                "or give the run itself"
            )
        _validate.of_type(Outcome, why="e.g. unlearn(...)", source=outcomes[0])
        given = None if tables is None else tuple(tables)
        return cls(run=outcomes[0].run, outcomes=outcomes, given=given)

    @property
    def topology(self) -> Topology:
        """Who talks to whom."""
        return self.run.topology

    @property
    def request(self) -> ForgetRequest | None:
        """The first outcome's request; None for a run alone."""
        return self.outcomes[0].request if self.outcomes else None

    @property
    def source_peer(self) -> int:
        """Whose influence is shown: the requester, or peer 0 of a run alone."""
        if self.request is None or self.request.is_nothing:
            return 0
        return self.request.requester

    @property
    def certificates(self) -> tuple[Certificate | None, ...]:
        """One per outcome; None where the protocol makes no claim."""
        return tuple(outcome.certificate for outcome in self.outcomes)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One readable name per outcome, different from each other.

        It is the outcome's label, with the request's id where there are several. Where
        that repeats, one or two short settings that differ are added, else a number.
        """
        requests = {outcome.request.request_id for outcome in self.outcomes}
        names = [
            f"{o.label} {o.request.request_id}" if len(requests) > 1 else o.label
            for o in self.outcomes
        ]
        settings = [flat(plain(outcome.protocol)) for outcome in self.outcomes]
        labels = list(names)
        for name in set(names):
            alike = [k for k, other in enumerate(names) if other == name]
            keys = differing([settings[k] for k in alike])
            if not 0 < len(keys) <= MOST_SETTINGS:
                continue
            shown = {k: shown_settings(settings[k], keys) for k in alike}
            if max(map(len, shown.values())) <= MOST_LETTERS:
                for k in alike:
                    labels[k] = f"{name} {shown[k]}"
        return tuple(
            f"{label} ({labels[: k + 1].count(label)})"
            if labels.count(label) > 1
            else label
            for k, label in enumerate(labels)
        )

    @cached_property
    def tables(self) -> tuple[ResultsTable, ...]:
        """The metric rows of each outcome."""
        if self.given is not None:
            return self.given
        return tuple(evaluate(outcome) for outcome in self.outcomes)

    @cached_property
    def table(self) -> ResultsTable:
        """The metric rows of all outcomes."""
        return ResultsTable.concat(self.tables)

    def influence(self, request: ForgetRequest | None = None) -> InfluenceTrace:
        """Return how far the requester's data had travelled when training ended.

        Args:
            request: Whose requester; None is the first outcome's.

        Returns:
            The exact derivative where it costs little, else the norm bound where
            training recorded it and it says something, else the mixing power.
        """
        source = self.source_peer if request is None else request.requester
        return self._traces(source)

    def _traces(self, source: int) -> InfluenceTrace:
        kept = self._kept
        if source not in kept:
            kept[source] = best_influence(self.run, source)
        return kept[source]

    @cached_property
    def _kept(self) -> dict[int, InfluenceTrace]:
        return {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What was run, as plain values, one part of the program per key."""
        graph, data = self.topology.graph, self.run.data
        return {
            "topology": {
                "name": self.topology.name,
                "peers": self.topology.n,
                "edges": graph.number_of_edges(),
                "spectral_gap": self.topology.spectral_gap,
            },
            "data": {
                **plain(data.recipe or {}),
                "name": data.name,
                "rows": len(data.store),
                "test_rows": len(data.test),
                "smallest_peer": int(data.sizes.min()),
                "largest_peer": int(data.sizes.max()),
            },
            "model": {
                **plain(self.run.model.recipe or {}),
                "parameters": self.run.model.size,
                "loss": self.run.model.loss_name,
                "l2": self.run.model.l2,
            },
            "training": plain(self.run.config),
            "unlearning": {
                label: plain(outcome.protocol)
                for label, outcome in zip(self.labels, self.outcomes, strict=True)
            },
        }


def plain(value: object) -> Any:
    """Return a setting as JSON values: dataclasses as dictionaries, sets as lists.

    Args:
        value: A dataclass or one of its values.

    Returns:
        Dictionaries, lists, strings, numbers, booleans and None; a registered trainer
        also names itself under ``use``, anything unknown is its class's name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        try:
            return {"use": trainers.name_of(value)} | found
        except UnknownNameError:
            return found
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value).__name__
