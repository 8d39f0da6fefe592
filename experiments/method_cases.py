"""One case of the comparison: train, retrain twice, forget by every method, measure."""

import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from forget_sets import forget_set, held_out, load
from method_recipes import Method
from numpy.typing import NDArray

from dfl_unlearn import (
    ForgetRequest,
    PeerData,
    SimulationConfig,
    evaluate,
    simulate,
    unlearn,
)
from dfl_unlearn.data.sources import Dataset
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.evaluation.comparison import CONTROLS, FOUR, Line, measure
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.dilution import gossip_once
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.retrain import Retrain

Place = Literal["one model", "at a peer", "at a peer, mixed"]
"""Who is measured: the only model; the requester's, just after its method; the
requester's after ``MIXING_ROUNDS`` in which all peers only average, of methods and of
retrained networks alike."""
PLACES: tuple[Place, ...] = ("one model", "at a peer", "at a peer, mixed")
PEERS = 8
"""On a ring; their rows are unlike: Dirichlet 0.1 over classes, at least 60 each."""
MIXING_ROUNDS = 3

METRICS = (
    "mia-confidence",
    "mia-update",
    "mia-representation",
    "activation-distance",
    "relearn-steps",
)
"""Measured beside the minimum of ``evaluation.comparison``."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the original model is trained: SGD with momentum .9, cosine rates.

    Attributes:
        dataset: Registered name.
        rows: Training rows, or None for all.
        test_rows: Test rows, or None for all.
        model: Registered name.
        hidden: Widths of a perceptron.
        rounds: Epochs; in a network, rounds of one epoch each.
        batch_size: Rows per step.
        local_batch_size: The same at one of ``PEERS`` peers.
        learning_rate: Of the first epoch.
    """

    dataset: str
    rows: int | None = None
    test_rows: int | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] = (128, 64)
    rounds: int = 60
    batch_size: int = 64
    local_batch_size: int = 16
    learning_rate: float = 0.1


