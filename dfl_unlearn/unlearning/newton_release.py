r"""The Newton/Fisher release: where the noise goes and what it is calibrated to.

With the public cap :math:`\Delta` on every peer's distance to its target (1 % more for
rounding) and s the noise that (epsilon, delta) asks for at distance 1
(decentralized-certified 3.6):

=======================  =========================  ==============================
placement                noise                      distance of what is seen
=======================  =========================  ==============================
``broadcast_model``      one vector                 :math:`\Delta`, by all together
``broadcast_correction`` one vector, times a_i      :math:`\Delta / a_i`, by one peer
``independent``          one vector per peer        joint :math:`\sqrt N \Delta`,
                                                    of one peer :math:`\Delta`
stack                    one vector of N P numbers  :math:`\Delta`, by all together
=======================  =========================  ==============================

The cap of a stack (``target="dsgd_fixed_point"``) is on the distance of all models at
once, so its release is one vector too. Secure noise lies on a grid of step g: every
distance grows by :math:`g \sqrt P` for the P numbers of a release, and s goes by
Rényi's measure.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.mechanisms import Mechanism
from dfl_unlearn.accounting.rdp import RdpCurve, curve_of
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import multiples
from dfl_unlearn.errors import ResidualExceedsCapError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import observers_of, owners_of
from dfl_unlearn.unlearning.newton_correction import Correction

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

# Share of the cap that is set aside for rounding the released models to their dtype.
ROUNDING_SHARE = 0.01

_SAFE = 1 + 1e-9  # on secure noise, for sums of curves that round up
_EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Which Gaussian releases make up the outcome; from public numbers alone.

    Attributes:
        release: One of them, with its noise.
        count: How many there are, all alike and independent.
        seen: How many of them the claim's observer sees.
        coordinates: Numbers in each.
    """

    release: GaussianRelease
    count: int
    seen: int
    coordinates: int

    @classmethod
    def of(
        cls,
        protocol: "NewtonFisher",
        peers: int,
        size: int,
        least_weight: float = 1.0,
        *,
        measured: float | None = None,
    ) -> "ReleasePlan":
        """Return the plan of a protocol.

        Args:
            protocol: Its fields.
            peers: N.
            size: P, the numbers of one model.
            least_weight: Smallest influence weight, for ``broadcast_correction``; the
                noise over the sensitivity does not depend on it.
            measured: The measured bound, for ``calibration="oracle_residual"``; None
                where only the cost is asked, which does not depend on it.

        Returns:
            The plan.
        """
        one, method = protocol.residual_cap * (1 + ROUNDING_SHARE), protocol.calibration
        if method == "oracle_residual":
            one, method = (one if measured is None else measured), "analytic"
        count = seen = 1
        if protocol.noise_placement == "broadcast_correction":
            one = one / least_weight
        elif protocol.noise_placement == "independent" and not protocol.stacked:
            count = peers
            seen = peers if protocol.scope == "joint" else 1
        coordinates = peers * size if protocol.stacked else size
        if protocol.noise_mode == "secure":
            scale = gaussian_noise_std(protocol.epsilon, protocol.delta, 1.0, "rdp")
            release = GaussianRelease.on_grid(
                sensitivity=one,
                noise_multiplier=scale * math.sqrt(seen) * _SAFE,
                coordinates=coordinates,
            )
        else:
            noise_std = gaussian_noise_std(
                protocol.epsilon, protocol.delta, one * math.sqrt(seen), method
            )
            release = GaussianRelease(sensitivity=one, noise_std=noise_std)
        return cls(release=release, count=count, seen=seen, coordinates=coordinates)

    @property
    def mechanism(self) -> Mechanism:
        """What one release costs."""
        return self.release.mechanism(self.coordinates)

    @property
    def sensitivity(self) -> float:
        """Shift of all that the claim's observer sees, for this noise."""
        return self.release.shift(self.coordinates) * math.sqrt(self.seen)

    @property
    def curve(self) -> RdpCurve | None:
        """What the claim's observer sees by Rényi's measure; None for plain noise."""
        if self.release.grid is None:
            return None
        return self.seen * curve_of(self.mechanism)


