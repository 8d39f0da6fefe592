"""What every registered baseline must do; each on a run that it serves."""

import re
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig, trainers
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import baselines

REQUESTS = {
    "samples": ForgetRequest.samples(peer=1, indices=[0, 3]),
    "peer": ForgetRequest.whole_peer(2),
    "class": ForgetRequest.class_(1),
}
TRAINERS = {"dp-gossip": "dp-gossip"}  # baseline -> trainer, where not d-sgd
every_baseline = pytest.mark.parametrize("name", baselines.names())
every_kind = pytest.mark.parametrize("kind", REQUESTS)


def run_for(name, dtype="float32"):
    trainer = trainers.build(TRAINERS.get(name, "d-sgd"))
    config = SimulationConfig(rounds=4, trainer=trainer, evaluate_every=0, dtype=dtype)
    return simulate("ring", blobs([8, 6, 7, 9]), "logistic", config)


def served(name, kind):
    kinds = getattr(baselines.get(name), "kinds", None)
    if kinds is not None and kind not in kinds:
        pytest.skip(f"{name} serves {', '.join(sorted(kinds))}")
    return REQUESTS[kind]


@every_baseline
@every_kind
def test_a_baseline_keeps_the_contract_of_protocols(name, kind):
    run, request = run_for(name), served(name, kind)
    before, entries = run.state.params.clone(), run.ledger.entries
    outcome = unlearn(run, request, name)
    params = outcome.state.params
    assert params.shape == before.shape
    assert params.dtype == before.dtype
    assert params.isfinite().all()
    assert torch.equal(run.state.params, before)
    assert run.ledger.entries == entries
    for field in fields(outcome.cost):
        assert getattr(outcome.cost, field.name) >= 0
    assert outcome.cost.messages == len(outcome.messages)
    gone = outcome.request.mask(run.data)
    np.testing.assert_array_equal(outcome.as_run().data.keep, run.data.keep & ~gone)
    again = unlearn(run_for(name), request, name)
    assert torch.equal(again.state.params, params)
    assert again.certificate == outcome.certificate


@every_baseline
@every_kind
def test_a_claim_is_a_valid_certificate_of_this_request(name, kind):
    outcome = unlearn(run_for(name), served(name, kind), name)
    certificate = outcome.certificate
    if certificate is None:
        return
    assert certificate.request_id == outcome.request.request_id == "r0"
    assert certificate.method == outcome.protocol_name == name
    assert Certificate.from_json(certificate.to_json()) == certificate
    if certificate.status in ("certified", "exact"):
        assert getattr(baselines.get(name), "claim", None) == certificate.status


@every_baseline
def test_a_kind_that_is_not_served_is_refused(name):
    kinds = getattr(baselines.get(name), "kinds", REQUESTS)
    run = run_for(name)
    for kind in set(REQUESTS) - set(kinds):
        with pytest.raises(UnsupportedRequestError, match=kind):
            unlearn(run, REQUESTS[kind], name)


@every_baseline
def test_float64_runs_are_served_too(name):
    outcome = unlearn(run_for(name, "float64"), served(name, "samples"), name)
    assert outcome.state.params.dtype == torch.float64


@every_baseline
def test_a_baseline_is_kept_with_its_fields(name, tmp_path):
    from dfl_unlearn.unlearning.store import load_outcomes

    saved = run_for(name).save(tmp_path / "a")
    outcome = unlearn(saved, served(name, "samples"), name, folder=saved.folder)
    (read,) = load_outcomes(saved)
    assert read.protocol == outcome.protocol
    assert read.certificate == outcome.certificate


@every_baseline
def test_a_baseline_says_what_it_is(name):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert baselines.help(name)
    assert is_dataclass(baselines.get(name))
    assert baselines.build(name) == baselines.build(name)
