"""Runs a method for one model at the peers whose data goes; then gossip goes on.

What a peer's method may look at is its own rows, its own past states and its own
model; see ``unlearning.local_tasks``. What gossip does to a local correction is another
matter; see ``unlearning.dilution``. What the network does with the correction is the
field ``reentry``:

==================  ================================================================
``requester``       only the owners' models change
``scaled``          the owners' change is taken N times, so that the mean moves by it
``delta``           the change is broadcast; peer j adds a_j times it
``all``             every other peer runs a counterpart on its own retained rows
``notify``          the request is flooded; every peer in reach runs the method too
``pinned``          the change stays with its owner, beside the model, never mixed
``maintain``        the owner repeats some steps after a round while it remembers
``rewind_network``  all peers go back and train again without the data (``r2d``)
==================  ================================================================

In a network a method's own claim is ``heuristic`` whatever it is: its proof is about
one model and its own data, and the trajectory was gossip. ``rewind_network`` has a
proof of its own (``unlearning.network_rewind``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind, ForgetRequest
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.personal import used_params
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Dissemination
from dfl_unlearn.errors import InvalidHyperparameterError, UnsupportedRequestError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.plan import RecordPart
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.claims import exposure_of, observers_of
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.dilution import (
    carry_round,
    forgotten_rows,
    gossip_once,
    mean_losses,
    right_share,
)
from dfl_unlearn.unlearning.influence_weights import InfluenceWeights, check_weights
from dfl_unlearn.unlearning.local import (
    Budget,
    UnlearningMethod,
    check_model,
    check_task,
    kinds_of,
    methods,
    named,
    only,
    uses_of,
    why_not,
)
from dfl_unlearn.unlearning.local_tasks import local_task
from dfl_unlearn.unlearning.methods.fine_tune import FineTune
from dfl_unlearn.unlearning.network_rewind import check_rewind, rewound
from dfl_unlearn.unlearning.reentry import (
    Corrected,
    Reentry,
    check_neighbours,
    corrected,
    run_at,
)

GOSSIP = "trajectory was gossip, not local gradient descent"
_FORGOTTEN: frozenset[str] = frozenset({"forget_inputs", "forget_labels"})


@protocols.register("at-peer")
@dataclass(frozen=True, kw_only=True)
class AtPeer:
    """Let a method for one model run at the owners of the data; gossip follows.

    Attributes:
        method: What runs there, or its registered name.
        reentry: Who does what with its result; see the module.
        gossip_rounds: Rounds afterwards.
        gossip_after: ``mix``: they only average; ``train``: they train on what is kept.
        budget: Limits of the method, at every peer.
        counterpart: What other peers run with ``all``; None is the method itself,
            without noise, where it needs retained rows and the past only, else
            fine-tune.
        influence_weights: a_j of ``delta``; see ``unlearning.influence_weights``.
        dissemination: How ``delta`` sends the change.
        reach: Hops that ``notify`` tells of the request; None is everybody.
        share_forget: Whether ``notify`` sends the forgotten rows along, which discloses
            them; methods that use them run at neighbours only with it.
        maintain_steps: Optimizer steps that ``maintain`` repeats after a round.
        maintain_threshold: Share of its forgotten rows above which an owner that still
            classifies so many right goes on with ``maintain``.
        rewind_rounds: K of ``rewind_network``; None is what the method says, or all.
        influence_threshold: Share of the owners' influence above which a peer goes back
            with ``rewind_network``; at 0 all do, and only then there is a claim.
    """

    method: UnlearningMethod[TensorBatch] | str = field(default_factory=FineTune)
    reentry: Reentry = "requester"
    gossip_rounds: int = 0
    gossip_after: Literal["mix", "train"] = "mix"
    budget: Budget = field(default_factory=Budget)
    counterpart: UnlearningMethod[TensorBatch] | str | None = None
    influence_weights: InfluenceWeights = "uniform"
    dissemination: Dissemination = "tree"
    reach: int | None = None
    share_forget: bool = False
    maintain_steps: int = 0
    maintain_threshold: float = 0.5
    rewind_rounds: int | None = None
    influence_threshold: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields, and that none is set that ``reentry`` does not read.

        Raises:
            InvalidHyperparameterError: If fields contradict each other.
        """
        wrong = InvalidHyperparameterError
        for name in ("method", "counterpart"):
            object.__setattr__(self, name, named(getattr(self, name), name))
        methods.name_of(self.method)
        _validate.one_of(get_args(Reentry), reentry=self.reentry)
        _validate.integer(
            gossip_rounds=self.gossip_rounds,
            at_least=1 if self.reentry in ("scaled", "maintain") else 0,
            at_most=MAX_ROUNDS,
            error=wrong,
            why=f"rounds of gossip belong to reentry={self.reentry!r}"
            if self.reentry in ("scaled", "maintain")
            else "",
        )
        _validate.one_of(("mix", "train"), gossip_after=self.gossip_after)
        _validate.of_type(Budget, budget=self.budget)
        _validate.one_of(
            get_args(InfluenceWeights), influence_weights=self.influence_weights
        )
        _validate.one_of(get_args(Dissemination), dissemination=self.dissemination)
        _validate.of_type(bool, share_forget=self.share_forget)
        for name in ("reach", "rewind_rounds"):
            if getattr(self, name) is not None:
                _validate.integer(
                    at_least=1, error=wrong, **{name: getattr(self, name)}
                )
        _validate.integer(maintain_steps=self.maintain_steps, at_least=0, error=wrong)
        for name in ("maintain_threshold", "influence_threshold"):
            _validate.number(
                at_least=0, below=1, error=wrong, **{name: getattr(self, name)}
            )
        self._check_reentry()

    def _check_reentry(self) -> None:
        """Refuse fields that another value of ``reentry`` reads, and missing ones.

        Raises:
            InvalidHyperparameterError: Naming field and value.
        """
        belongs = {
            "counterpart": "all",
            "reach": "notify",
            "share_forget": "notify",
            "maintain_steps": "maintain",
            "rewind_rounds": "rewind_network",
            "influence_threshold": "rewind_network",
        }
        for name, reentry in belongs.items():
            if getattr(self, name) and self.reentry != reentry:
                raise InvalidHyperparameterError(
                    f"{name}: must be left out with reentry={self.reentry!r}, got "
                    f"{getattr(self, name)!r}; use reentry={reentry!r}"
                )
        if self.reentry == "maintain" and not self.maintain_steps:
            raise InvalidHyperparameterError(
                "maintain_steps: must be at least 1 with reentry='maintain', got 0; "
                "say how many steps follow each round"
            )
        if self.counterpart is not None:
            name = methods.name_of(self.counterpart)
            seen = sorted(_FORGOTTEN & uses_of(self.counterpart))
            if seen:
                raise InvalidHyperparameterError(
                    f"counterpart: must use retained rows only, got {name}, which "
                    f"uses {', '.join(seen)}; neighbours have none of the forgotten "
                    "rows: use fine-tune"
                )
        if self.reentry == "notify" and not self.share_forget:
            seen = sorted(_FORGOTTEN & uses_of(self.method))
            if seen:
                raise InvalidHyperparameterError(
                    f"share_forget: must be True for {methods.name_of(self.method)} "
                    f"with reentry='notify', got False; it uses {', '.join(seen)} and "
                    "neighbours have none of the forgotten rows: use reentry='all', or "
                    "send them, which discloses them"
                )
        if self.reentry == "rewind_network":
            check_rewind(self)

    @property
    def owners_method(self) -> UnlearningMethod[TensorBatch]:
        """What the owners run: ``method``, whose name was looked up."""
        assert not isinstance(self.method, str)
        return self.method

    @property
    def neighbours_method(self) -> UnlearningMethod[TensorBatch]:
        """What peers other than the owners run, where they run anything."""
        if self.reentry == "notify":
            return without_noise(self.owners_method)
        if self.reentry != "all":
            return self.owners_method
        if self.counterpart is not None:
            assert not isinstance(self.counterpart, str)
            return self.counterpart
        if _FORGOTTEN & uses_of(self.method) or "history" not in uses_of(self.method):
            return FineTune()
        return without_noise(self.owners_method)

    @property
    def kinds(self) -> frozenset[ForgetKind]:
        """What the method serves; whole peers only where it needs no retained rows."""
        if self.reentry == "rewind_network":
            return frozenset(get_args(ForgetKind))
        return kinds_of(self.method)

    def why_not(self, kind: ForgetKind) -> str:
        """Return why it does not serve a kind of request, and what to do."""
        return why_not(self.method, kind)

    @property
    def needs(self) -> frozenset[RecordPart]:
        """What the method, and what neighbours run, need of the record."""
        if self.reentry == "rewind_network":
            return frozenset()
        found: frozenset[RecordPart] = frozenset()
        for method in (self.owners_method, self.neighbours_method):
            found |= getattr(method, "needs", frozenset())
        return found

    def held(self, run: TrainedRun, request: ForgetRequest) -> frozenset[RecordPart]:
        """Return what owners kept in a record's place when an earlier request went.

        Args:
            run: The trained network.
            request: The resolved request.

        Returns:
            All that is needed, where every owner has what the method keeps for later
            requests and nobody else goes back; else nothing.
        """
        keeps: frozenset[str] = getattr(self.method, "keeps", frozenset())
        if not keeps or self.reentry in ("all", "notify", "rewind_network"):
            return frozenset()
        has = [keeps <= set(run.personal.get(peer, {})) for peer in request.peers]
        return self.needs if all(has) else frozenset()

    @property
    def claim(self) -> Literal["exact", "certified"] | None:
        """What the certificate can be at best, in a network of any size."""
        if self.reentry == "rewind_network":
            return "exact"
        claim: Literal["exact", "certified"] | None
        claim = getattr(self.method, "claim", None)
        return claim

    @property
    def label(self) -> str:
        """What tables call it."""
        name = f"at-peer.{methods.name_of(self.method)}"
        return name if self.reentry == "requester" else f"{name}.{self.reentry}"

    def check_model(self, model: FlatModel, num_classes: int) -> None:
        """Refuse a model that lacks what the method uses, before training.

        Args:
            model: The model.
            num_classes: 0 for a regression.

        Raises:
            UnsupportedRequestError: If ``maintain`` has no classes to score.
        """
        if self.reentry == "rewind_network":
            return
        runs = [self.method]
        if self.reentry in ("all", "notify"):
            runs.append(self.neighbours_method)
        for method in runs:
            check_model(method, model, num_classes)
        if self.reentry == "maintain" and not num_classes:
            raise UnsupportedRequestError(
                "reentry: must not be 'maintain' for a regression, got 'maintain', "
                "which scores classes; use 'requester'"
            )

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse what is not there at a peer that takes part.

        Args:
            run: The trained network.
            request: The resolved request.

        Raises:
            DflUnlearnError: Naming it.
        """
        if self.reentry == "rewind_network":
            check_rewind(self, run, request)
            return
        self.check_model(run.model, run.data.num_classes)
        for peer in request.peers:
            task = local_task(run, request, peer, budget=self.budget)
            check_task(self.method, only(task, uses_of(self.method)))
        if self.reentry in ("all", "notify"):
            check_neighbours(self, run, request)
        if self.reentry == "delta":
            check_weights(self.influence_weights, run, request.requester)

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state after the method and the rounds that follow."""
        if self.reentry == "rewind_network":
            return rewound(self, run, request, rng)
        transport = run.transport()
        start = corrected(self, run, request, rng, transport)
        data = run.data.without(request)
        state = PeerState(params=start.params, round=run.state.round)
        watch = _Watch(self, run, request, start)
        cost, repeated = start.cost, 0
        for number in range(self.gossip_rounds):
            carry_round(run, data, transport, self.gossip_after)
            state, gradients = gossip_once(run, data, state, self.gossip_after)
            cost += Cost(sample_gradients=gradients)
            if self.reentry == "maintain":
                state, more = self._maintained(run, request, rng, state, number)
                cost += more
                repeated += more.steps_forget + more.steps_retain
            watch.add(state)
        if self.gossip_after == "train":
            cost += Cost(rounds=self.gossip_rounds)
        first = start.found[request.requester]
        notes = first.notes + start.notes
        if self.reentry == "maintain":
            notes += (f"{repeated} steps were repeated in the rounds that followed",)
        certificates = [each.certificate for each in start.found.values()]
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=state,
            certificate=self._certificate(run, request, certificates, start.notes),
            cost=cost,
            ledger=run.ledger,
            messages=transport.log,
            trace={**first.trace, **watch.trace()},
            info=first.info,
            notes=notes,
            personal=start.personal,
        )

    def _maintained(
        self,
        run: TrainedRun,
        request: ForgetRequest,
        rng: RngTree,
        state: PeerState,
        number: int,
    ) -> tuple[PeerState, Cost]:
        """Return the state after owners that still remember took some steps."""
        params, cost = state.params.clone(), Cost()
        steps = self.maintain_steps
        if self.budget.max_steps is not None:
            steps = min(steps, self.budget.max_steps)
        for peer in request.peers:
            task = local_task(
                run,
                request,
                peer,
                budget=replace(self.budget, max_steps=steps),
                ledger=run.ledger,
            )
            assert task.forget is not None
            score = right_share(run.model, params[peer : peer + 1], task.forget)[0]
            if score <= self.maintain_threshold:
                continue
            draws = rng.child(f"maintain:{number}")
            found = run_at(
                self.owners_method, replace(task, params=params[peer]), draws
            )
            params[peer] = found.params
            cost += found.cost
        return PeerState(params=params, slots=state.slots, round=state.round), cost

    def _certificate(
        self,
        run: TrainedRun,
        request: ForgetRequest,
        certificates: Sequence[Certificate | None],
        told: tuple[str, ...],
    ) -> Certificate | None:
        """Return the method's own claim at one peer alone, ``heuristic`` in a network.

        No claim of any owner means no claim.
        """
        claims = [claim for claim in certificates if claim is not None]
        if len(claims) < len(certificates):
            return None
        claim = claims[0]
        broken = []
        if run.topology.n > 1:
            broken.append((GOSSIP, f"{run.topology.n} peers"))
        if self.reentry == "maintain":
            broken.append(("steps are taken once", "they were repeated"))
        if self.reentry == "pinned":
            broken.append(("shared model", "as before: the change is kept beside it"))
        if not broken:
            return replace(claim, method="at-peer")
        # Of several owners the weakest claim; all are nominal.
        violated = [
            Assumption(
                name=name,
                value=value,
                source="proven",
                state="violated",
                note="the method's proof is about one model and its own data",
            )
            for name, value in broken
        ]
        return certify(
            method="at-peer",
            request_id=request.request_id,
            group_size=claim.group_size,
            scope=claim.scope,
            epsilon=_most(_first(c.epsilon, c.nominal_epsilon) for c in claims),
            delta=_most(_first(c.delta, c.nominal_delta) for c in claims),
            sensitivity=claim.sensitivity,
            bound=claim.bound,
            noise_std=claim.noise_std,
            accountant=claim.accountant,
            assumptions=(*claim.assumptions, *violated),
            observers=observers_of(run, request),
            exposure=(*claim.exposure, *exposure_of(run, request), *told),
            covers=claim.covers,
            notes=claim.notes,
            adaptive=request.adaptive,
        )


