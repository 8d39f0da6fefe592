"""Write one self-contained page about finished work: a run and its outcomes, a sweep.

What stands on it is in ``pages``: ``pages.run`` and ``pages.sweep`` have the order, one
module a section.
"""

from collections.abc import Sequence
from pathlib import Path

from dfl_unlearn.engine.run import TrainedRun, load_run
from dfl_unlearn.pages.run import run_page
from dfl_unlearn.pages.sweep import sweep_page
from dfl_unlearn.results.sweep import PLAN, SweepView
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.files import write_file, writing
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.store import load_outcomes

Source = Outcome | Sequence[Outcome] | TrainedRun | ResultsView | SweepView | str | Path


def write_report(source: Source, path: str | Path) -> Path:
    """Write one HTML page with interactive figures inside, whole or not at all.

    The page is read from disk and asks nothing of the network. Equal work gives equal
    pages, byte for byte.

    Args:
        source: An outcome, several outcomes of one run, a run alone, a view, or the
            folder of a run with all that was tried on it; or a sweep, complete or not,
            as a view or its folder.
        path: The file, e.g. ``"report.html"``; its folder is made. The page of a sweep
            links to the cases that lie below that folder.

    Returns:
        The path.
    """
    path = Path(path)
    page = report_page(source, folder=path.parent)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.encode())
    return path


def report_page(source: Source, *, folder: Path | None = None) -> str:
    """Return the page as text.

    Args:
        source: What to report on, as for ``write_report``.
        folder: Where the page will lie, for its links; None is without links.

    Returns:
        A whole HTML document.
    """
    if isinstance(source, str | Path) and (Path(source) / PLAN).is_file():
        source = SweepView.open(source)
    if isinstance(source, SweepView):
        return sweep_page(source, folder=folder)
    if isinstance(source, str | Path):
        run = load_run(source)
        source = load_outcomes(run) or run
    return run_page(ResultsView.of(source))
