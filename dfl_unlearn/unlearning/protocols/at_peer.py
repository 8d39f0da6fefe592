"""Runs a method for one model at the peers whose data goes; then gossip goes on.

What a peer's method may look at is its own rows, its own past states and its own
model; see ``unlearning.local_tasks``. What gossip does to a local correction is another
matter: with mixing only, the change ``delta`` at peer u is ``[W^r]_ju delta`` at peer j
after r rounds, which tends to ``delta / N``: the neighbours undo a correct local
unlearning up to a factor 1/N [derived].
"""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from dfl_unlearn import _validate
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind, ForgetRequest
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import InvalidHyperparameterError
from dfl_unlearn.record.plan import RecordPart
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import exposure_of, observers_of
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.local import (
    Budget,
    UnlearningMethod,
    check_task,
    methods,
    only,
    uses_of,
)
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.fine_tune import FineTune

GOSSIP = "trajectory was gossip, not local gradient descent"


@protocols.register("at-peer")
@dataclass(frozen=True, kw_only=True)
class AtPeer:
    """Let a method for one model run at the owners of the data; gossip follows.

    Attributes:
        method: What runs there.
        reentry: Who does what; ``requester``: only the owners' models change.
        gossip_rounds: Rounds afterwards.
        gossip_after: ``mix``: they only average; ``train``: they train on what is kept.
        budget: Limits of the method, at every peer.
    """

    method: UnlearningMethod[TensorBatch] = field(default_factory=FineTune)
    reentry: Literal["requester"] = "requester"
    gossip_rounds: int = 0
    gossip_after: Literal["mix", "train"] = "mix"
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        """Check the fields."""
        methods.name_of(self.method)
        _validate.one_of(("requester",), reentry=self.reentry)
        _validate.integer(
            gossip_rounds=self.gossip_rounds,
            at_least=0,
            at_most=MAX_ROUNDS,
            error=InvalidHyperparameterError,
        )
        _validate.one_of(("mix", "train"), gossip_after=self.gossip_after)
        _validate.of_type(Budget, budget=self.budget)

    @property
    def kinds(self) -> frozenset[ForgetKind]:
        """What the method serves; whole peers only where it needs no retained rows."""
        every: frozenset[ForgetKind] = frozenset(get_args(ForgetKind))
        served: frozenset[ForgetKind] = getattr(self.method, "kinds", every)
        needy = bool({"retain_inputs", "retain_labels"} & uses_of(self.method))
        return served - {"peer"} if needy else served

    @property
    def needs(self) -> frozenset[RecordPart]:
        """What the method needs of the record."""
        needs: frozenset[RecordPart] = getattr(self.method, "needs", frozenset())
        return needs

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"at-peer.{methods.name_of(self.method)}"

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse a method whose needs are not met at an owner."""
        for peer in request.peers:
            task = local_task(run, request, peer, budget=self.budget)
            check_task(self.method, only(task, uses_of(self.method)))

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state after the method and the rounds that follow."""
        params = run.state.params.clone()
        found = {}
        for peer in request.peers:
            task = local_task(run, request, peer, budget=self.budget, ledger=run.ledger)
            found[peer] = self.method.unlearn(only(task, uses_of(self.method)), rng)
            params[peer] = found[peer].params
        cost = sum((each.cost for each in found.values()), Cost())
        transport = run.transport()
        data = run.data.without(request)
        state = PeerState(params=params, round=run.state.round)
        payload = run.model.size * params.element_size()
        if self.gossip_after == "mix":
            weights = as_csr(run.topology.weights, params.dtype)
            for _ in range(self.gossip_rounds):
                transport.exchange("model", payload)
                params = mix(params, weights)
            state = PeerState(params=params, round=run.state.round)
        elif self.gossip_rounds:
            state, gradients = continue_training(run, data, state, self.gossip_rounds)
            each = samples_each(data, run.config)
            for _ in range(self.gossip_rounds):
                transport.work(each)
                transport.exchange("training", payload * len(run.config.trainer.mixed))
            cost += Cost(rounds=self.gossip_rounds, sample_gradients=gradients)
        certificates = [each.certificate for each in found.values()]
        first = found[request.requester]
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=self._certificate(run, request, certificates),
            cost=cost,
            ledger=run.ledger,
            messages=transport.log,
            trace=first.trace,
            info=first.info,
            notes=first.notes,
            personal={p: each.personal for p, each in found.items() if each.personal},
        )

    def _certificate(
        self,
        run: TrainedRun,
        request: ForgetRequest,
        certificates: list[Certificate | None],
    ) -> Certificate | None:
        """Return the method's own claim at one peer alone, ``heuristic`` in a network.

        No claim of any owner means no claim.
        """
        claim = certificates[0]
        if claim is None or None in certificates:
            return None
        if run.topology.n == 1:
            return replace(claim, method="at-peer")
        gossip = Assumption(
            name="trajectory",
            value=GOSSIP,
            source="proven",
            state="violated",
            note="the method's proof is about one model and its own data",
        )
        known = claim.epsilon is not None
        return certify(
            method="at-peer",
            request_id=request.request_id,
            group_size=claim.group_size,
            scope=claim.scope,
            epsilon=claim.epsilon if known else claim.nominal_epsilon,
            delta=claim.delta if known else claim.nominal_delta,
            sensitivity=claim.sensitivity,
            bound=claim.bound,
            noise_std=claim.noise_std,
            accountant=claim.accountant,
            assumptions=(*claim.assumptions, gossip),
            observers=observers_of(run, request),
            exposure=exposure_of(run, request),
            notes=claim.notes,
            adaptive=request.adaptive,
        )