class _Watch:
    """What the simulator sees of the rounds after a correction; no peer sees it."""

    def __init__(
        self,
        protocol: AtPeer,
        run: TrainedRun,
        request: ForgetRequest,
        start: Corrected,
    ) -> None:
        """Take the figures before the first round; nothing without rounds."""
        self._on = protocol.gossip_rounds > 0
        self._mixes = protocol.gossip_after == "mix" and protocol.reentry != "maintain"
        self._model, self._personal = run.model, start.personal
        self._changes: list[NDArray[np.float64]] = []
        self._losses: list[NDArray[np.float64]] = []
        if not self._on:
            return
        self._forgotten = forgotten_rows(run, request)
        self._alone = run.state.params
        self._weights = as_csr(run.topology.weights, self._alone.dtype)
        self._note(start.params)

    def add(self, state: PeerState) -> None:
        """Take the figures after a round."""
        if self._mixes:
            self._alone = mix(self._alone, self._weights)
        self._note(state.params)

    def _note(self, params: Tensor) -> None:
        used = used_params(params, self._personal)
        self._losses.append(mean_losses(self._model, used, self._forgotten))
        if self._mixes:
            change = (params - self._alone).double()
            self._changes.append(change.norm(dim=1).numpy())

    def trace(self) -> Mapping[str, NDArray[np.float64]]:
        """Return the figures, one row per round and one column per peer."""
        if not self._on:
            return {}
        found = {"peers_forget_loss": np.array(self._losses)}
        if self._mixes:
            found["peers_change"] = np.array(self._changes)
        return found


def without_noise(
    method: UnlearningMethod[TensorBatch],
) -> UnlearningMethod[TensorBatch]:
    """Return a method with its noise off: other peers' rows are all retained."""
    names = {"epsilon", "noise_std"} & {f.name for f in fields(method)}  # type: ignore[arg-type]
    return replace(method, **dict.fromkeys(names))  # type: ignore[type-var]


def _first(known: float | None, nominal: float | None) -> float | None:
    return nominal if known is None else known


def _most(values: Iterable[float | None]) -> float | None:
    """Return the largest of some numbers; None where one is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None
