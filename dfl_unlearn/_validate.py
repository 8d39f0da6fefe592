"""Argument checks whose messages name the argument, its value and the remedy."""

import math
import numbers
import re
from typing import Any

from dfl_unlearn.errors import (
    DflUnlearnError,
    InvalidArgumentError,
    InvalidTypeError,
)

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Device names of Windows: a folder of this name cannot be copied there.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[1-9])(?:\..*)?", re.IGNORECASE)
# Control characters, marks of direction and width that nobody sees, and halves of
# letters: undecodable bytes of a command line, which no terminal can print.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def show(value: object) -> str:
    """Return a value as text for a message: control characters out, 200 letters."""
    try:
        text = repr(value)
    except ValueError:  # integers beyond Python's limit for decimal conversion
        text = "a number with thousands of digits"
        if isinstance(value, int):
            text = f"a number with {int(math.log10(abs(value))) + 1} digits"
    text = _CONTROL.sub("", text)
    return text if len(text) <= 200 else text[:197] + "..."


def clean(text: str) -> str:
    """Return text without control and direction characters, fit for a terminal."""
    return _CONTROL.sub("", text)


def number(
    *,
    error: type[DflUnlearnError] = InvalidArgumentError,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    why: str = "",
    **named: Any,
) -> None:
    """Check that each named value is a finite real number inside the bounds.

    Args:
        error: The class to raise; types are always ``InvalidTypeError``.
        above: Exclusive lower bound.
        at_least: Inclusive lower bound.
        below: Exclusive upper bound.
        at_most: Inclusive upper bound.
        why: A remedy appended to the message.
        **named: The values under their argument names.

    Raises:
        InvalidTypeError: If a value is not a real number.
        DflUnlearnError: ``error``, if a value is not finite or out of bounds.
    """
    parts = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", at_least), ("<", below))
        if bound is not None
    ] + ([f"<= {at_most:g}"] if at_most is not None else [])
    needed = "a finite number" + (" " + " and ".join(parts) if parts else "")
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InvalidTypeError(
                f"{name}: must be {needed}, got {show(value)}{_remedy(why)}"
            )
        x = float(value)
        fits = (
            math.isfinite(x)
            and (above is None or x > above)
            and (at_least is None or x >= at_least)
            and (below is None or x < below)
            and (at_most is None or x <= at_most)
        )
        if not fits:
            raise error(f"{name}: must be {needed}, got {show(value)}{_remedy(why)}")


def integer(
    *,
    error: type[DflUnlearnError] = InvalidArgumentError,
    at_least: int | None = None,
    at_most: int | None = None,
    why: str = "",
    **named: Any,
) -> None:
    """Check that each named value is an integer inside the bounds; bools are not.

    Args:
        error: The class to raise when out of bounds.
        at_least: Inclusive lower bound.
        at_most: Inclusive upper bound.
        why: A remedy appended to the message.
        **named: The values under their argument names.

    Raises:
        InvalidTypeError: If a value is not an integer.
        DflUnlearnError: ``error``, if a value is out of bounds.
    """
    parts = ([f">= {show(at_least)}"] if at_least is not None else []) + (
        [f"<= {show(at_most)}"] if at_most is not None else []
    )
    needed = "an integer" + (" " + " and ".join(parts) if parts else "")
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InvalidTypeError(
                f"{name}: must be {needed}, got {show(value)}{_remedy(why)}"
            )
        if (at_least is not None and int(value) < at_least) or (
            at_most is not None and int(value) > at_most
        ):
            raise error(f"{name}: must be {needed}, got {show(value)}{_remedy(why)}")


def one_of(allowed: tuple[Any, ...], **named: Any) -> None:
    """Check that each named value is one of the allowed ones.

    Args:
        allowed: The values that may be given.
        **named: The values under their argument names.

    Raises:
        InvalidArgumentError: If a value is not among them.
    """
    for name, value in named.items():
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise InvalidArgumentError(
                f"{name}: must be one of {', '.join(map(str, allowed))}, "
                f"got {show(value)}"
            )


def of_type(kind: type | tuple[type, ...], why: str = "", **named: Any) -> None:
    """Check that each named value is an instance of ``kind``.

    Args:
        kind: A class or a tuple of classes.
        why: A remedy appended to the message.
        **named: The values under their argument names.

    Raises:
        InvalidTypeError: If a value is of another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    words = " or ".join(k.__name__ for k in kinds)
    for name, value in named.items():
        if not isinstance(value, kinds):
            raise InvalidTypeError(
                f"{name}: must be a {words}, got {type(value).__name__} "
                f"{show(value)}{_remedy(why)}"
            )


def identifier(
    *, error: type[DflUnlearnError] = InvalidArgumentError, **named: Any
) -> None:
    """Check that each named value may name a run or a request on disk.

    Args:
        error: The class to raise.
        **named: The values under their argument names.

    Raises:
        DflUnlearnError: ``error``, if a value does not match ``RUN_NAME`` or is the
            name of a device on Windows, such as ``con``.
    """
    for name, value in named.items():
        if not isinstance(value, str) or not RUN_NAME.fullmatch(value):
            raise error(
                f"{name}: must match [A-Za-z0-9][A-Za-z0-9._-]{{0,63}}, "
                f"got {show(value)}"
            )
        if _DEVICE.fullmatch(value):
            raise error(
                f"{name}: must match [A-Za-z0-9][A-Za-z0-9._-]{{0,63}} and be no name "
                f"of a device (con, nul, com1, ...), got {show(value)}; rename it"
            )


def _remedy(why: str) -> str:
    return f"; {why}" if why else ""
