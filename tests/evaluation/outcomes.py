"""Tiny outcomes without any training, for the tests of metrics."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import torch
from torch import nn

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Cost

SIZES = (5, 3, 6, 4)
COST = Cost(
    rounds=2,
    messages=3,
    payload_bytes=1000,
    sample_gradients=50,
    hvps=7,
    wall_seconds=0.25,
)


def random_data(*, regression=False, sizes=SIZES, tests=7, seed=0):
    draw = np.random.default_rng(seed)

    def rows(count):
        labels = draw.normal(size=count) if regression else draw.integers(3, size=count)
        return draw.normal(size=(count, 2)), labels

    return PeerData.from_tensors(
        [rows(n) for n in sizes], rows(tests), num_classes=0 if regression else 3
    )


def linear_model(data, *, bias=True):
    outputs = max(1, data.num_classes)
    module = nn.Linear(data.test.inputs.shape[1], outputs, bias=bias)
    loss = "cross-entropy" if data.num_classes else "squared-error"
    return FlatModel.from_module(module, loss, l2=0.01)


def outcome_of(data, model, before, after, reference, request, **changes):
    """An outcome with the given parameters, lists or tensors of shape ``(N, P)``."""

    def state(params, rounds):
        rows = torch.as_tensor(params, dtype=torch.float64)
        return PeerState(params=rows, round=rounds)

    run = SimpleNamespace(
        topology=Topology.from_graph(nx.cycle_graph(data.n)),
        data=data,
        model=model,
        config=SimpleNamespace(seed=7),
        state=state(before, 20),
        rng=RngTree(7),
        folder=None,
        personal={},
    )
    retrained = None
    if reference is not None:
        retrained = SimpleNamespace(state=state(reference, 20))
    fields = {
        "run": run,
        "request": request.resolve(data),
        "protocol_name": "newton-fisher",
        "label": "newton-fisher",
        "personal": {},
        "state": state(after, 21),
        "certificate": SimpleNamespace(epsilon=1.5),
        "cost": COST,
        "reference": retrained,
    }
    return SimpleNamespace(**fields | changes)


def random_outcome(*, regression=False, reference=True, seed=0, **changes):
    """Random states on random data; peer 2 forgets three of its six rows."""
    data = random_data(regression=regression, seed=seed)
    model = linear_model(data)
    draw = np.random.default_rng(seed + 1)
    before, after, retrained = draw.normal(size=(3, data.n, model.size))
    request = ForgetRequest.samples(peer=2, indices=[0, 2, 5], request_id="r0")
    return outcome_of(
        data,
        model,
        before,
        after,
        retrained if reference else None,
        request,
        **changes,
    )
