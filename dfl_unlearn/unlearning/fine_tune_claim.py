"""The claim of fine-tuning: how near training came, the release, the certificate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.unlearning.adaptivity import private_before, still_adaptive
from dfl_unlearn.unlearning.claims import (
    EARLIER,
    convexity,
    earlier_releases,
    exposure_of,
    extractor_of,
    stacked_convexity,
)
from dfl_unlearn.unlearning.fixed_point import FixedPoint
from dfl_unlearn.unlearning.newton_release import ROUNDING_SHARE
from dfl_unlearn.unlearning.noise_modes import spent_together

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.fine_tune import FineTune


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How near some rounds of training brought all models to the fixed point.

    Attributes:
        start: ``|R-|`` (Frobenius) at the trained models.
        end: The same at the models that were reached.
        distance: Bound on the distance at the end, ``end / mu``.
        predicted: What the formula says of it, ``q**rounds * start / mu``; in
            real arithmetic only, and None where training does not contract.
        factor: q, by which a round brings the bound down.
        rounding: How far rounding to the dtype may move all models together.
        rows: Rows that one evaluation of R takes the gradients of.
    """

    start: float
    end: float
    distance: float
    predicted: float | None
    factor: float
    rounding: float
    rows: int

    @classmethod
    def of(
        cls, equation: FixedPoint, before: PeerState, after: PeerState, rounds: int
    ) -> "Descent":
        """Measure both ends.

        Args:
            equation: R on what is kept.
            before: The trained models.
            after: The models that were reached.
            rounds: Rounds between them.

        Returns:
            The bounds, in float64.
        """
        start = float(equation.residual(before.params).norm())
        end = float(equation.residual(after.params).norm())
        params = after.params
        return cls(
            start=start,
            end=end,
            distance=end / equation.contraction,
            predicted=None
            if equation.factor >= 1
            else equation.factor**rounds * start / equation.contraction,
            factor=equation.factor,
            rounding=2 * torch.finfo(params.dtype).eps * float(params.double().norm()),
            rows=equation.rows,
        )


def release_of(protocol: "FineTune") -> GaussianRelease:
    """Return the one release of all models together; from public numbers alone."""
    assert protocol.epsilon is not None
    sensitivity = protocol.residual_cap * (1 + ROUNDING_SHARE)
    return GaussianRelease(
        sensitivity=sensitivity,
        noise_std=gaussian_noise_std(protocol.epsilon, protocol.delta, sensitivity),
    )


def assumptions_of(
    protocol: "FineTune", run: TrainedRun, request: ForgetRequest, descent: Descent
) -> list[Assumption]:
    """Return every constant of the claim; read before the release is charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        descent: How near training came.

    Returns:
        The assumptions with their sources and states.
    """
    formula = (
        ""
        if descent.predicted is None
        else f" (descent to delete gives {descent.predicted:.6g} in real arithmetic)"
    )
    assumptions = [
        convexity(run.model)[0],
        stacked_convexity(run),
        Assumption(
            name="residual cap (Delta_max)",
            value=protocol.residual_cap,
            source="set",
            note="public; the noise is calibrated to it and to nothing measured",
        ),
        Assumption(
            name="rounds",
            value=protocol.rounds,
            source="set",
            note="fixed in advance, whatever the data",
        ),
        Assumption(
            name="distance to the exact fixed point",
            value=descent.distance,
            source="measured",
            note="|R-| / mu over the stack of all peers' models after the rounds, R- "
            "the residual of D-SGD on all retained rows, in float64; at most the cap"
            + formula,
        ),
        Assumption(
            name="rounding of the released model",
            value=descent.rounding,
            source="measured",
            note=f"2 ulp times its norm; at most {ROUNDING_SHARE:.0%} of the cap, "
            "which the sensitivity includes",
        ),
        Assumption(
            name="one release",
            value="all peers' models at once, noise of its own on each",
            source="proven",
            note="the cap bounds the shift of all models together",
        ),
        *extractor_of(run),
    ]
    assert protocol.epsilon is not None
    assumptions += private_before(
        run,
        request,
        epsilon=protocol.epsilon,
        delta=protocol.delta,
        disclosed=protocol.disclose_m,
    )
    earlier = earlier_releases(run, request)
    return assumptions if earlier is None else [*assumptions, earlier]


def certificate_of(
    protocol: "FineTune",
    run: TrainedRun,
    request: ForgetRequest,
    assumptions: list[Assumption],
    release: GaussianRelease,
) -> Certificate:
    """Return the claim after the release was charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        assumptions: What ``assumptions_of`` gave.
        release: What was released.

    Returns:
        The certificate; epsilon composes all releases of the same owner.
    """
    assert protocol.epsilon is not None
    composed, curve = spent_together(run, request, protocol.delta)
    earlier = any(a.name == EARLIER for a in assumptions)
    notes = [
        "compares with the exact fixed point of D-SGD on what is kept plus the same "
        "noise, not with a finite retraining run",
        "how many rows each peer stores, and which of them are gone, is taken as "
        "public",
        "no claim on what peers see of each other: rounds and cap are for final models",
    ]
    if earlier:
        notes.append(
            "epsilon is that of all releases so far that depend on the same owner"
        )
    return certify(
        method="fine-tune",
        request_id=request.request_id,
        group_size=request.size(run.data) if protocol.disclose_m else None,
        scope="joint",
        epsilon=max(composed, protocol.epsilon) if earlier else protocol.epsilon,
        delta=protocol.delta,
        sensitivity=release.sensitivity,
        bound="capped",
        noise_std=release.noise_std,
        accountant="exact_gaussian" if curve is None else "rdp",
        curve=curve,
        assumptions=assumptions,
        observers=("public",),
        exposure=(
            *exposure_of(run, request),
            f"models that neighbours exchange in the {protocol.rounds} rounds after "
            "the request, and the sum of squared residuals, carry no noise: scope "
            "joint covers final models",
        ),
        notes=tuple(notes),
        adaptive=still_adaptive(request, assumptions),
    )
