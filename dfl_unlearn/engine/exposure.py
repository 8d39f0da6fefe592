"""What was seen before a request: training messages, which no later noise can recall.

A neighbour of the owner got the owner's model in every round. Peers further away got
models that the owner's data had reached through others. Neither carries an epsilon.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.entries import members
from dfl_unlearn.topology.graph import Topology, TopologySchedule

Sent = Mapping[str, Mapping[int, int]]
"""Owner id -> peer -> messages that the owner sent to it in training."""


def messages_from(
    schedule: TopologySchedule, owner: int, rounds: int
) -> NDArray[np.int64]:
    """Return how many training messages a peer sent to each other peer.

    In each round every peer sends one message to each neighbour that takes from it. In
    a network with faults this is an upper bound: what was lost, or not sent because a
    peer was down, counts as well.

    Args:
        schedule: The network by round.
        owner: The sender.
        rounds: Rounds of training.

    Returns:
        Counts, shape ``(N,)``; 0 for the owner itself.
    """

    def takers(network: Topology) -> NDArray[np.int64]:
        column: NDArray[np.float64] = network.weights[:, [owner]].toarray()[:, 0]
        takes = np.zeros(network.n, dtype=np.int64)
        takes[column != 0] = 1
        takes[owner] = 0
        return takes

    if isinstance(schedule, Topology):
        return takers(schedule) * rounds
    counts = np.zeros(schedule.n, dtype=np.int64)
    for t in range(rounds):
        counts += takers(schedule.at(t))
    return counts


def sent_before(
    schedule: TopologySchedule, owners: Iterable[str], rounds: int
) -> dict[str, dict[int, int]]:
    """Return the training messages of several owners, for ``PrivacyLedger.table``.

    Args:
        schedule: The network by round.
        owners: Ledger ids; one that is no peer's, ``"*"``, has sent none.
        rounds: Rounds of training.

    Returns:
        Owner id -> peer -> count, without zeros.
    """
    found: dict[str, dict[int, int]] = {}
    for name in owners:
        found[name] = {}
        for owner in () if name == "*" else members(name):
            counts = messages_from(schedule, owner, rounds)
            found[name] = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    return found
