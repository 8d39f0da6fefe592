"""The cases of a sweep folder: what was asked for, and how far each has come.

``sweep.json`` names the cases. Each has a run folder of its own name under ``cases``
and is complete when ``case.json`` is there, which is written last. What failed is a
line of ``failures.jsonl``.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfl_unlearn import _validate
from dfl_unlearn.errors import (
    InputFileError,
    RunLockedError,
    UnsupportedFormatError,
)
from dfl_unlearn.store.files import cause, from_json, to_json
from dfl_unlearn.store.lines import LineFile
from dfl_unlearn.store.understood import understood

FORMAT = 1
PLAN = "sweep.json"
CASES = "cases"
CASE = "case.json"
FAILURES = "failures.jsonl"
UNREADABLE = "delete it, and the cases that failed are tried again"
"""What to do about damaged failures."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Status = Literal["done", "partial", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A protocol that did not carry out a request of a case; it has no rows.

    Attributes:
        request: Id of the request.
        protocol: What tables call the protocol.
        error: Class of the refusal.
        message: Why.
    """

    request: str
    protocol: str
    error: str
    message: str

    def __str__(self) -> str:
        """Return request, protocol and reason in one line."""
        text = f"{self.request} by {self.protocol}: {self.error}: {self.message}"
        return _validate.clean(text)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of a sweep.

    Attributes:
        name: First 12 hex digits of its configuration's hash, and its folder's name.
        sweep: The sweep that it belongs to.
        setting: Equal for the cases of sweeps that share their points: those of one
            folder, or joined ones with the same base.
        point: Axis -> this case's value, in the order of the axes.
        seed: Its seed.
        folder: Its run folder; need not exist.
        status: ``done``: complete. ``failed``: ended by an error and not completed
            since. ``partial``: begun. ``missing``: not begun.
        digest: Of the finished run, or "".
        seconds: What it took, or until it failed; None where neither is known.
        refused: What protocols refused in it.
        error: Why it failed, or "".
    """

    name: str
    point: Mapping[str, Any]
    seed: int
    folder: Path
    status: Status
    sweep: str = ""
    setting: str = ""
    digest: str = ""
    seconds: float | None = None
    refused: tuple[Refused, ...] = ()
    error: str = ""


def point_key(case: Case) -> str:
    """Return what is equal for cases that are replicates of one point."""
    values = [_plain_number(value) for value in case.point.values()]
    return to_json("point", [case.setting, values])


def family_of(case: Case) -> str:
    """Return what ``topology.use`` names in a case, a file by its name alone."""
    place = case.folder / "config.json"
    with understood(place):
        use = from_json(place.read_text("utf-8"))["topology"]["use"]
        _expect(str, use=use)
    return Path(use).stem


def shown(value: Any) -> Any:
    """Return an axis value as one cell: a table as ``use key=value``, a list joined."""
    if isinstance(value, Mapping):
        name = [str(value["use"])] if "use" in value else []
        rest = [f"{k}={shown(v)}" for k, v in value.items() if k != "use"]
        return " ".join(name + rest)
    if isinstance(value, list | tuple):
        return ", ".join(str(shown(item)) for item in value)
    return value


def _plain_number(value: Any) -> Any:
    """Return 1 and 1.0 as the same number."""
    return float(value) if type(value) is int else value


def read_plan(root: Path) -> Mapping[str, Any]:
    """Read ``sweep.json``.

    Args:
        root: The sweep folder.

    Returns:
        The plan, checked: ``format``, ``name``, ``mode``, ``axes``, ``seeds`` and
        ``cases``; also ``base``, the configuration that the axes vary, where known.

    Raises:
        InputFileError: If the folder has none.
        UnsupportedFormatError: If another version wrote it.
        StoreCorruptError: If it lacks a value, or has one of another kind.
    """
    place = root / PLAN
    try:
        text = place.read_bytes()
    except OSError as error:
        raise InputFileError(
            f"{root}: must be a sweep folder, got no readable {PLAN} there "
            f"({cause(error)}); make one with 'dfl-unlearn sweep'"
        ) from error
    with understood(place):
        plan = from_json(text.decode())
        _expect(dict, plan=plan)
        if plan["format"] != FORMAT:
            raise UnsupportedFormatError(
                f"{place}: must have the format {FORMAT}, got "
                f"{_validate.show(plan['format'])}; read it with the version that "
                "wrote it"
            )
        _check_plan(plan)
    found: Mapping[str, Any] = plan
    return found


