r"""How far a correction can be off, told before it is taken.

With :math:`F^-` :math:`\lambda`-strongly convex and its Hessian M-Lipschitz, one Newton
step from :math:`\hat\theta`, solved exactly, ends within
:math:`M \|\nabla F^-(\hat\theta)\|^2 / (2 \lambda^3)` of the minimizer
(decentralized-certified 3.5 items 1-5, [derived]). Public numbers bound the gradient:

.. math:: g_{max} = \min(\kappa\tau + L \sum_z |c_z|
          + (\kappa - 1) \lambda \|\hat\theta\|,\; L + \lambda \|\hat\theta\|)

with :math:`\tau` the gradient norm that training recorded, L the bound on every
sample's gradient and :math:`c_z, \kappa` as in ``unlearning.shift``. A curvature other
than the exact one, but at least :math:`\lambda` as well, adds
:math:`g_{max}/\lambda`; damping :math:`\gamma` of the exact one adds
:math:`\gamma g_{max} / (\lambda (\lambda + \gamma))`.

These bounds are often vacuous, and nothing rests on them: the noise goes by the public
cap, and the cap is compared with the distance measured **after** the correction. They
are printed so that a reader sees how much is owed to the measurement.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.unlearning.newton_correction import Correction, starting_models
from dfl_unlearn.unlearning.shift import Removal

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher

_UNKNOWN = "bound before the correction: none is known "


@dataclass(frozen=True, kw_only=True)
class PriorBound:
    """What public numbers say of the corrected model before it is computed.

    Attributes:
        gradient: gmax, on the gradient of what is kept at the mean model; inf where
            the loss has no bound on its samples' gradients.
        shift: On the distance of the uncorrected mean model, ``gradient / lambda``.
        newton: On the distance after one step, solved exactly.
        curvature: What curvature other than the exact one may add.
        sentence: All of it with every constant's source, for the certificate.
    """

    gradient: float
    shift: float
    newton: float
    curvature: float
    sentence: str

    @property
    def total(self) -> float:
        """Delta_pri: Newton's part and the curvature's."""
        return self.newton + self.curvature

    @property
    def numbers(self) -> dict[str, float]:
        """What is finite of it, by the name that an outcome's info gives it."""
        found = {"prior_shift_bound": self.shift, "prior_bound": self.total}
        return {name: value for name, value in found.items() if value < math.inf}


def bounds_told(
    prior: PriorBound, correction: Correction, run: TrainedRun
) -> tuple[str, ...]:
    """Return what a certificate says of the bounds before and after.

    Args:
        prior: The bound before the correction.
        correction: Its residuals, where they were summed over all peers.
        run: Gives lambda.

    Returns:
        One or two sentences.
    """
    if correction.move is None or not correction.summed:
        return (prior.sentence,)
    first, last = correction.residuals[0], correction.residuals[-1]
    return (
        prior.sentence,
        f"|grad F-| / lambda was {first / run.model.l2:.7g} at the mean model "
        f"before the correction and {last / run.model.l2:.6g} after it, both measured "
        "by sums over all peers",
    )


