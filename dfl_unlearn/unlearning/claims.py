"""What the claims of several protocols share: parties, network, convexity, history."""

from collections.abc import Sequence

import numpy as np

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.entries import EVERYONE
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.exposure import sent_before
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Dissemination, multiples
from dfl_unlearn.errors import TopologyError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.topology.graph import Topology

EARLIER = "earlier releases of the same owner"
"""Name of the assumption that composing with them makes."""


def owners_of(request: ForgetRequest) -> tuple[str, ...]:
    """Return the ledger's names of the peers whose data goes."""
    return tuple(f"peer:{i}" for i in request.peers)


def observers_of(run: TrainedRun, request: ForgetRequest) -> tuple[str, ...]:
    """Return everybody who receives a release but the owners, and the public."""
    others = (i for i in range(run.topology.n) if i not in request.peers)
    return (*(f"peer:{i}" for i in others), "public")


def exposure_of(run: TrainedRun, request: ForgetRequest) -> tuple[str, ...]:
    """Return what observers hold from before the request; no claim covers it.

    Args:
        run: The trained network.
        request: The resolved request.

    Returns:
        Lines for a certificate's ``exposure``: who got how many messages of the owners
        in training, and who can compare a model from before with one from after.
    """
    rounds = training_rounds(run)
    if rounds == 0:
        return (
            "what was sent before the request is not known: the models were not "
            "trained here",
        )
    schedule = run.topology if run.config.schedule is None else run.config.schedule
    known = sent_before(schedule, owners_of(request), rounds)
    parts = []
    if len(known) > 3:
        most = max(max(counts.values(), default=0) for counts in known.values())
        parts.append(f"{len(known)} owners sent up to {most} to each neighbour")
        known = {}
    for owner, counts in known.items():
        most = max(counts.values(), default=0)
        each = f"{most} to each" if len(set(counts.values())) <= 1 else f"up to {most}"
        if counts:
            parts.append(f"{owner} sent {each} of {brief(sorted(counts))}")
    lines = [
        f"messages of {rounds} training rounds, sent before the request: "
        + ("; ".join(parts) or "none, there is one peer")
        + (
            " (private for any one record: account * of the ledger)"
            if any(entry.owner == EVERYONE for entry in run.ledger.entries)
            else " (no epsilon is attached to them)"
        )
    ]
    reached = _reached(run, request.peers, rounds)
    if reached:
        lines.append(
            f"before/after exposure: model released at round {rounds} to "
            f"{brief(reached)}; who keeps it can compare it with what comes after"
        )
    return tuple(lines)


def _reached(run: TrainedRun, owners: Sequence[int], rounds: int) -> list[int]:
    """Return the peers that got a model which some other owner's data had reached."""
    n = run.topology.n
    if rounds >= n - 1 or run.config.schedule is not None:
        return [i for i in range(n) if len(owners) > 1 or i not in owners]
    found = np.zeros(n, dtype=np.bool_)
    for owner in owners:
        near = run.topology.hops(owner) <= rounds
        near[owner] = False
        found |= near
        if found.all():
            break
    return [int(i) for i in np.flatnonzero(found)]


def training_rounds(run: TrainedRun) -> int:
    """Return the rounds of training behind a state, those after requests left out."""
    return min(run.state.round, run.config.rounds)


def brief(peers: Sequence[int]) -> str:
    """Return peers as words; of many the first, the last and how many."""
    if len(peers) == 1:
        return f"peer {peers[0]}"
    if len(peers) <= 6:
        return f"peers {', '.join(map(str, peers))}"
    return f"peers {peers[0]}, {peers[1]}, … {peers[-1]} ({len(peers)})"


def earlier_releases(
    run: TrainedRun, request: ForgetRequest, owners: tuple[str, ...] | None = None
) -> Assumption | None:
    """Return what composing with the owners' earlier releases rests on.

    Args:
        run: The trained network, with this attempt's ledger before it is charged.
        request: The resolved request.
        owners: Who pays for it; None is whose data it asks to forget.

    Returns:
        An assumption with the number of releases, or None if there was none.
    """
    owners = owners_of(request) if owners is None else owners
    releases = {
        e.release_id: e.status
        for e in run.ledger.entries
        if e.owner in owners and e.noise_drawn
    }
    if not releases:
        return None
    statuses = set(releases.values())
    proven = statuses <= {"certified"}
    estimated = bool(statuses & {"heuristic", "pending"})
    return Assumption(
        name=EARLIER,
        value=len(releases),
        source="proven" if proven else "estimated" if estimated else "assumed",
        note="epsilon adds them up; the sum says no more than the weakest of them",
    )


def convexity(model: FlatModel) -> list[Assumption]:
    """Return the two assumptions of a strongly convex objective, held or not."""
    return [
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
    ]


def stacked_convexity(run: TrainedRun) -> Assumption:
    """Return what bounds the distance of all peers' models to D-SGD's fixed point."""
    return Assumption(
        name="strong convexity (lambda)",
        value=run.model.l2 + run.config.local.weight_decay,
        source="proven",
        note="l2 and weight decay of every peer that takes steps; with a symmetric "
        "mixing matrix the Jacobian I - W + rate H is bounded below by its smallest "
        "eigenvalue with H at this value",
    )


def extractor_of(run: TrainedRun) -> list[Assumption]:
    """Return what a claim on features takes of their extractor, if there is one."""
    return [] if run.data.extractor is None else [run.data.extractor]


def held_multiples(
    run: TrainedRun, source: int, how: Dissemination, what: str
) -> tuple[str, ...]:
    """Return what a certificate says where peers hold multiples of what was sent.

    Args:
        run: Gives the network.
        source: Where it was sent from.
        how: How it was sent.
        what: What was sent.

    Returns:
        One sentence, or none where all hold the same.
    """
    if how != "gossip_average":
        return ()
    held = multiples(run.topology, source, how)
    return (
        f"after {run.topology.mixing_rounds()} rounds of averaging, peer i holds "
        f"N [W^J]_iu times {what}, between {held.min():.6g} and {held.max():.6g}: "
        "numbers of the network alone, so this is post-processing, of the reference "
        "world's release too",
    )


def refuse_single(topology: Topology, protocol: str) -> None:
    """Refuse a network of one peer.

    Args:
        topology: The network.
        protocol: Registered name of the protocol.

    Raises:
        TopologyError: If there is only one peer.
    """
    if topology.n < 2:
        raise TopologyError(
            f"{protocol}: needs a network of at least 2 peers, got 1; use retrain or "
            "fine-tune on a single model"
        )
