"""The plan of a sweep: which experiments it consists of, all checked beforehand."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

from dfl_unlearn import _validate
from dfl_unlearn.errors import ConfigError, DflUnlearnError
from dfl_unlearn.experiment import Experiment, override, read_experiment, to_config
from dfl_unlearn.results.sweep import shown
from dfl_unlearn.sections import ReportSection
from dfl_unlearn.sweeps.axes import (
    MAX_CASES,
    Mode,
    check_axes,
    fields_of,
    plain_value,
    points_of,
)

MAX_ERRORS = 20
_NOT_HASHED = ("name", "execution", "report")
"""What changes nothing in a case's results."""


class PlannedCase(NamedTuple):
    """One experiment of a sweep.

    Attributes:
        name: First 12 hex digits of its configuration's hash.
        point: Axis -> value.
        seed: Its seed.
        experiment: What is run.
    """

    name: str
    point: dict[str, Any]
    seed: int
    experiment: Experiment

    def __str__(self) -> str:
        """Return point and seed in one line of at most 300 letters."""
        said = [f"{axis}={_told_value(value)}" for axis, value in self.point.items()]
        text = " ".join(said)
        text = text if len(text) <= 280 else f"{text[:277]}..."
        return _validate.clean(f"{text} seed={self.seed}".strip())


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base experiment and what varies in it.

    A replicate's seed reaches every section: a section's own seed is left out where it
    equals the base's, and stays, for all replicates, where it is another one.

    Attributes:
        base: Tables of an experiment file, or an ``Experiment``.
        axes: Dotted field, or several with commas between that take the same value ->
            its values; in mode ``random`` also ``{"low": a, "high": b, "log": True}``,
            both ends included, integers if both ends are. They are set in their order.
        mode: All combinations, the k-th values together, or random draws.
        samples: Number of random draws, drawn with the base's seed; the first ones stay
            the same if there are more. A point that is drawn twice is run once.
        seeds: Of the replicates; each point is run once per seed.
        name: The sweep's name, and its folder's on the command line.

    Example:
        >>> sweep = Sweep(
        ...     base={"topology": {"use": "ring", "n": 4}},
        ...     axes={"topology.n": [4, 8], "training.rounds": [10, 20]},
        ...     seeds=(0, 1),
        ... )
        >>> len(sweep.cases())
        8
    """

    base: Mapping[str, Any] | Experiment
    axes: Mapping[str, Any]
    mode: Mode = "grid"
    samples: int | None = None
    seeds: Sequence[int] = (0,)
    name: str = "sweep"

    def __post_init__(self) -> None:
        """Check the fields; cases are read by ``cases``."""
        _validate.identifier(error=ConfigError, **{"sweep name": self.name})
        object.__setattr__(self, "axes", plain_value(dict(self.axes)))
        object.__setattr__(self, "seeds", tuple(plain_value(self.seeds)))
        check_axes(self.axes, self.mode, self.samples)
        if not self.seeds:
            raise ConfigError("seeds: must hold at least one, got none; give (0,)")
        for seed in self.seeds:
            _validate.integer(
                error=ConfigError, at_least=0, at_most=2**63 - 1, seeds=seed
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(
                f"seeds: must differ, got {_validate.show(list(self.seeds))}; a "
                "replicate with the same seed is the same run"
            )

    @property
    def tables(self) -> dict[str, Any]:
        """The base as plain tables, without the seeds that replicates replace."""
        if isinstance(self.base, Experiment):
            return _without_seeds(to_config(self.base))
        return _without_seeds(plain_value(self.base))

    def points(self) -> list[dict[str, Any]]:
        """Return axis -> value of every point, in the order in which cases are run."""
        seed = self.tables.get("seed", 0)
        _validate.integer(error=ConfigError, at_least=0, at_most=2**63 - 1, seed=seed)
        return points_of(self.axes, self.mode, self.samples, seed)

    def cases(self, *, pages: bool = False) -> list[PlannedCase]:
        """Read and check the experiment of every point and seed.

        Args:
            pages: Whether cases write figures and pages as the base's ``report`` says;
                otherwise they write none.

        Returns:
            The cases, all different.

        Raises:
            ConfigError: With what is wrong in every case, at most 20 lines, or if two
                cases are the same experiment.
        """
        base, points = self.tables, self.points()
        if len(points) * len(self.seeds) > MAX_CASES:
            raise ConfigError(
                f"sweep: must have at most {MAX_CASES} cases, got {len(points)} points "
                f"with {len(self.seeds)} seeds; drop values or seeds"
            )
        found: dict[str, PlannedCase] = {}
        errors: dict[str, list[str]] = {}
        for point in points:
            for seed in self.seeds:
                try:
                    experiment = _experiment(base, point, seed)
                except DflUnlearnError as error:
                    case = PlannedCase("", point, seed, Experiment())
                    errors.setdefault(str(error), []).append(str(case))
                    continue
                if not pages:
                    report = ReportSection(figures=(), html=False)
                    experiment = replace(experiment, report=report)
                name = case_name(experiment)
                experiment = replace(experiment, name=name)
                case = PlannedCase(name, point, seed, experiment)
                if name in found and self.mode != "random":
                    raise ConfigError(
                        f"axes: must give different experiments, got the same one for "
                        f"{found[name]} and for {case}; drop one of the two"
                    )
                found.setdefault(name, case)
        if errors:
            raise ConfigError(_told(errors))
        return list(found.values())


def case_name(experiment: Experiment) -> str:
    """Return the first 12 hex digits of the hash of what changes results."""
    return name_of_config(to_config(experiment))


def name_of_config(config: Mapping[str, Any]) -> str:
    """Return the case's name of a resolved configuration, e.g. of a ``config.json``."""
    hashed = {k: v for k, v in config.items() if k not in _NOT_HASHED}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]


