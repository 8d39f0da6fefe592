"""Two small convex problems with known minimizers, in float64 NumPy.

R4 (ridge regression, path of 4 peers) and L6 (logistic regression, 6 peers) with their
objectives solved by the normal equations and by Newton's method, from the definitions.
"""

import numpy as np

R4_L2, L6_L2 = 0.1, 0.05


def r4():
    """Return R4 as a list of (inputs (3, 2), targets (3,)), one pair per peer."""
    peers = []
    for i in range(4):
        j = np.arange(3.0)
        a = np.stack([np.cos(i + 2 * j), np.sin(2 * i - j)], axis=1)
        peers.append((a, np.cos(i * j)))
    return peers


def l6():
    """Return L6 as a list of (inputs (8, 4), labels 0/1 (8,)), one pair per peer."""
    peers = []
    for i in range(6):
        j, k = np.meshgrid(np.arange(8.0), np.arange(4.0), indexing="ij")
        x = np.sin(1.3 * i + 0.7 * j + 2.1 * k)
        x /= np.maximum(1, np.linalg.norm(x, axis=1, keepdims=True))
        labels = (np.sin(i + 2 * j[:, 0]) + x[:, 0] > 0).astype(np.int64)
        peers.append((x, labels))
    return peers


def ridge_minimizer(peers, divisors, l2):
    """Minimize mean_i (1/divisors[i]) sum_j (a_j theta - y_j)^2 / 2 + l2/2 |theta|^2.

    A peer without rows counts in the mean over peers only through its l2 term.
    """
    n, p = len(peers), peers[0][0].shape[1]
    gram, moment = l2 * np.eye(p), np.zeros(p)
    for (a, y), divisor in zip(peers, divisors, strict=True):
        gram += a.T @ a / (n * divisor)
        moment += a.T @ y / (n * divisor)
    return np.linalg.solve(gram, moment)


def logistic_minimizer(peers, l2):
    """Minimize the mean over peers of their mean logistic loss plus l2/2 |theta|^2."""
    theta = np.zeros(peers[0][0].shape[1])
    for _ in range(50):
        gradient, hessian = l2 * theta, l2 * np.eye(len(theta))
        for x, labels in peers:
            p = 1 / (1 + np.exp(-x @ theta))
            gradient = gradient + x.T @ (p - labels) / (len(peers) * len(x))
            hessian = hessian + (x.T * (p * (1 - p))) @ x / (len(peers) * len(x))
        theta = theta - np.linalg.solve(hessian, gradient)
    return theta
