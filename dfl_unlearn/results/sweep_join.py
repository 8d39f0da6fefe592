"""Several sweeps as one: axes completed, cases that lie twice counted once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.results.sweep_cases import Case, point_key
from dfl_unlearn.store.files import from_json, to_json
from dfl_unlearn.store.understood import understood

_NO_RESULT = ("name", "execution", "report")
"""Sections of a configuration that change nothing in results."""
_COME = ("done", "failed", "partial", "missing")


def joined_cases(
    sweeps: Sequence[tuple[Mapping[str, Any], tuple[Case, ...]]], axes: tuple[str, ...]
) -> tuple[Case, ...]:
    """Return the cases of several sweeps, each with a value on every axis.

    Args:
        sweeps: Plan and cases of each sweep; their names differ.
        axes: Of all sweeps together.

    Returns:
        The cases in order. ``setting`` is equal where the bases are but for the axes.

    Raises:
        InvalidArgumentError: If a case has other results in another folder, or two
            different cases have one point and one seed.
    """
    found: dict[str, Case] = {}
    for number, (plan, cases) in enumerate(sweeps):
        setting = _setting(plan, axes, number)
        for case in cases:
            values = {axis: _value(case, plan, axis) for axis in axes}
            new = replace(case, point=values, setting=setting)
            old = found.setdefault(case.name, new)
            if old is not new:
                found[case.name] = _better(old, new)
    _refuse_clashes(found.values())
    return tuple(found.values())


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names of sweeps with a number where one repeats."""
    return [
        name if names[:k].count(name) == 0 else f"{name} ({names[: k + 1].count(name)})"
        for k, name in enumerate(names)
    ]


def _setting(plan: Mapping[str, Any], axes: tuple[str, ...], number: int) -> str:
    """Return what is equal for sweeps that differ in their axes and seeds only.

    Args:
        plan: Of the sweep.
        axes: Of all sweeps together.
        number: Of the sweep; tells it apart where its base is not known.

    Returns:
        Some text.
    """
    if "base" not in plan:
        return str(number)
    base = from_json(to_json("base", plan["base"]))
    for section in _NO_RESULT:
        base.pop(section, None)
    for axis in axes:
        for field in axis.split(","):
            _drop(base, field.strip().split("."))
    return to_json("base", _without_seed(base, base.get("seed", 0)))


def _drop(table: Any, keys: Sequence[str]) -> None:
    """Remove an entry of nested tables and lists, if it is there."""
    *way, last = keys
    for key in way:
        table = _entry(table, key)
    if isinstance(table, dict):
        table.pop(last, None)
    elif isinstance(table, list) and _entry(table, last) is not None:
        table[int(last)] = None


def _without_seed(value: Any, seed: object) -> Any:
    """Return tables without the seeds that a replicate replaces."""
    if isinstance(value, dict):
        return {
            k: _without_seed(v, seed)
            for k, v in value.items()
            if k != "seed" or v != seed
        }
    if isinstance(value, list):
        return [_without_seed(v, seed) for v in value]
    return value


def _value(case: Case, plan: Mapping[str, Any], axis: str) -> Any:
    """Return a case's value on an axis; its configuration says those not varied."""
    if axis in case.point:
        return case.point[axis]
    config: Any = plan.get("base", {})
    place = case.folder / "config.json"
    if place.is_file():
        with understood(place):
            config = from_json(place.read_text("utf-8"))
    for key in axis.split(",")[0].strip().split("."):
        config = _entry(config, key)
    return config


def _entry(value: Any, key: str) -> Any:
    """Return an entry of a table or a list, None where it has none."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None


def _better(one: Case, other: Case) -> Case:
    """Return the one of two places of a case that has come farther.

    Raises:
        InvalidArgumentError: If both are complete with different results.
    """
    if one.status == other.status == "done" and one.digest != other.digest:
        raise InvalidArgumentError(
            f"folders: a case must have one result, got {one.name} with the digest "
            f"{one.digest[:12]} in {one.folder} and {other.digest[:12]} in "
            f"{other.folder}; they were run by different versions or machines: leave "
            "one of the folders out"
        )
    return min(one, other, key=lambda case: _COME.index(case.status))


def _refuse_clashes(cases: Any) -> None:
    """Refuse two cases that would count as one replicate twice.

    Raises:
        InvalidArgumentError: If there are any.
    """
    known: dict[tuple[str, int], Case] = {}
    for case in cases:
        other = known.setdefault((point_key(case), case.seed), case)
        if other is not case:
            raise InvalidArgumentError(
                f"folders: cases of one point must have different seeds, got "
                f"{other.name} in {other.folder} and {case.name} in {case.folder} with "
                f"seed {case.seed} on the same values of all axes; their "
                "configurations differ in something that is no axis: leave one folder "
                "out, or join each with its own kind"
            )
