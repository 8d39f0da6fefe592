"""Small networks with closed forms, in plain NumPy: R4, L6 and slow D-SGD."""

import numpy as np


def r4():
    """Four peers on a path, ridge regression: inputs (4, 3, 2), targets (4, 3)."""
    i, j = np.meshgrid(np.arange(4), np.arange(3), indexing="ij")
    inputs = np.stack([np.cos(i + 2 * j), np.sin(2 * i - j)], axis=-1)
    return inputs.astype(float), np.cos(i * j).astype(float)


def l6():
    """Six peers, logistic regression: inputs (6, 8, 4), labels (6, 8) in {0, 1}."""
    i, j, k = np.meshgrid(np.arange(6), np.arange(8), np.arange(4), indexing="ij")
    x = np.sin(1.3 * i + 0.7 * j + 2.1 * k)
    x = x / np.maximum(1.0, np.linalg.norm(x, axis=-1, keepdims=True))
    i, j = np.meshgrid(np.arange(6), np.arange(8), indexing="ij")
    return x, (np.sin(i + 2 * j) + x[..., 0] > 0).astype(np.int64)


def metropolis(edges, n):
    """Metropolis weights by the definition, entry by entry."""
    degree = np.zeros(n)
    for a, b in edges:
        degree[a] += 1
        degree[b] += 1
    w = np.zeros((n, n))
    for a, b in edges:
        w[a, b] = w[b, a] = 1 / (1 + max(degree[a], degree[b]))
    return w + np.diag(1 - w.sum(axis=1))


def ridge_dsgd(inputs, targets, w, *, l2, rate, rounds, form, weights):
    """Full-batch D-SGD on 1/2 (a'x - y)^2 + l2/2 |x|^2, peer by peer.

    ``weights[i][j]`` multiplies sample j of peer i (1/n for a plain mean).
    """
    n, _, p = inputs.shape
    x = np.zeros((n, p))
    for _ in range(rounds):
        gradient = np.zeros_like(x)
        for i in range(n):
            error = inputs[i] @ x[i] - targets[i]
            gradient[i] = inputs[i].T @ (weights[i] * error) + l2 * x[i]
        x = w @ (x - rate * gradient) if form == "atc" else w @ x - rate * gradient
    return x
