"""Decentralized gradient descent on log-cosh losses, rewound: loops in float64.

``loss_i(x) = mean_r log cosh(a_ir x - b_ir)``, so a sample's gradient is
``tanh(a x - b) a``: L = max |a|^2, G = max |a|.
"""

import numpy as np


def gradient(x, inputs, targets):
    total = np.zeros_like(x)
    for a, b in zip(inputs, targets, strict=True):
        total += np.tanh(a @ x - b) * a
    return total / len(targets)


def descend(states, peers, w, rate, rounds, form):
    """All peers' states after each round, the start first."""
    trajectory = [states.copy()]
    for _ in range(rounds):
        old = trajectory[-1]
        slopes = np.stack([gradient(x, *p) for x, p in zip(old, peers, strict=True)])
        if form == "cta":
            trajectory.append(w @ old - rate * slopes)
        else:
            trajectory.append(w @ (old - rate * slopes))
    return trajectory


def without(peers, owner, rows):
    kept = np.delete(np.arange(len(peers[owner][1])), rows)
    return [
        (x[kept], y[kept]) if i == owner else (x, y) for i, (x, y) in enumerate(peers)
    ]


def ring(n):
    w = np.zeros((n, n))
    for i in range(n):
        w[i, [i, (i - 1) % n, (i + 1) % n]] = 1 / 3
    return w


def instance(seed, peers=4, rows=20, dim=3, shift=1.0):
    """Peers whose data differ, so that what neighbours teach matters."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(peers):
        inputs = rng.standard_normal((rows, dim))
        truth = 1.0 + shift * rng.standard_normal(dim)
        found.append((inputs, inputs @ truth + 0.1 * rng.standard_normal(rows)))
    return found
