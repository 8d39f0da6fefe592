"""What the claims of several protocols share: parties, network, convexity, history."""

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import TopologyError
from dfl_unlearn.models.flat import FlatModel

EARLIER = "earlier releases of the same owner"
"""Name of the assumption that composing with them makes."""


def owners_of(request: ForgetRequest) -> tuple[str, ...]:
    """Return the ledger's names of the peers whose data goes."""
    return tuple(f"peer:{i}" for i in request.peers)


def observers_of(run: TrainedRun, request: ForgetRequest) -> tuple[str, ...]:
    """Return everybody who receives a release but the owners, and the public."""
    others = (i for i in range(run.topology.n) if i not in request.peers)
    return (*(f"peer:{i}" for i in others), "public")


def earlier_releases(run: TrainedRun, request: ForgetRequest) -> Assumption | None:
    """Return what composing with the owners' earlier releases rests on.

    Args:
        run: The trained network, with this attempt's ledger before it is charged.
        request: The resolved request.

    Returns:
        An assumption with the number of releases, or None if there was none.
    """
    owners = owners_of(request)
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


def refuse_single(run: TrainedRun, protocol: str) -> None:
    """Refuse a network of one peer.

    Args:
        run: The trained network.
        protocol: Registered name of the protocol.

    Raises:
        TopologyError: If there is only one peer.
    """
    if run.topology.n < 2:
        raise TopologyError(
            f"{protocol}: needs a network of at least 2 peers, got 1; use retrain or "
            "fine-tune on a single model"
        )
