r"""Decentralized DP-SGD: noise on every peer's clipped gradients, then gossip.

In round t peer i takes each of its :math:`n_i` stored rows by a coin of its own with
probability q, and steps along

.. math:: \tilde g_i = \frac{1}{q n_i} \Bigl( \sum_{z \in S_i}
    \mathrm{clip}_C\,\nabla\ell(x_i; z) + \nu C\,\xi_i \Bigr),
    \qquad \xi_i \sim N(0, I),

plus the l2 term; mixing is that of ``d-sgd`` in either form. One row more or less moves
the sum by at most C, and the divisor, the *expected* size of the batch, is public and
does not change with it. (The realized size would: a mean over it is not bounded that
way.) An empty batch is a step like any other: noise is added and charged.

Whoever sees all messages of all rounds sees T adaptively composed Poisson-sampled
Gaussians of any one row (local privacy; [derived]: given all messages so far, every
peer's model is known, so a round differs between the two worlds in the sum of the
row's owner alone). The run's ledger is charged with them under owner ``"*"`` before the
first round. This holds for one row; a group of m rows is not covered by it, see
``baselines.dp_gossip``.

Not covered are what the simulator itself sees: losses, gradient norms and accuracies of
the run's history carry no noise.

References:
    Abadi et al. (2016), Deep learning with differential privacy [recalled].
    Mironov, Talwar and Zhang (2019), Renyi differential privacy of the sampled Gaussian
    mechanism [recalled].
"""

from dataclasses import dataclass
from typing import ClassVar

from dfl_unlearn import _validate
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig, trainers
from dfl_unlearn.engine.trainers.contract import (
    ChunkWork,
    Form,
    PrivateSteps,
    Report,
    Rows,
)
from dfl_unlearn.errors import InvalidArgumentError, InvalidPrivacyParameterError


@trainers.register("dp-gossip")
@dataclass(frozen=True, kw_only=True)
class DpGossip:
    """Decentralized DP-SGD: clipped gradients of Poisson batches, noise, gossip.

    Attributes:
        clip_norm: Bound C on the L2 norm of every row's gradient (data term).
        noise_multiplier: Standard deviation of the noise on the sum, over C.
        rate: Probability of every row to be in a batch, in (0, 1].
        form: ``atc`` mixes after the step, ``cta`` adds the step to the mixed rows.
    """

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    rate: float = 0.1
    form: Form = "atc"

    slots: ClassVar[tuple[str, ...]] = ()
    mixed: ClassVar[tuple[str, ...]] = ("params",)

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.number(clip_norm=self.clip_norm, above=0)
        _validate.number(
            noise_multiplier=self.noise_multiplier,
            above=0,
            error=InvalidPrivacyParameterError,
            why="without noise there is no privacy: use d-sgd with local.clip_norm",
        )
        _validate.number(
            rate=self.rate, above=0, at_most=1, error=InvalidPrivacyParameterError
        )
        _validate.one_of(("atc", "cta"), form=self.form)

    @property
    def private(self) -> PrivateSteps:
        """How every step is made."""
        return PrivateSteps(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            rate=self.rate,
        )

    def check(self, config: SimulationConfig) -> None:
        """Refuse settings under which a step would not be what is charged.

        Args:
            config: The other settings.

        Raises:
            InvalidArgumentError: If one of them does not go with the iteration.
        """
        local, plain = config.local, LocalSteps()
        steps = f"epochs={local.epochs:g}" if local.epochs else f"steps={local.steps}"
        for name, value, differs, remedy in (
            ("steps", steps, steps != "steps=1", "a round is one step and one noise"),
            (
                "batch_size",
                local.batch_size,
                local.batch_size != plain.batch_size,
                "set trainer.rate, the probability of every row; 1 takes all",
            ),
            (
                "momentum",
                local.momentum,
                local.momentum > 0,
                "it is not part of this iteration",
            ),
            (
                "clip_norm",
                local.clip_norm,
                local.clip_norm is not None,
                "set trainer.clip_norm",
            ),
        ):
            if differs:
                raise InvalidArgumentError(
                    f"local.{name}: must stay at its default for dp-gossip, got "
                    f"{value}; {remedy}"
                )
        if config.peer_weighting != "uniform":
            raise InvalidArgumentError(
                "peer_weighting: must be 'uniform' for dp-gossip, got "
                f"{config.peer_weighting!r}; weights by size change at every peer with "
                "one row"
            )

    def start(self, rows: Rows, work: ChunkWork, t: int) -> None:
        """Fill nothing: there are no slots."""

    def before(self, rows: Rows, work: ChunkWork, t: int) -> Report | None:
        """Take the private step (atc)."""
        if self.form == "cta":
            return None
        return work.private_step(t, rows["params"])

    def after(self, old: Rows, new: Rows, work: ChunkWork, t: int) -> Report | None:
        """Add the private step of the un-mixed rows (cta)."""
        if self.form == "atc":
            return None
        local = old["params"].clone()
        report = work.private_step(t, local)
        new["params"].add_(local.sub_(old["params"]))
        return report
