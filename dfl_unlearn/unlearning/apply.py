"""Carries out forget requests: checks first, then runs a protocol, then measures."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import CLAIMED, Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.coalesce import coalesce as put_together
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.clock import protocol_seconds
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.memory import retraining_memory
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import retrain
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.engine.transport import Guard
from dfl_unlearn.errors import (
    InvalidForgetSetError,
    MissingRecordError,
    NumericalError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol, unlearners
from dfl_unlearn.unlearning.membership import check_faults, without_left
from dfl_unlearn.unlearning.nothing import nothing_asked
from dfl_unlearn.unlearning.residual import with_pending
from dfl_unlearn.unlearning.screening import Screening, advised

if TYPE_CHECKING:
    from dfl_unlearn.store.folder import RunFolder


def unlearn(
    run: TrainedRun,
    request: ForgetRequest | Sequence[ForgetRequest],
    protocol: UnlearningProtocol | str,
    *,
    reference: bool | TrainedRun = False,
    coalesce: bool = False,
    screening: Screening | None = None,
    folder: str | Path | None = None,
) -> Outcome:
    """Forget data in a trained network.

    Nothing of ``run`` changes: the outcome has the new state and its own fork of the
    ledger, so any number of protocols can be tried on one run.

    Args:
        run: The trained network.
        request: What to forget; a list is carried out in order, each request on the
            outcome of the one before; one that is in it twice, by its id, has one
            effect. Of an empty list the outcome is the run's own state, ``exact``, at
            no cost and kept nowhere.
        protocol: A protocol, a baseline, or the registered name of one.
        reference: True also retrains the network without the data (same seeds), the
            yardstick of the evaluation; or that run, where it exists already.
        coalesce: Carry out a list as one request: one correction and one release, paid
            for once. The outcome's request names them all under ``coalesced``.
        screening: Limits that refuse a request, or hold its outcome for review; a list
            ends with such an outcome. None refuses nothing, and notes where a request
            passes the default limit on rows.
        folder: Keeps the outcome in this run folder, its ledger durable before
            anything is released; None keeps all in memory.

    Returns:
        The outcome (of the last request).

    Raises:
        ResourceError: If the reference would not fit into memory; a block of
            ``engine.memory.large_allowed`` starts all the same.
        InvalidForgetSetError: If a request does not fit the data, or several cannot
            be coalesced.
        UnsupportedRequestError: If the protocol does not serve this kind of request.
        MissingRecordError: If training did not keep what the protocol needs.
        NumericalError: If the new state is not finite.
        SensitivityUnprovenError: If a protocol that claims about all messages sends one
            before its noised release, or claims so of messages nobody watched.

    Example:
        >>> from dfl_unlearn import PeerData, SimulationConfig, simulate
        >>> data = PeerData.load("gaussian-classes", peers=4, seed=0)
        >>> run = simulate("ring", data, "logistic", SimulationConfig(rounds=50))
        >>> request = ForgetRequest.samples(peer=1, fraction=0.2)
        >>> unlearn(run, request, "newton-fisher").certificate.status
        'certified'
    """
    _validate.of_type(TrainedRun, run=run)
    if isinstance(protocol, str):
        protocol = unlearners.build(protocol)
    requests = [request] if isinstance(request, ForgetRequest) else list(request)
    _validate.of_type(bool, coalesce=coalesce)
    if screening is not None:
        _validate.of_type(Screening, screening=screening)
    for one in requests:
        _validate.of_type(ForgetRequest, request=one)
    requests = _each_once(requests, run)
    if not requests:
        return nothing_asked(run, protocol, unlearners.name_of(protocol), reference)
    if coalesce and len(requests) > 1:
        for one in requests:
            _check_kind(one, protocol, unlearners.name_of(protocol))
        requests = [put_together(requests, run.data)]
    if len(requests) > 1 and isinstance(reference, TrainedRun):
        raise InvalidForgetSetError(
            "reference: must be True or False for several requests, got a run; each "
            "request has a reference of its own"
        )
    for number, one in enumerate(requests):
        outcome = _one(run, one, protocol, reference, screening, folder)
        left = len(requests) - number - 1
        if left and outcome.status == "held_for_review":
            note = f"{left} later requests of the list were not carried out"
            return replace(outcome, notes=(note, *outcome.notes))
        if left:
            run = outcome.as_run()
    return outcome


def _each_once(requests: list[ForgetRequest], run: TrainedRun) -> list[ForgetRequest]:
    """Return the requests without repetitions: an id has one effect.

    Raises:
        InvalidForgetSetError: If an id names two different requests, or one that the
            run carries already.
    """
    found: dict[str, ForgetRequest] = {}
    kept = []
    done = {(past.request_id, *sorted(past.rows)) for past in run.carried_out}
    for request in requests:
        name = request.request_id
        carried = (name, *request.peers) in done
        if carried or (name and found.setdefault(name, request) != request):
            raise InvalidForgetSetError(
                f"request_id: must be new for another request, got {name!r}, "
                + (
                    "which this run carries already: its outcome stands"
                    if carried
                    else "twice in one list; leave it out or choose another"
                )
            )
        if not name or found[name] is request:
            kept.append(request)
    return kept


def _one(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    reference: bool | TrainedRun,
    screening: Screening | None,
    folder: str | Path | None,
) -> Outcome:
    request = request.resolve(run.data)
    if folder is None:
        if not request.request_id:
            request = replace(request, request_id=f"r{run.requests}")
        return _attempted(run, request, protocol, reference, screening, None)
    from dfl_unlearn.store.folder import RunFolder
    from dfl_unlearn.unlearning.attempts import named_in

    run_folder = RunFolder(folder)
    with run_folder.locked():
        request = named_in(run_folder, request, protocol, run)
        return _attempted(run, request, protocol, reference, screening, run_folder)


def _attempted(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    reference: bool | TrainedRun,
    screening: Screening | None,
    folder: "RunFolder | None",
) -> Outcome:
    name = unlearners.name_of(protocol)
    _check(run, request, protocol, name)
    if screening is not None:
        screening.check(run, request, protocol)
    if reference is True:
        retraining_memory(run, ExecutionConfig()).check()
    store = None
    if folder is not None:
        from dfl_unlearn.unlearning.attempts import OutcomeFolder

        store = OutcomeFolder.open(folder, request, protocol, run)
    ledger = run.ledger.fork() if store is None else store.ledger(run)
    attempt = run.replaced(ledger=ledger, guard=_guard(ledger, request, protocol))
    try:
        outcome = carried_out(run, attempt, request, protocol, name)
    except BaseException:
        if store is not None:
            charges = len(ledger.entries) - len(run.ledger.entries)
            store.discard_unless_charged(charges + ledger.ahead)
        raise
    outcome = advised(outcome) if screening is None else screening.reviewed(outcome)
    if isinstance(reference, TrainedRun):
        outcome = replace(outcome, reference=reference)
    elif reference and outcome.reference is None:
        retrained = retrain(run, _of_members(run, outcome).without(request))
        outcome = replace(outcome, reference=retrained)
    if store is not None:
        outcome = store.with_kept_state(outcome)
        store.write(outcome)
    return outcome


def _of_members(run: TrainedRun, outcome: Outcome) -> PeerData:
    """Return the data of the peers that had not left when the request was computed."""
    if outcome.progress is None:
        return run.data
    left = np.zeros(run.topology.n, dtype=np.bool_)
    left[list(outcome.progress.left_before("computed"))] = True
    return without_left(run, left).data


def carried_out(
    run: TrainedRun,
    attempt: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    name: str,
) -> Outcome:
    """Run the protocol and measure what it took.

    Returns:
        The outcome, of the run itself instead of the attempt's copy.

    Raises:
        NumericalError: If the new state is not finite.
    """
    began = time.perf_counter()
    with limited_threads(run.config.threads):
        outcome = protocol.unlearn(attempt, request, run.rng)
    seconds = time.perf_counter() - began
    bad = ~outcome.state.params.isfinite().all(dim=1)
    if bool(bad.any()):
        raise NumericalError(
            f"peer {int(bad.nonzero()[0])} became non-finite in {name}; nothing of the "
            "run was changed; add damping or lower learning_rate"
        )
    _check_views(outcome, name)
    _check_extractor(outcome, name)
    outcome = with_pending(replace(outcome, run=run))
    log = outcome.messages
    return replace(
        outcome,
        certificate=_noted(outcome.certificate, run, request),
        cost=replace(
            outcome.cost,
            messages=len(log),
            payload_bytes=log.nbytes,
            max_edge_bytes=log.max_edge_bytes(),
            wall_seconds=seconds,
            simulated_seconds=protocol_seconds(
                log,
                run.config.clock.pace(run.topology.n, run.rng),
                samples=outcome.cost.gradient_evaluations,
                requester=request.requester,
                rounding=outcome.cost.rounds / 2,
            ),
        ),
    )


def _noted(
    certificate: Certificate | None, run: TrainedRun, request: ForgetRequest
) -> Certificate | None:
    """Return the certificate with what is noted whatever the protocol."""
    if certificate is None:
        return None
    notes = list(certificate.notes)
    if request.coalesced:
        notes.append(
            f"{len(request.coalesced)} requests ({', '.join(request.coalesced)}) "
            "carried out as one: one correction, one release"
        )
    delta = certificate.delta or certificate.nominal_delta or 0.0
    owner = min(request.peers, key=lambda peer: int(run.data.retained[peer]))
    rows = int(run.data.retained[owner])
    if delta * rows >= 1:
        weak = (
            f"weak: δ = {delta:g} is not below 1/n = {1 / rows:.3g} (n = {rows} rows "
            f"of peer {owner}): a claim that gives one of them away would fit it"
        )
        notes.append(weak)
        warnings.warn(
            f"request {request.request_id}: {weak}; lower delta",
            UserWarning,
            stacklevel=4,
        )
    return replace(certificate, notes=tuple(notes))


def _guard(
    ledger: PrivacyLedger, request: ForgetRequest, protocol: UnlearningProtocol
) -> Guard | None:
    """Return what holds messages back where the protocol claims about all of them."""
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


def _object_or_class(protocol: UnlearningProtocol) -> str:
    """Return what to hand to ``RecordPlan.for_protocols``, as one would write it."""
    by_fields = isinstance(getattr(type(protocol), "needs", None), property)
    return "protocol" if by_fields else type(protocol).__name__


def _check_views(outcome: Outcome, name: str) -> None:
    """Refuse a claim about all messages that nobody watched.

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


