import math
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import network as oracle

from dfl_unlearn.accounting.gaussian import gaussian_epsilon
from dfl_unlearn.accounting.network import (
    final_model_rdp,
    lamri_noise_std,
    network_dp_pairwise,
    random_visits_rdp,
    walk_mu,
    walk_rdp,
)
from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, rdp_gaussian, rdp_to_epsilon
from dfl_unlearn.accounting.sampled import rdp_sampled_gaussian
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    NumericalError,
    SensitivityUnprovenError,
    UnknownPeerError,
)
from dfl_unlearn.topology.mixing import metropolis_hastings

R = {  # decentralized-certified 7, item 11
    "start_shift": 0.02,
    "start_noise": 0.1,
    "visit_sensitivity": 0.05,
    "visit_noise": 0.5,
    "visits": 11,
}
shifts = st.floats(1e-3, 10)
noises = st.floats(1e-2, 100)


def epsilon(values):
    return rdp_to_epsilon(DEFAULT_ORDERS, values, 1e-5).epsilon


# --- walks ------------------------------------------------------------------------


def test_a_walk_meets_the_oracle():
    (cost,) = walk_rdp([8.0], **R)
    assert cost == pytest.approx(0.56, rel=1e-14)
    assert cost >= 0.56
    rdp = epsilon(walk_rdp(DEFAULT_ORDERS, **R))
    assert 1.5737176062 - 5e-11 <= rdp <= 1.5737176062 + 6e-11
    mu = walk_mu(**R)
    assert mu == pytest.approx(0.3741657387, abs=5e-11)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(1.4441601166, abs=6e-11)


@settings(deadline=None)
@given(shift=shifts, first=noises, s=shifts, noise=noises, visits=st.integers(1, 300))
@example(shift=10.0, first=0.01, s=0.001, noise=77.0, visits=6)
def test_a_walk_costs_its_releases_and_more_noise_never_costs_more(
    shift, first, s, noise, visits
):
    orders = np.array([1.5, 2.0, 40.0])
    given_ = {"start_shift": shift, "start_noise": first, "visit_sensitivity": s}
    cost = walk_rdp(orders, **given_, visit_noise=noise, visits=visits)
    total = shift**2 / first**2 + (visits - 1) * s**2 / noise**2
    np.testing.assert_allclose(cost, orders / 2 * total, rtol=1e-12)
    mu = walk_mu(**given_, visit_noise=noise, visits=visits)
    assert mu >= math.sqrt(total) * (1 - 1e-15)
    np.testing.assert_allclose(cost, orders / 2 * mu**2, rtol=1e-12)
    longer = walk_rdp(orders, **given_, visit_noise=noise, visits=visits + 1)
    seen = s**2 / noise**2 > 1e-12 * total  # else one visit is below the last digit
    assert ((longer > cost) if seen else (longer >= cost)).all()
    quieter = walk_rdp(orders, **given_, visit_noise=2 * noise, visits=visits)
    assert (quieter <= cost).all()
    hidden = walk_rdp(orders, **given_, visit_noise=noise, visits=visits, rate=0.1)
    assert (hidden <= cost * (1 + 1e-7)).all()


def test_epsilon_falls_with_noise_and_grows_with_visits():
    def at(visits, noise):
        return epsilon(
            walk_rdp(DEFAULT_ORDERS, **(R | {"visits": visits, "visit_noise": noise}))
        )

    by_noise = [at(11, noise) for noise in (0.1, 0.3, 1.0, 3.0)]
    assert by_noise == sorted(by_noise, reverse=True)
    by_visits = [at(visits, 0.5) for visits in (1, 2, 11, 50)]
    assert by_visits == sorted(by_visits)
    assert len({*by_noise, *by_visits}) == 8


