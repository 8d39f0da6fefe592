"""Where noise came from, what it costs then, and what must not be mixed."""

import math

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.accounting.rdp import RdpCurve
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InsecureNoiseError
from dfl_unlearn.unlearning.claims import owners_of

NOT_REPEATABLE = (
    "the noise came from the operating system: this outcome cannot be repeated, not "
    "even with the same seed"
)
"""Note of every outcome with secure noise."""


def spent_together(
    run: TrainedRun,
    request: ForgetRequest,
    delta: float,
    owners: tuple[str, ...] | None = None,
) -> tuple[float, RdpCurve | None]:
    """Return what all releases of the request's owners cost, the worst owner's.

    Args:
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        delta: Of the total.
        owners: Who pays for it; None is whose data it asks to forget.

    Returns:
        Epsilon, and the Rényi curve it comes from; None where all releases are plain
        Gaussians, which compose exactly.
    """
    epsilon, worst = max(
        (run.ledger.epsilon(owner, "public", delta), owner)
        for owner in (owners_of(request) if owners is None else owners)
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
    shift = release.shift(coordinates)
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
