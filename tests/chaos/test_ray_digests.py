"""One digest for every engine, number of workers, hash seed and order of completion."""

import os
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from networks import blobs
from ray_jobs import RING

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.topology.graph import Topology

PROGRAM = Path(__file__).parent / "ray_program.py"


@pytest.mark.ray
@pytest.mark.chaos
def test_one_digest_over_engines_workers_hash_seeds_and_orders():
    found = set()
    for seed in ("0", "1", "random"):
        answer = subprocess.run(
            [sys.executable, PROGRAM, "digests", "1", "2", "3", "5"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=900,
        )
        lines = [line.split() for line in answer.stdout.splitlines()]
        lines = [line for line in lines if len(line) == 3 and len(line[1]) == 64]
        assert [line[0] for line in lines] == ["inline", "1", "2", "3", "5"]
        found |= {tuple(line[1:]) for line in lines}
    assert len(found) == 1


def relabelled(data, order):
    """The same parts, peer ``order[k]``'s at place k."""
    parts = [(p.inputs, p.labels) for p in map(data.local, order)]
    test = (data.test.inputs, data.test.labels)
    return PeerData.from_tensors(parts, test=test, num_classes=data.num_classes)


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionConfig(),
        pytest.param(
            ExecutionConfig(engine="ray", workers=2),
            marks=[pytest.mark.ray, pytest.mark.slow],
        ),
    ],
    ids=["inline", "ray"],
)
@pytest.mark.parametrize("form", ["atc", "cta"])
def test_relabelled_peers_give_the_relabelled_result(execution, form):
    """Equal but for the order of sums: 1e-12 relative in float64, 30 full batches."""
    from dfl_unlearn.engine.trainers.d_sgd import DSgd

    data = blobs([20 + 3 * i for i in range(12)], dtype=np.float64)
    config = SimulationConfig(
        rounds=30,
        trainer=DSgd(form=form),
        local=LocalSteps(batch_size=None),
        dtype="float64",
        block_peers=2,
    )
    order = np.array([7, 0, 11, 3, 9, 1, 4, 10, 2, 8, 5, 6])
    place = {int(peer): k for k, peer in enumerate(order)}
    graph = nx.Graph()
    graph.add_nodes_from(range(12))
    graph.add_edges_from((place[i], place[(i + 1) % 12]) for i in range(12))
    here = simulate(RING, data, "logistic", config)
    there = simulate(
        Topology.from_graph(graph, name="relabelled"),
        relabelled(data, order),
        "logistic",
        config,
        execution=execution,
    )
    expected = here.state.params.numpy()[order]
    assert not np.allclose(here.state.params.numpy(), expected)
    np.testing.assert_allclose(
        there.state.params.numpy(), expected, rtol=1e-12, atol=1e-13
    )
