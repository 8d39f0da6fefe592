"""What is refused before, while and after a request is carried out.

What a configuration alone tells is refused before training; the rest where a run is
there, before anything is computed; and claims that nobody watched, or that are silent
about where features come from, after it.
"""

import numpy as np

from dfl_unlearn.accounting.certificate import CLAIMED
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Guard
from dfl_unlearn.errors import (
    MissingRecordError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol, label_of
from dfl_unlearn.unlearning.membership import check_left, check_served


def check_before_training(
    config: SimulationConfig,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    name: str,
    topology: Topology,
    model: FlatModel,
    num_classes: int,
) -> None:
    """Refuse what cannot work whatever training gives.

    Args:
        config: How the network will be trained.
        request: The request.
        protocol: The protocol.
        name: What messages call it.
        topology: The network.
        model: The model.
        num_classes: 0 for a regression.
    """
    check_kind(request, protocol)
    check_network = getattr(protocol, "check_network", None)
    if check_network is not None:
        check_network(topology, request)
    check_model = getattr(protocol, "check_model", None)
    if check_model is not None:
        check_model(model, num_classes)
    if config.faults.models:
        check_served(protocol, name)


def check_attempt(
    run: TrainedRun, request: ForgetRequest, protocol: UnlearningProtocol, name: str
) -> None:
    """Refuse what cannot work on a run, before anything is computed.

    Args:
        run: The trained network.
        request: The resolved request.
        protocol: The protocol.
        name: What messages call it.

    Raises:
        MissingRecordError: If training did not keep what the protocol needs.
    """
    check_kind(request, protocol)
    kept = run.record.plan.parts if run.record is not None else frozenset()
    needs: frozenset[str] = getattr(protocol, "needs", frozenset())
    held = getattr(protocol, "held", None)
    missing = needs - kept
    if missing and held is not None:
        missing -= held(run, request)
    if missing:
        raise MissingRecordError(
            f"record: must hold {', '.join(sorted(missing))} for {name}, got "
            f"{', '.join(sorted(kept)) or 'nothing'}; "
            + (
                "the record of training stayed behind with an earlier request, use "
                "newton-fisher with scope='joint', or retrain"
                if run.record is None and run.requests
                else "train with "
                f"record=RecordPlan.for_protocols({_object_or_class(protocol)})"
            )
        )
    if run.faults() is not None:
        check_served(protocol, name)
        check_left(run, request)
    check = getattr(protocol, "check", None)
    if check is not None:
        check(run, request)


def check_kind(request: ForgetRequest, protocol: UnlearningProtocol) -> None:
    """Refuse a kind of request that the protocol does not serve.

    Args:
        request: The request.
        protocol: The protocol.

    Raises:
        UnsupportedRequestError: If it does not.
    """
    kinds = getattr(protocol, "kinds", None)
    if kinds is not None and request.kind not in kinds:
        remedy = "use retrain"
        if request.coalesced:
            remedy = (
                "these requests do not combine for it, send them one after the other"
            )
        elif hasattr(protocol, "why_not"):
            remedy = protocol.why_not(request.kind)
        raise UnsupportedRequestError(
            f"request: {label_of(protocol)} serves {', '.join(sorted(kinds))}, got "
            f"kind {request.kind!r}; {remedy}"
        )


def guard_of(
    ledger: PrivacyLedger, request: ForgetRequest, protocol: UnlearningProtocol
) -> Guard | None:
    """Return what holds messages back where the protocol claims about all of them.

    Args:
        ledger: Of this attempt.
        request: The resolved request.
        protocol: The protocol.

    Returns:
        The guard; None where the claim is about final models only.
    """
    if not getattr(protocol, "noised_only", False):
        return None
    before = len(ledger.entries)

    def released() -> bool:
        return any(
            e.request_id == request.request_id
            and e.noise_drawn
            and bool(np.isfinite(e.curve.values).any())
            for e in ledger.entries[before:]
        )

    return Guard(
        request_id=request.request_id,
        released=released,
        sums=getattr(protocol, "assume_secure_aggregation", False),
    )


def check_views(outcome: Outcome, name: str) -> None:
    """Refuse a claim about all messages that nobody watched.

    Args:
        outcome: What the protocol gave back.
        name: What messages call it.

    Raises:
        SensitivityUnprovenError: If the log was not guarded.
    """
    certificate = outcome.certificate
    if (
        certificate is not None
        and certificate.scope in ("view", "view_joint")
        and certificate.status in CLAIMED
        and not outcome.messages.guarded
    ):
        raise SensitivityUnprovenError(
            f"certificate: must be about messages that the transport held back before "
            f"the release, got scope {certificate.scope!r} of {name} with an unguarded "
            "log; set noised_only = True in the protocol and send through "
            "run.transport()"
        )


def check_extractor(outcome: Outcome, name: str) -> None:
    """Refuse a claim on features that is silent about where they come from.

    Args:
        outcome: What the protocol gave back.
        name: What messages call it.

    Raises:
        SensitivityUnprovenError: If the extractor is not among the assumptions.
    """
    certificate, extractor = outcome.certificate, outcome.run.data.extractor
    if (
        certificate is not None
        and certificate.status in CLAIMED
        and extractor is not None
        and extractor not in certificate.assumptions
    ):
        raise SensitivityUnprovenError(
            f"certificate: must list the extractor of the features, got {name} without "
            f"it; add run.data.extractor to the assumptions ({extractor.name})"
        )


def _object_or_class(protocol: UnlearningProtocol) -> str:
    """Return what to hand to ``RecordPlan.for_protocols``, as one would write it."""
    by_fields = isinstance(getattr(type(protocol), "needs", None), property)
    return "protocol" if by_fields else type(protocol).__name__
