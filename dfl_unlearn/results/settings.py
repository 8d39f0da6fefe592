"""Settings that differ, in words short enough to stand beside an axis."""

from collections.abc import Mapping, Sequence
from typing import Any


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of settings that are not the same in all, in their order."""
    keys = dict.fromkeys(key for one in settings for key in one)
    first = settings[0]
    return [
        key
        for key in keys
        if any(key not in one or one[key] != first.get(key) for one in settings)
    ]


def shown_settings(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return some settings as they are given, their names as short as they can be."""
    return " ".join(
        f"{_short(key, settings)}={settings[key]}" for key in keys if key in settings
    )


def _short(key: str, settings: Mapping[str, Any]) -> str:
    """Return the end of a dotted name that no other setting shares."""
    parts = key.split(".")
    for k in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[k:])
        if not any(f".{o}".endswith(f".{end}") for o in settings if o != key):
            return end
    return key


def flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names, as files and commands give them."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{path}{key}.") if inner else {f"{path}{key}": value}
    return found
