"""Shards: any cut of the blocks gives the bits of the whole."""

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.local import LocalData, LocalWork
from dfl_unlearn.engine.shard import Shard, link
from dfl_unlearn.engine.simulator import initial_state, simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology

SIZES = [int(s) for s in np.random.default_rng(0).integers(3, 40, 26)]
DATA = blobs(SIZES)
TOPOLOGY = load_topology("random-regular", n=26, degree=4, seed=1)


def settings(trainer, **local):
    return SimulationConfig(
        rounds=5,
        trainer=trainer,
        local=LocalSteps(batch_size=6, **local),
        block_peers=4,
        evaluate_every=0,
    )


def in_parts(config, model, cut):
    """Train shards that hand each other arrays; blocks as ``cut`` lists them."""
    setup = EngineSetup(
        schedule=TOPOLOGY, data=DATA, model=model, config=config, rng=RngTree(0)
    )
    state = initial_state(model, DATA.n, config, setup.rng)
    whole = LocalData.of(DATA, config)
    peers = [
        np.concatenate([np.arange(4 * b, min(4 * b + 4, DATA.n)) for b in blocks])
        for blocks in cut
    ]
    links = link(TOPOLOGY.weights, peers)
    shards = []
    for blocks, own, one in zip(cut, peers, links, strict=True):
        work = LocalWork(whole.part(np.array(blocks), 4), model, config, setup.rng)
        shards.append(Shard(work, config))
        shards[-1].load(one, state.params[own], {}, 0)
    norms = np.zeros((config.rounds, DATA.n))
    for t in range(config.rounds):
        for shard in shards:
            shard.begin(t)
        sent = {
            (s, r): shards[s].outgoing(r)
            for s, one in enumerate(links)
            for r in one.send
        }
        for r, (shard, own) in enumerate(zip(shards, peers, strict=True)):
            incoming = {s: sent[s, r] for s in links[r].receive}
            norms[t, own] = shard.finish(t, incoming)[1]
    params = torch.empty_like(state.params.contiguous())
    for shard, own in zip(shards, peers, strict=True):
        params[torch.from_numpy(own)] = shard.rows()["params"]
    return params, norms


@pytest.mark.parametrize(
    "cut", [[[0, 1, 2], [3, 4, 5, 6]], [[0, 3, 6], [1, 5], [2, 4]]]
)
@pytest.mark.parametrize(
    ("trainer", "local"),
    [
        (DSgd(form="atc"), {"epochs": 1.0, "momentum": 0.5}),
        (DSgd(form="cta"), {"steps": 3, "momentum": 0.9}),
        (GradientTracking(), {}),
    ],
)
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_any_cut_gives_the_bits_of_the_whole(name, trainer, local, cut):
    config = settings(trainer, **local)
    model = models.build(name, input_shape=(6,), num_classes=3)
    whole = simulate(TOPOLOGY, DATA, model, config)
    params, norms = in_parts(config, model, cut)
    assert torch.equal(params, whole.state.params)
    np.testing.assert_array_equal(norms, whole.record.gradient_norms)


def test_links_exchange_only_rows_that_are_mixed():
    ring = load_topology("ring", n=8)
    left, right = link(ring.weights, [np.arange(4), np.arange(4, 8)])
    np.testing.assert_array_equal(left.held, [0, 1, 2, 3, 4, 7])
    np.testing.assert_array_equal(left.own[left.send[1]], [0, 3])
    np.testing.assert_array_equal(left.held[left.receive[1]], [4, 7])
    assert left.boundary == right.boundary == 2
    np.testing.assert_array_equal(
        left.weights.toarray(), ring.weights.toarray()[:4][:, left.held]
    )


def test_a_shard_follows_a_network_that_changes():
    first, second = load_topology("ring", n=8), load_topology("star", n=8)

    class Alternating:
        n, connected_within, stochastic = 8, 1, "doubly"

        def at(self, t):
            return second if t % 2 else first

    data = blobs([9] * 8)
    config = settings(DSgd())
    run = simulate(
        first,
        data,
        "logistic",
        SimulationConfig(
            rounds=4, schedule=Alternating(), local=config.local, dtype="float64"
        ),
    )
    mean = simulate(
        first, data, "logistic", SimulationConfig(rounds=4, local=config.local)
    )
    assert not torch.allclose(run.state.params.float(), mean.state.params)
    links = [
        link(t.weights, [np.arange(4), np.arange(4, 8)])[0] for t in (first, second)
    ]
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    work = LocalWork(
        LocalData.of(data, config).part(np.array([0]), 4), model, config, RngTree(0)
    )
    shard = Shard(work, config)
    rows = torch.arange(4.0)[:, None].expand(4, model.size)
    shard.load(links[0], rows, {}, 0)
    shard.relink(links[1])
    assert torch.equal(shard.rows()["params"], rows)
