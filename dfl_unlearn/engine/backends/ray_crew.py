"""The worker processes of one run: started, asked within time limits, replaced.

Ray never restarts one by itself, since a restarted one has lost its rows, and it never
calls one again by itself, since a call that ran twice is a round that ran twice. Every
wait is cut into short looks: at what is ready, at the clock, at Ray's own processes.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dfl_unlearn.engine.backends.ray_life import Session
from dfl_unlearn.engine.backends.ray_worker import Worker
from dfl_unlearn.engine.config import ExecutionConfig

_LOOK = 0.5  # seconds of one wait
_START = 300.0  # seconds that the start of processes may take at least
_RESTARTS = 0  # by Ray itself; other values are for tests of the epoch check


class SilenceError(Exception):
    """No worker gave an answer for ``stall_timeout_s``.

    Attributes:
        waiting: The workers that were waited for.
    """

    def __init__(self, waiting: Sequence[int]) -> None:
        """Keep who was waited for."""
        super().__init__(f"no answer of workers {list(waiting)}")
        self.waiting = tuple(waiting)


class Crew:
    """Some workers, by number; a place is empty until ``bring`` fills it."""

    def __init__(
        self, session: Session, execution: ExecutionConfig, threads: int
    ) -> None:
        """Prepare a crew of nobody.

        Args:
            session: The running Ray.
            execution: Time limits.
            threads: Threads of the linear algebra of each worker.
        """
        self._session = session
        self._ray = session.ray
        self._execution = execution
        self._threads = threads
        self._moved = time.monotonic()
        self.actors: list[Any] = []
        self.late: set[int] = set()
        self._greeted: set[int] = set()

    def resize(self, size: int) -> None:
        """End all workers; as many places as asked are empty afterwards."""
        for actor in self.actors:
            self._end(actor)
        self.actors = [None] * size
        self._greeted = set()

    def bring(self, ready: Sequence[str]) -> list[int]:
        """Fill the empty places, with workers that an earlier run left or new ones.

        Args:
            ready: What each worker says when it holds the data it should.

        Returns:
            The workers that must get their data.
        """
        self._session.check()
        empty = [s for s, actor in enumerate(self.actors) if actor is None]
        while empty and (actor := self._left_over()) is not None:
            self.actors[empty.pop()] = actor
        for s in empty:  # their processes start side by side
            self.actors[s] = (
                self._ray.remote(Worker)
                .options(
                    num_cpus=1,
                    max_restarts=_RESTARTS,
                    max_task_retries=0,
                    scheduling_strategy="SPREAD",
                )
                .remote(self._threads)
            )
        said = self.ask(
            {s: a.ready.remote() for s, a in enumerate(self.actors)},
            limit=max(_START, self._execution.block_timeout_s),
        )
        self._session.remember(pid for pid, _ in said.values())
        self._greeted = set(said)
        return [s for s, (_, held) in said.items() if held != ready[s]]

    def ask(
        self,
        calls: Mapping[int, Any],
        *,
        moves: bool = False,
        limit: float | None = None,
    ) -> dict[int, Any]:
        """Wait for one answer of each of some workers.

        Args:
            calls: Worker -> the reference of its call.
            moves: Whether an answer shows that the run gets on.
            limit: Seconds to wait; None is ``block_timeout_s``.

        Returns:
            Worker -> answer, in the same order.

        Raises:
            SilenceError: If nothing got on for ``stall_timeout_s``.
            Exception: What a call raised; Ray's ``GetTimeoutError`` after the limit,
                ``late`` then holds who did not answer.
        """
        refs = list(calls.values())
        limit = self._execution.block_timeout_s if limit is None else limit
        began, ready = time.monotonic(), 0
        while True:
            done, left = self._ray.wait(refs, num_returns=len(refs), timeout=_LOOK)
            now = time.monotonic()
            if len(done) > ready and moves:
                self._moved = now
            ready = len(done)
            self._session.check()
            if not left:
                break
            for ref in done:  # one that failed ends the wait
                self._ray.get(ref, timeout=self._execution.block_timeout_s)
            waiting = [s for s, ref in calls.items() if ref in set(left)]
            if now - self._moved > self._execution.stall_timeout_s:
                raise SilenceError(waiting)
            if now - began > limit:
                self.late |= set(waiting)
                raise self._ray.exceptions.GetTimeoutError(
                    f"no answer of workers {waiting} for {limit:g} s"
                )
        found = self._ray.get(refs, timeout=self._execution.block_timeout_s)
        return dict(zip(calls, found, strict=True))

    def rest(self) -> None:
        """Count silence from now on; whoever uses the crew did something else."""
        self._moved = time.monotonic()

    def lost(self) -> list[int]:
        """Empty the places of workers that died or were late.

        Returns:
            Their numbers.
        """
        found = []
        for s, actor in enumerate(self.actors):
            if s in self.late or (actor is not None and not self._answers(s, actor)):
                found.append(s)
                self._end(actor)
                self.actors[s] = None
        self.late.clear()
        self._greeted -= set(found)
        return found

    def alive(self) -> int:
        """Return how many workers have started and have not been given up."""
        return len(self._greeted - self.late)

    def leave(self, *, healthy: bool) -> None:
        """Leave the workers to the session's next run, or end them.

        Args:
            healthy: Whether they all answered lately.
        """
        actors, self.actors = self.actors, []
        for actor in filter(None, actors):
            if healthy:
                actor.forget.remote()
                self._session.idle.append((self._threads, actor))
            else:
                self._end(actor)

    def clear_idle(self) -> None:
        """End the workers that earlier runs left: their memory is needed."""
        while self._session.idle:
            self._end(self._session.idle.pop()[1])

    def _left_over(self) -> Any:
        while self._session.idle:
            threads, actor = self._session.idle.pop()
            if threads == self._threads and self._answers(-1, actor):
                return actor
            self._end(actor)  # its processor is needed
        return None

    def _answers(self, s: int, actor: Any) -> bool:
        try:
            self.ask({s: actor.ready.remote()})
        except SilenceError:
            return False
        except Exception as error:
            if not is_loss(self._ray, cause_of(error)):
                raise
            self.late.discard(s)
            return False
        return True

    def _end(self, actor: Any) -> None:
        if actor is not None and self._session.lives():
            self._ray.kill(actor)


def cause_of(error: Exception) -> Exception:
    """Return the error inside a call that failed."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def is_loss(ray: Any, error: BaseException) -> bool:
    """Tell whether something died or got lost, as opposed to an error of ours.

    Args:
        ray: The module.
        error: What a call raised.

    Returns:
        Whether it may be tried again.
    """
    lost = ray.exceptions
    return isinstance(
        error,
        (
            lost.RayActorError,
            lost.WorkerCrashedError,
            lost.OutOfMemoryError,
            lost.ObjectLostError,
            lost.GetTimeoutError,
            lost.NodeDiedError,
            lost.LocalRayletDiedError,
        ),
    )
