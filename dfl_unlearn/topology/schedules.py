"""Networks by round: which edges and weights gossip round t uses."""

from dataclasses import dataclass

from dfl_unlearn import _validate
from dfl_unlearn.registry import Registry
from dfl_unlearn.topology.graph import Topology, TopologySchedule
from dfl_unlearn.topology.mixing import Stochastic

schedules: Registry[TopologySchedule] = Registry(
    "schedules", packages=("dfl_unlearn.topology.schedules",)
)


@schedules.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant:
    """Use the same network in every round.

    Attributes:
        topology: The network.
    """

    topology: Topology

    def __post_init__(self) -> None:
        """Check the type of the network."""
        _validate.of_type(Topology, topology=self.topology)

    @property
    def n(self) -> int:
        """Number of peers."""
        return self.topology.n

    @property
    def connected_within(self) -> int:
        """Rounds whose union is connected: 1."""
        return 1

    @property
    def stochastic(self) -> Stochastic:
        """Which sums of the weights are one."""
        return self.topology.stochastic

    def at(self, t: int) -> Topology:
        """Return the network of gossip round ``t``: always the same."""
        return self.topology
