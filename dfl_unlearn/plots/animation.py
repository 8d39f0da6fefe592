"""The network moving through the rounds, every peer coloured by its share of influence.

A GIF has 256 colours. All frames share one palette, half of it samples of the scale of
influence, so that a colour means the same share in every frame and nothing flickers.
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.plots._style import GREY, INFLUENCE, INK, STYLE, label
from dfl_unlearn.plots.influence import trace_title
from dfl_unlearn.plots.topology import (
    draw_network,
    influence_scale,
    layout,
    share_ticks,
)
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.store.files import write_file, writing
from dfl_unlearn.topology.graph import Topology

_SIZE = (6.0, 5.4)  # inches
_DPI = 110
_ZOOM = 1.7
_MARGIN = 0.17  # around the network, whose larger side is 2
_MOST_FRAMES = 500
_SHORTEST = 0.02  # seconds of a frame; viewers slow down what is shorter
_FIRST, _LAST = 3.0, 6.0  # how much longer these frames stay than the others


def write_influence_gif(
    topology: Topology,
    trace: InfluenceTrace,
    path: str | Path,
    *,
    rounds: Sequence[int] | None = None,
    frames: int = 24,
    seconds: float = 6.0,
    title: str | None = None,
) -> Path:
    """Write how a peer's influence crosses the network as an endless animation.

    The source has a ring; white peers have not been reached by any message that could
    carry its data. The file is written whole or not at all, and equal input gives
    equal bytes with the same versions of matplotlib and Pillow.

    Args:
        topology: The network, N peers.
        trace: The influence, round by round, on the same peers.
        path: The file; its name ends in ``.gif``. Its folder is made.
        rounds: Which rounds to show, ascending, all of them in ``trace.rounds``; None
            takes ``frames`` of them on a logarithmic scale, from the first with any
            influence to the last.
        frames: How many rounds at most, 2 .. 500; not used with ``rounds``.
        seconds: Of one pass, at least 0.02 per frame. The first and the last frame
            stay longer.
        title: Replaces the first line above the network.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If the trace is empty or of another network, a round is
            not in it, ``path`` does not end in ``.gif``, or a number is out of range.
    """
    _validate.of_type(Topology, topology=topology)
    _validate.of_type(InfluenceTrace, trace=trace)
    _validate.of_type((str, Path), path=path)
    _validate.of_type(str, title="" if title is None else title)
    _validate.integer(frames=frames, at_least=2, at_most=_MOST_FRAMES)
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise InvalidArgumentError(
            f"path: must end in .gif, got {_validate.show(path.name)}; rename it"
        )
    if trace.norms.shape != (len(trace.rounds), topology.n) or not len(trace.rounds):
        raise InvalidArgumentError(
            f"trace: must hold at least one round of the network's {topology.n} peers, "
            f"got norms of shape {trace.norms.shape}; make it from the same run"
        )
    rows = _log_rows(trace, frames) if rounds is None else _given_rows(trace, rounds)
    _validate.number(
        seconds=seconds,
        at_least=_SHORTEST * len(rows),
        at_most=3600,
        why=f"{len(rows)} frames need {_SHORTEST:g} s each",
    )
    if title is None:
        title = trace_title(trace, "peer {}'s influence on every peer")
    data = _draw(topology, trace, rows, label(title, 56), _times(len(rows), seconds))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)
    return path


def _log_rows(trace: InfluenceTrace, frames: int) -> list[int]:
    """Return ascending rows of the trace, near together at first, then apart."""
    reached = trace.norms.sum(axis=1) > 0
    begin = int(reached.argmax()) if reached.any() else 0
    count = len(trace.rounds) - begin
    rows: list[int] = []
    for step in np.geomspace(1, count, min(frames, count)):
        rows.append(max(round(float(step)) - 1, rows[-1] + 1 if rows else 0))
    return [begin + row for row in rows]


def _given_rows(trace: InfluenceTrace, rounds: Sequence[int]) -> list[int]:
    """Return the rows of the trace that hold the given rounds."""
    place = {int(t): row for row, t in enumerate(trace.rounds)}
    if not isinstance(rounds, (list, tuple, range, np.ndarray)):
        _validate.of_type((list, tuple), rounds=rounds)
    if not 2 <= len(rounds) <= _MOST_FRAMES:
        raise InvalidArgumentError(
            f"rounds: must be 2..{_MOST_FRAMES} rounds, got {len(rounds)}; leave them "
            "out to have them chosen"
        )
    for t in rounds:
        _validate.integer(rounds=t)
        if int(t) not in place:
            raise InvalidArgumentError(
                f"rounds: must be among the trace's {len(place)} rounds from "
                f"{trace.rounds[0]} to {trace.rounds[-1]}, got {t}; leave it out"
            )
    if any(b <= a for a, b in pairwise(rounds)):
        raise InvalidArgumentError(
            f"rounds: must be ascending, got {_validate.show(list(rounds))}; sort them"
        )
    return [place[int(t)] for t in rounds]


def _times(count: int, seconds: float) -> list[int]:
    """Return each frame's time in milliseconds, whole hundredths of a second."""
    weights = np.ones(count)
    weights[0], weights[-1] = _FIRST, _LAST
    least = round(100 * _SHORTEST)
    free = max(round(100 * seconds) - least * count, 0)
    ends = np.round(free * np.cumsum(weights) / weights.sum()).astype(int)
    return [10 * (least + int(t)) for t in np.diff(ends, prepend=0)]


