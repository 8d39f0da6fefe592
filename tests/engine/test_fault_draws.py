"""The realization of fault plans: rates, schedules, and that only keys count."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_unlearn import load_topology
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MarkovChurn,
    MessageLoss,
    NetworkSplit,
    Reorder,
    ScheduledChurn,
    Straggler,
)
from dfl_unlearn.errors import InvalidArgumentError, UnknownPeerError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology

DRAWS = 20_000


def draws(*models, n=8, use="ring", seed=0, policy="symmetric_drop"):
    plan = FaultPlan(models=models, weight_policy=policy)
    return FaultDraws.of(plan, load_topology(use, n=n), RngTree(seed))


def within(values, mean, variance, count=DRAWS):
    """Tell whether an average is within four standard errors."""
    return abs(np.mean(values) - mean) <= 4 * np.sqrt(variance / count)


@pytest.mark.statistical
def test_markov_churn_is_up_three_quarters_of_the_time_ten_rounds_at_a_time():
    p, q, n, burn = 0.1, 0.3, 200, 100
    found = draws(MarkovChurn(p_leave=p, p_return=q), n=n)
    up = np.array([found.at(t).up for t in range(burn + DRAWS // n)])
    assert up[0].all()
    up = up[burn:]
    assert up.size == DRAWS
    # The chain's values are correlated: lambda = 1 - p - q = 0.6 inflates the
    # variance of a mean by (1 + lambda) / (1 - lambda) = 4 [derived].
    assert within(up, 0.75, 0.75 * 0.25 * 4)
    assert not within(up, 0.70, 0.75 * 0.25 * 4)
    # Stays of peers that are up end with probability p: mean 1 / p = 10.
    stays = up[:-1].sum()
    ends = (up[:-1] & ~up[1:]).sum()
    rate, error = ends / stays, np.sqrt(p * (1 - p) / stays)
    assert abs(rate - p) <= 4 * error
    assert abs(1 / rate - 10) <= 4 * error / p**2 * 1.1


@pytest.mark.statistical
def test_resending_until_it_arrives_takes_one_over_one_minus_p_sends():
    p = 0.3
    found = draws(MessageLoss(p=p))
    source, target = np.divmod(np.arange(64), 8)
    rounds = -(-DRAWS // 64)
    sends = []
    for t in range(rounds):
        open_, count = np.ones(64, bool), np.zeros(64)
        for copy in range(60):
            count[open_] += 1
            open_ &= found.lost(t, source, target, copy)
        assert not open_.any()
        sends.append(count)
    sends = np.concatenate(sends)[:DRAWS]
    assert within(sends, 1.428571, p / (1 - p) ** 2)
    assert not within(sends, 1.40, p / (1 - p) ** 2)


@pytest.mark.statistical
def test_a_flood_over_three_hops_reaches_the_end_with_0729():
    n = 10_000  # 2500 floods a round, each along four peers of its own
    found = draws(MessageLoss(p=0.1), n=n, use="path")
    source = np.arange(n).reshape(-1, 4)[:, :3]
    arrives = np.stack([~found.lost(t, source, source + 1) for t in range(8)])
    for i, j in np.ndindex(20, 3):
        at = int(source[i, j])
        assert found.at(0).delivers(at, at + 1) is bool(arrives[0, i, j])
    reached = arrives.all(axis=-1).ravel()
    assert len(reached) == DRAWS
    assert within(reached, 0.729, 0.729 * 0.271)
    assert not within(reached, 0.70, 0.729 * 0.271)


@pytest.mark.statistical
@pytest.mark.parametrize("d_max", [3, 12])
def test_delays_have_the_mean_of_their_distribution(d_max):
    geometric = 0.5 ** np.arange(1, d_max + 2)
    geometric[-1] += 1 - geometric.sum()
    found = draws(Delay(probabilities=tuple(geometric)))
    source, target = np.divmod(np.arange(64), 8)
    rounds = -(-DRAWS // 64)
    late = np.concatenate([found.delays(t, source, target) for t in range(rounds)])
    k = np.arange(d_max + 1)
    mean = geometric @ k
    variance = geometric @ (k - mean) ** 2
    assert within(late[:DRAWS], mean, variance)
    assert not within(late[:DRAWS], mean * 1.05, variance)
    assert found.at(3).delay(1, 2) == found.delays(3, *map(np.array, ([1], [2])))[0]


def test_stragglers_finish_in_a_floor_pattern():
    found = draws(Straggler(share=0.2, slowdown=3), n=10)
    works = np.array([found.at(t).works for t in range(31)])
    slow = np.flatnonzero(~works.all(axis=0))
    assert len(slow) == 2
    assert slow.tolist() == found.stragglers.tolist()
    for rounds in range(32):
        done = works[:rounds].sum(axis=0)
        assert (done[slow] == rounds // 3).all()
        assert (np.delete(done, slow) == rounds).all()
    assert np.array([found.at(t).up for t in range(31)]).all()


def test_stragglers_that_are_waited_for_miss_nothing():
    found = draws(Straggler(share=0.5, slowdown=3, policy="wait"))
    assert len(found.stragglers) == 4
    assert all(found.at(t).works.all() for t in range(9))


def test_scheduled_churn_follows_its_schedule():
    events = ((2, 1, "down"), (4, 1, "up"), (3, 5, "leave"), (6, 5, "up"))
    found = draws(ScheduledChurn(events=events))
    for t in range(9):
        now = found.at(t)
        away = ({1} if 2 <= t < 4 else set()) | ({5} if t >= 3 else set())
        assert set(np.flatnonzero(~now.up)) == away
        assert set(np.flatnonzero(now.left)) == ({5} if t >= 3 else set())
        assert not now.crashed.any()


def test_a_crashed_peer_restarts_in_its_round_or_waits_for_a_neighbour():
    found = draws(ScheduledChurn(events=((3, 2, "crash"),)))
    assert [t for t in range(8) if found.at(t).crashed.any()] == [3]
    now = found.at(3)
    assert now.up.all()
    assert np.flatnonzero(~now.works).tolist() == [2]
    events = (
        (3, 2, "crash"),
        (2, 1, "down"),
        (2, 3, "down"),
        (6, 3, "up"),
    )
    waiting = draws(ScheduledChurn(events=events))
    assert [waiting.at(t).up[2] for t in range(2, 8)] == [1, 0, 0, 0, 1, 1]
    assert [t for t in range(9) if waiting.at(t).crashed[2]] == [6]
    own = draws(ScheduledChurn(events=events, restart="checkpoint"))
    assert [t for t in range(9) if own.at(t).crashed[2]] == [3]


def test_a_split_lets_nothing_across_while_it_lasts():
    found = draws(NetworkSplit(start=2, end=4, peers=(0, 1)))
    for t in range(6):
        now = found.at(t)
        assert now.delivers(1, 2) is not (2 <= t < 4)
        assert now.delivers(0, 1)
        assert now.delivers(5, 4)


def test_duplicates_and_overtaken_messages_are_counted():
    found = draws(Duplicate(p=1.0), Reorder(p=1.0))
    now = found.at(0)
    assert now.duplicated(0, 1)
    assert now.overtaken(0, 1)
    assert now.counts() == {"duplicates": 16, "reordered": 16}


MODELS = (
    MarkovChurn(p_leave=0.2, p_return=0.3),
    MessageLoss(p=0.2),
    Delay(probabilities=(0.5, 0.3, 0.2), max_staleness=3),
    Straggler(share=0.3, slowdown=2),
    NetworkSplit(start=20, end=40, peers=(0, 1, 2)),
    ScheduledChurn(events=((5, 3, "down"), (70, 3, "up"), (90, 4, "leave"))),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 150), min_size=1, max_size=6))
def test_a_round_is_the_same_in_any_order_of_asking(rounds):
    once = draws(*MODELS)
    straight = {t: once.at(t) for t in range(151)}
    other = draws(*MODELS)
    for t in rounds:
        a, b = straight[t], other.at(t)
        assert np.array_equal(a.up, b.up)
        assert np.array_equal(a.works, b.works)
        arcs = once.arcs(t)
        assert np.array_equal(once.ages(a, arcs), other.ages(b, arcs))


def test_models_of_other_kinds_do_not_move_the_coins():
    alone, among = draws(MODELS[1]), draws(*MODELS)
    source, target = np.divmod(np.arange(64), 8)
    for t in range(5):
        assert np.array_equal(
            alone.lost(t, source, target), among.lost(t, source, target)
        )
    another = draws(MODELS[1], seed=1)
    assert not np.array_equal(
        alone.lost(0, source, target), another.lost(0, source, target)
    )


@pytest.mark.parametrize("policy", ["self", "symmetric_drop", "push_sum"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    p=st.floats(0, 0.9),
    leave=st.floats(0, 1),
    late=st.booleans(),
    n=st.integers(2, 9),
)
def test_rows_sum_to_one_under_every_policy(policy, seed, p, leave, late, n):
    models = [MessageLoss(p=p), MarkovChurn(p_leave=leave, p_return=0.5)]
    if late and policy != "push_sum":
        models.append(Delay(probabilities=(0.4, 0.3, 0.3)))
    found = draws(*models, n=n, use="path", seed=seed, policy=policy)
    for t in (0, 1, 2, 7):
        now = found.at(t)
        arcs = found.arcs(t)
        total = now.mixing.total(arcs)
        assert abs(total.sum(axis=1) - 1).max() <= 1e-12
        assert (total.data >= 0).all()
        if policy == "symmetric_drop":
            assert abs(now.mixing.column_sums(arcs) - 1).max() <= 1e-12
        down = np.flatnonzero(~now.up)
        assert (total[down].toarray() == np.eye(n)[down]).all()
        assert now.topology.stochastic in ("doubly", "row")


def test_who_takes_nothing_keeps_exactly_its_own():
    graph = nx.gnm_random_graph(60, 400, seed=3)
    mixed = Topology.from_graph(graph)
    plan = FaultPlan(models=(MarkovChurn(p_leave=1.0, p_return=0.0),))
    now = FaultDraws.of(plan, mixed, RngTree(0)).at(1)
    assert not now.up.any()
    total = now.mixing.total(now.draws.arcs(1)).toarray()
    assert (total == np.eye(60)).all()


def test_push_sum_keeps_the_mean_by_mass():
    found = draws(MessageLoss(p=0.4), n=6, policy="push_sum")
    x, mass = np.arange(6.0), np.ones(6)
    for t in range(200):
        now = found.at(t)
        assert np.allclose(now.mass, mass, rtol=0, atol=0)
        x = now.mixing.total(found.arcs(t)) @ x
        mass = now.mixing.mass
        assert mass @ x == pytest.approx(15.0, rel=1e-12)
        assert mass.sum() == pytest.approx(6.0, rel=1e-12)
    assert np.allclose(x, 2.5, atol=1e-9)


def test_self_moves_the_mean_and_symmetric_drop_keeps_it():
    for policy, keeps in (("self", False), ("symmetric_drop", True)):
        found = draws(MessageLoss(p=0.3), policy=policy)
        arcs = found.arcs(0)
        kept = [found.at(t).mixing.keeps_mean(arcs) for t in range(20)]
        assert all(kept) is keeps
        assert found.plan.keeps_mean is keeps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MessageLoss(p=1.0), r"p: must be < 1 \(nothing would ever arrive\)"),
        (lambda: MarkovChurn(p_leave=1.5, p_return=0.1), "p_leave: .* got 1.5"),
        (lambda: Delay(probabilities=(0.5, 0.4)), "must sum to 1, got 0.9"),
        (lambda: NetworkSplit(start=3, end=3, peers=(0,)), "end: .* >= 4.*got 3"),
        (lambda: NetworkSplit(start=0, end=3, peers=()), "peers: must name"),
        (lambda: ScheduledChurn(events=((0, 1, "gone"),)), "events.0.2: .*'gone'"),
        (lambda: Straggler(share=0.2, slowdown=0), "slowdown: .* got 0"),
        (
            lambda: FaultPlan(
                models=(Delay(probabilities=(1.0,)),), weight_policy="push_sum"
            ),
            "must not be 'push_sum' with delay",
        ),
        (
            lambda: FaultPlan(
                models=(
                    Delay(probabilities=(0.5, 0.5)),
                    ScheduledChurn(events=((0, 1, "crash"),)),
                )
            ),
            "a crash must not go with delay",
        ),
    ],
)
def test_bad_plans_are_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_plans_are_checked_against_the_network():
    with pytest.raises(UnknownPeerError, match=r"models.0: .*0\.\.7, got 9"):
        draws(ScheduledChurn(events=((0, 9, "down"),)))
    with pytest.raises(InvalidArgumentError, match="not symmetric"):
        draws(MessageLoss(p=0.1), use="exponential").at(0).counts()
