import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.ledger import PrivacyBudget, PrivacyLedger, colluding
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    SampledGaussianMechanism,
)
from dfl_unlearn.accounting.rdp import RdpCurve, curve_of
from dfl_unlearn.errors import (
    AdjacencyMismatchError,
    CorruptStateError,
    InputFileError,
    InvalidArgumentError,
    InvalidPrivacyParameterError,
    LedgerCorruptError,
    LedgerFormatError,
    PrivacyBudgetExceededError,
    StoreWriteError,
    UnsafeFormatError,
)

RELEASE = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
BOTH = ("peer:0", "peer:3")
TRAINING = SampledGaussianMechanism(rate=0.1, noise_multiplier=2.0, steps=50)
GRIDDED = DiscreteGaussianMechanism(noise_std=0.4, grid=2**-12, sensitivity=0.05)
STORY = """
charge r1 peer:2; commit r1; charge r1 peer:2; charge r2 peer:5; abort r2;
charge r3 peer:2; charge r3 peer:2; commit r3; charge r4 peer:7
"""


def calibrated(epsilon, sensitivity=1.0):
    std = gaussian_noise_std(epsilon, 1e-5, sensitivity)
    return GaussianMechanism(noise_std=std, sensitivity=sensitivity)


def play(ledger, story=STORY):
    for words in map(str.split, story.replace("\n", " ").split(";")):
        if words[0] == "charge":
            ledger.charge(*words[1:], BOTH, RELEASE, round=4, assumptions=("L = 1",))
        else:
            getattr(ledger, words[0])(words[1])
    return ledger


# --- accounts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("releases", "exact", "by_rdp"),
    [
        (1, 0.4344163801, 0.4775539008),
        (3, 0.7912753789, 0.8657300315),
        (5, 1.0470536091, 1.1431505950),
    ],
)
def test_gaussian_accounts_report_the_exact_epsilon(releases, exact, by_rdp):
    ledger = PrivacyLedger()
    for _ in range(releases):
        ledger.charge("r7", "peer:2", BOTH, RELEASE)
    assert ledger.epsilon("peer:2", "peer:0", 1e-5) == pytest.approx(exact, abs=2e-10)
    spent = ledger.spent("peer:2", "peer:0").to_epsilon(1e-5).epsilon
    assert spent == pytest.approx(by_rdp, abs=2e-10)


@pytest.mark.parametrize(
    ("times", "exact", "by_rdp"),
    [
        (1, 1.0, 1.0925943253),
        (2, 1.4651699604, 1.5959344621),
        (3, 1.8349654335, 1.9951137490),
        (4, 2.1546766577, 2.3400048591),
    ],
)
def test_calibrated_requests_compose_to_the_oracles(times, exact, by_rdp):
    ledger = PrivacyLedger()
    for k in range(times):
        ledger.charge(f"r{k}", "peer:2", BOTH, calibrated(1.0))
    assert ledger.epsilon("peer:2", "peer:3", 1e-5) == pytest.approx(exact, abs=2e-10)
    spent = ledger.spent("peer:2", "peer:3").to_epsilon(1e-5).epsilon
    assert spent == pytest.approx(by_rdp, abs=2e-10)


def test_two_different_claims_compose_to_the_oracle():
    ledger = PrivacyLedger()
    ledger.charge("a", "peer:2", BOTH, calibrated(1.0))
    ledger.charge("b", "peer:2", BOTH, calibrated(0.5, sensitivity=0.1))
    epsilon = ledger.epsilon("peer:2", "peer:0", 1e-5)
    assert epsilon == pytest.approx(1.1460631918, abs=2e-10)


def test_accounts_of_owners_and_observers_are_apart():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", ("peer:0",), RELEASE)
    ledger.charge("r1", "peer:2", ("peer:3",), RELEASE)
    assert ledger.epsilon("peer:5", "peer:0", 1e-5) == 0
    assert ledger.epsilon("peer:2", "public", 1e-5) == 0
    one = ledger.epsilon("peer:2", "peer:0", 1e-5)
    assert one == ledger.epsilon("peer:2", "peer:3", 1e-5)
    assert ledger.epsilon("peer:2", "{peer:0,peer:3}", 1e-5) > one


def test_colluding_observers_have_the_union_and_shared_noise_counts_once():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    together = ledger.spent("peer:2", "{peer:0,peer:3}")
    assert together == ledger.spent("peer:2", "peer:0") == curve_of(RELEASE)
    ledger.charge("r2", "peer:2", ("{peer:0,peer:4}",), RELEASE)
    assert ledger.spent("peer:2", "peer:0") == curve_of(RELEASE)
    assert ledger.spent("peer:2", "{peer:0,peer:4}") == 2 * curve_of(RELEASE)
    ledger.charge("r3", "peer:2", ("public",), RELEASE)
    assert ledger.spent("peer:2", "peer:9") == curve_of(RELEASE)
    assert ledger.spent("peer:2", "public") == curve_of(RELEASE)


def test_accounts_of_other_mechanisms_are_their_renyi_sum():
    ledger = PrivacyLedger()
    ledger.charge("a", "peer:2", BOTH, GRIDDED)
    epsilon = ledger.epsilon("peer:2", "peer:0", 1e-5)
    assert epsilon == pytest.approx(0.4775539008, abs=2e-10)  # not the exact 0.434
    ledger.charge("b", "peer:2", BOTH, RELEASE)
    assert ledger.spent("peer:2", "peer:0") == curve_of(GRIDDED) + curve_of(RELEASE)
    full = GaussianMechanism(noise_std=5.0, sensitivity=1.0, adjacency="add_remove")
    for k in range(3):
        ledger.charge(f"r{k}", "*", ("public",), full)
    ledger.charge("train", "*", ("public",), TRAINING)
    mixed = ledger.epsilon("*", "public", 1e-5)
    assert 2.3770778758 - 1e-9 <= mixed <= 2.3770778758 * (1 + 1e-7)
    rows = [(row.owner, row.observer, row.releases) for row in ledger.table()]
    assert rows[0] == ("*", "public", 4)