def _check_plan(plan: Mapping[str, Any]) -> None:
    """Check the kinds of a plan's values.

    Raises:
        ValueError: If a case is named twice, or lacks an axis.
    """
    _expect(str, name=plan["name"], mode=plan["mode"])
    _expect(dict, axes=plan["axes"], base=plan.get("base", {}))
    _expect(list, seeds=plan["seeds"], cases=plan["cases"])
    _counts(**{f"seeds[{k}]": seed for k, seed in enumerate(plan["seeds"])})
    names = set()
    for entry in plan["cases"]:
        _expect(str, case=entry["case"])
        if not _NAME.fullmatch(entry["case"]):
            raise ValueError(f"the case name {_validate.show(entry['case'])}")
        _counts(seed=entry["seed"])
        _expect(dict, point=entry["point"])
        if set(entry["point"]) != set(plan["axes"]):
            raise ValueError(f"a point of {entry['case']} that is not on the axes")
        if entry["case"] in names:
            raise ValueError(f"the case {entry['case']} twice")
        names.add(entry["case"])


def read_cases(root: Path, plan: Mapping[str, Any], sweep: str) -> tuple[Case, ...]:
    """Look at every case of a plan.

    Args:
        root: The sweep folder.
        plan: As ``read_plan`` gives it.
        sweep: What the sweep is called.

    Returns:
        The cases in the plan's order.
    """
    failures = _failures(root)
    return tuple(
        _case(root, plan, entry, sweep, failures.get(entry["case"]))
        for entry in plan["cases"]
    )


def _case(
    root: Path,
    plan: Mapping[str, Any],
    entry: Mapping[str, Any],
    sweep: str,
    failure: Mapping[str, Any] | None,
) -> Case:
    folder = root / CASES / entry["case"]
    known: dict[str, Any] = {"status": "partial" if folder.is_dir() else "missing"}
    place = folder / CASE
    if place.is_file():
        with understood(place):
            known = {"status": "done", **_read_case(place)}
    elif failure is not None:
        known = {
            "status": "failed",
            "seconds": failure["seconds"],
            "error": _validate.clean(f"{failure['error']}: {failure['message']}"),
        }
    return Case(
        name=entry["case"],
        sweep=sweep,
        point={axis: entry["point"][axis] for axis in plan["axes"]},
        seed=entry["seed"],
        folder=folder,
        **known,
    )


def _read_case(place: Path) -> dict[str, Any]:
    """Return what a complete case says of itself."""
    told = from_json(place.read_text("utf-8"))
    if told["format"] != FORMAT:
        raise UnsupportedFormatError(
            f"{place}: must have the format {FORMAT}, got "
            f"{_validate.show(told['format'])}; read it with the version that wrote it"
        )
    _expect(str, digest=told["digest"])
    seconds = _seconds(told["seconds"])
    refused = []
    for entry in told["refused"]:
        fields = {k: entry[k] for k in ("request", "protocol", "error", "message")}
        _expect(str, **fields)
        refused.append(Refused(**fields))
    return {
        "digest": told["digest"],
        "seconds": seconds,
        "refused": tuple(refused),
    }


def _failures(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return case -> its last failure, whether or not it was completed since."""
    place = root / FAILURES
    found: dict[str, Mapping[str, Any]] = {}
    with understood(place):
        for line in LineFile(place, _reading, remedy=UNREADABLE).records():
            _expect(str, **{k: line[k] for k in ("case", "error", "message")})
            _seconds(line["seconds"])
            found[line["case"]] = line
    return found


def _reading() -> AbstractContextManager[None]:
    """Refuse to hold the sweep: who reads leaves a line cut short to its writer.

    Raises:
        RunLockedError: Always.
    """
    raise RunLockedError("a sweep that is read only")


def _expect(kind: type, **named: object) -> None:
    """Check kinds of values of a file, strictly.

    Raises:
        TypeError: If a value is of another kind.
    """
    for name, value in named.items():
        if type(value) is not kind:
            raise TypeError(f"{name} is {_validate.show(value)}, not a {kind.__name__}")


def _counts(**named: object) -> None:
    """Check numbers from 0.

    Raises:
        ValueError: If one is below.
    """
    _expect(int, **named)
    for name, value in named.items():
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} is {value}")


def _seconds(value: object) -> float | None:
    """Return a time as a file has it.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is below 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"seconds is {_validate.show(value)}, not a number")
    if value < 0:
        raise ValueError(f"seconds is {value}")
    return float(value)
