"""The token's walk where its holders come and go: lost, late, doubled, done over."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from test_requests_under_faults import asked, network, plan_of, ring

from dfl_unlearn import NewtonFisher, RrDu, unlearn
from dfl_unlearn.engine.faults import Delay, FaultPlan, MarkovChurn, MessageLoss
from dfl_unlearn.errors import RefusedError
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.token_faults import Generations
from dfl_unlearn.unlearning.token_walk import draw_route

WALK = RrDu(hops=40)


def route_of(run, protocol=WALK):
    return protocol.route(run, asked().resolve(run.data))


def holder_at(route, least):
    """Return the first hop from ``least`` on that is not at the source."""
    return next(
        k
        for k in range(least, len(route.holders))
        if route.holders[k] != route.source and route.holders[k + 1] != route.holders[k]
    )


def test_the_walk_depends_on_no_data():
    run = ring(6, plan_of(models=[MarkovChurn(p_leave=0.1, p_return=0.4)]))
    other = replace(run, data=run.data.without(asked(2)))
    assert route_of(run).faulty == route_of(other).faulty


def test_a_holder_that_leaves_is_replaced_by_the_one_before():
    run = ring(6, plan_of(models=[MessageLoss(p=0.1)]))
    hop = holder_at(route_of(run), 5)
    held = route_of(run).faulty.hops[hop]
    plan = plan_of((held.round, held.holder, "leave"), models=[MessageLoss(p=0.1)])
    run = ring(6, plan)
    route = route_of(run)
    walk = route.faulty
    # Arrived in the round in which it left, or turned away from it before.
    assert held.holder not in route.holders[hop + 1 :]
    assert walk.hops[:hop] == route_of(run).faulty.hops[:hop]
    assert len(route.holders) == 40


def lost_holder(protocol=WALK, what="down", back=None):
    """A ring in which a holder is gone once it has the token; (run, hop, round)."""
    run = ring(6, plan_of(token_timeout=5))
    route = route_of(run, protocol)
    hop = holder_at(route, 6)
    held = route.faulty.hops[hop]
    # It came in the round before; in this one it would take its step and send it on.
    events = [(held.round, held.holder, what)]
    if back is not None:
        events.append((held.round + back, held.holder, "up"))
    return ring(6, plan_of(*events, token_timeout=5)), hop, held


def test_a_lost_holders_step_is_done_over_from_the_copy_before():
    run, hop, held = lost_holder()
    route = route_of(run)
    walk = route.faulty
    assert walk.hops[hop].holder == held.holder
    assert walk.hops[hop + 1].parent == hop - 1
    assert walk.hops[hop + 1].generation == 1
    assert walk.hops[hop + 1].round >= held.round + 5
    outcome = unlearn(run, asked(), WALK)
    assert outcome.progress.generations == walk.generations >= 2
    assert outcome.pending == (held.holder,)


def test_the_model_is_that_of_the_hops_that_count():
    """The lost holder's step is not in it: a walk by hand over the others agrees."""
    run, hop, _ = lost_holder()
    seen = {}
    request = asked().resolve(run.data)
    WALK.unlearn(
        replace(run, ledger=run.ledger.fork()),
        request,
        run.rng,
        watch=lambda k, theta: seen.__setitem__(k, theta.clone()),
    )
    hops = route_of(run).faulty.hops
    again = seen[hop + 1] - seen[hop - 1]
    onwards = seen[hop + 1] - seen[hop]
    assert hops[hop + 1].parent == hop - 1
    # One step of rate 0.1 on a gradient: short from the copy before, and the lost
    # step is missing from what comes after.
    lost = seen[hop] - seen[hop - 1]
    assert torch.allclose(again, onwards + lost, atol=1e-12)
    assert float(again.norm()) > 0


def test_an_older_token_that_comes_back_is_dropped():
    run, _, held = lost_holder(back=12)
    walk = route_of(run).faulty
    assert (walk.generations, walk.dropped) == (2, 1)
    outcome = unlearn(run, asked(), WALK)
    assert outcome.progress.dropped == 1
    assert outcome.progress.applied[held.holder] > 0
    assert outcome.status == "complete"


def test_of_two_tokens_of_a_request_the_newer_one_lives():
    known = Generations()
    assert known.accepts("r0", 0)
    assert known.accepts("r0", 1)
    assert not known.accepts("r0", 0)
    assert known.accepts("r0", 1)
    assert known.accepts("r1", 0)


def test_a_holder_that_is_back_in_time_goes_on():
    run, hop, _ = lost_holder(back=3)
    walk = route_of(run).faulty
    assert walk.generations == 1
    assert walk.hops[hop + 1].parent == hop


def test_a_noised_visit_that_is_done_over_is_charged_again():
    protocol = RrDu(
        hops=30, alignment="lightweight", clip_norm=1.0, restart_probability=0.3
    )
    run = ring(6, plan_of(token_timeout=5))
    hops = route_of(run, protocol).faulty.hops
    visit = next(
        k
        for k in range(2, len(hops) - 1)
        if hops[k].holder == 0 and hops[k - 1].holder != 0 and hops[k + 1].holder != 0
    )
    plan = plan_of(
        (hops[visit].round, 0, "down"),
        (hops[visit].round + 12, 0, "up"),
        token_timeout=5,
    )
    run = ring(6, plan)
    route = route_of(run, protocol)
    assert route.faulty.hops[visit + 1].parent == visit - 1
    outcome = unlearn(run, asked(), protocol)
    charged = {e.release_id for e in outcome.ledger.entries}
    assert len(charged) == len(route.visits)
    assert visit in route.visits
    assert outcome.certificate.epsilon == pytest.approx(1.0)


