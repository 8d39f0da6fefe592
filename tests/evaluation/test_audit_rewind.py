"""Audits of rewinding one model: the claim stands, and falls where it is broken.

The setting makes the bound nearly an equality (see ``networks.opposed_run``), so that a
sensitivity that is too small is not hidden by the slack that other data leave.
"""

from dataclasses import replace

import pytest
import torch
from networks import opposed_run

from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit import audit_epsilon, audit_noise_std, one_run_audit
from dfl_unlearn.evaluation.audit_rewind import RewindWorlds
from dfl_unlearn.evaluation.audit_worlds import Setting, SilentTree
from dfl_unlearn.unlearning import network_claim, r2d_claim, reentry
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

REQUEST = ForgetRequest.samples(peer=0, indices=[0, 1], request_id="r0")
METHOD = R2d(rewind=0.5, epsilon=1.0, delta=1e-5)


@pytest.fixture(scope="module")
def run():
    return opposed_run()


def audit(run, method=METHOD, replicas=60, **options):
    return audit_epsilon(
        run, REQUEST, AtPeer(method=method), replicas=replicas, **options
    )


def test_a_claim_that_holds_is_consistent_though_its_bound_is_nearly_reached(run):
    found = audit(run)
    assert found.claim.nominal is False
    assert found.claim.scope == "release"
    assert found.verdict == "consistent"
    bound = found.claim.sensitivity
    # 2 eta m G (T - K) / n, and the rows make an equality of it but for their angles.
    assert bound == pytest.approx(2 * 0.5 * 2 * 0.2 * 4 / 40, rel=1e-12)
    assert 0.8 * bound < found.shift_measured <= bound
    assert found.noise_holds
    assert [c.verdict for c in found.negative_controls] == ["refuted", "refuted"]


def test_half_of_the_noise_is_refuted(run, monkeypatch):
    release = GaussianRelease.__call__

    def halved(self, value, **rest):
        return release(replace(self, noise_std=self.noise_std / 2), value, **rest)

    monkeypatch.setattr(GaussianRelease, "__call__", halved)
    found = audit(run)
    assert found.verdict == "refuted"
    assert found.noise_std_measured == pytest.approx(
        found.claim.noise_std / 2, rel=0.03
    )


def test_a_sensitivity_that_is_too_small_is_refuted_by_the_shift(run, monkeypatch):
    right = r2d_claim.trajectory_sensitivity

    def small(**numbers):
        return 0.4 * right(**numbers)

    monkeypatch.setattr(r2d_claim, "trajectory_sensitivity", small)
    found = audit(run, noise_check=False)
    assert found.verdict == "refuted"
    assert found.shift_holds is False
    assert found.shift_measured > 2 * found.claim.sensitivity


def test_steps_on_forgotten_rows_in_place_of_kept_ones_are_refuted(run, monkeypatch):
    right = reentry.local_task

    def leaking(*given, **named):
        task = right(*given, **named)
        inputs, labels = task.retain.inputs.clone(), task.retain.labels.clone()
        inputs[:2], labels[:2] = task.forget.inputs, task.forget.labels
        return replace(task, retain=TensorBatch(inputs, labels))

    monkeypatch.setattr(reentry, "local_task", leaking)
    found = audit(run, replace(METHOD, rewind=0.75), noise_check=False)
    assert found.verdict == "refuted"
    assert found.shift_measured > 2 * found.claim.sensitivity


def test_the_noise_alone_can_be_measured(run):
    found = audit_noise_std(run, REQUEST, AtPeer(method=METHOD))
    assert found.verdict == "consistent"
    assert found.noise_flaws == ()
    assert found.shift_measured <= found.claim.sensitivity


def test_from_the_target_the_protocol_ends_at_the_target(run):
    worlds = RewindWorlds(Setting.of(run, REQUEST), AtPeer(method=METHOD))
    silent = SilentTree("audit/0/x")
    target = worlds.target.rows
    torch.testing.assert_close(
        worlds.bare(target, silent), target, rtol=1e-12, atol=1e-14
    )
    assert worlds.shift(worlds.bare(run.state.params, silent)) > 0.01
    assert worlds.shift(run.state.params) > 0.01


def test_the_reference_never_saw_the_forgotten_rows(run):
    """Other rows in their place change nothing of the target, to the bit."""
    x, y = run.data.store.inputs.clone(), run.data.store.labels.clone()
    x[:2], y[:2] = 0.5 * x[5:7], 1
    other = run.replaced(
        data=replace(run.data, store=replace(run.data.store, inputs=x, labels=y))
    )
    first, second = (
        RewindWorlds(Setting.of(one, REQUEST), AtPeer(method=METHOD))
        for one in (run, other)
    )
    assert torch.equal(first.target.rows, second.target.rows)
    assert not torch.equal(first.before(), second.before())


def test_a_network_that_goes_back_together_is_audited_too(monkeypatch):
    run = opposed_run(peers=2)
    protocol = AtPeer(method=METHOD, reentry="rewind_network")

    def found(**options):
        return audit_epsilon(run, REQUEST, protocol, replicas=60, **options)

    honest = found()
    assert honest.claim.scope == "joint"
    assert honest.verdict == "consistent"
    assert honest.noise_holds
    # Half of the owner's change stays with it, half goes to the other peer.
    assert honest.shift_measured > 0.5 * honest.claim.sensitivity
    right = network_claim.trajectory_sensitivity
    monkeypatch.setattr(
        network_claim, "trajectory_sensitivity", lambda **given: 0.4 * right(**given)
    )
    broken = found(noise_check=False)
    assert broken.verdict == "refuted"
    assert broken.shift_holds is False


def test_float32_is_audited_too():
    found = audit(opposed_run(dtype="float32"), noise_check=False)
    assert found.verdict == "consistent"


def test_the_same_audit_gives_the_same_counts(run):
    first, again = (audit(run, replicas=40, noise_check=False) for _ in range(2))
    assert first.to_json() == again.to_json()


def test_what_has_no_such_certifier_is_refused(run):
    def refused(run, method, match, **fields):
        with pytest.raises(UnsupportedRequestError, match=match):
            audit_epsilon(run, REQUEST, AtPeer(method=method, **fields), replicas=40)

    refused(run, replace(METHOD, rewind=1.0), "must add noise")
    refused(run, replace(METHOD, epsilon=None), "must make a claim")
    refused(run, METHOD, "gossip_rounds=2", gossip_rounds=2)
    local = LocalSteps(batch_size=8, learning_rate=0.5, clip_norm=0.2)
    refused(opposed_run(local=local), METHOD, "batch_size=8")
    refused(opposed_run(peers=2), METHOD, "2 peers, reentry='requester'")
    refused(run, METHOD, "reentry='all'", reentry="all")
    gone = run.replaced(data=run.data.without(ForgetRequest.samples(0, indices=[9])))
    refused(gone, METHOD, "1 rows taken")
    refused(replace(run, record=None), METHOD, "a run with a record, got none")
    four = ForgetRequest.samples(peer=0, indices=[0, 1, 2, 3], request_id="r0")
    with pytest.raises(UnsupportedRequestError, match="not with one run of canaries"):
        one_run_audit(run, four, AtPeer(method=METHOD))
