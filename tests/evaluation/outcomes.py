"""Tiny outcomes without any training, for the tests of metrics."""

from dataclasses import replace
from types import SimpleNamespace

import networkx as nx
import numpy as np
import torch
from torch import nn

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.poison import Backdoor, Trigger
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import state_digest
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.contracts import Cost
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

SIZES = (5, 3, 6, 4)
COST = Cost(
    rounds=2,
    messages=3,
    payload_bytes=1000,
    sample_gradients=50,
    hvps=7,
    wall_seconds=0.25,
    steps_forget=11,
    steps_retain=13,
    optimizer_floats=18,
)


def random_data(*, regression=False, sizes=SIZES, tests=7, seed=0, features=2):
    draw = np.random.default_rng(seed)

    def rows(count):
        labels = draw.normal(size=count) if regression else draw.integers(3, size=count)
        return draw.normal(size=(count, features)), labels

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

    ring = Topology.from_graph(nx.cycle_graph(data.n)) if data.n > 1 else None
    run = SimpleNamespace(
        topology=ring or Topology.single(),
        data=data,
        model=model,
        config=SimulationConfig(rounds=3, seed=7),
        state=state(before, 20),
        personal={},
        rng=RngTree(7),
        folder=None,
        record=None,
        digest=state_digest(state(before, 20)),
        faults=lambda: None,
    )
    retrained = None
    if reference is not None:
        retrained = SimpleNamespace(state=state(reference, 20))
    fields = {
        "run": run,
        "request": request.resolve(data),
        "protocol": AtPeer(),
        "protocol_name": "newton-fisher",
        "label": "newton-fisher",
        "state": state(after, 21),
        "certificate": SimpleNamespace(epsilon=1.5),
        "personal": {},
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


def class_outcome(seed=0):
    """Random states on images of four pixels; class 2 goes, and there is a backdoor."""
    data = random_data(seed=seed, features=4, tests=30)
    data = replace(data, backdoor=Backdoor(trigger=Trigger(size=1), target=1))
    model = linear_model(data)
    states = np.random.default_rng(seed + 1).normal(size=(3, data.n, model.size))
    request = ForgetRequest.class_(2, request_id="r0")
    return outcome_of(data, model, *states, request)


def hidden_outcome(seed=0):
    """Random states of a model with a hidden layer, so with features."""
    data = random_data(seed=seed, tests=30)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    model = FlatModel.from_module(module, "cross-entropy")
    states = np.random.default_rng(seed + 1).normal(size=(3, data.n, model.size))
    request = ForgetRequest.samples(peer=2, indices=[0, 2, 5], request_id="r0")
    return outcome_of(data, model, *states, request)