def test_visits_without_shift_need_no_noise_and_shift_without_noise_costs_all():
    orders = [1.5, 8.0]
    free = R | {"visit_sensitivity": 0.0, "visit_noise": 0.0, "visits": 1000}
    np.testing.assert_allclose(
        walk_rdp(orders, **free), rdp_gaussian(orders, 5.0), rtol=1e-14
    )
    assert walk_mu(**free) == pytest.approx(0.2, rel=1e-15)
    bare = R | {"visit_noise": 0.0}
    assert np.isinf(walk_rdp(orders, **bare)).all()
    assert walk_mu(**bare) == math.inf
    only = bare | {"visits": 1}
    np.testing.assert_array_equal(walk_rdp(orders, **only), rdp_gaussian(orders, 5.0))
    assert np.isinf(walk_rdp(orders, **(R | {"start_noise": 0.0}))).all()
    nothing = dict.fromkeys(R, 0.0) | {"visits": 5}
    assert not walk_rdp(orders, **nothing).any()
    assert walk_mu(**nothing) == 0


def test_a_hidden_coin_is_a_sampled_gaussian_at_each_later_visit():
    orders = [2.0, 3.5]
    expected = rdp_gaussian(orders, 5.0) + 10 * rdp_sampled_gaussian(orders, 0.2, 10.0)
    np.testing.assert_allclose(walk_rdp(orders, **R, rate=0.2), expected, rtol=1e-12)


def test_a_random_number_of_visits_meets_the_oracle():
    (cost,) = random_visits_rdp(
        [4.0], restart=0.1, visit_sensitivity=1.0, visit_noise=2.0, hops=100
    )
    assert cost == pytest.approx(9.9582435531, abs=5e-11)
    # The mean number of visits gives half of that, the sampled Gaussian 0.6.
    assert 10 * rdp_gaussian([4.0], 2.0)[0] == pytest.approx(5.0)
    assert 100 * rdp_sampled_gaussian([4.0], 0.1, 2.0)[0] == pytest.approx(
        0.6, abs=5e-3
    )


@settings(deadline=None)
@given(
    restart=st.floats(0.01, 1.0),
    noise=st.floats(0.5, 50),
    hops=st.integers(0, 60),
    order=st.floats(1.1, 12),
)
def test_a_random_number_of_visits_is_the_average_over_it(restart, noise, hops, order):
    (each,) = rdp_gaussian([order], noise)
    if (order - 1) * hops * each > 600:
        return
    (ours,) = random_visits_rdp(
        [order], restart=restart, visit_sensitivity=1.0, visit_noise=noise, hops=hops
    )
    slow = oracle.random_visits(restart, each, hops, order)
    assert ours == pytest.approx(slow, rel=1e-9, abs=1e-12 / (order - 1))
    assert ours <= hops * each * (1 + 1e-12)


def test_random_visits_at_the_ends_of_their_ranges():
    given_ = {"restart": 0.3, "visit_sensitivity": 1.0, "hops": 9}
    assert np.isinf(random_visits_rdp([2.0], **given_, visit_noise=0.0)).all()
    none = given_ | {"visit_sensitivity": 0.0}
    assert not random_visits_rdp([2.0], **none, visit_noise=0.0).any()
    always = given_ | {"restart": 1.0}
    for noise in (0.01, 3.0):
        np.testing.assert_allclose(
            random_visits_rdp([2.0, 9.0], **always, visit_noise=noise),
            9 * rdp_gaussian([2.0, 9.0], noise),
            rtol=1e-12,
        )


# --- the last model only ----------------------------------------------------------

LAST = {  # decentralized-certified 7, item 11
    "contractions": [0.98] * 30,
    "visits": (0, 7, 13, 22),
    "start_shift": 0.05,
    "noise": 0.4,
    "rates": 0.1,
}


@pytest.mark.parametrize(
    ("sensitivity", "value"), [(0.0, 0.6979321081), (0.02, 1.0126877145)]
)
def test_the_last_model_meets_the_oracle(sensitivity, value):
    (cost,) = final_model_rdp([6.0], **LAST, sensitivity=sensitivity)
    assert cost == pytest.approx(value, abs=6e-11)


