"""What varies in a sweep: axes, their values, and the points that are visited.

An axis is a dotted field of an experiment, as ``training.rounds`` or
``unlearning.0.epsilon``, or several fields with commas between, which all take the same
value. Its values are scalars, lists or whole tables. In random mode they are choices,
or a range ``{low, high}`` with ``log = true`` where magnitudes are to be even.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from dfl_unlearn._validate import integer, number, one_of, show
from dfl_unlearn.errors import ConfigError
from dfl_unlearn.rng import RngTree

Mode = Literal["grid", "zip", "random"]
MODES: tuple[Mode, ...] = ("grid", "zip", "random")

MAX_CASES = 100_000
_RANGE = {"low", "high", "log"}
# What no case may differ in: its seed is the replicate's, the rest changes no result.
_NOT_AXES = {
    "seed": "give seeds instead",
    "name": "a case is named by its configuration",
    "execution": "it changes no result; set it once in the experiment",
    "report": "it changes no result; set it once in the experiment",
}


def fields_of(axis: str) -> tuple[tuple[str, ...], ...]:
    """Return the fields that an axis sets, each as its keys.

    Args:
        axis: ``a.b.0``, or several with commas between.

    Returns:
        One tuple of keys per field.

    Raises:
        ConfigError: If a key is empty, or the field cannot vary.
    """
    found = tuple(
        tuple(key.strip() for key in field.split(".")) for field in axis.split(",")
    )
    for keys in found:
        if not all(keys):
            raise ConfigError(
                f"axes: must be dotted fields, e.g. training.rounds, got {show(axis)}; "
                "several that move together have commas between"
            )
        if keys[0] in _NOT_AXES:
            raise ConfigError(
                f"axes: {show(axis)} cannot vary: {_NOT_AXES[keys[0]]}, got an axis"
            )
    if len(set(found)) != len(found):
        raise ConfigError(f"axes: must name a field once, got {show(axis)}; drop one")
    return found


def check_axes(axes: Mapping[str, Any], mode: Mode, samples: int | None) -> None:
    """Check names and values of the axes against the mode.

    Args:
        axes: Axis -> values, as plain JSON values.
        mode: How they are combined.
        samples: Number of random draws.

    Raises:
        ConfigError: If they do not make a sweep.
    """
    one_of(MODES, mode=mode)
    if (mode == "random") != (samples is not None):
        raise ConfigError(
            f"samples: must be given for mode 'random' and left out otherwise, got "
            f"{show(samples)} for {mode!r}"
        )
    if samples is not None:
        integer(error=ConfigError, at_least=1, at_most=MAX_CASES, samples=samples)
    known: dict[tuple[str, ...], str] = {}
    for axis, values in axes.items():
        for keys in fields_of(axis):
            if keys in known:
                raise ConfigError(
                    f"axes: {'.'.join(keys)} must vary once, got it in "
                    f"{show(known[keys])} and in {show(axis)}; drop one"
                )
            known[keys] = axis
        _check_values(axis, values, mode)
    if mode == "zip" and len({len(values) for values in axes.values()}) > 1:
        sizes = ", ".join(f"{axis}: {len(values)}" for axis, values in axes.items())
        raise ConfigError(
            f"axes: must have equally many values in mode 'zip', got {sizes[:500]}; "
            "add the missing ones or use mode 'grid'"
        )
    if mode == "grid":
        size = math.prod(len(values) for values in axes.values())
        if size > MAX_CASES:
            raise ConfigError(
                f"axes: must make at most {MAX_CASES} points, got {size}; drop values "
                "or use mode 'random'"
            )


def _check_values(axis: str, values: Any, mode: Mode) -> None:
    if mode == "random" and isinstance(values, Mapping):
        _check_range(axis, values)
        return
    if not isinstance(values, list) or not values:
        ranged = " or a table {low, high, log}" if mode == "random" else ""
        raise ConfigError(
            f"axes: {show(axis)} must have a list of values{ranged}, got "
            f"{show(values)}; write a single value as a list of one"
        )


def _check_range(axis: str, bounds: Mapping[str, Any]) -> None:
    if not {"low", "high"} <= bounds.keys() <= _RANGE:
        raise ConfigError(
            f"axes: the range of {show(axis)} must have low and high, and may have "
            f"log, got {', '.join(map(str, bounds)) or 'nothing'}; give choices as a "
            "list"
        )
    low, high, log = bounds["low"], bounds["high"], bounds.get("log", False)
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, int):  # floats tell all integers up to there apart
            named: dict[str, Any] = {f"{axis}: {name}": bound}
            integer(error=ConfigError, at_least=-(2**53), at_most=2**53, **named)
    number(error=ConfigError, **{f"{axis}: low": low})
    number(error=ConfigError, above=low, **{f"{axis}: high": high})
    if not isinstance(log, bool):
        raise ConfigError(f"axes: {axis}: log must be true or false, got {show(log)}")
    if log and low <= 0:
        raise ConfigError(
            f"axes: {axis}: low must be > 0 with log, got {show(low)}; raise it or "
            "drop log"
        )


def points_of(
    axes: Mapping[str, Any], mode: Mode, samples: int | None, seed: int
) -> list[dict[str, Any]]:
    """Return the points that a sweep visits.

    Args:
        axes: Checked axes.
        mode: How they are combined.
        samples: Number of random draws.
        seed: Of the draws.

    Returns:
        Axis -> value for each point, in the order of the axes; the last axis of a grid
        changes fastest.
    """
    if mode == "random":
        assert samples is not None
        return [
            {axis: _drawn(axis, values, seed, k) for axis, values in axes.items()}
            for k in range(samples)
        ]
    if mode == "zip" and axes:
        rows: Any = zip(*axes.values(), strict=True)
    else:
        rows = product(*axes.values())
    return [dict(zip(axes, row, strict=True)) for row in rows]


def _drawn(axis: str, values: Any, seed: int, k: int) -> Any:
    """Return the k-th draw of one axis; it depends on nothing else.

    Args:
        axis: Its name, part of the key.
        values: Choices, or a range whose both ends may be drawn.
        seed: Of the draws.
        k: Which draw.

    Returns:
        The value; an integer where both ends are.
    """
    u = float(RngTree(seed).numpy("sweep", who=axis, draw=k).random())
    if not isinstance(values, Mapping):
        return values[int(u * len(values))]
    low, high = values["low"], values["high"]
    whole = isinstance(low, int) and isinstance(high, int)
    top = high + 1 if whole else high
    if values.get("log", False):
        drawn = low * (top / low) ** u
    else:
        drawn = low + u * (top - low)
    return min(math.floor(drawn), high) if whole else min(drawn, high)


def plain_value(value: Any) -> Any:
    """Return a value as JSON has it: arrays and tuples as lists, paths as text.

    Args:
        value: What Python gave.

    Returns:
        Dictionaries, lists, texts, numbers, booleans and None; anything else as it
        is, for the reader of experiments to refuse.
    """
    if hasattr(value, "tolist"):  # NumPy and torch
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def split_values(text: str) -> list[str]:
    """Split ``a,b,c`` at the commas that lie outside brackets, braces and quotes.

    Args:
        text: What stands after ``key=`` on the command line.

    Returns:
        The parts without blanks around them, at least one.
    """
    parts, depth, quote, begin = [], 0, "", 0
    for k, letter in enumerate(text):
        if quote:
            escaped = quote == '"' and text[k - 1] == "\\"
            quote = "" if letter == quote and not escaped else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[begin:k].strip())
            begin = k + 1
    return [*parts, text[begin:].strip()]
