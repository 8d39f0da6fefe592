"""Fine-tuning: continued gossip training on what is kept; no guarantee."""

from dataclasses import dataclass

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols


@protocols.register("fine-tune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Go on training on the retained data: the habit, without a claim.

    Attributes:
        rounds: Gossip rounds of the run's own training.
    """

    rounds: int = 10

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.integer(
            rounds=self.rounds, at_least=1, error=InvalidHyperparameterError
        )

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state after some more rounds without the data."""
        data = run.data.without(request)
        state, gradients = continue_training(run, data, run.state, self.rounds)
        transport = run.transport()
        for _ in range(self.rounds):
            transport.exchange("training", run.model.size * state.params.element_size())
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=None,
            cost=Cost(rounds=self.rounds, sample_gradients=gradients),
            ledger=run.ledger,
            messages=transport.log,
        )
