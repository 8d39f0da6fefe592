"""Crashes and refusals at every single file operation of a piece of code.

``survivors`` runs something in forked processes, each killed by SIGKILL at another file
operation; ``refusals`` lets one operation after the other fail with a system error.
Reads are not counted: they leave nothing behind. A write that is killed has written
half of its bytes, as on a real disk.
"""

import os
import signal
import traceback
import warnings
from contextlib import contextmanager

CHANGES = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "ftruncate",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextmanager
def watched(before):
    """Call ``before(number, name, arguments)`` ahead of each file operation."""
    real = {name: getattr(os, name) for name in CHANGES}
    count = 0

    def replacement(name):
        def call(*args, **kwargs):
            nonlocal count
            if name != "open" or args[1] & _WRITES:
                count += 1
                before(count, name, args, real)
            return real[name](*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, replacement(name))
    try:
        yield lambda: count
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _die(at):
    def before(number, name, args, real):
        if number == at:
            if name in ("write", "pwrite"):
                data = bytes(args[1])
                real[name](args[0], data[: len(data) // 2], *args[2:])
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def killed_at(action, at):
    """Run an action in a forked process that dies at its file operation ``at``.

    Returns True if it was killed, False if it had finished before.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        code = 1
        try:
            with watched(_die(at)):
                action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed by itself, see above"
    return False


def survivors(prepare, action, *, first=1, step=1):
    """Yield ``(k, place)`` for every k: a fresh place in which the action died at k.

    ``prepare()`` makes a place, ``action(place)`` is killed in it. Ends with the first
    k that the action does not reach.
    """
    at = first
    while True:
        place = prepare()
        if not killed_at(lambda here=place: action(here), at):
            assert at > first, "the action has no file operation at all"
            return
        yield at, place
        at += step


def refusals(prepare, action, number, *, step=1):
    """Yield ``(k, place, error)``: the action met a system error at operation k.

    The error is what the action raised, or None if it went on without complaint.
    """
    at = 1
    while True:
        place, met = prepare(), False

        def before(k, name, args, real, at=at):
            nonlocal met
            if k == at:
                met = True
                raise OSError(number, os.strerror(number))

        error = None
        with watched(before):
            try:
                action(place)
            except BaseException as caught:
                error = caught
        if not met:
            return
        yield at, place, error
        at += step
