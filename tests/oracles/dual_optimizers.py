"""Adam, momentum and their variances once more, in plain NumPy and Python."""

import numpy as np


def adam(start, gradients, *, rate=0.1, betas=(0.9, 0.999), eps=1e-8, joint=()):
    """End of Adam on ``(who, gradient)`` in turn, each who with moments of its own.

    ``joint`` names the moments ("m", "v") that all share, with one count of steps.
    """
    p = np.array(start, dtype=np.float64)
    moments, counts = {}, {}
    path = []
    for who, gradient in gradients:
        g = np.array(gradient, dtype=np.float64)
        corrected = {}
        for name, beta, value in (("m", betas[0], g), ("v", betas[1], g * g)):
            key = (name, "all" if name in joint else who)
            moments[key] = beta * moments.get(key, 0.0) + (1 - beta) * value
            counts[key] = counts.get(key, 0) + 1
            corrected[name] = moments[key] / (1 - beta ** counts[key])
        p = p - rate * corrected["m"] / (np.sqrt(corrected["v"]) + eps)
        path.append(p)
    return np.array(path)


def variance_by_simulation(momentum, iterations, *, shared, runs, seed):
    """Variance of a parameter over runs of SGD on independent unit normal gradients."""
    rng = np.random.default_rng(seed)
    p = np.zeros(runs)
    buffers = {"forget": np.zeros(runs), "retain": np.zeros(runs)}
    for _ in range(iterations):
        for who in ("forget", "retain"):
            key = "forget" if shared else who
            buffers[key] = momentum * buffers[key] + rng.standard_normal(runs)
            p -= buffers[key]
    return p.var()
