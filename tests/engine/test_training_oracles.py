"""decentralized-certified 7, item 2: D-SGD on R4, 25 rounds, and leave-one-out."""

import numpy as np
import pytest
from networks import full_batch, path4, r4_data, r4_request, ridge
from oracles.networks import metropolis, r4, ridge_dsgd

from dfl_unlearn.engine.simulator import simulate

CTA = [
    [-0.0791358, -0.2564225],
    [-0.11578674, -0.14411103],
    [-0.16035414, -0.19923714],
    [-0.18376889, -0.17380641],
]
LEAVE_OUT = [0.0607495782, 0.0748482645, 0.1065106815, 0.0869980246]


def zero_start(run_config, data):
    """Train from zero, as the oracle does."""
    model = ridge()
    model.init = lambda rng: np_zeros(model.size)  # type: ignore[method-assign]
    return simulate(path4(), data, model, run_config)


def np_zeros(size):
    import torch

    return torch.zeros(size, dtype=torch.float64)


def test_cta_gives_the_published_states():
    run = zero_start(full_batch("cta"), r4_data())
    np.testing.assert_allclose(run.state.params, CTA, atol=5e-8)


def test_leaving_the_forget_set_out_moves_the_peers_as_published():
    data = r4_data()
    whole = zero_start(full_batch("cta"), data)
    left = zero_start(full_batch("cta"), data.without(r4_request("fixed")))
    moved = (whole.state.params - left.state.params).norm(dim=1)
    np.testing.assert_allclose(moved, LEAVE_OUT, atol=5e-11)


@pytest.mark.parametrize("form", ["atc", "cta"])
@pytest.mark.parametrize("normalization", [None, "fixed", "local_mean"])
def test_both_forms_equal_a_loop_over_peers(form, normalization):
    data = r4_data()
    weights = np.full((4, 3), 1 / 3)
    if normalization:
        data = data.without(r4_request(normalization))
        weights[2] = [0, 0, 1 / 3 if normalization == "fixed" else 1.0]
    run = zero_start(full_batch(form), data)
    expected = ridge_dsgd(
        *r4(),
        metropolis([(0, 1), (1, 2), (2, 3)], 4),
        l2=0.1,
        rate=0.1,
        rounds=25,
        form=form,
        weights=weights,
    )
    np.testing.assert_allclose(run.state.params, expected, rtol=1e-12, atol=1e-14)