def _check_extractor(outcome: Outcome, name: str) -> None:
    """Refuse a claim on features that is silent about where they come from.

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


def _check_kind(
    request: ForgetRequest, protocol: UnlearningProtocol, name: str
) -> None:
    """Refuse a kind of request that the protocol does not serve.

    Raises:
        UnsupportedRequestError: If it does not.
    """
    kinds = getattr(protocol, "kinds", None)
    if kinds is not None and request.kind not in kinds:
        raise UnsupportedRequestError(
            f"request: {name} serves {', '.join(sorted(kinds))}, got kind "
            f"{request.kind!r}; "
            + (
                "these requests do not combine for it, send them one after the other"
                if request.coalesced
                else "use retrain"
            )
        )


def _check(
    run: TrainedRun, request: ForgetRequest, protocol: UnlearningProtocol, name: str
) -> None:
    """Refuse what cannot work, before anything is computed."""
    _check_kind(request, protocol, name)
    kept = run.record.plan.parts if run.record is not None else frozenset()
    needs: frozenset[str] = getattr(protocol, "needs", frozenset())
    missing = needs - kept
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
    served = getattr(protocol, "serves_faults", False)
    check_faults(run, request, name, served=served)
    check = getattr(protocol, "check", None)
    if check is not None:
        check(run, request)