def test_steps_that_every_record_joins_compose_exactly():
    ledger = PrivacyLedger()
    full = SampledGaussianMechanism(rate=1.0, noise_multiplier=8.0, steps=3)
    ledger.charge("a", "peer:2", BOTH, replace(full, adjacency="unlearn"))
    exact = ledger.epsilon("peer:2", "peer:0", 1e-5)
    assert exact == pytest.approx(0.7912753789, abs=2e-10)
    ledger.charge("b", "peer:2", BOTH, RELEASE)
    ledger.charge("c", "peer:2", BOTH, RELEASE)
    five = ledger.epsilon("peer:2", "peer:0", 1e-5)
    assert five == pytest.approx(1.0470536091, abs=2e-10)
    idle = SampledGaussianMechanism(rate=0.0, noise_multiplier=0.0)
    bare = SampledGaussianMechanism(rate=1.0, noise_multiplier=0.0)
    assert (idle.mu, bare.mu) == (0.0, math.inf)
    assert TRAINING.mu is None


def test_a_claim_on_any_one_record_is_about_adding_or_removing_it():
    with pytest.raises(AdjacencyMismatchError, match=r"got '\*' with 'unlearn'"):
        PrivacyLedger().charge("r1", "*", BOTH, RELEASE)


def test_training_noise_has_streams_of_its_own():
    ledger = PrivacyLedger()
    first = ledger.charge("t", "*", BOTH, TRAINING, noise_purpose="train-noise")
    again = ledger.charge("t", "*", BOTH, TRAINING, noise_purpose="train-noise")
    other = ledger.charge("t", "*", BOTH, TRAINING)
    assert first.stream == "train-noise/*/t/0/0"
    assert [again.draw, other.draw] == [1, 0]
    names = {entry.release_id for entry in ledger.entries}
    assert names == {"t/train/all/0/0", "t/train/all/0/1", "t/all/0/0"}


def test_the_same_release_is_charged_once_per_observer():
    ledger = PrivacyLedger()
    first = ledger.charge("r1", "peer:2", ("peer:0",), RELEASE, release_id="r1/model")
    again = ledger.charge("r1", "peer:2", ("peer:0",), RELEASE, release_id="r1/model")
    assert again == first
    more = ledger.charge("r1", "peer:2", BOTH, RELEASE, release_id="r1/model")
    assert more.observers == ("peer:3",)
    assert more.stream == first.stream
    assert len(ledger.entries) == 2
    for observer in ("peer:0", "peer:3", "{peer:0,peer:3}"):
        assert ledger.spent("peer:2", observer) == curve_of(RELEASE)


def test_a_known_release_cannot_get_other_noise():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", ("peer:0",), RELEASE, release_id="r1/model")
    louder = GaussianMechanism(noise_std=0.5, sensitivity=0.05)
    for observers in (("peer:0",), ("peer:3",)):
        with pytest.raises(InvalidArgumentError, match=r"r1/model was charged.*0\.5"):
            ledger.charge("r1", "peer:2", observers, louder, release_id="r1/model")
    assert len(ledger.entries) == 1


def test_several_owners_share_one_release_and_its_noise():
    ledger = PrivacyLedger()
    entries = ledger.charge_owners("r1", ("peer:2", "peer:5"), BOTH, RELEASE)
    assert [entry.owner for entry in entries] == ["peer:2", "peer:5"]
    assert {entry.stream for entry in entries} == {"unlearn-noise/peer:2/r1/0/0"}
    assert ledger.spent("peer:5", "peer:0") == curve_of(RELEASE)
    assert ledger.charge("r1", "peer:2", BOTH, RELEASE).draw == 1


def test_a_shared_release_is_charged_to_all_owners_or_to_none():
    ledger = PrivacyLedger(PrivacyBudget(per_owner={"peer:5": 0.1}))
    with pytest.raises(PrivacyBudgetExceededError, match="owner peer:5"):
        ledger.charge_owners("r1", ("peer:2", "peer:5"), BOTH, RELEASE)
    assert ledger.entries == ()


def test_noise_stream_uniqueness():
    ledger = PrivacyLedger()
    draws = [ledger.charge("r1", "peer:2", BOTH, RELEASE).draw for _ in range(3)]
    assert draws == [0, 1, 2]
    assert ledger.charge("r1", "peer:2", BOTH, RELEASE, round=5).draw == 0
    assert ledger.charge("r2", "peer:2", BOTH, RELEASE).draw == 0
    assert ledger.charge("r1", "peer:3", BOTH, RELEASE).draw == 0
    streams = [entry.stream for entry in ledger.entries]
    assert len(set(streams)) == len(streams) == 6


def test_adjacency_mismatch_between_charges_of_one_owner():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    other = GaussianMechanism(noise_std=1.0, sensitivity=0.1, adjacency="replace_one")
    with pytest.raises(AdjacencyMismatchError, match="'replace_one' release after"):
        ledger.charge("r2", "peer:2", BOTH, other)
    assert len(ledger.entries) == 1


