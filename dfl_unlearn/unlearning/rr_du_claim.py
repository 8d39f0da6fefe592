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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.accounting.gaussian import gaussian_epsilon
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.network import walk_mu, walk_rdp
from dfl_unlearn.accounting.rdp import (
    DEFAULT_ORDERS,
    RdpCurve,
    curve_of,
)
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.unlearning.claims import (
    EARLIER,
    earlier_releases,
    exposure_of,
    extractor_of,
    held_multiples,
    observers_of,
    owners_of,
)
from dfl_unlearn.unlearning.membership import fault_notes
from dfl_unlearn.unlearning.noise_modes import NOT_REPEATABLE, on_grid, spent_together
from dfl_unlearn.unlearning.rr_du_noise import releases_of
from dfl_unlearn.unlearning.shift import start_shift
from dfl_unlearn.unlearning.token_walk import Route

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu

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
        coordinates: Numbers in each release, P.
        scale: Factor N p_v on each peer's objective, shape ``(N,)``.
        gradients: Per-sample gradients that the bounds took.
        last: Who holds the token at the end.
    """

    protocol: "RrDu"
    scope: Literal["view_joint", "transcript"]
    assumptions: tuple[Assumption, ...]
    start: GaussianRelease
    visit: GaussianRelease
    visits: int
    coordinates: int
    scale: NDArray[np.float64]
    gradients: int
    last: int

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
        visits, size = len(route.visits) - 1, run.model.size
        start, visit = releases_of(protocol, run, route, shift, sensitivity)
        assumptions = [
            *constants,
            _steps(protocol, route, sensitivity),
            *on_grid(start, size, of="the start"),
            *on_grid(visit, size, of="visits"),
        ]
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
            assumptions=(
                *assumptions,
                *extractor_of(run),
                *_walked(route),
                *([earlier] if earlier else []),
            ),
            start=start,
            visit=visit,
            visits=visits,
            coordinates=size,
            scale=scale,
            gradients=int(run.data.retained[list(request.peers)].sum()),
            last=int(route.holders[route.last]),
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
        return walk_mu(
            start_shift=self.start_shift,
            start_noise=self.start.noise_std,
            visit_sensitivity=self.visit_shift,
            visit_noise=self.visit.noise_std,
            visits=self.visits + 1,
        )

    @property
    def start_shift(self) -> float:
        """Shift of the start, on its grid if it has one; 0 if both worlds share it."""
        if self.scope != _VIEW:
            return 0.0
        return self.start.shift(self.coordinates)

    @property
    def visit_shift(self) -> float:
        """Shift of a visit, on its grid if it has one."""
        return self.visit.shift(self.coordinates)

    @property
    def secure(self) -> bool:
        """Whether there is noise, and from the operating system."""
        return self.protocol.noise_mode == "secure" and self.charges

    def check_budget(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse a walk that the ledger has no room for; nothing is written."""
        if not 0 < self.mu < math.inf:
            return
        trial = run.ledger.fork()
        for mechanism in self._together():
            trial.charge_owners(
                request.request_id,
                owners_of(request),
                observers_of(run, request),
                mechanism,
                scope=self.scope,
            )

    def _together(self) -> list[Mechanism]:
        """Return few mechanisms that cost as much as all releases together."""
        scale, grid = 1 / self.mu, 2.0**-20
        if self.secure:
            return [
                DiscreteGaussianMechanism(noise_std=scale, grid=grid, sensitivity=1.0)
            ]
        visit = self.visit.mechanism(self.coordinates)
        if isinstance(visit, SampledGaussianMechanism) and self.visits:
            start = [self.start.mechanism(self.coordinates)]
            return start * (self.scope == _VIEW) + [replace(visit, steps=self.visits)]
        return [GaussianMechanism(noise_std=scale, sensitivity=1.0)]

    def certificate(self, run: TrainedRun, request: ForgetRequest) -> Certificate:
        """Return the certificate once the releases are in the ledger.

        Args:
            run: The trained network, with this attempt's ledger.
            request: The resolved request.

        Returns:
            The certificate; epsilon composes all releases of the same owner.
        """
        protocol = self.protocol
        epsilon, curve = self._price(run, request)
        shift = self.start_shift
        together = self.visits > 0 and self.visit_shift > 0
        noise = self.start.noise_std
        hidden = protocol.segment_subsampling is not None and epsilon == self.alone
        if together and not hidden and 0 < self.mu < math.inf:
            shift = shift or self.visit_shift
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
            noise_mode="secure" if self.secure else "simulated",
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
                "the mean of all models that the walk starts from is known from "
                "before the request",
            ),
            notes=(
                *self._notes(run, together),
                *held_multiples(run, self.last, protocol.dissemination, "the model"),
                *fault_notes(run),
                *([NOT_REPEATABLE] if self.secure else []),
            ),
            adaptive=request.adaptive,
        )

    @property
    def curve(self) -> RdpCurve | None:
        """What hidden visits or secure noise cost by Rényi's measure; else None."""
        rate = self.protocol.segment_subsampling
        if not 0 < self.mu < math.inf:
            return None
        if self.secure:
            return self._grid_curve()
        if rate is None:
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

    def _grid_curve(self) -> RdpCurve:
        """Return what all releases on grids cost together."""
        total = RdpCurve.zero()
        for release, shift, times in (
            (self.start, self.start_shift, 1),
            (self.visit, self.visit_shift, self.visits),
        ):
            if shift > 0:
                total += times * curve_of(release.mechanism(self.coordinates))
        return replace(total, description=f"start and {self.visits} visits on grids")

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

    def _price(
        self, run: TrainedRun, request: ForgetRequest
    ) -> tuple[float | None, RdpCurve | None]:
        """Return the certificate's epsilon, and the curve it comes from if any.

        For the published noise it is nominal only.
        """
        if self.protocol.calibration == "lamri_view":
            return self.protocol.epsilon, None
        if self.mu == math.inf:
            return None, None
        curve, alone = self.curve, self.alone
        earlier = any(a.name == EARLIER for a in self.assumptions)
        if curve is not None and not earlier:
            return alone, curve
        spent, total = spent_together(run, request, self.protocol.delta)
        return (spent, total) if spent > alone else (alone, curve or total)

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
        if self.protocol.segment_subsampling is not None and self.curve is not None:
            notes.append(
                f"the start carries noise {self.start_noise:.3g}, each of "
                f"{self.visits} visits {self.visit_noise:.3g}; which of them read "
                "forgotten rows stays hidden"
            )
        elif together:
            notes.append(
                f"the noise shown is that of one release as costly as all: the start "
                f"carries {self.start_noise:.3g}, each of {self.visits} visits "
                f"{self.visit_noise:.3g}"
            )
        return tuple(notes)


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


def _walked(route: Route) -> list[Assumption]:
    """Return what the claim takes of where the token went in a network with faults."""
    if route.faulty is None:
        return []
    return [
        Assumption(
            name="way of the token",
            value=f"{len(route.holders)} hops, {route.faulty.generations} generations",
            source="proven",
            note="who is there, what arrives and where the token turns is drawn "
            "without looking at data; a step done over is a step more, a visit done "
            "over is charged again. The target counts the data of peers that have left "
            "since training",
        )
    ]


def _published(noise: float) -> Assumption:
    return Assumption(
        name="published noise of a visit",
        value=noise,
        source="estimated",
        note="its factor ln(N)/N comes from networks where every peer adds noise; with "
        "noise at the requester alone the steps after a visit may be undone by who "
        "knows them, and the visit then costs its full price",
    )
