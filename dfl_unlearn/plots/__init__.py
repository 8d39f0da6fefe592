"""Figures of results: each entry draws one from a view, and nothing else.

An entry is a function ``(view, figure) -> None`` that fills an empty figure and may
set its size. It raises ``MissingInputError`` where the view lacks what it shows.
"""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.registry import Registry
from dfl_unlearn.store.files import write_file, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dfl_unlearn.results.view import ResultsView

_LOG = logging.getLogger(__name__)
DPI = 150

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")
# No dates and no programs: equal figures give equal bytes.
_STAMPS: dict[Format, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Plot(Protocol):
    """Draws one figure; a registered function has this signature."""

    def __call__(self, view: "ResultsView", figure: "Figure") -> None:
        """Fill the empty ``figure`` from ``view``."""
        ...


plots: Registry[Plot] = Registry("plots", packages=("dfl_unlearn.plots",))


def draw(name: str, view: "ResultsView") -> "Figure":
    """Draw one registered plot.

    Args:
        name: A registered name, e.g. ``"topology"``.
        view: What to draw.

    Returns:
        The figure, not tied to any window.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dfl_unlearn.plots._style import STYLE

    entry = plots.get(name)
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        entry(view, figure)
    return figure


def render(figure: "Figure", format: Format = "png", dpi: int = DPI) -> bytes:
    """Return a figure as a picture; equal figures give equal bytes.

    Args:
        figure: The figure.
        format: ``png``, ``svg`` or ``pdf``; the last two are vectors, and a PDF holds
            its fonts as TrueType, as publishers ask for.
        dpi: Dots per inch of a PNG.

    Returns:
        The file's content.
    """
    from matplotlib import rc_context

    from dfl_unlearn.plots._style import STYLE

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=format, dpi=dpi, metadata=_STAMPS[format])
    return buffer.getvalue()


def save_figures(
    view: "ResultsView",
    folder: str | Path,
    names: Sequence[str] | Literal["all"] = "all",
    formats: Sequence[Format] = ("png",),
) -> tuple[Path, ...]:
    """Draw figures into a folder, ``<name>.<format>`` each.

    Args:
        view: What to draw.
        folder: Where they go; made if it does not exist.
        names: Registered names; ``"all"`` leaves out those whose input is absent.
        formats: Any of ``png`` (150 dpi), ``svg`` and ``pdf``.

    Returns:
        The files, in the order of ``names``.

    Raises:
        InvalidArgumentError: If ``names`` is another single string.
        MissingInputError: If the view lacks what a named plot shows.
    """
    if isinstance(names, str) and names != "all":
        raise InvalidArgumentError(
            f"names: must be a list of plots or 'all', got {_validate.show(names)}; "
            f"give [{names!r}]"
        )
    for format in formats:
        _validate.one_of(FORMATS, format=format)
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in plots.names() if names == "all" else names:
        try:
            figure = draw(name, view)
        except MissingInputError as error:
            if names != "all":
                raise
            _LOG.info("%s: left out, %s", name, error)
            continue
        for format in formats:
            path = folder / f"{name}.{format}"
            write_file(path, render(figure, format))
            written.append(path)
    return tuple(written)