def test_reserved_and_aborted_entries_stay_spent_unless_noise_never_existed():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    ledger.charge("r2", "peer:2", BOTH, RELEASE)
    (aborted,) = ledger.abort("r2", note="no neighbour was online")
    assert aborted.state == "aborted"
    assert ledger.spent("peer:2", "peer:0") == 2 * curve_of(RELEASE)
    ledger.charge("r3", "peer:2", BOTH, RELEASE)
    ledger.abort("r3", noise_drawn=False)
    assert ledger.spent("peer:2", "peer:0") == 2 * curve_of(RELEASE)
    assert ledger.charge("r3", "peer:2", BOTH, RELEASE).draw == 1
    assert ledger.spent("peer:2", "peer:0") == 3 * curve_of(RELEASE)


def test_a_release_whose_noise_never_existed_is_charged_when_it_is_made_after_all():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE, release_id="r1/model")
    ledger.abort("r1", noise_drawn=False)
    ledger.charge("r1", "peer:2", BOTH, RELEASE, release_id="r1/model")
    assert ledger.spent("peer:2", "peer:0") == curve_of(RELEASE)


def test_only_open_reservations_can_be_settled():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    (entry,) = ledger.commit("r1")
    assert entry.state == "committed"
    assert entry.seq == 0
    for settle in (ledger.commit, ledger.abort):
        with pytest.raises(InvalidArgumentError, match="got 'r1'"):
            settle("r1")


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_larger_set_of_observers_never_has_spent_less(seed):
    rng = np.random.default_rng(seed)
    ledger = PrivacyLedger()
    for k in range(5):
        seen = rng.choice(6, size=rng.integers(1, 4), replace=False)
        shift = GaussianMechanism(noise_std=1.0, sensitivity=float(rng.random()))
        names = tuple(f"peer:{i}" for i in seen)
        ledger.charge(f"r{k}", "peer:9", names, shift)
    peers = rng.permutation(6)
    totals = [
        ledger.epsilon("peer:9", colluding(int(i) for i in peers[: k + 1]), 1e-5)
        for k in range(6)
    ]
    assert totals == sorted(totals)


# --- budget --------------------------------------------------------------------------


def test_a_release_calibrated_to_the_budget_fits_it():
    rng = np.random.default_rng(1)
    for _ in range(300):
        epsilon = float(10 ** rng.uniform(-3, 1))
        delta = float(10 ** rng.uniform(-10, -2))
        shift = float(10 ** rng.uniform(-6, 3))
        std = gaussian_noise_std(epsilon, delta, shift)
        ledger = PrivacyLedger(PrivacyBudget(epsilon_max=epsilon, delta_max=delta))
        release = GaussianMechanism(noise_std=std, sensitivity=shift)
        ledger.charge("r1", "peer:2", BOTH, release)
        with pytest.raises(PrivacyBudgetExceededError):
            ledger.charge("r2", "peer:2", BOTH, release)


def test_budget_refuses_before_send(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=1.0), path)
    ledger.charge("r6", "peer:2", BOTH, calibrated(0.62))
    before = path.read_bytes()
    with pytest.raises(PrivacyBudgetExceededError) as caught:
        ledger.charge("r7", "peer:2", ("peer:3",), calibrated(1.0))
    assert "request r7 needs ε=1.21" in str(caught.value)
    assert "at δ=1e-05" in str(caught.value)
    assert "observer peer:3, budget 1 (spent 0.62). Nothing was sent" in str(
        caught.value
    )
    assert path.read_bytes() == before
    assert ledger.remaining("peer:2", "peer:3") == pytest.approx(0.38)
    assert ledger.remaining("peer:2", "peer:1") == 1.0


def test_under_joint_scope_all_observers_together_have_one_budget():
    budget = PrivacyBudget(epsilon_max=1.0)
    for scope, fits in (("release", True), ("joint", False)):
        ledger = PrivacyLedger(budget)
        ledger.charge("r1", "peer:2", ("peer:0",), calibrated(1.0), scope=scope)
        if fits:
            ledger.charge("r2", "peer:2", ("peer:3",), calibrated(1.0), scope=scope)
        else:
            with pytest.raises(PrivacyBudgetExceededError, match=r"\{peer:0,peer:3\}"):
                ledger.charge("r2", "peer:2", ("peer:3",), calibrated(1.0), scope=scope)


def test_a_public_release_counts_for_everyone_who_saw_something_before():
    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=1.0))
    ledger.charge("r1", "peer:2", ("peer:0",), calibrated(0.9), scope="release")
    with pytest.raises(PrivacyBudgetExceededError, match="observer peer:0, budget 1"):
        ledger.charge("r2", "peer:2", ("public",), calibrated(0.9), scope="release")
    other = PrivacyLedger(PrivacyBudget(epsilon_max=1.0))
    pair = ("{peer:0,peer:3}",)
    other.charge("r1", "peer:2", pair, calibrated(0.9), scope="release")
    with pytest.raises(PrivacyBudgetExceededError, match=r"observer \{peer:0,peer:3\}"):
        other.charge("r2", "peer:2", ("peer:3",), calibrated(0.9), scope="release")
    other.charge("r3", "peer:2", ("peer:5",), calibrated(0.9), scope="release")


