"""A guarantee with every constant it rests on, and what it does not cover.

The status is no opinion: it follows from where the constants come from and whether
they hold. A certificate is about the algorithm as this program ran it; weights alone
prove nothing to an outsider.

References:
    Bertran et al. (2024), Reconstruction attacks on machine unlearning: simple models
    are vulnerable (before/after comparison).
    Gupta et al. (2021), Adaptive machine unlearning (requests chosen after releases).
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn._assumption import Assumption, Source, State
from dfl_unlearn._jsontext import from_json
from dfl_unlearn._stats import round_up
from dfl_unlearn.accounting.entries import (
    SCOPES,
    NoiseMode,
    Observer,
    Scope,
    members,
)
from dfl_unlearn.accounting.gaussian import gaussian_delta
from dfl_unlearn.accounting.mechanisms import GaussianMechanism, check_scale
from dfl_unlearn.accounting.rdp import RdpCurve, rdp_to_epsilon
from dfl_unlearn.errors import InvalidArgumentError, StoreCorruptError

__all__ = ["Assumption", "Certificate", "Status", "certify", "status_of"]

Status = Literal["exact", "certified", "certified_conditional", "heuristic", "pending"]
Bound = Literal["none", "a_priori", "a_posteriori", "capped", "trajectory"]
Accountant = Literal["exact_gaussian", "rdp", "none"]

CLAIMED: tuple[Status, ...] = ("exact", "certified", "certified_conditional")
"""Statuses with an epsilon and a delta."""

ADAPTIVE = (
    "request may depend on released models: the guarantee covers requests fixed in "
    "advance only"
)
PRIVATE_BEFORE = "releases before an adaptive request"
"""Name of the assumption that lifts a claim to requests chosen after looking."""
KEPT_STATE = "pre-request state is kept at peers"
WEAK = "weak: ε > 10"
_NOT_COVERED = (
    "before/after comparison: who holds a model from before the request and one from "
    "after it learns about the forgotten data",
    "messages sent before the request are not recalled; peers are assumed to delete "
    "honestly",
)
_ADAPTIVE = "adaptive requests: those chosen after seeing released models"
_ARITHMETIC: dict[NoiseMode, str] = {
    "simulated": "real arithmetic: the proof is about real numbers and ideal noise, "
    "this is a float64 simulation whose noise can be drawn again from the seed (not "
    "for deployment)",
    "secure": "real arithmetic before the noise: the value that is rounded to the "
    "grid, and the bound on its shift, are float64 computations; nor how long the "
    "noise takes to draw, and what stays in memory",
}
_CORRELATED = "correlated data: what others' data still say about the forgotten ones"


def not_covered(*modes: NoiseMode, adaptive: bool = True) -> tuple[str, ...]:
    """Return what certificates do not cover, as printed on every one.

    Args:
        *modes: Modes of the noise; each has its own sentence on arithmetic.
        adaptive: False where an assumption lifts the sentence on adaptive requests.

    Returns:
        Sentences.
    """
    return (
        *_NOT_COVERED,
        *([_ADAPTIVE] if adaptive else []),
        *(_ARITHMETIC[mode] for mode in modes),
        _CORRELATED,
    )


def status_of(
    assumptions: Sequence[Assumption],
    *,
    adaptive: bool = False,
    kept_state: bool = False,
    exact: bool = False,
) -> Status:
    """Return the status that follows from what a claim rests on.

    Args:
        assumptions: Every constant and condition.
        adaptive: Whether the request was chosen after seeing released models.
        kept_state: Whether peers keep pre-request state after an applied outcome.
        exact: Whether the outcome equals retraining, with nothing to bound.

    Returns:
        ``heuristic`` with any violated or estimated assumption; else
        ``certified_conditional`` with any assumed or unknown one, an adaptive request
        or kept state; else ``exact`` or ``certified``.
    """
    if any(a.state == "violated" or a.source == "estimated" for a in assumptions):
        return "heuristic"
    if (
        adaptive
        or kept_state
        or any(a.state == "unknown" or a.source == "assumed" for a in assumptions)
    ):
        return "certified_conditional"
    return "exact" if exact else "certified"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is guaranteed about a released outcome; built by ``certify``.

    Attributes:
        status: See ``status_of``; ``pending`` while some peers are not corrected.
        method: Registered name of the protocol.
        request_id: The forget request.
        group_size: Forgotten records, or None when not disclosed.
        scope: What the observer sees: ``release`` is one peer's final model, ``joint``
            all of them.
        adjacency: The worlds compared: data unlearned, or never there.
        epsilon: Upper bound; None unless the status is a claim; 0 when exact.
        delta: Likewise.
        nominal_epsilon: What would hold if the reasons did not; None for a claim.
        nominal_delta: Likewise.
        sensitivity: Bound on the L2 shift between the worlds, at least 0.
        bound: How it was got: not at all, from public constants alone, from the
            measured residual, from it under a public cap, or from the length and the
            constants of a descent (see ``accounting.trajectory``).
        noise_std: Standard deviation of the noise per coordinate.
        noise_mode: ``simulated``: drawn from the seed; ``secure``: from the operating
            system, so that the run cannot be repeated.
        numerics: ``idealized``: float64 in place of real numbers; ``grid``: what is
            released lies on a grid, noise and all, exactly.
        accountant: What epsilon was computed with.
        rdp_orders: Rényi orders, A of them, with the ``rdp`` accountant.
        rdp: Rényi bounds at these orders, shape ``(A,)``.
        order_at_edge: Whether a wider grid of orders might give less.
        assumptions: Every constant.
        reasons: Why the status is not higher.
        observers: Who sees what is released.
        pending_peers: Peers not corrected yet.
        exposure: What was seen before the request or is still kept.
        covers: Parameter groups the claim is about.
        notes: Fixed sentences.
    """

    status: Status
    method: str
    request_id: str
    group_size: int | None
    scope: Scope
    adjacency: Literal["unlearn"] = "unlearn"
    epsilon: float | None
    delta: float | None
    nominal_epsilon: float | None
    nominal_delta: float | None
    sensitivity: float
    bound: Bound
    noise_std: float
    noise_mode: NoiseMode = "simulated"
    numerics: Literal["idealized", "grid"] = "idealized"
    accountant: Accountant
    rdp_orders: tuple[float, ...] = ()
    rdp: tuple[float, ...] = ()
    order_at_edge: bool = False
    assumptions: tuple[Assumption, ...]
    reasons: tuple[str, ...]
    observers: tuple[Observer, ...]
    pending_peers: tuple[int, ...] = ()
    exposure: tuple[str, ...] = ()
    covers: tuple[str, ...] = ("all",)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a certificate that says more than its assumptions carry.

        Raises:
            InvalidArgumentError: If status, numbers and reasons contradict each other.
        """
        for name, allowed in _CHOICES.items():
            _validate.one_of(allowed, **{name: getattr(self, name)})
        _validate.of_type(str, method=self.method)
        _validate.of_type(bool, order_at_edge=self.order_at_edge)
        _validate.identifier(request_id=self.request_id)
        if self.group_size is not None:
            _validate.integer(at_least=1, group_size=self.group_size)
        for peer in self.pending_peers:
            _validate.integer(at_least=0, pending_peers=peer)
        for observer in self.observers:
            _validate.of_type(str, observers=observer)
            members(observer)
        for text in (*self.reasons, *self.exposure, *self.covers, *self.notes):
            _validate.of_type(str, text=text)
        for value in (self.sensitivity, self.noise_std, *self.rdp_orders, *self.rdp):
            check_scale(value=value)
        for assumption in self.assumptions:
            _check_assumption(assumption)
        claimed = self.status in CLAIMED
        filled, empty = ("", "nominal_") if claimed else ("nominal_", "")
        for name in ("epsilon", "delta"):
            if getattr(self, empty + name) is not None or (
                claimed and getattr(self, name) is None
            ):
                raise InvalidArgumentError(
                    f"{empty}{name}: must be None and {filled}{name} be used with "
                    f"status {self.status!r}, got {getattr(self, empty + name)!r}"
                )
            value = getattr(self, filled + name)
            if value is not None:
                check_scale(**{filled + name: value})
        best = status_of(self.assumptions, exact=self.status == "exact")
        if claimed and _RANK[self.status] > _RANK[best]:
            raise InvalidArgumentError(
                f"status: must be at most {best!r} with these assumptions, got "
                f"{self.status!r}; use certify"
            )
        if (self.status in ("exact", "certified")) == bool(self.reasons):
            raise InvalidArgumentError(
                "reasons: must say why the status is not higher, and be empty for "
                f"exact and certified, got {self.reasons!r} with {self.status!r}"
            )
        if (self.status == "pending") != bool(self.pending_peers):
            raise InvalidArgumentError(
                "pending_peers: must be named exactly with status 'pending', got "
                f"{self.pending_peers!r} with {self.status!r}"
            )
        if self.status == "exact" and (self.epsilon, self.delta) != (0, 0):
            raise InvalidArgumentError(
                f"epsilon: must be 0 with delta 0 for exact, got {self.epsilon!r}"
            )
        if (self.noise_mode == "secure") != (self.numerics == "grid"):
            raise InvalidArgumentError(
                "numerics: must be 'grid' with secure noise and 'idealized' with "
                f"simulated, got {self.numerics!r} with {self.noise_mode!r}"
            )
        if claimed:
            self._check_noise()

    def __str__(self) -> str:
        """Return the certificate as a block of text, limits included."""
        return "\n".join(_validate.clean(line) for line in self._text())

    def _repr_html_(self) -> str:
        """Return the same block for notebooks, escaped."""
        return (
            f'<pre class="dfl-certificate dfl-{self.status}">'
            f"{html.escape(str(self))}</pre>"
        )

    def to_json(self) -> str:
        """Return the fields and ``format`` as one JSON object."""
        return json.dumps({"format": 1, **asdict(self)}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Read what ``to_json`` wrote.

        Args:
            text: One JSON object with exactly the fields and ``format``.

        Returns:
            An equal certificate.

        Raises:
            StoreCorruptError: If a field is missing, unknown or not allowed.
        """
        try:
            return cls(**_read_fields(text))
        except _UNREADABLE as error:
            raise StoreCorruptError(
                "certificate.json: must be a certificate of format 1, got: "
                f"{_validate.clean(str(error))[:200]}; restore it from a copy"
            ) from error

    def _check_noise(self) -> None:
        if self.accountant == "rdp":
            least = rdp_to_epsilon(self.rdp_orders, self.rdp, self.delta or 0.0).epsilon
            if not least <= (self.epsilon or 0.0):
                raise InvalidArgumentError(
                    f"epsilon: must be at least what the curve gives, {least!r}, got "
                    f"{self.epsilon!r}"
                )
            return
        if self.noise_mode == "secure":
            raise InvalidArgumentError(
                "accountant: must be 'rdp' with secure noise, got "
                f"{self.accountant!r}; the exact value is that of real Gaussians"
            )
        noise = GaussianMechanism(
            noise_std=self.noise_std, sensitivity=self.sensitivity
        )
        real = gaussian_delta(noise.mu, self.epsilon or 0.0)
        if real > (self.delta or 0.0):
            raise InvalidArgumentError(
                f"noise_std: must carry the claim ({self.epsilon!r}, {self.delta!r}), "
                f"got {self.noise_std!r} for a shift of {self.sensitivity!r}, whose "
                f"delta is {real:.3g}; use gaussian_noise_std"
            )

    def _text(self) -> list[str]:
        size = "size not disclosed" if self.group_size is None else self.group_size
        noise = _NOISE[self.noise_mode] if self.noise_std else "none"
        if self.status == "heuristic":
            reasons = "; ".join(self.reasons)
            head = f"HEURISTIC — not a certified (ε,δ) guarantee: {reasons}"
        elif self.status == "pending":
            head = f"PENDING — {self.reasons[0]}"
        else:
            head = self.status.upper().replace("_", " ")
        lines = [
            head,
            f"  method {self.method}   request {self.request_id}   "
            f"scope {self.scope}   relation {self.adjacency}",
            f"  forgotten records: {size}   observers: {_brief(self.observers)}",
            f"  {self._guarantee()}",
            f"  shift bound Δ = {round_up(self.sensitivity):g} ({self.bound})   noise "
            f"std {-round_up(-self.noise_std):g}",
            f"  noise: {noise}   numerics: {_NUMERICS[self.numerics]}",
        ]
        if self.covers != ("all",):
            lines.append(f"  covers parameters: {', '.join(self.covers)}")
        if self.pending_peers:
            waiting = _brief([f"peer:{peer}" for peer in self.pending_peers])
            lines.append(f"  not corrected yet: {waiting}")
        lines += _section("assumptions", [_line(a) for a in self.assumptions])
        if self.status != "heuristic":
            lines += _section("not higher because", self.reasons)
        lines += _section("exposure", self.exposure)
        lines += _section("notes", self.notes)
        lifted = any(a.name == PRIVATE_BEFORE for a in self.assumptions)
        left = not_covered(self.noise_mode, adaptive=not lifted)
        return lines + _section("does not cover", left)

    def _guarantee(self) -> str:
        claimed = self.status in CLAIMED
        epsilon = self.epsilon if claimed else self.nominal_epsilon
        delta = self.delta if claimed else self.nominal_delta
        if epsilon is None or delta is None:
            return "no (ε, δ) would follow either"
        pair = f"(ε, δ) = ({round_up(epsilon):g}, {round_up(delta):g})"
        if not claimed:
            pair = f"nominal {pair}: would hold if the reasons did not"
        edge = (
            "; order grid exhausted: bound may be loose" if self.order_at_edge else ""
        )
        return f"{pair}   accountant: {self.accountant}{edge}"


