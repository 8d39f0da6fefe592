"""Membership scores and rates by loops, probabilities as plain lists."""

import math


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def modified_entropy(p, label):
    total = -(1 - p[label]) * math.log(p[label])
    for c, x in enumerate(p):
        if c != label:
            total -= x * math.log(1 - x)
    return total


def logit_score(p, label):
    return math.log(p[label]) - math.log(1 - p[label])


def log_normal(x, mean, std):
    return -(((x - mean) / std) ** 2) / 2 - math.log(std * math.sqrt(2 * math.pi))


def tpr_at_fpr(members, others, fpr):
    """Best share of members above a threshold that few enough others pass."""
    best = 0.0
    for cut in [*members, *others, min([*members, *others]) - 1]:
        if sum(x > cut for x in others) / len(others) <= fpr:
            best = max(best, sum(x > cut for x in members) / len(members))
    return best


def balanced_accuracy(members, others):
    best = 0.5
    for cut in [*members, *others]:
        found = sum(x >= cut for x in members) / len(members)
        kept = sum(x < cut for x in others) / len(others)
        best = max(best, (found + kept) / 2)
    return best


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def js(p, q):
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2
