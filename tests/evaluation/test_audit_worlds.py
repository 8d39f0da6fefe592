"""The certifier: exact targets from another hand, the same noise, the same rest."""

from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import (
    full_batch,
    l6_data,
    logistic4,
    path4,
    r4_data,
    r4_request,
    ridge,
)

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit_certifiers import worlds_of
from dfl_unlearn.evaluation.audit_targets import blanked, exact_target, kept_data
from dfl_unlearn.evaluation.audit_worlds import Setting, SilentTree
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu

RESIDUAL = RecordPlan(parts=frozenset({"training_residual"}))
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 1, 2], request_id="r0")
OWN = {"noise_placement": "independent", "influence_weights": "uniform"}
STACK = {
    "target": "dsgd_fixed_point",
    "curvature": "linearized_gossip",
    "noise_placement": "independent",
}

PROTOCOLS = {
    "model": NewtonFisher(recovery_rounds=3),
    "own": NewtonFisher(residual_cap=2.0, **OWN),
    "own release": NewtonFisher(
        residual_cap=2.0, scope="release", recovery_rounds=0, **OWN
    ),
    "correction": NewtonFisher(
        noise_placement="broadcast_correction",
        influence_weights="uniform",
        scope="release",
        residual_cap=2.0,
        recovery_rounds=0,
    ),
    "stack": NewtonFisher(**STACK),
    "averaged": NewtonFisher(dissemination="gossip_average"),
    "aligned": NewtonFisher(
        noise_placement="independent",
        influence_weights="uniform",
        residual_cap=0.5,
        align_to=0.01,
    ),
    "fine-tune": FineTune(epsilon=1.0, rounds=40, residual_cap=1.0),
    "token": RrDu(hops=12, residual_cap=2.0),
    "token of corrected steps": RrDu(
        hops=12, residual_cap=2.0, alignment="corrected", optimizer="adam"
    ),
}


def l6_run(rate=0.3, rounds=60, **changes):
    ring6 = Topology.from_graph(nx.cycle_graph(6), name="ring6")
    config = full_batch(rounds=rounds, rate=rate, record=RESIDUAL)
    return simulate(ring6, l6_data(), logistic4(), replace(config, **changes))


@dataclass(frozen=True)
class TheirNoise(RngTree):
    """Gives the certifier the very normal numbers that the protocol would draw."""

    separate: bool = False

    def normal(self, shape, purpose, **key):
        if purpose != "audit":
            return super().normal(shape, purpose, **key)
        key |= {"who": 1}
        if not self.separate:
            return super().normal(shape, "unlearn-noise", **key)
        rows = [
            super(TheirNoise, self).normal(shape[1:], "unlearn-noise", draw=i, **key)
            for i in range(shape[0])
        ]
        return torch.stack(rows)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_from_the_target_the_protocol_is_its_certifier(name, dtype):
    protocol = PROTOCOLS[name]
    run = l6_run(dtype=dtype)
    if name == "model":  # recovery on drawn batches
        local = LocalSteps(batch_size=3, learning_rate=0.3)
        run = l6_run(dtype=dtype, local=local)
    worlds = worlds_of(Setting.of(run, REQUEST), protocol)
    target = worlds.target.rows
    tree = TheirNoise("audit/0/x", separate=name in ("own", "own release", "aligned"))
    theirs = worlds.unlearned(target, tree)
    ours = worlds.released(target[None], worlds.claim.noise_std, [tree])[0]
    # In float32 the token starts from a rounded target.
    close = 1e-11 if dtype == "float64" else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    bare = worlds.bare(target, SilentTree("audit/0/x"))
    assert worlds.shift(bare) < (1e-12 if dtype == "float64" else 1e-6)


def test_a_requester_that_corrects_alone_stays_within_its_cap():
    run = l6_run()
    protocol = NewtonFisher(scope="view_joint", curvature="local", residual_cap=2.0)
    worlds = worlds_of(Setting.of(run, REQUEST), protocol)
    rows = worlds.bare(run.state.params, SilentTree("audit/0/x"))
    assert 0 < worlds.shift(rows) <= 2.0
    seen = worlds.unlearned(run.state.params, RngTree("audit/0/x"))
    assert seen.shape == (12, 4)
    assert worlds.released(rows[None], 1.0, [RngTree("audit/0/y")]).shape == (1, 12, 4)


