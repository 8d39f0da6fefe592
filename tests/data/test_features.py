"""Features of a frozen extractor: what they are, and what certificates say of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import blobs
from torch import nn

from dfl_unlearn.data.features import frozen_features, random_features
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    DataError,
    DflUnlearnError,
    InvalidArgumentError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.unlearning import newton_claim
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu

DATA = blobs([12, 7, 9, 10], dtype=np.float32)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
HEAD = NewtonFisher(convex_head=True, residual_cap=0.01)


def trained(data):
    config = SimulationConfig(
        rounds=5, local=LocalSteps(batch_size=5), evaluate_every=0, dtype="float64"
    )
    return simulate("ring", data, "logistic", config)


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh())


def test_random_features_have_the_kernel_they_stand_for():
    data = random_features(DATA, 20_000, scale=3.0)
    x = DATA.store.inputs[:6].double()
    phi = data.store.inputs[:6].double()
    squares = torch.cdist(x, x).square()
    np.testing.assert_allclose(phi @ phi.T, torch.exp(-squares / 18), atol=0.03)


def test_random_features_have_a_public_bound_and_saw_no_data():
    data = random_features(DATA, 50)
    assert data.input_radius(bias=False) == (
        pytest.approx(math.sqrt(2), rel=1e-6),
        True,
    )
    assert data.store.inputs.shape == (38, 50)
    assert data.test.inputs.shape == (60, 50)
    assert torch.equal(data.store.labels, DATA.store.labels)
    assert data.extractor.source == "proven"
    again = random_features(blobs([12, 7, 9, 10], seed=5), 50)
    same = random_features(DATA, 50)
    assert data.fingerprint() == same.fingerprint()
    assert data.extractor == again.extractor  # whatever the rows
    other = random_features(DATA, 50, seed=1)
    assert not torch.equal(other.store.inputs, data.store.inputs)


def test_a_stored_run_is_not_read_with_the_statement_left_out(tmp_path):
    data = frozen_features(DATA, deep(), name="tanh16", saw="these_data")
    trained(data).save(tmp_path / "run")
    assert load_run(tmp_path / "run", data=data).data.extractor == data.extractor
    for plain in (
        replace(data, extractor=None),
        frozen_features(DATA, deep(), name="tanh16", saw="other_data"),
    ):
        with pytest.raises(DflUnlearnError, match="data"):
            load_run(tmp_path / "run", data=plain)


def test_bytes_are_seen_as_models_see_them():
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)
    labels = torch.tensor([0, 1])
    data = PeerData.from_tensors([(images, labels)], test=(images, labels))
    whole = frozen_features(data, lambda x: x.flatten(1), name="flat", saw="other_data")
    np.testing.assert_allclose(
        whole.store.inputs, images.flatten(1).float() / 255, rtol=1e-6
    )


def test_the_head_on_random_features_is_certified():
    run = trained(random_features(DATA, 30))
    certificate = unlearn(run, REQUEST, HEAD).certificate
    assert certificate.status == "certified"
    assert certificate.covers == ("head",)
    text = str(certificate)
    assert "covers parameters: head" in text
    assert "it saw no data" in text
    assert "from the public range of the features" in text


def test_an_extractor_from_elsewhere_is_taken_on_trust():
    run = trained(frozen_features(DATA, deep(), name="tanh16", saw="other_data"))
    certificate = unlearn(run, REQUEST, HEAD).certificate
    assert certificate.status == "certified_conditional"
    assert certificate.epsilon == 1.0
    assert certificate.reasons == ("feature extractor: assumed",)
    assert "stated, not checked" in str(certificate)


@pytest.mark.parametrize("head", [True, False])
def test_an_extractor_that_saw_the_rows_proves_nothing(head):
    run = trained(frozen_features(DATA, deep(), name="tanh16", saw="these_data"))
    protocol = NewtonFisher(convex_head=head, residual_cap=0.01)
    certificate = unlearn(run, REQUEST, protocol).certificate
    assert certificate.status == "heuristic"
    assert certificate.epsilon is None
    assert certificate.reasons == ("feature extractor: violated",)
    walk = unlearn(run, REQUEST, RrDu(hops=5, residual_cap=1e3)).certificate
    assert walk.status == "heuristic"
    assert "feature extractor: violated" in walk.reasons
    again = unlearn(run, REQUEST, "retrain").certificate
    assert again.status == "heuristic"  # the head is as if retrained, the rest is not
    assert again.epsilon is None


@pytest.mark.parametrize(
    ("saw", "status"),
    [("other_data", "certified_conditional"), ("these_data", "heuristic")],
)
@pytest.mark.parametrize("how", ["fine-tune", "dp-gossip"])
def test_no_claim_is_silent_about_the_extractor(how, saw, status):
    data = frozen_features(DATA, deep(), name="tanh16", saw=saw)
    private = how == "dp-gossip"
    trainer = DpGossip(noise_multiplier=20.0) if private else DSgd(form="cta")
    size = LocalSteps().batch_size if private else None
    config = SimulationConfig(
        rounds=3,
        trainer=trainer,
        local=LocalSteps(batch_size=size, learning_rate=0.01),
        evaluate_every=0,
    )
    run = simulate("ring", data, "logistic", config)
    protocol = how if private else FineTune(epsilon=1.0, residual_cap=1e4)
    certificate = unlearn(run, REQUEST, protocol).certificate
    assert certificate.status == status
    assert (certificate.epsilon is None) == (status == "heuristic")
    assert data.extractor in certificate.assumptions


def test_a_claim_that_leaves_the_extractor_out_is_refused(monkeypatch):
    run = trained(frozen_features(DATA, deep(), name="tanh16", saw="these_data"))
    monkeypatch.setattr(newton_claim, "extractor_of", lambda run: [])
    with pytest.raises(SensitivityUnprovenError, match=r"list the extractor .* got ne"):
        unlearn(run, REQUEST, HEAD)


def test_forgetting_goes_on_on_features():
    run = trained(random_features(DATA, 30))
    first = unlearn(run, REQUEST, HEAD).as_run()
    second = unlearn(first, ForgetRequest.samples(peer=1, indices=[1]), HEAD)
    assert second.certificate.covers == ("head",)
    assert second.certificate.status == "certified"


def test_a_head_needs_features_and_a_linear_model():
    with pytest.raises(UnsupportedRequestError, match="features of a frozen"):
        unlearn(trained(DATA), REQUEST, HEAD)
    config = SimulationConfig(rounds=2, evaluate_every=0)
    network = simulate("ring", random_features(DATA, 8), "mlp", config)
    with pytest.raises(UnsupportedRequestError, match="convex_head"):
        unlearn(network, REQUEST, NewtonFisher(convex_head=True, damping=3.0))


def test_an_extractor_that_mixes_rows_is_refused():
    module = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(DataError, match="from that row alone"):
        frozen_features(
            DATA, lambda x: module(x - x.mean(0)), name="m", saw="other_data"
        )
    with pytest.raises(DataError, match="flatten them"):
        frozen_features(DATA, lambda x: x[:, 0], name="m", saw="other_data")
    with pytest.raises(InvalidArgumentError, match="saw"):
        frozen_features(DATA, module, name="m", saw="nothing")
    normed = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))  # evaluation mode
    assert frozen_features(DATA, normed, name="m", saw="other_data").n == 4


@pytest.mark.parametrize("fields", [{"width": 0}, {"width": 4, "scale": 0.0}])
def test_sizes_of_random_features_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=next(reversed(fields))):
        random_features(DATA, **fields)
