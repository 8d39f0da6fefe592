r"""Decentralized stochastic gradient descent (D-SGD), in both of its forms.

With local work :math:`L_i` (one or several gradient steps of peer i) and mixing matrix
W, one round is

* ``atc``, adapt then combine: :math:`x_i \leftarrow \sum_j W_{ij} L_j(x_j)`;
* ``cta``: :math:`x_i \leftarrow \sum_j W_{ij} x_j + (L_i(x_i) - x_i)`, the consensus
  form, whose local work starts from the peer's own **un-mixed** row. The diffusion
  literature's combine-then-adapt starts from the mixed row instead; it is not this.

Neither reaches consensus with a constant step size on unlike data; the disagreement
is of the order of the step size over the spectral gap.

References:
    Lian et al. (2017), Can decentralized algorithms outperform centralized algorithms?
    Sayed (2014), Adaptation, learning, and optimization over networks, ch. 7.
"""

from dataclasses import dataclass
from typing import ClassVar

from dfl_unlearn import _validate
from dfl_unlearn.engine.config import SimulationConfig, trainers
from dfl_unlearn.engine.trainers.contract import ChunkWork, Form, Report, Rows


@trainers.register("d-sgd")
@dataclass(frozen=True, kw_only=True)
class DSgd:
    """Decentralized SGD: local gradient steps and gossip averaging.

    Attributes:
        form: ``atc`` mixes after the local steps, ``cta`` adds the local change to the
            mixed rows.
    """

    form: Form = "atc"

    slots: ClassVar[tuple[str, ...]] = ()
    mixed: ClassVar[tuple[str, ...]] = ("params",)

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.one_of(("atc", "cta"), form=self.form)

    def check(self, config: SimulationConfig) -> None:
        """Accept any settings."""

    def start(self, rows: Rows, work: ChunkWork, t: int) -> None:
        """Fill nothing: there are no slots."""

    def before(self, rows: Rows, work: ChunkWork, t: int) -> Report | None:
        """Take the local steps (atc)."""
        if self.form == "cta":
            return None
        return work.steps(t, rows["params"], rows)

    def after(self, old: Rows, new: Rows, work: ChunkWork, t: int) -> Report | None:
        """Add the local change of the un-mixed rows (cta)."""
        if self.form == "atc":
            return None
        local = old["params"].clone()
        report = work.steps(t, local, new)
        new["params"].add_(local.sub_(old["params"]))
        return report
