"""Gossip by hand: loops over peers, dense matrices, breadth-first search."""

import numpy as np


def metropolis_hastings(n, edges):
    """W of an undirected edge list by its definition, entry by entry."""
    degree = [sum(i in edge for edge in edges) for i in range(n)]
    weights = np.zeros((n, n))
    for i, j in edges:
        weights[i, j] = weights[j, i] = 1 / (1 + max(degree[i], degree[j]))
    for i in range(n):
        weights[i, i] = 1 - sum(weights[i, j] for j in range(n) if j != i)
    return weights


def rounds_to_average(weights, tolerance):
    """Smallest t with ||W^t - J||_2 <= tolerance, multiplying round by round."""
    n = len(weights)
    power, t = np.eye(n), 0
    while np.linalg.norm(power - 1 / n, 2) > tolerance:
        power, t = power @ weights, t + 1
    return t


def hop_distances(n, arcs, source):
    """Breadth-first search along arcs (sender, receiver)."""
    found, front = {source: 0}, [source]
    while front:
        reached = [v for u in front for s, v in arcs if s == u and v not in found]
        found |= dict.fromkeys(reached, found[front[0]] + 1)
        front = reached
    return [found[i] for i in range(n)]
