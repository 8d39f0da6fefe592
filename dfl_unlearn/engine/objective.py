"""The objective that a network minimizes together."""

import numpy as np

from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.models.flat import FlatModel


def network_objective(model: FlatModel, data: PeerData, weighting: str) -> Objective:
    """Return F = sum_i p_i f_i over the rows that are kept.

    Args:
        model: The model.
        data: What the peers hold. A peer without rows has p_i = 0.
        weighting: ``uniform`` or ``size``; see ``peer_scale``.

    Returns:
        The objective: row r of peer i weighs ``p_i / n_i``, where n_i is the divisor
        of the peer's mean (see ``PeerData.counted``).
    """
    share = peer_scale(data, weighting) / data.n
    counted = np.add.reduceat(data.counted, data.offsets[:-1], dtype=np.int64)
    per_row = np.repeat(share / np.maximum(counted, 1), data.sizes)
    return Objective(
        model=model,
        inputs=data.store.inputs,
        labels=data.store.labels,
        weights=np.where(data.keep, per_row, 0.0),
    )
