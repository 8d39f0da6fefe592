"""Figures taken while training, and what must be equal in a repeated run."""

import hashlib
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import dfl_unlearn
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import History
from dfl_unlearn.models.flat import FlatModel

# round, loss, accuracy, consensus, seconds
Evaluated = tuple[int, NDArray[np.float64], NDArray[np.float64], float, float]

_SCORE_BYTES = 2**26  # logits held at once while scoring


def peer_scores(
    model: FlatModel, params: Tensor, data: PeerData
) -> NDArray[np.float64]:
    """Return every peer's test accuracy, or minus its mean squared error.

    Args:
        model: The model; without classes it is a regression.
        params: State, shape ``(N, P)``.
        data: Holds the test set.

    Returns:
        One score per peer, shape ``(N,)``; NaN without a test set.
    """
    inputs, labels = data.test.inputs, data.test.labels
    scores = np.full(len(params), np.nan)
    if len(labels) == 0:
        return scores
    width = max(data.num_classes, 1) * params.element_size()
    peers = max(1, _SCORE_BYTES // (len(labels) * width))
    for begin in range(0, len(params), peers):
        rows = slice(begin, begin + peers)
        out = model.predict_all(params[rows], inputs)
        if data.num_classes > 0:
            right = out.argmax(dim=2) == labels
            scores[rows] = right.double().mean(dim=1).numpy()
        else:
            scores[rows] = -(out.double() - labels).square().mean(dim=1).numpy()
    return scores


def versions() -> dict[str, str]:
    """Return the versions that a repeated run needs to be equal."""
    return {
        "dfl_unlearn": dfl_unlearn.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def is_evaluated(done: int, config: SimulationConfig) -> bool:
    """Return whether figures are taken after ``done`` rounds."""
    every = config.evaluate_every
    return done == config.rounds or (every > 0 and done % every == 0)


def history_of(rows: Sequence[Evaluated]) -> History:
    """Return what was taken so far as arrays."""
    return History(
        rounds=np.array([r[0] for r in rows], dtype=np.int64),
        loss=np.array([r[1] for r in rows]),
        accuracy=np.array([r[2] for r in rows]),
        consensus=np.array([r[3] for r in rows]),
        seconds=np.array([r[4] for r in rows]),
    )


def run_digest(params: Tensor, history: History, arithmetic: dict[str, Any]) -> str:
    """Hash final parameters, metrics and the arithmetic's identity."""
    digest = hashlib.sha256()
    digest.update(
        params.contiguous()
        .numpy()
        .astype("<f8" if params.dtype == torch.float64 else "<f4")
        .tobytes()
    )
    for values in (history.rounds, history.loss, history.accuracy, history.consensus):
        digest.update(" ".join(float(v).hex() for v in values.ravel()).encode())
    digest.update(repr(sorted(arithmetic.items())).encode())
    return digest.hexdigest()
