"""What follows training in an experiment: forget, compare, write down, draw.

Everything may be done twice: attempts that lie in the run folder are read instead of
repeated, one that was interrupted goes on, rows that are written are not written again.
So an experiment that was killed anywhere is continued by doing it again.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import retrain
from dfl_unlearn.engine.stored_influence import keep_influence
from dfl_unlearn.errors import RefusedError
from dfl_unlearn.plots import save_figures
from dfl_unlearn.report import write_report
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.sections import ReportSection
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.table import COLUMNS, NETWORK, ResultsTable
from dfl_unlearn.store.understood import understood
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.attempts import same_protocol
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol, label_of
from dfl_unlearn.unlearning.store import load_outcomes


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A protocol that did not carry out a request.

    Attributes:
        request_id: The request.
        protocol: What tables call it, e.g. ``at-peer.salun``.
        error: Why.
    """

    request_id: str
    protocol: str
    error: RefusedError

    def __str__(self) -> str:
        """Return request, protocol and reason in one line."""
        kind = type(self.error).__name__
        return f"{self.request_id} by {self.protocol}: {kind}: {self.error}"


def try_all(
    run: TrainedRun,
    requests: Sequence[ForgetRequest],
    protocols: Sequence[UnlearningProtocol],
    *,
    reference: bool,
    execution: ExecutionConfig,
    tell: Callable[[str], None],
) -> tuple[list[Outcome], list[Refusal]]:
    """Carry out every request by every protocol, each a trial on the same run.

    A protocol that refuses does not keep the others from trying.

    Args:
        run: The trained run, in its folder.
        requests: Resolved requests with ids.
        protocols: The protocols.
        reference: Whether the network is retrained, once per request.
        execution: What changes the speed of retraining only.
        tell: Called with one line before each part of the work.

    Returns:
        The outcomes, and what was refused.
    """
    assert run.folder is not None
    known: list[Outcome] = []
    if (run.folder / "outcomes").is_dir():
        known = load_outcomes(run)
    outcomes: list[Outcome] = []
    refusals: list[Refusal] = []
    for request in requests:
        before = [o for o in known if o.request == request]
        yardstick = next((o.reference for o in before if o.reference), None)
        for protocol in protocols:
            name = label_of(protocol)
            kept = [o for o in before if same_protocol(o.protocol, protocol)]
            if kept:
                outcomes.append(kept[0])
                continue
            if reference and yardstick is None:
                rows = request.size(run.data)
                tell(f"retraining without {rows} rows, as the yardstick")
                yardstick = retrain(run, run.data.without(request), execution=execution)
            tell(f"forgetting {request.request_id} by {name}")
            try:
                outcome = unlearn(
                    run,
                    request,
                    protocol,
                    reference=yardstick if reference and yardstick else False,
                    folder=run.folder,
                )
            except RefusedError as error:
                refused = Refusal(
                    request_id=request.request_id, protocol=name, error=error
                )
                tell(f"refused: {refused}")
                refusals.append(refused)
                continue
            outcomes.append(outcome)
    return outcomes, refusals


def write_results(
    folder: RunFolder,
    run: TrainedRun,
    outcomes: Sequence[Outcome],
    tables: Sequence[ResultsTable],
    report: ReportSection,
    page: str | Path | None = None,
    refusals: Sequence[Refusal] = (),
) -> Path | None:
    """Write metric rows, tables, figures and the page of a run.

    Args:
        folder: The run folder.
        run: The run.
        outcomes: Its outcomes.
        tables: One table of metrics per outcome.
        report: Which figures and whether the page.
        page: Where the page goes; None is ``report.html`` in the folder.
        refusals: What was refused; noted in the results.

    Returns:
        Where the page was written, or None.
    """
    with folder.locked():
        _write_rows(folder, run, tables, refusals)
    if tables:
        rows = ResultsTable.concat(tables)
        network = ResultsTable(rows=tuple(r for r in rows.rows if r["peer"] == NETWORK))
        peers = ResultsTable(rows=tuple(r for r in rows.rows if r["peer"] != NETWORK))
        for name, part in (("metrics", network), ("peers", peers)):
            for kind, write in (("csv", part.to_csv), ("parquet", part.to_parquet)):
                place = folder.path(f"tables/{name}.{kind}")
                place.parent.mkdir(exist_ok=True)
                write(place)
    source: Any = list(outcomes) if outcomes else run
    view = ResultsView.of(source, list(tables) if outcomes else None)
    if (report.figures or report.html) and view.influence().mode == "exact":
        keep_influence(run.replaced(folder=folder.root), view.influence())
    if report.figures:
        figures = folder.path("figures")
        figures.mkdir(exist_ok=True)
        still = [kind for kind in report.figures if kind != "gif"]
        save_figures(view, figures, formats=still)
        if "gif" in report.figures:
            from dfl_unlearn.plots.animation import write_influence_gif

            trace = view.influence()
            write_influence_gif(view.topology, trace, figures / "influence.gif")
    if not report.html:
        return None
    return write_report(view, page if page is not None else folder.path("report.html"))


def _known_rows(folder: RunFolder) -> tuple[Counter[Any], list[Any]]:
    """Return how often each metric row is there, and refusals told."""
    with understood(f"{folder.root}/results.jsonl"):
        rows = list(folder.records())
        known = Counter(_key(row) for row in rows if row["type"] == "metric")
        return known, [row["detail"] for row in rows if row.get("what") == "refused"]


def _write_rows(
    folder: RunFolder,
    run: TrainedRun,
    tables: Sequence[ResultsTable],
    refusals: Sequence[Refusal],
) -> None:
    """Add what is not in the results yet, row by row: a kill may have cut a table.

    A protocol that is tried with several settings has rows that look alike.
    """
    known, told = _known_rows(folder)
    for table in tables:
        for row in table.rows:
            if known[_key(row)]:
                known[_key(row)] -= 1
            else:
                folder.append({"type": "metric", **_finite(row)})
    for refused in refusals:
        if str(refused) not in told:
            folder.append(
                {
                    "type": "event",
                    "round": run.state.round,
                    "what": "refused",
                    "detail": str(refused),
                }
            )
    folder.sync()


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in COLUMNS if column != "value")


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric row as JSON values; a number that is not finite is a note."""
    value = row["value"]
    if math.isfinite(value):
        return dict(row)
    return {**row, "value": None, "note": repr(float(value))}
