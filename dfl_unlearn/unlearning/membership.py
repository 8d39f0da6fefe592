"""Who takes part in a request where peers come and go.

A peer that has left for good takes no part: its data are gone with it, so the
objective, the target and the average model of a request are those of the others. A peer
that is down is waited for (``engine.faulty_transport``): a sum over all peers needs it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.accounting.certificate import CLAIMED, Assumption
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.faulty_transport import FaultyTransport, PeerLeftError
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import (
    RefusedError,
    UnknownPeerError,
    UnsupportedRequestError,
)
from dfl_unlearn.unlearning.claims import brief
from dfl_unlearn.unlearning.contracts import UnlearningProtocol
from dfl_unlearn.unlearning.retained import network_objective

T = TypeVar("T")


def check_served(protocol: UnlearningProtocol, name: str) -> None:
    """Refuse a protocol that is not made for a network with faults.

    Args:
        protocol: The protocol.
        name: Its registered name.

    Raises:
        UnsupportedRequestError: If it is not.
    """
    if not getattr(protocol, "serves_faults", False):
        raise UnsupportedRequestError(
            f"protocol: must be made for a network with faults, got {name}, which "
            "takes every peer to be there; use newton-fisher, rr-du or retrain"
        )


def check_left(run: TrainedRun, request: ForgetRequest) -> None:
    """Refuse a request about peers that are gone.

    Args:
        run: The trained network.
        request: The resolved request.

    Raises:
        UnknownPeerError: If an owner has left for good.
    """
    draws = run.faults()
    if draws is None:
        return
    left = draws.at(run.network_round).left
    gone = [peer for peer in request.peers if left[peer]]
    if gone:
        raise UnknownPeerError(
            f"request: must be about peers of the network, got peer {gone[0]}, which "
            f"has left for good by round {run.network_round}; its data are gone"
        )


def status_at_release(run: TrainedRun, status: str) -> str:
    """Return what the ledger says of a claim while its release is on its way.

    Args:
        run: The trained network.
        status: The claim's, once every peer is corrected.

    Returns:
        ``pending`` in a network with faults, where that is still open.
    """
    return "pending" if run.faults() is not None and status in CLAIMED else status


def status_at_end(transport: Transport, status: str) -> str:
    """Return what the ledger says of a claim when nothing more is sent.

    Args:
        transport: Knows who holds the corrected model.
        status: The claim's, once every peer is corrected.

    Returns:
        ``pending`` where a peer does not hold it, whether or not influence is left
        there; else the claim's.
    """
    open_ = isinstance(transport, FaultyTransport) and not transport.current.all()
    return "pending" if open_ and status in CLAIMED else status


def without_left(run: TrainedRun, left: NDArray[np.bool_]) -> TrainedRun:
    """Return a run in which peers that have left count nowhere.

    Args:
        run: The trained network.
        left: Who has left, shape ``(N,)``.

    Returns:
        The run without their rows of data; their models are replaced by the average of
        the others', so that the average over all peers is that one.
    """
    if not left.any():
        return run
    gone = np.repeat(left, run.data.sizes)
    here = torch.from_numpy(~left)

    def averaged(rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[~here] = rows[here].double().mean(0).to(rows.dtype)
        return rows

    return replace(
        run,
        data=replace(run.data, dropped=gone | ~run.data.keep),
        state=PeerState(
            params=averaged(run.state.params),
            slots={k: averaged(v) for k, v in run.state.slots.items()},
            round=run.state.round,
        ),
    )


def over_members(
    run: TrainedRun,
    request: ForgetRequest,
    transport: Transport,
    compute: Callable[[TrainedRun], T],
) -> tuple[TrainedRun, T]:
    """Compute something that needs sums over all peers that have not left.

    If one leaves meanwhile, everything is computed again without it.

    Args:
        run: The trained network.
        request: The resolved request.
        transport: Carries the sums.
        compute: Given the run of those that take part.

    Returns:
        That run and the result; without faults the run itself.

    Raises:
        RefusedError: If an owner of the forgotten data leaves meanwhile.
    """
    if not isinstance(transport, FaultyTransport):
        return run, compute(run)
    transport.wait_for(request.requester)
    transport.mark("received")
    while True:
        gone = [peer for peer in request.peers if transport.left[peer]]
        if gone:
            raise RefusedError(
                f"request: must come from peers that stay until it is computed, got "
                f"peer {gone[0]}, which left before; nothing was charged or released: "
                "its data are gone, ask for those of the others again"
            )
        transport.settle()
        present = without_left(run, transport.left)
        try:
            result = compute(present)
        except PeerLeftError:
            continue
        transport.mark("computed")
        return present, result


def as_trained(run: TrainedRun) -> TrainedRun:
    """Return the run of the peers that had not left when training ended.

    Args:
        run: The run as training left it.

    Returns:
        Without the data and the models of the others; the residual in its record is
        what those who were there would have written down at the end of training.
    """
    draws = run.faults()
    if draws is None or run.network_round == 0:
        return run
    left = draws.at(run.network_round - 1).left
    record = run.record
    present = without_left(run, left)
    if present is run or record is None or not record.training_residual:
        return present
    objective = network_objective(present)
    residual = float(objective.gradient(present.state.mean()).norm())
    written = {run.state.round: residual}
    return replace(present, record=replace(record, training_residual=written))


def start_round(run: TrainedRun, request: ForgetRequest) -> int:
    """Return the network round in which the requester is there.

    Args:
        run: The trained network.
        request: The resolved request.

    Returns:
        The first one from now on; the present one where nobody waits for it.
    """
    transport = run.transport()
    if not isinstance(transport, FaultyTransport):
        return run.network_round
    transport.wait_for(request.requester)
    return transport.clock


def start_when_there(
    run: TrainedRun, request: ForgetRequest, transport: Transport
) -> None:
    """Set a transport to the round in which the requester is there.

    Args:
        run: The trained network.
        request: The resolved request.
        transport: A fresh one of the run.
    """
    if isinstance(transport, FaultyTransport):
        transport.clock = start_round(run, request)
        transport.mark("received")


def told_to_start_again(
    run: TrainedRun, request: ForgetRequest, transport: Transport
) -> TrainedRun:
    """Tell every peer that has not left to train again from the start.

    Args:
        run: The trained network.
        request: The resolved request.
        transport: A fresh one of the run.

    Returns:
        The run of those that were told; without faults the run itself, nothing sent.

    Raises:
        RefusedError: If one could not be told within the plan's patience.
    """
    if not isinstance(transport, FaultyTransport):
        return run
    transport.wait_for(request.requester)
    transport.mark("received")
    transport.broadcast(request.requester, "start again", 0, "flood")
    lacking = np.flatnonzero(transport.lacking).tolist()
    if lacking:
        raise RefusedError(
            f"retrain: must reach every peer that has not left within "
            f"{transport.patience} rounds, got no way to {brief(lacking)}; no model "
            "was changed: raise the fault plan's patience, or use newton-fisher"
        )
    transport.members = ~transport.left
    return without_left(run, transport.left)


def members_assumed(run: TrainedRun, transport: Transport) -> list[Assumption]:
    """Return what a claim takes of who was there.

    Who leaves is drawn without looking at data. How many rounds the sums take is not:
    where a peer left between the request and their end, who takes part may differ in
    the world without the data, and the claim is conditional on that it does not.

    Args:
        run: The trained network.
        transport: Its members are who took part.

    Returns:
        Nothing in a network without faults.
    """
    if not isinstance(transport, FaultyTransport):
        return []
    count = int(transport.members.sum())
    drawn = "who is there and what arrives is drawn without looking at data"
    gone = (
        "the others have left for good and their data with them: the target is that "
        "of the peers that take part; "
    )
    begun = transport.draws.at(transport.states["received"]).left
    same = np.array_equal(transport.members, ~begun)
    timing = (
        "; somebody left while the sums were taken, whose number of rounds depends on "
        "the data: taken to be the same peers without them"
    )
    return [
        Assumption(
            name="peers that take part",
            value=f"{count} of {run.topology.n}",
            source="proven" if same else "assumed",
            note=(gone if count < run.topology.n else "")
            + drawn
            + ("" if same else timing),
        )
    ]


def fault_notes(run: TrainedRun) -> tuple[str, ...]:
    """Return what the run's faults did to training, for a certificate's notes."""
    if not run.config.faults:
        return ()
    broken = run.config.faults.breaks(run.config.trainer)
    return (
        "the network had faults"
        + (f" ({'; '.join(broken)})" if broken else "")
        + ": nothing here rests on how gossip mixes, the distance to the target is "
        "measured at the models that training left",
    )
