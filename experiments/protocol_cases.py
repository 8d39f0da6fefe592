"""One case of ``compare_protocols.py``: train, retrain twice, forget by every protocol.

A case is one forget set on one network; its seed is that of everything drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import method_recipes
import torch
from forget_sets import SETTINGS, forget_set
from method_recipes import with_batches

from dfl_unlearn import (
    ForgetRequest,
    NewtonFisher,
    PeerData,
    RrDu,
    SimulationConfig,
    load_topology,
    simulate,
    unlearn,
)
from dfl_unlearn.accounting.calibrate import noise_multiplier_for
from dfl_unlearn.baselines.dp_gossip import DpGossipBaseline
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import DflUnlearnError
from dfl_unlearn.evaluation.comparison import Line, measure
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.contracts import Outcome, UnlearningProtocol
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.retrain import Retrain

DATA = "digits"
ALONE = AtPeer(method="retrain")
"""The owner trains again, without its neighbours."""
TUNED = "tuned on an MLP against its retrained model"
NOT_ONES = ("original", "retrain")
"""Local methods that are no methods here: a control, and one that is named apart."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One original network and one forget set.

    Attributes:
        forget: What goes, of ``forget_sets.SETTINGS``.
        topology: ``ring``, or ``random-regular`` of degree 4.
        seed: Of partition, network, training and forget set.
        peers: How many.
        alpha: Dirichlet concentration of their classes.
        min_per_peer: Rows of each at least.
        l2: Strong convexity of the softmax regression.
        rounds: Rounds of training, likewise ``rate`` and ``batch_size``.
        epsilon: Of every certified release, at ``delta``.
        delta: See there.
        cap: Public cap of newton-fisher on the distance to the exact minimizer.
        damping: Of the diagonal Fisher information.
        walk_cap: Public cap of rr-du on its start.
        descent_rounds: Rounds of descent to delete, at ``descent_rate``, full batches.
        descent_rate: See there.
        descent_cap: Public cap on the distance of all peers to their fixed point.
        tune_rounds: Rounds of fine-tuning without a claim.
        mixing_rounds: Rounds of averaging after a local method.
        dp_rounds: Rounds of private training, likewise ``dp_share`` (sampling rate),
            ``dp_clip`` and ``dp_rate`` (learning rate); one row costs ``epsilon``.
        methods: Names of local methods; () is all that are registered.
    """

    forget: str
    topology: str
    seed: int
    peers: int = 16
    alpha: float = 0.5
    min_per_peer: int = 30
    l2: float = 0.1
    rounds: int = 300
    rate: float = 0.3
    batch_size: int = 32
    epsilon: float = 1.0
    delta: float = 1e-5
    cap: float = 1e-3
    damping: float = 0.1
    walk_cap: float = 30.0
    descent_rounds: int = 800
    descent_rate: float = 0.1
    descent_cap: float = 0.01
    tune_rounds: int = 10
    mixing_rounds: int = 3
    dp_rounds: int = 150
    dp_share: float = 0.05
    dp_clip: float = 1.0
    dp_rate: float = 0.3
    methods: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        """The name of the setting in tables."""
        return f"{self.forget}, {self.topology}"

    @property
    def requester(self) -> int:
        """The peer whose rows go."""
        return self.seed % self.peers


@metrics.register("test-accuracy-worst")
@measures(set="test", worlds=("after",), default=False)
def test_accuracy_worst(view: EvaluationView) -> torch.Tensor:
    """Test accuracy of the peer that has the lowest."""
    return metrics.get("test-accuracy-kept")(view).min()


@metrics.register("retain-accuracy-worst")
@measures(set="retain", worlds=("after",), default=False)
def retain_accuracy_worst(view: EvaluationView) -> torch.Tensor:
    """Accuracy on all retained rows of the peer that has the lowest."""
    return metrics.get("retain-accuracy")(view).min()


@metrics.register("forget-accuracy-most")
@measures(set="forget", worlds=("after",), default=False)
def forget_accuracy_most(view: EvaluationView) -> torch.Tensor:
    """Accuracy on the forgotten rows of the peer that still knows most of them."""
    return metrics.get("forget-accuracy")(view).max()


METRICS = (
    "mia-loss-auc",
    "test-accuracy-worst",
    "retain-accuracy-worst",
    "forget-accuracy-most",
    "cost-messages",
    "cost-payload-bytes",
)
"""Measured beside the minimum of ``evaluation.comparison``."""


def lines(case: Case) -> Iterator[tuple[str, Line | DflUnlearnError]]:
    """Train, carry out the request by controls and protocols, and measure.

    Args:
        case: The case.

    Yields:
        The name in tables, and the line or why there is none.
    """
    local, tuned = local_methods(case)
    run, request = trained(case, RecordPlan.for_protocols(RrDu, ALONE, *local.values()))
    retrained = unlearn(run, request, Retrain())
    reference = retrained.reference
    assert reference is not None

    def line(name: str, outcome: Outcome, note: str = "") -> Line:
        return measure(
            outcome,
            setting=case.setting,
            method=name,
            seed=case.seed,
            metrics=METRICS,
            note=note,
        )

    yield "retrain", line("retrain", retrained)
    starts = {"original": (run, AtPeer(method=Original()))}
    starts["retrain-2"] = run, Retrain(coupled=False, seed_offset=1)
    starts |= protocols_of(case, run)
    starts |= {name: (run, protocol) for name, protocol in local.items()}
    for name, (start, protocol) in starts.items():
        try:
            outcome = unlearn(start, request, protocol, reference=reference)
            note = TUNED if name in tuned else ""
            if start is not run and name == "dp-gossip":
                note = "own training"
            yield name, line(name, outcome, note)
        except DflUnlearnError as error:
            yield name, error


def trained(case: Case, plan: RecordPlan) -> tuple[TrainedRun, ForgetRequest]:
    """Return the original network and the request."""
    plain = PeerData.load(
        DATA,
        peers=case.peers,
        partition="dirichlet",
        alpha=case.alpha,
        min_per_peer=case.min_per_peer,
        seed=case.seed,
    )
    data, request = forget_set(case.forget, plain, peer=case.requester, seed=case.seed)
    model = models.build(
        "logistic",
        input_shape=tuple(data.store.inputs.shape[1:]),
        num_classes=data.num_classes,
        l2=case.l2,
    )
    options = (
        {"degree": 4, "seed": case.seed} if case.topology == "random-regular" else {}
    )
    config = SimulationConfig(
        rounds=case.rounds,
        seed=case.seed,
        evaluate_every=0,
        record=replace(plan, every=max(1, case.rounds // 20)),
        local=LocalSteps(
            batch_size=case.batch_size,
            learning_rate=case.rate,
            lr_schedule="cosine",
        ),
    )
    topology = load_topology(case.topology, n=case.peers, **options)
    return simulate(topology, data, model, config), request


def protocols_of(
    case: Case, run: TrainedRun
) -> dict[str, tuple[TrainedRun, UnlearningProtocol]]:
    """Return each protocol and baseline with the run that it starts from."""
    claim: dict[str, Any] = {"epsilon": case.epsilon, "delta": case.delta}
    # The proof of descent to delete asks for this training.
    descending = TrainedRun.from_states(
        run.topology,
        run.data,
        run.model,
        run.state.params,
        SimulationConfig(
            seed=case.seed,
            trainer=DSgd(form="cta"),
            local=LocalSteps(batch_size=None, learning_rate=case.descent_rate),
        ),
    )
    return {
        "newton-fisher": (run, NewtonFisher(residual_cap=case.cap, **claim)),
        "newton-fisher, diagonal": (
            run,
            NewtonFisher(
                residual_cap=case.cap,
                curvature="diag_fisher",
                damping=case.damping,
                assume_stationary=True,
                **claim,
            ),
        ),
        "rr-du": (run, RrDu(residual_cap=case.walk_cap, **claim)),
        "fine-tune": (run, FineTune(rounds=case.tune_rounds)),
        "fine-tune, epsilon": (
            descending,
            FineTune(
                rounds=case.descent_rounds, residual_cap=case.descent_cap, **claim
            ),
        ),
        "dp-gossip": (private(case, run), DpGossipBaseline(delta=case.delta)),
        "at-peer retrain": (run, replace(ALONE, gossip_rounds=case.mixing_rounds)),
    }


def private(case: Case, run: TrainedRun) -> TrainedRun:
    """Return a network whose training has hidden every single row."""
    noise = noise_multiplier_for(
        case.epsilon, case.delta, case.dp_share, case.dp_rounds
    )
    config = SimulationConfig(
        rounds=case.dp_rounds,
        seed=case.seed,
        evaluate_every=0,
        trainer=DpGossip(
            clip_norm=case.dp_clip, noise_multiplier=noise, rate=case.dp_share
        ),
        local=LocalSteps(learning_rate=case.dp_rate, lr_schedule="cosine"),
    )
    return simulate(run.topology, run.data, run.model, config)


def local_methods(case: Case) -> tuple[dict[str, AtPeer], frozenset[str]]:
    """Return the local methods by their names in tables, and the tuned of them."""
    recipes = method_recipes.of(DATA, tuple(SETTINGS))
    every = recipes.methods(case.forget, network=True)
    chosen = {
        f"at-peer {name}": AtPeer(
            method=with_batches(method, case.batch_size),
            gossip_rounds=case.mixing_rounds,
        )
        for name, method in every.items()
        if name not in NOT_ONES and name in (case.methods or every)
    }
    tuned = recipes.oracle_tuned(case.forget, network=True)
    return chosen, frozenset(f"at-peer {name}" for name in tuned)