def certify(
    *,
    method: str,
    request_id: str,
    group_size: int | None,
    scope: Scope,
    epsilon: float | None,
    delta: float | None,
    sensitivity: float,
    bound: Bound,
    noise_std: float,
    accountant: Accountant,
    assumptions: Sequence[Assumption],
    observers: Sequence[Observer],
    curve: RdpCurve | None = None,
    pending_peers: Sequence[int] = (),
    exposure: Sequence[str] = (),
    covers: Sequence[str] = ("all",),
    notes: Sequence[str] = (),
    adaptive: bool = False,
    kept_state: bool = False,
    exact: bool = False,
    noise_mode: NoiseMode = "simulated",
) -> Certificate:
    """Return the certificate whose status and reasons follow from its assumptions.

    Args:
        method: Registered name of the protocol.
        request_id: The forget request.
        group_size: Forgotten records, or None when not disclosed.
        scope: What the observer sees.
        epsilon: What holds if every assumption does, 0 when exact; None if nothing
            would follow. Becomes nominal when the status is no claim.
        delta: Likewise.
        sensitivity: Bound on the L2 shift.
        bound: How it was got.
        noise_std: Standard deviation of the noise.
        accountant: What epsilon was computed with.
        assumptions: Every constant and condition.
        observers: Who sees what is released.
        curve: The Rényi curve, with the ``rdp`` accountant.
        pending_peers: Peers not corrected yet.
        exposure: What was seen before the request or is still kept.
        covers: Parameter groups the claim is about.
        notes: Fixed sentences.
        adaptive: Whether the request was chosen after seeing released models.
        kept_state: Whether peers keep pre-request state after an applied outcome.
        exact: Whether the outcome equals retraining.
        noise_mode: Where the noise came from; secure noise lies on a grid.

    Returns:
        The certificate; a note says so when epsilon is above 10.
    """
    status = status_of(
        assumptions, adaptive=adaptive, kept_state=kept_state, exact=exact
    )
    reasons = [
        f"{a.name}: {a.state if a.state != 'held' else a.source}"
        for a in assumptions
        if a.state != "held" or a.source in ("estimated", "assumed")
    ]
    reasons += [ADAPTIVE] if adaptive else []
    reasons += [KEPT_STATE] if kept_state else []
    if pending_peers:
        reasons.append(f"{len(pending_peers)} peers are not corrected yet")
        status = "pending" if status in CLAIMED else status
    claimed = status in CLAIMED
    weak = [WEAK] if epsilon is not None and epsilon > 10 else []
    return Certificate(
        status=status,
        method=method,
        request_id=request_id,
        group_size=group_size,
        scope=scope,
        epsilon=epsilon if claimed else None,
        delta=delta if claimed else None,
        nominal_epsilon=None if claimed else epsilon,
        nominal_delta=None if claimed else delta,
        sensitivity=sensitivity,
        bound=bound,
        noise_std=noise_std,
        noise_mode=noise_mode,
        numerics="grid" if noise_mode == "secure" else "idealized",
        accountant=accountant,
        rdp_orders=() if curve is None else curve.orders,
        rdp=() if curve is None else tuple(curve.values.tolist()),
        order_at_edge=curve is not None
        and delta is not None
        and curve.to_epsilon(delta).order_at_edge,
        assumptions=tuple(assumptions),
        reasons=tuple(reasons),
        observers=tuple(observers),
        pending_peers=tuple(pending_peers),
        exposure=tuple(exposure),
        covers=tuple(covers),
        notes=(*notes, *weak),
    )


