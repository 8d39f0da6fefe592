"""Everyone's influence on everyone, at chosen rounds of a run."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.engine.influence import (
    best_influence,
    influence_is_cheap,
    mixing_of,
)
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.record.influence import InfluenceTrace
from dfl_unlearn.record.round_weights import Inboxes

FRONT = 0.1
"""A peer counts as reached at this part of its even share, 1/N."""

_MOST_REPLAYED = 500  # rounds, over all sources: every source is a replay of its own


@dataclass(frozen=True, kw_only=True, eq=False)
class PairwiseInfluence:
    """How the influence of every peer is spread over all peers.

    Attributes:
        mode: ``exact`` (shares of the derivative's norm) or ``mixing_power`` (shares
            of a walk by the mixing matrix), the same for all sources.
        shares: ``shares[f, i, j]`` is the part of peer i's influence that peer j holds
            in the chosen round f, shape ``(F, N, N)`` float64; sums over j are 1, or 0
            before anything happened.
        arrival: ``arrival[i, j]`` is the first round in which that part was at least a
            tenth of 1/N, shape ``(N, N)``; inf where it never was.
    """

    mode: Literal["exact", "mixing_power"]
    shares: NDArray[np.float64]
    arrival: NDArray[np.float64]


def pairwise_influence(run: TrainedRun, rounds: NDArray[np.int64]) -> PairwiseInfluence:
    """Return the influence of every peer on every peer.

    Args:
        run: The trained run.
        rounds: Which rounds to keep, ascending from 1 on, shape ``(F,)``.

    Returns:
        The exact derivative where it costs little for all peers together, else what
        the mixing matrices alone say, round by round.
    """
    n = run.topology.n
    few = n * run.config.rounds <= _MOST_REPLAYED
    if few and influence_is_cheap(run, sources=n):
        traces = [best_influence(run, i) for i in range(n)]
        if all(t.mode == "exact" and np.isin(rounds, t.rounds).all() for t in traces):
            return _exact(traces, rounds)
    return _mixed(run, rounds)


def _exact(
    traces: list[InfluenceTrace], rounds: NDArray[np.int64]
) -> PairwiseInfluence:
    rows = [np.searchsorted(trace.rounds, rounds) for trace in traces]
    kept = [trace.shares()[k] for trace, k in zip(traces, rows, strict=True)]
    return PairwiseInfluence(
        mode="exact",
        shares=np.stack(kept, axis=1),
        arrival=np.stack([trace.front(FRONT) for trace in traces]),
    )


def _mixed(run: TrainedRun, rounds: NDArray[np.int64]) -> PairwiseInfluence:
    """Let every peer add one unit in every round, and mix what was added so far."""
    n = run.topology.n
    mixing = mixing_of(run, "mixing_power")
    boxes, unit = Inboxes(), np.eye(n)
    held = np.zeros((n, n))  # row: the holder, column: who added it
    arrival = np.full((n, n), np.inf)
    kept = np.zeros((len(rounds), n, n))
    wanted = {int(t): f for f, t in enumerate(rounds)}
    for t in range(1, int(rounds[-1]) + 1):
        if mixing is None:
            held = run.topology.weights @ (held + unit)
        else:
            held = boxes.mix(mixing(t - 1), held + unit)
        shares = (held / held.sum(axis=0)).T
        arrival[np.isinf(arrival) & (shares >= FRONT / n)] = t
        if t in wanted:
            kept[wanted[t]] = shares
    return PairwiseInfluence(mode="mixing_power", shares=kept, arrival=arrival)
