"""Network, training record and history of a run, in its folder."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.figures import history_of, is_evaluated, rows_of
from dfl_unlearn.engine.run import History
from dfl_unlearn.engine.stored_forms import fields_of
from dfl_unlearn.errors import StoreCorruptError
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.record.training import Dynamics, TrainingRecord
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.topology.graph import Topology

ROUND = "record/round-{:06d}.safetensors"


def write_topology(folder: RunFolder, topology: Topology) -> None:
    """Write a network: the graph to look at, its matrix in CSR parts."""
    from dfl_unlearn.topology.files import save_graph

    save_graph(topology, folder.path("topology.graphml"))
    weights = topology.weights
    folder.write_tensors(
        "weights.safetensors",
        {
            "indptr": weights.indptr.astype(np.int64),
            "indices": weights.indices.astype(np.int64),
            "values": weights.data.astype(np.float64),
        },
    )


def read_topology(folder: RunFolder, manifest: Mapping[str, Any]) -> Topology:
    """Build the network from its edges and its matrix.

    Args:
        folder: The run folder.
        manifest: Its manifest.

    Returns:
        The network.

    Raises:
        StoreCorruptError: If the matrix is not that of the manifest.
    """
    known = manifest["topology"]
    parts = folder.read_tensors("weights.safetensors")
    n = len(known["labels"])
    columns = (parts[name].numpy() for name in ("values", "indices", "indptr"))
    try:
        weights = sp.csr_array(tuple(columns), shape=(n, n))
        # Places outside the matrix would be written to without a further look.
        weights.check_format(full_check=True)
    except ValueError as error:
        raise StoreCorruptError(
            f"{folder.root}/weights.safetensors: must hold a sparse matrix of {n} x "
            f"{n}, got one whose {error}; the file was changed"
        ) from error
    graph = nx.DiGraph() if known["directed"] else nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, j) for i, j in known["edges"])
    topology = Topology(
        graph=graph,
        weights=weights,
        name=known["name"],
        labels=tuple(known["labels"]),
        stochastic=known["stochastic"],
    )
    if topology.fingerprint() != known["fingerprint"]:
        raise StoreCorruptError(
            f"{folder.root}/weights.safetensors: network must have the fingerprint "
            f"{known['fingerprint'][:16]}..., got {topology.fingerprint()[:16]}...; "
            "the file was changed"
        )
    return topology


def record_entry(record: TrainingRecord) -> dict[str, Any]:
    """Return what the manifest says of a training record."""
    dynamics = fields_of(record.dynamics)
    return {
        "parts": sorted(record.plan.parts),
        "every": record.plan.every,
        "memory_budget": record.plan.memory_budget,
        "checkpoints": sorted(record.checkpoints),
        "training_residual": {
            str(t): value for t, value in record.training_residual.items()
        },
        "common_initial": record.initial is not None and record.initial.stride(0) == 0,
        "dynamics": {
            **dynamics,
            "local_steps": dynamics["local_steps"].tolist(),
            "scale": dynamics["scale"].tolist(),
            "smoothness": None
            if record.dynamics.smoothness is None
            else fields_of(record.dynamics.smoothness),
        },
        "digest": _record_digest(record),
    }


def _record_digest(record: TrainingRecord) -> str:
    """Return the SHA-256 of a record's arrays: claims rest on them."""
    initial = record.initial
    if initial is not None and initial.stride(0) == 0:
        initial = initial[:1]
    states = sorted(record.checkpoints.items())
    arrays = [record.step_sizes, record.gradient_norms, initial]
    found = sha256()
    for value in (*arrays, *(params for _, params in states)):
        if value is not None:
            array = np.ascontiguousarray(value)
            found.update(f"|{array.dtype}{array.shape}|".encode())
            found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write_record(folder: RunFolder, record: TrainingRecord) -> None:
    """Write a training record: plan, norms, and one file per state."""
    folder.write_json("record/plan.json", record_entry(record))
    arrays: dict[str, Any] = {"step_sizes": record.step_sizes}
    if record.gradient_norms is not None:
        arrays["gradient_norms"] = record.gradient_norms
    folder.write_tensors("record/norms.safetensors", arrays)
    if record.initial is not None:
        common = record.initial.stride(0) == 0
        rows = record.initial[:1] if common else record.initial
        folder.write_tensors(ROUND.format(0), {"params": rows.contiguous()})
    for t, params in record.checkpoints.items():
        folder.write_tensors(ROUND.format(t), {"params": params})


