"""Gossip training as a simulation of events: peers, messages on their way, a queue."""

import heapq
from collections import defaultdict


def training_times(form, rounds, work, edges, access, line, nbytes):
    """Return when every peer is done with the last round.

    Peers know nothing of a common clock: each begins a round when it is done with the
    one before, and puts messages aside that come early.

    ``edges`` are (source, target) pairs; ``work`` seconds per round of each peer.
    """
    n = len(work)
    out, into = defaultdict(list), defaultdict(int)
    for source, target in edges:
        out[source].append(target)
        into[target] += 1
    queue, count = [], 0
    inbox = defaultdict(int)  # (peer, round) -> messages that are there
    ready = {}  # (peer, round) -> whether the own part is done
    done = [0.0] * n

    def put(time, kind, peer, t):
        nonlocal count
        count += 1
        heapq.heappush(queue, (time, count, kind, peer, t))

    def send(time, peer, t):
        for target in out[peer]:
            way = len(out[peer]) * nbytes / line[peer] + (access[peer] + access[target])
            put(time + way, "arrives", target, t)

    def begin(time, peer, t):
        if t == rounds:
            done[peer] = time
            return
        if form != "atc":
            send(time, peer, t)
        put(time + (0.0 if form == "gradient_tracking" else work[peer]), "own", peer, t)

    def check(time, peer, t):
        if ready.get((peer, t)) and inbox[peer, t] == into[peer]:
            ready[peer, t] = False
            if form == "gradient_tracking":
                put(time + work[peer], "after", peer, t)
            else:
                begin(time, peer, t + 1)

    for peer in range(n):
        begin(0.0, peer, 0)
    while queue:
        time, _, kind, peer, t = heapq.heappop(queue)
        if kind == "own":
            ready[peer, t] = True
            if form == "atc":
                send(time, peer, t)
            check(time, peer, t)
        elif kind == "arrives":
            inbox[peer, t] += 1
            check(time, peer, t)
        else:
            begin(time, peer, t + 1)
    return done
