import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import kstest

from dfl_unlearn.accounting import release as release_module
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.release import GaussianRelease, clip_rows, project_ball_
from dfl_unlearn.accounting.secure_noise import from_grid, grid_noise, to_grid
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
    PrivacyBudgetExceededError,
)
from dfl_unlearn.rng import RngTree

RELEASE = GaussianRelease(sensitivity=0.05, noise_std=0.4)


def released(value, *, ledger=None, release=RELEASE, rng=None, **changes):
    given = {
        "ledger": PrivacyLedger() if ledger is None else ledger,
        "request_id": "r7",
        "owner": "peer:2",
        "observers": ("peer:0", "peer:3"),
        "rng": RngTree(0) if rng is None else rng,
        **changes,
    }
    return release(value, **given)


# --- release -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_is_the_keyed_draw_added_in_float64(dtype):
    value = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)
    kept = value.clone()
    noised = released(value, round=140)
    drawn = RngTree(0).normal(
        (3, 4), "unlearn-noise", who=2, request="r7", round=140, draw=0
    )
    expected = (value.double() + 0.4 * drawn).to(dtype)
    assert torch.equal(noised, expected)
    assert torch.equal(value, kept)


def test_a_release_is_charged_and_reserved_until_it_is_committed():
    ledger = PrivacyLedger()
    released(
        torch.zeros(3), ledger=ledger, group_size=4, scope="release", status="certified"
    )
    (entry,) = ledger.entries
    assert (entry.state, entry.group_size, entry.scope) == ("reserved", 4, "release")
    assert entry.mechanism.noise_std == 0.4
    assert ledger.epsilon("peer:2", "peer:0", 1e-5) == pytest.approx(0.4344163801)
    ledger.commit("r7")
    assert ledger.entries[0].state == "committed"


def test_a_release_that_a_hidden_coin_decides_is_charged_as_sampled():
    ledger = PrivacyLedger()
    hidden = GaussianRelease(sensitivity=0.05, noise_std=0.4, rate=0.1)
    seen = released(torch.zeros(3), ledger=ledger, release=hidden)
    assert torch.equal(seen, released(torch.zeros(3)))  # the noise is the same
    (entry,) = ledger.entries
    assert isinstance(entry.mechanism, SampledGaussianMechanism)
    assert (entry.mechanism.rate, entry.mechanism.adjacency) == (0.1, "unlearn")
    exact = 0.4 / 0.05
    assert exact * (1 - 1e-15) <= entry.mechanism.noise_multiplier <= exact
    assert ledger.epsilon("peer:2", "peer:0", 1e-5) < 0.1  # in full it is 0.43
    still = GaussianRelease(sensitivity=0.0, noise_std=0.4, rate=0.1)
    assert still.mechanism(3).mu == 0
    with pytest.raises(InvalidPrivacyParameterError, match="rate: must be 1 in secure"):
        GaussianRelease(sensitivity=0.05, noise_std=0.4, mode="secure", rate=0.1)
    with pytest.raises(InvalidPrivacyParameterError, match=r"rate: .* got 0"):
        GaussianRelease(sensitivity=0.05, noise_std=0.4, rate=0)


def test_a_repeated_release_gets_fresh_noise_and_a_second_charge():
    ledger = PrivacyLedger()
    first, second = (released(torch.zeros(5), ledger=ledger) for _ in range(2))
    assert not torch.isclose(first, second).any()
    assert [entry.draw for entry in ledger.entries] == [0, 1]
    assert torch.equal(first, released(torch.zeros(5)))  # same key, same noise


def test_several_owners_share_one_draw_named_after_the_first():
    ledger = PrivacyLedger()
    together = released(torch.zeros(5), ledger=ledger, owner=("peer:2", "peer:5"))
    assert torch.equal(together, released(torch.zeros(5)))
    assert [entry.owner for entry in ledger.entries] == ["peer:2", "peer:5"]


def test_the_entry_is_on_disk_before_noise_is_drawn(tmp_path):
    path = tmp_path / "ledger.jsonl"

    class Watching(RngTree):
        def normal(self, *args, **key):
            assert b'"state":"reserved"' in path.read_bytes()
            return super().normal(*args, **key)

    released(torch.zeros(2), ledger=PrivacyLedger(path=path), rng=Watching(0))


