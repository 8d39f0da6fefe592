"""What ``dfl-unlearn sweep`` does: list the cases, run them, tell what came of them."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfl_unlearn._stopping import StoppedError
from dfl_unlearn._validate import clean, one_of, show
from dfl_unlearn.cli_output import common, complain, json_text, put, say, shown
from dfl_unlearn.errors import InvalidArgumentError

if TYPE_CHECKING:
    from dfl_unlearn.results.sweep import SweepView
    from dfl_unlearn.sweeps import Sweep


def sweep_of(
    file: Path,
    overrides: Sequence[str],
    *,
    name: str | None,
    mode: str | None,
    samples: int | None,
    seeds: str | None,
    allow_large: bool,
) -> "Sweep":
    """Read a sweep as file and options say.

    Args:
        file: An experiment with or without a table ``[sweep]``.
        overrides: ``key=value`` and ``key=a,b,c``.
        name: Of the sweep and its folder; None is the file's.
        mode: How axes are combined; None is the file's.
        samples: Number of random draws; None is the file's.
        seeds: Integers with commas between; None is the file's.
        allow_large: Whether cases start although memory may not suffice.

    Returns:
        The sweep.
    """
    from dfl_unlearn.sweeps import load_sweep
    from dfl_unlearn.sweeps.axes import MODES

    if mode is not None:
        one_of(MODES, **{"--mode": mode})
    sweep = load_sweep(
        file,
        overrides,
        name=name,
        mode=mode,  # type: ignore[arg-type]
        samples=samples,
        seeds=None if seeds is None else _integers(seeds),
    )
    assert isinstance(sweep.base, Mapping)
    execution = sweep.base.get("execution", {})
    if isinstance(execution, Mapping):
        # A file never gives permission to send code to other machines.
        execution = {**execution, "ray_allow_remote": False}
        if allow_large:
            execution["allow_large"] = True
    return replace(sweep, base={**sweep.base, "execution": execution})


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgumentError(
            f"--seeds: must be integers with commas between, got {show(text)}; e.g. "
            "--seeds 0,1,2"
        ) from None


def list_cases(sweep: "Sweep") -> None:
    """Print every case of a sweep; nothing is written."""
    cases = sweep.cases()
    if common.as_json:
        listed = [{"case": c.name, "point": c.point, "seed": c.seed} for c in cases]
        put(json_text({"name": sweep.name, "cases": listed}))
        return
    for case in cases:
        put(f"{case.name}  {case}")
    say(f"{len(cases)} cases")


def conduct_sweep(
    sweep: "Sweep",
    *,
    jobs: int | None,
    retry_failed: bool,
    engine: str,
    max_graph_mb: int | None,
) -> None:
    """Run a sweep in its folder and tell what came of it.

    Args:
        sweep: What to run.
        jobs: Cases side by side; None is one per core.
        retry_failed: Whether earlier failures are tried again.
        engine: ``processes`` or ``ray``.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Raises:
        StoppedError: If a signal ended it.
    """
    from dfl_unlearn.results.sweep import SweepView
    from dfl_unlearn.store.folder import runs_root
    from dfl_unlearn.sweeps import failed_cases, run_sweep

    one_of(("processes", "ray"), **{"--engine": engine})
    how: Literal["processes", "ray"] = "ray" if engine == "ray" else "processes"
    folder = runs_root(common.runs) / sweep.name
    began = time.monotonic()
    try:
        run_sweep(
            sweep,
            folder,
            _cores() if jobs is None else jobs,
            retry_failed=retry_failed,
            progress=not common.quiet,
            engine=how,
            max_graph_mb=max_graph_mb,
        )
    except StoppedError as stop:
        message = f"{stop}; what is complete stays so, the same command goes on"
        raise StoppedError(stop.signum, message) from None
    view = SweepView.open(folder)
    failures = failed_cases(folder)
    failed = [failures[c.name] for c in view.cases if c.name in failures]
    if common.as_json:
        put(json_text(_document(folder, view, [asdict(f) for f in failed])))
    else:
        done = sum(case.status == "done" for case in view.cases)
        say(
            f"{done} of {len(view.cases)} cases are complete, {len(failed)} failed "
            f"({time.monotonic() - began:.1f} s)"
        )
        say(f"Tables: {shown(folder / 'table.csv')}, table.parquet")
        say(f"Next: dfl-unlearn report {clean(sweep.name)}")
    for failure in failed:
        complain(f"failed: {failure}")
    if failed:
        complain("try again with: --retry-failed")
        sys.exit(failed[0].exit_code)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _document(
    folder: Path, view: "SweepView", failed: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "name": view.name,
        "axes": list(view.axes),
        "seeds": list(view.seeds),
        "cases": [
            {
                "case": case.name,
                "point": case.point,
                "seed": case.seed,
                "status": case.status,
                "digest": case.digest,
                "seconds": case.seconds,
            }
            for case in view.cases
        ],
        "failed": failed,
    }


def report_sweep(folder: Path, formats: Sequence[str], out: Path | None) -> None:
    """Write a sweep's tables, figures and page again, and tell where they are.

    Args:
        folder: The sweep's folder.
        formats: Of the figures, as given to ``--figures``.
        out: The page; None is ``report.html`` in the folder.

    Raises:
        InvalidArgumentError: If a figure would have to move.
    """
    from dfl_unlearn.plots.sweeps import save_sweep_figures
    from dfl_unlearn.report import write_report
    from dfl_unlearn.results.sweep import SweepView

    if "gif" in formats:
        raise InvalidArgumentError(
            "--figures: must be png, svg or pdf for a sweep, got gif; give the name of "
            "one of its cases to see the influence moving"
        )
    view = SweepView.open(folder)
    view.write_tables()
    save_sweep_figures(view, folder / "figures", formats)  # type: ignore[arg-type]
    page = write_report(view, folder / "report.html" if out is None else out)
    if common.as_json:
        put(json_text({"report": str(page), "cases": len(view.cases)}))
    else:
        put(str(page))
