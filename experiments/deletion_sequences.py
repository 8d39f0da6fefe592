"""One row after the other goes, until the privacy budget or the protocol refuses.

What ``deletion_capacity.py`` measures; that script has the question and the tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
from dfl_unlearn.accounting.budget import PrivacyBudget
from dfl_unlearn.accounting.calibrate import noise_multiplier_for
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import peer_scores
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    GroupPrivacyError,
    InvalidArgumentError,
    MissingRecordError,
    PrivacyBudgetExceededError,
    RefusedError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.unlearning.contracts import UnlearningProtocol
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune

DP = "dp-gossip"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and how its rows go.

    Attributes:
        dataset: Registered name.
        peers: On a random regular network of this ``degree``.
        alpha: Dirichlet concentration of the classes.
        l2: Strong convexity of the objective.
        rounds: Rounds of training, likewise ``rate`` and ``batch_size``.
        releases: Epsilon of every single release.
        budgets: Caps on the total epsilon of an owner towards an observer.
        delta: Of releases and budgets.
        cap: Public cap on the distance to the exact target (newton-fisher, fine-tune).
        walk_cap: Public cap of rr-du on its start.
        descent_rounds: Rounds of fine-tuning per deletion, at ``descent_rate``.
        dp_rounds: Rounds of private training, likewise ``dp_share`` (sampling rate),
            ``dp_clip`` and ``dp_rate`` (learning rate).
        tolerance: Rise of the loss that ``deletion_capacity`` allows.
        most: Deletions at most, so that no sequence runs on for ever.
        seeds: Of partition, training and forgotten rows.
    """

    dataset: str = "digits"
    peers: int = 16
    degree: int = 4
    alpha: float = 0.5
    l2: float = 0.3
    rounds: int = 150
    rate: float = 0.3
    batch_size: int = 64
    releases: tuple[float, ...] = (0.25, 0.5)
    budgets: tuple[float, ...] = (1.0, 2.0)
    delta: float = 1e-5
    cap: float = 1e-3
    walk_cap: float = 3.0
    descent_rounds: int = 350
    descent_rate: float = 0.05
    dp_rounds: int = 150
    dp_share: float = 0.05
    dp_clip: float = 1.0
    dp_rate: float = 0.3
    tolerance: float = 0.1
    most: int = 60
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        """Refuse a budget without room for a single release.

        Raises:
            InvalidArgumentError: Naming both values.
        """
        if min(self.budgets, default=0) < max(self.releases, default=1):
            raise InvalidArgumentError(
                f"budgets: must be at least the largest of releases, got {self.budgets}"
                f" and releases {self.releases}; raise budgets or lower releases"
            )