def prior_bound(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest
) -> PriorBound:
    """Return the bound of a correction of the mean model before it is taken.

    Args:
        protocol: Its fields.
        run: The trained network.
        request: The resolved request.

    Returns:
        The bound; all inf, with the reason as the sentence, where none is known.
    """
    model = run.model
    if run.config.faults:
        return _nothing("in a network with faults: it rests on what training recorded")
    if not (model.convex and model.l2 > 0):
        return _nothing("for a model that is not strongly convex")
    if protocol.stacked:
        return _nothing("for the stack (training records no residual of it)")
    bias = any(name.endswith("bias") for name in model.segments)
    radius, public = run.data.input_radius(bias=bias)
    constants = dict(model.constants(radius))
    change = float(constants["hessian_lipschitz"].value)
    gradient, removed, parts = _gradient(protocol, run, request, radius)
    origin = "the public range of the features" if public else "the stored rows"
    parts += f"; B = {radius:.6g} from {origin}"
    if protocol.alone:
        return _alone(protocol, run, gradient, removed, parts)
    newton = 0.0 if change == 0 else change / (2 * model.l2**3) * gradient**2
    factor = _curvature(protocol, model.l2)
    extra = factor * gradient if factor else 0.0
    total = newton + extra
    verdict = _verdict(total, protocol.residual_cap)
    added = " + what the curvature is off by" if extra else ""
    return PriorBound(
        gradient=gradient,
        shift=gradient / model.l2,
        newton=newton,
        curvature=extra,
        sentence="bound before the correction, on which nothing rests: Delta_pri = M "
        f"gmax^2 / (2 lambda^3){added} = {verdict} after one step solved exactly; "
        f"lambda = {model.l2:g} (l2, proven), M = {change:.6g} ({model.loss_name}, "
        f"proven for B), beta = {float(constants['smoothness'].value):.6g} (likewise), "
        f"gmax = {gradient:.6g} ({parts})",
    )


def _gradient(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest, radius: float
) -> tuple[float, float, str]:
    """Return gmax, its part that is removed, and how they were got."""
    model, theta = run.model, starting_models(protocol, run).mean(0)
    found = dict(model.constants(radius)).get("gradient_bound")
    if found is None:
        return (
            math.inf,
            math.inf,
            "L is unknown: parameters and labels have no public bound",
        )
    size = model.l2 * float(theta.norm())
    slope = float(found.value)
    anywhere = slope + size
    tau = (
        math.inf
        if run.record is None
        else run.record.training_residual.get(run.state.round, math.inf)
    )
    removal = Removal.of(run.data, request, run.config.peer_weighting)
    taken = removal.worst(run.data, request, slope)
    near = removal.kappa * tau + taken + (removal.kappa - 1) * size
    if anywhere < near and not protocol.alone:
        return anywhere, taken, f"L + lambda |theta|, L = {slope:.6g} (proven for B)"
    taken += (removal.kappa - 1) * size
    return (
        near,
        taken,
        (
            f"kappa tau + what is removed, tau = {tau:.3g} (recorded in training), "
            f"removed {taken:.6g}, L = {slope:.6g} (proven for B)"
        ),
    )


def _alone(
    protocol: "NewtonFisher",
    run: TrainedRun,
    gradient: float,
    removed: float,
    parts: str,
) -> PriorBound:
    """Return the bound of a requester that corrects without a message."""
    l2 = run.model.l2
    total = (gradient - removed / 2) / l2 if gradient < math.inf else math.inf
    verdict = _verdict(total, protocol.residual_cap)
    return PriorBound(
        gradient=gradient,
        shift=gradient / l2,
        newton=total,
        curvature=0.0,
        sentence="bound before the correction, on which nothing rests: Delta_pri = "
        f"(gmax - removed / 2) / lambda = {verdict} with one owner; lambda = {l2:g} "
        f"(l2, proven), gmax = {gradient:.6g} ({parts})",
    )


def _verdict(total: float, cap: float) -> str:
    """Return a bound in words."""
    if not math.isfinite(total):
        return "none, since L is unknown"
    return f"{total:.6g}" + (" (vacuous: above the cap)" if total > cap else "")


def _curvature(protocol: "NewtonFisher", l2: float) -> float:
    """Return a bound on how far the inverse curvature is from the exact one."""
    if protocol.curvature == "exact_cg":
        return protocol.damping / (l2 * (l2 + protocol.damping))
    if protocol.sparsify is not None:  # dropped entries are the damping alone
        return 1 / min(l2, protocol.damping)
    # Lissa's series over changing rows is no symmetric matrix; its norm is bounded.
    return (2 if protocol.curvature == "lissa" else 1) / l2


def _nothing(why: str) -> PriorBound:
    return PriorBound(
        gradient=math.inf,
        shift=math.inf,
        newton=math.inf,
        curvature=math.inf,
        sentence=_UNKNOWN + why,
    )
