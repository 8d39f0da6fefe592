"""Rounds of a network in which some peers are left out of mixing as if they were down.

Who lacks the correction of a request may send no model and is sent none until it has
it; the other faults of those rounds stay what they were drawn to be.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.fault_realized import RoundFaults


class WithoutPeers(FaultDraws):
    """A realization in which some peers are down, from a round on.

    Crashes are left out too: who loses its state is handed the corrected model again by
    the protocol. Nothing that was sent before the first round arrives in it.
    """

    def __init__(
        self, draws: FaultDraws, excluded: NDArray[np.bool_], since: int
    ) -> None:
        """Exclude peers.

        Args:
            draws: The network's own realization.
            excluded: Who is left out, shape ``(N,)``.
            since: First round.
        """
        super().__init__(draws.plan, draws.schedule, draws._rng, since)
        self._whole, self._excluded = draws, excluded

    def at(self, t: int) -> RoundFaults:
        """Return what goes wrong in a round, the peers left out."""
        found = self._whole.at(t)
        away = self._excluded | found.crashed
        up = found.up & ~away
        if t < self.since:
            up = np.zeros_like(up)
        mass = None if found.mass is None else np.ones(self.n)
        return replace(
            found,
            up=up,
            crashed=np.zeros_like(found.crashed),
            works=found.works & up,
            mass=mass,
            draws=self,
        )
