import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.convex_sets import R4_L2, r4, ridge_minimizer

from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError
from dfl_unlearn.unlearning.alignment import (
    ALIGNMENTS,
    NORMALIZATIONS,
    alignment_bias,
    alignment_bias_bound,
    mean_update,
    visit_direction,
)

PEERS, SOURCE, FORGET, KEEP = r4(), 2, [0, 1], [2]
REQUEST = {"source": SOURCE, "forgotten": 2, "samples": 3}


def gradients(theta):
    """Data-term gradients at a point: kept means per peer, and over the forget set."""
    theta = np.asarray(theta, dtype=float)

    def mean(peer, rows):
        a, y = PEERS[peer][0][rows], PEERS[peer][1][rows]
        return a.T @ (a @ theta - y) / len(rows)

    kept = [mean(i, KEEP if i == SOURCE else [0, 1, 2]) for i in range(4)]
    return torch.tensor(np.array(kept)), torch.tensor(mean(SOURCE, FORGET))


def drift(theta, alignment, **fields):
    kept, forget = gradients(theta)
    reg = R4_L2 * torch.tensor(theta, dtype=torch.float64)
    return mean_update(
        alignment, kept, forget, **REQUEST, regularizer=reg, **fields
    ).numpy()


def stationary(alignment, **fields):
    """The zero of the mean update, which is affine on R4."""
    b = drift([0.0, 0.0], alignment, **fields)
    a = [drift(e, alignment, **fields) - b for e in np.eye(2)]
    return np.linalg.solve(np.array(a).T, -b)


@pytest.mark.parametrize(
    ("alignment", "point"),
    [
        ("exact", (-0.2469457954, -0.1887760448)),
        ("corrected", (-0.1847117050, -0.1304721982)),
        ("lightweight", (-0.1171958853, 0.0707788002)),
    ],
)
def test_stationary_points_on_r4_meet_the_oracle(alignment, point):
    found = stationary(alignment)
    np.testing.assert_allclose(found, point, atol=5.1e-11)
    kept, forget = gradients(found)
    reg = R4_L2 * torch.tensor(found)
    normalization = {"exact": "local_mean", "corrected": "fixed"}.get(alignment)
    if normalization:
        bias = alignment_bias(
            alignment, normalization, kept, forget, **REQUEST, regularizer=reg
        )
        assert bias.abs().max() < 1e-15


def test_exact_and_corrected_lead_to_the_two_kinds_of_retraining():
    retained = [
        (a[KEEP], y[KEEP]) if i == SOURCE else (a, y) for i, (a, y) in enumerate(PEERS)
    ]
    local = ridge_minimizer(retained, [3, 3, 1, 3], R4_L2)
    fixed = ridge_minimizer(retained, [3, 3, 3, 3], R4_L2)
    np.testing.assert_allclose(stationary("exact"), local, rtol=1e-12)
    np.testing.assert_allclose(stationary("corrected"), fixed, rtol=1e-12)


