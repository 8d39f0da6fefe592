"""Cases of a table: each computed once, kept as soon as it is done, side by side.

A case is a frozen dataclass of numbers and words; its rows lie in
``cases/<digest>.json`` below the script's folder, and the digest covers the case and
``FORMAT`` (raise it where only code changes a row). What is there is not computed
again, so a run that was stopped goes on where it was.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.store.files import write_file

FORMAT = 1

C = TypeVar("C")
Row = dict[str, Any]
Compute = Callable[[C], Iterable[Row]]


def run_cases(
    cases: Sequence[C], compute: Compute[C], folder: Path, workers: int
) -> Iterator[tuple[C, list[Row]]]:
    """Yield every case with its rows, as they are finished.

    Args:
        cases: Frozen dataclasses, all different.
        compute: Gives a case's rows; a function of a module, for other processes.
        folder: Where the cases are kept.
        workers: Processes; 0 is one per core.

    Yields:
        The case and its rows, which hold nothing but numbers, words and None.
    """
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    workers = min(workers or os.cpu_count() or 1, len(cases))
    if workers <= 1:
        for case in cases:
            yield case, rows_of(case, compute, folder)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(rows_of, case, compute, folder): case for case in cases}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def rows_of(case: C, compute: Compute[C], folder: Path) -> list[Row]:
    """Return a case's rows from its file, or compute and keep them."""
    path = folder / "cases" / f"{digest(case)}.json"
    if path.is_file():
        kept: list[Row] = json.loads(path.read_text())["rows"]
        return kept
    with limited_threads(1):
        rows = list(compute(case))
    text = json.dumps({"case": asdict(case), "rows": rows}, indent=1, allow_nan=False)  # type: ignore[call-overload]
    write_file(path, text.encode())
    return rows


def digest(case: object) -> str:
    """Return what names a case's file: 12 hexadecimal digits."""
    what = {"format": FORMAT, "kind": type(case).__name__, **asdict(case)}  # type: ignore[call-overload]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
