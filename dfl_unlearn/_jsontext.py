"""Strict JSON: what Python's reader lets pass silently is refused."""

import json
import math
from typing import Any


def from_json(text: str) -> Any:
    """Return the value of strict JSON.

    Args:
        text: One JSON document.

    Returns:
        The value.

    Raises:
        ValueError: If it is not JSON, repeats a key, has a number that is not finite
            or thousands of digits long, or half of a surrogate pair.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("nesting that is too deep") from error
    if "\\u" in text:  # the only way to half a pair, which no file can be written with
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a repeated key")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]}")
    return number
