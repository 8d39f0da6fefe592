"""What a log of messages and a list of events say of a request: no code of its own.

Reads nothing but messages (round, source, target, kind, arrival), the rounds in which
peers crash or leave, and when the maker of the corrected model is up to take it.
``MODELS`` are the kinds that carry a model; one that its sender makes from a model of
before the request is stale.
"""

MODELS = ("noised model", "final model", "recovery", "training")
HANDED = ("noised model", "final model")


def events_of(plan, kind):
    return [
        (t, peer)
        for model in plan.models
        for t, peer, what in getattr(model, "events", ())
        if what == kind
    ]


def maker_of(messages, requester, handed, left):
    """Who made the corrected model: its first sender, or who had it to send.

    A token whose holder has left is gone on with by the one before.
    """
    if handed:
        return handed[0].source
    token = [m for m in messages if m.kind == "token" and m.arrived >= 0]
    there = [m.target for m in token if m.target not in left]
    return there[-1] if there else requester


def read(messages, plan, begin, end, requester, up=lambda t, peer: True):
    """Return (who holds the corrected model at the end, stale messages)."""
    after = [m for m in messages if m.kind in MODELS and m.round >= begin]
    handed = [m for m in after if m.kind in HANDED]
    left = {}
    for t, peer in sorted(events_of(plan, "leave")):
        left.setdefault(peer, t)
    gone = {peer for peer, t in left.items() if t <= begin}
    source = maker_of(messages, requester, handed, gone)
    crashed = [c for c in events_of(plan, "crash") if c[0] < left.get(c[1], c[0] + 1)]
    holds, stale = set(), []
    for t in range(begin, end + 1):
        if up(t, source) and t < left.get(source, t + 1):
            holds.add(source)
        holds -= {peer for when, peer in crashed if when == t and peer != source}
        stale += [m for m in after if m.round == t and m.source not in holds]
        holds |= {m.target for m in handed if m.arrived == t}
    return holds, stale
