"""A round of gossip under faults, written out: message by message, in float64."""

import numpy as np
import torch


def gradients_of(run, source=None, omega=1.0):
    """All peers' full-batch gradients; the source's data term times omega."""

    def gradients(x):
        rows = []
        for i in range(run.data.n):
            leaf = torch.from_numpy(x[i]).requires_grad_()
            run.model.loss(leaf, run.data.local(i)).backward()
            row = leaf.grad.numpy()
            if i == source:
                row = omega * row + (1 - omega) * run.model.l2 * x[i]
            rows.append(row)
        return np.array(rows)

    return gradients


def ages(rounds, weights, t, oldest, since=0):
    """Age of what i takes from j in round t, by asking every message; -1 for none.

    ``rounds`` gives the faults of a round.
    """
    n = len(weights)
    found = np.full((n, n), -1)
    now = rounds(t)
    for i in range(n):
        for j in range(n):
            if i == j or weights[i, j] == 0 or not now.up[i] or now.crashed[j]:
                continue
            for age in range(oldest + 1):
                r = t - age
                if r < since:
                    break
                then = rounds(r)
                late = then.delay(j, i)
                if then.delivers(j, i) and late <= age and rounds(r + late).up[i]:
                    found[i, j] = age
                    break
    return found


def matrices(weights, age, policy, crashed=()):
    """Weights by age, age -> (N, N); missing weight goes where the policy says."""
    n = len(weights)
    found = {a: np.zeros((n, n)) for a in range(age.max(initial=0) + 1)}
    own = np.diag(weights).copy()
    for i in range(n):
        for j in range(n):
            if i == j or weights[i, j] == 0:
                continue
            gone = age[i, j] < 0
            if policy == "symmetric_drop":
                gone = gone or age[j, i] < 0
            if not gone:
                found[age[i, j]][i, j] = weights[i, j]
            elif policy == "push_sum":
                own[j] += weights[i, j]
            else:
                own[i] += weights[i, j]
    found[0] += np.diag(own)
    for i in crashed:
        took = np.where(age[i] == 0, weights[i], 0.0)
        found[0][i] = took / took.sum()
    return found


def train(
    x,
    weights,
    rounds,
    count,
    gradients,
    rate,
    *,
    policy,
    oldest=0,
    form="atc",
    momentum=0.0,
):
    """Parameters after ``count`` rounds; ``gradients(x)`` gives all peers' (N, P).

    ``weights`` is W, or gives that of a round.
    """
    x, sent, mass, v = x.copy(), [], np.ones(len(x)), np.zeros_like(x)
    for t in range(count):
        now, w = rounds(t), weights(t) if callable(weights) else weights
        works = now.works[:, None]
        v = np.where(works, momentum * v + gradients(x), v)
        crashed = np.flatnonzero(now.crashed)
        v[crashed] = 0
        step = rate * v * works
        sent.insert(0, x - step if form == "atc" else x)
        age = ages(rounds, w, t, oldest)
        parts = matrices(w, age, policy, crashed)
        if policy == "push_sum":
            after = parts[0] @ mass
            mixed = (parts[0] @ (mass[:, None] * sent[0])) / after[:, None]
            mass = after
        else:
            mixed = sum(parts[a] @ sent[a] for a in parts if a < len(sent))
        x = mixed if form == "atc" else mixed - step
    return x


def track(x, weights, rounds, count, gradients, rate):
    """Gradient tracking under symmetric faults; a peer that is idle keeps its own."""
    x = x.copy()
    g = gradients(x)
    q = g.copy()
    for t in range(count):
        now = rounds(t)
        works = now.works[:, None]
        w = matrices(weights, ages(rounds, weights, t, 0), "symmetric_drop")[0]
        x = w @ (x - rate * q * works)
        new = np.where(works, gradients(x), g)
        q = w @ q + new - g
        g = new
    return x
