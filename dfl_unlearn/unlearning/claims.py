"""What the claims of several protocols share: parties, network, convexity, history."""

import math

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.accounting.rdp import RdpCurve
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Dissemination, multiples
from dfl_unlearn.errors import InsecureNoiseError, TopologyError
from dfl_unlearn.models.flat import FlatModel

EARLIER = "earlier releases of the same owner"
"""Name of the assumption that composing with them makes."""
NOT_REPEATABLE = (
    "the noise came from the operating system: this outcome cannot be repeated, not "
    "even with the same seed"
)
"""Note of every outcome with secure noise."""


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


def spent_together(
    run: TrainedRun, request: ForgetRequest, delta: float
) -> tuple[float, RdpCurve | None]:
    """Return what all releases of the request's owners cost, the worst owner's.

    Args:
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        delta: Of the total.

    Returns:
        Epsilon, and the Rényi curve it comes from; None where all releases are plain
        Gaussians, which compose exactly.
    """
    epsilon, worst = max(
        (run.ledger.epsilon(owner, "public", delta), owner)
        for owner in owners_of(request)
    )
    plain = all(
        isinstance(e.mechanism, GaussianMechanism)
        for e in run.ledger.entries
        if e.owner == worst and e.noise_drawn
    )
    return epsilon, None if plain else run.ledger.spent(worst, "public")


def on_grid(release: GaussianRelease, coordinates: int, *, of: str) -> list[Assumption]:
    """Return what a secure release rests on; nothing for a simulated one.

    Args:
        release: The release.
        coordinates: Numbers in its value.
        of: What is released, for the name.

    Returns:
        At most one assumption.
    """
    if release.grid is None:
        return []
    shift = release.mechanism(coordinates).sensitivity
    return [
        Assumption(
            name=f"grid of {of}",
            value=release.grid,
            source="proven",
            note=f"2**{math.frexp(release.grid)[1] - 1}; value and noise are whole "
            f"multiples of it, exactly; rounding {coordinates} numbers to it raises "
            f"the shift from {release.sensitivity:.6g} to {shift:.6g}",
        )
    ]


def simulated_releases(ledger: PrivacyLedger) -> tuple[str, ...]:
    """Return the requests whose releases in a ledger have noise from the seed."""
    found = {
        e.request_id: None
        for e in ledger.entries
        if e.noise_drawn and e.noise_mode == "simulated"
    }
    return tuple(found)


def refuse_mixed_noise(run: TrainedRun, request: ForgetRequest) -> None:
    """Refuse secure noise on top of noise that the seed gives away.

    Args:
        run: The trained network.
        request: The resolved request, for secure noise.

    Raises:
        InsecureNoiseError: If an earlier release of the run has simulated noise.
    """
    earlier = simulated_releases(run.ledger)
    if earlier:
        raise InsecureNoiseError(
            f"noise_mode: must be 'simulated' for request {request.request_id}, got "
            f"'secure' after {len(earlier)} with simulated noise ({earlier[0]}), which "
            "the seed gives away; nothing was sent: begin with secure noise in a run "
            "without such releases"
        )


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
