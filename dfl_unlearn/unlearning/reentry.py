"""How a correction comes back into the network: who changes what, and who is told.

``at-peer`` runs a method where the data lie; the functions here do what its field
``reentry`` says with the result, up to the first round of gossip. All that one peer
learns of another passes ``Transport``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.personal import PINNED, used_params
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.stored_forms import request_to
from dfl_unlearn.engine.transport import Transport, multiples
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import brief, held_multiples
from dfl_unlearn.unlearning.cost import Cost
from dfl_unlearn.unlearning.influence_weights import correction_weights
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    UnlearningMethod,
    check_task,
    methods,
    only,
    uses_of,
)
from dfl_unlearn.unlearning.local_tasks import local_task

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

Reentry = Literal[
    "requester",
    "scaled",
    "delta",
    "all",
    "notify",
    "pinned",
    "maintain",
    "rewind_network",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrected:
    """Where the network stands before gossip goes on.

    Attributes:
        params: Shared models, shape ``(N, P)``.
        personal: What each peer keeps to itself.
        found: What the method gave at each owner.
        cost: What all peers' methods took.
        notes: What was told to whom.
    """

    params: Tensor
    personal: dict[int, Mapping[str, Tensor]]
    found: Mapping[int, LocalOutcome]
    cost: Cost
    notes: tuple[str, ...]


def run_at(
    method: UnlearningMethod[TensorBatch], task: LocalTask[TensorBatch], rng: RngTree
) -> LocalOutcome:
    """Run a method on what it says it uses.

    Args:
        method: The method.
        task: One peer's task.
        rng: The run's draws.

    Returns:
        Its outcome.

    Raises:
        UnsupportedRequestError: If it changed the model's shape.
    """
    outcome = method.unlearn(only(task, uses_of(method)), rng)
    if outcome.params.shape != task.params.shape:
        raise UnsupportedRequestError(
            f"method: must keep the model's {task.params.numel()} parameters in a "
            f"network, got {outcome.params.numel()} from {methods.name_of(method)}; "
            "peers could not mix any more: use it on a single model"
        )
    return outcome


def corrected(
    protocol: "AtPeer",
    run: TrainedRun,
    request: ForgetRequest,
    rng: RngTree,
    transport: Transport,
) -> Corrected:
    """Run the method at the owners and bring its result back.

    Args:
        protocol: Its fields.
        run: The network, with this attempt's ledger.
        request: The resolved request.
        rng: The run's draws.
        transport: Carries what is told to others.

    Returns:
        Every peer's model before the first round.
    """
    used = used_params(run.state.params, run.personal)
    params = run.state.params.clone()
    personal = dict(run.personal)
    found: dict[int, LocalOutcome] = {}
    for peer in request.peers:
        task = local_task(run, request, peer, budget=protocol.budget, ledger=run.ledger)
        found[peer] = run_at(protocol.owners_method, task, rng)
        params[peer] = found[peer].params
        personal.pop(peer, None)  # what the method keeps takes the place of the old
        if found[peer].personal:
            personal[peer] = found[peer].personal
    _work(transport, found)
    cost = sum((each.cost for each in found.values()), Cost())
    notes: tuple[str, ...] = ()
    changes = {peer: params[peer] - used[peer] for peer in found}
    reentry = protocol.reentry
    if run.topology.n == 1 and reentry in ("scaled", "delta"):
        reentry = "requester"  # what went would be in the rounding of the difference
    if reentry == "scaled":
        for peer, change in changes.items():
            params[peer] = used[peer] + run.topology.n * change
    elif reentry == "pinned":
        for peer in found:
            pinned = params[peer] - run.state.params[peer]
            personal[peer] = {**personal.get(peer, {}), PINNED: pinned}
            params[peer] = run.state.params[peer]
        notes = (
            f"the change stays with {brief(request.peers)}: it is added to the shared "
            "model where that peer uses it and is never sent, so all others are as "
            "before",
        )
    elif reentry == "delta":
        params[list(found)] = used[list(found)]
        notes = _spread(protocol, run, request, rng, transport, params, changes)
    elif reentry in ("all", "notify"):
        others = neighbours(protocol, run, request)
        if reentry == "notify":
            notes = _told(protocol, run, request, transport)
        method = protocol.neighbours_method
        theirs = {
            peer: run_at(method, task, rng)
            for peer, task in others.items()
            if task is not None
        }
        _work(transport, theirs)
        for peer, outcome in theirs.items():
            params[peer] = outcome.params
            personal.pop(peer, None)
            if outcome.personal:
                personal[peer] = outcome.personal
            cost += outcome.cost
    return Corrected(
        params=params, personal=personal, found=found, cost=cost, notes=notes
    )


def neighbours(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest
) -> dict[int, LocalTask[TensorBatch] | None]:
    """Return what the peers that own nothing of the request are given to work on.

    Each sees its own rows, past and model; with ``share_forget`` also the forgotten
    rows, as the owners send them. They are counted after the peer's own rows.

    Args:
        protocol: Its fields.
        run: The network.
        request: The resolved request.

    Returns:
        A task for every peer that takes part; None where it has no rows to work with.
    """
    shared: TensorBatch | None = None
    if protocol.share_forget:
        mask = request.mask(run.data)
        index = torch.from_numpy(np.flatnonzero(mask))
        store = run.data.store
        shared = TensorBatch(store.inputs[index], store.labels[index])
    needs_own = bool(
        {"retain_inputs", "retain_labels"} & uses_of(protocol.neighbours_method)
    )
    tasks: dict[int, LocalTask[TensorBatch] | None] = {}
    for peer in reached(protocol, run, request):
        task = local_task(
            run, request, peer, budget=protocol.budget, ledger=run.ledger.fork()
        )
        if needs_own and not task.retain_size:
            tasks[peer] = None
            continue
        rows = np.empty(0, np.int64)
        if shared is not None:
            rows = int(run.data.sizes[peer]) + np.arange(len(shared))
        tasks[peer] = replace(task, forget=shared, forget_rows=rows, elsewhere=True)
    return tasks


def check_neighbours(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest
) -> None:
    """Refuse a method whose needs are not met at another peer.

    Args:
        protocol: Its fields.
        run: The network.
        request: The resolved request.
    """
    method = protocol.neighbours_method
    for task in neighbours(protocol, run, request).values():
        if task is not None:
            check_task(method, only(task, uses_of(method)))


def reached(protocol: "AtPeer", run: TrainedRun, request: ForgetRequest) -> list[int]:
    """Return the peers other than owners that take part, ascending."""
    hops = np.min([run.topology.hops(owner) for owner in request.peers], axis=0)
    far = protocol.reach if protocol.reentry == "notify" else None
    inside = hops > 0 if far is None else (hops > 0) & (hops <= far)
    return [int(i) for i in np.flatnonzero(inside)]


def _work(transport: Transport, found: Mapping[int, LocalOutcome]) -> None:
    """Note what each peer's method computed, for the simulated clock."""
    peers = np.array(sorted(found), dtype=np.int64)
    if peers.size:
        samples = [found[int(i)].cost.gradient_evaluations for i in peers]
        transport.work(np.array(samples, dtype=np.float64), peers)