def test_the_ledger_is_that_of_a_network_without_faults_for_as_many_visits():
    clean = ring(6, FaultPlan())
    there = unlearn(clean, asked(), WALK)
    plan = FaultPlan(models=(MessageLoss(p=0.2), MarkovChurn(p_leave=0.1, p_return=1)))
    config = replace(clean.config, faults=plan)
    here = unlearn(replace(clean, config=config), asked(), WALK)
    assert [e.mechanism for e in here.ledger.entries] == [
        e.mechanism for e in there.ledger.entries
    ]
    assert here.certificate.epsilon == there.certificate.epsilon


def test_resends_cost_messages_and_no_privacy():
    clean = ring(6, FaultPlan())
    config = replace(clean.config, faults=FaultPlan(models=(MessageLoss(p=0.3),)))
    route = route_of(replace(clean, config=config))
    crossings = sum(not send.copy for send in route.faulty.sends)
    assert len(route.faulty.sends) > crossings


@pytest.mark.statistical
def test_resends_need_as_many_sends_as_coins_say():
    """1 / (1 - p) = 1.428571 sends per delivery, within four standard errors."""
    topology = Topology.from_graph(nx.complete_graph(5))
    run = network(nx.complete_graph(5), plan_of(models=[MessageLoss(p=0.3)]))
    route = draw_route(
        topology,
        0,
        restart=0.2,
        hops=3_000,
        walk="uniform",
        lazy=0.0,
        natural_visit="exclude",
        importance=False,
        max_weight=10.0,
        rng=run.rng,
        request_id="r0",
        draws=run.faults(),
        clock=4,
    )
    sends = route.faulty.sends
    deliveries = sum(not send.copy for send in sends)
    spread = np.sqrt(0.3) / 0.7 / np.sqrt(deliveries)
    mean = len(sends) / deliveries
    assert abs(mean - 1 / 0.7) < 4 * spread
    assert abs(mean - 1 / 0.75) > 4 * spread  # it would see a loss of 0.25


def test_a_token_that_is_late_is_not_two_tokens():
    plan = plan_of(
        models=[Delay(probabilities=(0.4, 0.3, 0.3)), MessageLoss(p=0.2)],
        token_timeout=2,
    )
    run = ring(6, replace(plan, models=plan.models[:2]))
    walk = route_of(run).faulty
    assert walk.generations > 1
    assert [h.generation for h in walk.hops] == sorted(h.generation for h in walk.hops)
    assert unlearn(run, asked(), WALK).status == "complete"


def test_no_hop_restarts_once_the_requester_has_left():
    run = ring(6, plan_of((30, 0, "leave")))
    route = route_of(run)
    late = [h for h in route.faulty.hops if h.round > 31]
    assert late
    assert not any(h.restarted or h.holder == 0 for h in late)
    outcome = unlearn(run, asked(), WALK)
    assert 0 in outcome.pending


def test_a_requester_that_is_gone_before_the_noised_start_is_refused():
    run = ring(6, plan_of((4, 0, "down"), patience=20))
    with pytest.raises(RefusedError, match="peer 0, one that was down for 20 rounds"):
        unlearn(run, asked(), WALK)
    assert len(run.ledger.entries) == 0


def test_where_everybody_who_held_the_token_has_left_nobody_is_corrected():
    hops = route_of(ring(6, plan_of(patience=20))).faulty.hops
    held = {h.holder for h in hops[:3]}
    run = ring(6, plan_of(*((hops[2].round, i, "leave") for i in held), patience=20))
    outcome = unlearn(run, asked(), WALK)
    assert set(outcome.trace["holder"].astype(int)) == held
    assert outcome.status == "incomplete"
    assert outcome.progress.applied == (-1,) * 6


def test_the_target_leaves_out_who_left_in_training():
    run = ring(6, plan_of((3, 3, "leave")))
    outcome = unlearn(run, asked(), WALK)
    assert outcome.pending == (3,)
    measured = {a.name: a.value for a in outcome.certificate.assumptions}
    assert measured["distance of the start"] > 0
    # Leaving out the peer's data changes what the distance is measured to.
    whole = replace(run, config=replace(run.config, faults=FaultPlan()))
    there = unlearn(whole, asked(), WALK).certificate
    assert {a.name: a.value for a in there.assumptions} != measured


def test_newton_and_the_token_meet_the_same_faults():
    run = ring(6, plan_of((40, 3, "leave"), models=[MessageLoss(p=0.2)]))
    first = unlearn(run, asked(), NewtonFisher())
    second = unlearn(run, asked(), WALK)
    assert first.progress.left == second.progress.left == {3: 40}


def test_a_restart_goes_around_peers_that_have_left():
    run = ring(6, plan_of((1, 1, "leave")))  # training has 4 rounds: long gone
    protocol = RrDu(hops=200, restart_probability=0.5)
    route = route_of(run, protocol)
    walk = route.faulty
    assert walk.generations == 1
    assert 1 not in route.holders
    assert all(1 not in (send.source, send.target) for send in walk.sends)
    # Half of the hops restart, from peer 2 over 3, 4 and 5 too.
    assert np.mean([hop.restarted for hop in walk.hops[1:]]) == pytest.approx(
        0.5, abs=4 * 0.5 / np.sqrt(199)
    )