def test_an_observer_may_have_a_cap_of_its_own():
    budget = PrivacyBudget(
        epsilon_max=2.0, per_observer={"public": 0.5, "{peer:0,peer:3}": 1.2}
    )
    ledger = PrivacyLedger(budget)
    with pytest.raises(PrivacyBudgetExceededError, match=r"public, budget 0\.5"):
        ledger.charge("r1", "peer:2", ("peer:0", "public"), calibrated(1.0))
    for scope in ("release", "joint"):
        ledger = PrivacyLedger(budget)
        ledger.charge("r1", "peer:2", ("peer:0",), calibrated(1.0), scope=scope)
        with pytest.raises(PrivacyBudgetExceededError, match=r"peer:3\}, budget 1\.2"):
            ledger.charge("r2", "peer:2", ("peer:3",), calibrated(1.0), scope=scope)
    assert ledger.remaining("peer:2", "peer:0") == pytest.approx(1.0)
    assert ledger.remaining("peer:2", "public") == 0.5
    assert ledger.remaining("peer:2", "{peer:0,peer:3}") == pytest.approx(0.2)
    rows = {row.observer: row.remaining for row in ledger.table()}
    assert rows["public"] == 0.5
    alone = PrivacyLedger(PrivacyBudget(per_observer={"peer:3": 0.5}))
    alone.charge("r1", "peer:2", ("peer:0",), calibrated(9.0))
    with pytest.raises(PrivacyBudgetExceededError, match="observer peer:3"):
        alone.charge("r2", "peer:2", ("public",), calibrated(1.0))


def test_an_owner_may_have_a_cap_of_its_own():
    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=1.0, per_owner={"peer:2": 0.5}))
    with pytest.raises(PrivacyBudgetExceededError, match=r"budget 0\.5"):
        ledger.charge("r1", "peer:2", BOTH, calibrated(1.0))
    ledger.charge("r1", "peer:3", BOTH, calibrated(1.0))
    assert PrivacyLedger().remaining("peer:2", "peer:0") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon_max": 0.0},
        {"epsilon_max": math.nan},
        {"delta_max": 0.0},
        {"delta_max": 1.0},
        {"per_owner": {"peer:1": -1.0}},
        {"per_owner": {"client:1": 1.0}},
        {"per_observer": {"peer:1": 0.0}},
        {"per_observer": {"client:1": 1.0}},
    ],
)
def test_impossible_budgets_are_refused(fields):
    expected = InvalidPrivacyParameterError
    expected = InvalidArgumentError if "client:1" in str(fields) else expected
    with pytest.raises(expected, match=next(iter(fields)).removeprefix("per_")):
        PrivacyBudget(**fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"owner": "client:2"}, "owner: must be 'peer:<i>' or '\\*', got 'client:2'"),
        ({"owner": "peer:02"}, "got 'peer:02'"),
        ({"observers": ()}, "observers: must be at least one"),
        ({"observers": ("peer:0", "peer:0")}, "each named once"),
        ({"observers": ("{peer:3,peer:0}",)}, "ascending"),
        ({"observers": ("{peer:3}",)}, "got '{peer:3}'"),
        ({"observers": ("node:1",)}, "got 'node:1'"),
        ({"request_id": "r 7"}, "request_id: must match"),
        ({"request_id": "r7/../x"}, "request_id: must match"),
        ({"release_id": "a b"}, "release_id: must match"),
        ({"scope": "network"}, "scope: must be one of release, joint"),
        ({"group_size": 0}, "group_size: must be an integer >= 1"),
        ({"round": -1}, "round: must be an integer >= 0"),
    ],
)
def test_malformed_charges_are_refused_before_anything_is_written(change, words):
    ledger = PrivacyLedger()
    given = {
        "request_id": "r7",
        "owner": "peer:2",
        "observers": BOTH,
        "mechanism": RELEASE,
        **change,
    }
    with pytest.raises(InvalidArgumentError, match=words):
        ledger.charge(**given)
    assert ledger.entries == ()


# --- filter --------------------------------------------------------------------------


def how_many_fit(ledger, mechanism):
    for k in range(200):
        try:
            ledger.charge(f"r{k}", "peer:2", BOTH, mechanism)
        except PrivacyBudgetExceededError:
            return k
    raise AssertionError("no cap")


def test_a_filter_counts_at_one_order_that_was_fixed_before():
    budget = PrivacyBudget(epsilon_max=4.7285070673)
    ledger = PrivacyLedger(budget, adaptive_costs=True)
    assert ledger.filter_order == 5.4  # where one Gaussian of noise 1 has its best
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    at = curve_of(RELEASE, [5.4]).to_epsilon(1e-5).epsilon
    assert ledger.epsilon("peer:2", "peer:0", 1e-5) == at
    assert at > PrivacyLedger().fork().merge(ledger).epsilon("peer:2", "peer:0", 1e-5)
    assert {row.epsilon for row in ledger.table()} == {at, 0.0}
    assert ledger.fork().filter_order == 5.4
    # Tiny total variation makes epsilon 0 only where costs were fixed in advance.
    low = PrivacyLedger(budget, adaptive_costs=True, filter_order=1.1).merge(ledger)
    assert (
        ledger.spent("peer:2", "peer:0").restrict((1.1,)).to_epsilon(0.1).epsilon == 0
    )
    assert low.epsilon("peer:2", "peer:0", 0.1) > 1


def test_a_filter_lets_through_exactly_what_its_budget_allows():
    std = gaussian_noise_std(1.0, 1e-5, 1.0, "rdp")
    one = GaussianMechanism(noise_std=std, sensitivity=1.0)
    small = GaussianMechanism(noise_std=std * 10, sensitivity=1.0)
    budget = PrivacyBudget(epsilon_max=1.0)
    whole = PrivacyLedger(budget, adaptive_costs=True)
    whole.charge("r0", "peer:2", BOTH, one)
    with pytest.raises(PrivacyBudgetExceededError):
        whole.charge("r1", "peer:2", BOTH, small)
    parts = PrivacyLedger(budget, adaptive_costs=True)
    # A hundred costs of a hundredth, but for rounding.
    assert how_many_fit(parts, small) in (99, 100)
    # Costs fixed in advance compose exactly, which has more room.
    assert how_many_fit(PrivacyLedger(budget), small) > 110