def of_seed(settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one seed, the retrained network's last."""
    data = data_of(settings, seed)
    peer = int(data.sizes.argmax())
    longest = 1
    for release in settings.releases:
        for budget in settings.budgets:
            named = {"release": release, "budget": budget, "seed": seed}
            starts = trained(settings, data, seed, budget)
            for name, (run, protocol) in protocols_of(
                settings, starts, release
            ).items():
                for row in sequence(settings, run, protocol, peer):
                    longest = max(longest, row["deletions"])
                    yield {"protocol": name, **named, **row}
            yield from (
                {"protocol": DP, **named, **row}
                for row in private(settings, data, seed, release, budget, peer)
            )
    yield {"protocol": "retrain", "seed": seed, **retrained(starts[0], peer, longest)}


def data_of(settings: Settings, seed: int) -> PeerData:
    """Return the peers' rows."""
    return PeerData.load(
        settings.dataset,
        peers=settings.peers,
        partition="dirichlet",
        alpha=settings.alpha,
        seed=seed,
    )


def model_of(settings: Settings, data: PeerData, l2: float) -> Any:
    """Return the softmax regression."""
    shape = tuple(data.store.inputs.shape[1:])
    return models.build(
        "logistic", input_shape=shape, num_classes=data.num_classes, l2=l2
    )


def trained(
    settings: Settings, data: PeerData, seed: int, budget: float
) -> tuple[TrainedRun, TrainedRun]:
    """Return a trained network with a budget, and the same one for descent to delete.

    Args:
        settings: The training.
        data: The peers' rows.
        seed: Of network and training.
        budget: Cap on the total epsilon.

    Returns:
        The run, and one from the same models whose training is as the proof of
        descent to delete asks.
    """
    spend = PrivacyBudget(epsilon_max=budget, delta_max=settings.delta)
    config = SimulationConfig(
        rounds=settings.rounds,
        seed=seed,
        evaluate_every=0,
        privacy_budget=spend,
        record=RecordPlan.for_protocols(RrDu),
        local=LocalSteps(
            batch_size=settings.batch_size,
            learning_rate=settings.rate,
            lr_schedule="cosine",
        ),
    )
    run = simulate(
        network(settings, seed), data, model_of(settings, data, settings.l2), config
    )
    descent = SimulationConfig(
        seed=seed,
        privacy_budget=spend,
        trainer=DSgd(form="cta"),
        local=LocalSteps(batch_size=None, learning_rate=settings.descent_rate),
    )
    return run, TrainedRun.from_states(
        run.topology, data, run.model, run.state.params, descent
    )


def network(settings: Settings, seed: int) -> Any:
    """Return the random regular network."""
    return load_topology(
        "random-regular", n=settings.peers, degree=settings.degree, seed=seed
    )


def protocols_of(
    settings: Settings, starts: tuple[TrainedRun, TrainedRun], release: float
) -> dict[str, tuple[TrainedRun, UnlearningProtocol]]:
    """Return each certified protocol with the run that it starts from."""
    plain, descending = starts
    claim = {"epsilon": release, "delta": settings.delta}
    return {
        "newton-fisher": (plain, NewtonFisher(residual_cap=settings.cap, **claim)),
        "fine-tune": (
            descending,
            FineTune(
                rounds=settings.descent_rounds, residual_cap=settings.cap, **claim
            ),
        ),
        "rr-du": (plain, RrDu(residual_cap=settings.walk_cap, **claim)),
    }


def sequence(
    settings: Settings, run: TrainedRun, protocol: UnlearningProtocol, peer: int
) -> Iterator[dict[str, Any]]:
    """Yield a row before and after every deletion, until one is refused.

    Args:
        settings: Delta, and deletions at most.
        run: The trained network; its ledger has the budget.
        protocol: Carries out every request, each time from its last release.
        peer: Whose rows go, one at a time.

    Yields:
        Deletions, epsilon spent, accuracies, costs of this deletion and, in the last
        row, why it is the last.
    """
    row = {"deletions": 0, "epsilon": 0.0, **accuracies(run), "stopped": ""}
    for deletions in range(1, settings.most + 1):
        share = 1 / int(run.data.sizes[peer])
        request = ForgetRequest.samples(peer=peer, fraction=share, seed=deletions)
        try:
            outcome = unlearn(run, request, protocol)
        except PrivacyBudgetExceededError:
            yield {**row, "stopped": "budget"}
            return
        except MissingRecordError:
            yield {**row, "stopped": "record of training left behind"}
            return
        except RefusedError as error:
            yield {**row, "stopped": type(error).__name__}
            return
        yield row
        run = outcome.as_run()
        spent = run.ledger.epsilon(f"peer:{peer}", "public", settings.delta)
        row = {
            "deletions": deletions,
            "epsilon": spent,
            **accuracies(run),
            "gradients": outcome.cost.gradient_evaluations,
            "seconds": outcome.cost.wall_seconds,
            "stopped": "",
        }
    yield {**row, "stopped": f"stopped after {settings.most}"}


def private(
    settings: Settings,
    data: PeerData,
    seed: int,
    release: float,
    budget: float,
    peer: int,
) -> Iterator[dict[str, Any]]:
    """Yield a row per number of rows that noisy training hides within the budget.

    Args:
        settings: The private training.
        data: The peers' rows.
        seed: Of network and training.
        release: Epsilon of all of training for one row.
        budget: Cap on the epsilon of the group.
        peer: Whose rows go, all at once.

    Yields:
        As ``sequence``; forgetting takes no gradients.
    """
    noise = noise_multiplier_for(
        release, settings.delta, settings.dp_share, settings.dp_rounds
    )
    config = SimulationConfig(
        rounds=settings.dp_rounds,
        seed=seed,
        evaluate_every=0,
        trainer=DpGossip(
            clip_norm=settings.dp_clip,
            noise_multiplier=noise,
            rate=settings.dp_share,
        ),
        local=LocalSteps(learning_rate=settings.dp_rate, lr_schedule="cosine"),
    )
    model = model_of(settings, data, settings.l2)
    run = simulate(network(settings, seed), data, model, config)
    row = {"deletions": 0, "epsilon": 0.0, **accuracies(run), "stopped": ""}
    for size in range(1, settings.most + 1):
        request = ForgetRequest.samples(peer=peer, indices=range(size))
        try:
            outcome = unlearn(run, request, DP)
        except GroupPrivacyError:
            yield {**row, "stopped": "no bound for the group"}
            return
        assert outcome.certificate is not None
        if outcome.certificate.epsilon > budget:
            yield {**row, "stopped": "budget"}
            return
        yield row
        row = {
            **row,
            "deletions": size,
            "epsilon": outcome.certificate.epsilon,
            "gradients": outcome.cost.gradient_evaluations,
            "seconds": outcome.cost.wall_seconds,
        }
    yield {**row, "stopped": f"stopped after {settings.most}"}


def retrained(run: TrainedRun, peer: int, deletions: int) -> dict[str, Any]:
    """Return the row of retraining once, without as many rows."""
    request = ForgetRequest.samples(peer=peer, indices=range(deletions))
    outcome = unlearn(run, request, "retrain")
    return {
        "deletions": deletions,
        "epsilon": 0.0,
        **accuracies(outcome.as_run()),
        "gradients": outcome.cost.gradient_evaluations,
        "seconds": outcome.cost.wall_seconds,
        "stopped": "needs no budget",
    }


def accuracies(run: TrainedRun) -> dict[str, float]:
    """Return the mean and the worst peer's test accuracy."""
    scores = peer_scores(run.model, run.state.params, run.data)
    return {"mean": float(scores.mean()), "worst": float(scores.min())}
