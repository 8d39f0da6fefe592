"""Metrics by loops over peers, rows and classes."""

import math


def softmax(logits):
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / sum(weights) for w in weights]


def mean_kl(retrained, predicted, floor=1e-12):
    """Mean over rows of KL(retrained || predicted) from two lists of logits."""
    total = 0.0
    for theirs, ours in zip(retrained, predicted, strict=True):
        for p, q in zip(softmax(theirs), softmax(ours), strict=True):
            total += p * (math.log(max(p, floor)) - math.log(max(q, floor)))
    return total / len(retrained)


def mann_whitney(members, others):
    """Share of pairs that rank the member first, ties counting half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in members for b in others)
    return wins / (len(members) * len(others))