def test_no_noise_is_drawn_when_the_budget_refuses():
    class Forbidden(RngTree):
        def normal(self, *args, **key):
            raise AssertionError("noise was drawn")

    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=0.1))
    with pytest.raises(PrivacyBudgetExceededError):
        released(torch.zeros(2), ledger=ledger, rng=Forbidden(0))
    assert ledger.entries == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_before_they_are_charged(bad):
    ledger = PrivacyLedger()
    with pytest.raises(NumericalError, match=r"got 1 entries .* request r7"):
        released(torch.tensor([0.0, bad]), ledger=ledger)
    assert ledger.entries == ()
    for name in ("sensitivity", "noise_std"):
        fields = {"sensitivity": 0.05, "noise_std": 0.4, name: bad}
        with pytest.raises(NumericalError, match=f"{name}: must be finite, got {bad}"):
            GaussianRelease(**fields)


def test_impossible_releases_are_refused():
    with pytest.raises(InvalidPrivacyParameterError, match=r"noise_std: .* got -0\.4"):
        GaussianRelease(sensitivity=0.05, noise_std=-0.4)
    with pytest.raises(
        InvalidTypeError, match=r"floating-point tensor, got torch\.int"
    ):
        released(torch.zeros(2, dtype=torch.int64))
    loud = GaussianRelease(sensitivity=1.0, noise_std=1e6)
    with pytest.raises(NumericalError, match=r"must fit torch\.float16"):
        released(torch.zeros(50, dtype=torch.float16), release=loud)


def noise_is_standard_normal(scale):
    """Kolmogorov-Smirnov at 1e-6 on 200,000 numbers: it sees 3 % in the scale."""
    noise = released(torch.zeros(200_000, dtype=torch.float64)).numpy() / 0.4
    return kstest(noise * scale, "norm").pvalue > 1e-6


@pytest.mark.statistical
def test_noise_moments():
    assert noise_is_standard_normal(1.0)
    assert not noise_is_standard_normal(1.05)
    assert not noise_is_standard_normal(0.95)


@pytest.mark.statistical
def test_noise_std_is_within_one_percent():
    # The relative error of a sample std is 1 / sqrt(2 n) = 0.16 %: six of them.
    noise = released(torch.zeros(200_000))
    assert float(noise.std()) == pytest.approx(0.4, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=6 * 0.4 / math.sqrt(200_000))


# --- secure mode ---------------------------------------------------------------------

SECURE = GaussianRelease(sensitivity=0.05, noise_std=0.4, mode="secure")
STEP = 2.0**-12  # of its grid: the largest power of two under 0.4 / 1024


@pytest.fixture
def keyed_bytes(monkeypatch):
    """Give secure noise bytes that repeat."""
    keyed = partial(grid_noise, random_bytes=RngTree(0).numpy("audit").bytes)
    monkeypatch.setattr(release_module, "grid_noise", keyed)


@pytest.mark.parametrize("shift", [0.0, STEP, 1 / 3, 1.0, 1.0 + STEP])
def test_secure_outputs_lie_on_the_grid_in_every_world(shift):
    value = torch.full((3, 100), shift, dtype=torch.float64)
    noised = released(value, release=SECURE)
    assert noised.shape == (3, 100)
    assert torch.equal(noised / STEP, torch.round(noised / STEP))
    assert not torch.equal(noised, released(value, release=SECURE))


def test_secure_noise_is_added_to_the_rounded_value(keyed_bytes):
    value = torch.linspace(-1, 1, 7, dtype=torch.float64)
    noised = released(value, release=SECURE)
    noise = grid_noise((7,), 0.4, STEP, random_bytes=RngTree(0).numpy("audit").bytes)
    expected = from_grid(to_grid(value.numpy(), STEP) + noise, STEP)
    assert np.array_equal(noised.numpy(), expected)


def test_a_cast_comes_after_the_secure_release(keyed_bytes):
    noise = grid_noise((5,), 0.4, STEP, random_bytes=RngTree(0).numpy("audit").bytes)
    low = released(torch.full((5,), 2.0**14), release=SECURE)
    assert low.dtype == torch.float32
    exact = torch.from_numpy(from_grid(noise + 2**26, STEP))
    assert torch.equal(low, exact.float())
    assert not torch.equal(low.double(), exact)


