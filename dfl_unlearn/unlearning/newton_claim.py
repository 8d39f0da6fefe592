"""The claim of the Newton/Fisher correction: constants first, certificate after.

The constants are read before the release is charged, so that the ledger's entry says
what it rests on; the certificate follows once the release is in the ledger.
"""

from typing import TYPE_CHECKING

from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.curvature.newton import NewtonPath
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

# Share of the cap that is set aside for rounding the released model to its dtype.
ROUNDING_SHARE = 0.01


def owners_of(request: ForgetRequest) -> tuple[str, ...]:
    """Return the ledger's names of the peers whose data goes."""
    return tuple(f"peer:{i}" for i in request.peers)


def assumptions_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    path: NewtonPath,
    rounding: float,
    provable: bool,
) -> list[Assumption]:
    """Return every constant of the claim; read before the release is charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        path: Where the corrections led.
        rounding: How far rounding may move the released model.
        provable: Whether the residual bounds the distance to the exact minimizer.

    Returns:
        The assumptions with their sources and states.
    """
    model = run.model
    assumptions = [
        Assumption(
            name="convex loss",
            value=model.loss_name if model.convex else "not convex",
            source="proven",
            state="held" if model.convex else "violated",
            note="by the model's registered type",
        ),
        Assumption(
            name="strong convexity (lambda)",
            value=model.l2,
            source="proven",
            state="held" if model.convex and model.l2 > 0 else "violated",
            note="the model's l2 term; part of every peer's objective",
        ),
        Assumption(
            name="residual cap (Delta_max)",
            value=protocol.residual_cap,
            source="set",
            note="public; the noise is calibrated to it and to nothing measured",
        ),
    ]
    if provable:
        assumptions += [
            Assumption(
                name="distance to the exact minimizer",
                value=path.residuals[-1] / model.l2,
                source="measured",
                note="|grad F-| / lambda at the corrected model, in float64 over "
                "all retained rows; at most the cap",
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
                name="distance to the exact minimizer",
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
    assumptions.append(
        Assumption(
            name="one release",
            value="all peers start from the same noised model",
            source="proven",
            note="so the joint observer sees one Gaussian release; recovery "
            "rounds use retained rows only and are post-processing",
        )
    )
    earlier = _releases(run, request)
    if earlier:
        assumptions.append(_earlier_releases(earlier))
    return assumptions


def certificate_of(
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    assumptions: list[Assumption],
    release: GaussianRelease,
    provable: bool,
) -> Certificate:
    """Return the claim after the release was charged.

    Args:
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        assumptions: What ``assumptions_of`` gave.
        release: The release, for its noise and sensitivity.
        provable: Whether the residual is a bound.

    Returns:
        The certificate; epsilon composes all releases of the same owner.
    """
    composed = max(
        run.ledger.epsilon(owner, "public", protocol.delta)
        for owner in owners_of(request)
    )
    earlier = len(_releases(run, request)) > 1
    return certify(
        method="newton-fisher",
        request_id=request.request_id,
        group_size=request.size(run.data) if protocol.disclose_m else None,
        scope=protocol.scope,
        epsilon=max(composed, protocol.epsilon) if earlier else protocol.epsilon,
        delta=protocol.delta,
        sensitivity=release.sensitivity,
        bound="capped" if provable else "none",
        noise_std=release.noise_std,
        accountant="exact_gaussian",
        assumptions=assumptions,
        observers=("public",),
        exposure=(
            f"messages of {run.state.round} training rounds, sent before the request",
            "sums over all peers of models, and of the gradients and curvature "
            "products that the correction takes, carry no noise: scope "
            f"{protocol.scope} covers final models",
        ),
        notes=_notes(earlier),
        adaptive=request.adaptive,
    )


def _releases(run: TrainedRun, request: ForgetRequest) -> dict[str, str]:
    """Return the releases that any owner was charged with, and their status."""
    owners = owners_of(request)
    return {
        e.release_id: e.status
        for e in run.ledger.entries
        if e.owner in owners and e.noise_drawn
    }


def _earlier_releases(releases: dict[str, str]) -> Assumption:
    """Return what composing with earlier releases rests on: their own claims."""
    statuses = set(releases.values())
    proven = statuses <= {"certified"}
    estimated = bool(statuses & {"heuristic", "pending"})
    return Assumption(
        name="earlier releases of the same owner",
        value=len(releases),
        source="proven" if proven else "estimated" if estimated else "assumed",
        note="epsilon adds them up; the sum says no more than the weakest of them",
    )


def _notes(earlier: bool) -> tuple[str, ...]:
    notes = [
        "compares with the exact minimizer of the retained objective plus the same "
        "noise and recovery rounds, not with a finite retraining run",
        "how many rows each peer stores, and which of them are gone (their places in "
        "the batches of recovery rounds stay empty), is taken as public",
    ]
    if earlier:
        notes.append(
            "epsilon is that of all releases so far that depend on the same owner"
        )
    return tuple(notes)
