"""The claim of rewinding: conditions, the release, the certificate.

What the trajectory bound is worth is decided before the release is charged, so that the
ledger's entry says what it rests on.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dfl_unlearn.accounting.certificate import (
    Assumption,
    Certificate,
    certify,
    status_of,
)
from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.accounting.trajectory import Regime, trajectory_sensitivity
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    NumericalError,
    SensitivityUnprovenError,
)
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalTask, exact_certificate, methods
from dfl_unlearn.unlearning.r2d_constants import Constants
from dfl_unlearn.unlearning.r2d_rounding import rounding_of_training
from dfl_unlearn.unlearning.r2d_start import Start

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.methods.r2d import R2d


def conditions(history: LocalHistory, start: Start) -> list[Assumption]:
    """Return what the trajectory bound asks of training and of the start."""
    full = history.batch_size is None or history.batch_size >= history.samples
    asked = (
        ("batches", full, "all rows", f"{history.batch_size} rows, drawn"),
        (
            "learning rate",
            history.lr_schedule == "constant",
            "constant",
            f"{history.lr_schedule}; the bound takes the largest one",
        ),
        (
            "momentum",
            history.momentum == 0,
            "none",
            f"{history.momentum:g}, begun anew at the start",
        ),
        (
            "trajectory",
            not history.gossip,
            "descent on the peer's own rows",
            "mixed with neighbours' models",
        ),
        (
            "training noise",
            not history.private,
            "none",
            "in the steps of training, not in those taken again",
        ),
    )
    return [
        *(
            Assumption(
                name=name,
                value=good if held else bad,
                source="proven",
                state="held" if held else "violated",
                note="by the record of training",
            )
            for name, held, good, bad in asked
        ),
        start.source,
    ]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the release may say, read before it is charged.

    Attributes:
        sensitivity: Delta; NaN where no bound follows.
        noise_std: 0 where no noise is added.
        epsilon: What the noise gives, or None.
        regime: How the loss was taken.
        assumptions: Every constant and condition.
    """

    sensitivity: float
    noise_std: float
    epsilon: float | None
    regime: Regime
    assumptions: list[Assumption]

    @property
    def numbers(self) -> dict[str, float]:
        """What an outcome's info says of it."""
        assert self.epsilon is not None
        return {
            "sensitivity": self.sensitivity,
            "noise_std": self.noise_std,
            "epsilon": self.epsilon,
        }


def claim_of(
    method: "R2d", task: LocalTask[TensorBatch], constants: Constants, start: Start
) -> Claim:
    """Return sensitivity, noise and epsilon of a rewound model.

    Args:
        method: Its fields; an epsilon or a noise is asked for.
        task: The task.
        constants: What is known of the loss.
        start: Where training was taken up.

    Returns:
        The claim; without constants no sensitivity, noise or epsilon.

    Raises:
        SensitivityUnprovenError: If a noise was given and no bound is known that says
            what it is worth.
        InvalidHyperparameterError: If strong convexity is asked for without mu.
        NumericalError: If the bound, or what it asks for, does not fit a float.
    """
    history = task.history
    assert history is not None
    rate = float(history.rates.max())
    regime = constants.regime(method, rate)
    assumptions = [
        *constants.assumptions(regime),
        *conditions(history, start),
        *task.conditions,
    ]
    smooth, slope = constants.smoothness, constants.gradient_bound
    if smooth is None or slope is None:
        if method.noise_std is not None:
            raise SensitivityUnprovenError(
                f"noise_std: must come with bounds on smoothness and gradients, got "
                f"{method.noise_std:g} and none for this model; give smoothness and "
                "gradient_bound, or safety to have them estimated"
            )
        return Claim(
            sensitivity=math.nan,
            noise_std=0.0,
            epsilon=None,
            regime=regime,
            assumptions=assumptions,
        )
    mu = constants.strong_convexity
    if regime == "strongly_convex" and (mu is None or float(mu.value) == 0):
        raise InvalidHyperparameterError(
            "strong_convexity: must be above 0 for regime='strongly_convex', got "
            f"{None if mu is None else mu.value}; give it, or use regime='auto'"
        )
    sensitivity = trajectory_sensitivity(
        rewind_steps=history.steps - start.step,
        steps=history.steps,
        learning_rate=rate,
        smoothness=float(smooth.value),
        gradient_bound=float(slope.value),
        forget=history.samples - task.retain_size,
        samples=history.samples,
        regime=regime,
        strong_convexity=0.0 if regime != "strongly_convex" else _value(mu),
        bound=method.bound,
        start_error=start.error,
    )
    rounding = rounding_of_training(
        model=task.model,
        dtype=task.params.dtype,
        start_norm=_start_norm(history, start),
        steps=history.steps,
        learning_rate=rate,
        smoothness=_value(smooth),
        gradient_bound=_value(slope),
        rows=history.samples,
        decay=task.model.l2 + history.weight_decay,
        clipped=history.clip_norm is not None,
        regime=regime,
        strong_convexity=0.0 if regime != "strongly_convex" else _value(mu),
    )
    sensitivity, rounded = rounding.covered(sensitivity)
    noise_std, epsilon = _noise(method, history, sensitivity, _value(smooth), rate)
    assumptions += [*rounded, *rounding.beside(noise_std)]
    return Claim(
        sensitivity=sensitivity,
        noise_std=noise_std,
        epsilon=epsilon,
        regime=regime,
        assumptions=assumptions,
    )


