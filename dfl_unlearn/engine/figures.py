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
from dfl_unlearn.engine.local import resolve_chunk, resolve_kernel
from dfl_unlearn.engine.run import History
from dfl_unlearn.engine.threads import blas_report
from dfl_unlearn.models.flat import FlatModel

# round, loss, accuracy, consensus, seconds, simulated seconds (NaN: not known)
Evaluated = tuple[int, NDArray[np.float64], NDArray[np.float64], float, float, float]

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
    simulated = np.array([r[5] for r in rows])
    return History(
        rounds=np.array([r[0] for r in rows], dtype=np.int64),
        loss=np.array([r[1] for r in rows]),
        accuracy=np.array([r[2] for r in rows]),
        consensus=np.array([r[3] for r in rows]),
        seconds=np.array([r[4] for r in rows]),
        simulated_seconds=None if np.isnan(simulated).any() else simulated,
    )


def rows_of(history: History) -> list[Evaluated]:
    """Return the rows that ``history_of`` made arrays of."""
    columns = (history.rounds, history.loss, history.accuracy)
    simulated = history.simulated_seconds
    if simulated is None:
        simulated = np.full(len(history.rounds), np.nan)
    return [
        (int(done), loss, accuracy, float(consensus), float(seconds), float(there))
        for done, loss, accuracy, consensus, seconds, there in zip(
            *columns, history.consensus, history.seconds, simulated, strict=True
        )
    ]


def arithmetic_of(model: FlatModel, config: SimulationConfig) -> dict[str, Any]:
    """Return what computes: kernel, chunks, blocks, threads and every BLAS.

    Call it with the threads limited, as training does.
    """
    return {
        "kernel": resolve_kernel(model, config.kernel),
        "chunk_peers": resolve_chunk(config),
        "block_peers": config.block_peers,
        "threads": config.threads,
        "blas": blas_report(),
        "device": "cpu",
    }


def run_digest(
    params: Tensor,
    history: History,
    arithmetic: dict[str, Any],
    *,
    ledger: tuple[int, str] | None = None,
    requests: Sequence[str] = (),
) -> str:
    """Hash what must be equal in a repeated run; no time is in it.

    Args:
        params: Final parameters, shape ``(N, P)``.
        history: Figures over the rounds.
        arithmetic: As ``arithmetic_of`` gives it.
        ledger: The ledger's head, which is a hash of all its lines; an empty ledger
            adds nothing.
        requests: Ids of the forget requests that the state carries, in order.

    Returns:
        SHA-256 in hex digits.
    """
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
    if ledger is not None and ledger[0] >= 0:
        digest.update(f"ledger {ledger[0]} {ledger[1]}".encode())
    for request in requests:
        digest.update(f"request {request}".encode())
    return digest.hexdigest()
