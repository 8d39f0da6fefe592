"""Carries out forget requests: checks first, then runs a protocol, then measures."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Certificate
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
from dfl_unlearn.errors import (
    DflUnlearnError,
    InvalidForgetSetError,
    NumericalError,
)
from dfl_unlearn.unlearning.checks import (
    check_attempt,
    check_extractor,
    check_kind,
    check_views,
    guard_of,
)
from dfl_unlearn.unlearning.contracts import (
    Outcome,
    UnlearningProtocol,
    label_of,
    unlearners,
)
from dfl_unlearn.unlearning.membership import without_left
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
    keep_checkpoints: bool = False,
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
        keep_checkpoints: Whether a commit of the outcome leaves states from before the
            request on disk, unless ``commit_outcome`` is told otherwise.
        folder: Keeps the outcome in this run folder, its ledger durable before
            anything is released; None keeps all in memory. An attempt that was
            interrupted there is gone on with: the same noise, charged once.

    Returns:
        The outcome (of the last request).

    Raises:
        DflUnlearnError: Any of those below; of a list, ``error.outcomes`` has the
            outcomes of the requests before the one that failed.
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
    _validate.of_type(bool, coalesce=coalesce, keep_checkpoints=keep_checkpoints)
    if screening is not None:
        _validate.of_type(Screening, screening=screening)
    for one in requests:
        _validate.of_type(ForgetRequest, request=one)
    requests = _each_once(requests, run)
    if not requests:
        return nothing_asked(run, protocol, unlearners.name_of(protocol), reference)
    if coalesce and len(requests) > 1:
        for one in requests:
            check_kind(one, protocol)
        requests = [put_together(requests, run.data)]
    if len(requests) > 1 and isinstance(reference, TrainedRun):
        raise InvalidForgetSetError(
            "reference: must be True or False for several requests, got a run; each "
            "request has a reference of its own"
        )
    done: list[Outcome] = []
    for number, one in enumerate(requests):
        try:
            outcome = _one(
                run, one, protocol, reference, screening, folder, keep_checkpoints
            )
        except DflUnlearnError as error:
            error.outcomes = tuple(done)
            raise
        done.append(outcome)
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
    keep: bool,
) -> Outcome:
    request = request.resolve(run.data)
    if folder is None:
        if not request.request_id:
            request = replace(request, request_id=f"r{run.requests}")
        return _attempted(run, request, protocol, reference, screening, None, keep)
    from dfl_unlearn.store.folder import RunFolder
    from dfl_unlearn.unlearning.attempts import named_in

    run_folder = RunFolder(folder)
    with run_folder.locked():
        request = named_in(run_folder, request, protocol, run)
        return _attempted(
            run, request, protocol, reference, screening, run_folder, keep
        )


def _attempted(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    reference: bool | TrainedRun,
    screening: Screening | None,
    folder: "RunFolder | None",
    keep: bool,
) -> Outcome:
    name = unlearners.name_of(protocol)
    check_attempt(run, request, protocol, label_of(protocol))
    if screening is not None:
        screening.check(run, request, protocol)
    if reference is True:
        retraining_memory(run, ExecutionConfig()).check()
    store = None
    if folder is not None:
        from dfl_unlearn.unlearning.attempts import OutcomeFolder

        store = OutcomeFolder.open(folder, request, protocol, run)
    ledger = run.ledger.fork() if store is None else store.ledger(run)
    attempt = run.replaced(ledger=ledger, guard=guard_of(ledger, request, protocol))
    try:
        outcome = _carried_out(run, attempt, request, protocol, name)
    except BaseException:
        if store is not None:
            charges = len(ledger.entries) - len(run.ledger.entries)
            store.discard_unless_charged(charges + ledger.ahead)
        raise
    outcome = replace(outcome, keep_checkpoints=keep)
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


def carried_out_again(
    run: TrainedRun,
    request: ForgetRequest,
    protocol: UnlearningProtocol,
    ledger: PrivacyLedger,
) -> Outcome:
    """Carry out a request as an attempt did, against what that one charged and noted.

    Args:
        run: The network as it was.
        request: The resolved request, under its id.
        protocol: The protocol.
        ledger: Goes through the attempt's charges again; see ``PrivacyLedger.ahead``.

    Returns:
        The outcome, kept nowhere.
    """
    attempt = run.replaced(ledger=ledger, guard=guard_of(ledger, request, protocol))
    name = unlearners.name_of(protocol)
    return _carried_out(run, attempt, request, protocol, name)


def _carried_out(
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
    check_views(outcome, name)
    check_extractor(outcome, name)
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
