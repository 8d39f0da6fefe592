"""The claim of the Newton/Fisher correction: constants first, certificate after.

The constants are read before the release is charged, so that the ledger's entry says
what it rests on; the certificate follows once the release is in the ledger.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfl_unlearn.accounting.certificate import (
    Assumption,
    Bound,
    Certificate,
    certify,
)
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.unlearning.adaptivity import private_before, still_adaptive
from dfl_unlearn.unlearning.claims import (
    EARLIER,
    convexity,
    earlier_releases,
    exposure_of,
    extractor_of,
    held_multiples,
    observers_of,
    stacked_convexity,
)
from dfl_unlearn.unlearning.membership import fault_notes
from dfl_unlearn.unlearning.newton_correction import (
    Correction,
    recovers_within_claim,
)
from dfl_unlearn.unlearning.newton_curvature import curvature_claim
from dfl_unlearn.unlearning.newton_release import (
    ROUNDING_SHARE,
    ReleasePlan,
)
from dfl_unlearn.unlearning.noise_modes import NOT_REPEATABLE, spent_together

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher


def assumptions_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    correction: Correction,
    rounding: float,
    bound: Bound,
) -> list[Assumption]:
    """Return every constant of the claim; read before the release is charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        correction: The models before the noise, and their distance to the target.
        rounding: How far rounding may move a released model.
        bound: What ``bound_of`` said of the distance.

    Returns:
        The assumptions with their sources and states.
    """
    model = run.model
    assumptions = [
        *convexity(model),
        Assumption(
            name="residual cap (Delta_max)",
            value=protocol.residual_cap,
            source="set",
            note="public; the noise is calibrated to it and to nothing measured"
            if protocol.calibration != "oracle_residual"
            else "public; the noise is calibrated to the measured distance instead",
        ),
    ]
    if protocol.stacked:
        assumptions[1] = stacked_convexity(run)
    if bound != "none":
        assumptions += [
            Assumption(
                name=_distance_name(protocol),
                value=correction.distance,
                source="measured",
                note=_distance_note(protocol, request),
            ),
            Assumption(
                name="rounding of the released model",
                value=rounding,
                source="measured",
                note=f"2 ulp times its norm; at most {ROUNDING_SHARE:.0%} of the "
                "cap, which the sensitivity includes",
            ),
        ]
    else:
        above = correction.distance < math.inf
        assumptions.append(
            Assumption(
                name=_distance_name(protocol),
                value=correction.distance if above else "no bound",
                source="estimated",
                note="measured above the cap, or rounded by more than 1 % of it"
                if above
                else "assumed within the cap; "
                + (
                    "training is taken as converged"
                    if protocol.assume_stationary
                    else "no bound is known for this model"
                ),
            )
        )
    assumptions += curvature_claim(protocol, bounded=bound != "none")
    if bound == "a_posteriori":
        assumptions.append(
            Assumption(
                name="noise from a public number",
                value="from the measured distance",
                source="measured",
                state="violated",
                note="how much noise there is depends on the forgotten data, and "
                "whoever sees it learns from it; for experiments only",
            )
        )
    assumptions += [*_placement(protocol, run), *extractor_of(run)]
    assumptions += private_before(
        run,
        request,
        epsilon=protocol.epsilon,
        delta=protocol.delta,
        disclosed=protocol.disclose_m,
    )
    earlier = earlier_releases(run, request)
    return assumptions if earlier is None else [*assumptions, earlier]


def _distance_name(protocol: "NewtonFisher") -> str:
    if protocol.stacked:
        return "distance to the exact fixed point"
    return "distance to the exact minimizer"


def _distance_note(protocol: "NewtonFisher", request: ForgetRequest) -> str:
    if protocol.alone:
        several = len(request.peers) > 1
        return (
            "kappa tau / lambda plus half the removed gradient r divided by the bounds "
            "on the curvature, sqrt(r A^-1 r / lambda) / 2: tau was recorded before "
            "the request, the rest is at the "
            + (
                "owners, each of whom checks a public share; parts of others than the "
                "requester count in full"
                if several
                else "owner"
            )
            + "; at most the cap"
        )
    if protocol.stacked:
        return (
            "|R-| / mu over the stack of all peers' models, R- the residual of D-SGD "
            "on all retained rows, in float64; at most the cap"
        )
    bound = "|grad F-| / lambda at the corrected model, in float64 over all retained "
    if protocol.noise_placement == "broadcast_model":
        return bound + "rows; at most the cap"
    return (
        bound + "rows, plus the largest distance of a peer's corrected model from it; "
        "at most the cap"
    )


def _placement(protocol: "NewtonFisher", run: TrainedRun) -> list[Assumption]:
    """Return what the place of the noise adds to the claim."""
    if protocol.noise_placement == "broadcast_model":
        found = [
            Assumption(
                name="one release",
                value="all peers start from the same noised model",
                source="proven",
                note="so the joint observer sees one Gaussian release; recovery "
                "rounds use retained rows only and are post-processing",
            )
        ]
        return found + (_messages_before(protocol) if protocol.views else [])
    found = []
    if protocol.stacked:
        found.append(
            Assumption(
                name="one release",
                value="all peers' models at once, noise of its own on each",
                source="proven",
                note="the cap bounds the shift of all models together; recovery "
                "rounds use retained rows only and are post-processing",
            )
        )
    elif protocol.noise_placement == "independent":
        joint = protocol.scope == "joint"
        found.append(
            Assumption(
                name="independent releases",
                value=run.topology.n,
                source="proven",
                note="one per peer, noise of its own; "
                + (
                    "all together shift by at most sqrt(N) times the cap"
                    if joint
                    else "one of them shifts by at most the cap"
                ),
            )
        )
    else:
        uniform = protocol.influence_weights == "uniform"
        found.append(
            Assumption(
                name="influence weights",
                value=protocol.influence_weights,
                source="proven" if uniform else "estimated",
                note="the same whatever the data"
                if uniform
                else "they come from the data and scale the noise, so the noise is "
                "not the same with and without them",
            )
        )
    if not recovers_within_claim(protocol):
        found.append(
            Assumption(
                name="recovery rounds",
                value=protocol.recovery_rounds,
                source="proven",
                state="violated",
                note="a peer mixes several peers' models in them, and together those "
                "are not covered; set recovery_rounds=0",
            )
        )
    return found


def _messages_before(protocol: "NewtonFisher") -> list[Assumption]:
    """Return what a claim about all messages takes of those before the release."""
    if protocol.alone:
        return [
            Assumption(
                name="messages before the release",
                value="none",
                source="proven",
                note="the transport holds them back; later ones are post-processing: "
                "they follow from the noised model and from retained rows",
            )
        ]
    return [
        Assumption(
            name="secure aggregation",
            value="sums over all peers before the release",
            source="assumed",
            note="what is summed, the sums and the points they are taken at stay "
            "hidden from everybody but the requester; the simulator does not do this",
        )
    ]


def certificate_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    assumptions: list[Assumption],
    plan: ReleasePlan,
    *,
    bound: Bound,
    bounds: Sequence[str],
) -> Certificate:
    """Return the claim after the release was charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        assumptions: What ``assumptions_of`` gave.
        plan: The releases, for noise and sensitivity.
        bound: What ``bound_of`` said of the distance.
        bounds: Sentences on the bounds before and after, on which nothing rests.

    Returns:
        The certificate; epsilon composes all releases of the same owner.
    """
    curve = plan.curve
    epsilon, earlier = protocol.epsilon, any(a.name == EARLIER for a in assumptions)
    if earlier:
        composed, curve = spent_together(run, request, protocol.delta)
        epsilon = max(composed, epsilon)
    secure = protocol.noise_mode == "secure"
    return certify(
        method="newton-fisher",
        request_id=request.request_id,
        group_size=request.size(run.data) if protocol.disclose_m else None,
        scope=protocol.scope,
        epsilon=epsilon,
        delta=protocol.delta,
        sensitivity=plan.sensitivity,
        bound=bound,
        noise_std=plan.release.noise_std,
        noise_mode=protocol.noise_mode,
        accountant="exact_gaussian" if curve is None else "rdp",
        curve=curve,
        assumptions=assumptions,
        observers=observers_of(run, request) if protocol.views else ("public",),
        exposure=(
            *exposure_of(run, request),
            *_messages(protocol),
            *(
                [
                    "the corrected models before the noise stay at the peers as secret "
                    "state (and in a stored outcome): whoever sees them is not covered"
                ]
                if protocol.state_policy == "secret_state"
                else []
            ),
        ),
        notes=(
            *_notes(protocol, earlier),
            *_sent(protocol, run, request),
            *bounds,
            *fault_notes(run),
            *([NOT_REPEATABLE] if secure else []),
        ),
        covers=("head",) if protocol.convex_head else ("all",),
        adaptive=still_adaptive(request, assumptions),
    )


def _sent(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest
) -> tuple[str, ...]:
    """Return what is to be said of the way of the correction to the peers."""
    if protocol.stacked:
        return ()
    what = {
        "broadcast_model": "the noised model",
        "broadcast_correction": "its part of the noised correction",
        "independent": "its part of the correction",
    }[protocol.noise_placement]
    return held_multiples(run, request.requester, protocol.dissemination, what)


def _messages(protocol: "NewtonFisher") -> tuple[str, ...]:
    """Return which messages the claim does not cover, of those about the correction."""
    if protocol.alone:
        return (
            "the mean of all models, which the correction starts from, is known from "
            "before the request",
        )
    if protocol.views:
        return ()
    if protocol.stacked:
        return (
            "models and corrections that neighbours exchange carry no noise: scope "
            f"{protocol.scope} covers final models",
        )
    own = {
        "broadcast_model": "",
        "broadcast_correction": "; two peers' final models differ by no noise, so "
        "whoever sees both is not covered",
        "independent": "; so does the correction that every peer is sent",
    }[protocol.noise_placement]
    return (
        "sums over all peers of models, and of the gradients and curvature "
        f"that the correction takes, carry no noise: scope {protocol.scope} covers "
        f"final models{own}",
    )


def _notes(protocol: "NewtonFisher", earlier: bool) -> tuple[str, ...]:
    target = (
        "fixed point of D-SGD on what is kept"
        if protocol.stacked
        else "minimizer of the retained objective"
    )
    notes = [
        f"compares with the exact {target} plus the same noise and recovery rounds, "
        "not with a finite retraining run",
        "how many rows each peer stores, and which of them are gone (their places in "
        "the batches of recovery rounds stay empty), is taken as public",
    ]
    if protocol.noise_placement == "independent" and protocol.scope == "release":
        notes.append(
            "the ledger charges every observer with all peers' releases, as if all "
            "were published"
        )
    if earlier:
        notes.append(
            "epsilon is that of all releases so far that depend on the same owner"
        )
    return tuple(notes)
