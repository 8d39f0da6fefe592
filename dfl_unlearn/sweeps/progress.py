"""How far a sweep is, and when the rest will be done."""

import sys
from collections.abc import Sequence
from typing import Any


class SweepProgress:
    """A bar on a terminal, a plain line per tenth of what is to do elsewhere."""

    def __init__(
        self, total: int, done: Sequence[float], failed: int, *, jobs: int, show: bool
    ) -> None:
        """Begin to count.

        Args:
            total: All cases.
            done: Seconds of those that are complete already.
            failed: Those that failed earlier and are not tried again.
            jobs: Cases side by side.
            show: Whether anything is shown.
        """
        self.done, self.failed = len(done), failed
        self._total, self._jobs, self._show = total, jobs, show
        self._before = self.done + failed
        self._seconds = list(done)
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("sweep"),
                BarColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self.text(), total=total)
            self._bar.start()
            self.look()

    def ended(self, seconds: float, *, failed: bool) -> None:
        """Count a case.

        Args:
            seconds: What it took.
            failed: Whether it failed.
        """
        self._seconds.append(seconds)
        self.done += not failed
        self.failed += failed
        now = self.done + self.failed - self._before
        every = max(1, (self._total - self._before) // 10)
        if self._bar is not None:
            self.look()
        elif self._show and (now % every == 0 or self._left() == 0):
            sys.stderr.write(f"sweep: {self.text()}\n")

    def look(self) -> None:
        """Show the estimate as it is now."""
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self.done + self.failed,
                description=self.text(),
            )

    def remaining(self) -> float | None:
        """Return the seconds that the rest will take, or None before a case ended.

        A case that is being run counts as not begun: the estimate errs to the long
        side by less than one case.
        """
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        side_by_side = max(1, min(self._jobs, self._left()))
        return mean * self._left() / side_by_side

    def text(self) -> str:
        """Return how many of how many, what failed, and what remains."""
        said = f"{self.done + self.failed} of {self._total} cases"
        if self.failed:
            said += f", {self.failed} failed"
        left = self.remaining()
        if left is not None and self._left():
            said += f", about {duration(left)} left"
        return said

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _left(self) -> int:
        return self._total - self.done - self.failed


def duration(seconds: float) -> str:
    """Return seconds in words: ``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
