"""Carry out a sweep in a folder: what is missing, side by side, and then the tables."""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from dfl_unlearn import _validate
from dfl_unlearn.experiment import to_config
from dfl_unlearn.results.sweep import CASES, FAILURES, SweepView
from dfl_unlearn.store.files import make_folder, writing
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.lines import LineFile
from dfl_unlearn.store.table import ResultsTable
from dfl_unlearn.sweeps.cases import check_case, run_case
from dfl_unlearn.sweeps.failures import described, write_failure
from dfl_unlearn.sweeps.folder import check_plan, plan_of, write_plan
from dfl_unlearn.sweeps.plan import PlannedCase, Sweep
from dfl_unlearn.sweeps.pool import Ended, TaskOf, failed, side_by_side
from dfl_unlearn.sweeps.progress import SweepProgress


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    jobs: int = 1,
    *,
    retry_failed: bool = False,
    progress: bool = False,
    engine: Literal["processes", "ray"] = "processes",
    pages: bool = False,
    max_graph_mb: int | None = None,
) -> ResultsTable:
    """Run every case that is not complete and return the rows of all that are.

    Everything is checked before anything is written. Called again, also after a kill,
    it goes on: complete cases are skipped, partial ones resumed. More values or seeds
    may be added later, and the cases that are there count. A case that fails is noted
    in ``failures.jsonl`` and stops no other; a protocol that refuses only has no rows.
    The results depend neither on ``jobs`` nor on ``engine``.

    Args:
        sweep: What to run.
        folder: Its folder, e.g. ``runs/topology``; made if it is not there.
        jobs: Cases side by side, each with one thread; 1 runs them in this process.
            Those whose own training asks for Ray run one by one after the others.
        retry_failed: Whether cases that failed in an earlier call are tried again.
        progress: Whether to show how far it is and what remains: a bar on a terminal,
            elsewhere a line per tenth.
        engine: Who runs cases side by side, processes of this machine or Ray.
        pages: Whether every case writes figures and its page as the base's ``report``
            says; otherwise none does.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Returns:
        The metric rows of all complete cases; ``case`` names the case.

    Raises:
        ConfigError: If a case cannot be read, or the folder holds another sweep.
        RunLockedError: If another process runs a sweep there.
    """
    _validate.integer(jobs=jobs, at_least=1, at_most=1024)
    _validate.one_of(("processes", "ray"), engine=engine)
    root = Path(folder)
    cases = sweep.cases(pages=pages)
    plan = plan_of(sweep, cases)
    check_plan(root, plan)
    make_folder(root / CASES)
    _make_lock(root / "lock")
    held = RunFolder(root)
    with held.locked():
        check_plan(root, plan)
        write_plan(root, plan)
        failures = LineFile(root / FAILURES, held.locked)
        before = {case.name: case for case in SweepView.open(root).cases}
        skipped = ("done",) if retry_failed else ("done", "failed")
        left = [c for c in cases if before[c.name].status not in skipped]
        done = [case for case in before.values() if case.status == "done"]
        for case in done:
            check_case(case.folder)
        place = held.root / CASES

        def task_of(case: PlannedCase) -> dict[str, Any]:
            return {
                "place": str(place / case.name),
                "config": to_config(case.experiment),
                "max_graph_mb": max_graph_mb,
            }

        bar = SweepProgress(
            len(cases),
            [case.seconds for case in done if case.seconds is not None],
            len(cases) - len(done) - len(left),
            jobs=jobs,
            show=progress,
        )
        try:
            with closing(_all(left, jobs, engine, task_of)) as all_ended:
                for ended in all_ended:
                    if ended is None:
                        bar.look()
                        continue
                    if ended.failure is not None:
                        write_failure(failures, ended.failure)
                    bar.ended(ended.seconds, failed=ended.failure is not None)
        finally:
            bar.close()
            view = SweepView.open(root)
            view.write_tables()
    return view.table


def _make_lock(place: Path) -> None:
    """Make the file that is locked, unless it is there.

    It is never replaced: another program may have made and locked it meanwhile.

    Args:
        place: The file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with writing(place):
        os.close(os.open(place, flags, 0o644))


def _all(
    cases: Sequence[PlannedCase], jobs: int, engine: str, task_of: TaskOf
) -> Generator[Ended | None, None, None]:
    """Run cases, those that use Ray themselves one by one at the end.

    Args:
        cases: What to run.
        jobs: Cases side by side.
        engine: Who runs them side by side.
        task_of: Gives the arguments of ``run_case``.

    Yields:
        Every case as it ends, and None now and then in between.
    """
    alone = [c for c in cases if c.experiment.execution.engine != "inline"]
    together = [c for c in cases if c.experiment.execution.engine == "inline"]
    if engine == "ray" and together:
        from dfl_unlearn.sweeps.on_ray import side_by_side_on_ray

        yield from side_by_side_on_ray(together, jobs, task_of)
    elif jobs > 1 and together:
        yield from side_by_side(together, jobs, task_of)
    else:
        alone = [*together, *alone]
    for case in alone:
        yield _here(case, task_of)


def _here(case: PlannedCase, task_of: TaskOf) -> Ended:
    """Run one case in this process."""
    began = time.monotonic()
    try:
        run_case(**task_of(case))
    except Exception as error:
        return failed(case, time.monotonic() - began, *described(error))
    return Ended(case, time.monotonic() - began)
