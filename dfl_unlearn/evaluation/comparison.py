"""Methods over several forget sets in one table, with the controls that it needs.

Every setting has the lines ``original`` (nothing was done), ``retrain`` (the yardstick)
and ``retrain-2`` (retraining with other draws: how far apart two perfect answers are).
Every line says what its certificate claims; ``none`` where nothing is claimed.

``gap`` is the published definition: the mean over forget, retain and test accuracy and
attack (a) of the difference of the means over forget sets, in which errors of opposite
signs cancel. ``paired_gap`` takes the difference on each forget set first [derived].
``std`` is the mean over the four figures of the standard deviation over forget sets
(ddof=0). The forget accuracy is the share of forgotten rows that are still answered
right; its complement, UA, is not shown anywhere.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.certificate import CLAIMED
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.evaluation.comparison_lines import (
    CLAIMS,
    FOUR,
    MINIMUM,
    Claim,
    Line,
    measure,
    read_lines,
    write_lines,
)
from dfl_unlearn.evaluation.metrics import info_of
from dfl_unlearn.evaluation.metrics import metrics as registry
from dfl_unlearn.store.files import write_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FOUR",
    "MINIMUM",
    "Comparison",
    "Line",
    "Row",
    "compare",
    "measure",
    "read_lines",
    "write_lines",
]

CONTROLS = ("original", "retrain", "retrain-2")
LEAST_GAP = 0.02
"""A setting where doing nothing has a smaller gap than this cannot rank methods."""
ENOUGH_SETS = 5

_SHORT = {
    "forget-accuracy": "FA",
    "retain-accuracy": "RA",
    "test-accuracy-kept": "TA",
    "mia-entropy": "MIA(a)",
    "mia-confidence": "MIA(b)",
    "mia-population-auc": "AUC(c)",
    "mia-update": "AUC(d)",
    "mia-representation": "MIA(e)",
    "lira": "LiRA(f)",
    "u-lira": "U-LiRA(f)",
    "mia-tpr-at-1": "TPR@1%",
    "prediction-js": "JS",
}
_AREAS = ("mia-population-auc", "mia-update", "mia-loss-auc", "lira", "u-lira")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method in one setting, over all its forget sets.

    Attributes:
        setting: Name of the setting.
        method: Name of the method.
        sets: Number of forget sets.
        means: Metric -> mean over them.
        stds: Metric -> standard deviation over them (ddof=0).
        gap: Published gap to ``retrain`` on the same sets, a fraction.
        paired_gap: Mean over sets of the gap on each, a fraction.
        std: Mean over the four figures of their standard deviation, a fraction.
        seconds: Mean elapsed time.
        sample_gradients: Mean number.
        to_retrain: Their ratio to ``retrain``'s on the same sets.
        certificate: The weakest status over the sets.
        epsilon: The largest epsilon over the sets, or None.
        delta: The largest delta, likewise.
        reasons: All reasons, each once.
        note: All notes, each once.
    """

    setting: str
    method: str
    sets: int
    means: Mapping[str, float]
    stds: Mapping[str, float]
    gap: float
    paired_gap: float
    std: float
    seconds: float
    sample_gradients: float
    to_retrain: float
    certificate: Claim
    epsilon: float | None
    delta: float | None
    reasons: tuple[str, ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods side by side; see the module.

    Attributes:
        lines: All lines; no two of one setting, method and seed.
        rows: One per setting and method: controls first, then in the order of the
            lines.
        warnings: What the table cannot show, one sentence each.
    """

    lines: tuple[Line, ...]
    rows: tuple[Row, ...] = field(init=False)
    warnings: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the lines and compute the rows.

        Raises:
            InvalidArgumentError: If a line is there twice.
            MissingInputError: If a control is missing in a setting, or a method has a
                forget set without its retraining.
        """
        rows: list[Row] = []
        warnings: list[str] = []
        for setting, of_method in _grouped(self.lines).items():
            found = [
                _row(of_method[method], of_method["retrain"])
                for method in (*CONTROLS, *(m for m in of_method if m not in CONTROLS))
            ]
            rows += found
            warnings += _doubts(setting, found)
        object.__setattr__(self, "lines", tuple(self.lines))
        object.__setattr__(self, "rows", tuple(rows))
        object.__setattr__(self, "warnings", tuple(warnings))

    @property
    def frame(self) -> "pd.DataFrame":
        """A new pandas frame with one row per setting and method, as fractions."""
        import pandas as pd

        names = _metrics(self.lines)
        records = []
        for row in self.rows:
            values: dict[str, object] = {
                "setting": row.setting,
                "method": row.method,
                "sets": row.sets,
            }
            for name in names:
                values[name] = row.means.get(name, math.nan)
                values[f"{name} std"] = row.stds.get(name, math.nan)
            values |= {
                "gap": row.gap,
                "paired-gap": row.paired_gap,
                "std": row.std,
                "seconds": row.seconds,
                "sample-gradients": row.sample_gradients,
                "to-retrain": row.to_retrain,
                "certificate": row.certificate,
                "epsilon": row.epsilon,
                "delta": row.delta,
                "reasons": "; ".join(row.reasons),
                "note": row.note,
            }
            records.append(values)
        frame = pd.DataFrame(records)
        numbers = ("epsilon", "delta")
        return frame.astype({name: "float64" for name in numbers if name in frame})

    def to_csv(self, path: str | Path) -> Path:
        """Write ``frame`` as CSV, whole or not at all.

        Args:
            path: The file; its folder exists.

        Returns:
            The path.
        """
        path = Path(path)
        text = self.frame.to_csv(index=False, lineterminator="\n")
        write_file(path, text.encode())
        return path

    def row(self, setting: str, method: str) -> Row:
        """Return one row.

        Args:
            setting: Name of the setting.
            method: Name of the method.

        Returns:
            The row.

        Raises:
            InvalidArgumentError: If there is none.
        """
        for row in self.rows:
            if (row.setting, row.method) == (setting, method):
                return row
        raise InvalidArgumentError(
            "setting, method: must be in the table, got "
            f"{_validate.show((setting, method))}; it has "
            f"{_validate.show([(row.setting, row.method) for row in self.rows])}"
        )

    def __str__(self) -> str:
        """Return one aligned table per setting; accuracies and gaps in percent."""
        blocks = []
        names = _metrics(self.lines)
        header = (
            "method",
            *(_SHORT.get(name, name) for name in names),
            *("gap", "paired gap", "std", "seconds", "gradients", "/retrain"),
            *("certificate", "reasons"),
        )
        for setting in dict.fromkeys(row.setting for row in self.rows):
            rows = [row for row in self.rows if row.setting == setting]
            cells = [header, *(_cells(row, names) for row in rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            left = (0, len(header) - 2, len(header) - 1)
            text = [
                "  ".join(
                    c.ljust(w) if k in left else c.rjust(w)
                    for k, (c, w) in enumerate(zip(line, widths, strict=True))
                ).rstrip()
                for line in cells
            ]
            blocks.append("\n".join([f"{setting}, {_sets(rows)}", *text]))
        warned = "\n".join(f"! {warning}" for warning in self.warnings)
        return "\n\n".join([*blocks, warned] if warned else blocks) or "no lines"


def compare(lines: Iterable[Line]) -> Comparison:
    """Return the table of lines from ``measure``.

    Args:
        lines: Of any number of settings, methods and forget sets.

    Returns:
        The table.
    """
    return Comparison(lines=tuple(lines))


def _grouped(lines: Iterable[Line]) -> dict[str, dict[str, dict[int, Line]]]:
    """Return setting -> method -> seed -> line."""
    groups: dict[str, dict[str, dict[int, Line]]] = {}
    for line in lines:
        _validate.of_type(Line, lines=line)
        seeds = groups.setdefault(line.setting, {}).setdefault(line.method, {})
        if line.seed in seeds:
            raise InvalidArgumentError(
                f"lines: must be one per setting, method and seed, got two of "
                f"{line.method} with seed {line.seed} in {line.setting!r}; drop one"
            )
        seeds[line.seed] = line
    for setting, of_method in groups.items():
        missing = [name for name in CONTROLS if name not in of_method]
        if missing:
            raise MissingInputError(
                f"lines: must have {', '.join(CONTROLS)} in every setting, got "
                f"{setting!r} without {', '.join(missing)}; measure them, too"
            )
    return groups


def _row(lines: Mapping[int, Line], retrain: Mapping[int, Line]) -> Row:
    """Summarize one method in one setting."""
    first = next(iter(lines.values()))
    alone = sorted(set(lines) - set(retrain))
    if alone:
        raise MissingInputError(
            f"lines: must have retrain for every forget set, got {first.method} in "
            f"{first.setting!r} with seeds {alone} that have none; measure it, too"
        )
    ours, theirs = list(lines.values()), [retrain[seed] for seed in lines]
    differences = np.stack([a.four - b.four for a, b in zip(ours, theirs, strict=True)])
    work, yardstick = (
        float(np.mean([line.sample_gradients for line in some]))
        for some in (ours, theirs)
    )
    names = _metrics(ours)
    values = {
        n: np.array([line.values.get(n, math.nan) for line in ours]) for n in names
    }
    stds = {name: float(value.std()) for name, value in values.items()}
    claim = min((line.certificate for line in ours), key=CLAIMS.index)
    pairs = [(line.epsilon, line.delta) for line in ours]
    claimed = claim in CLAIMED
    return Row(
        setting=first.setting,
        method=first.method,
        sets=len(ours),
        means={name: float(value.mean()) for name, value in values.items()},
        stds=stds,
        gap=float(np.abs(differences.mean(axis=0)).mean()),
        paired_gap=float(np.abs(differences).mean()),
        std=float(np.mean([stds[name] for name in FOUR])),
        seconds=float(np.mean([line.seconds for line in ours])),
        sample_gradients=work,
        to_retrain=work / yardstick if yardstick else math.nan,
        certificate=claim,
        epsilon=max(e or 0.0 for e, _ in pairs) if claimed else None,
        delta=max(d or 0.0 for _, d in pairs) if claimed else None,
        reasons=tuple(dict.fromkeys(r for line in ours for r in line.reasons)),
        note="; ".join(dict.fromkeys(line.note for line in ours if line.note)),
    )


def _doubts(setting: str, rows: Sequence[Row]) -> list[str]:
    """Return what a reader of one setting's rows must be told."""
    original, _, again = rows[:3]
    found = []
    close = original.gap < LEAST_GAP
    if close or original.paired_gap < 2 * again.paired_gap:
        found.append(
            f"{setting}: cannot rank methods: doing nothing has a gap of "
            f"{100 * original.gap:.2f} points "
            f"(paired {100 * original.paired_gap:.2f}), two retrainings "
            f"{100 * again.gap:.2f} "
            f"(paired {100 * again.paired_gap:.2f})"
        )
    counts = {row.sets for row in rows}
    if len(counts) > 1:
        found.append(
            f"{setting}: methods were measured on {min(counts)} to {max(counts)} "
            "forget sets; rows with different sets are not comparable"
        )
    if min(counts) < ENOUGH_SETS:
        found.append(
            f"{setting}: {min(counts)} forget sets; means and spreads need at least "
            f"{ENOUGH_SETS}"
        )
    return found


def _metrics(lines: Iterable[Line]) -> tuple[str, ...]:
    """Return the metrics of all lines, those of ``MINIMUM`` first."""
    others = dict.fromkeys(name for line in lines for name in line.values)
    return (*MINIMUM, *(name for name in others if name not in MINIMUM))


def _sets(rows: Sequence[Row]) -> str:
    counts = sorted({row.sets for row in rows})
    return f"{' to '.join(map(str, counts[:: len(counts) - 1 or 1]))} forget sets"


def _cells(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """Return one row's cells as text."""
    cells = [row.method + (f" ({row.note})" if row.note else "")]
    for name in names:
        mean, std = row.means.get(name, math.nan), row.stds.get(name, math.nan)
        percent = name not in _AREAS and (
            info_of(registry.get(name)).unit == "fraction"
        )
        if math.isnan(mean):
            cells.append("-")
        elif percent:
            cells.append(f"{100 * mean:.1f}±{100 * std:.1f}")
        else:
            cells.append(f"{mean:.3g}±{std:.1g}")
    claim = str(row.certificate)
    if row.epsilon is not None and row.delta is not None:
        claim += f" ({round_up(row.epsilon, 4):g}, {round_up(row.delta, 4):g})"
    cells += [f"{100 * x:.2f}" for x in (row.gap, row.paired_gap, row.std)]
    cells += [f"{row.seconds:.2f}", f"{row.sample_gradients:,.0f}"]
    cells += [f"{row.to_retrain:.3g}", claim, "; ".join(row.reasons) or "-"]
    return tuple(_validate.clean(cell) for cell in cells)