def _experiment(
    base: Mapping[str, Any], point: Mapping[str, Any], seed: int
) -> Experiment:
    """Build one case.

    Args:
        base: Plain tables.
        point: Axis -> value.
        seed: The replicate's.

    Returns:
        The experiment.

    Raises:
        ConfigError: If the tables make none, or an axis was undone by a later one.
    """
    table: dict[str, Any] = {**deepcopy(dict(base)), "seed": seed}
    wanted = [(keys, v) for axis, v in point.items() for keys in fields_of(axis)]
    for keys, value in wanted:
        override(table, keys, deepcopy(value))
    for keys, value in wanted:
        refined = any(other[: len(keys)] == keys != other for other, _ in wanted)
        if not refined and _entry(table, keys) != value:
            raise ConfigError(
                f"axes: {'.'.join(keys)} is undone by a later axis that sets what it "
                "belongs to; put that one before it"
            )
    return read_experiment(table)


def _entry(table: Any, keys: Sequence[str]) -> Any:
    """Return what nested tables hold at a place, or None."""
    for key in keys:
        if isinstance(table, list):
            table = table[int(key)] if int(key) < len(table) else None
        else:
            table = table.get(key) if isinstance(table, dict) else None
    return table


def _without_seeds(tables: dict[str, Any]) -> dict[str, Any]:
    """Drop the sections' seeds that equal the experiment's own."""
    seed = tables.get("seed", 0)

    def kept(section: Any) -> Any:
        if isinstance(section, dict) and section.get("seed") == seed:
            return {k: v for k, v in section.items() if k != "seed"}
        return section

    found = dict(tables)
    for name in ("topology", "data", "training"):
        if name in found:
            found[name] = kept(found[name])
    if isinstance(found.get("forget"), list):
        found["forget"] = [kept(request) for request in found["forget"]]
    return found


def _told_value(value: Any) -> str:
    try:
        return str(shown(value))
    except ValueError:  # integers beyond Python's limit for decimal conversion
        return _validate.show(value)


def _told(errors: Mapping[str, Sequence[str]]) -> str:
    """Return each error once, with the cases that have it."""
    number = sum(map(len, errors.values()))
    lines = []
    for message, cases in errors.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        lines += [f"{cases[0]}{more}: {line}" for line in message.split("\n")]
    if len(lines) > MAX_ERRORS:
        more = f"{len(lines) - MAX_ERRORS} more errors are not shown"
        lines = [*lines[:MAX_ERRORS], more]
    said = f"sweep: {number} of its cases cannot be run, so nothing was begun:"
    return "\n".join([said, *lines])