def released_rows(
    plan: ReleasePlan,
    protocol: "NewtonFisher",
    run: TrainedRun,
    request: ForgetRequest,
    correction: Correction,
    rng: RngTree,
    *,
    status: str,
    assumptions: tuple[str, ...],
) -> Tensor:
    """Charge the ledger, add the noise, and return every peer's model.

    Args:
        plan: The releases.
        protocol: Its fields.
        run: The trained network, with this attempt's ledger.
        request: The resolved request.
        correction: The models before the noise.
        rng: The run's draws.
        status: Of the certificate.
        assumptions: Names of what the claim rests on.

    Returns:
        Shape ``(N, P)``, float64.
    """

    def release(value: Tensor) -> Tensor:
        return plan.release(
            value,
            ledger=run.ledger,
            request_id=request.request_id,
            owner=owners_of(request),
            observers=observers_of(run, request),
            rng=rng,
            scope=protocol.scope,
            group_size=request.size(run.data) if protocol.disclose_m else None,
            status=status,
            assumptions=assumptions,
        )

    rows = correction.rows
    if protocol.noise_placement == "broadcast_model":
        held = multiples(run.topology, request.requester, protocol.dissemination)
        return torch.from_numpy(held)[:, None] * release(rows[0])
    if protocol.noise_placement == "broadcast_correction":
        assert correction.move is not None
        noised = release(correction.move)
        weights = torch.from_numpy(correction.weights)[:, None]
        return correction.models + weights * noised
    if protocol.stacked:
        return release(rows)
    return torch.stack([release(row) for row in rows])


def rounding_of(
    protocol: "NewtonFisher", run: TrainedRun, correction: Correction
) -> float:
    """Return how far rounding to the dtype may move a model (a stack: all).

    Args:
        protocol: Its fields.
        run: Gives the dtype.
        correction: The models before the noise.
    """
    norms = correction.rows.norm(dim=1)
    size = float(norms.norm() if protocol.stacked else norms.max())
    return 2 * _EPS[run.state.params.dtype] * size


def bound_of(
    protocol: "NewtonFisher", correction: Correction, rounding: float
) -> Literal["capped", "a_posteriori", "none"]:
    """Return how far the measured distance carries a claim.

    Args:
        protocol: Its fields.
        correction: The models before the noise, and their distance to the target.
        rounding: How far rounding may move a released model.

    Returns:
        ``capped``: it is within the public cap that the noise goes by;
        ``a_posteriori``: the noise goes by the distance itself; ``none``: there is no
        bound, or it is above the cap.
    """
    slack = ROUNDING_SHARE * protocol.residual_cap
    if not (correction.distance <= protocol.residual_cap and rounding <= slack):
        return "none"
    return "a_posteriori" if protocol.calibration == "oracle_residual" else "capped"


def check_residual(
    protocol: "NewtonFisher", run: TrainedRun, correction: Correction, rounding: float
) -> None:
    """Refuse a bound above the cap, before anything is charged or released.

    Args:
        protocol: Its fields.
        run: The trained network.
        correction: The models before the noise, and their distance to the target.
        rounding: How far rounding may move a released model.

    Raises:
        ResidualExceedsCapError: If the cap is not met.
    """
    if correction.distance == math.inf or protocol.assume_stationary:
        return  # no bound, or one that only decides what the certificate says
    if not correction.distance <= protocol.residual_cap:
        spread = (
            "; that includes how far the peers' models lie apart"
            if protocol.noise_placement != "broadcast_model" and not protocol.stacked
            else ""
        )
        if protocol.alone:
            raise ResidualExceedsCapError(
                f"residual_cap: the corrected model is only known to lie within "
                f"{correction.distance:.3g} of the exact minimizer without the data, "
                f"above the cap {protocol.residual_cap:g}; nothing was sent: set a "
                "larger residual_cap, train for more rounds or with a falling "
                "learning rate, or retrain"
            )
        raise ResidualExceedsCapError(
            f"residual_cap: the distance to the exact target is bounded by "
            f"{correction.distance:.3g} after {len(correction.residuals) - 1} "
            f"corrections, above the cap {protocol.residual_cap:g}{spread}; nothing "
            "was sent: raise newton_steps_max or residual_cap, use "
            "curvature='exact_cg' and noise_placement='broadcast_model', or retrain"
        )
    slack = ROUNDING_SHARE * protocol.residual_cap
    if not rounding <= slack:
        raise ResidualExceedsCapError(
            f"residual_cap: rounding the released model to "
            f"{run.state.params.dtype} may move it by {rounding:.3g}, above the "
            f"{slack:.3g} set aside (1 % of the cap); nothing was sent: raise "
            "residual_cap or train in float64"
        )