def test_filters_without_a_cap_or_with_an_unknown_order_are_refused(tmp_path):
    budget = PrivacyBudget(epsilon_max=1.0)
    with pytest.raises(InvalidArgumentError, match="budget: must have epsilon_max"):
        PrivacyLedger(adaptive_costs=True)
    with pytest.raises(InvalidArgumentError, match=r"DEFAULT_ORDERS, got 2\.05.*2"):
        PrivacyLedger(budget, adaptive_costs=True, filter_order=2.05)
    with pytest.raises(InvalidArgumentError, match="must be None without adaptive"):
        PrivacyLedger(budget, filter_order=8.0)
    path = tmp_path / "ledger.jsonl"
    PrivacyLedger(budget, path, adaptive_costs=True, filter_order=8)
    again = PrivacyLedger.load(path, budget, adaptive_costs=True, filter_order=8)
    assert again.filter_order == 8.0


# --- everyone's account --------------------------------------------------------------


def test_what_is_private_for_any_record_has_its_own_epsilon():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:2", BOTH, RELEASE)
    assert ledger.public_epsilon("peer:0", 1e-5) is None
    ledger.charge("train", "*", ("peer:0",), TRAINING, noise_purpose="train-noise")
    one = ledger.public_epsilon("peer:0", 1e-5)
    assert one == curve_of(TRAINING).to_epsilon(1e-5).epsilon
    assert one == ledger.epsilon("*", "peer:0", 1e-5)
    assert ledger.public_epsilon("peer:9", 1e-5) == 0
    nothing = ledger.spent("*", "peer:9")
    assert nothing == RdpCurve.zero(adjacency="add_remove")
    assert nothing == PrivacyLedger().spent("*", "peer:9")
    assert nothing + ledger.spent("*", "peer:0") == curve_of(TRAINING)
    assert ledger.epsilon("peer:2", "peer:3", 1e-5) == pytest.approx(0.4344163801)


def test_several_records_at_once_pay_the_group_rule():
    ledger = PrivacyLedger()
    ledger.charge("train", "*", BOTH, TRAINING)
    alone = ledger.public_epsilon("peer:0", 1e-5)
    for size in (2, 5):
        several = ledger.public_epsilon("peer:0", 1e-5, group_size=size)
        curve = group_curve(TRAINING, size)
        assert several == curve.to_epsilon(1e-5).epsilon > size * alone
    full = GaussianMechanism(noise_std=20.0, sensitivity=1.0, adjacency="add_remove")
    ledger.charge("more", "*", BOTH, full)
    both = ledger.public_epsilon("peer:0", 1e-5, group_size=5)
    added = group_curve(TRAINING, 5) + curve_of(full).group(5)
    assert both == added.to_epsilon(1e-5).epsilon
    plain = PrivacyLedger()
    plain.charge("train", "*", BOTH, full)
    exact = plain.public_epsilon("peer:0", 1e-5, group_size=4)
    assert exact == pytest.approx(0.7255217509, abs=2e-10)  # one of noise 5, exactly


# --- merge ---------------------------------------------------------------------------


def test_merging_forks_counts_each_release_once(tmp_path):
    start = play(PrivacyLedger(path=tmp_path / "ledger.jsonl"))
    one, two = start.fork(), start.fork()
    one.charge("a", "peer:2", BOTH, RELEASE)
    one.commit("a")
    two.charge("b", "peer:2", BOTH, RELEASE)
    two.charge("c", "peer:2", BOTH, RELEASE)
    two.abort("c", noise_drawn=False)
    both = one.merge(two)
    assert len(both.entries) == len(start.entries) + 3
    assert [e.request_id for e in both.entries[-3:]] == ["a", "b", "c"]
    assert [e.state for e in both.entries[-3:]] == ["committed", "reserved", "aborted"]
    before = start.spent("peer:2", "peer:0") + 2 * curve_of(RELEASE)
    after = both.spent("peer:2", "peer:0")
    np.testing.assert_allclose(after.values, before.values, rtol=1e-14)
    assert both.entries[: len(one.entries)] == one.entries
    both.save(tmp_path / "both.jsonl")
    assert PrivacyLedger.load(tmp_path / "both.jsonl").entries == both.entries
    assert one.merge(one).entries == one.entries
    assert len(start.entries) == 6


def test_merging_takes_the_union_of_observers_and_never_forgets_a_release():
    one, two = PrivacyLedger(), PrivacyLedger()
    one.charge("r1", "peer:2", ("peer:0",), RELEASE, release_id="r1/model")
    one.abort("r1", noise_drawn=False)
    two.charge("r1", "peer:2", BOTH, RELEASE, release_id="r1/model")
    for both in (one.merge(two), two.merge(one)):
        for observer in (*BOTH, "{peer:0,peer:3}"):
            assert both.spent("peer:2", observer) == curve_of(RELEASE)


