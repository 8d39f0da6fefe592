"""Private training, and what a detector sees of it for one seed."""

from unittest import mock

import networkx as nx
import numpy as np
import torch
from mutations import detectors
from networks import blobs

from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.accounting.rdp import curve_of
from dfl_unlearn.accounting.release import clip_rows
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.batches import BatchPlan
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology

RATE, CLIP, NOISE = 0.3, 0.8, 1.5


def one_round(seed, data, *, rounds=1, peers=None):
    """Peers' models right after private steps that are not mixed yet ("cta")."""
    n = data.n
    graph = nx.cycle_graph(n) if n > 2 else nx.path_graph(n)
    config = SimulationConfig(
        rounds=rounds,
        trainer=DpGossip(clip_norm=CLIP, noise_multiplier=NOISE, rate=RATE, form="cta"),
        local=LocalSteps(learning_rate=1.0),
        dtype="float64",
        seed=seed,
        evaluate_every=0,
    )
    return simulate(Topology.from_graph(graph), data, "logistic", config)


def odd_training_noise(seed):
    """Two equal rounds, one of them without noise, differ by the claimed noise."""
    data = blobs([8, 8], features=1220, classes=5, dtype=np.float64)
    noisy = one_round(seed, data).state.params
    normal = RngTree.normal

    def still(self, shape, purpose, **key):
        drawn = normal(self, shape, purpose, **key)
        return drawn * (purpose != "train-noise")

    with mock.patch.object(RngTree, "normal", still):
        noise = noisy - one_round(seed, data).state.params
    return detectors.noise_check(noise, NOISE * CLIP / (RATE * 8))


def batch_is_too_full(seed):
    """Rows join batches as often as the ledger's rate says."""
    taken, poisson = [], BatchPlan.poisson

    def counted(self, peers, t, rate):
        batch = poisson(self, peers, t, rate)
        taken.append(int((batch.weights > 0).sum()))
        return batch

    data = blobs([7, 9, 12], features=3, dtype=np.float64)
    with mock.patch.object(BatchPlan, "poisson", counted):
        run = one_round(seed, data, rounds=4)
    (entry,) = run.ledger.entries
    return detectors.participation_check(
        sum(taken), 4 * int(data.sizes.sum()), entry.mechanism.rate
    )


def row_moves_more(seed):
    """The same round at 100 peers, with and without one row at each, ten times."""
    rng = np.random.default_rng(seed)
    shifts = []
    for trial in range(10):
        sizes = rng.integers(1, 7, 100)
        data = blobs(
            sizes + 1, features=3, seed=int(rng.integers(2**31)), dtype=np.float64
        )
        lost = data
        for peer in range(100):
            request = ForgetRequest.samples(
                peer=peer, indices=[int(rng.integers(sizes[peer] + 1))]
            )
            lost = lost.without(request.resolve(lost))
        one, other = (
            one_round(1000 * seed + trial, d).state.params for d in (data, lost)
        )
        scale = torch.from_numpy(RATE * (sizes + 1.0))
        shifts += ((one - other).norm(dim=1) * scale).tolist()
    return detectors.sensitivity_check(shifts, CLIP)


def exchange_costs_more(seed):
    """Sums of clipped rows with one row exchanged, against the converted curve."""
    rng = np.random.default_rng(seed)
    rows, size = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    removed = curve_of(
        GaussianMechanism(noise_std=NOISE, sensitivity=CLIP, adjacency="add_remove")
    )
    exchanged = removed.to_adjacency("replace_one")
    alpha, value = exchanged.orders[0], exchanged.values[0]
    claimed = NOISE * float(np.sqrt(2 * value / alpha))
    shifts = []
    for trial in range(1001):
        given = torch.from_numpy(rng.normal(size=(rows, size)) * 3)
        other = given.clone()
        other[0] = torch.from_numpy(rng.normal(size=size) * 3)
        if trial == 1000:
            other[0] = -9 * given[0]
            given[0] *= 9
        sums = [clip_rows(values, CLIP)[0].sum(0) for values in (given, other)]
        shifts.append(float((sums[0] - sums[1]).norm()))
    return detectors.sensitivity_check(shifts, claimed)
