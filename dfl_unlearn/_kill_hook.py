"""A test hook: the process kills itself at a named point, as nothing else could.

``DFL_UNLEARN_FAULT`` holds points such as ``checkpoint:12:fsync``, with commas between:
who, in which round, after which step. A process that is killed so has no chance to tidy
up, which is what the tests want to see.
"""

import os
import signal

FAULT = "DFL_UNLEARN_FAULT"


def die_if_asked(who: str, when: int, where: str) -> None:
    """Kill this process if the variable names this point.

    Args:
        who: Part of the program, e.g. ``checkpoint``.
        when: Round.
        where: Step that was just done.
    """
    asked = os.environ.get(FAULT)
    if asked and f"{who}:{when}:{where}" in asked.split(","):
        os.kill(os.getpid(), signal.SIGKILL)
