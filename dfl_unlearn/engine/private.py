"""What private rounds of training cost, charged before they begin."""

from dataclasses import replace
from typing import TYPE_CHECKING

from dfl_unlearn.accounting.entries import EVERYONE
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.subsampling import sampled_gaussian
from dfl_unlearn.engine.trainers.contract import PrivateSteps
from dfl_unlearn.record.plan import RecordPlan

if TYPE_CHECKING:
    from dfl_unlearn.engine.config import SimulationConfig

TRAINING = "training"
"""Name of training in the place of a forget request's id in the ledger."""


def charge_rounds(
    ledger: PrivacyLedger, private: PrivateSteps | None, rounds: int, *, first: int = 0
) -> None:
    """Charge rounds of private training to any single record.

    A record lies at one peer, whose every message is covered: whoever sees all messages
    of all peers sees as many sampled Gaussians as there are rounds. The peers' noises
    are independent, so peers do not add up for one record.

    Args:
        ledger: Charged under owner ``"*"``, for everybody.
        private: How the steps are made; None charges nothing.
        rounds: How many.
        first: Rounds before them.
    """
    if private is None:
        return
    ledger.charge(
        TRAINING,
        EVERYONE,
        ("public",),
        sampled_gaussian(
            rate=private.rate,
            noise_multiplier=private.noise_multiplier,
            steps=rounds,
            sampling="poisson",
            batches_hidden=True,
            noise_every_step=True,
        ),
        scope="view_joint",
        status="certified",
        assumptions=("clipped gradients", "Poisson batches", "public divisor"),
        round=first,
        noise_purpose="train-noise",
    )
    ledger.commit(TRAINING)


def record_plan(config: "SimulationConfig") -> RecordPlan:
    """Return what training may write down.

    The training residual takes two sums over all peers that carry no noise; private
    training leaves it out, so that protocols that need it say so.

    Args:
        config: The run's settings.

    Returns:
        The plan, without what is not covered.
    """
    plan = config.record
    if config.private is None:
        return plan
    return replace(plan, parts=plan.parts - {"training_residual"})
