"""What a request takes out of the network's gradient, exactly and at worst."""

import numpy as np
import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.models.zoo import models
from dfl_unlearn.unlearning.shift import Removal

DATA = blobs([9, 14, 6, 11], dtype=np.float64)
MODEL = models.build("logistic", input_shape=(6,), num_classes=3, l2=0.1)
REQUESTS = {
    "samples": ForgetRequest.samples(peer=1, indices=[0, 3, 7]),
    "fixed": ForgetRequest.samples(peer=2, indices=[1], normalization="fixed"),
    "class": ForgetRequest.class_(1),
    "peer": ForgetRequest.whole_peer(3),
}


@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_gradient_without_the_data_is_kappa_times_the_old_one_plus_r(
    kind, weighting
):
    request = REQUESTS[kind].resolve(DATA)
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=MODEL.size))
    before = network_objective(MODEL, DATA, weighting).gradient(theta)
    after = network_objective(MODEL, DATA.without(request), weighting).gradient(theta)
    removal = Removal.of(DATA, request, weighting)
    r = after - removal.kappa * before
    np.testing.assert_allclose(
        removal.norm(MODEL, DATA, theta), float(r.norm()), rtol=1e-10
    )


@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_public_worst_case_is_not_below_what_is_taken(kind, weighting):
    request = REQUESTS[kind].resolve(DATA)
    removal = Removal.of(DATA, request, weighting)
    radius, _ = DATA.input_radius(bias=True)
    bound = float(MODEL.constants(radius)["gradient_bound"].value)
    for scale in (0.0, 1.0, 30.0):
        theta = scale * torch.from_numpy(
            np.random.default_rng(1).normal(size=MODEL.size)
        )
        decay = (removal.kappa - 1) * MODEL.l2 * float(theta.norm())
        assert (
            removal.norm(MODEL, DATA, theta)
            <= removal.worst(DATA, request, bound) + decay
        )


def test_the_coefficients_are_those_of_the_published_formulas():
    request = REQUESTS["samples"].resolve(DATA)  # m = 3 of n_u = 14, N = 4
    assert Removal.of(DATA, request, "uniform").worst(DATA, request, 2.0) == (
        pytest.approx(2 * 3 * 2.0 / (4 * (14 - 3)))
    )
    request = REQUESTS["peer"].resolve(DATA)
    removal = Removal.of(DATA, request, "uniform")
    assert removal.kappa == pytest.approx(4 / 3)
    assert removal.worst(DATA, request, 2.0) == pytest.approx(2.0 / 3)


@pytest.mark.parametrize("weighting", ["uniform", "size"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_what_owners_vouch_for_alone_is_never_below_what_is_taken(kind, weighting):
    request = REQUESTS[kind].resolve(DATA)
    removal = Removal.of(DATA, request, weighting)
    theta = torch.from_numpy(np.random.default_rng(2).normal(size=MODEL.size))
    joint = removal.norm(MODEL, DATA, theta)
    alone = removal.least_cap(MODEL, DATA, theta)
    if len(request.peers) == 1:
        assert alone == joint
    else:
        parts = []
        for owner in request.peers:
            own = np.where(DATA.owner == owner, removal.coefficients, 0.0)
            part = Removal(kappa=1.0, coefficients=own)
            parts.append(part.norm(MODEL, DATA, theta))
        shares = np.array(
            [
                np.abs(removal.coefficients[DATA.owner == owner]).sum()
                for owner in request.peers
            ]
        )
        decay = (removal.kappa - 1) * MODEL.l2 * float(theta.norm())
        # Each part fits its public share, and the parts can cancel in the joint norm.
        np.testing.assert_allclose(
            alone - decay, np.max(parts / (shares / shares.sum())), rtol=1e-12
        )
        assert alone >= sum(parts) * (1 - 1e-12) > joint * 1.0001


def test_the_worst_case_of_several_owners_passes_without_a_message():
    request = REQUESTS["class"].resolve(DATA)
    removal = Removal.of(DATA, request, "uniform")
    radius, _ = DATA.input_radius(bias=True)
    bound = float(MODEL.constants(radius)["gradient_bound"].value)
    theta = 30 * torch.from_numpy(np.random.default_rng(1).normal(size=MODEL.size))
    assert removal.least_cap(MODEL, DATA, theta) <= removal.worst(DATA, request, bound)
