"""Hooks after a round: progress and whatever a user adds.

A callback has any of ``on_round(info)``, ``on_evaluate(history)`` (all evaluations so
far) and ``on_end(run)``. One that raises ends the call that it watches, with its own
error and between two rounds: a run in a folder goes on from its newest checkpoint by
``resume``, to the bits of a run that was never stopped.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from dfl_unlearn.engine.backends.contract import RoundInfo

logger = logging.getLogger(__name__)

Callback = Any  # an object with some of the methods above


def notify(callbacks: Sequence[Callback], hook: str, *args: Any) -> None:
    """Call one hook of every callback that has it."""
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(*args)


class ProgressLog:
    """A progress bar on a terminal, one log line per tenth of the run elsewhere."""

    def __init__(self, rounds: int, *, label: str = "training") -> None:
        """Prepare the bar.

        Args:
            rounds: Rounds to come.
            label: What is going on.
        """
        self._rounds = rounds
        self._label = label
        self._every = max(1, rounds // 10)
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("rounds"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(label, total=rounds)
            self._bar.start()

    def on_round(self, info: RoundInfo) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=info.round)
        elif info.round % self._every == 0 or info.round == self._rounds:
            logger.info(
                "%s: round %d of %d, mean loss %.4f",
                self._label,
                info.round,
                self._rounds,
                info.loss.mean(),
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
