"""How much noise the token walk draws, at its start and at each visit.

Where both cost something, each gets half of the budget's mu^2. Secure noise is
calibrated by its Rényi divergence, which is at most that of real Gaussians, for shifts
that include the rounding to the grid.
"""

import math
from typing import TYPE_CHECKING

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.network import lamri_noise_std, walk_rdp
from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, rdp_to_epsilon
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.unlearning.token_walk import Route

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu

_SAFE = 1 + 1e-9  # on noise, for sums of squares that round down


def releases_of(
    protocol: "RrDu",
    run: TrainedRun,
    route: Route,
    shift: float,
    sensitivity: float,
) -> tuple[GaussianRelease, GaussianRelease]:
    """Return the releases of start and visits, calibrated to public numbers.

    Args:
        protocol: Its fields.
        run: The trained network.
        route: Where the token will go.
        shift: Bound on how far the worlds' starts lie apart.
        sensitivity: Of a visit.

    Returns:
        The release at the start and that of each later visit.
    """
    visits = len(route.visits) - 1
    if protocol.noise_mode == "secure":
        return _secure_noise(protocol, run.model.size, shift, sensitivity, visits)
    scale = gaussian_noise_std(protocol.epsilon, protocol.delta, 1.0) * _SAFE
    costly = sensitivity > 0 and visits > 0
    if protocol.calibration == "lamri_view":
        assert protocol.clip_norm is not None
        n = run.topology.n
        start = 0.0
        visit = lamri_noise_std(
            protocol.clip_norm,
            protocol.epsilon,
            protocol.delta,
            restart=protocol.restart_probability or 1 / n,
            hops=len(route.holders),
            peers=n,
        )
    elif protocol.certify == "transcript":
        start, visit = 0.0, sensitivity * scale * math.sqrt(visits)
    else:
        halves = math.sqrt(2) if costly else 1.0
        start = shift * scale * halves
        visit = sensitivity * scale * halves * math.sqrt(visits)
    if protocol.segment_subsampling is not None and costly:
        visit = _hidden_noise(protocol, shift, start, sensitivity, visits)
    if protocol.release_noise_std is not None and protocol.certify == "retrain":
        start = protocol.release_noise_std
    if protocol.visit_noise_std is not None:
        visit = protocol.visit_noise_std
    return (
        GaussianRelease(sensitivity=shift, noise_std=start),
        GaussianRelease(
            sensitivity=sensitivity,
            noise_std=visit,
            rate=protocol.segment_subsampling or 1.0,
        ),
    )


def _secure_noise(
    protocol: "RrDu", size: int, shift: float, sensitivity: float, visits: int
) -> tuple[GaussianRelease, GaussianRelease]:
    """Return the releases of start and visits on grids, calibrated by Rényi orders."""
    scale = gaussian_noise_std(protocol.epsilon, protocol.delta, 1.0, "rdp") * _SAFE
    retrain = protocol.certify == "retrain"
    halves = math.sqrt(2) if retrain and sensitivity > 0 and visits > 0 else 1.0

    def release(
        sensitivity: float, given: float | None, multiplier: float
    ) -> GaussianRelease:
        if given is None:
            return GaussianRelease.on_grid(
                sensitivity=sensitivity, noise_multiplier=multiplier, coordinates=size
            )
        return GaussianRelease(sensitivity=sensitivity, noise_std=given, mode="secure")

    return (
        release(shift, protocol.release_noise_std if retrain else 0.0, scale * halves),
        release(
            sensitivity, protocol.visit_noise_std, scale * halves * math.sqrt(visits)
        ),
    )


def _hidden_noise(
    protocol: "RrDu", shift: float, start: float, sensitivity: float, visits: int
) -> float:
    """Return the least noise of hidden visits within the budget, rounded up.

    Raises:
        InvalidHyperparameterError: If the start alone passes the budget, as Rényi
            orders measure it, so that no noise of visits would do.
    """
    rate = protocol.segment_subsampling
    assert rate is not None

    def spent(noise: float, visits: int) -> float:
        values = walk_rdp(
            DEFAULT_ORDERS,
            start_shift=shift,
            start_noise=start,
            visit_sensitivity=sensitivity,
            visit_noise=noise,
            visits=visits + 1,
            rate=rate,
        )
        return rdp_to_epsilon(DEFAULT_ORDERS, values, protocol.delta).epsilon

    def enough(noise: float) -> bool:
        return spent(noise, visits) <= protocol.epsilon

    least = spent(0.0, 0)
    if least >= protocol.epsilon:
        raise InvalidHyperparameterError(
            "segment_subsampling: must be None where Rényi orders cannot show the "
            f"asked epsilon, got {rate:g} with epsilon {protocol.epsilon:g}: the start "
            f"alone costs {least:.3g} at delta {protocol.delta:g}; raise epsilon or "
            "delta, or let every visit read"
        )
    low, high = 0.0, sensitivity
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
