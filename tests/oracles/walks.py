"""Random walks by the definition, entry by entry, with dense matrices and loops."""

import numpy as np


def neighbours(edges, n):
    near = [set() for _ in range(n)]
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    return near


def transition(edges, n, walk, lazy=0.0, avoid=None):
    near = neighbours(edges, n)
    p = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            degree = len(near[i])
            p[i, j] = 1 / (degree if walk == "uniform" else max(degree, len(near[j])))
        p[i, i] = 1 - p[i].sum()
    p = (1 - lazy) * p + lazy * np.eye(n)
    if avoid is not None:
        p[:, avoid] = 0
        p /= p.sum(axis=1, keepdims=True)
    return p


def stationary(p, rounds=200_000, tolerance=1e-15):
    """The law of a walk that stays half the time, which has no period."""
    law = np.full(len(p), 1 / len(p))
    for _ in range(rounds):
        new = law @ (0.5 * (p + np.eye(len(p))))
        if np.abs(new - law).max() < tolerance:
            return new
        law = new
    return law


def restart_series(p, source, restart, terms):
    """pi_r sum_t (1 - pi_r)^t e_u P^t: the last restart was t hops ago."""
    at = np.zeros(len(p))
    at[source] = 1.0
    law = np.zeros(len(p))
    for t in range(terms):
        law += restart * (1 - restart) ** t * at
        at = at @ p
    return law
