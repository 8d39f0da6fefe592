"""One method on one forget set, measured beside its controls: a line of a comparison.

A line cannot be made without saying what its certificate claims.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import CLAIMED, Status
from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.evaluation.metrics import Metric, info_of
from dfl_unlearn.evaluation.metrics import metrics as registry
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.store.files import write_file
from dfl_unlearn.unlearning.contracts import Outcome

FOUR = ("forget-accuracy", "retain-accuracy", "test-accuracy-kept", "mia-entropy")
"""The figures that gaps are about: FA, RA, TA and attack (a)."""
MINIMUM = (*FOUR, "mia-population-auc", "mia-tpr-at-1", "prediction-js")
"""Registered metrics that every line has."""

Claim = Literal[Status, "none"]
CLAIMS: tuple[Claim, ...] = (
    "none",
    "pending",
    "heuristic",
    "certified_conditional",
    "certified",
    "exact",
)
"""What a line may claim, from the weakest to the strongest."""

_BETWEEN = " | "  # reasons in one cell
_BEFORE = ("setting", "method", "seed")
_AFTER = (
    "seconds",
    "sample-gradients",
    "certificate",
    "epsilon",
    "delta",
    "reasons",
    "note",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method on one forget set.

    Attributes:
        setting: Name of what is compared, e.g. ``digits, random 10 %``.
        method: Name of the method, or one of ``CONTROLS``.
        seed: Names the forget set (and the training) within the setting.
        values: Registered metric -> value, as fractions and nats; at least
            ``MINIMUM``. NaN where there is no value.
        seconds: Elapsed time.
        sample_gradients: Per-sample gradients, preprocessing included, a
            Hessian-vector product counted as two.
        certificate: Status of the claim, ``none`` where none is made.
        epsilon: Claimed epsilon; None exactly where the status claims none.
        delta: Claimed delta, likewise.
        reasons: Why the status is not higher.
        note: Anything a reader must know, e.g. ``oracle-tuned``.
    """

    setting: str
    method: str
    seed: int
    values: Mapping[str, float]
    seconds: float
    sample_gradients: int
    certificate: Claim
    epsilon: float | None
    delta: float | None
    reasons: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MissingInputError: If a metric of ``MINIMUM`` is missing.
            InvalidArgumentError: If epsilon and delta do not fit the status.
        """
        _validate.of_type(str, setting=self.setting, method=self.method, note=self.note)
        _validate.integer(seed=self.seed, sample_gradients=self.sample_gradients)
        _validate.one_of(CLAIMS, certificate=self.certificate)
        missing = [name for name in MINIMUM if name not in self.values]
        if missing:
            raise MissingInputError(
                f"values: must have {', '.join(MINIMUM)}, got a line of {self.method} "
                f"without {', '.join(missing)}; measure them, NaN where impossible"
            )
        claimed = self.certificate in CLAIMED
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            if (value is not None) != claimed:
                raise InvalidArgumentError(
                    f"{name}: must be {'a number' if claimed else 'None'} with "
                    f"certificate {self.certificate!r}, got {value!r}; take it from "
                    "the certificate"
                )

    @property
    def four(self) -> Floats:
        """The figures that gaps are about, shape ``(4,)``."""
        return np.array([self.values[name] for name in FOUR])


def measure(
    outcome: Outcome,
    *,
    setting: str,
    seed: int,
    method: str | None = None,
    metrics: Sequence[str] = (),
    peer: int | None = None,
    note: str = "",
) -> Line:
    """Return the line of an outcome with a reference.

    Args:
        outcome: From ``unlearn(..., reference=...)``.
        setting: Name of what is compared.
        seed: Names the forget set.
        method: How the line is called; None is ``outcome.label``.
        metrics: Registered metrics beside ``MINIMUM``.
        peer: Whose figures; None is the mean over all peers.
        note: Anything a reader must know.

    Returns:
        The line; costs and certificate are the outcome's.

    Raises:
        MissingInputError: If there is no reference, or no rows to measure on.
    """
    claim = outcome.certificate
    return Line(
        setting=setting,
        method=outcome.label if method is None else method,
        seed=seed,
        values=_values(_view(outcome, peer), metrics),
        seconds=outcome.cost.wall_seconds,
        sample_gradients=outcome.cost.gradient_evaluations,
        certificate="none" if claim is None else claim.status,
        epsilon=None if claim is None else claim.epsilon,
        delta=None if claim is None else claim.delta,
        reasons=() if claim is None else claim.reasons,
        note=note,
    )


def write_lines(lines: Iterable[Line], path: str | Path) -> Path:
    """Write lines as CSV, whole or not at all, to go on from there later.

    Args:
        lines: Of any settings, methods and forget sets.
        path: The file; its folder exists.

    Returns:
        The path.
    """
    lines = tuple(lines)
    others = dict.fromkeys(name for line in lines for name in line.values)
    names = (*MINIMUM, *(name for name in others if name not in MINIMUM))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*_BEFORE, *names, *_AFTER))
    for line in lines:
        values = (line.values.get(name, "") for name in names)
        pair = ("" if x is None else repr(x) for x in (line.epsilon, line.delta))
        writer.writerow(
            (
                *(line.setting, line.method, line.seed, *values),
                *(repr(line.seconds), line.sample_gradients, line.certificate, *pair),
                *(_BETWEEN.join(line.reasons), line.note),
            )
        )
    path = Path(path)
    write_file(path, buffer.getvalue().encode())
    return path


def read_lines(path: str | Path) -> tuple[Line, ...]:
    """Read what ``write_lines`` wrote.

    Args:
        path: The file.

    Returns:
        Equal lines, checked again.

    Raises:
        InvalidArgumentError: If the file has other columns or a cell is no number.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        records = list(csv.reader(file))
    header = tuple(records[0]) if records else ()
    names = header[len(_BEFORE) : -len(_AFTER)]
    if header != (*_BEFORE, *names, *_AFTER):
        raise InvalidArgumentError(
            f"path: must be a table of lines with the columns {', '.join(_BEFORE)}, "
            f"metrics, {', '.join(_AFTER)}, got {_validate.show(header)}; write it "
            "with write_lines"
        )
    found = []
    for number, record in enumerate(records[1:], start=2):
        try:
            cell = dict(zip(header, record, strict=True))
            found.append(
                Line(
                    setting=cell["setting"],
                    method=cell["method"],
                    seed=int(cell["seed"]),
                    values={n: float(cell[n]) for n in names if cell[n]},
                    seconds=float(cell["seconds"]),
                    sample_gradients=int(cell["sample-gradients"]),
                    certificate=cell["certificate"],  # type: ignore[arg-type]
                    epsilon=float(cell["epsilon"]) if cell["epsilon"] else None,
                    delta=float(cell["delta"]) if cell["delta"] else None,
                    reasons=tuple(filter(None, cell["reasons"].split(_BETWEEN))),
                    note=cell["note"],
                )
            )
        except ValueError as error:
            raise InvalidArgumentError(
                f"path: every row must be a line, got row {number} with {error}; write "
                "it with write_lines"
            ) from error
    return tuple(found)


def _values(view: EvaluationView, metrics: Sequence[str]) -> dict[str, float]:
    values = {}
    for name in dict.fromkeys((*MINIMUM, *metrics)):
        if "after" in info_of(registry.get(name)).worlds:
            metric: Metric = registry.get(name)
            values[name] = float(metric(view.at("after")).double().mean())
    return values


def _view(outcome: Outcome, peer: int | None) -> EvaluationView:
    if outcome.reference is None:
        raise MissingInputError(
            "outcome: must have a reference to be compared with, got None; call "
            "unlearn(..., reference=True)"
        )
    view = EvaluationView.of(outcome)
    return view if peer is None else view.only(peer)
