"""The claim of the Newton/Fisher correction: constants first, certificate after.

The constants are read before the release is charged, so that the ledger's entry says
what it rests on; the certificate follows once the release is in the ledger.
"""

from typing import TYPE_CHECKING

from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.unlearning.claims import (
    EARLIER,
    convexity,
    earlier_releases,
    exposure_of,
    owners_of,
    stacked_convexity,
)
from dfl_unlearn.unlearning.newton_correction import Correction, proves
from dfl_unlearn.unlearning.newton_release import (
    ROUNDING_SHARE,
    ReleasePlan,
)

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher


def assumptions_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    correction: Correction,
    rounding: float,
) -> list[Assumption]:
    """Return every constant of the claim; read before the release is charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        correction: The models before the noise, and their distance to the target.
        rounding: How far rounding may move a released model.

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
            note="public; the noise is calibrated to it and to nothing measured",
        ),
    ]
    if protocol.stacked:
        assumptions[1] = stacked_convexity(run)
    if proves(protocol, run):
        assumptions += [
            Assumption(
                name=_distance_name(protocol),
                value=correction.distance,
                source="measured",
                note=_distance_note(protocol),
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
        assumptions.append(
            Assumption(
                name=_distance_name(protocol),
                value="no bound",
                source="estimated",
                note="assumed within the cap; "
                + (
                    "training is taken as converged"
                    if protocol.assume_stationary
                    else "no bound is known for this model"
                ),
            )
        )
        if protocol.curvature == "diag_fisher":
            assumptions.append(
                Assumption(
                    name="Fisher error",
                    value="diagonal"
                    if protocol.sparsify is None
                    else f"diagonal, {protocol.sparsify:g} of it kept",
                    source="estimated",
                    note="how far it is from the Hessian is not bounded",
                )
            )
    assumptions += _placement(protocol, run)
    earlier = earlier_releases(run, request)
    return assumptions if earlier is None else [*assumptions, earlier]


def _distance_name(protocol: "NewtonFisher") -> str:
    if protocol.stacked:
        return "distance to the exact fixed point"
    return "distance to the exact minimizer"


def _distance_note(protocol: "NewtonFisher") -> str:
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
        return [
            Assumption(
                name="one release",
                value="all peers start from the same noised model",
                source="proven",
                note="so the joint observer sees one Gaussian release; recovery "
                "rounds use retained rows only and are post-processing",
            )
        ]
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
                note="all 1, whatever the data"
                if uniform
                else "they come from the data and scale the noise, so the noise is "
                "not the same with and without them",
            )
        )
    mixed = protocol.scope == "release" and not protocol.stacked
    if mixed and protocol.recovery_rounds:
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


def certificate_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    assumptions: list[Assumption],
    plan: ReleasePlan,
) -> Certificate:
    """Return the claim after the release was charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        assumptions: What ``assumptions_of`` gave.
        plan: The releases, for noise and sensitivity.

    Returns:
        The certificate; epsilon composes all releases of the same owner.
    """
    composed = max(
        run.ledger.epsilon(owner, "public", protocol.delta)
        for owner in owners_of(request)
    )
    earlier = any(a.name == EARLIER for a in assumptions)
    return certify(
        method="newton-fisher",
        request_id=request.request_id,
        group_size=request.size(run.data) if protocol.disclose_m else None,
        scope=protocol.scope,
        epsilon=max(composed, protocol.epsilon) if earlier else protocol.epsilon,
        delta=protocol.delta,
        sensitivity=plan.sensitivity,
        bound="capped" if proves(protocol, run) else "none",
        noise_std=plan.release.noise_std,
        accountant="exact_gaussian",
        assumptions=assumptions,
        observers=("public",),
        exposure=(
            *exposure_of(run, request),
            _messages(protocol),
        ),
        notes=_notes(protocol, earlier),
        adaptive=request.adaptive,
    )


def _messages(protocol: "NewtonFisher") -> str:
    """Return which messages after the request the claim does not cover."""
    if protocol.stacked:
        return (
            "models and corrections that neighbours exchange carry no noise: scope "
            f"{protocol.scope} covers final models"
        )
    own = {
        "broadcast_model": "",
        "broadcast_correction": "; two peers' final models differ by no noise, so "
        "whoever sees both is not covered",
        "independent": "; so does the correction that every peer is sent",
    }[protocol.noise_placement]
    return (
        "sums over all peers of models, and of the gradients and curvature products "
        f"that the correction takes, carry no noise: scope {protocol.scope} covers "
        f"final models{own}"
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
