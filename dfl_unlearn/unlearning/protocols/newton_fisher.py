r"""Newton/Fisher correction with calibrated noise, handed to all peers.

A rigorous reconstruction after Wu, Tao, Zhou, Chen, Dressler and Yu, *Certified
Unlearning in Decentralized Federated Learning* (arXiv 2601.06436, 2026), whose theorems
and constants were not available; the derivation is decentralized-certified 3.3-3.7
([derived] there).

==============================  ==================================================
symbol                          name here
==============================  ==================================================
:math:`F^-`                     ``network_objective`` of the retained data
:math:`\hat\theta = \bar x`     mean of the peers' models
:math:`\tilde\theta`            the corrected model
:math:`a_i`                     ``influence_weights``
:math:`\lambda`                 ``model.l2``
:math:`\Delta_{max}`            ``residual_cap``
:math:`\sigma`                  ``noise_std``
==============================  ==================================================

Steps: correct the average model by Newton steps on :math:`F^-` (or the stack of all
models towards where D-SGD itself would rest, ``target="dsgd_fixed_point"``) until a
bound on the distance to the target is at most a **public** cap; add Gaussian noise
calibrated to the cap (never to the measured bound, which depends on the forgotten
data); hand it to everybody; train a few more rounds on retained data.

The claim compares with the exact target plus the same noise (and the same
post-processing), not with a finite retraining run.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import status_of
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Dissemination, Transport
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    ResidualExceedsCapError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import observers_of, owners_of, refuse_single
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.fixed_point import FixedPoint
from dfl_unlearn.unlearning.influence_weights import InfluenceWeights, check_weights
from dfl_unlearn.unlearning.newton_claim import assumptions_of, certificate_of
from dfl_unlearn.unlearning.newton_correction import (
    Correction,
    correct_mean,
    correct_stack,
    proves,
)
from dfl_unlearn.unlearning.newton_release import (
    ROUNDING_SHARE,
    ReleasePlan,
    released_rows,
)
from dfl_unlearn.unlearning.retained import network_objective

Target = Literal["consensus", "dsgd_fixed_point"]
Curvature = Literal["exact_cg", "diag_fisher", "linearized_gossip"]
NoisePlacement = Literal["broadcast_model", "broadcast_correction", "independent"]

_EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


@protocols.register("newton-fisher")
@dataclass(frozen=True, kw_only=True)
class NewtonFisher:
    """Newton correction of all peers' models, released with calibrated noise.

    Certified for strongly convex models (linear and logistic with l2 > 0); on networks
    the same steps give a ``heuristic`` result, whose numbers are nominal only.

    Attributes:
        epsilon: Privacy loss of the release.
        delta: Failure probability of the claim.
        scope: ``joint``: an observer of all peers' final models; ``release``: of one.
        target: ``consensus``: the minimizer of the network's objective, for all peers;
            ``dsgd_fixed_point``: where D-SGD itself would rest, a model per peer (for
            full-batch cta with one local step and a constant rate; with
            ``curvature="linearized_gossip"`` and ``noise_placement="independent"``).
        curvature: ``exact_cg``: conjugate gradients on exact Hessian products;
            ``diag_fisher``: the diagonal of the Fisher information;
            ``linearized_gossip``: exact, by messages to neighbours alone.
        damping: Added to the curvature's diagonal. Networks need some: 0.1 to 1 kept
            a perceptron on digits within five points of retraining, 0.01 did not.
        sparsify: Share of the Fisher diagonal that is kept, the largest entries; the
            others become ``damping``. None keeps all.
        newton_steps: Corrections taken at least.
        newton_steps_max: Corrections taken at most to get under the cap.
        residual_cap: Public cap on the distance of every peer's model to its target
            (in parameter units; for ``dsgd_fixed_point`` of all at once); the noise is
            calibrated to it.
        assume_stationary: Take only the removed data's gradient, as if training had
            converged; costs no communication, proves nothing.
        influence_weights: Part of the mean model's correction that each peer takes,
            where peers keep models of their own: ``resolvent``, ``uniform``,
            ``empirical`` or ``exact``; see ``unlearning.influence_weights``.
        noise_placement: ``broadcast_model``: all peers take one noised model;
            ``broadcast_correction``: each adds its multiple of one noised correction
            (scope ``release`` only); ``independent``: each adds its part and noise of
            its own.
        dissemination: ``tree`` (N-1 messages) or ``flood`` (2|E|-N+1).
        recovery_rounds: Rounds of ordinary training on retained data afterwards; free
            post-processing only where all models together are covered.
        disclose_m: Whether the certificate names the number of forgotten rows.
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    scope: Literal["joint", "release"] = "joint"
    target: Target = "consensus"
    curvature: Curvature = "exact_cg"
    damping: float = 0.0
    sparsify: float | None = None
    newton_steps: int = 1
    newton_steps_max: int = 10
    residual_cap: float = 1e-3
    assume_stationary: bool = False
    influence_weights: InfluenceWeights = "resolvent"
    noise_placement: NoisePlacement = "broadcast_model"
    dissemination: Dissemination = "tree"
    recovery_rounds: int = 1
    disclose_m: bool = False

    claim: ClassVar[Literal["certified"]] = "certified"

    def __post_init__(self) -> None:
        """Check the fields, each alone and then together."""
        wrong = InvalidHyperparameterError
        _validate.number(
            epsilon=self.epsilon, above=0, error=InvalidPrivacyParameterError
        )
        _validate.number(
            delta=self.delta, above=0, below=1, error=InvalidPrivacyParameterError
        )
        for name, kind in (
            ("scope", Literal["joint", "release"]),
            ("target", Target),
            ("curvature", Curvature),
            ("influence_weights", InfluenceWeights),
            ("noise_placement", NoisePlacement),
            ("dissemination", Dissemination),
        ):
            _validate.one_of(get_args(kind), **{name: getattr(self, name)})
        _validate.number(damping=self.damping, at_least=0, error=wrong)
        if self.sparsify is not None:
            _validate.number(sparsify=self.sparsify, above=0, at_most=1, error=wrong)
        _validate.integer(newton_steps=self.newton_steps, at_least=1, error=wrong)
        _validate.integer(
            newton_steps_max=self.newton_steps_max,
            at_least=self.newton_steps,
            error=wrong,
        )
        _validate.number(residual_cap=self.residual_cap, above=0, error=wrong)
        _validate.of_type(
            bool, assume_stationary=self.assume_stationary, disclose_m=self.disclose_m
        )
        _validate.integer(recovery_rounds=self.recovery_rounds, at_least=0, error=wrong)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            InvalidHyperparameterError: Naming one field and what it must be.
        """
        stacked = {
            "curvature": "linearized_gossip",
            "noise_placement": "independent",
            "assume_stationary": False,
            "damping": 0.0,
        }
        for name, needed in stacked.items() if self.stacked else ():
            if getattr(self, name) != needed:
                raise InvalidHyperparameterError(
                    f"{name}: must be {needed!r} with target='dsgd_fixed_point', got "
                    f"{getattr(self, name)!r}; set it or use target='consensus'"
                )
        if self.curvature == "linearized_gossip" and not self.stacked:
            raise InvalidHyperparameterError(
                "curvature: must be 'exact_cg' or 'diag_fisher' with "
                "target='consensus', got 'linearized_gossip'; it solves for "
                "target='dsgd_fixed_point'"
            )
        if self.sparsify is not None and (
            self.curvature != "diag_fisher" or not self.damping > 0
        ):
            raise InvalidHyperparameterError(
                "sparsify: must be None unless curvature='diag_fisher' and damping > "
                f"0, got {self.sparsify:g} with curvature={self.curvature!r} and "
                f"damping={self.damping:g}; dropped entries become the damping"
            )
        if self.noise_placement == "broadcast_correction" and self.scope == "joint":
            raise InvalidHyperparameterError(
                "scope: must be 'release' with noise_placement='broadcast_correction', "
                "got 'joint'; the differences of two peers' models carry no noise "
                "there: use 'broadcast_model' or 'independent' for a joint claim"
            )

    @property
    def stacked(self) -> bool:
        """Whether every peer has a target of its own."""
        return self.target == "dsgd_fixed_point"

    @classmethod
    def preset(cls, name: str) -> "NewtonFisher":
        """Return a named choice of fields.

        Args:
            name: ``rigorous``: the defaults. ``wu2026``: as far as it is known, the
                protocol of the source: the removed data's gradient alone, a sparsified
                Fisher diagonal, even weights, one noise vector on a correction that is
                flooded, one round of training after; always ``heuristic``. Its share
                of kept entries and damping are ours.

        Returns:
            The protocol.
        """
        _validate.one_of(("rigorous", "wu2026"), preset=name)
        if name == "rigorous":
            return cls()
        return cls(
            scope="release",
            curvature="diag_fisher",
            damping=0.1,
            sparsify=0.5,
            assume_stationary=True,
            influence_weights="uniform",
            noise_placement="broadcast_correction",
            dissemination="flood",
        )

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse what cannot work, and a release that the budget has no room for.

        Args:
            run: The trained network.
            request: The resolved request.
        """
        refuse_single(run, "newton-fisher")
        if self.stacked:
            FixedPoint(run, run.data.without(request))
        elif self.noise_placement != "broadcast_model":
            for owner in request.peers:
                check_weights(self.influence_weights, run, owner)
        # What the release costs is public and known now: a copy of the ledger refuses
        # before anything is computed or sent.
        plan, trial = ReleasePlan.of(self, run.topology.n), run.ledger.fork()
        for _ in range(plan.count):
            trial.charge_owners(
                request.request_id,
                owners_of(request),
                observers_of(run, request),
                plan.mechanism,
                scope=self.scope,
            )

    def predicted_shift(self, run: TrainedRun, request: ForgetRequest) -> float:
        """Return the public shift that the noise will be calibrated to."""
        return ReleasePlan.of(self, run.topology.n).sensitivity

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Correct the models, release them with noise, overwrite every peer.

        Args:
            run: The trained network.
            request: The resolved request.
            rng: The run's draws.

        Returns:
            The outcome; its certificate lists every constant and its origin.

        Raises:
            ResidualExceedsCapError: If the cap is missed; nothing was released then.
        """
        data, transport = run.data.without(request), run.transport()
        kept = network_objective(run, data)
        correction = (
            correct_stack(self, run, data, request, transport)
            if self.stacked
            else correct_mean(self, run, kept, request, rng, transport)
        )
        rounding = self._rounding(run, correction)
        self._check_residual(run, correction, rounding)
        assumptions = assumptions_of(self, run, request, correction, rounding)
        plan = ReleasePlan.of(self, run.topology.n, float(correction.weights.min()))
        rows = released_rows(
            plan,
            self,
            run,
            request,
            correction,
            rng,
            status=status_of(assumptions, adaptive=request.adaptive),
            assumptions=tuple(a.name for a in assumptions),
        )
        self._disseminate(run, request, transport)
        transport.correct()
        run.ledger.commit(request.request_id)

        dtype = run.state.params.dtype
        released = PeerState(params=rows.to(dtype).clone(), round=run.state.round)
        state, gradients = continue_training(run, data, released, self.recovery_rounds)
        for _ in range(self.recovery_rounds):
            transport.exchange("recovery", run.model.size * dtype.itemsize)
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=certificate_of(self, run, request, assumptions, plan),
            cost=Cost(
                rounds=self.recovery_rounds,
                sample_gradients=gradients + correction.sample_gradients,
                hvps=correction.hvps,
                solver_iterations=correction.solver_iterations,
            ),
            ledger=run.ledger,
            messages=transport.log,
            trace={
                "gradient_norm": np.array(correction.residuals),
                "solver_residual": np.array(correction.solver_residuals),
            },
            info=self._info(run, correction, rows, plan, kept.rows),
        )

    def _disseminate(
        self, run: TrainedRun, request: ForgetRequest, transport: Transport
    ) -> None:
        """Count the messages that carry the correction to all peers."""
        if self.stacked:
            return  # every peer made its own
        kind, number = {
            "broadcast_model": ("noised model", run.state.params.element_size()),
            "broadcast_correction": ("noised correction", 8),
            "independent": ("correction", 8),
        }[self.noise_placement]
        transport.broadcast(
            request.requester, kind, run.model.size * number, self.dissemination
        )

    def _info(
        self,
        run: TrainedRun,
        correction: Correction,
        rows: Tensor,
        plan: ReleasePlan,
        retained: int,
    ) -> dict[str, float | str]:
        """Return sizes for readers, per peer (root mean square)."""
        peers, size = rows.shape
        whole = math.sqrt(peers)
        moved = (
            correction.rows - run.state.params.double()
            if correction.move is None
            else correction.move.expand(peers, -1)
        )
        weight = float(np.sqrt(np.mean(correction.weights**2)))
        scaled = self.noise_placement == "broadcast_correction"
        return {
            "correction_norm": float(moved.norm()) / whole,
            "noise_norm": float((rows - correction.rows).norm()) / whole,
            "model_norm": float(correction.rows.norm()) / whole,
            "expected_noise_norm": plan.release.noise_std
            * math.sqrt(size)
            * (weight if scaled else 1.0),
            "retained_rows": retained,
        }

    def _rounding(self, run: TrainedRun, correction: Correction) -> float:
        """Return how far rounding to the dtype may move a model (a stack: all)."""
        norms = correction.rows.norm(dim=1)
        size = float(norms.norm() if self.stacked else norms.max())
        return 2 * _EPS[run.state.params.dtype] * size

    def _check_residual(
        self, run: TrainedRun, correction: Correction, rounding: float
    ) -> None:
        """Refuse before anything is charged or released."""
        if not proves(self, run):
            return
        if not correction.distance <= self.residual_cap:
            spread = (
                "; that includes how far the peers' models lie apart"
                if self.noise_placement != "broadcast_model" and not self.stacked
                else ""
            )
            raise ResidualExceedsCapError(
                f"residual_cap: the distance to the exact target is bounded by "
                f"{correction.distance:.3g} after {len(correction.residuals) - 1} "
                f"corrections, above the cap {self.residual_cap:g}{spread}; nothing "
                "was sent: raise newton_steps_max or residual_cap, use "
                "curvature='exact_cg' and noise_placement='broadcast_model', or retrain"
            )
        slack = ROUNDING_SHARE * self.residual_cap
        if not rounding <= slack:
            raise ResidualExceedsCapError(
                f"residual_cap: rounding the released model to "
                f"{run.state.params.dtype} may move it by {rounding:.3g}, above the "
                f"{slack:.3g} set aside (1 % of the cap); nothing was sent: raise "
                "residual_cap or train in float64"
            )
