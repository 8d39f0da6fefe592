"""What an audit saw, and the verdict that follows from it.

The verdict is no opinion: counts and confidence give the lower bound and the ceiling,
and these with the claim and the negative controls give the verdict. A claim above the
ceiling cannot be contradicted by so few replicas: the audit is then *powerless*, never
"passed".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn._jsontext import from_json
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.certificate import CLAIMED, Certificate
from dfl_unlearn.accounting.entries import SCOPES, Scope
from dfl_unlearn.errors import InvalidArgumentError, StoreCorruptError
from dfl_unlearn.evaluation.audit_bounds import (
    audit_ceiling,
    epsilon_lower_bound,
    one_run_epsilon,
    per_bit_claim,
)
from dfl_unlearn.evaluation.noise_checks import ENOUGH, TOLERANCE

AuditTest = Literal["many-run", "one-run", "noise"]
Verdict = Literal["consistent", "refuted", "powerless", "invalid"]


@dataclass(frozen=True, kw_only=True)
class AuditClaim:
    """What is put to the test.

    Attributes:
        epsilon: At least 0.
        delta: In [0, 1).
        scope: What the observer sees.
        noise_std: Claimed noise per coordinate, at least 0; None if nothing is said.
        sensitivity: Claimed bound on the shift, at least 0; None if nothing is said.
        nominal: Whether the certificate is heuristic, so that this is no claim of it.
    """

    epsilon: float
    delta: float
    scope: Scope
    noise_std: float | None = None
    sensitivity: float | None = None
    nominal: bool = False

    def __post_init__(self) -> None:
        """Refuse what no certificate could say."""
        _validate.number(at_least=0, epsilon=self.epsilon)
        _validate.number(at_least=0, below=1, delta=self.delta)
        _validate.one_of(SCOPES, scope=self.scope)
        _validate.of_type(bool, nominal=self.nominal)
        for name in ("noise_std", "sensitivity"):
            if getattr(self, name) is not None:
                _validate.number(at_least=0, **{name: getattr(self, name)})

    @classmethod
    def of(cls, certificate: Certificate) -> "AuditClaim":
        """Return what a certificate says, or what it would if its reasons did not hold.

        Args:
            certificate: Of any status with an epsilon, claimed or nominal.

        Returns:
            The claim, marked nominal unless the status is one.

        Raises:
            InvalidArgumentError: If not even a nominal epsilon stands in it.
        """
        claimed = certificate.status in CLAIMED
        epsilon = certificate.epsilon if claimed else certificate.nominal_epsilon
        delta = certificate.delta if claimed else certificate.nominal_delta
        if epsilon is None or delta is None:
            raise InvalidArgumentError(
                "certificate: must have an epsilon to audit, got status "
                f"{certificate.status!r} without one; state what should hold"
            )
        return cls(
            epsilon=epsilon,
            delta=delta,
            scope=certificate.scope,
            noise_std=certificate.noise_std,
            sensitivity=certificate.sensitivity,
            nominal=not claimed,
        )


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Counts of an audit with the bound, the ceiling and the verdict they carry.

    Attributes:
        claim: What was put to the test.
        request_id: The forget request.
        test: ``many-run``: worlds are guessed over replicas; ``one-run``: inclusion of
            canaries is guessed in one run; ``noise``: only the noise is measured.
        statistic: Name of the score.
        replicas: Replicas trained per world: reference, unlearned.
        evaluated: Those that were counted; the others chose statistic and threshold.
        false_positives: Reference replicas called "unlearned".
        false_negatives: Unlearned replicas called "reference".
        canaries: With ``one-run``: records included by fair coins.
        guesses: How many of them were guessed.
        correct: How many guesses are right.
        gamma: Chance that the bound is above the true epsilon.
        comparisons: Statistics counted on the same replicas; each has its share of
            ``gamma``.
        threshold: Of the score; None without one.
        above: Whether scores above the threshold are called "unlearned".
        noise_std_measured: Noise per coordinate in the reference world, or None.
        noise_samples: How many numbers stand behind it.
        noise_flaws: Whose noises are alike that must not be, or the other way round.
        shift_measured: Distance of the two worlds' means, or None.
        shift_slack: How much of it noise explains at confidence ``1 - gamma``.
        negative_controls: Audits of releases that are broken on purpose.
        label: What was broken, for a control.
        seeds: Labels of the replicas' random trees.
        versions: Of what a repetition needs to be equal.
        epsilon_lower: What the counts prove; computed.
        ceiling: What a guesser without errors would have proven; computed.
    """

    claim: AuditClaim
    request_id: str
    test: AuditTest = "many-run"
    statistic: str
    replicas: tuple[int, int]
    evaluated: tuple[int, int]
    false_positives: int = 0
    false_negatives: int = 0
    canaries: int = 0
    guesses: int = 0
    correct: int = 0
    gamma: float
    comparisons: int = 1
    threshold: float | None = None
    above: bool = True
    noise_std_measured: float | None = None
    noise_samples: int = 0
    noise_flaws: tuple[str, ...] = ()
    shift_measured: float | None = None
    shift_slack: float = 0.0
    negative_controls: tuple["AuditResult", ...] = ()
    label: str = ""
    seeds: tuple[str, ...]
    versions: Mapping[str, str]
    epsilon_lower: float = field(init=False)
    ceiling: float = field(init=False)

    def __post_init__(self) -> None:
        """Check the counts and compute what they prove.

        Raises:
            InvalidArgumentError: If counts contradict each other or the test.
        """
        _validate.of_type(AuditClaim, claim=self.claim)
        _validate.identifier(request_id=self.request_id)
        _validate.one_of(get_args(AuditTest), test=self.test)
        _validate.of_type(str, statistic=self.statistic, label=self.label)
        _validate.of_type(bool, above=self.above)
        _validate.number(above=0, below=1, gamma=self.gamma)
        _validate.integer(at_least=1, comparisons=self.comparisons)
        _validate.integer(at_least=0, noise_samples=self.noise_samples)
        _validate.number(at_least=0, shift_slack=self.shift_slack)
        if len(self.replicas) != 2 or len(self.evaluated) != 2:
            raise InvalidArgumentError(
                "replicas and evaluated: must be two numbers each, reference first, "
                f"got {self.replicas!r} and {self.evaluated!r}"
            )
        for trained, counted in zip(self.replicas, self.evaluated, strict=True):
            _validate.integer(at_least=0, replicas=trained)
            _validate.integer(at_least=0, at_most=trained, evaluated=counted)
        for name in ("noise_std_measured", "shift_measured"):
            if getattr(self, name) is not None:
                _validate.number(at_least=0, **{name: getattr(self, name)})
        if self.threshold is not None:
            _validate.number(threshold=self.threshold)
        for control in self.negative_controls:
            _validate.of_type(AuditResult, negative_controls=control)
        for text in (*self.seeds, *self.noise_flaws):
            _validate.of_type(str, text=text)
        for name, version in self.versions.items():
            _validate.of_type(str, versions=name, version=version)
        epsilon_lower, ceiling = self._bounds()
        object.__setattr__(self, "epsilon_lower", epsilon_lower)
        object.__setattr__(self, "ceiling", ceiling)

    @property
    def tested(self) -> tuple[float, float]:
        """The (epsilon, delta) compared: one record's, with ``one-run``."""
        if self.test == "one-run":
            return per_bit_claim(self.claim.epsilon, self.claim.delta)
        return self.claim.epsilon, self.claim.delta

    @property
    def negative_control(self) -> "AuditResult | None":
        """The control that was detected least clearly, or None if none was run."""
        return min(
            self.negative_controls, key=lambda audit: audit.epsilon_lower, default=None
        )

    @property
    def noise_holds(self) -> bool | None:
        """Whether the measured noise is the claimed one; None if that is not known."""
        measured, claimed = self.noise_std_measured, self.claim.noise_std
        if measured is None or claimed is None or self.noise_samples < ENOUGH:
            return None
        return abs(measured - claimed) <= TOLERANCE * claimed

    @property
    def shift_holds(self) -> bool | None:
        """Whether the measured shift may be within its bound; None if not known."""
        measured, claimed = self.shift_measured, self.claim.sensitivity
        if measured is None or claimed is None:
            return None
        return measured - self.shift_slack <= claimed

    @property
    def verdict(self) -> Verdict:
        """What follows: refuting evidence counts first, then what cannot be known.

        ``refuted`` when the bound is above the claim, the noise below it or flawed, or
        the shift beyond it; ``powerless`` when the claim is at or above the ceiling, or
        too few numbers were measured; ``invalid`` when a negative control was not
        detected or the noise is *larger* than claimed; else ``consistent``.
        """
        measured, claimed = self.noise_std_measured, self.claim.noise_std
        too_small = self.noise_holds is False and (measured or 0.0) < (claimed or 0.0)
        if (
            self.epsilon_lower > self.tested[0]
            or too_small
            or self.shift_holds is False
            or self.noise_flaws
        ):
            return "refuted"
        if self.test == "noise":
            if self.noise_holds is None:
                return "powerless"
        elif self.ceiling <= self.tested[0]:
            return "powerless"
        if self.noise_holds is False or any(
            control.verdict != "refuted" for control in self.negative_controls
        ):
            return "invalid"
        return "consistent"

    def __str__(self) -> str:
        """Return the audit as a block of text."""
        return "\n".join(_validate.clean(line) for line in self._text())

    def to_json(self) -> str:
        """Return the fields, the verdict and ``format`` as one JSON object."""
        return json.dumps({"format": 1, **self._record()}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "AuditResult":
        """Read what ``to_json`` wrote.

        Args:
            text: One JSON object with exactly the fields, the verdict and ``format``.

        Returns:
            An equal result.

        Raises:
            StoreCorruptError: If a field is missing, unknown or not allowed, or if
                bound, ceiling or verdict do not follow from the counts.
        """
        try:
            record = from_json(text)
            return _read(record, record.pop("format"))
        except _UNREADABLE as error:
            raise StoreCorruptError(
                "audit.json: must be an audit of format 1, got: "
                f"{_validate.clean(str(error))[:200]}; restore it from a copy"
            ) from error

    def _bounds(self) -> tuple[float, float]:
        gamma = self.gamma / self.comparisons
        n0, n1 = self.evaluated
        wrong, missed = self.false_positives, self.false_negatives
        if self.test != "many-run" and (wrong or missed):
            raise InvalidArgumentError(
                f"false_positives and false_negatives: must be 0 with {self.test!r}, "
                f"got {wrong!r} and {missed!r}"
            )
        if self.test != "one-run" and (self.canaries or self.guesses or self.correct):
            raise InvalidArgumentError(
                f"canaries, guesses and correct: must be 0 with {self.test!r}, got "
                f"{self.canaries!r}, {self.guesses!r} and {self.correct!r}"
            )
        if self.test == "many-run":
            delta = self.claim.delta
            return (
                epsilon_lower_bound(wrong, n0, missed, n1, delta, gamma),
                audit_ceiling(n0, n1, delta, gamma),
            )
        if self.test == "noise":
            return 0.0, 0.0
        delta = self.tested[1]
        if delta >= 1:
            return 0.0, 0.0
        m, r = self.canaries, self.guesses
        return (
            one_run_epsilon(m, r, self.correct, delta, gamma),
            one_run_epsilon(m, r, r, delta, gamma),
        )

    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("claim", "negative_controls")
        }
        return {
            "claim": asdict(self.claim),
            **record,
            "versions": dict(self.versions),
            "negative_controls": [c._record() for c in self.negative_controls],
            "verdict": self.verdict,
        }

    def _text(self) -> list[str]:
        claim, (n0, n1) = self.claim, self.evaluated
        kind = "nominal claim" if claim.nominal else "claim"
        lines = [
            f"AUDIT  request {self.request_id}  scope {claim.scope}  {kind} "
            f"({_pair(claim.epsilon, claim.delta)})  statistic {self.statistic}"
        ]
        bounds = (
            f"  ε lower bound {_down(self.epsilon_lower, 3)} "
            f"({100 * (1 - self.gamma):g} %)    ceiling of this audit "
            f"{_down(self.ceiling, 2)}    verdict: {self._verdict_text()}"
        )
        if self.test == "one-run":
            lines += [
                f"  tested: inclusion of one record ({_pair(*self.tested)})",
                f"  canaries {self.canaries}   guesses {self.guesses}   correct "
                f"{self.correct}",
                bounds,
            ]
        elif self.test == "many-run":
            trained = f"{self.replicas[0]}+{self.replicas[1]}"
            lines += [
                f"  replicas {trained} (evaluated {n0}+{n1})   FP "
                f"{self.false_positives}   FN {self.false_negatives}",
                bounds,
            ]
        else:
            lines.append(f"  verdict: {self._verdict_text()}")
        lines += self._noise_text()
        lines += [_control_text(control) for control in self.negative_controls]
        if self.test == "many-run" and not self.negative_controls and not self.label:
            lines.append("  negative control: not run")
        return lines

    def _verdict_text(self) -> str:
        verdict = self.verdict
        if verdict == "refuted":
            return "REFUTED"
        if verdict == "powerless" and self.test == "noise":
            return (
                f"audit powerless: {self.noise_samples:,} numbers < {ENOUGH:,} needed"
            )
        if verdict == "powerless":
            return (
                f"audit powerless: ceiling {_down(self.ceiling, 2)} < claimed "
                f"{round_up(self.tested[0], 4):g}"
            )
        return verdict

    def _noise_text(self) -> list[str]:
        parts = []
        if self.noise_std_measured is not None:
            claimed = self.claim.noise_std
            against = "" if claimed is None else f" vs claimed {claimed:.4g}"
            found = {True: "", False: " → NOT AS CLAIMED", None: " → not decided"}
            parts.append(
                f"σ measured {self.noise_std_measured:.4g}{against} "  # noqa: RUF001
                f"(n·p = {self.noise_samples:,}){found[self.noise_holds]}"
            )
        if self.shift_measured is not None:
            claimed = self.claim.sensitivity
            slack = f" (noise {self.shift_slack:.3g})" if self.shift_slack else ""
            sign = ">" if self.shift_holds is False else "≤"
            against = "" if claimed is None else f" {sign} Δ {claimed:.4g}"
            parts.append(f"shift {self.shift_measured:.3g}{slack}{against}")
        lines = ["  noise check: " + "   ".join(parts)] if parts else []
        return lines + [f"  noise flaw: {flaw}" for flaw in self.noise_flaws]