def read_record(
    folder: RunFolder, known: Mapping[str, Any] | None
) -> TrainingRecord | None:
    """Read what ``write_record`` wrote; None where nothing was kept.

    Args:
        folder: The run's folder.
        known: What the manifest says of the record; without ``digest`` in older ones.

    Returns:
        The record.

    Raises:
        StoreCorruptError: If its arrays are not those that were written.
    """
    if known is None:
        return None
    from dfl_unlearn._assumption import Assumption

    arrays = folder.read_tensors("record/norms.safetensors")
    dynamics = dict(known["dynamics"])
    smoothness = dynamics["smoothness"]
    n = len(dynamics["scale"])
    initial = None
    if "initial_state" in known["parts"]:
        initial = folder.read_tensors(ROUND.format(0))["params"]
        if known["common_initial"]:
            initial = initial.expand(n, -1)
    norms = arrays.get("gradient_norms")
    record = TrainingRecord(
        plan=RecordPlan(
            parts=frozenset(known["parts"]),
            every=known["every"],
            memory_budget=known["memory_budget"],
        ),
        dynamics=Dynamics(
            **{
                **dynamics,
                "local_steps": np.array(dynamics["local_steps"]),
                "scale": np.array(dynamics["scale"]),
                "smoothness": None if smoothness is None else Assumption(**smoothness),
            }
        ),
        step_sizes=arrays["step_sizes"].numpy(),
        initial=initial,
        checkpoints={
            t: folder.read_tensors(ROUND.format(t))["params"]
            for t in known["checkpoints"]
        },
        gradient_norms=None if norms is None else norms.numpy(),
        training_residual={
            int(t): value for t, value in known.get("training_residual", {}).items()
        },
    )
    digest = _record_digest(record)
    if known.get("digest", digest) != digest:  # none in older folders
        raise StoreCorruptError(
            f"{folder.root}/record: arrays must have the digest "
            f"{_validate.show(known['digest'])[:20]}, got {digest[:16]}...; a file was "
            "changed, train the run again"
        )
    return record


def round_row(
    done: int,
    loss: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    consensus: float,
    seconds: float,
    simulated: float,
) -> dict[str, Any]:
    """Return the figures after ``done`` rounds as a record of ``results.jsonl``."""
    return {
        "type": "round",
        "round": int(done),
        "loss": loss.tolist(),
        "accuracy": [None if np.isnan(a) else a for a in accuracy.tolist()],
        "consensus": float(consensus),
        "seconds": float(seconds),
        **({} if np.isnan(simulated) else {"simulated_seconds": float(simulated)}),
    }


def write_history(folder: RunFolder, history: History) -> None:
    """Append the evaluated rounds to the results, those that are not there yet."""
    known = {r["round"] for r in folder.records() if r.get("type") == "round"}
    for row in rows_of(history):
        if row[0] not in known:
            folder.append(round_row(*row))


def read_history(folder: RunFolder, config: SimulationConfig) -> History | None:
    """Read the figures of a run's evaluated rounds.

    Args:
        folder: The run's folder.
        config: Says which rounds they are: the last round of a run that went on
            since then is none of them.

    Returns:
        The figures; None where there are none.

    Raises:
        StoreCorruptError: If a row is no row of figures.
    """
    with understood(f"{folder.root}/results.jsonl"):
        rows = {
            int(r["round"]): r
            for r in folder.records()
            if r["type"] == "round" and is_evaluated(int(r["round"]), config)
        }
        if not rows:
            return None
        history = history_of(
            [
                (
                    done,
                    np.array(r["loss"], dtype=np.float64),
                    np.array(r["accuracy"], dtype=np.float64),
                    float(r["consensus"]),
                    float(r["seconds"]),
                    # none in older folders
                    float(r.get("simulated_seconds", np.nan)),
                )
                for done, r in rows.items()
            ]
        )
        if history.loss.ndim != 2 or history.loss.shape != history.accuracy.shape:
            raise StoreCorruptError(
                f"{folder.root}/results.jsonl: rows of rounds must have one loss and "
                "accuracy for each peer, got other numbers; make the run again"
            )
    return history
