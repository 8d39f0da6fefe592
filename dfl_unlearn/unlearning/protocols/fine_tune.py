r"""Fine-tuning: continued gossip training on what is kept, with a guarantee or without.

By itself it is a habit without a claim. With an ``epsilon`` it is decentralized
descent to delete (decentralized-certified 5, item 2; [derived] there): on what is kept,
full-batch cta contracts towards its fixed point :math:`X^*_-`, so that after R rounds

.. math:: \|X_R - X^*_-\|_F \le q^R\,\|R^-(\hat X)\|_F / \mu

(:math:`R^-`, q and :math:`\mu` as in ``unlearning.fixed_point``), and independent noise
on the whole stack hides what is left. As with newton-fisher the noise is calibrated to
a **public** cap on that distance, never to the distance, which depends on the forgotten
data; and what is held against the cap is :math:`\|R^-(X_R)\|_F / \mu`, measured in
float64 at the models that training has reached: it holds for any models, rounding of
the training arithmetic included, and is at most the formula's where that is exact.

The rounds' own messages carry no noise, so the claim is about final models only. The
number of rounds is fixed in advance; stopping when the cap is met would say something
about the data.

References:
    Neel, Roth and Sharifi-Malvajerdi (2021), Descent-to-delete: gradient-based methods
    for machine unlearning (the centralized idea) [recalled].
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.accounting.certificate import status_of
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import samples_each, split_over_peers
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    ResidualExceedsCapError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.adaptivity import still_adaptive
from dfl_unlearn.unlearning.claims import observers_of, owners_of
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.fine_tune_claim import (
    Descent,
    assumptions_of,
    certificate_of,
    release_of,
)
from dfl_unlearn.unlearning.fixed_point import (
    SETTINGS,
    FixedPoint,
    differing_settings,
)
from dfl_unlearn.unlearning.newton_release import ROUNDING_SHARE


@protocols.register("fine-tune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Go on training on the retained data; with an epsilon, noise and a certificate.

    Attributes:
        rounds: Gossip rounds of the run's own training.
        epsilon: Privacy loss of the release of all peers' final models; None adds no
            noise and makes no claim. The claim needs training with full batches, one
            local step and a constant rate in form cta, on a strongly convex model.
        delta: Failure probability of the claim.
        residual_cap: Public cap on the distance of all peers' models together to where
            training would come to rest without the data, in parameter units; the noise
            is calibrated to it. Fix it and ``rounds`` before looking at the data.
        noise_placement: ``independent``: noise of its own on every peer's model.
        disclose_m: Whether the certificate names the number of forgotten rows.
    """

    rounds: int = 10
    epsilon: float | None = None
    delta: float = 1e-5
    residual_cap: float = 1e-3
    noise_placement: Literal["independent"] = "independent"
    disclose_m: bool = False

    claim: ClassVar[Literal["certified"]] = "certified"

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = InvalidHyperparameterError
        _validate.integer(
            rounds=self.rounds, at_least=1, at_most=MAX_ROUNDS, error=wrong
        )
        if self.epsilon is not None:
            _validate.number(
                epsilon=self.epsilon, above=0, error=InvalidPrivacyParameterError
            )
        _validate.number(
            delta=self.delta, above=0, below=1, error=InvalidPrivacyParameterError
        )
        _validate.number(residual_cap=self.residual_cap, above=0, error=wrong)
        _validate.one_of(("independent",), noise_placement=self.noise_placement)
        _validate.of_type(bool, disclose_m=self.disclose_m)

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse a claim that this training does not carry, or the budget.

        Args:
            run: The trained network.
            request: The resolved request.

        Raises:
            UnsupportedRequestError: If an epsilon is asked for and training has no
                known fixed point.
        """
        if self.epsilon is None:
            return
        found = differing_settings(run)
        if found:
            raise UnsupportedRequestError(
                f"epsilon: must be None for this run, got {self.epsilon:g} and a "
                f"training whose {', '.join(found)} {SETTINGS}; leave epsilon out, or "
                "use newton-fisher or retrain"
            )
        FixedPoint(run, run.data.without(request))
        release = release_of(self)
        # A copy of the ledger refuses before anything is computed or sent.
        run.ledger.fork().charge_owners(
            request.request_id,
            owners_of(request),
            observers_of(run, request),
            GaussianMechanism(
                noise_std=release.noise_std, sensitivity=release.sensitivity
            ),
            scope="joint",
        )

    def predicted_shift(self, run: TrainedRun, request: ForgetRequest) -> float:
        """Return the cap that the noise is calibrated to.

        Args:
            run: Not used.
            request: Not used.

        Returns:
            The cap.

        Raises:
            UnsupportedRequestError: If there is no epsilon, so no noise.
        """
        if self.epsilon is None:
            raise UnsupportedRequestError(
                "max_delta: must be None with FineTune, which calibrates no release "
                "without an epsilon; leave it out or give an epsilon"
            )
        return self.residual_cap

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state after some more rounds without the data.

        Args:
            run: The trained network.
            request: The resolved request.
            rng: The run's draws.

        Returns:
            The outcome; with an epsilon, noised and with a certificate.
        """
        data, transport = run.data.without(request), run.transport()
        state, gradients = continue_training(run, data, run.state, self.rounds)
        payload = run.model.size * state.params.element_size()
        each = samples_each(data, run.config)
        for _ in range(self.rounds):
            transport.work(each)
            transport.exchange("training", payload * len(run.config.trainer.mixed))
        outcome = Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=None,
            cost=Cost(rounds=self.rounds, sample_gradients=gradients),
            ledger=run.ledger,
            messages=transport.log,
        )
        if self.epsilon is None:
            return outcome
        # The residual takes the neighbours' models once more, its norm one sum.
        equation = FixedPoint(run, data)
        transport.exchange("training", payload)
        transport.all_reduce("squared residual", 8, request.requester)
        descent = Descent.of(equation, run.state, state, self.rounds)
        transport.work(split_over_peers(descent.rows, data))
        return self._released(outcome, descent, rng)

    def _released(self, tuned: Outcome, descent: Descent, rng: RngTree) -> Outcome:
        """Check the cap, then charge, add noise and certify."""
        run, request, state = tuned.run, tuned.request, tuned.state
        self._check_cap(descent, state)
        assumptions = assumptions_of(self, run, request, descent)
        release = release_of(self)
        rows = release(
            state.params.double(),
            ledger=run.ledger,
            request_id=request.request_id,
            owner=owners_of(request),
            observers=observers_of(run, request),
            rng=rng,
            group_size=request.size(run.data) if self.disclose_m else None,
            scope="joint",
            status=status_of(
                assumptions, adaptive=still_adaptive(request, assumptions)
            ),
            assumptions=tuple(a.name for a in assumptions),
        )
        run.ledger.commit(request.request_id)
        peers, size = rows.shape
        whole = math.sqrt(peers)
        predicted: dict[str, float | str] = (
            {}
            if descent.predicted is None
            else {"descent_to_delete_bound": descent.predicted}
        )
        return replace(
            tuned,
            state=PeerState(params=rows.to(state.params.dtype), round=state.round),
            certificate=certificate_of(self, run, request, assumptions, release),
            cost=tuned.cost + Cost(sample_gradients=descent.rows),
            trace={"residual": np.array([descent.start, descent.end])},
            info={
                **predicted,
                "distance_bound": descent.distance,
                "noise_norm": float((rows - state.params).norm()) / whole,
                "model_norm": float(state.params.double().norm()) / whole,
                "expected_noise_norm": release.noise_std * math.sqrt(size),
            },
        )

    def _check_cap(self, descent: Descent, state: PeerState) -> None:
        """Refuse before anything is charged or released.

        Raises:
            ResidualExceedsCapError: If the models are not proven to be near enough.
        """
        if not descent.distance <= self.residual_cap:
            speed = (
                "A round is sure to bring it down by a factor of "
                f"{descent.factor:.6g} only: raise rounds or"
                if descent.factor < 1
                else "No round is sure to bring it down: lower learning_rate, or raise"
            )
            raise ResidualExceedsCapError(
                f"residual_cap: the distance to the exact fixed point is bounded by "
                f"{descent.distance:.3g} after {self.rounds} rounds, above the cap "
                f"{self.residual_cap:g}; nothing was sent with noise. "
                f"{speed} residual_cap, use newton-fisher with "
                "target='dsgd_fixed_point', or retrain"
            )
        slack = ROUNDING_SHARE * self.residual_cap
        if not descent.rounding <= slack:
            raise ResidualExceedsCapError(
                f"residual_cap: rounding the released models to {state.params.dtype} "
                f"may move them by {descent.rounding:.3g}, above the {slack:.3g} set "
                "aside (1 % of the cap); nothing was sent with noise: raise "
                "residual_cap or train in float64"
            )
