"""What changes results, and apart from it what changes speed only."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn._limits import MAX_ROUNDS
from dfl_unlearn.accounting.ledger import PrivacyBudget
from dfl_unlearn.engine.clock import NetworkClock
from dfl_unlearn.engine.fault_rounds import check_faults
from dfl_unlearn.engine.faults import FaultPlan
from dfl_unlearn.engine.trainers.contract import PrivateSteps, Trainer
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.registry import Registry
from dfl_unlearn.topology.graph import TopologySchedule

KernelName = Literal["auto", "stacked", "vmap", "loop"]

trainers: Registry[Trainer] = Registry(
    "trainers", packages=("dfl_unlearn.engine.trainers",)
)


def _default_trainer() -> Trainer:
    return trainers.build("d-sgd")


@dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """Gradient steps that every peer takes in one round.

    Attributes:
        epochs: Passes over the peer's own rows per round; None counts ``steps``.
        steps: Gradient steps per round where ``epochs`` is None.
        batch_size: Rows per step; None is the full batch.
        learning_rate: Step size of the first round.
        lr_schedule: ``constant``; ``cosine`` falls to almost 0 at the last round;
            ``inverse_sqrt`` divides by sqrt(1 + round).
        momentum: Heavy-ball momentum, in [0, 1).
        weight_decay: Added times the parameters to each gradient; unlike the model's
            ``l2`` it is not part of the objective.
        clip_norm: Bound on the L2 norm of every sample's gradient (data term).
    """

    epochs: float | None = None
    steps: int = 1
    batch_size: int | None = 32
    learning_rate: float = 0.1
    lr_schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.epochs is not None:
            _validate.number(epochs=self.epochs, above=0, at_most=1e4)
            if self.steps != 1:
                raise InvalidArgumentError(
                    f"steps: must stay at its default 1 when epochs is given, got "
                    f"{self.steps}; drop one of the two"
                )
        _validate.integer(steps=self.steps, at_least=1, at_most=100_000)
        if self.batch_size is not None:
            _validate.integer(
                batch_size=self.batch_size, at_least=1, at_most=1_000_000_000
            )
        _validate.number(learning_rate=self.learning_rate, above=0)
        _validate.one_of(
            ("constant", "cosine", "inverse_sqrt"), lr_schedule=self.lr_schedule
        )
        _validate.number(momentum=self.momentum, at_least=0, below=1)
        _validate.number(weight_decay=self.weight_decay, at_least=0)
        if self.clip_norm is not None:
            _validate.number(clip_norm=self.clip_norm, above=0)

    def rate(self, t: int, rounds: int) -> float:
        """Return the step size of round t.

        Args:
            t: Round, counted from 0; rounds past the end keep the last one's rate.
            rounds: Planned length of the run.

        Returns:
            The learning rate.
        """
        t = min(t, rounds - 1)
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * t / rounds))
        if self.lr_schedule == "inverse_sqrt":
            return self.learning_rate / math.sqrt(1 + t)
        return self.learning_rate

    def batches(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of batches in one epoch of peers of the given sizes."""
        if self.batch_size is None:
            return np.ones_like(sizes)
        return -(-sizes // self.batch_size)

    def per_round(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many steps each peer takes in a round.

        Args:
            sizes: Stored rows per peer, shape ``(N,)``.

        Returns:
            At least 1 each, shape ``(N,)``; ``epochs`` times the batches of an epoch,
            rounded to the nearest step.
        """
        if self.epochs is None:
            return np.full_like(sizes, self.steps)
        passes = np.rint(self.epochs * self.batches(sizes)).astype(np.int64)
        steps: NDArray[np.int64] = np.maximum(passes, 1)
        return steps


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """Everything besides topology, data and model that changes a run's results.

    Attributes:
        rounds: Gossip rounds T.
        seed: Seed of every draw of the run.
        trainer: The training iteration, e.g. ``DSgd()``.
        local: Local gradient steps of a round.
        peer_weighting: ``uniform`` gives every peer's mean loss the same weight;
            ``size`` weights it by the peer's number of rows, as if data were pooled.
        schedule: Networks that change with the round; None is the topology itself.
        faults: What goes wrong in the simulated network; nothing by default.
        record: What training writes down.
        common_init: Whether all peers start from the same parameters.
        dtype: Type of the training arithmetic.
        block_peers: Peers per unit of work; part of the run's identity.
        chunk_peers: Peers trained together in cache; ``auto`` is 16.
        threads: Threads of the linear algebra; changes the last bits of results.
        kernel: How local steps are batched over peers; ``auto`` chooses by the model's
            structure, never by timing.
        evaluate_every: Rounds between evaluations; 0 evaluates only at the end.
        privacy_budget: Caps that the ledger enforces.
        clock: How fast the peers and their lines are, for simulated time only; it
            changes no parameter.
    """

    rounds: int = 100
    seed: int = 0
    trainer: Trainer = field(default_factory=_default_trainer)
    local: LocalSteps = field(default_factory=LocalSteps)
    peer_weighting: Literal["uniform", "size"] = "uniform"
    schedule: TopologySchedule | None = None
    faults: FaultPlan = field(default_factory=FaultPlan)
    record: RecordPlan = field(default_factory=RecordPlan)
    common_init: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    block_peers: int = 16
    chunk_peers: int | Literal["auto"] = "auto"
    threads: int = 1
    kernel: KernelName = "auto"
    evaluate_every: int = 10
    privacy_budget: PrivacyBudget = field(default_factory=PrivacyBudget)
    clock: NetworkClock = field(default_factory=NetworkClock)

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.integer(rounds=self.rounds, at_least=1, at_most=MAX_ROUNDS)
        _validate.integer(seed=self.seed, at_least=0, at_most=2**63 - 1)
        _validate.of_type(Trainer, why="e.g. DSgd(form='atc')", trainer=self.trainer)
        _validate.of_type(LocalSteps, local=self.local)
        _validate.one_of(("uniform", "size"), peer_weighting=self.peer_weighting)
        _validate.of_type(FaultPlan, faults=self.faults)
        _validate.of_type(RecordPlan, record=self.record)
        _validate.of_type(bool, common_init=self.common_init)
        _validate.one_of(("float32", "float64"), dtype=self.dtype)
        _validate.integer(block_peers=self.block_peers, at_least=1)
        if self.chunk_peers != "auto":
            _validate.integer(chunk_peers=self.chunk_peers, at_least=1)
        _validate.integer(threads=self.threads, at_least=1, at_most=1024)
        _validate.one_of(("auto", "stacked", "vmap", "loop"), kernel=self.kernel)
        _validate.integer(evaluate_every=self.evaluate_every, at_least=0)
        _validate.of_type(PrivacyBudget, privacy_budget=self.privacy_budget)
        _validate.of_type(NetworkClock, clock=self.clock)
        self.trainer.check(self)
        if self.faults:
            check_faults(self.faults, self)

    @property
    def private(self) -> PrivateSteps | None:
        """How the trainer's steps hide single records; None if they do not."""
        found: PrivateSteps | None = getattr(self.trainer, "private", None)
        return found

    @property
    def clip_norm(self) -> float | None:
        """Bound on every sample's gradient: the trainer's own, else ``local``'s."""
        return self.local.clip_norm if self.private is None else self.private.clip_norm

    @property
    def torch_dtype(self) -> torch.dtype:
        """The training type as torch knows it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def item_size(self) -> int:
        """Bytes of one number of the training arithmetic."""
        return 8 if self.dtype == "float64" else 4


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """What changes speed and display only, never results; not hashed.

    Attributes:
        engine: ``inline`` trains in this process; ``ray`` on worker processes; ``auto``
            starts inline and moves to Ray where measured rounds say that it pays.
        workers: Ray workers; each owns whole blocks of peers, so there are never more
            than blocks. With ``auto``, 1 means one per core.
        checkpoint_every: Rounds between checkpoints in the run folder; ``auto`` is one
            about every 30 seconds.
        keep: Checkpoints that stay in the run folder.
        max_block_retries: Times that a block's worker is replaced in one round.
        block_timeout_s: Seconds that a round may take before it counts as lost.
        stall_timeout_s: Seconds without any finished block after which the run ends.
        max_wall_s: Seconds after which training stops with a checkpoint; None never.
        ray_address: ``host:port`` of a running Ray cluster to join; None starts Ray on
            this machine.
        ray_allow_remote: Permission to send code and data to other machines, which a
            cluster needs, also one on this machine.
        progress: Whether to show a progress bar (on a terminal) or plain lines.
        allow_large: Whether to start although the estimated memory is above 80 % of
            what is available.
    """

    engine: Literal["inline", "ray", "auto"] = "inline"
    workers: int = 1
    checkpoint_every: int | Literal["auto"] = "auto"
    keep: int = 2
    max_block_retries: int = 5
    block_timeout_s: float = 600.0
    stall_timeout_s: float = 900.0
    ray_address: str | None = None
    ray_allow_remote: bool = False
    max_wall_s: float | None = None
    progress: bool = False
    allow_large: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.one_of(("inline", "ray", "auto"), engine=self.engine)
        _validate.integer(workers=self.workers, at_least=1, at_most=1024)
        if self.engine == "inline" and self.workers != 1:
            raise InvalidArgumentError(
                f"workers: must be 1 with engine='inline', got {self.workers}; use "
                "engine='ray' or 'auto'"
            )
        if self.checkpoint_every != "auto":
            _validate.integer(checkpoint_every=self.checkpoint_every, at_least=1)
        _validate.integer(keep=self.keep, at_least=1)
        if self.max_wall_s is not None:
            _validate.number(max_wall_s=self.max_wall_s, above=0)
        _validate.integer(max_block_retries=self.max_block_retries, at_least=0)
        _validate.number(block_timeout_s=self.block_timeout_s, above=0)
        _validate.number(stall_timeout_s=self.stall_timeout_s, above=0)
        _validate.of_type(bool, ray_allow_remote=self.ray_allow_remote)
        if self.ray_address is not None:
            _check_address(self.ray_address, self.engine)
        _validate.of_type(bool, progress=self.progress, allow_large=self.allow_large)


def _check_address(address: str, engine: str) -> None:
    _validate.of_type(str, ray_address=address)
    if engine == "inline":
        raise InvalidArgumentError(
            f"ray_address: must be None with engine='inline', got {address[:200]!r}; "
            "use engine='ray'"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", address):
        raise InvalidArgumentError(
            f"ray_address: must be host:port of a running cluster, got "
            f"{address[:200]!r}; 'auto' and ray:// are not offered"
        )