TRAININGS = {
    "digits": Training(dataset="digits"),
    "mnist": Training(
        dataset="mnist", rows=2000, test_rows=2000, hidden=(256, 64), rounds=30
    ),
    "cifar10": Training(
        dataset="cifar10",
        rows=2000,
        test_rows=1000,
        model="resnet8",
        rounds=30,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One original model and one forget set.

    Attributes:
        training: How it is trained.
        setting: What goes; see ``forget_sets``.
        network: Whether there are ``PEERS`` peers on a ring, or one model.
        seed: Of the training and of the forget set.
        validation: Whether a part of the training rows takes the place of the test
            rows, so that nothing is tuned on the latter.
    """

    training: Training
    setting: str
    network: bool
    seed: int
    validation: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """Who is measured."""
        return PLACES[1:] if self.network else PLACES[:1]

    def name(self, place: Place) -> str:
        """Return the name of the setting in tables."""
        return f"{self.training.dataset}, {self.setting}, {place}"

    @property
    def requester(self) -> int:
        """The peer whose rows go."""
        return self.seed % PEERS if self.network else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A trained case with its two retrained models.

    Attributes:
        case: The case.
        run: The original network.
        request: What goes.
        retrained: Repeats every draw of training: the reference.
        again: Retrained with draws of its own: the floor of every difference.
    """

    case: Case
    run: TrainedRun
    request: ForgetRequest
    retrained: Outcome
    again: Outcome

    @property
    def untouched(self) -> Outcome:
        """The outcome of doing nothing."""
        found = tried(self, Original())
        assert isinstance(found, Outcome)
        return found

    @property
    def reference(self) -> TrainedRun:
        """The run that everything is compared with."""
        assert self.retrained.reference is not None
        return self.retrained.reference


def prepare(case: Case, needed: Mapping[str, Method]) -> Prepared:
    """Train and retrain.

    Args:
        case: The case.
        needed: Methods that will run; training records what they need.

    Returns:
        The models.
    """
    _warm_up()
    kept = case.training
    source = _source(kept.dataset, kept.rows, kept.test_rows)
    if case.validation:
        source = held_out(source, case.seed)
    unlike = {"partition": "dirichlet", "alpha": 0.1, "min_per_peer": 60}
    plain = (
        PeerData.load(source, PEERS, seed=case.seed, **unlike)
        if case.network
        else PeerData.load(source, 1)
    )
    data, request = forget_set(case.setting, plain, peer=case.requester, seed=case.seed)
    plan = RecordPlan.for_protocols(*(AtPeer(method=m) for m in needed.values()))
    config = SimulationConfig(
        rounds=kept.rounds,
        seed=case.seed,
        evaluate_every=0,
        record=replace(plan, every=max(1, kept.rounds // 20)),
        local=LocalSteps(
            epochs=1,
            batch_size=kept.local_batch_size if case.network else kept.batch_size,
            learning_rate=kept.learning_rate,
            lr_schedule="cosine",
            momentum=0.9,
        ),
    )
    model = models.build(
        kept.model,
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        **({"hidden": kept.hidden} if kept.model == "mlp" else {}),
    )
    topology = load_topology("ring", n=PEERS) if case.network else Topology.single()
    run = simulate(topology, data, model, config)
    return Prepared(
        case=case,
        run=run,
        request=request,
        retrained=unlearn(run, request, Retrain()),
        again=unlearn(run, request, Retrain(coupled=False, seed_offset=1000)),
    )


def lines(
    prepared: Prepared,
    place: Place,
    chosen: Mapping[str, Method],
    tuned: Container[str] = (),
) -> Iterator[tuple[str, Line | DflUnlearnError]]:
    """Carry out the request by the controls and by every method, and measure.

    Args:
        prepared: The models.
        place: Who is measured afterwards.
        chosen: Methods by the name they have in tables.
        tuned: Names whose fields were chosen by looking at a retrained model.

    Yields:
        The name, and the line or why there is none.
    """
    case = prepared.case
    rounds = MIXING_ROUNDS if place == PLACES[2] else 0
    prepared = _mixed(prepared, rounds)  # yardstick and floor as well as methods
    success = ("attack-success",) if case.setting == "backdoor" else ()

    def line(name: str, outcome: Outcome, note: str = "") -> Line:
        return measure(
            _alone(outcome, case.requester),
            setting=case.name(place),
            method=name,
            seed=case.seed,
            metrics=(*METRICS, *success),
            note=note,
        )

    nothing = tried(prepared, Original(), rounds)
    assert isinstance(nothing, Outcome)
    again = replace(prepared.again, reference=prepared.reference)
    controls = (nothing, prepared.retrained, again)
    for name, outcome in zip(CONTROLS, controls, strict=True):
        yield name, line(name, outcome)
    for name, method in chosen.items():
        found = tried(prepared, method, rounds)
        note = "oracle-tuned" if name in tuned else ""
        yield name, line(name, found, note) if isinstance(found, Outcome) else found


def _mixed(prepared: Prepared, rounds: int) -> Prepared:
    """Return the case with both retrained networks after rounds of only averaging."""

    def after(outcome: Outcome) -> Outcome:
        run, state = outcome.run, outcome.state
        data = run.data.without(outcome.request)
        for _ in range(rounds):
            state, _ = gossip_once(run, data, state, "mix")
        known = outcome.reference
        # Of retraining the reference is its own end, of ``again`` there is none.
        reference = None if known is None else known.replaced(state=state)
        return replace(outcome, state=state, reference=reference)

    if not rounds:
        return prepared
    return replace(
        prepared, retrained=after(prepared.retrained), again=after(prepared.again)
    )


def tried(
    prepared: Prepared, method: Method, gossip_rounds: int = 0
) -> Outcome | DflUnlearnError:
    """Return what a method gives, or why it gives nothing."""
    try:
        return unlearn(
            prepared.run,
            prepared.request,
            AtPeer(method=method, gossip_rounds=gossip_rounds),
            reference=prepared.reference,
        )
    except DflUnlearnError as error:
        return error


def four(outcome: Outcome) -> NDArray[np.float64]:
    """Return the figures that gaps are about, of the requester's model."""
    alone = _alone(outcome, outcome.request.requester)
    rows = evaluate(alone, FOUR, worlds="after").rows
    values = {row["metric"]: row["value"] for row in rows}
    return np.array([values[name] for name in FOUR])


def _alone(outcome: Outcome, peer: int) -> Outcome:
    """Return the outcome of one peer's model on the rows of the whole network.

    Attacks are fitted per peer, and one peer's are enough here.
    """
    run, reference = outcome.run, outcome.reference
    if run.topology.n == 1:
        return outcome
    assert reference is not None
    gone = np.flatnonzero(outcome.request.mask(run.data))

    def of(state: PeerState) -> PeerState:
        return PeerState(params=state.params[peer : peer + 1], round=state.round)

    return replace(
        outcome,
        run=run.replaced(
            data=run.data.pooled(), topology=Topology.single(), state=of(run.state)
        ),
        request=ForgetRequest.samples(
            peer=0, indices=gone, request_id=outcome.request.request_id
        ),
        state=of(outcome.state),
        reference=reference.replaced(
            data=reference.data.pooled(),
            topology=Topology.single(),
            state=of(reference.state),
        ),
    )


@lru_cache(maxsize=1)
def _source(name: str, rows: int | None, test_rows: int | None) -> Dataset:
    return load(name, rows=rows, test_rows=test_rows)


@lru_cache(maxsize=1)
def _warm_up() -> float:
    """Let torch import what its first step needs, so that no method pays for it."""
    began = time.perf_counter()
    leaf = torch.zeros(1, requires_grad=True)
    leaf.grad = torch.zeros(1)
    for kind in ("sgd", "adam"):
        built: Any = LocalOptimizer(kind=kind).build(leaf)  # type: ignore[arg-type]
        built.step()
    return time.perf_counter() - began