def incomplete(
    certificate: Certificate, peers: Sequence[int], text: str
) -> Certificate:
    """Return a certificate that some peers keep from holding.

    Args:
        certificate: The claim about the peers that were corrected.
        peers: Those that were not.
        text: Who holds what; the first of the reasons.

    Returns:
        A ``pending`` one: no epsilon but the nominal one, for observers who do not see
        those peers. What kept the claim from being certified stays among the reasons.
    """
    claimed = certificate.status in CLAIMED
    reasons = list(certificate.reasons)
    if certificate.status == "heuristic":
        reasons.insert(0, "HEURISTIC — not a certified (ε,δ) guarantee when complete:")
    return replace(
        certificate,
        status="pending",
        epsilon=None,
        delta=None,
        nominal_epsilon=certificate.epsilon if claimed else certificate.nominal_epsilon,
        nominal_delta=certificate.delta if claimed else certificate.nominal_delta,
        reasons=(text, *reasons),
        pending_peers=tuple(peers),
    )


_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "status": get_args(Status),
    "scope": SCOPES,
    "adjacency": ("unlearn",),
    "bound": get_args(Bound),
    "noise_mode": get_args(NoiseMode),
    "numerics": ("idealized", "grid"),
    "accountant": get_args(Accountant),
}
_NOISE: dict[str, str] = {
    "simulated": "simulated, not for deployment",
    "secure": "secure, from the operating system, not repeatable",
}
_NUMERICS: dict[str, str] = {
    "idealized": "idealized (float64 simulation)",
    "grid": "grid (what is released is exact)",
}
_RANK: dict[str, int] = {
    "heuristic": 0,
    "certified_conditional": 1,
    "certified": 2,
    "exact": 2,
}


