"""A run folder while its run trains: figures as they come, checkpoints in between."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from dfl_unlearn._stopping import StoppedError, asked, stops_between_rounds
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.engine.checkpoint import Identity, write_checkpoint
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.figures import Evaluated
from dfl_unlearn.engine.progress import Progress
from dfl_unlearn.engine.stored_parts import round_row
from dfl_unlearn.errors import ResourceError, StalledError
from dfl_unlearn.store.folder import RunFolder

CHECKPOINT_SECONDS = 30.0
"""Seconds of training between checkpoints where ``checkpoint_every`` is ``auto``."""


class Keeper:
    """Keeps what training gives; without a folder it only watches the clock."""

    def __init__(
        self,
        execution: ExecutionConfig,
        *,
        folder: RunFolder | None = None,
        identity: Identity | None = None,
        ledger: PrivacyLedger | None = None,
    ) -> None:
        """Prepare for a training that is about to begin or to go on.

        Args:
            execution: Cadence, number of checkpoints and time limit.
            folder: The run's folder, locked; None keeps nothing.
            identity: What its checkpoints belong to.
            ledger: The run's ledger.
        """
        self._execution = execution
        self._folder, self._identity, self._ledger = folder, identity, ledger
        self._began = time.monotonic()
        self._spent, self._rounds = 0.0, 0
        self._kept: int | None = None
        self._written: set[int] = set()
        if folder is not None:
            self._written = {
                int(row["round"])
                for row in folder.records()
                if row.get("type") == "round"
            }

    @contextmanager
    def telling_how(self) -> Iterator[None]:
        """Say of what ends a block, a signal or the engine's end, how to go on.

        Yields:
            Nothing.

        Raises:
            StoppedError: The same, with a remedy.
            StalledError: Likewise, where workers gave no answer.
            ResourceError: Likewise, where they or Ray itself died.
        """
        try:
            yield
        except StoppedError as stop:
            text = str(stop)
            if self._folder is not None and self._how() not in text:
                text = f"{text}; {self._how()}"
            raise StoppedError(stop.signum, text) from None
        except StalledError as error:
            raise StalledError(self._and_how(error)) from error.__cause__
        except ResourceError as error:
            if type(error) is not ResourceError:  # of the folder itself
                raise
            raise ResourceError(self._and_how(error)) from error.__cause__

    def _and_how(self, error: Exception) -> str:
        text = str(error)
        if self._folder is None or self._how() in text:
            return text
        return (
            f"{text.removesuffix('.')}. Rounds up to the last checkpoint are saved; "
            f"{self._how()}"
        )

    def between_rounds(self) -> AbstractContextManager[None]:
        """Let a signal wait for the end of its round, where there is a folder."""
        return nullcontext() if self._folder is None else stops_between_rounds()

    def evaluated(self, row: Evaluated) -> None:
        """Write a row of figures, unless it is there from before an interruption."""
        if self._folder is not None and row[0] not in self._written:
            self._folder.append(round_row(*row))
            self._written.add(row[0])

    def after(
        self, done: int, rounds: int, seconds: float, progress: Callable[[], Progress]
    ) -> None:
        """Write a checkpoint where one is due; stop where that was asked for.

        Args:
            done: Rounds completed.
            rounds: Rounds planned; after the last one there is nothing to do.
            seconds: What the last round took.
            progress: Gives what to keep.

        Raises:
            StoppedError: If a signal came.
            ResourceError: If the time limit has passed.
        """
        if done >= rounds:
            return
        self._spent, self._rounds = self._spent + seconds, self._rounds + 1
        signum, limit = asked(), self._execution.max_wall_s
        late = limit is not None and time.monotonic() - self._began > limit
        if self._kept is None:
            self._kept = done - 1
        if self._folder is not None and (
            signum is not None or late or done - self._kept >= self._every()
        ):
            assert self._identity is not None
            assert self._ledger is not None
            write_checkpoint(
                self._folder,
                progress(),
                self._identity,
                ledger=self._ledger.head,
                keep=self._execution.keep,
            )
            self._kept = done
        if signum is not None:
            raise StoppedError(
                signum, f"interrupted after round {done} of {rounds}; {self._how()}"
            )
        if late:
            raise ResourceError(
                f"max_wall_s: must be enough for {rounds} rounds, got {limit:g}, which "
                f"ended after round {done}; {self._how()}"
            )

    def _every(self) -> int:
        every = self._execution.checkpoint_every
        if every != "auto":
            return every
        mean = max(self._spent / self._rounds, 1e-9)
        return max(1, round(CHECKPOINT_SECONDS / mean))

    def _how(self) -> str:
        if self._folder is None:
            return "it has no run folder, so nothing was kept"
        return f"resume with: dfl-unlearn resume {self._folder.root}"