@settings(deadline=None)
@given(
    c=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=30),
    start=shifts,
    s=st.floats(0, 3),
    noise=noises,
    data=st.data(),
)
def test_the_last_model_is_exact_for_a_scalar_linear_chain(c, start, s, noise, data):
    visits = sorted(data.draw(st.sets(st.integers(0, len(c) - 1), min_size=1)))
    slow = oracle.scalar_chain(c, visits, start, s, noise, [0.1] * len(visits), 3.0)
    (ours,) = final_model_rdp(
        [3.0],
        contractions=c,
        visits=visits,
        start_shift=start,
        sensitivity=s,
        noise=noise,
        rates=0.1,
    )
    assert slow * (1 - 1e-12) <= ours <= slow * (1 + 1e-9)
    # Someone who sees every model and the start as well sees more.
    if s == 0:
        assert ours <= rdp_gaussian([3.0], 0.1 * noise / start)[0] * (1 + 1e-9)


def test_unequal_rates_are_fine_without_a_shift_at_the_visits():
    rates = [1.0, 0.01, 0.3]
    given_ = {"contractions": [0.9, 1.5, 0.7], "visits": (0, 1, 2), "rates": rates}
    (ours,) = final_model_rdp(
        [2.0], **given_, start_shift=1.0, sensitivity=0.0, noise=2.0
    )
    slow = oracle.scalar_chain([0.9, 1.5, 0.7], (0, 1, 2), 1.0, 0.0, 2.0, rates, 2.0)
    assert ours == pytest.approx(slow, rel=1e-12)


def test_an_allocation_that_takes_more_than_is_there_is_refused():
    given_ = {"start_shift": 0.0, "sensitivity": 1.0, "noise": 1.0, "visits": (0, 1)}
    with pytest.raises(SensitivityUnprovenError, match=r"at visit 0 \(hop 0\).*0\.01"):
        final_model_rdp([2.0], **given_, contractions=[1, 1], rates=(1.0, 0.01))
    with pytest.raises(SensitivityUnprovenError, match="constants are up to 2"):
        final_model_rdp([2.0], **given_, contractions=[1, 2], rates=1.0)
    # The other order of rates takes less at first than is there.
    final_model_rdp([2.0], **given_, contractions=[1, 1], rates=(0.01, 1.0))


def test_maps_after_the_last_visit_change_nothing_and_cancel():
    short = LAST | {"contractions": [0.98] * 23}
    np.testing.assert_array_equal(
        final_model_rdp([6.0], **LAST, sensitivity=0.02),
        final_model_rdp([6.0], **short, sensitivity=0.02),
    )
    # Even where their product underflows.
    long = LAST | {"contractions": [0.98] * 23 + [1e-9] * 100}
    np.testing.assert_array_equal(
        final_model_rdp([6.0], **long, sensitivity=0.02),
        final_model_rdp([6.0], **short, sensitivity=0.02),
    )


def test_the_last_model_at_the_ends_of_its_ranges():
    def at(**fields):
        return final_model_rdp([2.0], **(LAST | {"sensitivity": 0.02} | fields))[0]

    assert at(noise=0.0) == math.inf
    assert at(noise=0.0, start_shift=0.0, sensitivity=0.0) == 0
    assert at(visits=()) == math.inf
    assert at(visits=(), start_shift=0.0) == 0
    assert at(contractions=[0.0] * 30, sensitivity=0.0) == 0
    assert 0 < at(contractions=[1e-30] * 30, sensitivity=0.0) < 1e-300


# --- the source's calibration -----------------------------------------------------


@pytest.mark.parametrize(("bound", "value"), [(0.5, 2.5743683960), (0.2, 1.0297473584)])
def test_the_sources_noise_meets_the_oracle(bound, value):
    public = {"restart": 0.1, "hops": 100, "peers": 10}
    plain = lamri_noise_std(bound, 1.0, 1e-5, **public, kappa=1.0)
    assert plain == pytest.approx(value, abs=5.01e-11)
    scaled = lamri_noise_std(bound, 1.0, 1e-5, **public)
    assert scaled == pytest.approx(4 * math.sqrt(2) * plain, rel=1e-14)
    if bound == 0.5:
        assert scaled == pytest.approx(14.5628268, abs=5e-8)


# --- gossip -----------------------------------------------------------------------


