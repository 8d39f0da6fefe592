r"""The claim of the token walk: constants first, noise from them, certificate after.

Certificate R (decentralized-certified 4.5, [derived]). Let both worlds start within
:math:`\Delta_0` of each other, the one at the common model, the other at the exact
minimizer without the data. The first message is a Gaussian release of that shift. Given
equal histories every other step is the same randomized map in both worlds, but for
visits that read forgotten rows, which are Gaussian releases of shift S. So what all
peers but the owners see together is exactly one Gaussian comparison of

.. math:: \mu^2 = \Delta_0^2 / s_0^2 + (K - 1) S^2 / \sigma^2 .

It needs no convexity; all difficulty is in :math:`\Delta_0` (``unlearning/shift.py``).
Certificate T leaves the first term out, since both of its worlds start from the same
trained model; it says nothing about retraining.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.accounting.network import lamri_noise_std, walk_mu, walk_rdp
from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, RdpCurve, rdp_to_epsilon
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.unlearning.claims import (
    EARLIER,
    earlier_releases,
    exposure_of,
    observers_of,
    owners_of,
)
from dfl_unlearn.unlearning.shift import start_shift
from dfl_unlearn.unlearning.token_walk import Route

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu

_SAFE = 1 + 1e-9  # on noise, for sums of squares that round down

_VIEW: Literal["view_joint"] = "view_joint"


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """What a walk will be charged and say.

    Attributes:
        protocol: The protocol's fields.
        scope: ``view_joint``: all messages to all peers but the owners, together;
            ``transcript``: the same, both worlds starting from the same model.
        assumptions: Every constant of the claim.
        start: The release at the start; without noise none is made.
        visit: The release of each later visit; likewise.
        visits: Later visits, K - 1.
        scale: Factor N p_v on each peer's objective, shape ``(N,)``.
        gradients: Per-sample gradients that the bounds took.
    """

    protocol: "RrDu"
    scope: Literal["view_joint", "transcript"]
    assumptions: tuple[Assumption, ...]
    start: GaussianRelease
    visit: GaussianRelease
    visits: int
    scale: NDArray[np.float64]
    gradients: int

    @classmethod
    def of(
        cls, protocol: "RrDu", run: TrainedRun, request: ForgetRequest, route: Route
    ) -> "Claim":
        """Return the claim of a walk before anything is charged or sent.

        Args:
            protocol: Its fields.
            run: The trained network, with this attempt's ledger.
            request: The resolved request.
            route: Where the token will go.

        Returns:
            The claim.
        """
        kept = run.data.without(request)
        scale = peer_scale(kept, run.config.peer_weighting)
        source = route.source
        stored = int(run.data.retained[source])
        share = int(kept.retained[source]) / stored
        sensitivity = 0.0
        if protocol.alignment == "lightweight":
            assert protocol.clip_norm is not None
            weight = float(scale[source] * route.weights[source])
            sensitivity = (1 - share) * protocol.clip_norm * weight
        shift, constants = start_shift(protocol, run, request)
        visits = len(route.visits) - 1
        start, visit = _noise(protocol, run, route, shift, sensitivity, visits)
        assumptions = [*constants, _steps(protocol, route, sensitivity)]
        if protocol.certify == "retrain" and start.noise_std == 0:
            assumptions.append(
                Assumption(
                    name="noise of the start",
                    value=0.0,
                    source="set",
                    state="violated",
                    note="the token starts from a model that saw the data",
                )
            )
        if sensitivity > 0 and visit.noise_std == 0 and visits:
            assumptions.append(
                Assumption(
                    name="noise of visits",
                    value=0.0,
                    source="set",
                    state="violated",
                    note="they read forgotten rows",
                )
            )
        if protocol.calibration == "lamri_view":
            assumptions.append(_published(visit.noise_std))
        earlier = earlier_releases(run, request)
        return cls(
            protocol=protocol,
            scope=_VIEW if protocol.certify == "retrain" else "transcript",
            assumptions=(*assumptions, *([earlier] if earlier else [])),
            start=start,
            visit=visit,
            visits=visits,
            scale=scale,
            gradients=int(run.data.retained[list(request.peers)].sum()),
        )

    @property
    def start_noise(self) -> float:
        """Standard deviation s_0 of the start's noise; 0 without one."""
        return self.start.noise_std

    @property
    def visit_noise(self) -> float:
        """Standard deviation sigma of a visit's noise; 0 without one."""
        return self.visit.noise_std

    @property
    def charges(self) -> bool:
        """Whether any noise is drawn."""
        return self.start_noise > 0 or (self.visit_noise > 0 and self.visits > 0)

    @property
    def mu(self) -> float:
        """Shift in units of noise of everything together; inf without noise."""
        walk = self.protocol.certify == "retrain"
        return walk_mu(
            start_shift=self.start.sensitivity if walk else 0.0,
            start_noise=self.start.noise_std,
            visit_sensitivity=self.visit.sensitivity,
            visit_noise=self.visit.noise_std,
            visits=self.visits + 1,
        )

    def check_budget(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse a walk that the ledger has no room for; nothing is written."""
        if not 0 < self.mu < math.inf:
            return
        run.ledger.fork().charge_owners(
            request.request_id,
            owners_of(request),
            observers_of(run, request),
            GaussianMechanism(noise_std=1 / self.mu, sensitivity=1.0),
            scope=self.scope,
        )

    def certificate(self, run: TrainedRun, request: ForgetRequest) -> Certificate:
        """Return the certificate once the releases are in the ledger.

        Args:
            run: The trained network, with this attempt's ledger.
            request: The resolved request.

        Returns:
            The certificate; epsilon composes all releases of the same owner.
        """
        protocol = self.protocol
        epsilon = self._epsilon(run, request)
        curve = self.curve
        if curve is not None and epsilon != self.alone:
            curve = None  # earlier releases: the ledger's total
        shift = self.start.sensitivity if self.scope == _VIEW else 0.0
        together = self.visits > 0 and self.visit.sensitivity > 0
        noise = self.start.noise_std
        if curve is None and together and 0 < self.mu < math.inf:
            shift = shift or self.visit.sensitivity
            noise = shift / self.mu
        return certify(
            method="rr-du",
            request_id=request.request_id,
            group_size=request.size(run.data) if protocol.disclose_m else None,
            scope=self.scope,
            epsilon=epsilon,
            delta=protocol.delta,
            sensitivity=shift,
            bound="capped" if self.scope == _VIEW else "none",
            noise_std=noise,
            accountant=(
                "rdp"
                if curve is not None
                else "exact_gaussian"
                if self.mu > 0
                else "none"
            ),
            curve=curve,
            assumptions=self.assumptions,
            observers=observers_of(run, request),
            exposure=(
                *exposure_of(run, request),
                "the mean of all models, which the walk starts from, is known from "
                "before the request",
            ),
            notes=self._notes(run, together),
            adaptive=request.adaptive,
        )

    @property
    def curve(self) -> RdpCurve | None:
        """What a walk with hidden visits costs by Rényi's measure; else None."""
        rate = self.protocol.segment_subsampling
        if rate is None or not 0 < self.mu < math.inf:
            return None
        return RdpCurve(
            orders=DEFAULT_ORDERS,
            values=walk_rdp(
                DEFAULT_ORDERS,
                start_shift=self.start.sensitivity if self.scope == _VIEW else 0.0,
                start_noise=self.start.noise_std,
                visit_sensitivity=self.visit.sensitivity,
                visit_noise=self.visit.noise_std,
                visits=self.visits + 1,
                rate=rate,
            ),
            adjacency="unlearn",
            description=f"start and {self.visits} visits, each taking part with "
            f"hidden probability {rate:g}",
            normalize=True,
        )

    @property
    def alone(self) -> float:
        """Epsilon of this walk by itself; the asked one where noise was calibrated."""
        protocol = self.protocol
        curve = self.curve
        if curve is not None:
            alone = curve.to_epsilon(protocol.delta).epsilon
        else:
            alone = gaussian_epsilon(self.mu, protocol.delta) if self.mu > 0 else 0.0
        # Calibrated noise is rounded up: the asked epsilon is the honest round one.
        within = alone <= protocol.epsilon <= alone * (1 + 1e-6)
        return protocol.epsilon if within else alone

    def _epsilon(self, run: TrainedRun, request: ForgetRequest) -> float | None:
        """Return what the certificate says; nominal only for the published noise."""
        if self.protocol.calibration == "lamri_view":
            return self.protocol.epsilon
        if self.mu == math.inf:
            return None
        earlier = any(a.name == EARLIER for a in self.assumptions)
        if self.curve is not None and not earlier:
            return self.alone
        spent = max(
            run.ledger.epsilon(owner, "public", self.protocol.delta)
            for owner in owners_of(request)
        )
        return max(spent, self.alone)

    def _notes(self, run: TrainedRun, together: bool) -> tuple[str, ...]:
        if self.scope == "transcript":
            return (
                "transcript only: both worlds start from the same trained model, so "
                "this bounds what the walk gives away and says nothing about "
                "retraining; training on without the data gets the same with epsilon 0",
            )
        notes = [
            "compares with the exact minimizer of the retained objective, released "
            "with the same noise and walked in the same way, not with a finite "
            "retraining run",
            "how many rows each peer stores, and which of them are gone, is taken as "
            "public",
        ]
        size = self.start_noise * math.sqrt(run.model.size)
        if size > 10:
            notes.append(
                f"the start's noise is about {size:.3g} long: the walk learns again "
                "from retained data, and little of the trained model is left; a "
                "smaller residual_cap makes a better start"
            )
        if self.curve is not None:
            notes.append(
                f"the start carries noise {self.start_noise:.3g}, each of "
                f"{self.visits} visits {self.visit_noise:.3g}; which of them read "
                "forgotten rows stays hidden, and the ledger charges all in full"
            )
        elif together:
            notes.append(
                f"the noise shown is that of one release as costly as all: the start "
                f"carries {self.start_noise:.3g}, each of {self.visits} visits "
                f"{self.visit_noise:.3g}"
            )
        return tuple(notes)


def _noise(
    protocol: "RrDu",
    run: TrainedRun,
    route: Route,
    shift: float,
    sensitivity: float,
    visits: int,
) -> tuple[GaussianRelease, GaussianRelease]:
    """Return the releases of start and visits, calibrated to public numbers.

    Where both cost something, each gets half of the budget's mu^2.
    """
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
        GaussianRelease(sensitivity=sensitivity, noise_std=visit),
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


def _steps(protocol: "RrDu", route: Route, sensitivity: float) -> Assumption:
    """Return what later steps read of the forgotten rows."""
    if protocol.alignment == "lightweight":
        return Assumption(
            name="sensitivity of a visit (S)",
            value=sensitivity,
            source="clipped",
            note=f"per-sample gradients clipped to {protocol.clip_norm:g}; "
            f"{len(route.visits) - 1} visits, drawn without looking at data",
        )
    return Assumption(
        name="steps after the start",
        value="retained rows only",
        source="proven",
        note="so they are the same in both worlds and cost nothing",
    )


def _published(noise: float) -> Assumption:
    return Assumption(
        name="published noise of a visit",
        value=noise,
        source="estimated",
        note="its factor ln(N)/N comes from networks where every peer adds noise; with "
        "noise at the requester alone the steps after a visit may be undone by who "
        "knows them, and the visit then costs its full price",
    )