def test_merging_releases_with_other_costs_is_refused():
    one, two = PrivacyLedger(), PrivacyLedger()
    louder = GaussianMechanism(noise_std=0.5, sensitivity=0.05)
    one.charge("r1", "peer:2", BOTH, RELEASE)
    two.charge("r1", "peer:2", BOTH, louder)
    with pytest.raises(InvalidArgumentError, match=r"r1/peer:2/0/0 was charged"):
        one.merge(two)
    other = PrivacyLedger()
    other.charge("r2", "peer:2", BOTH, replace(RELEASE, adjacency="add_remove"))
    with pytest.raises(AdjacencyMismatchError):
        one.merge(other)
    renamed = PrivacyLedger()
    renamed.charge("r1", "peer:2", BOTH, RELEASE, release_id="r1/other")
    with pytest.raises(InvalidArgumentError, match="noise stream: must serve one"):
        one.merge(renamed)


# --- table ---------------------------------------------------------------------------


def test_the_table_shows_each_account_and_observers_together():
    ledger = PrivacyLedger(PrivacyBudget(epsilon_max=1.0))
    for _ in range(2):
        ledger.charge(
            "r1", "peer:2", ("peer:0",), RELEASE, scope="release", status="certified"
        )
    ledger.charge("r1", "peer:2", ("peer:3",), RELEASE, scope="release")
    rows = {row.observer: row for row in ledger.table()}
    assert list(rows) == ["peer:0", "peer:3", "{peer:0,peer:3}", "public"]
    assert [row.releases for row in rows.values()] == [2, 1, 3, 0]
    assert rows["peer:0"].status == "certified"
    assert rows["{peer:0,peer:3}"].epsilon == pytest.approx(0.7912753789)
    assert rows["{peer:0,peer:3}"].remaining == pytest.approx(0.2087246211)
    assert rows["public"].epsilon == 0
    text = str(ledger)
    assert "0.7913" in text  # epsilon rounded up
    assert "0.2087" in text  # what is left rounded down
    assert "ε (δ=1e-05)" in text


def test_the_table_joins_observers_with_equal_accounts_in_print():
    ledger = PrivacyLedger()
    peers = tuple(f"peer:{i}" for i in range(12))
    ledger.charge("r1", "peer:2", peers, RELEASE)
    assert len(ledger.table()) == 13
    assert "peer:0 … peer:11 (12)" in str(ledger)
    assert "no cap" in str(ledger)
    assert len(str(ledger).splitlines()) == 3


# --- file ----------------------------------------------------------------------------


