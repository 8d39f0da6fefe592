"""Write one self-contained page about finished work: a run and its outcomes.

What stands on it is in ``pages``: ``pages.run`` has the order, one module a section.
"""

from collections.abc import Sequence
from pathlib import Path

from dfl_unlearn.engine.run import TrainedRun, load_run
from dfl_unlearn.pages.run import run_page
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.files import write_file, writing
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.store import load_outcomes

Source = Outcome | Sequence[Outcome] | TrainedRun | ResultsView | str | Path


def write_report(source: Source, path: str | Path) -> Path:
    """Write one HTML page with interactive figures inside, whole or not at all.

    The page is read from disk and asks nothing of the network. Equal work gives equal
    pages, byte for byte.

    Args:
        source: An outcome, several outcomes of one run, a run alone, a view, or the
            folder of a run with all that was tried on it.
        path: The file, e.g. ``"report.html"``; its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    page = report_page(source)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.encode())
    return path


def report_page(source: Source) -> str:
    """Return the page as text.

    Args:
        source: What to report on, as for ``write_report``.

    Returns:
        A whole HTML document.
    """
    if isinstance(source, str | Path):
        run = load_run(source)
        source = load_outcomes(run) or run
    return run_page(ResultsView.of(source))
