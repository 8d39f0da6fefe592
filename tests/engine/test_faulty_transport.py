"""Messages on a clock: sent until they arrive, in order, once, by those who may."""

import networkx as nx
import numpy as np
import pytest

from dfl_unlearn.engine.deliveries import arrival
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.faults import (
    Delay,
    Duplicate,
    FaultPlan,
    MessageLoss,
    NetworkSplit,
    ScheduledChurn,
)
from dfl_unlearn.engine.faulty_transport import FaultyTransport, PeerLeftError
from dfl_unlearn.engine.message_log import MessageLog
from dfl_unlearn.engine.transport import HEADER_BYTES, Transport
from dfl_unlearn.errors import (
    InvalidArgumentError,
    RefusedError,
    StaleModelError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology


def transport_of(*models, graph=None, clock=0, patience=100, seed=0):
    topology = Topology.from_graph(nx.cycle_graph(6) if graph is None else graph)
    plan = FaultPlan(models=models, patience=patience)
    draws = FaultDraws.of(plan, topology, RngTree(seed))
    return FaultyTransport(topology, draws=draws, clock=clock, patience=patience)


def churn(*events):
    return ScheduledChurn(events=events)


@pytest.mark.parametrize("graph", [nx.path_graph(5), nx.petersen_graph()])
def test_where_nothing_fails_the_messages_are_those_without_faults(graph):
    quiet = transport_of(MessageLoss(p=0.0), graph=graph)
    plain = Transport(Topology.from_graph(graph))
    for carrier in (quiet, plain):
        carrier.all_reduce("gradient", 8, root=1)
        carrier.broadcast(1, "noised model", 8, "tree")
        carrier.exchange("recovery", 8)

    def told(log):
        return sorted((m.kind, m.source, m.target, m.nbytes) for m in log)

    assert told(quiet.log) == told(plain.log)
    assert quiet.log.nbytes == plain.log.nbytes
    assert quiet.clock == quiet.log.steps  # one round each
    assert (quiet.applied >= 0).all()


@pytest.mark.statistical
def test_a_sum_needs_as_many_sends_as_coins_say():
    """1 / (1 - p) sends a delivery, p = 0.3: within four standard errors."""
    transport = transport_of(MessageLoss(p=0.3))
    for _ in range(300):
        transport.all_reduce("gradient", 8)
    deliveries = 300 * 2 * 5
    spread = np.sqrt(0.3) / 0.7 / np.sqrt(deliveries)
    assert abs(transport.sends / deliveries - 1 / 0.7) < 4 * spread
    assert abs(transport.sends / deliveries - 1 / 0.75) > 4 * spread


def test_copies_of_a_message_have_one_number_and_the_second_is_dropped():
    transport = transport_of(MessageLoss(p=0.6))
    transport.send(0, 1, "gradient", 8)
    messages = list(transport.log)
    assert len(messages) > 1
    assert {m.seq for m in messages} == {0}
    assert [m.arrived >= 0 for m in messages] == [False] * (len(messages) - 1) + [True]
    doubled = transport_of(Duplicate(p=1.0))
    doubled.all_reduce("gradient", 8)
    assert doubled.duplicates == doubled.sends == 10


def test_a_late_message_arrives_late_and_is_sent_again_meanwhile():
    transport = transport_of(Delay(probabilities=(0.0, 0.0, 1.0)))
    transport.send(0, 1, "gradient", 8)
    assert [(m.round, m.arrived) for m in transport.log] == [(0, 2), (1, 3), (2, 4)]
    assert transport.clock == 3
    assert transport.duplicates == 2


def test_a_message_that_comes_to_a_peer_that_is_down_is_lost():
    transport = transport_of(
        Delay(probabilities=(0.0, 1.0)), churn((1, 1, "down"), (3, 1, "up"))
    )
    assert arrival(transport.draws, 0, 0, 1) == -1
    transport.send(0, 1, "gradient", 8)
    assert [m.arrived for m in transport.log][-2:] == [4, 5]


def test_a_step_takes_as_many_rounds_as_its_slowest_message():
    transport = transport_of(churn((0, 3, "down"), (7, 3, "up")))
    transport.all_reduce("gradient", 8)
    # 3 is a leaf of the tree from 0: up in round 7, then two levels, then down again
    assert transport.clock == 8 + 2 + 3


def test_a_split_is_waited_out():
    transport = transport_of(NetworkSplit(start=0, end=9, peers=(0, 1, 2)))
    transport.broadcast(0, "noised model", 8, "flood")
    assert transport.applied[:3].tolist() == [0, 0, 1]
    assert transport.applied[3:].min() == 9
    assert not transport.lacking.any()


def test_patience_ends_with_the_names_of_those_that_are_down():
    transport = transport_of(churn((0, 2, "down"), (0, 3, "down")), patience=15)
    with pytest.raises(RefusedError, match="no way to peers 2, 3; nothing was charged"):
        transport.all_reduce("gradient", 8)


def test_a_sum_is_not_finished_without_a_peer_that_left_in_its_middle():
    transport = transport_of(churn((2, 3, "leave")))
    with pytest.raises(PeerLeftError):
        transport.all_reduce("gradient", 8)
    transport.settle()
    transport.all_reduce("gradient", 8)
    assert transport.members.tolist() == [True, True, True, False, True, True]
    assert transport.left_since() == {3: 2}


def test_a_network_that_falls_apart_takes_no_sums():
    transport = transport_of(churn((0, 3, "leave"), (0, 5, "leave")))
    with pytest.raises(RefusedError, match="peers 3, 5"):
        transport.settle()


def test_who_was_not_handed_the_model_sends_none():
    transport = transport_of(churn((0, 3, "down"), (30, 3, "up")), patience=10)
    transport.broadcast(0, "noised model", 8, "tree")
    assert np.flatnonzero(transport.lacking).tolist() == [3]
    transport.clock = 30
    transport.exchange("recovery", 8)
    assert 3 not in {m.source for m in transport.log if m.kind == "recovery"}
    with pytest.raises(StaleModelError, match="from peer 3"):
        transport.send(3, 4, "model", 8)
    assert transport.stale == 1


def test_a_crash_after_the_model_was_taken_asks_for_it_again():
    transport = transport_of(
        churn((0, 3, "down"), (6, 3, "up"), (4, 1, "crash")), patience=50
    )
    transport.broadcast(0, "noised model", 8, "flood")
    assert transport.applied[1] >= 4
    assert not transport.lacking.any()
    to_one = [m for m in transport.log if m.target == 1 and m.arrived >= 0]
    assert [m.seq for m in to_one if m.source == 0] == sorted(
        {m.seq for m in to_one if m.source == 0}
    )
    assert len(to_one) >= 2


def test_the_maker_of_a_model_has_it_on_disk():
    transport = transport_of(churn((0, 3, "down"), (6, 3, "up"), (2, 0, "crash")))
    transport.broadcast(0, "noised model", 8, "flood")
    assert transport.applied[0] == 0


def test_waiting_for_who_is_gone_ends():
    transport = transport_of(churn((0, 2, "leave"), (0, 4, "down")), patience=12)
    with pytest.raises(RefusedError, match="peer 2, a peer that left for good"):
        transport.wait_for(2)
    with pytest.raises(RefusedError, match="peer 4, one that was down for 12 rounds"):
        transport.wait_for(4)
    transport.wait_for(0)


def test_what_would_depend_on_losses_is_refused():
    transport = transport_of(MessageLoss(p=0.1))
    with pytest.raises(UnsupportedRequestError, match="use 'tree', 'flood' or 'push'"):
        transport.broadcast(0, "noised model", 8, "gossip_average")
    with pytest.raises(InvalidArgumentError, match="must be given with how='push'"):
        transport.broadcast(0, "noised model", 8, "push")


def test_a_log_with_rounds_is_read_back_as_it_was():
    transport = transport_of(MessageLoss(p=0.4), Duplicate(p=0.3))
    transport.all_reduce("gradient", 8)
    transport.broadcast(0, "noised model", 8, "flood")
    back = MessageLog()
    for row in transport.log.rows():
        back.append_row(row)
    assert list(back) == list(transport.log)
    assert back.received(6).tolist() == transport.log.received(6).tolist()
    assert back.nbytes == transport.sends * (8 + HEADER_BYTES)


def test_a_plain_log_has_no_rounds():
    plain = Transport(Topology.from_graph(nx.cycle_graph(6)))
    plain.exchange("recovery", 8)
    assert set(plain.log.rows()[0]) == {"step", "kind", "nbytes", "sources", "targets"}
    assert {m.round for m in plain.log} == {None}
