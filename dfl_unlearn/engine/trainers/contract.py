"""What a gossip trainer is: functions of the rows of a few peers, around the mixing.

A round of every trainer is the same three steps for each fixed block of peers: work
before the mixing, ``W @ rows`` of everything in ``mixed``, work after it. A trainer
says what happens in the first and the last; it never sees another peer's rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from dfl_unlearn.engine.config import SimulationConfig

Form = Literal["atc", "cta"]
Iteration = Literal["atc", "cta", "gradient_tracking"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """What the local work of some peers tells.

    Attributes:
        loss: Loss of each peer's first batch (data term, mean), shape ``(k,)``.
        norms: Sum over the steps of the norm of the data term's gradient, ``(k,)``.
    """

    loss: Floats
    norms: Floats


@dataclass(frozen=True, kw_only=True)
class PrivateSteps:
    """How one step of a round hides every single record of a peer.

    The step takes each of the peer's n stored rows by a coin of its own with
    probability ``rate``, clips every taken row's gradient to ``clip_norm``, adds noise
    of standard deviation ``noise_multiplier * clip_norm`` per coordinate to the *sum*,
    also to that of no row at all, and divides by ``rate * n``, which is public.

    Attributes:
        clip_norm: C > 0.
        noise_multiplier: Noise over C, > 0.
        rate: Probability of every row to be taken, in (0, 1].
    """

    clip_norm: float
    noise_multiplier: float
    rate: float


class Rows(Protocol):
    """The rows of the peers of one chunk, by name."""

    def __getitem__(self, name: str) -> Tensor:
        """Return ``params`` or a slot, shape ``(k, P)``; writing to it counts."""
        ...


class ChunkWork(Protocol):
    """What a trainer may compute at the peers of one chunk."""

    def steps(self, t: int, params: Tensor, rows: Rows) -> Report:
        """Take the local steps of round t on ``params``, in place.

        The optimizer's own state is a slot of ``rows``.
        """
        ...

    def gradient(self, t: int, params: Tensor) -> tuple[Tensor, Report]:
        """Return the gradients of the objectives on the batch of round t, ``(k, P)``.

        They include l2 and weight decay, and the factor of ``peer_weighting``.
        """
        ...

    def private_step(self, t: int, params: Tensor) -> Report:
        """Take the one private step of round t on ``params``, in place.

        The trainer says how, in an attribute ``private`` of type ``PrivateSteps``.
        """
        ...

    def rate(self, t: int) -> float:
        """Return the learning rate of round t."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """A gossip training iteration as functions of blocks of rows.

    A trainer may also have an attribute ``private`` (``PrivateSteps``): then its rounds
    are charged to the run's ledger, and it trains by ``ChunkWork.private_step`` alone.
    """

    @property
    def form(self) -> Iteration:
        """Name of the iteration, for recursions that follow it."""
        ...

    @property
    def slots(self) -> tuple[str, ...]:
        """Vectors that each peer keeps besides its parameters; zero at the start."""
        ...

    @property
    def mixed(self) -> tuple[str, ...]:
        """What crosses edges: ``params`` and any of ``slots``."""
        ...

    def check(self, config: "SimulationConfig") -> None:
        """Raise where the iteration does not go with the other settings."""
        ...

    def start(self, rows: Rows, work: ChunkWork, t: int) -> None:
        """Fill the slots of a state that has none, before round t."""
        ...

    def before(self, rows: Rows, work: ChunkWork, t: int) -> Report | None:
        """Work in place on rows that are then mixed; None if nothing was done."""
        ...

    def after(self, old: Rows, new: Rows, work: ChunkWork, t: int) -> Report | None:
        """Work in place on mixed rows.

        Args:
            old: The rows as they went into the mixing; not to be written to.
            new: The mixed rows, and the slots that do not cross edges.
            work: What may be computed.
            t: The round, from 0.

        Returns:
            What the local work told, or None if there was none.
        """
        ...
