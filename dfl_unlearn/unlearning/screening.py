"""Limits on requests and outcomes: advice by default, refusals when they are passed.

Requests can be attacks: floods that use up a budget, rows chosen to hurt the model or
to uncover a backdoor. Screening names such requests; it proves nothing about them, and
no certificate depends on it (privacy-accounting-and-audit 6).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.errors import (
    RequestRateError,
    ResidualExceedsCapError,
    UnsupportedRequestError,
)

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What a request may ask for and an outcome may cost; None lifts a limit.

    Attributes:
        max_share: Largest share of an owner's rows within a window, in (0, 1].
        window: Rounds that count together; requests between which no training took
            place always do.
        max_delta: Largest shift that a release may be calibrated to, in parameter
            units.
        max_utility_drop: Largest fall of the mean test accuracy, a fraction; an outcome
            beyond it is held for review. Not for regression, nor without test rows.
    """

    max_share: float | None = 0.1
    window: int = 100
    max_delta: float | None = None
    max_utility_drop: float | None = 0.05

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.max_share is not None:
            _validate.number(max_share=self.max_share, above=0, at_most=1)
        _validate.integer(window=self.window, at_least=1)
        if self.max_delta is not None:
            _validate.number(max_delta=self.max_delta, above=0)
        if self.max_utility_drop is not None:
            _validate.number(
                max_utility_drop=self.max_utility_drop, at_least=0, at_most=1
            )

    def excess(self, run: TrainedRun, request: ForgetRequest) -> str:
        """Return by how much a request passes ``max_share``; "" if it does not.

        Args:
            run: The network, with the requests it already carries.
            request: The resolved request.

        Returns:
            Of the owner that asks for the largest share, in words.
        """
        if self.max_share is None:
            return ""
        gone = request.mask(run.data)
        recent = [
            past
            for past in run.carried_out
            if run.state.round - past.round < self.window
        ]
        worst, words = self.max_share, ""
        for owner in request.peers:
            before = sum(past.rows.get(owner, 0) for past in recent)
            now = int(gone[run.data.rows(owner)].sum())
            held = int(run.data.retained[owner]) + before
            if (now + before) / held > worst:
                worst = (now + before) / held
                words = (
                    f"{worst:.0%} of peer {owner}'s rows within {self.window} rounds "
                    f"({now} now and {before} before, of {held}), above max_share "
                    f"{self.max_share:.0%}"
                )
        return words

    def check(
        self, run: TrainedRun, request: ForgetRequest, protocol: "UnlearningProtocol"
    ) -> None:
        """Refuse a request that passes a limit, before anything is computed.

        Args:
            run: The network, with the requests it already carries.
            request: The resolved request.
            protocol: What would carry it out.

        Raises:
            RequestRateError: If an owner asks for too much at once.
            ResidualExceedsCapError: If a release would be calibrated to a larger shift.
            UnsupportedRequestError: If ``max_delta`` is given and the protocol cannot
                tell its shift beforehand.
        """
        excess = self.excess(run, request)
        if excess:
            raise RequestRateError(
                f"request {request.request_id}: asks for {excess}; nothing was sent: "
                "ask for fewer rows, wait, or raise max_share"
            )
        if self.max_delta is None:
            return
        predict = getattr(protocol, "predicted_shift", None)
        if predict is None:
            raise UnsupportedRequestError(
                f"max_delta: must be None with {type(protocol).__name__}, which "
                f"calibrates no release, got {self.max_delta:g}; leave it out"
            )
        shift = predict(run, request)
        if not shift <= self.max_delta:
            raise ResidualExceedsCapError(
                f"request {request.request_id}: its release would be calibrated to a "
                f"shift of {shift:.3g}, above max_delta {self.max_delta:g}; nothing "
                "was sent: retrain, or raise max_delta"
            )

    def reviewed(self, outcome: "Outcome") -> "Outcome":
        """Return an outcome, held for review where accuracy fell too far.

        The noise is drawn and charged by then.

        Args:
            outcome: What the protocol gave back.

        Returns:
            It, with ``status`` and a note.
        """
        run = outcome.run
        if self.max_utility_drop is None or run.data.num_classes == 0:
            return outcome
        states = (run.state, outcome.state)
        before, after = (
            float(peer_scores(run.model, state.params, run.data).mean())
            for state in states
        )
        if not before - after > self.max_utility_drop:
            return outcome
        note = (
            f"held for review: mean test accuracy fell from {before:.4f} to "
            f"{after:.4f}, by more than max_utility_drop {self.max_utility_drop:g}; "
            "what it cost is charged"
        )
        return replace(outcome, status="held_for_review", notes=(*outcome.notes, note))


def advised(outcome: "Outcome") -> "Outcome":
    """Return an outcome with a note where the default screening would have refused.

    Args:
        outcome: Of a request that was not screened.

    Returns:
        It; only the share of rows is looked at, which costs nothing.
    """
    excess = Screening().excess(outcome.run, outcome.request)
    if not excess:
        return outcome
    note = f"screening advises against requests like this one: {excess}"
    return replace(outcome, notes=(*outcome.notes, note))
