"""The test hook: workers that die, or dawdle, where a test wants them to.

``DFL_UNLEARN_FAULT`` holds entries that commas keep apart:

- ``worker:<round>:<phase>[:<which>[:<times>]]`` kills workers by SIGKILL in a round
  (from 1). ``which`` is a worker's number or ``*`` (default) for all; it dies in each
  of the first ``times`` (1) tries of the round.
- ``delay:<milliseconds>[:<seed>]`` makes every worker wait before each part of a round,
  for a time that the seed, the worker and the round give: what is ready first changes.

Entries that begin otherwise are for other parts of the program and are skipped.
"""

import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass

from dfl_unlearn.errors import ConfigError

FAULT = "DFL_UNLEARN_FAULT"
_WORKER = re.compile(r"worker:(\d{1,9}):([a-z-]+)(?::(\d{1,9}|\*)(?::(\d{1,9}))?)?")
_DELAY = re.compile(r"delay:(\d{1,9})(?::(\w{1,40}))?")
PHASES = ("before-compute", "after-compute", "during-return")


@dataclass(frozen=True, kw_only=True)
class Death:
    """Where workers kill themselves.

    Attributes:
        round: The round, from 1.
        phase: One of ``PHASES``.
        which: Number of the worker; None is all of them.
        times: Tries of the round in which it happens.
    """

    round: int
    phase: str
    which: int | None = None
    times: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.round < 1 or self.times < 1 or self.phase not in PHASES:
            raise ConfigError(
                f"{FAULT}: a worker's entry must have a round and a number of times "
                f">= 1 and a phase of {', '.join(PHASES)}, got {self.round}, "
                f"{self.times} and {self.phase[:200]!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What a worker does to itself.

    Attributes:
        deaths: Where workers kill themselves.
        delay_ms: Longest wait before a part of a round, milliseconds.
        seed: Changes the waits.
    """

    deaths: tuple[Death, ...] = ()
    delay_ms: float = 0.0
    seed: str = "0"

    def strikes(self, worker: int, t: int, attempt: int, phase: str) -> bool:
        """Tell whether a worker is to die here.

        Args:
            worker: Its number.
            t: The round, from 0.
            attempt: How often the round was tried before.
            phase: One of ``PHASES``.

        Returns:
            Whether.
        """
        return any(
            (death.round, death.phase) == (t + 1, phase)
            and death.which in (None, worker)
            and attempt < death.times
            for death in self.deaths
        )

    def dawdle(self, worker: int, t: int, attempt: int, part: str) -> None:
        """Wait for a time that the arguments and the seed give.

        Args:
            worker: Number of the worker.
            t: The round, from 0.
            attempt: How often the round was tried before.
            part: Of the round.
        """
        if self.delay_ms > 0:
            text = f"{self.seed}|{worker}|{t}|{attempt}|{part}"
            first = hashlib.sha256(text.encode()).digest()[:4]
            share = int.from_bytes(first, "big") / 2**32
            time.sleep(share * self.delay_ms / 1000)


class DiesWhenSent:
    """Kills the process that turns it into bytes: it dies while it answers."""

    def __reduce__(self) -> str | tuple[object, ...]:
        """Die."""
        die()
        return "never"


def die() -> None:
    """End this process as nothing else could."""
    os.kill(os.getpid(), signal.SIGKILL)


def read_faults() -> Faults:
    """Return what the environment variable asks for.

    Returns:
        The faults; none where it is not set.

    Raises:
        ConfigError: If an entry is not of the form above.
    """
    deaths: list[Death] = []
    delay = ("0", "0")
    for entry in filter(None, os.environ.get(FAULT, "").split(",")):
        if entry.startswith("worker:"):
            found = _WORKER.fullmatch(entry)
            if found is not None:
                round_, phase, which, times = found.groups()
                deaths.append(
                    Death(
                        round=int(round_),
                        phase=phase,
                        which=int(which) if (which or "*") != "*" else None,
                        times=int(times or 1),
                    )
                )
        elif entry.startswith("delay:"):
            found = _DELAY.fullmatch(entry)
            if found is not None:
                delay = (found[1], found[2] or "0")
        else:
            continue
        if found is None:
            raise ConfigError(
                f"{FAULT}: must be worker:<round>:<phase>[:<which>[:<times>]] or "
                f"delay:<milliseconds>[:<seed>], got {entry[:200]!r}"
            )
    return Faults(deaths=tuple(deaths), delay_ms=float(delay[0]), seed=delay[1])
