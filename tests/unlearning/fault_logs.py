"""What a log of messages and a list of events say of a request: no code of its own.

Reads nothing but messages (round, source, target, kind, arrival), the rounds in which
peers crash, and who starts with the corrected model. ``MODELS`` are the kinds that
carry a model; one that its sender makes from a model of before the request is stale.
"""

MODELS = ("noised model", "final model", "recovery", "training")
HANDED = ("noised model", "final model")


def crashes_of(plan):
    return [
        (t, peer)
        for model in plan.models
        for t, peer, what in getattr(model, "events", ())
        if what == "crash"
    ]


def read(messages, plan, begin):
    """Return (who holds the corrected model at the end, stale messages)."""
    rounds = {}
    arrivals = {}
    for m in messages:
        if m.kind in MODELS and m.round >= begin:
            rounds.setdefault(m.round, []).append(m)
            if m.kind in HANDED and m.arrived >= 0:
                arrivals.setdefault(m.arrived, []).append(m.target)
    crashed = crashes_of(plan)
    last = max([begin, *rounds, *arrivals])
    first = [m for m in messages if m.kind in HANDED and m.round >= begin]
    source = first[0].source if first else None
    holds, stale = {source}, []
    for t in range(begin, last + 1):
        holds -= {peer for when, peer in crashed if when == t and peer != source}
        for m in rounds.get(t, ()):
            if m.source not in holds:
                stale.append(m)
        holds |= set(arrivals.get(t, ()))
    return holds, stale