def test_a_secure_release_is_charged_with_its_rounding():
    ledger = PrivacyLedger()
    released(torch.zeros(100), ledger=ledger, release=SECURE)
    (entry,) = ledger.entries
    assert entry.noise_mode == "secure"
    assert isinstance(entry.mechanism, DiscreteGaussianMechanism)
    assert (entry.mechanism.noise_std, entry.mechanism.grid) == (0.4, STEP)
    assert entry.mechanism.sensitivity == pytest.approx(0.05 + 10 * STEP, rel=1e-14)
    assert entry.mechanism.sensitivity >= 0.05 + 10 * STEP
    simulated = PrivacyLedger()
    released(torch.zeros(100), ledger=simulated)
    spent = [one.epsilon("peer:2", "peer:0", 1e-5) for one in (ledger, simulated)]
    assert spent[0] > spent[1]


def test_secure_noise_is_drawn_after_its_entry_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"

    def watched(*args):
        assert b'"state":"reserved"' in path.read_bytes()
        return grid_noise(*args)

    monkeypatch.setattr(release_module, "grid_noise", watched)
    released(torch.zeros(2), ledger=PrivacyLedger(path=path), release=SECURE)
    monkeypatch.setattr(release_module, "grid_noise", None)  # a call would fail
    poor = PrivacyLedger(PrivacyBudget(epsilon_max=0.1))
    with pytest.raises(PrivacyBudgetExceededError):
        released(torch.zeros(2), ledger=poor, release=SECURE)
    assert poor.entries == ()


@given(
    sensitivity=st.floats(1e-6, 1e3),
    epsilon=st.floats(0.1, 8),
    p=st.integers(1, 10**6),
)
def test_noise_on_the_grid_covers_its_own_rounding(sensitivity, epsilon, p):
    multiplier = gaussian_noise_std(epsilon, 1e-5, 1.0, method="rdp") * (1 + 1e-9)
    release = GaussianRelease.on_grid(
        sensitivity=sensitivity, noise_multiplier=multiplier, coordinates=p
    )
    mechanism = release.mechanism(p)
    assert mechanism.sensitivity >= sensitivity + release.grid * math.sqrt(p)
    assert mechanism.noise_multiplier >= multiplier
    # The grid is that of the noise for the sensitivity alone (ACC 4.3, step 1).
    alone = sensitivity * multiplier
    assert release.grid <= alone / 1024 < 2 * release.grid
    ledger = PrivacyLedger()
    ledger.charge("r7", "peer:2", ("peer:0",), mechanism)
    assert ledger.epsilon("peer:2", "peer:0", 1e-5) <= epsilon


def test_a_value_that_never_changes_needs_no_secure_noise():
    release = GaussianRelease.on_grid(
        sensitivity=0.0, noise_multiplier=4.0, coordinates=3
    )
    assert (release.noise_std, release.grid) == (0.0, None)
    ledger = PrivacyLedger()
    with pytest.raises(InvalidPrivacyParameterError, match=r"above 0 in secure mode"):
        released(torch.zeros(3), ledger=ledger, release=release)
    assert ledger.entries == ()


def test_secure_values_too_large_for_the_grid_are_refused_before_they_are_charged():
    ledger = PrivacyLedger()
    with pytest.raises(NumericalError, match=r"below 2\*\*53 steps"):
        released(torch.tensor([2.0**41]), ledger=ledger, release=SECURE)
    assert ledger.entries == ()


@pytest.mark.parametrize(
    ("mode", "grid"),
    [
        ("simulated", STEP),
        ("secure", 2 * STEP),  # above a 1024th of the noise
        ("secure", STEP / 3),
        ("secure", 2.0**-50),
        ("secure", 0.0),
    ],
)
def test_grids_that_do_not_go_with_the_noise_are_refused(mode, grid):
    with pytest.raises(InvalidPrivacyParameterError, match=f"grid: .* got {grid!r}"):
        GaussianRelease(sensitivity=0.05, noise_std=0.4, mode=mode, grid=grid)
    finer = GaussianRelease(
        sensitivity=0.05, noise_std=0.4, mode="secure", grid=STEP / 8
    )
    assert finer.mechanism(100).sensitivity < SECURE.mechanism(100).sensitivity
    with pytest.raises(InvalidArgumentError, match=r"mode: .* got 'device'"):
        GaussianRelease(sensitivity=0.05, noise_std=0.4, mode="device")


