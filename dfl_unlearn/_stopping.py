"""Stopping on SIGINT and SIGTERM without losing what was trained.

Inside ``stops_between_rounds`` the first signal is only noted, so that the loop can
finish its round and write a checkpoint; a round that takes longer than the grace time
is abandoned. Anywhere else it ends the program at once, and so does a second signal
everywhere: whatever is on disk is valid at any moment.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_S = 5.0
"""Seconds that a round may still take after a signal."""

_AT_ONCE = "interrupted; nothing that was finished is lost"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(BaseException):
    """The program was told to end; no handler of ordinary errors may catch it.

    Attributes:
        signum: The signal.
        exit_code: 128 plus the signal's number.
    """

    def __init__(self, signum: int, message: str) -> None:
        """Note the signal and what to tell the user.

        Args:
            signum: The signal.
            message: What was kept and how to go on.
        """
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class _Watch:
    """What the handlers and the loop tell each other."""

    asked: int | None = None
    between_rounds = False
    installed = False


_watch = _Watch()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into ``StoppedError`` while a block runs.

    Yields:
        Nothing.

    Raises:
        StoppedError: Also where the signal hit a library that made another error of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    alarm = signal.getsignal(signal.SIGALRM)
    _watch.asked, _watch.between_rounds, _watch.installed = None, False, True
    _install()
    try:
        yield
    except Exception as error:
        if _watch.asked is None:
            raise
        raise StoppedError(_watch.asked, _AT_ONCE) from error
    finally:
        _watch.asked, _watch.installed = None, False
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in {**before, signal.SIGALRM: alarm}.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def stops_between_rounds() -> Iterator[None]:
    """Let the first signal wait for ``asked`` to be read while a block runs."""
    before, _watch.between_rounds = _watch.between_rounds, _watch.installed
    if _watch.installed:
        _install()  # Ray puts a handler of its own in their place
    try:
        yield
    finally:
        _watch.between_rounds = before


def asked() -> int | None:
    """Return the signal that was noted, and let the grace time run no further."""
    if _watch.asked is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _watch.asked


def _install() -> None:
    for number in _SIGNALS:
        signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)


def _on_signal(signum: int, frame: Any) -> None:
    if _watch.asked is not None:
        os._exit(128 + signum)
    _watch.asked = signum
    if not _watch.between_rounds:
        raise StoppedError(signum, _AT_ONCE)
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def _on_alarm(signum: int, frame: Any) -> None:
    if _watch.asked is not None and _watch.between_rounds:
        raise StoppedError(
            _watch.asked,
            f"interrupted; the round took over {GRACE_S:g} s and was abandoned",
        )
