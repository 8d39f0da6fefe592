"""``sweep.json``: the plan of a sweep in its folder, and what it may be replaced by."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    ConfigMismatchError,
    DflUnlearnError,
    InputFileError,
    UnsafeFormatError,
)
from dfl_unlearn.experiment import read_experiment, to_config
from dfl_unlearn.results.sweep import FORMAT, PLAN, shown
from dfl_unlearn.results.sweep_cases import read_plan
from dfl_unlearn.store.files import to_json, write_file
from dfl_unlearn.sweeps.axes import plain_value
from dfl_unlearn.sweeps.plan import PlannedCase, Sweep


def plan_of(sweep: Sweep, cases: Sequence[PlannedCase]) -> dict[str, Any]:
    """Return what ``sweep.json`` says of a sweep.

    Args:
        sweep: The sweep.
        cases: Its cases.

    Returns:
        JSON values; ``base`` has every default filled in, where it can be read by
        itself.
    """
    base = sweep.tables
    with suppress(DflUnlearnError):  # what is missing, the axes complete
        base = plain_value(to_config(read_experiment(base)))
    plan = {
        "format": FORMAT,
        "name": sweep.name,
        "mode": sweep.mode,
        "samples": sweep.samples,
        "base": base,
        "axes": dict(sweep.axes),
        "seeds": list(sweep.seeds),
        "cases": [{"case": c.name, "point": c.point, "seed": c.seed} for c in cases],
    }
    to_json(PLAN, plan)  # refuses what is not JSON before anything is written
    return plan


def write_plan(root: Path, plan: Mapping[str, Any]) -> None:
    """Write ``sweep.json`` unless it says this already."""
    # Not with sorted keys: the order of the axes is theirs.
    text = json.dumps(plan, indent=2, ensure_ascii=False, allow_nan=False).encode()
    place = root / PLAN
    if not place.is_file() or place.read_bytes() != text:
        write_file(place, text)


def check_plan(root: Path, plan: Mapping[str, Any]) -> None:
    """Check that a folder is free for a sweep, or holds a part of it.

    Args:
        root: The folder; need not exist.
        plan: What is to be run there.

    Raises:
        UnsafeFormatError: If it is a link.
        InputFileError: If it holds something else than a sweep.
        ConfigMismatchError: If it holds cases that the plan has not.
    """
    if root.is_symlink():
        raise UnsafeFormatError(
            f"{root}: must be a real folder, got a symbolic link; give the folder that "
            "it points to"
        )
    place = root / PLAN
    if not place.is_file():
        more = _others(root)
        if more:
            raise InputFileError(
                f"{root}: must be a sweep's folder or a new one, got {more} there and "
                f"no {PLAN}; give another name"
            )
        return
    old = read_plan(root)
    kept = {entry["case"] for entry in plan["cases"]}
    gone = [entry for entry in old["cases"] if entry["case"] not in kept]
    if not gone:
        return
    first = " ".join(
        [f"{axis}={shown(value)}" for axis, value in gone[0]["point"].items()]
        + [f"seed={gone[0]['seed']}"]
    )
    raise ConfigMismatchError(
        _validate.clean(
            f"{root}: must be this sweep's folder or a new one, got another sweep: "
            f"{len(gone)} of its {len(old['cases'])} cases are not in this one, the "
            f"first is {first}; {'; '.join(_differences(old, plan))}. More values or "
            "seeds may be added to a sweep, for anything else give another name"
        )
    )


def _others(root: Path) -> str:
    """Return the name of something in a folder that no sweep began with, or ""."""
    if root.exists() and not root.is_dir():
        return "a file"
    begun = {"lock", "log.jsonl", "cases"}
    names = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    others = [n for n in names if n not in begun and ".tmp-" not in n]
    if (
        "cases" in names
        and (root / "cases").is_dir()
        and any((root / "cases").iterdir())
    ):
        others.append("cases")
    return others[0] if others else ""


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in what two plans differ, other than by additions."""
    found = []
    for axis in old["axes"].keys() | new["axes"].keys():
        before, after = old["axes"].get(axis), new["axes"].get(axis)
        if before == after:
            continue
        if before is None:
            found.append(f"{axis} is a new axis")
        elif after is None:
            found.append(f"{axis} is no axis any more")
        elif not isinstance(before, list) or not isinstance(after, list):
            found.append(f"{axis} was {shown(before)}, now {shown(after)}")
        else:
            lost = [v for v in before if v not in after]
            if lost:
                found.append(f"{axis} lacks {', '.join(str(shown(v)) for v in lost)}")
    found.sort()
    lost = [seed for seed in old["seeds"] if seed not in new["seeds"]]
    if lost:
        found.append(f"seeds lack {', '.join(map(str, lost))}")
    if old["mode"] != new["mode"]:
        found.append(f"mode was {old['mode']}, now {new['mode']}")
    if old.get("samples") != new["samples"]:
        found.append(f"samples were {old.get('samples')}, now {new['samples']}")
    changed = sorted(_changed(old.get("base"), new["base"], ""))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        found.append(f"the base differs in {', '.join(changed[:5])}{more}")
    return found or ["the package fills in other defaults than then"]


def _changed(old: Any, new: Any, path: str) -> list[str]:
    """Return the dotted places in which two bases differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            place
            for key in old.keys() | new.keys()
            if path or key not in ("name", "execution", "report")
            for place in _changed(old.get(key), new.get(key), f"{path}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [p for k, (a, b) in pairs for p in _changed(a, b, f"{path}.{k}")]
    return [] if old == new else [path.removeprefix(".") or "all"]
