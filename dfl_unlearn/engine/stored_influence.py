"""Influence traces of whole peers in a run folder: ``influence/peer-<i>.<mode>``.

A file has ``rounds`` (T',), ``norms`` (T', N), ``vacuous`` (N,), ``digest`` (32 bytes
of the run that it belongs to) and, where they were kept, ``vectors`` (T', N, P). Hop
distances follow from the network.
"""

from pathlib import Path

import numpy as np

from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidArgumentError, StoreCorruptError
from dfl_unlearn.record.influence import InfluenceMode, InfluenceTrace
from dfl_unlearn.store.folder import RunFolder

_PLACE = "influence/peer-{}.{}.safetensors"


def keep_influence(run: TrainedRun, trace: InfluenceTrace) -> Path:
    """Write the trace of a whole peer's data into the run's folder.

    Args:
        run: A run with a folder.
        trace: Its trace; one of part of a peer's data must not be kept here.

    Returns:
        Where it was written.

    Raises:
        InvalidArgumentError: If the run has no folder.
    """
    if run.folder is None:
        raise InvalidArgumentError(
            "run: must have a folder to keep influence in, got a run in memory; "
            "call run.save(path) first"
        )
    folder = RunFolder(run.folder)
    arrays = {
        "rounds": trace.rounds,
        "norms": trace.norms,
        "vacuous": trace.vacuous,
        "digest": _digest(run),
    }
    if trace.vectors is not None:
        arrays["vectors"] = trace.vectors
    with folder.locked():
        return folder.write_tensors(_PLACE.format(trace.source, trace.mode), arrays)


def kept_influence(
    run: TrainedRun, source: int, mode: InfluenceMode = "exact"
) -> InfluenceTrace | None:
    """Return the trace of a whole peer's data that was kept for this very run.

    Args:
        run: The run.
        source: The peer.
        mode: Which trace.

    Returns:
        The trace; None where nothing was kept, or it was for another state.

    Raises:
        StoreCorruptError: If the file does not hold such a trace.
    """
    if run.folder is None:
        return None
    folder, rel = RunFolder(run.folder), _PLACE.format(source, mode)
    if not folder.path(rel).is_file():
        return None
    arrays = {name: value.numpy() for name, value in folder.read_tensors(rel).items()}
    names, n = set(arrays), run.topology.n
    if (
        not {"rounds", "norms", "vacuous", "digest"} <= names
        or arrays["norms"].shape != (len(arrays["rounds"]), n)
        or arrays["vacuous"].shape != (n,)
    ):
        raise StoreCorruptError(
            f"{folder.path(rel)}: must hold rounds, norms of {n} peers, vacuous and "
            f"digest, got {', '.join(sorted(names))}; delete it, it is made again"
        )
    if not np.array_equal(arrays["digest"], _digest(run)):
        return None
    return InfluenceTrace(
        source=source,
        mode=mode,
        rounds=arrays["rounds"],
        norms=arrays["norms"],
        hops=run.topology.hops(source),
        vacuous=arrays["vacuous"],
        vectors=arrays.get("vectors"),
    )


def _digest(run: TrainedRun) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.frombuffer(bytes.fromhex(run.digest), dtype=np.uint8).copy()
