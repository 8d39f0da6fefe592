r"""A simulated clock: how long the network itself would take, beside wall time.

Wall time says how fast this program is. The simulated clock says what the peers would
see: each computes at its own speed and sends over its own line. There is no barrier
for all of them: a peer goes on as soon as its own work and the messages that it waits
for are there. With :math:`c_i` the time at which peer i is done with the rounds so
far, :math:`w_i` its work of the round and :math:`d_{ji}` the way of a message from j to
i, one round is [derived]

* ``atc``: :math:`c_i \leftarrow \max(c_i + w_i, \max_j (c_j + w_j + d_{ji}))`;
* ``cta``: :math:`c_i \leftarrow \max(c_i + w_i, \max_j (c_j + d_{ji}))`, since what is
  sent does not wait for the local work;
* ``gradient_tracking``: :math:`c_i \leftarrow \max(c_i, \max_j (c_j + d_{ji})) + w_i`.

The way of a message is the access time of both ends plus its bytes over the sender's
line, which all messages of one step share in equal parts; receiving costs nothing, and
nobody loses time on a message that never comes. So the figure is a model with stated
constants, not a measurement; it changes no parameter and is not part of a digest.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.fault_draws import FaultDraws
from dfl_unlearn.engine.fault_realized import RoundFaults
from dfl_unlearn.engine.transport import HEADER_BYTES, MessageLog
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology

if TYPE_CHECKING:
    from dfl_unlearn.engine.backends.contract import EngineSetup
    from dfl_unlearn.engine.config import SimulationConfig

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NetworkClock:
    """Speeds of the peers and of their lines.

    The defaults are a home network's [set, not measured]: lines that send 10 Mbit/s,
    30 ms from peer to peer, and 10,000 sample gradients a second, which depends on the
    model: put in your own. A peer's own figure is the median times
    ``exp(spread * z)`` with a standard normal z of its key, the same in every round and
    for every protocol under one seed.

    Attributes:
        latency_s: Seconds that an empty message takes between two median peers, >= 0;
            half of it belongs to each end.
        bandwidth_bytes_per_s: Bytes a second that a median peer sends, > 0.
        samples_per_s: Per-sample gradients a second of a median peer, > 0.
        speed_spread: How unlike the peers compute, in [0, 5]; 0 is all alike.
        link_spread: How unlike their access times and their lines are, in [0, 5].
    """

    latency_s: float = 0.03
    bandwidth_bytes_per_s: float = 1.25e6
    samples_per_s: float = 1e4
    speed_spread: float = 0.0
    link_spread: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.number(latency_s=self.latency_s, at_least=0, at_most=1e6)
        for name in ("bandwidth_bytes_per_s", "samples_per_s"):
            _validate.number(**{name: getattr(self, name)}, at_least=1e-6, at_most=1e18)
        for name in ("speed_spread", "link_spread"):
            _validate.number(**{name: getattr(self, name)}, at_least=0, at_most=5)

    def pace(self, n: int, rng: RngTree) -> "Pace":
        """Return the figures of every peer.

        Args:
            n: Number of peers.
            rng: The run's draws; a child of it is used, so no other draw moves.

        Returns:
            They depend on the seed and the peer alone.
        """
        drawn = np.zeros((n, 3))
        if self.speed_spread > 0 or self.link_spread > 0:
            tree = rng.child("clock")
            for i in range(n):
                drawn[i] = tree.numpy("delay", who=i).standard_normal(3)
        speed, access, line = np.exp(
            drawn * [self.speed_spread, self.link_spread, self.link_spread]
        ).T
        return Pace(
            samples_per_s=self.samples_per_s * speed,
            access_s=self.latency_s / 2 * access,
            bytes_per_s=self.bandwidth_bytes_per_s * line,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pace:
    """What every peer's machine and line can do.

    Attributes:
        samples_per_s: Per-sample gradients a second, shape ``(N,)``.
        access_s: Its part of the way of every message, shape ``(N,)``.
        bytes_per_s: What it sends, shape ``(N,)``.
    """

    samples_per_s: Floats
    access_s: Floats
    bytes_per_s: Floats

    def ways(self, links: "Step", nbytes: float) -> Floats:
        """Return how long each message of one step is on its way, shape ``(M,)``.

        Args:
            links: Who sends to whom.
            nbytes: Size of each message in bytes, header included.
        """
        # a sender's line is shared by all that it sends in the step
        sent = links.fan_out * nbytes / self.bytes_per_s
        ends = self.access_s[links.sources] + self.access_s[links.targets]
        ways: Floats = sent[links.sources] + ends
        return ways


@dataclass(frozen=True, eq=False)
class Step:
    """Who sends to whom in one step; messages leave together.

    Attributes:
        sources: Sending peers, shape ``(M,)``.
        targets: Receiving peers, shape ``(M,)``.
        n: Number of peers of the network.
        sent: Messages that every peer sends, shape ``(N,)``, where some do not
            arrive; None counts those above.
    """

    sources: Index
    targets: Index
    n: int
    sent: Index | None = None

    @cached_property
    def fan_out(self) -> Index:
        """Messages that every peer sends, shape ``(N,)``."""
        if self.sent is not None:
            return self.sent
        return np.bincount(self.sources, minlength=self.n)


class PeerClocks:
    """What time it is at every peer.

    Attributes:
        now: Seconds since the start, shape ``(N,)``.
    """

    def __init__(self, pace: Pace) -> None:
        """Start all clocks at 0.

        Args:
            pace: What every peer can do.
        """
        self.pace = pace
        self.now: Floats = np.zeros(len(pace.access_s))

    @property
    def end(self) -> float:
        """When the last peer is done, in seconds."""
        return float(self.now.max())

    def work(self, samples: Floats, peers: Index | slice = slice(None)) -> None:
        """Let peers compute.

        Args:
            samples: Per-sample gradients of each.
            peers: Who, each once; default all.
        """
        self.now[peers] += samples / self.pace.samples_per_s[peers]

    def send(self, links: Step, ways: Floats, leave: Floats | None = None) -> None:
        """Let messages pass: whoever is sent one waits for it.

        Args:
            links: Who sends to whom.
            ways: How long each message takes, shape ``(M,)``.
            leave: When each peer's messages leave, shape ``(N,)``; default now.
        """
        leave = self.now if leave is None else leave
        arrivals = leave[links.sources] + ways  # of the clocks before the step
        np.maximum.at(self.now, links.targets, arrivals)

    def round(self, form: str, seconds: Floats, links: Step, ways: Floats) -> None:
        """Let one round of gossip training pass; see the module's equations.

        Args:
            form: Name of the iteration.
            seconds: Work of every peer, shape ``(N,)``.
            links: Who sends to whom.
            ways: How long each message takes, shape ``(M,)``.
        """
        if form == "gradient_tracking":
            self.send(links, ways)
            self.now += seconds
            return
        before = self.now.copy()
        self.now += seconds
        self.send(links, ways, before if form == "cta" else None)


class TrainingClock:
    """The clocks of a network in training, round by round; the same for any engine."""

    def __init__(self, setup: "EngineSetup") -> None:
        """Start before round 0.

        Args:
            setup: Network, data and model, and what a round computes and sends.
        """
        config, data = setup.config, setup.data
        self._schedule, self._form = setup.schedule, config.trainer.form
        self._ahead = setup.ahead
        self._faults = None
        if config.faults:
            self._faults = FaultDraws.of(config.faults, setup.schedule, setup.rng)
        self._pace = config.clock.pace(data.n, setup.rng)
        self._seconds = samples_each(data, config) / self._pace.samples_per_s
        self._nbytes = HEADER_BYTES + (
            setup.model.size * config.item_size * len(config.trainer.mixed)
        )
        self._linked: tuple[Topology, Step, Floats] | None = None
        self._start()

    def _start(self) -> None:
        self._clocks, self._round = PeerClocks(self._pace), 0
        self._up = np.ones(len(self._seconds), dtype=np.bool_)

    @property
    def now(self) -> Floats:
        """When each peer was done with the rounds so far, in seconds, ``(N,)``."""
        return self._clocks.now

    def after(self, t: int) -> float:
        """Return when the last peer is done with round t.

        Args:
            t: The round, from 0; rounds between are made up for, and an earlier one
                than the last starts over.

        Returns:
            Seconds since the start of round 0.
        """
        if t < self._round - 1:
            self._start()
        while self._round <= t:
            if self._faults is None:
                links, ways = self._links(self._round)
                self._clocks.round(self._form, self._seconds, links, ways)
            else:
                self._faulty(self._faults.at(self._round + self._ahead))
            self._round += 1
        return self._clocks.end

    def _faulty(self, now: RoundFaults) -> None:
        """Let a round pass in which something fails."""
        arcs = now.draws.arcs(now.round)
        sent = now.up[arcs.source] & now.up[arcs.target]
        back = now.up & ~self._up
        if back.any():
            # whoever returns takes up the round in which its neighbours are
            near = sent & back[arcs.target] & ~back[arcs.source]
            there = self._clocks.now[arcs.source[near]]
            np.maximum.at(self._clocks.now, arcs.target[near], there)
        self._up = now.up
        # late messages are mixed when they come; nobody waits for them or for lost ones
        fresh = now.mixing.entries[0][arcs.place] != 0
        links = Step(
            arcs.source[fresh],
            arcs.target[fresh],
            len(now.up),
            np.bincount(arcs.source[sent], minlength=len(now.up)),
        )
        ways = self._pace.ways(links, self._nbytes)
        seconds = np.where(now.works, self._seconds * now.draws.slowness, 0.0)
        self._clocks.round(self._form, seconds, links, ways)

    def _links(self, t: int) -> tuple[Step, Floats]:
        topology = self._schedule.at(t)
        if self._linked is None or self._linked[0] is not topology:
            links = gossip_links(topology)
            self._linked = (topology, links, self._pace.ways(links, self._nbytes))
        return self._linked[1:]


def gossip_links(topology: Topology) -> Step:
    """Return the messages of one round of gossip: a row to whoever takes from it."""
    weights = topology.weights.tocoo()
    sent = (weights.row != weights.col) & (weights.data != 0)
    return Step(
        weights.col[sent].astype(np.int64),
        weights.row[sent].astype(np.int64),
        topology.n,
    )


def samples_each(data: PeerData, config: "SimulationConfig") -> Floats:
    """Return the per-sample gradients of every peer in one round, shape ``(N,)``.

    Places of forgotten rows in a batch count like in ``Cost.sample_gradients``.

    Args:
        data: What the peers hold.
        config: Local steps and trainer.

    Returns:
        Averages over an epoch; 0 at a peer that keeps no row.
    """
    if config.private is not None:
        return config.private.rate * data.retained.astype(np.float64)
    per_step = data.sizes / config.local.batches(data.sizes)
    steps = config.local.per_round(data.sizes)
    each: Floats = steps * per_step * (data.retained > 0)
    return each


def split_over_peers(samples: float, data: PeerData) -> Floats:
    """Split work that all peers share, each on the rows that it keeps, ``(N,)``.

    Args:
        samples: Per-sample gradients of all peers together.
        data: What they keep.

    Returns:
        Each peer's part.
    """
    kept = data.retained.astype(np.float64)
    parts: Floats = samples * kept / max(float(kept.sum()), 1.0)
    return parts


def protocol_seconds(
    log: MessageLog,
    pace: Pace,
    *,
    samples: float,
    requester: int,
    rounding: float = 0.0,
) -> float:
    """Return how long an attempt to forget takes on the simulated clock.

    Messages are taken in the log's order: each leaves when its sender is done with all
    it was sent and computed before, so steps that do not touch each other overlap.

    Args:
        log: All messages, and who computed what between them.
        pace: What every peer can do.
        samples: Per-sample gradients of the attempt, Hessian-vector products counted
            twice. What the log does not place is put before the first message, at the
            requester.
        requester: Who asked.
        rounding: By how much ``samples`` may be above what was placed because counts
            are whole numbers.

    Returns:
        Seconds from the request until the last peer is done.
    """
    clocks = PeerClocks(pace)
    n = len(clocks.now)
    placed = sum(float(done.sum()) for _, done in log.works)
    rest = samples - placed
    if rest > rounding + 1e-9 * samples:
        clocks.work(np.array([rest]), np.array([requester]))
    for event in log.events():
        if len(event) == 2:
            clocks.work(event[1], event[0])
        else:
            links = Step(event[0], event[1], n)
            clocks.send(links, pace.ways(links, event[2]))
    return clocks.end
