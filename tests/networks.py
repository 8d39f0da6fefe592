"""The oracles' networks as the package's own objects, and tiny ones for speed."""

from dataclasses import replace

import networkx as nx
import numpy as np
import torch
from oracles.networks import l6, r4

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology


def r4_data():
    inputs, targets = r4()
    pairs = [
        (torch.from_numpy(x), torch.from_numpy(y))
        for x, y in zip(inputs, targets, strict=True)
    ]
    return PeerData.from_tensors(pairs, test=pairs[0], name="R4")


def l6_data():
    inputs, labels = l6()
    pairs = [
        (torch.from_numpy(x), torch.from_numpy(y))
        for x, y in zip(inputs, labels, strict=True)
    ]
    return PeerData.from_tensors(pairs, test=pairs[0], num_classes=2, name="L6")


def ridge(l2=0.1):
    return models.build("linear", input_shape=(2,), num_classes=0, l2=l2, bias=False)


def logistic4(l2=0.05):
    return models.build("logistic", input_shape=(4,), num_classes=2, l2=l2, bias=False)


def path4():
    return Topology.from_graph(nx.path_graph(4), name="path4")


def full_batch(form="cta", rounds=25, rate=0.1, **fields):
    return SimulationConfig(
        rounds=rounds,
        trainer=DSgd(form=form),
        local=LocalSteps(batch_size=None, learning_rate=rate),
        dtype="float64",
        **fields,
    )


def r4_request(normalization="fixed"):
    return ForgetRequest.samples(
        peer=2, indices=[0, 1], normalization=normalization, request_id="r0"
    )


def blobs(sizes, *, features=6, classes=3, seed=0, dtype=np.float32):
    """Gaussian classes at peers of the given sizes."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.standard_normal((classes, features))

    def part(n):
        y = rng.integers(0, classes, n)
        x = centres[y] + rng.standard_normal((n, features))
        return torch.from_numpy(x.astype(dtype)), torch.from_numpy(y)

    return PeerData.from_tensors(
        [part(n) for n in sizes], test=part(60), num_classes=classes
    )


def opposed_run(seed=0, peers=1, **changes):
    """One model whose bound on rewinding is nearly an equality.

    Rows of norm at most 1 lie near one direction and the first two have the other
    label: clipped gradients of the rows that stay all point one way, those of the two
    the other way, at full length in each of 8 steps of 0.5.
    """
    generator = RngTree(seed).torch("data-split")
    x = 0.05 * torch.randn(40, 64, generator=generator, dtype=torch.float64)
    x[:, 0] = 1.0
    x = x / (x.norm(dim=1, keepdim=True) * (1 + 1e-9))
    y = torch.ones(40, dtype=torch.int64)
    y[:2] = 0
    parts = list(zip(x.chunk(peers), y.chunk(peers), strict=True))
    data = PeerData.from_tensors(parts, test=(x, y), num_classes=2, norm_bound=1.0)
    options = {"l2": 0.0, "bias": False, "zero_start": True}
    model = models.build("logistic", input_shape=(64,), num_classes=2, **options)
    config = SimulationConfig(
        rounds=8,
        seed=seed,
        dtype="float64",
        evaluate_every=0,
        local=LocalSteps(batch_size=None, learning_rate=0.5, clip_norm=0.2),
        record=RecordPlan(parts=frozenset({"initial_state", "checkpoints"}), every=2),
    )
    network = Topology.single() if peers == 1 else load_topology("complete", n=peers)
    return simulate(network, data, model, replace(config, **changes))