def _start_norm(history: LocalHistory, start: Start) -> float:
    """Return the norm of training's first state; of the earliest one that is left."""
    if history.start_norm is not None:
        return history.start_norm
    first = history.checkpoints.get(0, start.params)
    return float(first.double().norm())


def _value(constant: Assumption | None) -> float:
    assert constant is not None
    return float(constant.value)


def _noise(
    method: "R2d",
    history: LocalHistory,
    sensitivity: float,
    smoothness: float,
    rate: float,
) -> tuple[float, float]:
    """Return the noise and the epsilon that go with a sensitivity.

    Raises:
        NumericalError: If they are not finite.
    """
    std, epsilon = math.inf, method.epsilon
    if math.isfinite(sensitivity):
        if method.noise_std is not None:
            std = method.noise_std
            epsilon = gaussian_epsilon(sensitivity / std, method.delta)
        else:
            assert epsilon is not None
            std = gaussian_noise_std(
                epsilon, method.delta, sensitivity, method.calibration
            )
    assert epsilon is not None
    if not math.isfinite(std) or not math.isfinite(epsilon):
        raise NumericalError(
            f"sensitivity: must be finite, got {sensitivity:g} for eta L T = "
            f"{rate * smoothness * history.steps:.4g}; rewind all of training "
            "(rewind=1), or use epsilon=None for no noise and no claim"
        )
    return std, epsilon


def release(
    task: LocalTask[TensorBatch], claim: Claim, params: Tensor, rng: RngTree
) -> Tensor:
    """Return the parameters with the claim's noise, charged and committed.

    Args:
        task: Gives the ledger.
        claim: What goes with it.
        params: Before the noise, shape ``(P,)``.
        rng: Keys the noise.

    Returns:
        Shape ``(P,)``.
    """
    request = task.request
    noised = GaussianRelease(sensitivity=claim.sensitivity, noise_std=claim.noise_std)(
        params,
        ledger=task.ledger,
        request_id=request.request_id,
        owner=f"peer:{task.peer}",
        observers=("public",),
        rng=rng,
        group_size=task.forget_size,
        scope="release",
        status=status_of(claim.assumptions, adaptive=request.adaptive),
        assumptions=tuple(each.name for each in claim.assumptions),
    )
    task.ledger.commit(request.request_id)
    return noised


def certificate_of(
    method: "R2d", task: LocalTask[TensorBatch], claim: Claim, start: Start
) -> Certificate:
    """Return the certificate after the release was charged.

    Args:
        method: Its fields.
        task: The task.
        claim: What ``claim_of`` gave.
        start: Where training was taken up.

    Returns:
        ``certified`` where every constant is proven or clipped and every condition
        holds; without constants ``heuristic``, and no epsilon would follow.
    """
    known = claim.epsilon is not None
    return certify(
        method=methods.name_of(method),
        request_id=task.request.request_id,
        group_size=task.forget_size,
        scope="release",
        epsilon=claim.epsilon,
        delta=method.delta if known else None,
        sensitivity=claim.sensitivity if known else 0.0,
        bound="trajectory" if known else "none",
        noise_std=claim.noise_std,
        accountant="exact_gaussian" if known else "none",
        assumptions=claim.assumptions,
        observers=("public",),
        exposure=_exposure(start),
        notes=(
            "compares with retraining on what is kept from training's own start, for "
            "as many steps and with the same noise",
            "how many rows there were and how many are gone, which the noise goes by, "
            "is taken as public",
        ),
        adaptive=task.request.adaptive,
    )


def exact_of(method: "R2d", task: LocalTask[TensorBatch], start: Start) -> Certificate:
    """Return the certificate of a training that was repeated from its start."""
    history = task.history
    assert history is not None
    broken = [each for each in conditions(history, start) if each.name in _NOT_REPEATED]
    return exact_certificate(
        methods.name_of(method),
        task,
        Assumption(
            name="training data",
            value="retained rows only",
            source="proven",
            note="all steps again from training's own start, in the batches that "
            "training drew; forgotten rows' places stay empty",
        ),
        *(each for each in broken if each.state == "violated"),
    )


_NOT_REPEATED = ("trajectory", "training noise")


def _exposure(start: Start) -> tuple[str, ...]:
    """Return what the definition leaves out, beyond what every certificate says."""
    kept = (
        f"the state after {start.step} steps of training, which the forgotten rows "
        "went into, stays with the peer as secret state, for later requests"
    )
    simulator = (
        "info of an outcome whose start was worked out backwards, and whether its cap "
        "was kept, depend on the forgotten rows and carry no noise: they are for the "
        "simulator, not for release"
    )
    return (
        *([kept] if start.step else []),
        *([simulator] if start.info else []),
        "who holds the model released before the request has both; no bound is about "
        "the two together",
        "several requests: each certificate stands alone, against retraining on what "
        "was retained at its time",
        "the number of steps of training counts as fixed in advance: choosing it by "
        "data that the forgotten rows are part of is not covered",
    )