@pytest.mark.parametrize("normalization", ["fixed", "local_mean"])
def test_kept_rows_and_targets_are_those_of_the_oracles(normalization):
    run = simulate(path4(), r4_data(), ridge(), full_batch())
    request = r4_request(normalization)
    kept = kept_data(run, request)
    theirs = run.data.without(request)
    assert kept.fingerprint() == theirs.fingerprint()
    expected = {
        "fixed": [-0.1847117050, -0.1304721982],
        "local_mean": [-0.2469457954, -0.1887760448],
    }[normalization]
    found = exact_target(blanked(run, request), kept, stacked=False)
    np.testing.assert_allclose(found.rows[3], expected, atol=1e-10)
    assert found.slack < 1e-14
    if normalization == "local_mean":
        stack = exact_target(blanked(run, request), kept, stacked=True)
        rows = [
            [-0.1592754222, -0.2577579855],
            [-0.2069115917, -0.1450211067],
            [-0.2725194388, -0.1882173995],
            [-0.2826916963, -0.1768193626],
        ]
        np.testing.assert_allclose(stack.rows, rows, atol=1e-10)


def test_targets_of_large_models_come_without_dense_matrices(monkeypatch):
    run = l6_run()
    kept = kept_data(run, REQUEST)
    for stacked in (False, True):
        dense = exact_target(run, kept, stacked=stacked)
        with monkeypatch.context() as small:
            small.setattr("dfl_unlearn.evaluation.audit_targets._LARGEST_DENSE", 1)
            sparse = exact_target(run, kept, stacked=stacked)
        torch.testing.assert_close(sparse.rows, dense.rows, rtol=0, atol=1e-10)


def test_of_a_whole_peer_and_of_several_owners_the_rows_are_the_same():
    run = l6_run()
    for request in (
        ForgetRequest.whole_peer(2),
        ForgetRequest.class_(1).resolve(run.data),
    ):
        kept = kept_data(run, request)
        assert kept.fingerprint() == run.data.without(request).fingerprint()


def test_blanking_leaves_nothing_of_the_rows():
    run = l6_run()
    without = blanked(run, REQUEST)
    gone = run.data.store.inputs[run.data.rows(1).start : run.data.rows(1).start + 3]
    for row in gone:
        assert not (without.data.store.inputs == row).all(dim=1).any()
    kept = torch.from_numpy(kept_data(run, REQUEST).keep)
    assert torch.equal(without.data.store.inputs[kept], run.data.store.inputs[kept])


def test_a_silent_tree_has_the_draws_but_no_noise():
    tree = SilentTree("audit/0/unlearned/3")
    assert not tree.normal((3, 2), "unlearn-noise").any()
    same = RngTree("audit/0/unlearned/3")
    assert tree.numpy("batch").random() == same.numpy("batch").random()


def test_what_claims_nothing_or_has_no_target_is_refused():
    run = l6_run()
    setting = Setting.of(run, REQUEST)
    with pytest.raises(UnsupportedRequestError, match="protocol: must make a claim"):
        worlds_of(setting, FineTune())
    with pytest.raises(UnsupportedRequestError, match="noise_mode: must be 'simul"):
        worlds_of(setting, NewtonFisher(noise_mode="secure"))
    mlp = models.build("mlp", input_shape=(4,), num_classes=2, hidden=(3,))
    other = simulate(run.topology, run.data, mlp, full_batch(rounds=2))
    with pytest.raises(UnsupportedRequestError, match=r"convex=False, l2=0"):
        worlds_of(Setting.of(other, REQUEST), NewtonFisher())


def test_a_token_that_stays_is_seen_where_it_is():
    worlds = worlds_of(Setting.of(l6_run(), REQUEST), RrDu(hops=40, residual_cap=2.0))
    tree = RngTree("audit/0/y")
    path = worlds.unlearned(worlds.target.rows, tree)
    assert path.shape == (12, 4)
    cut = RrDu(hops=40, residual_cap=2.0, max_visits=1, restart_probability=0.9)
    ended = worlds_of(Setting.of(l6_run(), REQUEST), cut)
    path = ended.unlearned(worlds.target.rows, tree)
    assert torch.equal(path[-1], path[-2])