@pytest.mark.statistical
def test_secure_noise_has_the_scale_it_claims_and_no_other(keyed_bytes):
    def fits(scale):
        value = torch.zeros(200_000, dtype=torch.float64)
        noise = released(value, release=SECURE).numpy() / 0.4
        return kstest(noise * scale, "norm").pvalue > 1e-6

    assert fits(1.0)
    assert not fits(1.05)
    assert not fits(0.95)


# --- bounds --------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), clip=st.floats(0.01, 100))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipped_rows_keep_direction_and_never_pass_the_bound(dtype, seed, clip):
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-3, 3, (20, 1))
    rows = torch.from_numpy(rng.normal(size=(20, 7)) * scale).to(dtype)
    clipped, sensitivity = clip_rows(rows, clip)
    assert sensitivity == clip
    assert clipped.dtype == dtype
    norms = clipped.double().norm(dim=1)
    assert (norms <= clip).all()
    before = rows.double().norm(dim=1)
    assert torch.equal(clipped[before <= clip], rows[before <= clip])
    torch.testing.assert_close(norms, before.clamp(max=clip), rtol=1e-6, atol=0)
    directions = clipped.double() / norms[:, None], rows.double() / before[:, None]
    torch.testing.assert_close(*directions, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_sum_of_clipped_rows_moves_by_at_most_its_sensitivity(seed):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(6, 3)) * 5)
    clipped, sensitivity = clip_rows(rows, 1.5)
    fewer = clipped[1:].sum(0)
    assert (clipped.sum(0) - fewer).norm() <= sensitivity * (1 + 1e-12)
    opposite, _ = clip_rows(torch.cat([-rows[:1], rows[1:]]), 1.5)
    exchanged = (clipped.sum(0) - opposite.sum(0)).norm()
    assert exchanged <= 2 * sensitivity * (1 + 1e-12)


@given(seed=st.integers(0, 2**32 - 1), radius=st.floats(1e-3, 1e3))
@example(seed=82592, radius=47.31643023624063)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_vectors_differ_by_at_most_the_sensitivity(dtype, seed, radius):
    rng = np.random.default_rng(seed)
    centre = torch.from_numpy(rng.normal(size=5) * 10 ** rng.uniform(-2, 4)).to(dtype)
    push = torch.from_numpy(rng.normal(size=5))
    push *= 10 * radius / push.norm()
    one, two = (centre + push).to(dtype), (centre - push).to(dtype)
    sensitivity = project_ball_(one, radius, centre)
    assert project_ball_(two, radius, centre) == sensitivity
    assert (one.double() - two.double()).norm() <= sensitivity
    reach = radius + float(centre.double().norm())
    assert sensitivity <= 2 * radius + 4 * torch.finfo(dtype).eps * reach


def test_vectors_inside_the_ball_stay_and_the_rest_is_moved_in_place():
    inside, outside = torch.tensor([0.3, 0.4]), torch.tensor([3.0, 4.0])
    for vector in (inside, outside):
        assert project_ball_(vector, 1.0) == pytest.approx(2.0, rel=1e-6)
    assert torch.equal(inside, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(outside, torch.tensor([0.6, 0.8]))


def test_bounds_refuse_what_has_no_direction():
    with pytest.raises(NumericalError, match="a row 1"):
        clip_rows(torch.tensor([[0.0], [math.nan]]), 1.0)
    with pytest.raises(NumericalError, match="distance"):
        project_ball_(torch.tensor([math.inf]), 1.0)
    with pytest.raises(InvalidArgumentError, match=r"clip_norm: .* > 0, got 0\.0"):
        clip_rows(torch.zeros(1, 1), 0.0)
    with pytest.raises(InvalidArgumentError, match=r"radius: .* got -1"):
        project_ball_(torch.zeros(1), -1)
    with pytest.raises(InvalidTypeError, match=r"values: .* got list"):
        clip_rows([[1.0]], 1.0)
