"""Retraining: the whole network again without the forget set; everybody's yardstick."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Assumption, certify
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.config import trainers
from dfl_unlearn.engine.faulty_transport import FaultyTransport
from dfl_unlearn.engine.private import charge_rounds
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import retrain, samples_per_round
from dfl_unlearn.errors import InvalidHyperparameterError, UnsupportedRequestError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import exposure_of, extractor_of
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.dissemination import with_old_rows
from dfl_unlearn.unlearning.membership import members_assumed, told_to_start_again
from dfl_unlearn.unlearning.progress import progress_of


@protocols.register("retrain")
@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train the network again without the forgotten data: exact, and dear.

    In a network with faults every peer that has not left is told first, and the same
    faults are met again; the data of peers that have left are gone.

    Attributes:
        coupled: Whether every draw (initial parameters, batch order) is repeated, so
            that only the data differ. Refused for a run that was trained privately:
            who sees both runs would see their difference without noise.
        seed_offset: Added to the run's seed where draws are not coupled, >= 1.
    """

    coupled: bool = True
    seed_offset: int = 0

    claim: ClassVar[Literal["exact"]] = "exact"
    serves_faults: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.of_type(bool, coupled=self.coupled)
        _validate.integer(
            seed_offset=self.seed_offset,
            at_least=0 if self.coupled else 1,
            at_most=0 if self.coupled else None,
            error=InvalidHyperparameterError,
            why="0 with coupled=True, at least 1 with coupled=False",
        )

    def predicted_shift(self, run: TrainedRun, request: ForgetRequest) -> float:
        """Return 0: nothing of the forgotten data is left to be hidden."""
        return 0.0

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse to use the noise of private training twice.

        Args:
            run: The trained network.
            request: The resolved request.

        Raises:
            UnsupportedRequestError: If draws are coupled and training was private.
        """
        if self.coupled and run.config.private is not None:
            raise UnsupportedRequestError(
                "coupled: must be False for a run trained with "
                f"{trainers.name_of(run.config.trainer)}, got True; the same noise "
                "twice hides nothing from whoever sees both runs: set coupled=False "
                "and seed_offset=1"
            )

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state of a network that never had the data."""
        transport = run.transport()
        present = told_to_start_again(run, request, transport)
        data = present.data.without(request)
        # Fresh noise, one more time all rounds for every record that is kept.
        charge_rounds(run.ledger, run.config.private, run.config.rounds)
        retrained = retrain(run, data, seed_offset=self.seed_offset)
        payload = run.model.size * retrained.state.params.element_size()
        payload *= len(run.config.trainer.mixed)
        each = samples_each(data, run.config)
        for t in range(run.config.rounds):
            transport.work(each)
            if isinstance(transport, FaultyTransport):
                transport.exchange("training", payload, again=t)
            else:
                transport.exchange("training", payload)
        certificate = certify(
            method="retrain",
            request_id=request.request_id,
            group_size=None,
            scope="joint",
            epsilon=0.0,
            delta=0.0,
            sensitivity=0.0,
            bound="none",
            noise_std=0.0,
            accountant="none",
            assumptions=(
                Assumption(
                    name="training data",
                    value="retained rows only",
                    source="proven",
                    note="started again from the initial parameters; the forgotten "
                    "rows have weight 0 in every step",
                ),
                *extractor_of(run),
                *members_assumed(run, transport),
            ),
            observers=("public",),
            exposure=exposure_of(run, request),
            notes=_notes(run, request),
            adaptive=request.adaptive,
            exact=True,
        )
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=with_old_rows(run, retrained.state, transport),
            certificate=certificate,
            cost=Cost(
                rounds=run.config.rounds,
                sample_gradients=run.config.rounds
                * samples_per_round(data, run.config),
            ),
            ledger=run.ledger,
            messages=transport.log,
            reference=retrained if self.coupled else None,
            progress=progress_of(transport),
        )


def _notes(run: TrainedRun, request: ForgetRequest) -> tuple[str, ...]:
    notes = [
        "the forgotten rows' places in the batches stay empty: how many rows each peer "
        "stores, and which of them are gone, is taken as public"
    ]
    owners = {f"peer:{i}" for i in request.peers}
    if any(entry.owner in owners for entry in run.ledger.entries):
        notes.append(
            "releases made for earlier requests of the same owner stay spent; see the "
            "ledger"
        )
    return tuple(notes)