def _control_text(control: AuditResult) -> str:
    hits = control.evaluated[1] - control.false_negatives
    counts = f"FP {control.false_positives}, TP {hits}"
    if control.test == "one-run":
        counts = f"correct {control.correct} of {control.guesses}"
    inside = f"{control.label}; {counts}" if control.label else counts
    found = "detected" if control.verdict == "refuted" else "NOT DETECTED"
    return (
        f"  negative control ({inside}): ε lower bound "
        f"{_down(control.epsilon_lower, 2)} → {found}"
    )


def _pair(epsilon: float, delta: float) -> str:
    return f"ε={round_up(epsilon):g}, δ={round_up(delta):g}"


def _down(value: float, digits: int) -> str:
    """Return a number with so many decimals, never above it."""
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def _read(record: dict[str, Any], version: int = 1) -> AuditResult:
    names = {f.name for f in fields(AuditResult)} | {"verdict"}
    if version != 1 or set(record) != names:
        raise InvalidArgumentError(
            f"format must be 1 with exactly its fields, got format {version!r} and a "
            f"difference in {sorted(set(record) ^ names)}"
        )
    derived = {name: record.pop(name) for name in _DERIVED}
    record["claim"] = AuditClaim(**record["claim"])
    record["negative_controls"] = [_read(c) for c in record["negative_controls"]]
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
    }
    result = AuditResult(**given)
    for name in ("epsilon_lower", "ceiling"):
        # Another SciPy may round its quantiles differently in the last digits.
        if not math.isclose(
            derived[name], getattr(result, name), rel_tol=1e-9, abs_tol=1e-9
        ):
            raise InvalidArgumentError(
                f"{name}: must be {getattr(result, name)!r} with these counts, got "
                f"{derived[name]!r}"
            )
    if derived["verdict"] != result.verdict:
        raise InvalidArgumentError(
            f"verdict: must be {result.verdict!r} with these counts, got "
            f"{derived['verdict']!r}"
        )
    return result


_DERIVED = ("epsilon_lower", "ceiling", "verdict")