def test_ledger_roundtrip_bit_exact(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = play(PrivacyLedger(path=path))
    ledger.charge("r9", "peer:2", ("public",), GaussianMechanism(
        noise_std=0.0, sensitivity=0.1
    ), group_size=3, scope="release", status="heuristic")  # fmt: skip
    ledger.charge("r10", "peer:4", BOTH, GRIDDED)
    ledger.charge("train", "*", BOTH, TRAINING, noise_purpose="train-noise")
    again = PrivacyLedger.load(path)
    assert again.entries == ledger.entries
    assert again.head == ledger.head == ledger.verify()
    assert [e.curve for e in again.entries] == [e.curve for e in ledger.entries]
    assert again.epsilon("peer:2", "public", 1e-5) == math.inf
    assert '"inf"' in path.read_text()
    again.charge("r11", "peer:2", BOTH, RELEASE)
    assert PrivacyLedger.load(path).entries == again.entries


def test_the_file_is_the_documented_format(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = PrivacyLedger(path=path)
    ledger.charge("r7", "peer:2", BOTH, RELEASE, round=140, group_size=2)
    ledger.commit("r7")
    first, second = path.read_bytes().splitlines()
    record = json.loads(first)
    assert list(record)[:4] == ["v", "seq", "prev", "state"]
    assert record["prev"] == "0" * 64
    assert record["mechanism"] == {
        "kind": "gaussian",
        "noise_std": 0.4,
        "sensitivity": 0.05,
        "rate": 1.0,
        "count": 1,
    }
    assert record["curve"]["orders"] == "default-1"
    assert float.fromhex(record["curve"]["hex"][9]) == pytest.approx(2 / 128)
    assert record["noise"]["stream"] == "unlearn-noise/peer:2/r7/140/0"
    assert (record["group_size"], record["state"]) == (2, "reserved")
    later = json.loads(second)
    assert (later["seq"], later["state"]) == (1, "committed")
    assert later["prev"] == sha256(first).hexdigest()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize(
    ("mechanism", "what", "noise"),
    [
        (
            TRAINING,
            {"kind": "sampled_gaussian", "noise_std": 2.0, "sensitivity": 1.0}
            | {"rate": 0.1, "count": 50},
            {"mode": "simulated", "generator": "philox-sha256/1", "grid": None},
        ),
        (
            GRIDDED,
            {"kind": "discrete_gaussian", "noise_std": 0.4, "sensitivity": 0.05}
            | {"rate": 1.0, "count": 1},
            {"mode": "secure", "generator": "os-urandom/1", "grid": 2**-12},
        ),
    ],
)
def test_other_mechanisms_have_their_documented_line(tmp_path, mechanism, what, noise):
    path = tmp_path / "ledger.jsonl"
    PrivacyLedger(path=path).charge("r1", "peer:2", BOTH, mechanism)
    record = json.loads(path.read_bytes())
    assert record["mechanism"] == what
    assert record["adjacency"] == mechanism.adjacency
    assert noise.items() <= record["noise"].items()
    assert record["noise"]["dtype"] == "float64"


def test_ledger_tamper(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = play(PrivacyLedger(path=path), "charge r1 peer:2; commit r1")
    ledger.charge("r2", "peer:4", BOTH, GRIDDED)
    ledger.charge("train", "*", BOTH, TRAINING, noise_purpose="train-noise")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    flips = [(at, 1) for at in range(len(whole) - 3, len(whole))]
    flips += [(i, 1) for i, byte in enumerate(whole) if byte == ord("\n")]
    at = rng.integers(len(whole), size=1000)
    flips += list(zip(at.tolist(), rng.integers(1, 256, 1000).tolist(), strict=True))
    for place, mask in flips:
        changed = bytearray(whole)
        changed[place] ^= mask
        path.write_bytes(changed)
        with pytest.raises(CorruptStateError, match=r"ledger\.jsonl line \d+"):
            PrivacyLedger.load(path)


def test_a_broken_chain_names_its_line_and_both_hashes(tmp_path):
    path = tmp_path / "ledger.jsonl"
    play(PrivacyLedger(path=path))
    lines = path.read_bytes().splitlines(keepends=True)
    for broken, line in (
        (lines[1:], 1),
        (lines[:2] + lines[3:], 3),
        (lines[:3] + lines[2:], 4),
        ([lines[1], lines[0], *lines[2:]], 1),
    ):
        path.write_bytes(b"".join(broken))
        with pytest.raises(
            LedgerCorruptError,
            match=rf"ledger\.jsonl line {line}: chain broken \(expected seq .* prev "
            r"[0-9a-f]{8}…, found",
        ):
            PrivacyLedger.load(path)


def test_lines_dropped_at_the_end_are_noticed_where_the_head_is_known(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = PrivacyLedger(path=path)
    heads = [ledger.head]
    for k in range(3):
        ledger.charge(f"r{k}", "peer:2", BOTH, RELEASE)
        heads.append(ledger.head)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(4):
        path.write_bytes(b"".join(lines[:kept]))
        assert len(PrivacyLedger.load(path).entries) == kept  # unseen by itself
        for seen, head in enumerate(heads):
            if seen <= kept:  # charges after the head was noted are no fault
                loaded = PrivacyLedger.load(path, expected_head=head)
                assert len(loaded.entries) == kept
            else:
                with pytest.raises(LedgerCorruptError, match=f"line {seen} must have"):
                    PrivacyLedger.load(path, expected_head=head)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-40])  # torn, but known as whole
    with pytest.raises(LedgerCorruptError, match="among 2 lines"):
        PrivacyLedger.load(path, expected_head=heads[3])
    other = PrivacyLedger(path=tmp_path / "other.jsonl")
    for k in range(3):
        other.charge(f"s{k}", "peer:2", BOTH, RELEASE)
    with pytest.raises(LedgerCorruptError, match="removed or replaced"):
        PrivacyLedger.load(other.path, expected_head=heads[3])


def test_a_torn_last_line_is_cut_reported_and_overwritten(tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    ledger = play(PrivacyLedger(path=path))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (last + 1, last + 200, len(whole) - 1):
        path.write_bytes(whole[:end])
        caplog.clear()
        torn = PrivacyLedger.load(path)
        assert "ledger.jsonl: the last line was cut short" in caplog.text
        assert torn.entries == ledger.entries[:-1]
        assert path.read_bytes() == whole[:end]  # reading changes nothing
        torn.charge("r4", "peer:7", BOTH, RELEASE, round=4, assumptions=("L = 1",))
        assert path.read_bytes() == whole


def rewrite(line, change):
    """Return a line with changed content and a matching checksum."""
    record = json.loads(line)
    record.pop("check")
    change(record)
    body = json.dumps(record, separators=(",", ":")).encode()
    return body[:-1] + f',"check":"{sha256(body).hexdigest()}"}}'.encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(v=2), "v: must be 1, got 2"),
        (lambda r: r.update(extra=1), "exactly as this program writes it"),
        (lambda r: r.update(observers=["node:0"]), "got 'node:0'"),
        (lambda r: r.pop("owner"), "owner"),
        (lambda r: r["mechanism"].update(noise_std=math.nan), "finite, got NaN"),
        (lambda r: r["mechanism"].update(noise_std=math.inf), "finite, got Infinity"),
        (lambda r: r["mechanism"].update(noise_std=4.0), "curve: must be the mechan"),
        (lambda r: r["mechanism"].update(kind="laplace"), "kind must be one of"),
        (lambda r: r["mechanism"].update(rate=0.5), "exactly as this program"),
        (lambda r: r["mechanism"].update(count=2), "exactly as this program"),
        (lambda r: r["mechanism"].update(kind="sampled_gaussian"), "another one"),
        (lambda r: r["mechanism"].update(kind="discrete_gaussian"), "grid"),
        (lambda r: r["noise"].update(stream="unlearn-noise/peer:2/r9/4/0"), "stream"),
        (lambda r: r["noise"].update(mode="secure"), "exactly as this program"),
        (lambda r: r.update(state="committed"), "without one"),
        (lambda r: r.update(round=True), "round"),
    ],
)
def test_intact_lines_of_another_format_are_refused(tmp_path, change, words):
    path = tmp_path / "ledger.jsonl"
    play(PrivacyLedger(path=path), "charge r1 peer:2")
    path.write_bytes(rewrite(path.read_bytes(), change))
    with pytest.raises(LedgerFormatError, match=words):
        PrivacyLedger.load(path)


def test_the_same_noise_stream_reserved_twice_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    play(PrivacyLedger(path=path), "charge r1 peer:2")
    line = path.read_bytes()

    def another_release(record):
        record.update(seq=1, prev=sha256(line[:-1]).hexdigest(), release="r1/other")

    path.write_bytes(line + rewrite(line, another_release))
    with pytest.raises(LedgerFormatError, match="line 2: noise stream: must serve one"):
        PrivacyLedger.load(path)


