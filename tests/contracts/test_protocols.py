"""What every registered protocol must do, plugins included."""

import re
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.contracts import protocols

REQUESTS = {
    "samples": ForgetRequest.samples(peer=1, indices=[0, 3]),
    "peer": ForgetRequest.whole_peer(2),
    "class": ForgetRequest.class_(1),
}
every_protocol = pytest.mark.parametrize("name", protocols.names())
every_kind = pytest.mark.parametrize("kind", REQUESTS)


def tiny(dtype="float32") -> TrainedRun:
    return simulate(
        "ring",
        blobs([8, 6, 7, 9]),
        "logistic",
        SimulationConfig(
            rounds=4,
            local=LocalSteps(batch_size=4),
            evaluate_every=0,
            dtype=dtype,
        ),
    )


@pytest.fixture(scope="module")
def run():
    return tiny()


def served(name, kind):
    """Skip a kind that the protocol says it does not serve."""
    kinds = getattr(protocols.build(name), "kinds", None)
    if kinds is not None and kind not in kinds:
        pytest.skip(f"{name} serves {', '.join(sorted(kinds))}")
    return REQUESTS[kind]


@every_protocol
@every_kind
def test_a_protocol_gives_a_finite_state_of_the_same_shape(name, kind, run):
    outcome = unlearn(run, served(name, kind), name)
    params = outcome.state.params
    assert params.shape == run.state.params.shape
    assert params.dtype == run.state.params.dtype
    assert params.isfinite().all()
    for slot in outcome.state.slots.values():
        assert slot.shape == params.shape
    assert outcome.protocol_name == name


@every_protocol
@every_kind
def test_a_protocol_leaves_the_run_as_it_was(name, kind):
    run, request = tiny(), served(name, kind)
    copies = [run.state.params.clone(), *(t.clone() for t in stored(run))]
    keep, entries = run.data.keep.copy(), run.ledger.entries
    unlearn(run, request, name)
    assert all(
        a.equal(b)
        for a, b in zip([run.state.params, *stored(run)], copies, strict=True)
    )
    np.testing.assert_array_equal(run.data.keep, keep)
    assert run.ledger.entries == entries


def stored(run):
    yield from (run.data.store.inputs, run.data.store.labels)
    yield from (run.record.initial, *run.record.checkpoints.values())


@every_protocol
def test_a_protocol_draws_by_key_alone(name, run):
    request = served(name, "samples")
    first = unlearn(run, request, name)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - nothing global may matter
    second = unlearn(tiny(), request, name)
    assert state_digest(first.state) == state_digest(second.state)
    assert first.certificate == second.certificate
    assert list(first.messages) == list(second.messages)


@every_protocol
@every_kind
def test_costs_are_counted_and_not_negative(name, kind, run):
    outcome = unlearn(run, served(name, kind), name)
    for field in fields(outcome.cost):
        assert getattr(outcome.cost, field.name) >= 0
    assert outcome.cost.messages == len(outcome.messages)


@every_protocol
@every_kind
def test_a_claim_is_a_valid_certificate_of_this_request(name, kind, run):
    outcome = unlearn(run, served(name, kind), name)
    certificate = outcome.certificate
    if certificate is None:
        assert not outcome.ledger.entries
        return
    assert isinstance(certificate, Certificate)
    assert certificate.request_id == outcome.request.request_id == "r0"
    assert certificate.method == name
    assert Certificate.from_json(certificate.to_json()) == certificate
    charged = {entry.owner for entry in outcome.ledger.entries}
    owners = {f"peer:{i}" for i in outcome.request.peers}
    if certificate.noise_std > 0:
        assert charged == owners
        assert {e.state for e in outcome.ledger.entries} == {"committed"}
        assert {e.status for e in outcome.ledger.entries} == {certificate.status}
    if certificate.status in ("certified", "exact"):
        assert getattr(protocols.get(name), "claim", None) == certificate.status


@every_protocol
@every_kind
def test_messages_run_along_edges_only(name, kind, run):
    outcome = unlearn(run, served(name, kind), name)
    edges = {tuple(edge) for edge in run.topology.edges.tolist()}
    for message in outcome.messages:
        assert tuple(sorted((message.source, message.target))) in edges
        assert message.nbytes > 0


@every_protocol
@every_kind
def test_an_outcome_goes_on_without_the_data(name, kind, run):
    outcome = unlearn(run, served(name, kind), name)
    after = outcome.as_run()
    gone = outcome.request.mask(run.data)
    assert gone.any()
    np.testing.assert_array_equal(after.data.keep, run.data.keep & ~gone)
    assert after.requests == 1
    assert after.record is None
    assert torch.equal(after.state.params, outcome.state.params)


@every_protocol
def test_a_kind_that_is_not_served_is_refused(name, run):
    kinds = getattr(protocols.build(name), "kinds", REQUESTS)
    for kind in set(REQUESTS) - set(kinds):
        with pytest.raises(UnsupportedRequestError, match=kind):
            unlearn(run, REQUESTS[kind], name)


@every_protocol
def test_float64_runs_are_served_too(name):
    run = tiny("float64")
    outcome = unlearn(run, served(name, "samples"), name)
    assert outcome.state.params.dtype == torch.float64


@every_protocol
def test_a_protocol_is_kept_with_its_fields(name, tmp_path, run):
    from dfl_unlearn.unlearning.store import load_outcomes

    saved = run.save(tmp_path / "a")
    outcome = unlearn(saved, served(name, "samples"), name, folder=saved.folder)
    (read,) = load_outcomes(saved)
    assert read.protocol == outcome.protocol
    assert read.certificate == outcome.certificate
    assert torch.equal(read.state.params, outcome.state.params)


@every_protocol
def test_a_protocol_says_what_it_is(name):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert protocols.help(name)
    assert is_dataclass(protocols.get(name))
    assert protocols.build(name) == protocols.build(name)
