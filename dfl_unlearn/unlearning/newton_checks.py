"""What the Newton/Fisher protocol refuses of a run, before anything is computed."""

from typing import TYPE_CHECKING

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import multiples
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.unlearning.claims import observers_of, owners_of, refuse_single
from dfl_unlearn.unlearning.fixed_point import FixedPoint
from dfl_unlearn.unlearning.influence_weights import check_weights
from dfl_unlearn.unlearning.newton_correction import measures
from dfl_unlearn.unlearning.newton_curvature import check_curvature
from dfl_unlearn.unlearning.newton_release import ReleasePlan
from dfl_unlearn.unlearning.newton_view import check_alone
from dfl_unlearn.unlearning.noise_modes import refuse_mixed_noise

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher


def check_run(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest
) -> None:
    """Refuse what cannot work, and a release that the budget has no room for.

    Args:
        protocol: Its fields.
        run: The trained network.
        request: The resolved request.

    Raises:
        UnsupportedRequestError: If a field does not fit this run.
    """
    refuse_single(run.topology, "newton-fisher")
    if run.config.faults:
        _check_faults(protocol, run)
    if protocol.noise_mode == "secure":
        refuse_mixed_noise(run, request)
    if protocol.calibration == "oracle_residual" and not measures(protocol, run):
        raise UnsupportedRequestError(
            "calibration: must not be 'oracle_residual' where no bound is measured "
            "(it takes a convex model with l2 > 0), got 'oracle_residual'; use "
            "'analytic', which goes by residual_cap"
        )
    if protocol.convex_head and (run.data.extractor is None or not run.model.convex):
        raise UnsupportedRequestError(
            "convex_head: must be False unless a linear model was trained on "
            "features of a frozen extractor, got True for data "
            f"{run.data.name!r}; make them with data.features.frozen_features or "
            "random_features"
        )
    multiples(run.topology, request.requester, protocol.dissemination)
    check_curvature(protocol, run, request)
    if protocol.alone:
        check_alone(run)
    elif protocol.stacked:
        FixedPoint(run, run.data.without(request))
    elif protocol.noise_placement != "broadcast_model":
        for owner in request.peers:
            check_weights(protocol.influence_weights, run, owner)
    # What the release costs is public and known now: a copy of the ledger refuses
    # before anything is computed or sent.
    plan = ReleasePlan.of(protocol, run.topology.n, run.model.size)
    trial = run.ledger.fork()
    for _ in range(plan.count):
        trial.charge_owners(
            request.request_id,
            owners_of(request),
            observers_of(run, request),
            plan.mechanism,
            scope=protocol.scope,
        )


def _check_faults(protocol: "NewtonFisher", run: TrainedRun) -> None:
    """Refuse fields that take every peer to be there.

    Raises:
        UnsupportedRequestError: Naming the field and what works.
    """
    pushed = run.config.faults.weight_policy == "push_sum"
    wrong: list[tuple[bool, str, object]] = [
        (protocol.stacked, "target", "consensus"),
        (
            protocol.noise_placement != "broadcast_model",
            "noise_placement",
            "broadcast_model",
        ),
        (protocol.state_policy == "secret_state", "state_policy", "published_state"),
        (protocol.align_to is not None, "align_to", None),
        (protocol.views, "scope", "joint"),
        (protocol.dissemination == "gossip_average", "dissemination", "tree"),
        (pushed and protocol.recovery_rounds > 0, "recovery_rounds", 0),
    ]
    for is_wrong, name, works in wrong:
        if is_wrong:
            raise UnsupportedRequestError(
                f"{name}: must be {works!r} in a network with faults, got "
                f"{getattr(protocol, name)!r}; set {name}={works!r}, or use rr-du or "
                "retrain"
            )
