import pytest

from dfl_unlearn.errors import InvalidTypeError
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.schedules import Constant, schedules


def test_a_constant_schedule_gives_the_same_network_every_round():
    ring = load_topology("ring", n=6)
    schedule = schedules.build("constant", topology=ring)
    assert isinstance(schedule, Constant)
    assert all(schedule.at(t) is ring for t in (0, 1, 1000))
    assert (schedule.n, schedule.connected_within, schedule.stochastic) == (
        6,
        1,
        "doubly",
    )


def test_a_network_is_its_own_schedule():
    ring = load_topology("ring", n=6)
    assert ring.at(7) is ring
    assert ring.connected_within == 1


def test_a_schedule_needs_a_network():
    with pytest.raises(InvalidTypeError, match="topology: must be a Topology, got str"):
        Constant(topology="ring")