def _draw(
    topology: Topology,
    trace: InfluenceTrace,
    rows: list[int],
    title: str,
    times: list[int],
) -> bytes:
    """Return the file's content."""
    n = topology.n
    shares, spread = trace.shares(), trace.effective_spread()
    places, norm = layout(topology, trace.source), influence_scale(n)
    low, high = places.min(axis=0) - _MARGIN, places.max(axis=0) + _MARGIN
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=_SIZE, dpi=_DPI)
        FigureCanvasAgg(figure)
        # Fixed places: a layout that follows the text would make the network jump.
        axes = figure.add_axes((0.03, 0.145, 0.94, 0.735))
        bar = figure.add_axes((0.17, 0.09, 0.66, 0.018))
        figure.colorbar(
            ScalarMappable(norm=norm, cmap=INFLUENCE), cax=bar, orientation="horizontal"
        ).outline.set_visible(False)
        share_ticks(bar, n, which="x")
        bar.set_xlabel(f"share of peer {trace.source}'s influence", fontsize=9)
        figure.text(0.04, 0.945, title, fontsize=11.5, fontweight="bold")
        words: Any = {"fontsize": 10.5, "color": GREY}
        when = figure.text(0.04, 0.898, "", **words)
        where = figure.text(0.24, 0.898, "", **words)
        writer = _GifWriter(times)
        writer.setup(figure, buffer, dpi=_DPI)
        for row in rows:
            axes.clear()
            draw_network(
                axes, topology, places, shares[row], norm, trace.source, zoom=_ZOOM
            )
            axes.set_xlim(low[0], high[0])
            axes.set_ylim(low[1], high[1])
            when.set_text(f"round {trace.rounds[row]}")
            where.set_text(f"spread over {spread[row]:.1f} of {n} peers")
            writer.grab_frame()
        writer.finish()
    return buffer.getvalue()


class _GifWriter(PillowWriter):
    """Writes frames in one palette, each with its own time, into a buffer."""

    def __init__(self, times: list[int]) -> None:
        super().__init__()
        self._times = times
        self._pictures: list[NDArray[np.uint8]] = []

    def setup(self, fig: Figure, outfile: Any, dpi: float | None = None) -> None:
        """Take the figure; ``outfile`` is a buffer, unlike matplotlib's."""
        super().setup(fig, "unused.gif", dpi=dpi)
        self._buffer = outfile

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        """Draw the figure and keep its pixels."""
        canvas: Any = self.fig.canvas
        canvas.draw()
        self._pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())

    def finish(self) -> None:
        """Write the file."""
        from PIL import Image

        colours, frames = _palette(), []
        nearest = _Nearest(colours)
        for picture in self._pictures:
            frame = Image.fromarray(nearest(picture))
            frame.putpalette(colours.tobytes())
            frames.append(frame)
        frames[0].save(
            self._buffer,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=self._times,
            loop=0,
            optimize=False,
        )


def _palette() -> NDArray[np.uint8]:
    """Return 256 colours: white, the scale of influence, and greys for lines and text.

    The scale comes also mixed with white, for the smooth edges of letters.
    """
    scale = INFLUENCE(np.linspace(0, 1, 144))[:, :3]
    pale = 0.5 + INFLUENCE(np.linspace(0.3, 1, 47))[:, :3] / 2
    greys = LinearSegmentedColormap.from_list("greys", ["white", INK])
    colours = np.concatenate([greys(np.linspace(0, 1, 65))[:, :3], scale, pale])
    return np.round(255 * colours).astype(np.uint8)


class _Nearest:
    """Finds each pixel's nearest colour, exactly; Pillow's own search is not exact."""

    def __init__(self, colours: NDArray[np.uint8]) -> None:
        self._colours = colours.astype(np.int32)
        # Pictures repeat few colours of the 2**24: what was found once is kept.
        self._known = np.full(2**24, -1, dtype=np.int16)

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return indices into the colours, ``(H, W)``, for pixels ``(H, W, 3)``."""
        red, green, blue = (picture[..., k].astype(np.int32) for k in range(3))
        packed = red << 16 | green << 8 | blue
        new = np.unique(packed[self._known[packed] < 0])
        for part in np.array_split(new, len(new) // 4096 + 1):
            each = (part[:, None] >> np.array([16, 8, 0], dtype=np.int32)) & 255
            apart = ((each[:, None] - self._colours) ** 2).sum(axis=2)
            self._known[part] = apart.argmin(axis=1)
        indices: NDArray[np.uint8] = self._known[packed].astype(np.uint8)
        return indices
