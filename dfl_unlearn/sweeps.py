"""Sweeps: axes over any field of a configuration, cases, and one table of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal

from dfl_unlearn.experiment import (
    Experiment,
    override,
    read_experiment,
    run_experiment,
    to_config,
)
from dfl_unlearn.results.sweep import CASES, FORMAT, SweepView
from dfl_unlearn.sections import ReportSection
from dfl_unlearn.store.files import to_json, write_file
from dfl_unlearn.store.table import ResultsTable

Mode = Literal["grid", "zip", "random"]
_NOT_HASHED = ("name", "execution", "report")
"""What changes nothing in a case's results."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base experiment and what varies in it.

    Attributes:
        base: Tables of an experiment file, or an ``Experiment``.
        axes: Dotted field -> its values.
        mode: All combinations, the k-th values together, or random draws.
        samples: Number of random draws.
        seeds: Of the replicates; each case is run once per seed.
        name: The sweep's name.
    """

    base: Mapping[str, Any] | Experiment
    axes: Mapping[str, Sequence[Any]]
    mode: Mode = "grid"
    samples: int | None = None
    seeds: Sequence[int] = (0,)
    name: str = "sweep"

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of values, without seeds."""
        for values in product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def cases(self) -> list[tuple[str, dict[str, Any], int, Experiment]]:
        """Return name, point, seed and experiment of every case."""
        found = []
        for point in self.points():
            for seed in self.seeds:
                table: dict[str, Any] = deepcopy(dict(self.base))  # type: ignore[arg-type]
                table["seed"] = seed
                for field, value in point.items():
                    override(table, field.split("."), deepcopy(value))
                experiment = read_experiment(table, self.name)
                report = ReportSection(figures=(), html=False)
                name = case_name(experiment)
                experiment = replace(experiment, name=name, report=report)
                found.append((name, point, seed, experiment))
        return found


def case_name(experiment: Experiment) -> str:
    """Return the first 12 hex digits of the hash of what changes results."""
    config = {k: v for k, v in to_config(experiment).items() if k not in _NOT_HASHED}
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]


def run_sweep(sweep: Sweep, folder: str | Path, jobs: int = 1) -> ResultsTable:
    """Run every case that is not complete and return the rows of all of them."""
    root = Path(folder)
    cases = sweep.cases()
    (root / CASES).mkdir(parents=True, exist_ok=True)
    plan = {
        "format": FORMAT,
        "name": sweep.name,
        "mode": sweep.mode,
        "axes": {k: list(v) for k, v in sweep.axes.items()},
        "seeds": list(sweep.seeds),
        "cases": [{"case": n, "point": p, "seed": s} for n, p, s, _ in cases],
    }
    write_file(root / "sweep.json", to_json("sweep.json", plan, indent=2).encode())
    for name, _, _, experiment in cases:
        if not (root / CASES / name / "done.json").is_file():
            run_experiment(experiment, root / CASES, refusals=[])
    return SweepView.open(root).table