def test_a_crashed_attempt_stays_reserved_and_its_retry_gets_fresh_noise(tmp_path):
    path = tmp_path / "ledger.jsonl"
    PrivacyLedger(path=path).charge("r1", "peer:2", BOTH, RELEASE)
    after = PrivacyLedger.load(path)
    with pytest.raises(InvalidArgumentError, match="not settled"):
        after.commit("r1")
    assert after.charge("r1", "peer:2", BOTH, RELEASE).draw == 1
    after.commit("r1")
    states = [entry.state for entry in PrivacyLedger.load(path).entries]
    assert states == ["reserved", "committed"]
    assert after.spent("peer:2", "peer:0") == 2 * curve_of(RELEASE)


def test_a_fork_is_independent_and_may_have_its_own_file(tmp_path):
    ledger = play(PrivacyLedger(path=tmp_path / "ledger.jsonl"))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    loose, bound = ledger.fork(), ledger.fork(tmp_path / "fork.jsonl")
    assert loose.path is None
    for fork in (loose, bound):
        assert fork.head == ledger.head
        fork.charge("r9", "peer:2", BOTH, RELEASE)
        assert len(fork.entries) == len(ledger.entries) + 1
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert PrivacyLedger.load(tmp_path / "fork.jsonl").entries == bound.entries
    ledger.save(tmp_path / "copy.jsonl")
    assert (tmp_path / "copy.jsonl").read_bytes() == before


def test_existing_files_links_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = play(PrivacyLedger(path=path))
    with pytest.raises(InvalidArgumentError, match="must not exist yet"):
        PrivacyLedger(path=path)
    with pytest.raises(InvalidArgumentError, match="must not exist yet"):
        ledger.save(path)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with pytest.raises(UnsafeFormatError, match="symbolic link"):
        PrivacyLedger.load(link)
    with pytest.raises(InvalidArgumentError, match="must not exist yet"):
        ledger.save(link)
    with pytest.raises(InputFileError, match="No such file"):
        PrivacyLedger.load(tmp_path / "none.jsonl")
    with pytest.raises(StoreWriteError, match="nothing was released"):
        PrivacyLedger(path=tmp_path / "none" / "ledger.jsonl")


def test_a_second_writer_and_a_changed_file_are_noticed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = play(PrivacyLedger(path=path))
    second = PrivacyLedger.load(path)
    second.charge("r9", "peer:2", BOTH, RELEASE)
    with pytest.raises(LedgerCorruptError, match="another process wrote to it"):
        first.charge("r9", "peer:2", BOTH, RELEASE)
    assert first.entries == second.entries[:-1]
    path.write_bytes(path.read_bytes().replace(b'"L = 1"', b'"L = 2"', 1))
    with pytest.raises(LedgerCorruptError, match="line 1: must be the line that was"):
        second.verify()


def test_a_failed_write_leaves_neither_line_nor_entry(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    ledger = play(PrivacyLedger(path=path))
    before = path.read_bytes()
    real = os.write

    def full_disk(handle, content):
        if len(content) > 100:
            return real(handle, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    monkeypatch.setattr(
        os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(StoreWriteError, match="No space left"):
        ledger.charge("r9", "peer:2", BOTH, RELEASE)
    monkeypatch.undo()
    assert path.read_bytes() == before
    entry = ledger.charge("r9", "peer:2", BOTH, RELEASE)
    assert entry.draw == 0
    assert PrivacyLedger.load(path).entries == ledger.entries


WRITER = """
import os, sys
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
ledger = PrivacyLedger.load(sys.argv[1])
released = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
mechanism = GaussianMechanism(noise_std=0.4, sensitivity=0.05)
os.write(1, b"ready")
for k in range(100_000):
    entry = ledger.charge("r1", "peer:2", ("peer:0",), mechanism, round=k)
    os.write(released, f"{entry.stream}\\n".encode())
    if k % 3 == 0:
        ledger.commit("r1")
"""


def kill_while_writing(tmp_path, times):
    path, released = tmp_path / "ledger.jsonl", tmp_path / "released"
    released.touch()
    PrivacyLedger(path=path)
    rng = np.random.default_rng(7)
    for _ in range(times):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, released], stdout=subprocess.PIPE
        )
        with writer:
            assert writer.stdout.read(5) == b"ready"
            time.sleep(float(10 ** rng.uniform(-3, -0.5)))
            writer.send_signal(signal.SIGKILL)
        ledger = PrivacyLedger.load(path)
        charged = {entry.stream for entry in ledger.entries}
        assert set(released.read_text().splitlines()) <= charged
        assert len(charged) == len(ledger.entries)
    assert len(ledger.entries) > times


def test_ledger_kill(tmp_path):
    kill_while_writing(tmp_path, times=3)


@pytest.mark.slow
def test_many_killed_processes_never_leave_an_uncharged_release(tmp_path):
    kill_while_writing(tmp_path, times=15)


def test_a_claim_that_was_open_at_the_release_is_settled_with_its_status(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = PrivacyLedger().fork(path)
    ledger.charge("r0", "peer:2", BOTH, RELEASE, status="pending")
    ledger.commit("r0", status="certified")
    ledger.charge("r1", "peer:2", BOTH, RELEASE, status="pending")
    ledger.commit("r1")
    again = PrivacyLedger.load(path)
    assert [e.status for e in again.entries] == ["certified", "pending"]
    assert again.entries == ledger.entries
