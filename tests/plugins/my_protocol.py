"""Reset-peer: the owners of forgotten data restart from what their neighbours send."""

from dataclasses import dataclass

import numpy as np

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import InvalidHyperparameterError, TopologyError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols


@protocols.register("reset-peer")
@dataclass(frozen=True, kw_only=True)
class ResetPeer:
    """Replace the owners' parameters by their neighbours' average.

    A baseline without a guarantee: influence that already left the owners stays in
    the network.

    Attributes:
        recovery_rounds: Rounds of ordinary training on retained data afterwards.
    """

    recovery_rounds: int = 5

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.recovery_rounds, int) or self.recovery_rounds < 0:
            raise InvalidHyperparameterError(
                f"recovery_rounds: must be an integer >= 0, got {self.recovery_rounds}"
            )

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse a network of one peer, which has no neighbours to ask."""
        if run.topology.n < 2:
            raise TopologyError(
                "reset-peer: needs a network of at least 2 peers, got 1; use retrain"
            )

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state after the reset and the recovery rounds."""
        transport = run.transport()
        size = run.model.size * run.state.params.element_size()
        params = run.state.params.clone()
        for owner in request.peers:
            share = run.topology.weights[[owner]].toarray().ravel()
            share[owner] = 0
            heard = np.flatnonzero(share)
            for peer in heard:
                transport.send(int(peer), owner, "model", size)
            params[owner] = run.state.params[heard].mean(dim=0)
        reset = PeerState(params=params, round=run.state.round)
        data = run.data.without(request)
        state, gradients = continue_training(run, data, reset, self.recovery_rounds)
        for _ in range(self.recovery_rounds):
            transport.exchange("recovery", size)
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=None,
            cost=Cost(rounds=self.recovery_rounds, sample_gradients=gradients),
            ledger=run.ledger,
            messages=transport.log,
        )