def _spread(
    protocol: "AtPeer",
    run: TrainedRun,
    request: ForgetRequest,
    rng: RngTree,
    transport: Transport,
    params: Tensor,
    changes: Mapping[int, Tensor],
) -> tuple[str, ...]:
    """Broadcast the owners' changes and add every peer's multiple of them, in place.

    Returns:
        What was told to whom.
    """
    objective = network_objective(
        run.model, run.data.without(request), run.config.peer_weighting
    )
    weights = correction_weights(
        protocol.influence_weights,
        run,
        request,
        objective,
        run.state.params.double().mean(0),
        rng,
    )
    how = protocol.dissemination
    notes: tuple[str, ...] = (
        "the change, which depends on the forgotten rows, was sent to every peer "
        "without noise",
    )
    for owner, change in changes.items():
        generator = None
        if how == "push":
            generator = rng.numpy("walk", who=owner, request=request.request_id)
        transport.broadcast(
            owner, "change", run.model.size * params.element_size(), how, generator
        )
        held = weights * multiples(run.topology, owner, how)
        params += torch.from_numpy(held).to(params)[:, None] * change
        notes += held_multiples(run, owner, how, "the change")
    return notes


def _told(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest, transport: Transport
) -> tuple[str, ...]:
    """Flood the request, with ``share_forget`` the rows too.

    Returns:
        What was told to whom.
    """
    size = len(json.dumps(request_to(request)).encode())
    told = brief(reached(protocol, run, request)) if run.topology.n > 1 else "nobody"
    notes = [f"the request (whose rows, and which) was told to {told}"]
    for owner in request.peers:
        rows = run.data.rows(owner)
        index = torch.from_numpy(
            np.flatnonzero(request.mask(run.data)[rows]) + rows.start
        )
        store = run.data.store
        payload = size
        if protocol.share_forget:
            payload += store.inputs[index].nbytes + store.labels[index].nbytes
        transport.notify(owner, "notice", payload, protocol.reach)
    if protocol.share_forget:
        notes.append(
            f"disclosure: the {request.size(run.data)} forgotten rows themselves were "
            f"sent to {told}, who must be trusted to delete them"
        )
    return tuple(notes)