def test_importance_weights_undo_an_uneven_law():
    law = torch.tensor([0.1, 0.2, 0.25, 0.45], dtype=torch.float64)
    plain = stationary("exact", law=law)
    weighted = stationary("exact", law=law, weights=1 / (4 * law))
    np.testing.assert_allclose(weighted, stationary("exact"), rtol=1e-12)
    assert np.abs(plain - weighted).max() > 1e-3


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    samples=st.integers(2, 30),
    data=st.data(),
)
def test_the_bias_is_the_tables_and_below_its_bound(seed, n, samples, data):
    rng = np.random.default_rng(seed)
    forgotten = data.draw(st.integers(1, samples - 1))
    kept = torch.tensor(rng.uniform(-1, 1, (n, 3)))
    forget, reg = (torch.tensor(rng.uniform(-1, 1, 3)) for _ in range(2))
    source = int(rng.integers(n))
    share = forgotten / samples
    mean = (1 - share) * kept[source] + share * forget  # over all samples of u
    expected = {
        ("exact", "local_mean"): 0 * reg,
        ("exact", "fixed"): -share * kept[source] / n,
        ("corrected", "local_mean"): share * kept[source] / n,
        ("corrected", "fixed"): 0 * reg,
        ("lightweight", "local_mean"): (kept[source] + share * forget + reg) / n,
        ("lightweight", "fixed"): (mean + reg) / n,
    }
    bound = max(float(x.norm()) for x in (*kept, forget))
    for alignment in ALIGNMENTS:
        for normalization in NORMALIZATIONS:
            bias = alignment_bias(
                alignment,
                normalization,
                kept,
                forget,
                source=source,
                forgotten=forgotten,
                samples=samples,
                regularizer=reg,
            )
            np.testing.assert_allclose(
                bias, expected[alignment, normalization], rtol=1e-12, atol=1e-14
            )
            limit = alignment_bias_bound(
                alignment,
                normalization,
                gradient_bound=bound,
                forgotten=forgotten,
                samples=samples,
                peers=n,
                regularizer_norm=float(reg.norm()),
            )
            assert float(bias.norm()) <= limit * (1 + 1e-12) + 1e-14


def test_bounds_follow_the_number_forgotten_except_for_pure_ascent():
    common = {"gradient_bound": 2.0, "samples": 100, "peers": 10}

    def at(alignment, m):
        return alignment_bias_bound(alignment, "local_mean", forgotten=m, **common)

    assert at("exact", 1) == 0
    assert at("corrected", 1) == pytest.approx(2.0 / 1000)
    assert at("corrected", 50) == pytest.approx(50 * at("corrected", 1))
    assert at("lightweight", 1) == pytest.approx(1.01 * 2.0 / 10)


def test_a_peer_that_forgets_everything_stands_still_under_exact():
    nothing, forget = torch.zeros(2), torch.tensor([1.0, -2.0])
    whole = {"forgotten": 3, "samples": 3, "regularizer": torch.ones(2)}
    assert visit_direction("exact", nothing, forget, **whole).tolist() == [0, 0]
    assert visit_direction("lightweight", nothing, forget, **whole).tolist() == [1, -2]
    assert visit_direction("corrected", nothing, forget, **whole).tolist() == [-1, -1]
    with pytest.raises(InvalidArgumentError, match=r"below samples = 3 .* got 3"):
        alignment_bias_bound(
            "exact", "local_mean", gradient_bound=1.0, forgotten=3, samples=3, peers=2
        )


def test_inputs_stay_as_they_were_and_dtypes_are_kept():
    kept, forget = (x.float() for x in gradients([0.1, 0.2]))
    before = kept.clone()
    ours = mean_update("corrected", kept, forget, **REQUEST)
    alignment_bias("corrected", "fixed", kept, forget, **REQUEST)
    assert torch.equal(kept, before)
    assert ours.dtype == torch.float32


def test_arguments_out_of_range_are_named():
    kept, forget = gradients([0.0, 0.0])
    with pytest.raises(InvalidArgumentError, match="alignment: must be one of exact"):
        mean_update("perfect", kept, forget, **REQUEST)
    with pytest.raises(InvalidArgumentError, match="normalization: must be one of"):
        alignment_bias("exact", "none", kept, forget, **REQUEST)
    with pytest.raises(InvalidArgumentError, match=r"forgotten: .* got 4"):
        mean_update("exact", kept, forget, **(REQUEST | {"forgotten": 4}))
    with pytest.raises(UnknownPeerError, match=r"source: .* got 4"):
        mean_update("exact", kept, forget, **(REQUEST | {"source": 4}))
    with pytest.raises(InvalidArgumentError, match=r"gradients: .* \(4, 2\) and \(3,"):
        mean_update("exact", kept, torch.zeros(3), **REQUEST)
    with pytest.raises(InvalidArgumentError, match=r"law, weights: .* got \(3,\)"):
        mean_update("exact", kept, forget, **REQUEST, law=torch.ones(3))