def _read_fields(text: str) -> dict[str, Any]:
    record = from_json(text)
    version = record.pop("format")
    names = {field.name for field in fields(Certificate)}
    if version != 1 or set(record) != names:
        raise InvalidArgumentError(
            f"format must be 1 with exactly its fields, got format {version!r} and a "
            f"difference in {sorted(set(record) ^ names)}"
        )
    record["assumptions"] = [Assumption(**given) for given in record["assumptions"]]
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
    }


def _check_assumption(assumption: Any) -> None:
    _validate.of_type(Assumption, assumptions=assumption)
    _validate.one_of(get_args(Source), source=assumption.source)
    _validate.one_of(get_args(State), state=assumption.state)
    value = assumption.value
    if not isinstance(value, str) and not math.isfinite(value):
        raise InvalidArgumentError(
            f"assumptions: {assumption.name} must be finite or a word, got {value!r}"
        )


def _line(assumption: Assumption) -> str:
    value = assumption.value
    shown = value if isinstance(value, str) else f"{value:.6g}"
    note = f" ({assumption.note})" if assumption.note else ""
    return (
        f"{assumption.name} = {shown}   {assumption.source}, {assumption.state}{note}"
    )


def _section(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    return [f"  {title}:", *(f"    - {item}" for item in items)]


def _brief(names: Sequence[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names) or "none"
    return f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)})"
