"""Replicas: many trainings at once are each the training alone, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs, full_batch, l6_data, logistic4

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.faults import Delay, FaultPlan, MarkovChurn, MessageLoss
from dfl_unlearn.engine.replicas import continue_replicas, train_replicas
from dfl_unlearn.engine.simulator import continue_training, retrain, simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.engine.trainers.gradient_tracking import GradientTracking
from dfl_unlearn.errors import NumericalError
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.files import load_topology

SIZES = [5, 9, 17, 3, 8, 30, 12, 7]


def settings(trainer, *, dtype="float32", clip=None, momentum=0.0, **fields):
    return SimulationConfig(
        rounds=6,
        trainer=trainer,
        local=LocalSteps(
            batch_size=4,
            learning_rate=0.05,
            clip_norm=clip,
            momentum=momentum,
            epochs=0.5 if isinstance(trainer, DSgd) else None,
        ),
        dtype=dtype,
        block_peers=3,
        evaluate_every=0,
        **fields,
    )


def trees(count):
    root = RngTree("audit/0/unlearned")
    return [root.child(str(i)) for i in range(count)]


class Alternating:
    """A ring and a star in turn."""

    n, connected_within, stochastic = 8, 1, "doubly"

    def __init__(self):
        self._both = [load_topology(name, n=8) for name in ("ring", "star")]

    def at(self, t):
        return self._both[t % 2]


CASES = {
    "atc": settings(DSgd()),
    "cta-momentum-clip": settings(DSgd(form="cta"), momentum=0.9, clip=0.5),
    "tracking-float64": settings(GradientTracking(), dtype="float64"),
    "own starts": settings(DSgd(), common_init=False, peer_weighting="size"),
    "schedule": settings(DSgd(), schedule=Alternating()),
    "late messages": settings(
        DSgd(),
        momentum=0.9,
        faults=FaultPlan(
            models=(
                Delay(probabilities=(0.5, 0.3, 0.2)),
                MarkovChurn(p_leave=0.2, p_return=0.5),
            )
        ),
    ),
    "push-sum": settings(
        DSgd(form="cta"),
        faults=FaultPlan(models=(MessageLoss(p=0.3),), weight_policy="push_sum"),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 2, 64])
def test_a_replica_is_the_run_alone_bit_for_bit(name, block):
    data = blobs(SIZES)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.05)
    run = simulate(load_topology("ring", n=8), data, model, CASES[name])
    together = train_replicas(run, trees(5), block=block)
    assert together.params.shape == (5, 8, model.size)
    for tree, params in zip(trees(5), together.params, strict=True):
        alone = retrain(run.replaced(rng=tree), data)
        assert torch.equal(params, alone.state.params)
    assert len({p.numpy().tobytes() for p in together.params}) == 5


@pytest.mark.parametrize("kernel", ["loop", "vmap"])
def test_other_kernels_agree(kernel):
    data = blobs(SIZES)
    model = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(4,))
    config = replace(CASES["atc"], kernel=kernel)
    run = simulate(load_topology("ring", n=8), data, model, config)
    together = train_replicas(run, trees(2))
    for tree, params in zip(trees(2), together.params, strict=True):
        alone = retrain(run.replaced(rng=tree), data)
        # vmap's products may be cut differently where more rows lie together.
        torch.testing.assert_close(params, alone.state.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_private_training_agrees_to_the_last_bits(form):
    data = blobs(SIZES)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.05)
    config = SimulationConfig(
        rounds=6,
        trainer=DpGossip(rate=0.4, form=form),
        dtype="float64",
        block_peers=3,
        evaluate_every=0,
    )
    run = simulate(load_topology("ring", n=8), data, model, config)
    together = train_replicas(run, trees(5), block=3)
    for tree, params in zip(trees(5), together.params, strict=True):
        alone = retrain(run.replaced(rng=tree), data)
        # Batches of other sizes are padded to one: sums over more zeros.
        torch.testing.assert_close(params, alone.state.params, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_going_on_without_data_is_what_one_run_does(batch_size):
    config = replace(
        full_batch("atc"), local=LocalSteps(batch_size=batch_size, learning_rate=0.1)
    )
    run = simulate(load_topology("ring", n=6), l6_data(), logistic4(), config)
    data = run.data.without(ForgetRequest.samples(peer=1, indices=[0, 1, 2]))
    some = trees(3)
    starts = torch.stack([run.state.params + 0.1 * r for r in range(3)])
    on = continue_replicas(run, data, starts, 4, some)
    assert on.round == run.state.round + 4
    for r, tree in enumerate(some):
        state = replace(run.state, params=starts[r])
        alone, _ = continue_training(run.replaced(rng=tree), data, state, 4)
        assert torch.equal(on.params[r], alone.params)
    assert torch.equal(continue_replicas(run, data, starts, 0, some).params, starts)


def test_seeds_are_those_of_child_trees():
    assert trees(1)[0].seed == RngTree("audit/0").child("unlearned").child("0").seed


def test_a_replica_that_diverges_is_named():
    data = blobs(SIZES)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.05)
    config = CASES["atc"]
    run = simulate(load_topology("ring", n=8), data, model, config)
    wild = replace(config, local=LocalSteps(learning_rate=1e30), rounds=9)
    with pytest.raises(NumericalError, match="replica 0 became non-finite by round 9"):
        train_replicas(run.replaced(config=wild), trees(2))


def test_progress_counts_every_replica():
    data = blobs(SIZES)
    model = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.05)
    run = simulate(load_topology("ring", n=8), data, model, CASES["atc"])
    seen = []
    train_replicas(run, trees(5), block=2, progress=seen.append)
    assert seen == [2, 2, 1]
    assert np.sum(seen) == 5
