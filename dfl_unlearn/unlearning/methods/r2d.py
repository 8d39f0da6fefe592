r"""Rewind-to-delete: back to an earlier state, then training's last steps once more.

Mu and Klabjan (2025), *Rewind-to-delete: certified machine unlearning for nonconvex
functions*. From the state after T - K steps of training, which is kept (or worked out
backwards), the last K steps are taken again on the retained rows, and Gaussian noise
covers how far the end can be from where training without the forgotten rows would have
ended; ``accounting.trajectory`` has that bound.

=========================  =====================================================
symbol                     name here
=========================  =====================================================
K / T, K                   ``rewind``, ``steps``
L, G, mu                   ``smoothness``, ``gradient_bound``, ``strong_convexity``
sigma                      ``noise_std``
theorem 3.1, its h(K)      ``bound="published"``
algorithm 3                ``start="proximal"``
=========================  =====================================================

Deviations [derived]: the default bound is the tight one, which is never larger and
knows convex losses; noise is calibrated by the exact Gaussian mechanism at every
epsilon; momentum, decay, clipping and minibatches of the recorded training are taken
again too, but what the theorem does not cover makes the certificate ``heuristic``. The
constants of published code, from random directions at the last state and from
minibatch gradients, are no bounds: here constants are proven, clipped or given, or
estimated and then said to be so.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.trajectory import Regime, TrajectoryBound
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
)
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.record.plan import RecordPart
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    methods,
    unchanged,
)
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.r2d_claim import (
    certificate_of,
    claim_of,
    exact_of,
    release,
)
from dfl_unlearn.unlearning.r2d_constants import constants_of
from dfl_unlearn.unlearning.r2d_start import PLACE, STATE, start_of
from dfl_unlearn.unlearning.recipe import repeat_training

_UNKNOWN = (
    "no noise was added: no bound on smoothness and gradients is known for this model; "
    "give smoothness and gradient_bound, or safety to have them estimated"
)


@methods.register("r2d")
@dataclass(frozen=True, kw_only=True)
class R2d:
    """Go back some steps, descend again without the rows, add noise; certified.

    Attributes:
        rewind: Share K/T of training to take again, in [0, 1]; 1 is retraining, exact
            and without noise.
        steps: K itself; None goes by ``rewind``. From the nearest kept state before.
        start: ``checkpoint``, or ``proximal``: the last K steps are undone with the
            help of the forgotten rows, so before they are deleted; takes a state
            without noise, and training without momentum and clipping.
        epsilon: Privacy loss of the release; None adds no noise and claims nothing
            (unless ``noise_std`` is given).
        delta: Failure probability of the claim.
        noise_std: The noise itself; the epsilon that it certifies is reported.
        bound: ``tight``, or ``published`` for comparison.
        regime: What the bound takes the loss for; ``auto`` is the tightest one that
            the model's type proves.
        calibration: How noise follows from epsilon; ``classic`` needs epsilon < 1.
        smoothness: L, l2 and weight decay included, if you know it; None is the
            model's own constant, where it has one.
        gradient_bound: G, the norm of a row's gradient, likewise.
        strong_convexity: mu, likewise; 0 says that the loss is convex.
        safety: Factor >= 1 on constants that are estimated where none is known, which
            makes the certificate ``heuristic``; None estimates nothing.
        start_error: Public cap on how far an undone state may be off; the noise covers
            it.
    """

    rewind: float = 0.5
    steps: int | None = None
    start: Literal["checkpoint", "proximal"] = "checkpoint"
    epsilon: float | None = 1.0
    delta: float = 1e-5
    noise_std: float | None = None
    bound: TrajectoryBound = "tight"
    regime: Literal["auto", "nonconvex", "convex", "strongly_convex"] = "auto"
    calibration: Literal["analytic", "classic"] = "analytic"
    smoothness: float | None = None
    gradient_bound: float | None = None
    strong_convexity: float | None = None
    safety: float | None = None
    start_error: float = 1e-6

    claim: ClassVar[Literal["certified"]] = "certified"
    keeps: ClassVar[frozenset[str]] = frozenset({STATE, PLACE})

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InvalidHyperparameterError: If a number is outside its range, or the
                published bound is asked of a convex regime.
        """
        wrong, private = InvalidHyperparameterError, InvalidPrivacyParameterError
        _validate.number(rewind=self.rewind, at_least=0, at_most=1, error=wrong)
        if self.steps is not None:
            _validate.integer(steps=self.steps, at_least=0, error=wrong)
        _validate.one_of(("checkpoint", "proximal"), start=self.start)
        _validate.number(delta=self.delta, above=0, below=1, error=private)
        _validate.one_of(get_args(TrajectoryBound), bound=self.bound)
        _validate.one_of(("auto", *get_args(Regime)), regime=self.regime)
        _validate.one_of(("analytic", "classic"), calibration=self.calibration)
        if self.noise_std is not None:
            _validate.number(noise_std=self.noise_std, above=0, error=private)
        if self.epsilon is not None:
            _validate.number(epsilon=self.epsilon, above=0, error=private)
            if self.noise_std is None:  # refuses classic at epsilon >= 1
                gaussian_noise_std(self.epsilon, self.delta, 1.0, self.calibration)
        for name in ("smoothness", "gradient_bound", "strong_convexity"):
            if getattr(self, name) is not None:
                _validate.number(error=wrong, at_least=0, **{name: getattr(self, name)})
        if self.safety is not None:
            _validate.number(safety=self.safety, at_least=1, error=wrong)
        _validate.number(start_error=self.start_error, above=0, error=wrong)
        if self.bound == "published" and self.regime not in ("auto", "nonconvex"):
            raise InvalidHyperparameterError(
                f"regime: must be 'auto' or 'nonconvex' with bound='published', got "
                f"{self.regime!r}; use bound='tight'"
            )

    @property
    def uses(self) -> frozenset[TaskPart]:
        """Retained rows and the history; to undo steps the forgotten rows too."""
        parts: set[TaskPart] = {"retain_inputs", "retain_labels", "history"}
        if self.start == "proximal":
            parts |= {"forget_inputs", "forget_labels"}
        return frozenset(parts)

    @property
    def needs(self) -> frozenset[RecordPart]:
        """States of training, unless they are worked out backwards."""
        if self.start == "proximal":
            return frozenset()
        return frozenset({"initial_state", "checkpoints"})

    @property
    def claims(self) -> bool:
        """Whether a certificate is asked for."""
        return self.epsilon is not None or self.noise_std is not None

    def rewind_steps(self, steps: int) -> int:
        """Return K for a training of T steps.

        Args:
            steps: T.

        Returns:
            In 0 .. T; a share is rounded up.

        Raises:
            InvalidHyperparameterError: If ``steps`` asks for more than there were.
        """
        if self.steps is None:
            # 0.3 * 10 is 3 steps, whatever the last bit of the product says.
            return min(steps, math.ceil(self.rewind * steps * (1 - 1e-12)))
        if self.steps > steps:
            raise InvalidHyperparameterError(
                f"steps: must be at most the {steps} steps of training, got "
                f"{self.steps}; use rewind=1 to retrain"
            )
        return self.steps

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the last steps were taken again.

        Args:
            task: The task. Where an earlier request was carried out by this method,
                its personal state comes as ``companions``, so that training is always
                taken up from the same state.
            rng: Keys the noise.

        Returns:
            The certificate is ``certified`` where every constant is proven or clipped
            and training was what the bound is about, ``exact`` where all of training
            was repeated, and None without epsilon and noise, or where the budget ended
            the descent. ``personal`` has the state for later requests.
        """
        same = unchanged(self, task)
        if same is not None:
            return same
        history = task.history
        assert history is not None
        wanted = history.steps - self.rewind_steps(history.steps)
        work = LocalWork(task, rng)
        if work.spent():
            return work.outcome(notes=(_stopped(0, wanted, history),))
        start = start_of(self, task, work, rng, wanted)
        if start is None:
            return work.outcome(notes=(_stopped(0, wanted, history),))
        exact = start.step == 0 and start.error == 0
        if self.claims or exact:
            _validate.identifier(request_id=task.request.request_id)
        claim = None
        if self.claims and not exact:
            constants = constants_of(self, task, work, rng)
            if constants is None:
                return work.outcome(notes=(_stopped(0, wanted, history),))
            claim = claim_of(self, task, constants, start)
        work.set(start.params)
        done = repeat_training(work, history, history.batch_rows, first=start.step)
        info = {"rewind_steps": float(history.steps - start.step), **start.info}
        notes = [] if start.step == wanted else [_earlier(start.step, wanted, history)]
        certificate, params = None, work.params
        if not done:
            notes.append(_stopped(work.steps, start.step, history))
        elif exact:
            certificate = exact_of(self, task, start)
        elif claim is not None:
            info["regime"] = claim.regime
            if claim.epsilon is None:
                notes.append(_UNKNOWN)
            else:
                params = release(task, claim, params, rng)
                info |= claim.numbers
            certificate = certificate_of(self, task, claim, start)
        return work.outcome(
            certificate,
            params=params,
            personal=start.personal,
            info=info,
            notes=notes,
        )


def _earlier(step: int, wanted: int, history: LocalHistory) -> str:
    return (
        f"rewound to the state after {step} steps, the nearest one that was kept "
        f"before step {wanted}: {history.steps - step} steps were taken again"
    )


def _stopped(taken: int, first: int, history: LocalHistory) -> str:
    return (
        f"stopped by the budget after {taken} of {history.steps - first} steps: no "
        "noise was added and nothing is claimed"
    )
