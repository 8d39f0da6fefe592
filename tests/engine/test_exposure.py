"""Messages of training per pair of peers, counted and not guessed."""

import networkx as nx
import numpy as np
from networks import blobs, path4

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import GaussianMechanism
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.exposure import messages_from, sent_before
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.schedules import Constant
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.claims import exposure_of

RELEASE = GaussianMechanism(noise_std=0.4, sensitivity=0.05)


class Alternating:
    """The path 0-1-2 in even rounds, 1-0-2 in odd ones."""

    n, connected_within, stochastic = 3, 1, "doubly"

    def at(self, t):
        hub = (t + 1) % 2
        edges = [(hub, i) for i in range(3) if i != hub]
        return Topology.from_graph(nx.Graph(edges))


def test_counts_are_those_of_gossip_rounds_over_edges():
    rounds, topology = 7, path4()
    transport = Transport(topology)
    for _ in range(rounds):
        transport.exchange("training", 8)
    counts = np.zeros((4, 4), dtype=int)
    for message in transport.log:
        counts[message.source, message.target] += 1
    for owner in range(4):
        np.testing.assert_array_equal(
            messages_from(topology, owner, rounds), counts[owner]
        )


def test_a_schedule_is_followed_round_by_round():
    assert messages_from(Alternating(), 1, 5).tolist() == [5, 0, 3]
    assert messages_from(Alternating(), 0, 5).tolist() == [0, 5, 2]
    assert messages_from(Constant(topology=path4()), 0, 5).tolist() == [0, 5, 0, 0]


def test_owners_by_name_and_everyone():
    assert sent_before(path4(), ("peer:1", "*"), 3) == {
        "peer:1": {0: 3, 2: 3},
        "*": {},
    }


def test_a_ledger_shows_messages_from_before_beside_what_was_released():
    ledger = PrivacyLedger()
    for request, seen in (("r1", ("peer:0", "peer:3")), ("r2", ("peer:0",))):
        ledger.charge(request, "peer:1", seen, RELEASE, status="certified")
    sent = sent_before(path4(), ("peer:1",), 12)
    rows = {row.observer: row for row in ledger.table(sent=sent)}
    assert {k: (r.pre_request, r.releases) for k, r in rows.items()} == {
        "peer:0": (12, 2),
        "peer:2": (12, 0),  # got messages, but no release
        "peer:3": (0, 1),
        "public": (0, 0),
    }
    assert rows["peer:2"].epsilon == 0
    assert rows["peer:2"].status == ""
    (both,) = ledger.table(sent=sent, observer="{peer:0,peer:3}")
    assert (both.pre_request, both.releases, both.shared) == (12, 2, True)
    assert both.epsilon == rows["peer:0"].epsilon
    (apart,) = ledger.table(sent=sent, observer="{peer:2,peer:3}")
    assert (apart.pre_request, apart.releases, apart.shared) == (12, 1, False)
    assert ledger.table(owner="peer:2") == ()
    assert all(row.pre_request is None for row in ledger.table())


def test_epsilon_can_be_asked_at_another_delta():
    ledger = PrivacyLedger()
    ledger.charge("r1", "peer:1", ("peer:0",), RELEASE)
    (row,) = ledger.table(observer="peer:0", delta=1e-6)
    assert row.delta == 1e-6
    assert row.epsilon == ledger.epsilon("peer:1", "peer:0", 1e-6)


def test_certificates_say_who_holds_what_from_before():
    data = blobs([8, 6, 7, 9, 8, 7])
    ring = simulate("ring", data, "logistic", SimulationConfig(rounds=2))
    for protocol in ("newton-fisher", "retrain"):
        certificate = unlearn(
            ring, ForgetRequest.samples(peer=1, indices=[0]), protocol
        ).certificate
        assert certificate.exposure[:2] == (
            "messages of 2 training rounds, sent before the request: peer:1 sent 2 to "
            "each of peers 0, 2 (no epsilon is attached to them)",
            # Peer 4 is three hops away: nothing of peer 1 has reached it.
            "before/after exposure: model released at round 2 to peers 0, 2, 3, 5; who "
            "keeps it can compare it with what comes after",
        )
    request = ForgetRequest.class_(1).resolve(data)
    assert request.peers == (0, 1, 2, 3, 4, 5)
    line, reached = exposure_of(ring, request)
    assert "6 owners sent up to 2 to each neighbour" in line
    # Each owner saw what the others' data did.
    assert "to peers 0, 1, 2, 3, 4, 5;" in reached
    two = ForgetRequest.class_(1, peers=[0, 1]).resolve(data)
    line, reached = exposure_of(ring, two)
    assert "peer:0 sent 2 to each of peers 1, 5; peer:1 sent 2 to each of" in line
    assert "to peers 0, 1, 2, 3, 4, 5;" in reached


def test_models_from_elsewhere_have_an_unknown_past():
    data = blobs([8, 6, 7, 9])
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    run = simulate("ring", data, model, SimulationConfig(rounds=2))
    states = run.state.params
    brought = TrainedRun.from_states(run.topology, data, model, states)
    (line,) = exposure_of(brought, ForgetRequest.whole_peer(1))
    assert "not known: the models were not trained here" in line
