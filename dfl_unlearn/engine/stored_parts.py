"""Network, training record and history of a run, in its folder."""

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp

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
    """Build the network from its edges and its matrix."""
    known = manifest["topology"]
    parts = folder.read_tensors("weights.safetensors")
    n = len(known["labels"])
    weights = sp.csr_array(
        (parts["values"].numpy(), parts["indices"].numpy(), parts["indptr"].numpy()),
        shape=(n, n),
    )
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
    }


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
    """Read what ``write_record`` wrote; None where nothing was kept."""
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
    return TrainingRecord(
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


def write_history(folder: RunFolder, history: History) -> None:
    """Append one row per evaluated round to the results."""
    for e, done in enumerate(history.rounds):
        folder.append(
            {
                "type": "round",
                "round": int(done),
                "loss": history.loss[e].tolist(),
                "accuracy": [
                    None if np.isnan(a) else a for a in history.accuracy[e].tolist()
                ],
                "consensus": float(history.consensus[e]),
                "seconds": float(history.seconds[e]),
            }
        )


def read_history(folder: RunFolder) -> History | None:
    """Read the rows of the evaluated rounds; None where there are none."""
    with understood(f"{folder.root}/results.jsonl"):
        rows = [r for r in folder.records() if r["type"] == "round"]
        if not rows:
            return None
        history = History(
            rounds=np.array([r["round"] for r in rows], dtype=np.int64),
            loss=np.array([r["loss"] for r in rows], dtype=np.float64),
            accuracy=np.array([r["accuracy"] for r in rows], dtype=np.float64),
            consensus=np.array([r["consensus"] for r in rows], dtype=np.float64),
            seconds=np.array([r["seconds"] for r in rows], dtype=np.float64),
        )
        ends = (history.rounds, history.consensus, history.seconds)
        peers = (history.loss, history.accuracy)
        if {a.ndim for a in ends} != {1} or {a.ndim for a in peers} != {2}:
            raise ValueError("a row of a round with another number of values")
    return history
