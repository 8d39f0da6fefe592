r"""Gradient tracking: every peer follows the network's gradient instead of its own.

With rows X, trackers Q and learning rate :math:`\eta`, starting at
:math:`Q^0 = \nabla(X^0)`,

.. math:: X^+ = W (X - \eta Q), \qquad Q^+ = W Q + \nabla(X^+) - \nabla(X),

where :math:`\nabla` is every peer's gradient on its batch of the round. The trackers'
mean is the mean gradient at any time, so with full batches and a constant rate the
peers reach the exact minimizer, which D-SGD does not on unlike data. Two vectors cross
every edge in a round.

References:
    Nedic, Olshevsky and Shi (2017), Achieving geometric convergence for distributed
    optimization over time-varying graphs (DIGing, adapt-then-combine form).
    Qu and Li (2018), Harnessing smoothness to accelerate distributed optimization.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dfl_unlearn.engine.config import SimulationConfig, trainers
from dfl_unlearn.engine.trainers.contract import ChunkWork, Report, Rows
from dfl_unlearn.errors import InvalidArgumentError


@trainers.register("gradient-tracking")
@dataclass(frozen=True, kw_only=True)
class GradientTracking:
    """Gradient tracking: one step a round along an estimate of the mean gradient.

    The loss that a round reports is that of the point it leads to.
    """

    form: ClassVar[Literal["gradient_tracking"]] = "gradient_tracking"
    slots: ClassVar[tuple[str, ...]] = ("tracker", "gradient")
    mixed: ClassVar[tuple[str, ...]] = ("params", "tracker")

    def check(self, config: SimulationConfig) -> None:
        """Refuse several local steps and momentum, which the iteration has not.

        Args:
            config: The other settings.

        Raises:
            InvalidArgumentError: If one of them is asked for.
        """
        local = config.local
        if local.epochs is not None or local.steps != 1:
            raise InvalidArgumentError(
                "local.steps: must be 1 for gradient-tracking, got "
                f"{f'epochs={local.epochs}' if local.epochs else local.steps}; use "
                "d-sgd for several local steps"
            )
        if local.momentum > 0:
            raise InvalidArgumentError(
                f"local.momentum: must be 0 for gradient-tracking, got "
                f"{local.momentum:g}; use d-sgd"
            )

    def start(self, rows: Rows, work: ChunkWork, t: int) -> None:
        """Let tracker and gradient be the gradient at the start."""
        gradient, _ = work.gradient(t, rows["params"])
        rows["gradient"].copy_(gradient)
        rows["tracker"].copy_(gradient)

    def before(self, rows: Rows, work: ChunkWork, t: int) -> Report | None:
        """Step along the tracker."""
        rows["params"].sub_(rows["tracker"], alpha=work.rate(t))
        return None

    def after(self, old: Rows, new: Rows, work: ChunkWork, t: int) -> Report | None:
        """Correct the mixed tracker by the change of the peer's own gradient."""
        gradient, report = work.gradient(t + 1, new["params"])
        new["tracker"].add_(gradient).sub_(new["gradient"])
        new["gradient"].copy_(gradient)
        return report