def test_the_pairwise_sum_meets_the_oracle():
    weights = metropolis_hastings(nx.path_graph(4))
    (row,) = network_dp_pairwise(
        [1.0], weights, source=0, rounds=3, noise_multiplier=1.0
    )
    np.testing.assert_allclose(
        row, [0.36231884, 1.27888199, 0.36231884, 0.02173913], atol=5e-9
    )


@settings(deadline=None)
@given(n=st.integers(2, 6), rounds=st.integers(0, 5), data=st.data())
def test_the_pairwise_sum_is_its_definition(n, rounds, data):
    source = data.draw(st.integers(0, n - 1))
    ours = network_dp_pairwise(
        [2.0, 5.0],
        metropolis_hastings(nx.path_graph(n)),
        source=source,
        rounds=rounds,
        noise_multiplier=3.0,
    )
    exact = oracle.path_weights(n)
    slow = [float(oracle.pairwise_sum(exact, source, v, rounds)) for v in range(n)]
    np.testing.assert_allclose(ours, np.outer([1 / 9, 5 / 18], slow), rtol=1e-12)


def test_the_pairwise_sum_is_no_bound_on_all_messages_together():
    exact = oracle.path_weights(4)
    published = oracle.pairwise_sum(exact, 0, 3, 3)
    assert float(published) == pytest.approx(2 * 0.02173913, abs=1e-8)
    # In exact fractions: what peer 3 is sent in three rounds, without and with what it
    # started from itself. 1 is the whole noised value of peer 0, three hops away.
    assert oracle.joint_view(exact, 0, 3, 3, own=False) == Fraction(2, 3)
    assert oracle.joint_view(exact, 0, 3, 3, own=True) == 1
    views = [oracle.joint_view(exact, 0, v, 6, own=True) for v in range(1, 4)]
    assert max(views) <= 1  # the local bound


# --- what is refused --------------------------------------------------------------


def test_arguments_out_of_range_are_named():
    with pytest.raises(NumericalError, match="start_shift: must be finite, got inf"):
        walk_rdp([2.0], **(R | {"start_shift": math.inf}))
    with pytest.raises(InvalidPrivacyParameterError, match=r"visit_noise: .* got -1"):
        walk_mu(**(R | {"visit_noise": -1.0}))
    with pytest.raises(InvalidArgumentError, match=r"visits: .* got 0"):
        walk_rdp([2.0], **(R | {"visits": 0}))
    with pytest.raises(InvalidPrivacyParameterError, match=r"rate: .* got 2\.0"):
        walk_rdp([2.0], **R, rate=2.0)
    with pytest.raises(InvalidArgumentError, match=r"restart: .* got 0\.0"):
        random_visits_rdp(
            [2.0], restart=0.0, visit_sensitivity=1.0, visit_noise=1.0, hops=3
        )
    for fields, message in (
        ({"visits": (7, 7)}, "visits: must be strictly increasing"),
        ({"visits": (30,)}, r"visits\[0\]: .* got 30"),
        ({"rates": (0.1, 0.1)}, "rates: must be .* 4 visits"),
        ({"rates": 0.0}, "rates: must be"),
        ({"contractions": [math.nan] * 30}, "contractions: must be"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            final_model_rdp([2.0], **(LAST | fields), sensitivity=0.0)
    with pytest.raises(InvalidArgumentError, match=r"peers: .* got 1"):
        lamri_noise_std(1.0, 1.0, 1e-5, restart=0.1, hops=5, peers=1)
    with pytest.raises(InvalidPrivacyParameterError, match=r"delta: .* got 1\.0"):
        lamri_noise_std(1.0, 1.0, 1.0, restart=0.1, hops=5, peers=5)
    weights = metropolis_hastings(nx.path_graph(4))
    given_ = {"rounds": 2, "noise_multiplier": 1.0}
    with pytest.raises(UnknownPeerError, match=r"source: .* got 4"):
        network_dp_pairwise([2.0], weights, source=4, **given_)
    with pytest.raises(InvalidArgumentError, match=r"orders: .*0\.5"):
        network_dp_pairwise([0.5], weights, source=0, **given_)
    with pytest.raises(InvalidArgumentError, match="weights: must be a square"):
        network_dp_pairwise([2.0], np.ones((2, 3)), source=0, **given_)
